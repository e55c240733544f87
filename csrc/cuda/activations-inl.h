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
  // Seldom: a loop that shifts the elements in one after the other, short so that it does not stretch its
  // caller's.
  constexpr int kBits = 8 * kBytes<T>;
  DK_ROLL
  for (int j = 0; j < kVector<T>; ++j) {
    const uint32_t next = k + j < a.inputs ? element_bits<T>(a, first + j) : 0;
    v.x = v.x >> kBits | v.y << (32 - kBits);
    v.y = v.y >> kBits | v.z << (32 - kBits);
    v.z = v.z >> kBits | v.w << (32 - kBits);
    v.w = v.w >> kBits | next << (32 - kBits);
  }
  return v;
}

}  // namespace dynkern::cuda
