// SPDX-License-Identifier: Apache-2.0
#include "ops/planes.h"

#include <algorithm>
#include <cstring>

namespace dynkern {
namespace {

// How many of the elements start, start + step, ... (count of them) lie before `low`, and at or after `high`.
struct Outside {
  int before, after;
};

Outside outside(int start, int step, int count, int low, int high) {
  int before = start >= low ? 0 : std::min(count, (low - start + step - 1) / step);
  int inside = start >= high ? 0 : std::min(count, (high - start + step - 1) / step);
  return {before, count - std::max(inside, before)};
}

}  // namespace

Planes::Axis Planes::axis(int kernel, int stride, int dilation, bool shifted) {
  Axis axis;
  for (int k = 0; k < kernel; ++k) {
    int position = k * dilation;
    int start = shifted ? position : position % stride;
    auto known = std::find(axis.start.begin(), axis.start.end(), start);
    axis.copy.push_back(static_cast<int>(known - axis.start.begin()));
    if (known == axis.start.end()) axis.start.push_back(start);
    axis.shift.push_back((position - start) / stride);
    axis.extra = std::max(axis.extra, axis.shift.back());
  }
  return axis;
}

Planes::Planes(const Window& window, int height, int width, bool shifted)
    : window_(window),
      height_(height),
      width_(width),
      rows_(axis(window.kernel[0], window.stride[0], window.dilation[0], false)),
      columns_(axis(window.kernel[1], window.stride[1], window.dilation[1], shifted)) {
  // Columns of padding at the end of a row can be those at the start of the next one: both are zeros.
  int count = window.out[1] + columns_.extra;
  int shared = columns_.extra;
  for (int start : columns_.start) {
    Outside padding = outside(start - window.left, window.stride[1], count, 0, width);
    shared = std::min(shared, std::min(padding.before, padding.after));
  }
  pitch_ = count - shared;
}

int64_t Planes::channel_stride(int rows) const {
  // One row more: the padding that ends the last row would be that of the row after it.
  int64_t copies = static_cast<int64_t>(rows_.start.size() * columns_.start.size());
  return copies * copy_floats(rows);
}

int64_t Planes::touched(int64_t pixels) const {
  const int64_t copies = static_cast<int64_t>(rows_.start.size() * columns_.start.size());
  return copies * (pixels + rows_.extra * pitch_);
}

void Planes::tap_offsets(int rows, int32_t* offset) const {
  const int64_t plane = copy_floats(rows);
  for (size_t i = 0; i < rows_.copy.size(); ++i) {
    for (size_t j = 0; j < columns_.copy.size(); ++j) {
      int64_t copy = static_cast<int64_t>(rows_.copy[i] * columns_.start.size() + columns_.copy[j]);
      *offset++ = static_cast<int32_t>(copy * plane + rows_.shift[i] * pitch_ + columns_.shift[j]);
    }
  }
}

void Planes::fill(const Image& image, int64_t channel, int first, int rows, float* plane,
                  uint32_t padding_bits) const {
  float nothing;
  std::memcpy(&nothing, &padding_bits, sizeof nothing);
  const float* source = image.data + channel * image.channel_stride;
  const int step = window_.stride[1];
  for (int row_start : rows_.start) {
    for (int column_start : columns_.start) {
      const int start = column_start - window_.left;
      const Outside padding = outside(start, step, pitch_, 0, width_);
      const int inside = pitch_ - padding.before - padding.after;
      for (int r = 0; r < rows + rows_.extra + 1; ++r, plane += pitch_) {
        const int y = (first + r) * window_.stride[0] + row_start - window_.top;
        if (y < 0 || y >= height_ || r == rows + rows_.extra || inside <= 0) {
          std::fill_n(plane, pitch_, nothing);
          continue;
        }
        const float* line =
            source + y * image.row_stride + (start + padding.before * step) * image.column_stride;
        float* to = plane + padding.before;
        for (int i = 0; i < padding.before; ++i) plane[i] = nothing;
        const int64_t stride = step * image.column_stride;
        if (stride == 1) {
          std::memcpy(to, line, sizeof(float) * inside);
        } else if (stride == 2) {
          // A constant, which the compiler makes shuffles of.
          for (int i = 0; i < inside; ++i) to[i] = line[2 * i];
        } else {
          for (int i = 0; i < inside; ++i) to[i] = line[i * stride];
        }
        for (int i = 0; i < padding.after; ++i) to[inside + i] = nothing;
      }
    }
  }
}

}  // namespace dynkern
