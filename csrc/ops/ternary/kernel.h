// SPDX-License-Identifier: Apache-2.0
// Ternary weights as lists: what is zero is not there.
//
//   sum[i][p] = sum over plus(i) of x[k][p] - sum over minus(i) of x[k][p]
//   y[i] = epilogue(sum[i])
//
// where x[k] is the plane of input k, shifted by its tap: x + offset[k]. Lanes are pixels, as in
// sliced_conv2d; for a linear layer a pixel is a row of the batch. No multiplication per weight, and no zero
// is visited.
#pragma once

#include <cstdint>

#include "ops/plane_output.h"

namespace dynkern {

// Where the inputs of one output lie in the index: those under +1, then those under -1.
struct TernaryBounds {
  int64_t plus, minus, end;
};

struct TernaryListsRun {
  const float* x;
  const int32_t* offset;  // x + offset[k] + p is input k of pixel p

  // One of the two, by the length of the reduction axis: 16 bits where they do.
  const uint16_t* index;
  const uint32_t* wide_index;
  const TernaryBounds* bounds;  // one per active output, in order

  int64_t outputs;

  PlaneOutput out;
};

}  // namespace dynkern
