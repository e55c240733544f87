// SPDX-License-Identifier: Apache-2.0
// Convolution of quantised planes.
//
//   sum[i][p] = start[i] + sum over word planes c, taps t of  dot(weight[i][c][t], x[c][tap_offset[t] + p])
//   y[i] = epilogue(sum[i]), rounded to the nearest integer if y is quantised
//
// dot multiplies the 4 (8 bits) or 2 (16 bits) channels of a word and adds the products. Lanes are pixels.
// All sums are exact integers: of 8 bits by the length of the reduction; of 16 bits because after every
// `flush` words they move to float32 sums. No multiply-add of the epilogue is fused, so that results are the
// same bits under every instruction set (unless the activation is a transcendental function).
#pragma once

#include <cstdint>

#include "ops/element.h"
#include "ops/plane_output.h"

namespace dynkern {

// Outputs whose weights lie together, and which are computed together.
constexpr int kQuantizedOutputs = 4;

struct QuantizedConv2d {
  Element element;  // of x, the weight and the residual: kUint8 (with weights of int8) or kInt16
  const float* x;   // word planes, `channel_stride` words apart
  int64_t planes;
  int64_t channel_stride;
  const int32_t* tap_offset;
  int taps;

  const int32_t* weight;  // words [outputs / 4][planes of the full weight][taps][4]
  int64_t weight_block;   // words between fours of outputs
  const int32_t* start;   // of kUint8: one per output
  int64_t flush;

  // Scale, shift and residual scale of the epilogue are there, and they and `start` go on to a multiple of
  // four outputs; those past the last one are such that the zero point comes out.
  int64_t outputs;
  Element out_element;
  uint32_t out_fill;  // word between rows
  PlaneOutput out;    // y and residual in words, strides between word planes
};

}  // namespace dynkern
