// SPDX-License-Identifier: Apache-2.0
#include "ops/depthwise_conv2d/op.h"

#include "ops/active_vector.h"

namespace dynkern {
namespace {

// The input with its padding, one copy whatever the kernel and the stride.
Planes padded(const ConvCall& call) {
  Window w = call.window;
  for (int axis = 0; axis < 2; ++axis) {
    w.out[axis] = (w.out[axis] - 1) * w.stride[axis] + 1;
    w.stride[axis] = 1;
  }
  return Planes(w, static_cast<int>(call.image.height), static_cast<int>(call.image.width), false);
}

}  // namespace

bool is_depthwise(const ConvCall& call) {
  return call.groups > 1 && call.groups == call.image.channels && takes_stride(call.window.stride[1]);
}

void run_depthwise_conv2d(const ConvCall& call, const ConvWeight& weight) {
  const auto kernel = kernels().depthwise_conv2d;
  const Window& w = call.window;
  const int64_t multiplier = call.outputs / call.groups, rows = w.out[0];
  const int64_t plane = rows * w.out[1];
  const ActiveVector bias(weight.bias, weight.in_index, call.outputs, multiplier);
  const Planes planes = padded(call);
  auto input_rows = [&](int64_t outputs) { return static_cast<int>((outputs - 1) * w.stride[0] + 1); };
  int64_t band = rows;
  while (band > 1 && planes.channel_stride(input_rows(band)) > kBandFloats) band = (band + 1) / 2;
  const int64_t bands = (rows + band - 1) / band;
  const int threads = call.work * static_cast<double>(call.batch * plane) < kLeastWork ? 1 : call.threads;
  // A kernel reads up to two vectors past the end.
  const int64_t floats = (planes.channel_stride(input_rows(band)) + 64 + 15) / 16 * 16;
  float* scratch = Scratch::floats(static_cast<size_t>(threads * floats));
  parallel_for(call.batch * call.groups * bands, threads, [&](int64_t i, int thread) {
    const int64_t first = i % bands * band, g = i / bands % call.groups, index = i / bands / call.groups;
    DepthwiseConv2d a;
    a.out.rows = static_cast<int>(std::min(band, rows - first));
    Image image = call.image;
    image.data += index * call.batch_stride;
    float* x = scratch + thread * floats;
    planes.fill(image, g, static_cast<int>(first) * w.stride[0], input_rows(a.out.rows), x);
    a.x = x;
    a.x_stride = 0;
    a.x_pitch = planes.pitch();
    for (int axis = 0; axis < 2; ++axis) {
      a.kernel[axis] = w.kernel[axis];
      a.stride[axis] = w.stride[axis];
      a.dilation[axis] = w.dilation[axis];
    }
    a.weight = weight.data;
    a.weight_out = weight.out_stride;
    a.weight_tap = weight.tap_stride;
    a.multiplier = multiplier;
    a.index = weight.in_index == nullptr ? nullptr : weight.in_index + g;
    a.first = g;
    a.channels = 1;
    const int64_t channel = index * call.outputs + g * multiplier;
    a.out.y = call.y + channel * plane + first * w.out[1];
    a.out.stride = plane;
    a.out.width = a.out.pitch = a.out.y_pitch = w.out[1];
    a.out.mask = nullptr;
    a.out.epilogue.shift = bias.from(g * multiplier);
    kernel(a);
  });
}

}  // namespace dynkern
