// SPDX-License-Identifier: Apache-2.0
#include "ops/sliced_linear/op.h"

#include <algorithm>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"
#include "ops/active_vector.h"

namespace dynkern {
namespace {

constexpr int64_t kOutputsOfPiece = 16, kRowsOfPiece = 96;

}  // namespace

std::vector<Run> runs_of(int64_t inputs, const int64_t* in_index) {
  if (in_index == nullptr) return {{0, 0, inputs}};
  std::vector<Run> runs;
  for (int64_t i = 0; i < inputs; ++i) {
    if (!runs.empty() && runs.back().weight + runs.back().size == in_index[i]) {
      ++runs.back().size;
    } else {
      runs.push_back({i, in_index[i], 1});
    }
  }
  return runs;
}

void run_sliced_linear(SlicedLinear call, int64_t inputs, const int64_t* in_index, int threads) {
  const std::vector<Run> runs = runs_of(inputs, in_index);
  const ActiveVector bias(call.bias, call.out_index, call.outputs);
  call.bias = bias.from(0);
  call.runs = runs.data();
  call.run_count = static_cast<int64_t>(runs.size());
  const auto kernel = kernels().sliced_linear;
  if (static_cast<double>(call.rows) * static_cast<double>(call.outputs) * static_cast<double>(inputs) <
      kLeastWork) {
    threads = 1;
  }
  if (threads == 1) return kernel(call);
  const int64_t across = (call.outputs + kOutputsOfPiece - 1) / kOutputsOfPiece;
  const int64_t down = (call.rows + kRowsOfPiece - 1) / kRowsOfPiece;
  parallel_for(across * down, threads, [&](int64_t i, int) {
    const int64_t output = i % across * kOutputsOfPiece, row = i / across * kRowsOfPiece;
    SlicedLinear piece = call;
    piece.outputs = std::min(kOutputsOfPiece, call.outputs - output);
    piece.rows = std::min(kRowsOfPiece, call.rows - row);
    piece.x += row * call.x_row;
    piece.out_first += output;
    if (piece.out_index != nullptr) piece.out_index += output;
    piece.bias = bias.from(output);
    piece.y += row * call.y_row + output;
    kernel(piece);
  });
}

}  // namespace dynkern
