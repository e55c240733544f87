// SPDX-License-Identifier: Apache-2.0
// Sliced convolution over planes.
//
//   y[o][p] = bias[out(o)] + sum over c, t of  weight[out(o)][in(c)][t] * x[c][tap_offset[t] + p]
//
// Lanes are pixels: p runs over the pixels of the planes (see ops/planes.h), `pitch` of them to a row, of
// which the first `width` are results and the rest is padding that is computed and dropped. A channel is
// never a lane, so any number of channels costs its share, and the weight is read where it lies, by
// broadcasts.
#pragma once

#include <cstdint>

namespace dynkern {

struct SlicedConv2d {
  // Planes: `channels` of them, `channel_stride` floats apart, readable for one vector past the last pixel's
  // taps.
  const float* x;
  int64_t channels;
  int64_t channel_stride;
  const int32_t* tap_offset;
  int taps;

  // The full weight, with its strides in floats, and the channels of it that run.
  const float* weight;
  int64_t weight_out, weight_in, weight_tap;
  const int64_t* in_index;   // null: the first `channels`
  const int64_t* out_index;  // null: from `out_first` on
  int64_t out_first;
  int64_t outputs;
  const float* bias;  // null, or one per output channel of the full weight

  // Results: rows of `width` floats, `out_stride` floats between channels.
  float* y;
  int64_t out_stride;
  int rows, width, pitch;
};

}  // namespace dynkern
