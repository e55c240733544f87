// SPDX-License-Identifier: Apache-2.0
// A ternary convolution of bytes whose channels are neighbours.
#include <stdexcept>

#include "core/isa.h"
#include "engine/byte_values.h"
#include "engine/conv_step.h"
#include "engine/quantized.h"

namespace dynkern::engine {
namespace {

class TernaryBytesStep : public Step {
 public:
  TernaryBytesStep(const ConvSpec& spec, Program& program)
      : spec_(padded(spec, program.values()[static_cast<size_t>(spec.y)])),
        x_(program.values()[static_cast<size_t>(spec.x)]),
        y_(program.values()[static_cast<size_t>(spec.y)]),
        layout_(layout_of(program)),
        copies_(copies_of(y_)) {
    const int residual = spec.epilogue.residual;
    if (residual >= 0) residual_ = program.values()[static_cast<size_t>(residual)];
    if ((y_.element != Element::kFloat && y_.across == 0) || (residual >= 0 && residual_.across == 0)) {
      throw std::invalid_argument("conv2d: expected a result and residual of bytes, or a result of floats");
    }
    check_bounds(spec.epilogue, y_);
    const size_t groups = static_cast<size_t>(this->groups());
    start_.assign(layout_.sums.begin(), layout_.sums.begin() + static_cast<int64_t>(groups * kByteGroup));
    for (int32_t& sum : start_) sum *= -x_.zero();
  }

  void run(const Context& c) const override {
    const Range rows = share(y_.layout.height, c);
    const Window& w = spec_.window;
    TernaryBytes a;
    a.index = layout_.index.data();
    a.window = layout_.window.data();
    a.begin = layout_.begin.data();
    a.together = layout_.together;
    a.groups = groups();
    a.x_step = w.stride[1] * x_.pixel_bytes();
    a.pixels = y_.layout.width;
    a.start = start_.data();
    const StepEpilogue& e = spec_.epilogue;
    a.epilogue = {e.scale.data(), e.shift.data(), e.residual_scale.data(), nullptr, 0, e.activation,
                  e.low,          e.high};
    a.outputs = y_.channels;
    a.residual = nullptr;
    a.residual_pixel = residual_.pixel_bytes();
    a.plane_stride = y_.layout.channel();
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      a.x = bytes_of(c, spec_.x, x_, row * w.stride[0]);
      if (e.residual >= 0) a.residual = bytes_of(c, e.residual, residual_, row) + residual_.own();
      if (y_.across > 0) {
        a.out = byte_row(c, spec_.y, y_, row, copies_);
      } else {
        a.out = {};
        a.planes = c.value[spec_.y] + row * y_.layout.pitch();
      }
      kernels().ternary_bytes(a);
    }
  }

  std::string describe() const override {
    const Window& w = spec_.window;
    return "int8 ternary conv2d " + std::to_string(w.kernel[0]) + "x" + std::to_string(w.kernel[1]) +
           " stride " + std::to_string(w.stride[0]) + ", look-ups in place" +
           (y_.element == Element::kFloat ? ", to float" : "");
  }
  std::vector<int> reads() const override { return spec_.epilogue.reads(spec_.x); }
  int writes() const override { return spec_.y; }
  bool takes_words() const override { return true; }
  bool takes_bytes() const override { return true; }
  int64_t constant_bytes() const override {
    return spec_.epilogue.bytes() +
           static_cast<int64_t>((start_.size() + copies_.size() * 2) * sizeof(int32_t));
  }

 private:
  // The spec with vectors that go on to whole groups of outputs.
  static ConvSpec padded(ConvSpec spec, const Value& y) {
    const size_t outputs = static_cast<size_t>(y.channels);
    auto pad = [&](std::vector<float>& v, float neutral) {
      if (v.empty()) v.assign(outputs, neutral);
      v.resize((outputs + kByteGroup - 1) / kByteGroup * kByteGroup, neutral);
    };
    pad(spec.epilogue.scale, 1);
    pad(spec.epilogue.shift, 0);
    if (spec.epilogue.residual >= 0) pad(spec.epilogue.residual_scale, 1);
    return spec;
  }

  int64_t groups() const { return (y_.channels + kByteGroup - 1) / kByteGroup; }

  const ByteLayout& layout_of(Program& program) const {
    if (x_.across == 0 || spec_.groups != 1 || !spec_.in_index.empty() || !spec_.out_index.empty()) {
      throw std::invalid_argument("conv2d: a ternary weight takes bytes, and its first channels");
    }
    const Window& w = spec_.window;
    // Where a pixel holds the columns of the window side by side, they are read from it alone.
    const bool held = x_.across >= w.kernel[1] && x_.left == w.left && w.dilation[1] == 1 &&
                      (w.out[1] - 1) * w.stride[1] < x_.layout.width;
    std::vector<int32_t> tap_offset;
    for (int i = 0; i < w.kernel[0]; ++i) {
      for (int j = 0; j < w.kernel[1]; ++j) {
        const int64_t row = i * w.dilation[0] - w.top, column = held ? 0 : j * w.dilation[1] - w.left;
        const int64_t in_pixel = held ? int64_t{j} * x_.channels : x_.own();
        tap_offset.push_back(
            static_cast<int32_t>((row * x_.layout.pitch() + column) * x_.pixel_bytes() + in_pixel));
      }
    }
    return program.store().codes(spec_.weight)->layout(x_.channels, tap_offset);
  }

  const ConvSpec spec_;
  const Value x_, y_;
  const ByteLayout& layout_;
  const std::vector<int64_t> copies_;
  Value residual_{};
  std::vector<int32_t> start_;
};

}  // namespace

std::unique_ptr<Step> make_ternary_bytes(const ConvSpec& spec, Program& program) {
  return std::make_unique<TernaryBytesStep>(spec, program);
}

}  // namespace dynkern::engine
