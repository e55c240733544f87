// SPDX-License-Identifier: Apache-2.0
// The planes that a convolution of stride 2 reads (see ops/planes.h), of an image that has its padding around
// it.
//
//   y[c][a][b][r][j] = x[c][2 r + a][2 j + b]     a < copies[0], b < copies[1], j < pitch, 2 r + a < x_rows
//
// Rows of x from x_rows on count as zeros, and so does the row after the last.
#pragma once

#include <cstdint>

namespace dynkern {

struct SplitPlanes {
  const float* x;
  int64_t x_stride;
  int x_pitch, x_rows;
  int64_t channels;
  float* y;
  int64_t y_stride, plane;  // floats from channel to channel and from copy to copy
  int copies[2];
  int rows, pitch;
};

}  // namespace dynkern
