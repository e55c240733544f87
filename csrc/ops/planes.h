// SPDX-License-Identifier: Apache-2.0
// The form in which a convolution reads its input: padded planes whose rows lie so that, for every tap of the
// kernel, the inputs of neighbouring output pixels are neighbours in memory. The kernels then only load
// vectors at an offset per tap.
//
//   x[c][tap t][output pixel p] = plane(c)[tap_offset[t] + p],   p = row * pitch + column
//
// Two forms, of which the cheaper one for the shape is taken:
//   pitched  one copy of the rows; pitch > width, and the columns between two rows are the padding of both,
//   so the kernel
//            computes a few pixels that are dropped. Strided convolutions get one copy per phase of the
//            stride.
//   shifted  one copy per column of the kernel, shifted; pitch == width, nothing is wasted, results are
//   stored at once.
#pragma once

#include <cstdint>
#include <vector>

namespace dynkern {

// Planes of a band of rows should not be larger: a second-level cache then has room for weights and results.
constexpr int64_t kBandFloats = 96 * 1024;

struct Image {
  const float* data;
  int64_t channels, height, width;
  int64_t channel_stride, row_stride, column_stride;
};

// A convolution's shape, without its channels.
struct Window {
  int kernel[2], stride[2], dilation[2];
  int top, left;  // padding before the first row and column
  int out[2];     // rows and columns of the result
};

class Planes {
 public:
  Planes(const Window& window, int height, int width, bool shifted);

  // Floats of one channel's planes for a band of `rows` output rows.
  int64_t channel_stride(int rows) const;

  // Offsets of the taps, kernel rows first, within one channel of a band of `rows`.
  void tap_offsets(int rows, int32_t* offset) const;

  // Write the planes of one channel for the output rows first .. first + rows; `padding` is the bits of every
  // float around the image.
  void fill(const Image& image, int64_t channel, int first, int rows, float* plane,
            uint32_t padding = 0) const;

  // Floats of one channel's planes that the kernel reads for `pixels` neighbours.
  int64_t touched(int64_t pixels) const;

  int pitch() const { return pitch_; }

  // Copies in each direction, the floats of one for a band of `rows`, and the rows of it that are read.
  int copies(int axis) const { return static_cast<int>((axis == 0 ? rows_ : columns_).start.size()); }
  int64_t copy_floats(int rows) const { return static_cast<int64_t>(rows + rows_.extra + 1) * pitch_; }
  int copy_rows(int rows) const { return rows + rows_.extra; }

 private:
  struct Axis {              // one direction of the kernel
    std::vector<int> start;  // first padded coordinate of each copy; the copy then steps by the stride
    std::vector<int> copy;   // for each tap the copy it reads
    std::vector<int> shift;  // and how many elements into it
    int extra = 0;           // elements that a copy has beyond the number of results
  };
  static Axis axis(int kernel, int stride, int dilation, bool shifted);

  Window window_;
  int height_, width_;
  Axis rows_, columns_;
  int pitch_;
};

}  // namespace dynkern
