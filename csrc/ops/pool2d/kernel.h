// SPDX-License-Identifier: Apache-2.0
// Pooling of planes.
//
//   y[i][r][j] = max or mean of x[i][r * stride[0] - top + a][j * stride[1] - left + b]
//                over a < kernel[0], b < kernel[1] within the image
//
// A mean divides by the number of those, or by kernel[0] * kernel[1] if padding counts. NaN wins a maximum.
#pragma once

#include <cstdint>

#include "ops/planes.h"

namespace dynkern {

struct Pool2d {
  const float* x;  // pixel (0, 0) of the first channel
  int64_t x_stride;
  int height, width, x_pitch;
  Window window;  // without dilation
  bool maximum, count_padding;
  int64_t channels;
  float* y;
  int64_t y_stride;
  int y_pitch;
  float* work;  // pool_line() of them
};

// One line of the image with its padding, and as much as strided vectors read past it.
inline int64_t pool_line(const Window& w, int width, int lanes) {
  const int64_t reach = static_cast<int64_t>(w.out[1]) * w.stride[1] + w.kernel[1];
  const int64_t line = w.left + (reach > width ? reach : width);
  return line + 2 * static_cast<int64_t>(lanes) * w.stride[1];
}

}  // namespace dynkern
