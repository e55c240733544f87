// SPDX-License-Identifier: Apache-2.0
// Ternary weights as lists: what is zero is not there.
//
//   y[o][p] = bias[out(o)] + scale[out(o)] * (sum over plus(o) of x[k][p] - sum over minus(o) of x[k][p])
//
// where x[k] is the plane of input k, shifted by its tap: x + offset[k]. Lanes are pixels, as in
// sliced_conv2d; for a linear layer a pixel is a row of the batch. No multiplication per weight, and no zero
// is visited.
#pragma once

#include <cstdint>

namespace dynkern {

// Where the inputs of one output lie in the index: those under +1, then those under -1.
struct TernaryBounds {
  int64_t plus, minus, end;
};

struct TernaryListsRun {
  const float* x;         // readable for one vector past the last pixel's inputs
  const int32_t* offset;  // x + offset[k] + p is input k of pixel p

  // One of the two, by the length of the reduction axis: 16 bits where they do.
  const uint16_t* index;
  const uint32_t* wide_index;
  const TernaryBounds* bounds;  // one per active output, in order

  const int64_t* out_index;  // null: from `out_first` on
  int64_t out_first, outputs;
  const float* scale;  // null, or one per output of the full weight
  const float* bias;   // null, or one per output of the full weight

  // Results: rows of `width` floats, `out_stride` floats between channels.
  float* y;
  int64_t out_stride;
  int rows, width, pitch;
};

}  // namespace dynkern
