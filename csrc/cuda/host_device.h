// SPDX-License-Identifier: Apache-2.0
// Functions and vectors that the host knows too.
#pragma once

#ifdef __CUDACC__
#define DK_HD __host__ __device__ __forceinline__
#else
#include <cstdint>
#define DK_HD inline
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
#endif
