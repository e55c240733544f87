// SPDX-License-Identifier: Apache-2.0
// From sums to results: scales and bias, the output's type, and the sums of blocks that share a result.
#pragma once

#include <cstring>

#include "cuda/target.h"
#include "cuda/ternary_linear.h"

namespace dynkern::cuda {

template <class To, class From>
DK_DEVICE To bits_as(From v) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &v, sizeof to);
  return to;
}

DK_DEVICE float float_of_bfloat16(uint16_t bits) { return bits_as<float>(static_cast<uint32_t>(bits) << 16); }
// To the nearest, ties to even; NaN stays NaN.
DK_DEVICE uint16_t bfloat16_of_float(float v) {
  const uint32_t u = bits_as<uint32_t>(v);
  if (v != v) return static_cast<uint16_t>(u >> 16 | 0x40);
  return static_cast<uint16_t>((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

DK_DEVICE float load_as_float(const void* p, Type type, int64_t i) {
  if (type == Type::kFloat32) return static_cast<const float*>(p)[i];
  const uint16_t bits = static_cast<const uint16_t*>(p)[i];
  return type == Type::kBFloat16 ? float_of_bfloat16(bits) : float_of_half(bits);
}

// `sum` is `unit` times the sum of the products.
DK_DEVICE float in_units(float sum, int unit) { return sum * (1.0f / static_cast<float>(unit)); }
DK_DEVICE float in_units(int32_t sum, int unit) { return static_cast<float>(sum / unit); }

template <class Sum>
DK_DEVICE void store_result(const LinearArguments& a, int row, int output, Sum sum, int unit) {
  float v = in_units(sum, unit);
  if (a.row_scale != nullptr) {
    // The two scales first, and no product fused with the sum after it: the CPU's kernels round like this.
    const float row_scale = a.row_scale[row];
    v = rounded_product(v, a.scale == nullptr ? row_scale : rounded_product(row_scale, a.scale[output]));
  } else if (a.scale != nullptr) {
    v = rounded_product(v, a.scale[output]);
  }
  if (a.bias != nullptr) v = rounded_sum(v, load_as_float(a.bias, a.bias_type, output));
  const int64_t i = static_cast<int64_t>(row) * a.outputs + output;
  if (a.y_type == Type::kFloat32) {
    static_cast<float*>(a.y)[i] = v;
  } else {
    static_cast<uint16_t*>(a.y)[i] = a.y_type == Type::kBFloat16 ? bfloat16_of_float(v) : half_of_float(v);
  }
}

// Takes the sum of one split: the result itself where there is only one, and something to add up later
// otherwise.
template <class Sum>
DK_DEVICE void store_sum(const LinearArguments& a, int split, int row, int output, Sum sum, int unit) {
  if (row >= a.rows || output >= a.outputs) return;
  if (a.splits == 1) {
    store_result(a, row, output, sum, unit);
  } else {
    const int64_t i = (static_cast<int64_t>(split) * a.rows + row) * a.outputs + output;
    a.partial[i] = bits_as<float>(sum);
  }
}

// After all of a block's store_sum: the block that comes last adds up what all splits left, in their order,
// so that the result does not depend on which one that is. `flag` is a word of shared memory.
template <class Sum, int Threads>
DK_DEVICE void finish_splits(const LinearArguments& a, int counter, unsigned* flag, int first_row,
                             int block_rows, int first_output, int block_outputs, int unit) {
  if (a.splits == 1) return;
  fence_device();
  sync_block();
  if (thread_index() == 0) *flag = add_atomic(a.arrived + counter, 1);
  sync_block();
  if (*flag + 1 != static_cast<unsigned>(a.splits)) return;
  fence_device();
  if (thread_index() == 0) a.arrived[counter] = 0;
  const int64_t one_split = static_cast<int64_t>(a.rows) * a.outputs;
  for (int i = thread_index(); i < block_rows * block_outputs; i += Threads) {
    const int row = first_row + i / block_outputs, output = first_output + i % block_outputs;
    if (row >= a.rows || output >= a.outputs) continue;
    const float* partial = a.partial + static_cast<int64_t>(row) * a.outputs + output;
    Sum sum = bits_as<Sum>(load_fresh(partial));
    for (int split = 1; split < a.splits; ++split)
      sum += bits_as<Sum>(load_fresh(partial + split * one_split));
    store_result(a, row, output, sum, unit);
  }
}

// The sums of `Outputs` outputs by `Columns` rows of x, on their way through shared memory to coalesced
// stores.
template <class Sum, int Outputs, int Columns>
struct SumTile {
  // Four more than a multiple of 16: fragments are then written without bank conflicts.
  static constexpr int kPitch = Outputs + 4;
  static constexpr int kBytes = kPitch * Columns * 4;
  static_assert(Outputs % 16 == 0, "the pitch counts on it");

  // Where the sums of a fragment c of the tensor core go: 16 outputs from `output` on, 8 columns from
  // `column` on.
  template <class F>
  DK_DEVICE static void each(Sum* tile, int output, int column, int lane, F&& f) {
    DK_UNROLL
    for (int j = 0; j < 4; ++j) {
      f(tile[(column + lane % 4 * 2 + j % 2) * kPitch + output + lane / 4 + j / 2 * 8], j);
    }
  }

  template <int Threads>
  DK_DEVICE static void store(const LinearArguments& a, const Sum* tile, int split, int first_row,
                              int first_output, int unit) {
    for (int i = thread_index(); i < Outputs * Columns; i += Threads) {
      store_sum(a, split, first_row + i / Outputs, first_output + i % Outputs,
                tile[i / Outputs * kPitch + i % Outputs], unit);
    }
  }
};

}  // namespace dynkern::cuda
