// SPDX-License-Identifier: Apache-2.0
// What activations, results and biases are made of.
#pragma once

#include <cstdint>
#include <type_traits>

namespace dynkern::cuda {

enum class Type : int { kInt8 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat32 = 3 };

template <Type T>
constexpr int kBytes = T == Type::kInt8      ? 1
                       : T == Type::kFloat32 ? 4
                                             : 2;

// What products are summed in: exact integers for int8.
template <Type T>
using SumOf = std::conditional_t<T == Type::kInt8, int32_t, float>;

// Activations as the kernels move them: 16-bit floats by their bits.
template <Type T>
using ElementOf = std::conditional_t<T == Type::kInt8, int8_t, uint16_t>;

// The forms of a packed weight, see layout.h.
enum class Form : int { kDense = 0, kLists = 1, kSparse8 = 2, kSparse16 = 3 };

}  // namespace dynkern::cuda
