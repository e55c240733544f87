// SPDX-License-Identifier: Apache-2.0
// A convolution is a product with one row per pixel: its patch, put together from an image of bytes whose
// channels are neighbours.
#include "ops/ternary_int8/op.h"

#include <cstring>

namespace dynkern {
namespace {

// The quantised image, with the padding that the windows reach into.
class ByteImage {
 public:
  // in_index: null, or where each channel lies among all inputs of the weight.
  ByteImage(const ConvCall& call, const TernaryLayouts& layouts, const int64_t* in_index)
      : call_(call), group_inputs_(call.image.channels / call.groups) {
    const Window& w = call.window;
    rows_ = (w.out[0] - 1) * w.stride[0] + (w.kernel[0] - 1) * w.dilation[0] + 1;
    columns_ = (w.out[1] - 1) * w.stride[1] + (w.kernel[1] - 1) * w.dilation[1] + 1;
    group_channels_ = ((in_index != nullptr ? layouts.inputs() : group_inputs_) + 3) / 4 * 4;
    pixel_ = group_channels_ * call.groups;
    offset_.assign(static_cast<size_t>(pixel_), -1);
    for (int64_t c = 0; c < call.image.channels; ++c) {
      const int64_t in_group = in_index != nullptr ? in_index[c] : c % group_inputs_;
      offset_[static_cast<size_t>(c / group_inputs_ * group_channels_ + in_group)] =
          c * call.image.channel_stride;
    }
  }

  size_t bytes() const { return static_cast<size_t>(rows_ * columns_ * pixel_ + 63) / 64 * 64; }
  int64_t rows() const { return rows_; }
  int64_t group_channels() const { return group_channels_; }

  // Where the channels of each tap of a window begin, from its first one on.
  std::vector<int64_t> segments() const {
    std::vector<int64_t> segments;
    const Window& w = call_.window;
    for (int y = 0; y < w.kernel[0]; ++y)
      for (int x = 0; x < w.kernel[1]; ++x)
        segments.push_back((y * w.dilation[0] * columns_ + x * w.dilation[1]) * pixel_);
    return segments;
  }

  int64_t window_at(int64_t pixel) const {
    const Window& w = call_.window;
    return (pixel / w.out[1] * w.stride[0] * columns_ + pixel % w.out[1] * w.stride[1]) * pixel_;
  }

  void fill_row(const float* image, float inverse, int64_t row, int8_t* bytes) const {
    int8_t* line = bytes + row * columns_ * pixel_;
    const int64_t y = row - call_.window.top;
    const int64_t begin = std::min<int64_t>(call_.window.left, columns_);
    const int64_t end = std::min<int64_t>(columns_, begin + call_.image.width);
    const bool inside = y >= 0 && y < call_.image.height;
    std::memset(line, 0, static_cast<size_t>((inside ? begin : columns_) * pixel_));
    if (!inside) return;
    std::memset(line + end * pixel_, 0, static_cast<size_t>((columns_ - end) * pixel_));
    kernels().quantize_image_row({image + y * call_.image.row_stride, offset_.data(), pixel_, end - begin,
                                  inverse, line + begin * pixel_, pixel_});
  }

 private:
  const ConvCall& call_;
  int64_t group_inputs_, group_channels_, pixel_, rows_, columns_;
  std::vector<int64_t> offset_;
};

float greatest_of(const ConvCall& call, int64_t first, int64_t count) {
  const Image& image = call.image;
  const bool whole = image.row_stride == image.width && image.channel_stride == image.width * image.height;
  int32_t most = 0;
  auto take = [&](const float* x, int64_t n) {
    int32_t bits;
    float greatest;
    kernels().greatest_magnitude({x, n, &greatest});
    std::memcpy(&bits, &greatest, sizeof bits);
    most = std::max(most, bits);
  };
  for (int64_t b = first; b < first + count; ++b) {
    const float* data = image.data + b * call.batch_stride;
    if (whole) {
      take(data, image.channels * image.channel_stride);
      continue;
    }
    for (int64_t c = 0; c < image.channels; ++c)
      for (int64_t y = 0; y < image.height; ++y)
        take(data + c * image.channel_stride + y * image.row_stride, image.width);
  }
  float greatest;
  std::memcpy(&greatest, &most, sizeof greatest);
  return greatest;
}

}  // namespace

void run_ternary_conv2d_int8(const ConvCall& call, const Int8Operand& weight) {
  const TernaryLayouts& layouts = weight.layouts;
  const int64_t outputs = call.outputs / call.groups, inputs = call.image.channels / call.groups;
  const int64_t groups = call.groups > 1 ? layouts.outputs() / outputs : 1;
  const int64_t pixels = static_cast<int64_t>(call.window.out[0]) * call.window.out[1];
  const TernaryPlan plan(weight, pixels, inputs, groups);
  const ByteImage image(call, layouts, plan.spread ? weight.in_index : nullptr);
  const TernaryTiles tiles(weight, plan, inputs, outputs, groups, image.segments());

  const double work = static_cast<double>(pixels * call.outputs * inputs * layouts.taps()) / 8;
  const int threads = work * static_cast<double>(call.batch) < kLeastWork ? 1 : call.threads;
  // Threads take whole images where there are enough, else the pixels of one after the other.
  const int across = call.batch >= threads ? threads : 1, within = call.batch >= threads ? 1 : threads;
  const size_t scales = TernaryTiles::kMostRows * sizeof(float);
  const size_t tile_bytes = (tiles.bytes() + scales + 63) / 64 * 64;
  const size_t bytes = image.bytes() + static_cast<size_t>(within) * tile_bytes;
  auto* scratch =
      reinterpret_cast<unsigned char*>(Scratch::floats(static_cast<size_t>(across) * bytes / sizeof(float)));
  const float greatest_of_all = weight.per_row ? 0 : greatest_of(call, 0, call.batch);
  parallel_for(call.batch, across, [&](int64_t b, int outer) {
    unsigned char* memory = scratch + static_cast<size_t>(outer) * bytes;
    auto* quantised = reinterpret_cast<int8_t*>(memory);
    const RowScale scale(weight.per_row ? greatest_of(call, b, 1) : greatest_of_all, weight.activation_scale);
    const float* x = call.image.data + b * call.batch_stride;
    float* y = call.y + b * call.outputs * pixels;
    parallel_for(image.rows(), within,
                 [&](int64_t row, int) { image.fill_row(x, scale.inverse, row, quantised); });
    const int64_t at_once = tiles.rows();
    parallel_for((pixels + at_once - 1) / at_once, within, [&](int64_t piece, int thread) {
      unsigned char* tile = memory + image.bytes() + static_cast<size_t>(thread) * tile_bytes;
      auto* row_scale = reinterpret_cast<float*>(tile + tile_bytes - scales);
      const int64_t pixel = piece * at_once;
      const int rows = static_cast<int>(std::min(at_once, pixels - pixel));
      std::fill_n(row_scale, rows, scale.scale);
      for (int64_t g = 0; g < call.groups; ++g) {
        const int64_t of_weight = call.groups > 1 && weight.in_index != nullptr ? weight.in_index[g] : g;
        for (int r = 0; r < rows; ++r)
          tiles.put(tile, rows, r, quantised + image.window_at(pixel + r) + g * image.group_channels());
        tiles.run(tile, rows, g, of_weight, 0, outputs, {y + pixel, 1, pixels, row_scale});
      }
    });
  });
}

}  // namespace dynkern
