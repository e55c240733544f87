// SPDX-License-Identifier: Apache-2.0
// Tiles of R runs of P pixels by O vectors of channels, in registers over the whole reduction.

// Floats of the planes that all outputs are computed of before the next rows.
constexpr int64_t kChannelBandFloats = 128 * 1024;

template <int B, int P, int R, int S, bool kOneTap>
void channel_tile(const ChannelConv2d& a, const ChannelTile& tile, int64_t block) {
  constexpr int kVectors = B * kBlockVectors;
  Vec acc[kVectors][R * P];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 16
    for (int p = 0; p < R * P; ++p) acc[v][p] = Vec{};
  }
  const float* weight = a.weight + block * a.weight_block;
  const int64_t next_block = a.weight_block;
  const float *first = tile.x[0], *prefetch = tile.prefetch;
  const int64_t second = R > 1 ? tile.x[1] - tile.x[0] : 0;
  const int taps = kOneTap ? 1 : a.taps;
  for (int64_t c = 0; c < a.channels; ++c, first += a.channel_stride) {
    const float* w = weight + (a.in_index != nullptr ? a.in_index[c] : c) * taps * kPackedOutputs;
    for (int t = 0; t < taps; ++t, w += kPackedOutputs, prefetch += kPackedOutputs) {
      const float* x = first + a.tap_offset[t];
      __builtin_prefetch(prefetch, 0, 2);
      Vec s[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v)
        s[v] = load_once(w + v / kBlockVectors * next_block + v % kBlockVectors * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
          const Vec pixel = in_register(splat(x[r * second + p * S]));
#pragma GCC unroll 16
          for (int v = 0; v < kVectors; ++v) acc[v][r * P + p] += s[v] * pixel;
        }
      }
    }
  }
  channel_finish<P, R>(a, tile, block, acc);
}

template <int B, int P, int R>
inline void channel_tile_of(const ChannelConv2d& a, const ChannelTile& tile, int64_t block, Runs<P, R>) {
  if (a.taps == 1) {
    a.stride == 1 ? channel_tile<B, P, R, 1, true>(a, tile, block)
                  : channel_tile<B, P, R, 2, true>(a, tile, block);
  } else {
    a.stride == 1 ? channel_tile<B, P, R, 1, false>(a, tile, block)
                  : channel_tile<B, P, R, 2, false>(a, tile, block);
  }
}

// All pixels of some rows, for B blocks of 16 outputs. Meanwhile the weights of the next blocks are asked
// for: a block's by one of the first tiles.
template <int B>
void channel_blocks(const ChannelConv2d& a, int64_t block, int begin, int end, const float* next) {
  const float* own = a.weight + block * a.weight_block;
  int64_t tiles = 0;
  channel_tiles(a.out.width, begin, end, [&](auto runs, int row, int column) {
    ChannelTile tile;
    for (int r = 0; r < 2; ++r) {
      tile.x[r] = a.x + static_cast<int64_t>(row + r) * a.x_row + column * a.stride;
      tile.y[r] = static_cast<int64_t>(row + r) * a.out.y_pitch + column;
    }
    tile.prefetch = next != nullptr && tiles < B ? next + tiles * a.weight_block : own;
    ++tiles;
    channel_tile_of<B>(a, tile, block, runs);
  });
}

void channel_conv2d(const ChannelConv2d& a) {
  const int64_t begin = a.out_first / kPackedOutputs,
                end = (a.out_first + a.outputs + kPackedOutputs - 1) / kPackedOutputs;
  // Rows outside, outputs inside, where the weights of all outputs stay in a cache and the planes do not.
  int64_t band = a.out.rows;
  while (band > 2 && a.channels * band * a.x_row * a.stride > kChannelBandFloats &&
         (end - begin) * a.weight_block <= kChannelBandFloats) {
    band = (band + 1) / 2;
  }
  for (int64_t row = 0; row < a.out.rows; row += band) {
    const int first = static_cast<int>(row);
    const int stop = static_cast<int>(row + band < a.out.rows ? row + band : a.out.rows);
    for (int64_t block = begin; block < end;) {
      const bool pair = kChannelBlocks > 1 && block + 1 < end;
      const int64_t following = block + (pair ? 2 : 1);
      const float* next = following < end ? a.weight + following * a.weight_block : nullptr;
      if (pair) {
        channel_blocks<kChannelBlocks>(a, block, first, stop, next);
      } else {
        channel_blocks<1>(a, block, first, stop, next);
      }
      block = following;
    }
  }
}
