// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/isa.h"
#include "engine/conv_step.h"
#include "engine/steps.h"
#include "ops/channel_winograd/kernel.h"

namespace dynkern::engine {
namespace {

// The kernels need so many registers as come with vectors of 16 floats.
constexpr int kLanes = 16;

class ChannelConvStep : public ConvStep {
 public:
  ChannelConvStep(const ConvSpec& spec, const float* packed, Program& program)
      : ConvStep(spec, program, true),
        packed_(packed),
        weight_block_(program.store().dense(spec.weight)->shape[1] * taps_ * kPackedOutputs) {}

  std::string describe() const override { return "conv2d " + how() + ", lanes of channels"; }

 protected:
  int output_tile() const override { return 2 * kPackedOutputs; }

  ChannelConv2d arguments(const float* x, Range outputs, const PlaneOutput& out) const {
    ChannelConv2d a;
    a.x = x;
    a.channels = group_inputs_;
    a.channel_stride = channel_stride_;
    a.tap_offset = tap_offset_.data();
    a.taps = taps_;
    a.stride = spec_.window.stride[1];
    a.x_row = spec_.window.stride[0] * x_.layout.pitch();
    a.weight = packed_;
    a.weight_block = weight_block_;
    a.in_index = spec_.in_index.empty() ? nullptr : spec_.in_index.data();
    a.out_first = outputs.begin;
    a.outputs = outputs.end - outputs.begin;
    a.out = out;
    return a;
  }

 private:
  void compute(const float* x, int64_t, Range outputs, const PlaneOutput& out, float*) const override {
    kernels().channel_conv2d(arguments(x, outputs, out));
  }

  const float* const packed_;
  const int64_t weight_block_;
};

class ChannelWinogradStep : public ChannelConvStep {
 public:
  ChannelWinogradStep(const ConvSpec& spec, const float* packed, Program& program)
      : ChannelConvStep(spec, packed, program), cuts_(group_inputs_, y_.layout.height, y_.layout.width) {}

  std::string describe() const override { return ChannelConvStep::describe() + ", winograd"; }

 private:
  int row_tile() const override { return ChannelWinogradCuts::kTileRows; }
  int64_t work_floats() const override { return cuts_.floats; }

  void compute(const float* x, int64_t, Range outputs, const PlaneOutput& out, float* work) const override {
    kernels().channel_winograd({arguments(x, outputs, out), &cuts_, work});
  }

  const ChannelWinogradCuts cuts_;
};

// Whether lanes of channels take fewer multiply-adds than lanes of pixels, by 3 % as results must be turned,
// or by less than nothing where lanes of pixels want planes of their own. A block of outputs without another
// beside it takes a quarter longer: a load for each multiply-add.
bool pays(const ConvSpec& spec, const Value& y) {
  const Layout& layout = y.layout;
  const int64_t blocks = (y.channels + kPackedOutputs - 1) / kPackedOutputs;
  const int64_t quarters = 4 * blocks + blocks % 2;
  const int64_t by_channels = quarters * kLanes / 4 * layout.height * channel_pixels(layout.width);
  const int64_t pixels = static_cast<int64_t>(layout.height - 1) * layout.pitch() + layout.width;
  const int64_t by_pixels = y.channels * ((pixels + kLanes - 1) / kLanes * kLanes);
  return 100 * by_channels < (spec.window.stride[0] > 1 ? 120 : 97) * by_pixels;
}

}  // namespace

std::unique_ptr<Step> make_channel_conv2d(const ConvSpec& spec, Program& program) {
  const Window& w = spec.window;
  const Value &x = program.values()[static_cast<size_t>(spec.x)],
              &y = program.values()[static_cast<size_t>(spec.y)];
  const int direct = direct_padding(spec, x, y, program.store());
  if (kernels().lanes != kLanes || spec.groups > 1 || !spec.out_index.empty() ||
      !channels_take_width(y.layout.width) || std::max(direct, split_padding(spec, x)) < 0) {
    return nullptr;
  }
  const bool winograd = direct == 1 && w.kernel[0] == 3 && w.kernel[1] == 3 && w.dilation[0] == 1 &&
                        w.dilation[1] == 1 && w.top == 1 && w.left == 1;
  // By the width alone, so that all sub-nets read the weight in one form.
  if (winograd ? y.layout.width % kChannelPixels != 0 : !pays(spec, y)) return nullptr;
  const float* packed = program.store().packed(spec.weight);
  if (packed == nullptr) return nullptr;
  if (winograd) return std::make_unique<ChannelWinogradStep>(spec, packed, program);
  return std::make_unique<ChannelConvStep>(spec, packed, program);
}

}  // namespace dynkern::engine
