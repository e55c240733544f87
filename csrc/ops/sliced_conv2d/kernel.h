// SPDX-License-Identifier: Apache-2.0
// Sliced convolution over planes.
//
//   sum[i][p] = sum over c, t of  weight[out(i)][in(c)][t] * x[c][tap_offset[t] + p]
//   y[i] = epilogue(sum[i])
//
// Lanes are pixels: p runs over the pixels of the planes (see ops/planes.h). A channel is never a lane, so
// any number of channels costs its share, and the weight is read where it lies, by broadcasts.
#pragma once

#include <cstdint>

#include "ops/plane_output.h"

namespace dynkern {

struct SlicedConv2d {
  // Planes: `channels` of them, `channel_stride` floats apart.
  const float* x;
  int64_t channels;
  int64_t channel_stride;
  const int32_t* tap_offset;
  int taps;

  // The full weight, with its strides in floats, and the channels of it that run. `weight_block` outputs lie
  // side by side, `weight_out` is from those to the next.
  const float* weight;
  int64_t weight_block = 1;
  int64_t weight_out, weight_in, weight_tap;
  const int64_t* in_index;   // null: the first `channels`
  const int64_t* out_index;  // null: from `out_first` on
  int64_t out_first;
  int64_t outputs;

  PlaneOutput out;
};

}  // namespace dynkern
