// SPDX-License-Identifier: Apache-2.0
// Depthwise convolution: an output channel has one input channel, an input channel `multiplier` outputs.
//
//   sum[i][r][c] = sum over k, l of  weight[filter(i)][k][l]
//       * x[i / multiplier][r * stride[0] + k * dilation[0]][c * stride[1] + l * dilation[1]]
//   y[i] = epilogue(sum[i])
//
// Lanes are neighbouring pixels of a row. Padding is part of the planes of x. Vectors are read up to
// `2 * lanes` floats past the last pixel that counts.
#pragma once

#include <cstdint>

#include "ops/plane_output.h"

namespace dynkern {

struct DepthwiseConv2d {
  const float* x;                         // what tap (0, 0) of pixel (0, 0) reads, in the first plane
  int64_t x_stride;                       // floats between planes
  int x_pitch;                            // floats between rows
  int kernel[2], stride[2], dilation[2];  // stride[1] is 1 or 2

  const float* weight;
  int64_t weight_out, weight_tap;  // strides in floats
  int64_t multiplier;
  const int64_t* index;  // of the full network's channels those that run; null: from `first` on
  int64_t first;
  int64_t channels;  // of x

  PlaneOutput out;  // its pitch and mask are not used
};

// Whether the kernel takes that horizontal stride.
inline bool takes_stride(int stride) { return stride == 1 || stride == 2; }

}  // namespace dynkern
