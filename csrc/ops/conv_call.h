// SPDX-License-Identifier: Apache-2.0
// How one convolution call is cut into pieces that threads take, and how each piece gets its input planes:
// shared by the dense and the ternary convolution.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "ops/plane_output.h"
#include "ops/planes.h"

namespace dynkern {

struct ConvCall {
  Image image;  // of the first batch entry
  int64_t batch, batch_stride;
  Window window;
  int64_t groups;   // active ones
  int64_t outputs;  // active ones of all groups
  float* y;         // (batch, outputs, rows, columns), contiguous
  double work;      // additions or multiply-adds per pixel, over all outputs
  double cycles;    // that the kernel takes for one of them, over a vector of pixels
  int threads;
};

// What a kernel computes at once: some rows and output channels of one image.
struct ConvPiece {
  const float* x;  // planes of all active input channels
  int64_t channel_stride;
  const int32_t* tap_offset;
  int64_t first_output, end_output;
  float* work;      // the working memory that was asked for
  PlaneOutput out;  // channel 0 of the image, at the piece's first row
};

class ConvCuts {
 public:
  explicit ConvCuts(const ConvCall& call);

  // `work_floats`: working memory that the kernel wants for each piece.
  template <class Kernel>
  void run(const ConvCall& call, int64_t work_floats, Kernel&& kernel) const {
    const int64_t floats = scratch_floats_ + (work_floats + 15) / 16 * 16;
    float* scratch = Scratch::floats(static_cast<size_t>(threads_ * floats));
    parallel_for(call.batch * bands_ * chunks_, threads_, [&](int64_t i, int thread) {
      ConvPiece piece = prepare(call, i, scratch + thread * floats);
      piece.work = scratch + thread * floats + scratch_floats_;
      kernel(piece);
    });
  }

  // Pixels of a piece, those between its rows included.
  int64_t pixels(const ConvCall& call) const {
    return static_cast<int64_t>(band_rows_) * (direct_ ? call.window.out[1] : planes_.pitch());
  }

  // Floats of one input channel that the kernel reads for a tile of `pixels`.
  int64_t touched(int64_t pixels) const { return direct_ ? pixels : planes_.touched(pixels); }

  // The offsets of all taps of all channels, for kernels that index them together.
  std::vector<int32_t> input_offsets(const ConvCall& call) const;

 private:
  ConvPiece prepare(const ConvCall& call, int64_t i, float* scratch) const;

  bool direct_;  // the image itself serves as planes
  Planes planes_;
  int band_rows_;
  int64_t bands_, chunks_;
  int threads_;
  int64_t channel_stride_, scratch_floats_;
  std::vector<int32_t> tap_offset_;
};

}  // namespace dynkern
