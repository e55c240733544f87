// SPDX-License-Identifier: Apache-2.0
// How one Winograd call is cut, and where its working memory lies: the same for the kernel and for who
// allocates.
#pragma once

#include <cstdint>

#include "ops/winograd/kernel.h"

namespace dynkern {

constexpr int kWinogradPoints = 6;
constexpr int kWinogradRows = 4;      // of results in a tile
constexpr int kWinogradOutputs = 16;  // most output channels in a block
// Floats that stay in the first-level cache, and that still stream well.
constexpr int64_t kWinogradFirstLevel = 6 * 1024;
constexpr int64_t kWinogradSecondLevel = 512 * 1024;

// How the transformed planes lie, so that pixels fill vectors.
enum class WinogradForm {
  kRows,     // each row of tiles has vectors of its own: results are stored from registers
  kHalves,   // two rows of tiles share each vector, one copy for each column of the kernel: the same
  kPacked,   // row after row; the zero that ends one starts the next
  kShifted,  // row after row without zeros, one copy for each column of the kernel
};

struct WinogradCuts {
  WinogradForm form;
  int tiles;            // of four rows
  int64_t vectors;      // of pixels
  int64_t row_vectors;  // that one row of tiles has for itself; all of them where rows share vectors
  int64_t pitch;        // from row to row of tiles
  int64_t lead;         // from a plane's start to its first pixel's first tap
  int64_t tap;          // from one column of the kernel to the next
  int64_t channel;      // floats of one channel's plane
  int64_t point;        // floats of all channels' planes at one point

  WinogradCuts(int64_t channels, int64_t outputs, int rows, int width, int lanes)
      : tiles((rows + kWinogradRows - 1) / kWinogradRows) {
    const int64_t of_row = vectors_of(width, lanes), alone = tiles * of_row;
    const int64_t packed = vectors_of(static_cast<int64_t>(tiles) * (width + 1) - 1, lanes);
    const int64_t shifted = vectors_of(static_cast<int64_t>(tiles) * width, lanes);
    form = WinogradForm::kRows;
    // In cycles for an input: products 9 for a vector and output; a row 15 more if there are three copies,
    // or 30 if they are shorter than a vector; results 12 more for a vector if they go through memory.
    int64_t least = 9 * outputs * alone;
    const auto consider = [&](WinogradForm other, int64_t cost) {
      if (cost < least) {
        least = cost;
        form = other;
      }
    };
    if (2 * width == lanes) consider(WinogradForm::kHalves, 9 * outputs * shifted + 15 * alone);
    consider(WinogradForm::kPacked, (9 * outputs + 12) * packed);
    consider(WinogradForm::kShifted, (9 * outputs + 12) * shifted + 30 * alone);
    tap = 1;
    lead = 0;
    if (form == WinogradForm::kRows) {
      vectors = alone;
      row_vectors = of_row;
      lead = lanes - 1;  // pixels begin a vector
      pitch = (of_row + 1) * lanes;
      channel = tiles * pitch;
    } else if (form == WinogradForm::kPacked) {
      vectors = row_vectors = packed;
      pitch = width + 1;
      channel = tiles * pitch + 1;
    } else {
      vectors = row_vectors = shifted;
      pitch = width;
      tap = shifted * lanes;
      channel = 3 * tap;
    }
    point = vectors_of(channels * channel + 3 * lanes, lanes) * lanes;
  }

  // From a plane's start to the first tap of the i-th vector of pixels.
  int64_t first_tap(int64_t i, int lanes) const {
    return i / row_vectors * pitch + i % row_vectors * lanes + lead;
  }

  static int64_t vectors_of(int64_t count, int lanes) { return (count + lanes - 1) / lanes; }
};

// The groups of rows that a call goes through, so that their transformed planes stay in a cache.
class WinogradGroups {
 public:
  int rows;  // of results in a group; the last may have fewer
  WinogradCuts whole, last;
  int64_t blocks;   // of channels
  bool keep;        // weights are transformed once for all groups, and not block by block
  int64_t point;    // floats of all transformed planes at one point
  int64_t weights;  // of the transformed weights
  int64_t sums;     // of m of one tile of pixels and block of outputs: no more than the registers hold
  int64_t results;  // of results that wait for the others of their row
  int64_t zeros;    // of a row of zeros
  int64_t floats;   // of working memory in all

  WinogradGroups(int64_t channels, int64_t outputs, int all_rows, int width, int lanes)
      : rows(group_rows(channels, outputs, all_rows, width, lanes)),
        whole(channels, outputs, rows, width, lanes),
        last(channels, outputs, (all_rows - 1) % rows + 1, width, lanes),
        blocks(WinogradCuts::vectors_of(channels, kWinogradChannels)),
        keep(rows < all_rows),
        point(whole.point > last.point ? whole.point : last.point) {
    const int64_t most = outputs < kWinogradOutputs ? outputs : kWinogradOutputs;
    const int64_t vectors = whole.vectors > last.vectors ? whole.vectors : last.vectors;
    weights = kWinogradPoints * kWinogradFilterRow * blocks * (keep ? outputs : most);
    sums = kWinogradPoints * 32 * lanes;
    results = (most * kWinogradRows * vectors + 1) * lanes;
    zeros = WinogradCuts::vectors_of(width + 2 + lanes, lanes) * lanes;
    floats = kWinogradPoints * point + weights + kWinogradFilters + sums + results + zeros;
  }

 private:
  static int group_rows(int64_t channels, int64_t outputs, int all_rows, int width, int lanes) {
    const int tiles = (all_rows + kWinogradRows - 1) / kWinogradRows;
    int group = tiles;
    const auto fits = [&](int64_t cache) {
      for (group = tiles;; group = (group + 1) / 2) {
        const WinogradCuts cuts(channels, outputs, group * kWinogradRows, width, lanes);
        if (kWinogradPoints * cuts.point <= cache) return cuts.vectors > 1;
        if (group == 1) return false;
      }
    };
    if (!fits(kWinogradFirstLevel)) fits(kWinogradSecondLevel);
    return group < tiles ? group * kWinogradRows : all_rows;
  }
};

}  // namespace dynkern
