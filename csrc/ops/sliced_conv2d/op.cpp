// SPDX-License-Identifier: Apache-2.0
#include "ops/sliced_conv2d/op.h"

namespace dynkern {

void run_sliced_conv2d(const ConvCall& call, const ConvWeight& weight) {
  const auto kernel = kernels().sliced_conv2d;
  const int64_t plane = static_cast<int64_t>(call.window.out[0]) * call.window.out[1];
  const int64_t group_inputs = call.image.channels / call.groups, group_outputs = call.outputs / call.groups;
  ConvCuts(call).run(call, [&](const ConvPiece& piece) {
    SlicedConv2d a;
    a.channels = group_inputs;
    a.channel_stride = piece.channel_stride;
    a.tap_offset = piece.tap_offset;
    a.taps = call.window.kernel[0] * call.window.kernel[1];
    a.weight = weight.data;
    a.weight_out = weight.out_stride;
    a.weight_in = weight.in_stride;
    a.weight_tap = weight.tap_stride;
    a.bias = weight.bias;
    a.out_stride = plane;
    a.rows = piece.rows;
    a.width = call.window.out[1];
    a.pitch = piece.pitch;
    if (call.groups == 1) {
      a.x = piece.x;
      a.in_index = weight.in_index;
      a.out_first = piece.first_output;
      a.out_index = weight.out_index == nullptr ? nullptr : weight.out_index + piece.first_output;
      a.outputs = piece.end_output - piece.first_output;
      a.y = piece.y + piece.first_output * plane;
      return kernel(a);
    }
    a.in_index = a.out_index = nullptr;
    a.outputs = group_outputs;
    for (int64_t g = 0; g < call.groups; ++g) {
      a.x = piece.x + g * group_inputs * piece.channel_stride;
      a.out_first = (weight.in_index == nullptr ? g : weight.in_index[g]) * group_outputs;
      a.y = piece.y + g * group_outputs * plane;
      kernel(a);
    }
  });
}

}  // namespace dynkern
