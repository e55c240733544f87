// SPDX-License-Identifier: Apache-2.0
#define DYNKERN_ISA avx512_vbmi
#define DYNKERN_SIMD "simd/avx512.h"
#include "isa/table-inl.h"
