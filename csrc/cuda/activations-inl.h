// SPDX-License-Identifier: Apache-2.0
// Reading activations: 16 bytes of a row at a time, whatever its alignment, zero beyond the end.
#pragma once

#include "cuda/target.h"
#include "cuda/ternary_linear.h"

namespace dynkern::cuda {

template <Type T>
constexpr int kVector = 16 / kBytes<T>;  // elements in 16 bytes

template <Type T>
DK_DEVICE uint32_t element_bits(const LinearArguments& a, int64_t i) {
  if constexpr (T == Type::kInt8) return load_read_only(static_cast<const uint8_t*>(a.x) + i);
  return load_read_only(static_cast<const uint16_t*>(a.x) + i);
}

// Elements k to k + kVector<T> - 1 of a row.
template <Type T>
DK_DEVICE uint4 load_x(const LinearArguments& a, int row, int k) {
  uint4 v{0, 0, 0, 0};
  if (row >= a.rows || k >= a.inputs) return v;
  const int64_t first = row * a.x_row + k;
  if (a.vectors && k + kVector<T> <= a.inputs) {
    return load_read_only(
        reinterpret_cast<const uint4*>(static_cast<const unsigned char*>(a.x) + first * kBytes<T>));
  }
  uint32_t word[4] = {0, 0, 0, 0};
  DK_UNROLL
  for (int j = 0; j < kVector<T>; ++j) {
    if (k + j < a.inputs) {
      word[j * kBytes<T> / 4] |= element_bits<T>(a, first + j) << (j * kBytes<T> % 4 * 8);
    }
  }
  return uint4{word[0], word[1], word[2], word[3]};
}

}  // namespace dynkern::cuda
