// SPDX-License-Identifier: Apache-2.0
// Ternary weights as lists: what is zero is not there.
//
//   sum[i][p] = sum over plus(i) of x[k][p] - sum over minus(i) of x[k][p]
//   y[i] = epilogue(sum[i])
//
// where x[k] is the plane of input k, shifted by its tap: x + offset[k]. Lanes are pixels, as in
// sliced_conv2d; for a linear layer a pixel is a row of the batch. No multiplication per weight, and no zero
// is visited.
//
// Every nonzero is a load and an add, so the loads are the limit: the inputs are taken in blocks that stay in
// the first-level cache while all outputs walk their parts of the lists, with their sums put aside between
// blocks.
#pragma once

#include <cstdint>

#include "ops/plane_output.h"

namespace dynkern {

struct TernaryListsRun {
  const float* x;
  const int32_t* offset;  // x + offset[k] + p is input k of pixel p

  // One of the two, by the length of the reduction axis: 16 bits where they do.
  const uint16_t* index;
  const uint32_t* wide_index;

  // For each active output, in order, `blocks` + 1 pairs: where its plus and its minus list begin in each
  // block, and end.
  const uint32_t* cuts;
  int blocks;

  int64_t outputs;
  int vectors;     // of pixels in a tile, at most
  float* partial;  // if blocks > 1: outputs * vectors vectors of working memory

  PlaneOutput out;
};

}  // namespace dynkern
