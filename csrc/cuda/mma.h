// SPDX-License-Identifier: Apache-2.0
// The tensor-core instructions: c += A B for a warp. A, 16 rows of weights, and B, 8 columns of activations,
// lie in registers as the PTX manual prescribes. Of the sparse ones, A holds two of every four columns and
// `e` says which.
#pragma once

#include "cuda/target.h"
#include "cuda/types.h"

#ifdef __CUDACC__

namespace dynkern::cuda {

#define DK_MMA(instruction, letter, c, a, b0, b1)                                               \
  asm volatile(instruction " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"             \
               : "+" letter((c)[0]), "+" letter((c)[1]), "+" letter((c)[2]), "+" letter((c)[3]) \
               : "r"((a)[0]), "r"((a)[1]), "r"((a)[2]), "r"((a)[3]), "r"(b0), "r"(b1))

#define DK_MMA_SPARSE(instruction, letter, c, a, b, e, selector)                                            \
  asm volatile(instruction " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, %13;"       \
               : "+" letter((c)[0]), "+" letter((c)[1]), "+" letter((c)[2]), "+" letter((c)[3])             \
               : "r"((a)[0]), "r"((a)[1]), "r"((a)[2]), "r"((a)[3]), "r"((b)[0]), "r"((b)[1]), "r"((b)[2]), \
                 "r"((b)[3]), "r"(e), "n"(selector))

// A is 16 x 32 of int8, or 16 x 16 of 16-bit floats.
template <Type T>
DK_DEVICE void mma(SumOf<T> (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (T == Type::kInt8) {
    DK_MMA("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", "r", c, a, b0, b1);
  } else if constexpr (T == Type::kBFloat16) {
    DK_MMA("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "f", c, a, b0, b1);
  } else {
    DK_MMA("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "f", c, a, b0, b1);
  }
}

// A is 16 x 64 of int8, or 16 x 32 of 16-bit floats; of the latter, `Selector` names the pair of lanes in
// every four whose `e` counts.
template <Type T, int Selector>
DK_DEVICE void mma_sparse(SumOf<T> (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t e) {
  if constexpr (T == Type::kInt8) {
    static_assert(Selector == 0, "all lanes' e counts");
    DK_MMA_SPARSE("mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32", "r", c, a, b, e, 0);
  } else if constexpr (T == Type::kBFloat16) {
    DK_MMA_SPARSE("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32", "f", c, a, b, e,
                  Selector);
  } else {
    DK_MMA_SPARSE("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32", "f", c, a, b, e,
                  Selector);
  }
}

#undef DK_MMA
#undef DK_MMA_SPARSE

}  // namespace dynkern::cuda

#endif
