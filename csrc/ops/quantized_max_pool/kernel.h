// SPDX-License-Identifier: Apache-2.0
// Maxima over windows of quantised planes, whose order is that of their integers.
//
//   y[c][i][j] = max over k, l of  x[c][i * stride[0] - top + k][j * stride[1] - left + l],  inside x
#pragma once

#include <cstdint>

#include "ops/element.h"
#include "ops/planes.h"

namespace dynkern {

struct QuantizedMaxPool {
  Element element;
  const float* x;  // word planes, x_stride words apart, with rows of x_pitch
  int64_t x_stride;
  int x_pitch, height, width;
  int64_t planes;
  Window window;
  float* y;
  int64_t y_stride;
  int y_pitch;
  float* work;  // two lines of max_pool_line words
};

// Words of a line of the image with its padding, and of two vectors more.
inline int64_t max_pool_line(const Window& w, int width) {
  const int64_t reach = static_cast<int64_t>(w.out[1] - 1) * w.stride[1] + w.kernel[1];
  return (reach > w.left + width ? reach : w.left + width) + 64;
}

}  // namespace dynkern
