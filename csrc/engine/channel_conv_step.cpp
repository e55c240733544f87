// SPDX-License-Identifier: Apache-2.0
#include "core/isa.h"
#include "engine/conv_step.h"
#include "engine/steps.h"
#include "ops/channel_conv2d/kernel.h"

namespace dynkern::engine {
namespace {

// The kernel needs so many registers, which come with vectors of 16 floats.
constexpr int kLanes = 16;

class ChannelConvStep : public ConvStep {
 public:
  ChannelConvStep(const ConvSpec& spec, const float* packed, Program& program)
      : ConvStep(spec, program, true),
        packed_(packed),
        weight_block_(program.store().dense(spec.weight)->shape[1] * taps_ * kPackedOutputs) {}

  std::string describe() const override { return "conv2d " + how() + ", lanes of channels"; }

 private:
  int output_tile() const override { return 2 * kPackedOutputs; }

  void compute(const float* x, int64_t, Range outputs, const PlaneOutput& out, float*) const override {
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
    kernels().channel_conv2d(a);
  }

  const float* const packed_;
  const int64_t weight_block_;
};

// Whether lanes of channels take fewer multiply-adds than lanes of pixels.
bool pays(const ConvSpec& spec, const Value& y) {
  const Layout& layout = y.layout;
  const Window& w = spec.window;
  const int64_t blocks = (y.channels + kPackedOutputs - 1) / kPackedOutputs;
  const int64_t by_channels = blocks * kLanes * layout.height * channel_pixels(layout.width);
  const int64_t pixels = static_cast<int64_t>(layout.height - 1) * layout.pitch() + layout.width;
  const int64_t by_pixels = y.channels * ((pixels + kLanes - 1) / kLanes * kLanes);
  const bool strided = w.stride[0] > 1;
  // Winograd's algorithm takes half the multiply-adds.
  if (!strided && w.kernel[0] == 3 && w.kernel[1] == 3 && layout.width > kChannelPixels) return false;
  return by_channels < by_pixels * (strided ? 1.2 : 1.0);
}

}  // namespace

std::unique_ptr<Step> make_channel_conv2d(const ConvSpec& spec, Program& program) {
  const Value &x = program.values()[static_cast<size_t>(spec.x)],
              &y = program.values()[static_cast<size_t>(spec.y)];
  const Store& store = program.store();
  const int padding = std::max(direct_padding(spec, x, y, store), split_padding(spec, x));
  if (kernels().lanes != kLanes || spec.groups > 1 || !spec.out_index.empty() || padding < 0 ||
      y.layout.width < kChannelPixels || !pays(spec, y)) {
    return nullptr;
  }
  const float* packed = program.store().packed(spec.weight);
  return packed == nullptr ? nullptr : std::make_unique<ChannelConvStep>(spec, packed, program);
}

}  // namespace dynkern::engine
