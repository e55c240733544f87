// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <string>

#include "core/isa.h"
#include "engine/steps.h"

namespace dynkern::engine {
namespace {

// Reads the padded planes in place, also with a stride.
class DepthwiseConvStep : public Step {
 public:
  DepthwiseConvStep(const ConvSpec& spec, Program& program)
      : spec_(spec),
        values_(program.values()),
        x_(values_[static_cast<size_t>(spec.x)].layout),
        y_(values_[static_cast<size_t>(spec.y)].layout),
        weight_(program.store().plain(spec.weight)) {}

  void run(const Context& c) const override {
    const Range all{0, spec_.groups};
    // Too few channels for the threads are shared out by rows.
    if (spec_.groups < 2 * c.threads) return run_part(c, all, share(y_.height, c));
    run_part(c, share(spec_.groups, c), {0, y_.height});
  }

  bool keeps_channels() const override {
    return values_[static_cast<size_t>(spec_.y)].channels == spec_.groups;
  }
  void run_channels(const Context& c, Range channels) const override {
    run_part(c, channels, {0, y_.height});
  }

  std::string describe() const override {
    const Window& w = spec_.window;
    return "depthwise_conv2d " + std::to_string(w.kernel[0]) + "x" + std::to_string(w.kernel[1]) +
           " stride " + std::to_string(w.stride[0]) + ", in place";
  }
  std::vector<int> reads() const override { return spec_.epilogue.reads(spec_.x); }
  int writes() const override { return spec_.y; }
  int64_t constant_bytes() const override { return spec_.epilogue.bytes(); }

 private:
  void run_part(const Context& c, Range channels, Range rows) const {
    if (channels.begin == channels.end || rows.begin == rows.end) return;
    const Window& w = spec_.window;
    DepthwiseConv2d a;
    a.x = c.value[spec_.x] + channels.begin * x_.channel() + (rows.begin * w.stride[0] - w.top) * x_.pitch() -
          w.left;
    a.x_stride = x_.channel();
    a.x_pitch = x_.pitch();
    for (int axis = 0; axis < 2; ++axis) {
      a.kernel[axis] = w.kernel[axis];
      a.stride[axis] = w.stride[axis];
      a.dilation[axis] = w.dilation[axis];
    }
    a.weight = weight_;
    a.weight_out = w.kernel[0] * w.kernel[1];
    a.weight_tap = 1;
    a.multiplier = values_[static_cast<size_t>(spec_.y)].channels / spec_.groups;
    a.index = spec_.in_index.empty() ? nullptr : spec_.in_index.data() + channels.begin;
    a.first = channels.begin;
    a.channels = channels.end - channels.begin;
    const int64_t first = channels.begin * a.multiplier, start = rows.begin * y_.pitch();
    a.out.stride = y_.channel();
    a.out.y = c.value[spec_.y] + first * a.out.stride + start;
    a.out.rows = static_cast<int>(rows.end - rows.begin);
    a.out.width = y_.width;
    a.out.pitch = a.out.y_pitch = y_.pitch();
    a.out.mask = nullptr;
    a.out.epilogue = spec_.epilogue.at(c, values_, first);
    if (a.out.epilogue.residual != nullptr) a.out.epilogue.residual += start;
    kernels().depthwise_conv2d(a);
  }

  const ConvSpec spec_;
  const std::vector<Value>& values_;
  const Layout x_, y_;
  const float* const weight_;
};

}  // namespace

bool is_depthwise(const ConvSpec& spec, const Value& x, const Store& store) {
  return spec.groups > 1 && spec.groups == x.channels && takes_stride(spec.window.stride[1]) &&
         store.dense(spec.weight) != nullptr;
}

std::unique_ptr<Step> make_depthwise_conv2d(const ConvSpec& spec, Program& program) {
  return std::make_unique<DepthwiseConvStep>(spec, program);
}

}  // namespace dynkern::engine
