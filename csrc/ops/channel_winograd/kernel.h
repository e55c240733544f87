// SPDX-License-Identifier: Apache-2.0
// A 3x3 convolution of stride 1 by Winograd's F(4,3) down the columns (the mathematics of ops/winograd),
// whose lanes are output channels as in ops/channel_conv2d.
#pragma once

#include <cstdint>

#include "ops/channel_conv2d/kernel.h"

namespace dynkern {

// How a call is cut, and what memory it needs: the same for the kernel and for who allocates.
struct ChannelWinogradCuts {
  static constexpr int kTileRows = 4;  // of results
  static constexpr int kPoints = 6;
  static constexpr int64_t kChunk = 64;                // channels whose weights are transformed together
  static constexpr int64_t kPlaneFloats = 100 * 1024;  // of transformed planes

  int64_t row;      // floats of a row of tiles in one channel's transformed plane
  int64_t rows;     // of tiles in a group, whose planes are transformed together
  int64_t channel;  // floats of one channel's plane at one point
  int64_t point, planes, weights, sums, floats;

  ChannelWinogradCuts(int64_t channels, int height, int width) : row(width + 2) {
    const int64_t tiles = (height + kTileRows - 1) / kTileRows;
    rows = kPlaneFloats / (kPoints * channels * row);
    rows = rows < 1 ? 1 : rows > tiles ? tiles : rows;
    channel = rows * row;
    point = lines(channels * channel + 2 * kPackedOutputs);
    planes = kPoints * point;
    weights = kPoints * kChunk * 3 * 2 * kPackedOutputs;
    // Tiles of a row hold at most this many pixels each twice.
    sums = kPoints * 2 * kPackedOutputs * rows * channel_pixels(width + kChannelPixels);
    floats = planes + weights + sums + lines(row + 2 * kPackedOutputs);
  }

  static int64_t lines(int64_t count) {
    return (count + kPackedOutputs - 1) / kPackedOutputs * kPackedOutputs;
  }
};

struct ChannelWinograd {
  ChannelConv2d conv;               // taps: the nine, stride 1
  const ChannelWinogradCuts* cuts;  // for these rows or more
  float* work;                      // cuts->floats of them, aligned to a cache line
};

}  // namespace dynkern
