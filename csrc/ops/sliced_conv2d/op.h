// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/conv_call.h"

namespace dynkern {

// The full weight of a convolution, its strides in floats, and the slice of it that runs.
struct ConvWeight {
  const float* data;
  int64_t out_stride, in_stride, tap_stride;
  const int64_t* in_index;   // null: the first channels; with groups > 1 the filters of a depthwise layer
  const int64_t* out_index;  // null: the first channels
  const float* bias;         // one per active output, or null
};

void run_sliced_conv2d(const ConvCall& call, const ConvWeight& weight);

}  // namespace dynkern
