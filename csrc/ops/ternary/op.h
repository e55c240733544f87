// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/conv_call.h"
#include "ops/ternary/lists.h"

namespace dynkern {

// A ternary weight and the slice of it that runs.
struct TernaryOperand {
  const TernaryLists& lists;
  const int64_t* in_index =
      nullptr;  // null: the first inputs; with groups > 1 the filters of a depthwise layer
  const int64_t* out_index = nullptr;  // null: the first outputs
  const float* scale = nullptr;        // may be null
  const float* bias = nullptr;         // may be null
};

// `call.work` is filled in from the nonzeros that run.
void run_ternary_conv2d(ConvCall call, const TernaryOperand& weight);

struct TernaryLinearCall {
  const float* x;
  int64_t rows, inputs, x_row, x_column;  // strides in floats
  float* y;                               // (rows, outputs), contiguous
  int64_t outputs;
  int threads;
};

void run_ternary_linear(const TernaryLinearCall& call, const TernaryOperand& weight);

}  // namespace dynkern
