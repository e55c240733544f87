// SPDX-License-Identifier: Apache-2.0
// Convolution whose lanes are output channels: for images whose rows do not fill vectors of pixels.
//
//   sum[i][r][p] = sum over c, t of  weight[out_first + i][in(c)][t] * x[c][tap_offset[t] + r * x_row + p *
//   stride] y[i] = epilogue(sum[i])
//
// A weight is loaded once for the pixels of a tile, a pixel once for 32 outputs. Pixels are read where they
// lie, also with a stride; results are turned so that they are stored as planes.
#pragma once

#include <cstdint>

#include "ops/plane_output.h"

namespace dynkern {

// Output channels that lie side by side in a packed weight: (outputs / 16, inputs, taps, 16), filled up with
// zeros.
constexpr int kPackedOutputs = 16;
// Pixels of a row that are computed together, alone or by two.
constexpr int kChannelPixels = 7;

struct ChannelConv2d {
  const float* x;  // pixel (0, 0)
  int64_t channels;
  int64_t channel_stride;
  const int32_t* tap_offset;
  int taps;
  int x_row;   // floats between the inputs of two rows of results
  int stride;  // between those of two pixels: 1 or 2

  const float* weight;      // packed
  int64_t weight_block;     // floats from 16 outputs to the next
  const int64_t* in_index;  // null: the first `channels`
  int64_t out_first;
  int64_t outputs;

  PlaneOutput out;  // pitch and mask are not used
};

// Whether the kernels of channels take rows of that many results.
inline bool channels_take_width(int width) { return width == kChannelPixels || width >= 2 * kChannelPixels; }

// Pixels that the kernel computes for one row of results.
inline int channel_pixels(int width) {
  return (width + kChannelPixels - 1) / kChannelPixels * kChannelPixels;
}

}  // namespace dynkern
