// SPDX-License-Identifier: Apache-2.0
// Where a kernel whose lanes are pixels puts its results, and what it does to them on the way:
//
//   y[i][p] = activation(scale[i] * sum[i][p] + shift[i] + residual_scale[i] * residual[i][p])
#pragma once

#include <cstdint>

namespace dynkern {

enum class Activation { kNone, kClamp, kGelu, kGeluTanh, kSilu, kHardswish, kHardsigmoid, kSigmoid, kTanh };

struct Epilogue {
  // One per active output, in order; null for 1, 0 and 1.
  const float* scale = nullptr;
  const float* shift = nullptr;
  const float* residual_scale = nullptr;
  const float* residual = nullptr;  // null, or planes like those of y
  int64_t residual_stride = 0;      // floats between channels
  Activation activation = Activation::kNone;
  float low = 0, high = 0;  // of kClamp
};

struct PlaneOutput {
  float* y;
  int64_t stride;   // floats between channels
  int rows, width;  // results
  int pitch;        // pixels from row to row as they are computed
  int y_pitch;      // floats from row to row in y
  const int32_t*
      mask;  // if pitch == y_pitch > width: for each pixel -1 or, between rows, 0, which makes a zero of it
  Epilogue epilogue;
};

}  // namespace dynkern
