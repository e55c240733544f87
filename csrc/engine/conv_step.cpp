// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/isa.h"
#include "engine/steps.h"
#include "ops/ternary/blocking.h"

namespace dynkern::engine {
namespace {

constexpr int kMostPadding = 3;
// Fewer pixels than this for a thread: the threads share out the output channels instead of the rows.
constexpr int64_t kLeastPixels = 128;

// What the dense and the ternary convolution have in common: where inputs come from and results go.
class ConvStep : public Step {
 public:
  ConvStep(const ConvSpec& spec, Program& program)
      : spec_(spec),
        values_(program.values()),
        x_(values_[static_cast<size_t>(spec.x)]),
        y_(values_[static_cast<size_t>(spec.y)]),
        direct_(direct_padding(spec, x_, y_) >= 0),
        planes_(spec.window, x_.layout.height, x_.layout.width, false),
        taps_(spec.window.kernel[0] * spec.window.kernel[1]),
        group_inputs_(x_.channels / spec.groups),
        group_outputs_(y_.channels / spec.groups),
        band_rows_(y_.layout.height) {
    tap_offset_.resize(static_cast<size_t>(taps_));
    mask_ = program.mask(y_.layout);
    if (direct_) {
      channel_stride_ = x_.layout.channel();
      int32_t* offset = tap_offset_.data();
      for (int i = 0; i < spec.window.kernel[0]; ++i) {
        for (int j = 0; j < spec.window.kernel[1]; ++j) {
          const int row = i * spec.window.dilation[0] - spec.window.top;
          *offset++ = row * x_.layout.pitch() + j * spec.window.dilation[1] - spec.window.left;
        }
      }
      return;
    }
    while (band_rows_ > 1 && group_inputs_ * planes_.channel_stride(band_rows_) > kBandFloats) {
      band_rows_ = (band_rows_ + 1) / 2;
    }
    channel_stride_ = planes_.channel_stride(band_rows_);
    planes_.tap_offsets(band_rows_, tap_offset_.data());
  }

  void run(const Context& c) const override {
    const int64_t rows = y_.layout.height;
    Range groups{0, spec_.groups}, band{0, rows}, outputs{0, group_outputs_};
    if (spec_.groups > 1) {
      groups = share(spec_.groups, c);
    } else if (rows * y_.layout.width >= kLeastPixels * c.threads) {
      band = share(rows, c);
    } else {
      outputs = share(group_outputs_, c);
    }
    if (band.begin == band.end || outputs.begin == outputs.end) return;
    for (int64_t g = groups.begin; g < groups.end; ++g) {
      if (direct_) {
        const float* x =
            c.value[spec_.x] + g * group_inputs_ * channel_stride_ + band.begin * x_.layout.pitch();
        compute(x, g, outputs, output(c, g * group_outputs_ + outputs.begin, band, y_.layout.pitch()),
                c.scratch + plane_floats());
        continue;
      }
      for (int64_t row = band.begin; row < band.end; row += band_rows_) {
        const Range part{row, std::min<int64_t>(row + band_rows_, band.end)};
        const Image image{c.value[spec_.x],
                          x_.channels,
                          x_.layout.height,
                          x_.layout.width,
                          x_.layout.channel(),
                          x_.layout.pitch(),
                          1};
        for (int64_t i = 0; i < group_inputs_; ++i) {
          planes_.fill(image, g * group_inputs_ + i, static_cast<int>(row), band_rows_,
                       c.scratch + i * channel_stride_);
        }
        compute(c.scratch, g, outputs, output(c, g * group_outputs_ + outputs.begin, part, planes_.pitch()),
                c.scratch + plane_floats());
      }
    }
  }

  std::vector<int> reads() const override { return spec_.epilogue.reads(spec_.x); }
  int writes() const override { return spec_.y; }
  int64_t scratch_floats() const override { return plane_floats() + work_floats(); }
  int64_t constant_bytes() const override {
    return spec_.epilogue.bytes() + static_cast<int64_t>(tap_offset_.size() * sizeof(int32_t));
  }

 protected:
  // Outputs of group g, whose first input plane is x, with the working memory that was asked for.
  virtual void compute(const float* x, int64_t g, Range outputs, const PlaneOutput& out,
                       float* work) const = 0;
  virtual int64_t work_floats() const { return 0; }

  // Floats of one input channel that the kernel reads for a tile of `pixels`.
  int64_t touched(int64_t pixels) const {
    return direct_ ? pixels + (spec_.window.kernel[0] - 1) * spec_.window.dilation[0] * x_.layout.pitch()
                   : planes_.touched(pixels);
  }

  // The first output channel of group g in the full weight.
  int64_t first_output(int64_t g) const {
    return (spec_.in_index.empty() || spec_.groups == 1 ? g : spec_.in_index[static_cast<size_t>(g)]) *
           group_outputs_;
  }
  std::string how() const {
    const Window& w = spec_.window;
    return std::to_string(w.kernel[0]) + "x" + std::to_string(w.kernel[1]) + " stride " +
           std::to_string(w.stride[0]) + (spec_.groups > 1 ? " groups " + std::to_string(spec_.groups) : "") +
           (direct_ ? ", in place" : ", planes");
  }

