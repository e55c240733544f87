// SPDX-License-Identifier: Apache-2.0
#define DYNKERN_ISA avx2
#define DYNKERN_SIMD "simd/avx2.h"
#include "isa/table-inl.h"
