// SPDX-License-Identifier: Apache-2.0
// 3x3 convolution of stride 1 by Winograd's F(4,3) along the columns: four rows of results from six products
// instead of twelve (Lavin & Gray, "Fast algorithms for convolutional neural networks", in one dimension).
//
//   v[u][c] = sum over k of  B[u][k] x[c][4 t + k]          six rows from six rows, t a tile of four rows
//   g[u][i][c][kx] = sum over ky of  G[u][ky] weight[i][c][ky][kx]
//   m[u][i][p] = sum over c, kx of  g[u][i][c][kx] v[u][c][p + kx]
//   y[i][4 t + r] = epilogue(sum over u of  A[r][u] m[u][i])
//
// Lanes are pixels throughout, so any number of channels costs its share. The weights are transformed in each
// call: a network keeps one copy of them, no larger than they are, which any sub-net reads.
#pragma once

#include <cstdint>

#include "ops/plane_output.h"

namespace dynkern {

// Filters lie in blocks of that many input channels, within a block by kernel row, channel and kernel column,
// so that whole vectors are transformed: (outputs, blocks, 3, 16, 3), the last block filled up with zeros.
constexpr int kWinogradChannels = 16;
constexpr int kWinogradFilterRow = 3 * kWinogradChannels;
constexpr int kWinogradFilters = 3 * kWinogradFilterRow;

class WinogradGroups;

struct WinogradConv2d {
  // The input of the first tap of the first pixel; rows + 2 rows of width + 2 pixels are read of each plane,
  // and up to a vector past them. The first and the last column are zeros.
  const float* x;
  int64_t channels;
  int64_t channel_stride;
  int x_pitch;

  // The full weight, `weight_out` floats from output to output, and the channels of it that run.
  const float* weight;
  int64_t weight_out;
  const int64_t* in_index;   // null: the first `channels`
  const int64_t* out_index;  // null: from `out_first` on
  int64_t out_first;
  int64_t outputs;

  PlaneOutput out;               // pitch and mask are not used
  const WinogradGroups* groups;  // for vectors of the kernel's lanes and these outputs or more (see cuts.h)
  float* work;                   // groups->floats of them, aligned to a cache line
};

}  // namespace dynkern
