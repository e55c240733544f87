// SPDX-License-Identifier: Apache-2.0
#include "engine/conv_step.h"

#include <algorithm>

#include "core/isa.h"
#include "engine/steps.h"

namespace dynkern::engine {
namespace {

constexpr int kMostPadding = 3;
// Fewer pixels than this for a thread: the threads share out the output channels instead of the rows.
constexpr int64_t kLeastPixels = 128;

}  // namespace

ConvStep::ConvStep(const ConvSpec& spec, Program& program)
    : ConvStep(spec, program,
               direct_padding(spec, program.values()[static_cast<size_t>(spec.x)],
                              program.values()[static_cast<size_t>(spec.y)], program.store()) >= 0) {}

ConvStep::ConvStep(const ConvSpec& spec, Program& program, bool in_place)
    : spec_(spec),
      values_(program.values()),
      x_(values_[static_cast<size_t>(spec.x)]),
      y_(values_[static_cast<size_t>(spec.y)]),
      direct_(in_place),
      planes_(spec.window, x_.layout.height, x_.layout.width, false),
      taps_(spec.window.kernel[0] * spec.window.kernel[1]),
      group_inputs_(x_.planes() / spec.groups),
      group_outputs_(y_.channels / spec.groups),
      band_rows_(y_.layout.height),
      mask_(program.mask(y_.layout)) {
  tap_offset_.resize(static_cast<size_t>(taps_));
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

void ConvStep::run(const Context& c) const {
  const int64_t rows = y_.layout.height;
  Range groups{0, spec_.groups}, band{0, rows}, outputs{0, group_outputs_};
  if (spec_.groups > 1) {
    groups = share(spec_.groups, c);
  } else if (rows * y_.layout.width >= kLeastPixels * c.threads) {
    const Range tiles = share((rows + row_tile() - 1) / row_tile(), c);
    band = {tiles.begin * row_tile(), std::min(tiles.end * row_tile(), rows)};
  } else {
    outputs = share_outputs(c);
  }
  run_part(c, groups, band, outputs);
}

void ConvStep::run_part(const Context& c, Range groups, Range band, Range outputs) const {
  if (band.begin == band.end || outputs.begin == outputs.end) return;
  for (int64_t g = groups.begin; g < groups.end; ++g) {
    if (direct_) {
      const float* x = c.value[spec_.x] + g * group_inputs_ * channel_stride_ +
                       band.begin * spec_.window.stride[0] * x_.layout.pitch();
      compute(x, g, outputs, output(c, g * group_outputs_ + outputs.begin, band, y_.layout.pitch()),
              c.scratch + plane_floats());
      continue;
    }
    for (int64_t row = band.begin; row < band.end; row += band_rows_) {
      const Range part{row, std::min<int64_t>(row + band_rows_, band.end)};
      fill_planes(c, g * group_inputs_, part);
      compute(c.scratch, g, outputs, output(c, g * group_outputs_ + outputs.begin, part, planes_.pitch()),
              c.scratch + plane_floats());
    }
  }
}

void ConvStep::fill_planes(const Context& c, int64_t first_channel, Range rows) const {
  const Layout& layout = x_.layout;
  const Window& w = spec_.window;
  const int count = static_cast<int>(rows.end - rows.begin);
  if (x_.element == Element::kFloat && split_padding(spec_, x_) >= 0 &&
      layout.pad >= split_padding(spec_, x_)) {
    const int top = static_cast<int>(rows.begin) * 2 - w.top;
    const float* x = c.value[spec_.x] + first_channel * layout.channel() + top * layout.pitch() - w.left;
    kernels().split_planes({x,
                            layout.channel(),
                            layout.pitch(),
                            layout.height + layout.pad - top,
                            group_inputs_,
                            c.scratch,
                            channel_stride_,
                            planes_.copy_floats(band_rows_),
                            {planes_.copies(0), planes_.copies(1)},
                            planes_.copy_rows(count),
                            planes_.pitch()});
    return;
  }
  const Image image{
      c.value[spec_.x], x_.planes(), layout.height, layout.width, layout.channel(), layout.pitch(), 1};
  for (int64_t i = 0; i < group_inputs_; ++i) {
    planes_.fill(image, first_channel + i, static_cast<int>(rows.begin), band_rows_,
                 c.scratch + i * channel_stride_, layout.fill);
  }
}

Range ConvStep::share_outputs(const Context& c) const {
  const int64_t unit = output_tile();
  const Range units = share((group_outputs_ + unit - 1) / unit, c);
  return {std::min(units.begin * unit, group_outputs_), std::min(units.end * unit, group_outputs_)};
}

int64_t ConvStep::touched(int64_t pixels) const {
  return direct_ ? pixels + (spec_.window.kernel[0] - 1) * spec_.window.dilation[0] * x_.layout.pitch()
                 : planes_.touched(pixels);
}

int64_t ConvStep::first_output(int64_t g) const {
  return (spec_.in_index.empty() || spec_.groups == 1 ? g : spec_.in_index[static_cast<size_t>(g)]) *
         group_outputs_;
}

std::string ConvStep::how() const {
  const Window& w = spec_.window;
  return std::to_string(w.kernel[0]) + "x" + std::to_string(w.kernel[1]) + " stride " +
         std::to_string(w.stride[0]) + (spec_.groups > 1 ? " groups " + std::to_string(spec_.groups) : "") +
         (direct_ ? ", in place" : ", planes");
}

PlaneOutput ConvStep::output(const Context& c, int64_t channel, Range rows, int pitch) const {
  PlaneOutput out;
  const Layout& layout = y_.layout;
  const int64_t start = rows.begin * layout.pitch();
  out.stride = layout.channel();
  out.y = c.value[spec_.y] + channel / y_.per_word() * out.stride + start;
  out.rows = static_cast<int>(rows.end - rows.begin);
  out.width = layout.width;
  out.pitch = pitch;
  out.y_pitch = layout.pitch();
  out.mask = pitch == out.y_pitch ? mask_ : nullptr;
  out.epilogue = spec_.epilogue.at(c, values_, channel);
  if (out.epilogue.residual != nullptr) out.epilogue.residual += start;
  return out;
}

int direct_padding(const ConvSpec& spec, const Value& x, const Value& y, const Store& store) {
  const Window& w = spec.window;
  const bool same = w.stride[0] == 1 && w.stride[1] == 1 && x.layout.height == y.layout.height &&
                    x.layout.width == y.layout.width;
  if (!same && !is_depthwise(spec, x, store)) return -1;
  const int padding = std::max({w.top, w.left, spec.bottom, spec.right});
  // Features lie side by side, which linear layers rely on.
  if (x.features() && padding > 0) return -1;
  return padding <= kMostPadding ? padding : -1;
}

int split_padding(const ConvSpec& spec, const Value& x) {
  const Window& w = spec.window;
  if (w.stride[0] != 2 || w.stride[1] != 2 || w.dilation[0] != 1 || w.dilation[1] != 1 || x.features())
    return -1;
  const int padding = std::max({w.top, w.left, spec.bottom, spec.right});
  return padding <= kMostPadding ? padding : -1;
}

std::unique_ptr<Step> make_conv2d(const ConvSpec& spec, Program& program) {
  if (program.store().quantized(spec.weight) != nullptr) return make_quantized_conv2d(spec, program);
  if (program.store().codes(spec.weight) != nullptr) return make_ternary_bytes(spec, program);
  const Value& x = program.values()[static_cast<size_t>(spec.x)];
  const Value& y = program.values()[static_cast<size_t>(spec.y)];
  if (is_depthwise(spec, x, program.store()) && direct_padding(spec, x, y, program.store()) >= 0) {
    return make_depthwise_conv2d(spec, program);
  }
  if (program.store().dense(spec.weight) == nullptr) return make_ternary_conv2d(spec, program);
  std::unique_ptr<Step> channels = make_channel_conv2d(spec, program);
  if (channels != nullptr) return channels;
  std::unique_ptr<Step> winograd = make_winograd_conv2d(spec, program);
  return winograd != nullptr ? std::move(winograd) : make_dense_conv2d(spec, program);
}

}  // namespace dynkern::engine
