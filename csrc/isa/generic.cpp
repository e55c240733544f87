// SPDX-License-Identifier: Apache-2.0
#define DYNKERN_ISA generic
#define DYNKERN_SIMD "simd/generic.h"
#include "isa/table-inl.h"
