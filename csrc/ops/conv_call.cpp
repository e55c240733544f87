// SPDX-License-Identifier: Apache-2.0
#include "ops/conv_call.h"

#include <stdexcept>

namespace dynkern {
namespace {

// Fewer pixels than this leave register tiles empty.
constexpr int64_t kLeastPixels = 64;

bool is_direct(const ConvCall& call) {
  const Window& w = call.window;
  return w.kernel[0] == 1 && w.kernel[1] == 1 && w.stride[0] == 1 && w.stride[1] == 1 && w.top == 0 &&
         w.left == 0 && w.out[0] == call.image.height && w.out[1] == call.image.width &&
         call.image.column_stride == 1 && call.image.row_stride == call.image.width &&
         call.image.height * call.image.width >= kLeastPixels;
}

// Estimated cycles of a call with planes of that form. The constants are measured (docs/kernel-notes.md).
double cycles(const ConvCall& call, const Planes& planes) {
  const int rows = call.window.out[0], width = call.window.out[1], pitch = planes.pitch();
  const int lanes = kernels().lanes;
  const double vectors =
      static_cast<double>((static_cast<int64_t>(rows - 1) * pitch + width + lanes - 1) / lanes);
  // Vectors that begin with a cache line are loaded faster.
  const double load = pitch % lanes == 0 ? 1 : 1.08;
  const double lines =
      static_cast<double>(planes.channel_stride(rows)) / pitch * static_cast<double>(call.image.channels);
  const double fill = lines * (10 + pitch * (call.window.stride[1] == 1 ? 0.15 : 0.7));
  const double store = pitch == width ? 0 : static_cast<double>(call.outputs) * rows * (6 + width / 4.0);
  return vectors * load * call.work * call.cycles + fill + store;
}

Planes choose(const ConvCall& call) {
  const int height = static_cast<int>(call.image.height), width = static_cast<int>(call.image.width);
  Planes pitched(call.window, height, width, false), shifted(call.window, height, width, true);
  return cycles(call, pitched) <= cycles(call, shifted) ? pitched : shifted;
}

}  // namespace

ConvCuts::ConvCuts(const ConvCall& call) : direct_(is_direct(call)), planes_(choose(call)) {
  const int rows = call.window.out[0];
  const double pixels = static_cast<double>(call.batch) * rows * call.window.out[1];
  threads_ = call.work * pixels < kLeastWork ? 1 : call.threads;
  band_rows_ = rows;
  const int least_rows =
      std::max<int>(1, static_cast<int>((kLeastPixels + planes_.pitch() - 1) / planes_.pitch()));
  while (band_rows_ > least_rows && call.image.channels * planes_.channel_stride(band_rows_) > kBandFloats) {
    band_rows_ = std::max(least_rows, (band_rows_ + 1) / 2);
  }
  auto pieces = [&] { return call.batch * ((rows + band_rows_ - 1) / band_rows_); };
  while (pieces() < threads_ && band_rows_ / 2 >= least_rows) band_rows_ = (band_rows_ + 1) / 2;
  bands_ = (rows + band_rows_ - 1) / band_rows_;
  // Bands of one height, but for rounding, so that no thread ends up with a sliver.
  band_rows_ = static_cast<int>((rows + bands_ - 1) / bands_);
  bands_ = (rows + band_rows_ - 1) / band_rows_;
  chunks_ = 1;
  if (pieces() < threads_ && call.groups == 1)
    chunks_ = std::min<int64_t>((threads_ + pieces() - 1) / pieces(), (call.outputs + 7) / 8);
  tap_offset_.resize(static_cast<size_t>(call.window.kernel[0]) * call.window.kernel[1]);
  if (direct_) {
    channel_stride_ = call.image.channel_stride;
    scratch_floats_ = 0;
    tap_offset_[0] = 0;
    return;
  }
  channel_stride_ = planes_.channel_stride(band_rows_);
  planes_.tap_offsets(band_rows_, tap_offset_.data());
  // A kernel reads whole vectors: up to one past the end.
  scratch_floats_ = (call.image.channels * channel_stride_ + 64 + 15) / 16 * 16;
}

std::vector<int32_t> ConvCuts::input_offsets(const ConvCall& call) const {
  std::vector<int32_t> offset;
  const int64_t channels = call.image.channels / call.groups;
  if (channels * channel_stride_ > INT32_MAX) {
    throw std::invalid_argument("x: an image of more than 2^31 elements is not taken by the ternary kernel");
  }
  offset.reserve(static_cast<size_t>(channels) * tap_offset_.size());
  for (int64_t c = 0; c < channels; ++c) {
    for (int32_t tap : tap_offset_) offset.push_back(static_cast<int32_t>(c * channel_stride_ + tap));
  }
  return offset;
}

ConvPiece ConvCuts::prepare(const ConvCall& call, int64_t i, float* scratch) const {
  const int64_t chunk = i % chunks_, band = i / chunks_ % bands_;
  const int64_t index = i / chunks_ / bands_;
  const int first_row = static_cast<int>(band) * band_rows_;
  const int64_t width = call.window.out[1], plane = call.window.out[0] * width;
  Image image = call.image;
  image.data += index * call.batch_stride;
  ConvPiece piece;
  piece.first_output = chunk * call.outputs / chunks_;
  piece.end_output = (chunk + 1) * call.outputs / chunks_;
  piece.channel_stride = channel_stride_;
  piece.tap_offset = tap_offset_.data();
  piece.out.y = call.y + index * call.outputs * plane + first_row * width;
  piece.out.stride = plane;
  piece.out.rows = std::min(band_rows_, call.window.out[0] - first_row);
  piece.out.width = piece.out.y_pitch = static_cast<int>(width);
  piece.out.mask = nullptr;
  if (direct_) {
    piece.out.pitch = static_cast<int>(width);
    piece.x = image.data + first_row * width;
    return piece;
  }
  piece.out.pitch = planes_.pitch();
  piece.x = scratch;
  for (int64_t c = 0; c < image.channels; ++c) {
    planes_.fill(image, c, first_row, band_rows_, scratch + c * channel_stride_);
  }
  return piece;
}

}  // namespace dynkern