  const ConvSpec spec_;
  const std::vector<Value>& values_;
  const Value x_, y_;
  const bool direct_;
  const Planes planes_;
  const int taps_;
  const int64_t group_inputs_, group_outputs_;
  int band_rows_;
  int64_t channel_stride_;
  std::vector<int32_t> tap_offset_;

 private:
  int64_t plane_floats() const { return direct_ ? 0 : (group_inputs_ * channel_stride_ + 64 + 15) / 16 * 16; }

  PlaneOutput output(const Context& c, int64_t channel, Range rows, int pitch) const {
    PlaneOutput out;
    const Layout& layout = y_.layout;
    const int64_t start = rows.begin * layout.pitch();
    out.stride = layout.channel();
    out.y = c.value[spec_.y] + channel * out.stride + start;
    out.rows = static_cast<int>(rows.end - rows.begin);
    out.width = layout.width;
    out.pitch = pitch;
    out.y_pitch = layout.pitch();
    out.mask = pitch == out.y_pitch ? mask_ : nullptr;
    out.epilogue = spec_.epilogue.at(c, values_, channel);
    if (out.epilogue.residual != nullptr) out.epilogue.residual += start;
    return out;
  }

  const int32_t* mask_ = nullptr;
};

class DenseConvStep : public ConvStep {
 public:
  DenseConvStep(const ConvSpec& spec, Program& program)
      : ConvStep(spec, program), weight_(*program.store().dense(spec.weight)) {}

  std::string describe() const override { return "conv2d " + how(); }

 private:
  void compute(const float* x, int64_t g, Range outputs, const PlaneOutput& out, float*) const override {
    SlicedConv2d a;
    a.x = x;
    a.channels = group_inputs_;
    a.channel_stride = channel_stride_;
    a.tap_offset = tap_offset_.data();
    a.taps = taps_;
    a.weight = weight_.data.data();
    a.weight_tap = 1;
    a.weight_in = taps_;
    a.weight_out = weight_.shape[1] * taps_;
    a.in_index = spec_.groups > 1 || spec_.in_index.empty() ? nullptr : spec_.in_index.data();
    a.out_index = spec_.out_index.empty() ? nullptr : spec_.out_index.data() + outputs.begin;
    a.out_first = first_output(g) + outputs.begin;
    a.outputs = outputs.end - outputs.begin;
    a.out = out;
    kernels().sliced_conv2d(a);
  }

  const DenseWeight& weight_;
};

class TernaryConvStep : public ConvStep {
 public:
  TernaryConvStep(const ConvSpec& spec, Program& program)
      : ConvStep(spec, program),
        blocking_(*program.store().ternary(spec.weight), group_inputs_, group_outputs_,
                  static_cast<int64_t>(y_.layout.height) * y_.layout.pitch(),
                  [&](int64_t pixels) { return touched(pixels); }),
        slice_(*program.store().ternary(spec.weight),
               spec.groups > 1 ? program.store().ternary(spec.weight)->outputs() : group_outputs_,
               spec.groups > 1 || spec.out_index.empty() ? nullptr : spec_.out_index.data(), group_inputs_,
               spec.groups > 1 || spec.in_index.empty() ? nullptr : spec_.in_index.data(), blocking_.inputs) {
    for (int64_t i = 0; i < group_inputs_; ++i) {
      for (int32_t tap : tap_offset_) offset_.push_back(static_cast<int32_t>(i * channel_stride_ + tap));
    }
  }

  std::string describe() const override { return "ternary conv2d " + how() + ", lists"; }
  int64_t constant_bytes() const override {
    return ConvStep::constant_bytes() + slice_.bytes() +
           static_cast<int64_t>(offset_.size() * sizeof(int32_t));
  }

 private:
  int64_t work_floats() const override { return blocking_.partial_floats; }

  void compute(const float* x, int64_t g, Range outputs, const PlaneOutput& out, float* work) const override {
    TernaryListsRun a;
    slice_.apply(a, first_output(g) + outputs.begin);
    a.x = x;
    a.offset = offset_.data();
    a.vectors = blocking_.vectors;
    a.partial = work;
    a.outputs = outputs.end - outputs.begin;
    a.out = out;
    kernels().ternary_lists(a);
  }

  const TernaryBlocking blocking_;
  const TernarySlice slice_;
  std::vector<int32_t> offset_;
};

}  // namespace

int direct_padding(const ConvSpec& spec, const Value& x, const Value& y) {
  const Window& w = spec.window;
  if (w.stride[0] != 1 || w.stride[1] != 1 || x.layout.height != y.layout.height ||
      x.layout.width != y.layout.width) {
    return -1;
  }
  const int padding = std::max({w.top, w.left, spec.bottom, spec.right});
  return padding <= kMostPadding ? padding : -1;
}

std::unique_ptr<Step> make_conv2d(const ConvSpec& spec, Program& program) {
  if (program.store().dense(spec.weight) != nullptr) return std::make_unique<DenseConvStep>(spec, program);
  return std::make_unique<TernaryConvStep>(spec, program);
}

}  // namespace dynkern::engine
