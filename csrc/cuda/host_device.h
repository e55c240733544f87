// SPDX-License-Identifier: Apache-2.0
#pragma once

#ifdef __CUDACC__
#define DK_HD __host__ __device__ __forceinline__
#else
#define DK_HD inline
#endif
