// SPDX-License-Identifier: Apache-2.0
// Sliced linear layer.
//
//   y[m][o] = bias[o] + sum over i of  weight[out(o)][in(i)] * x[m][i]
//
// Lanes run along the reduction. The inputs are given as runs of neighbours, so that a prefix is one run, the
// parts of a concatenation a few, and an arbitrary index set as many as it has gaps.
#pragma once

#include <cstdint>

namespace dynkern {

struct Run {
  int64_t x, weight, size;  // x[x .. x + size) meets weight[weight .. weight + size)
};

struct SlicedLinear {
  const float* x;
  int64_t rows, x_row;  // x_row: floats between rows; a row is contiguous
  const Run* runs;
  int64_t run_count;

  const float* weight;
  int64_t weight_out;        // floats between rows; a row is contiguous
  const int64_t* out_index;  // null: from `out_first` on
  int64_t out_first, outputs;
  const float* bias;  // null, or one per active output

  float* y;
  int64_t y_row;
};

}  // namespace dynkern
