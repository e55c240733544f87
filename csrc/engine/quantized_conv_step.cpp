// SPDX-License-Identifier: Apache-2.0
#include <stdexcept>

#include "core/isa.h"
#include "engine/conv_step.h"
#include "engine/quantized.h"

namespace dynkern::engine {
namespace {

// The spec with vectors that go on to a multiple of four outputs; the zero point comes out past the last one.
ConvSpec padded(ConvSpec spec, const Value& y) {
  StepEpilogue& e = spec.epilogue;
  const size_t outputs = static_cast<size_t>(y.channels);
  const size_t whole = (outputs + kQuantizedOutputs - 1) / kQuantizedOutputs * kQuantizedOutputs;
  auto pad = [&](std::vector<float>& v, float neutral, float past) {
    if (v.empty()) v.assign(outputs, neutral);
    v.resize(whole, past);
  };
  pad(e.scale, 1, 0);
  pad(e.shift, 0, static_cast<float>(y.zero()));
  if (e.residual >= 0) pad(e.residual_scale, 1, 0);
  return spec;
}

class QuantizedConvStep : public ConvStep {
 public:
  QuantizedConvStep(const ConvSpec& spec, Program& program)
      : ConvStep(padded(spec, program.values()[static_cast<size_t>(spec.y)]), program),
        weight_(*program.store().quantized(spec.weight)) {
    const bool residual = spec.epilogue.residual >= 0;
    if (x_.element != weight_.element() || spec.groups != 1 || !spec.in_index.empty() ||
        !spec.out_index.empty() ||
        (residual && values_[static_cast<size_t>(spec.epilogue.residual)].element != x_.element)) {
      throw std::invalid_argument(
          "conv2d: x, weight and residual must be quantised alike, the first channels");
    }
    check_bounds(spec.epilogue, y_);
    start_ = weight_.sums(y_.channels, x_.planes());
    for (int32_t& sum : start_) sum *= -x_.zero();
  }

  std::string describe() const override {
    return std::string(x_.element == Element::kUint8 ? "int8" : "int16") + " conv2d " + how() +
           (y_.element == Element::kFloat ? ", to float" : "");
  }
  bool takes_words() const override { return true; }
  // Four outputs are not torn apart.
  bool makes_channels() const override { return false; }
  int64_t constant_bytes() const override {
    return ConvStep::constant_bytes() + static_cast<int64_t>(start_.size() * sizeof(int32_t));
  }

 private:
  void compute(const float* x, int64_t, Range outputs, const PlaneOutput& out, float*) const override {
    QuantizedConv2d a;
    a.element = x_.element;
    a.x = x;
    a.planes = group_inputs_;
    a.channel_stride = channel_stride_;
    a.tap_offset = tap_offset_.data();
    a.taps = taps_;
    a.weight = weight_.words() + outputs.begin / kQuantizedOutputs * weight_.block();
    a.weight_block = weight_.block();
    a.start = start_.data() + outputs.begin;
    a.flush = weight_.flush();
    a.outputs = outputs.end - outputs.begin;
    a.out_element = y_.element;
    a.out_fill = y_.layout.fill;
    a.out = out;
    kernels().quantized_conv2d(a);
  }

  const QuantizedWeight& weight_;
  std::vector<int32_t> start_;
};

}  // namespace

void check_bounds(const StepEpilogue& e, const Value& y) {
  if (y.element == Element::kFloat) return;
  const float least = y.element == Element::kUint8 ? 0.f : -32767.f;
  const float most = y.element == Element::kUint8 ? 255.f : 32767.f;
  const float zero = static_cast<float>(y.zero());
  // So written that a NaN is refused.
  if (!(e.activation == Activation::kClamp && least <= e.low && e.low <= zero && zero <= e.high &&
        e.high <= most)) {
    throw std::invalid_argument(
        "epilogue: a quantised result is clamped, around its zero point, to what it holds");
  }
}

std::unique_ptr<Step> make_quantized_conv2d(const ConvSpec& spec, Program& program) {
  return std::make_unique<QuantizedConvStep>(spec, program);
}

}  // namespace dynkern::engine
