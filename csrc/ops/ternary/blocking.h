// SPDX-License-Identifier: Apache-2.0
// How the ternary kernel tiles pixels and inputs so that the inputs of a block stay in the first-level cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/isa.h"
#include "ops/ternary/lists.h"

namespace dynkern {

struct TernaryBlocking {
  int vectors = 16;  // of pixels in a tile
  int64_t inputs;    // of a block
  int64_t partial_floats = 0;

  // piece_pixels: of the image, or rows of the batch. touched(p): floats of one input that a tile of p pixels
  // reads.
  template <class Touched>
  TernaryBlocking(const TernaryLists& lists, int64_t all_inputs, int64_t outputs, int64_t piece_pixels,
                  Touched&& touched)
      : inputs(all_inputs) {
    // A first-level cache, and the nonzeros of an output in a block that pay for putting its sums aside
    // (measured).
    constexpr int64_t kFloats = 10 * 1024;
    constexpr double kLeastNonzeros = 16;
    const int64_t pixels = std::min<int64_t>(vectors * kernels().lanes, piece_pixels);
    const int64_t block = std::max<int64_t>(1, kFloats / touched(pixels));
    const double per_input =
        static_cast<double>(lists.nonzeros()) / static_cast<double>(lists.outputs() * lists.inputs());
    if (block >= all_inputs || static_cast<double>(block) * per_input < kLeastNonzeros) return;
    inputs = block;
    // For the widest vectors there are: a program may run under another instruction set than it was made
    // under.
    constexpr int kMostLanes = 16;
    partial_floats = outputs * vectors * kMostLanes;
  }
};

}  // namespace dynkern
