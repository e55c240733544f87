// SPDX-License-Identifier: Apache-2.0
#include "ops/ternary_int8/op.h"

#include <cstring>

namespace dynkern {

void run_ternary_linear_int8(const TernaryLinearCall& call, const Int8Operand& weight) {
  const KernelTable& kernel = kernels();
  const TernaryPlan plan(weight, call.rows, call.inputs, 1);
  const TernaryTiles tiles(weight, plan, call.inputs, call.outputs, 1, {});
  const int64_t full = weight.layouts.inputs();
  // Rows are dealt out evenly; outputs are shared where there are too few rows for the threads.
  const int64_t down = (call.rows + tiles.rows() - 1) / tiles.rows();
  const double work = static_cast<double>(call.rows * call.outputs * call.inputs) / 8;
  const int threads = work < kLeastWork ? 1 : call.threads;
  const int64_t across = std::max<int64_t>(
      1, std::min<int64_t>((threads + down - 1) / down, call.outputs / (2 * kGroupOutputs)));
  const int64_t of_piece =
      ((call.outputs + across - 1) / across + kGroupOutputs - 1) / kGroupOutputs * kGroupOutputs;
  float greatest_of_all = 0;
  if (!weight.per_row) {
    int32_t most = 0;  // the bits of floats that are not negative are in their order, NaN the greatest
    for (int64_t r = 0; r < call.rows; ++r) {
      int32_t bits;
      float greatest;
      kernel.greatest_magnitude({call.x + r * call.x_row, call.inputs, &greatest});
      std::memcpy(&bits, &greatest, sizeof bits);
      most = std::max(most, bits);
    }
    std::memcpy(&greatest_of_all, &most, sizeof most);
  }
  const size_t row_bytes = static_cast<size_t>((std::max(full, call.inputs) + 63) / 64 * 64);
  const size_t head = 2 * row_bytes + 256;
  const size_t bytes = (head + tiles.bytes() + 63) / 64 * 64;
  auto* scratch =
      reinterpret_cast<unsigned char*>(Scratch::floats(static_cast<size_t>(threads) * bytes / sizeof(float)));
  parallel_for(down * across, threads, [&](int64_t piece, int thread) {
    const int64_t begin = piece / across * call.rows / down, end = (piece / across + 1) * call.rows / down;
    const int64_t first = piece % across * of_piece, last = std::min(first + of_piece, call.outputs);
    if (first >= last) return;
    const int rows = static_cast<int>(end - begin);
    unsigned char* memory = scratch + static_cast<size_t>(thread) * bytes;
    auto* row = reinterpret_cast<int8_t*>(memory);
    int8_t* spread = row + row_bytes;
    auto* row_scale = reinterpret_cast<float*>(memory + 2 * row_bytes);
    unsigned char* tile = memory + head;
    if (plan.spread) std::memset(spread, 0, static_cast<size_t>(full));
    for (int r = 0; r < rows; ++r) {
      const float* x = call.x + (begin + r) * call.x_row;
      float greatest = greatest_of_all;
      if (weight.per_row) kernel.greatest_magnitude({x, call.inputs, &greatest});
      const RowScale scale(greatest, weight.activation_scale);
      row_scale[r] = scale.scale;
      kernel.quantize_row({x, call.inputs, scale.inverse, row});
      if (plan.spread) {
        for (int64_t i = 0; i < call.inputs; ++i) spread[weight.in_index[i]] = row[i];
      }
      tiles.put(tile, rows, r, plan.spread ? spread : row);
    }
    tiles.run(tile, rows, 0, 0, first, last, {call.y + begin * call.outputs, call.outputs, 1, row_scale});
  });
}

}  // namespace dynkern
