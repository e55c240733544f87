// SPDX-License-Identifier: Apache-2.0
// Between planes of floats and quantised ones, pixel by pixel:
//
//   quantize    y[i] = nearest integer of clamp(scale[i] * x[i] + shift[i], low, high), ties to even
//   dequantize  y[i] = scale[i] * x[i] + shift[i]
//
// Neither multiplication is fused with its addition: results are the same bits under every instruction set.
// A NaN becomes `low`.
#pragma once

#include <cstdint>

#include "ops/element.h"
#include "ops/plane_output.h"

namespace dynkern {

struct Quantize {
  Element element;     // of y
  const float* x;      // planes of floats, rows as in out
  int64_t x_stride;    // floats between channels
  int64_t channels;    // channels of y past the last one get the zero point, as does what lies between rows
  uint32_t fill;       // word of zero points
  const float* scale;  // one per channel
  const float* shift;
  float low, high;  // within what the element holds
  PlaneOutput out;  // y in words; no epilogue
};

struct Dequantize {
  Element element;   // of x
  const float* x;    // word planes, rows as in out
  int64_t x_stride;  // words between planes
  int64_t channels;
  const float* scale;
  const float* shift;
  PlaneOutput out;
};

}  // namespace dynkern
