// SPDX-License-Identifier: Apache-2.0
#include "ops/sliced_conv2d/op.h"

#include "ops/active_vector.h"
#include "ops/depthwise_conv2d/op.h"

namespace dynkern {

void run_sliced_conv2d(const ConvCall& call, const ConvWeight& weight) {
  if (is_depthwise(call)) return run_depthwise_conv2d(call, weight);
  const auto kernel = kernels().sliced_conv2d;
  const int64_t group_inputs = call.image.channels / call.groups, group_outputs = call.outputs / call.groups;
  const bool grouped = call.groups > 1;
  const ActiveVector bias(weight.bias, grouped ? weight.in_index : weight.out_index, call.outputs,
                          grouped ? group_outputs : 1);
  ConvCuts(call).run(call, 0, [&](const ConvPiece& piece) {
    SlicedConv2d a;
    a.channels = group_inputs;
    a.channel_stride = piece.channel_stride;
    a.tap_offset = piece.tap_offset;
    a.taps = call.window.kernel[0] * call.window.kernel[1];
    a.weight = weight.data;
    a.weight_out = weight.out_stride;
    a.weight_in = weight.in_stride;
    a.weight_tap = weight.tap_stride;
    a.out = piece.out;
    if (!grouped) {
      a.x = piece.x;
      a.in_index = weight.in_index;
      a.out_first = piece.first_output;
      a.out_index = weight.out_index == nullptr ? nullptr : weight.out_index + piece.first_output;
      a.outputs = piece.end_output - piece.first_output;
      a.out.y += piece.first_output * piece.out.stride;
      a.out.epilogue.shift = bias.from(piece.first_output);
      return kernel(a);
    }
    a.in_index = a.out_index = nullptr;
    a.outputs = group_outputs;
    for (int64_t g = 0; g < call.groups; ++g) {
      a.x = piece.x + g * group_inputs * piece.channel_stride;
      a.out_first = (weight.in_index == nullptr ? g : weight.in_index[g]) * group_outputs;
      a.out.y = piece.out.y + g * group_outputs * piece.out.stride;
      a.out.epilogue.shift = bias.from(g * group_outputs);
      kernel(a);
    }
  });
}

}  // namespace dynkern
