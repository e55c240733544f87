// SPDX-License-Identifier: Apache-2.0
// Tiles of R runs of P pixels by O vectors of channels, in registers over the whole reduction.

constexpr int kBlockVectors = kPackedOutputs / kLanes;
// Where the registers are few, tiles are one run by one block.
constexpr int kChannelBlocks = kRegisters >= 32 ? 2 : 1;
constexpr int kChannelRuns = kRegisters >= 32 ? 2 : 1;
// Floats of the planes that all outputs are computed of before the next rows.
constexpr int64_t kChannelBandFloats = 128 * 1024;

// Rows become columns.
template <int Step, int... L>
ALWAYS_INLINE void swap_off_diagonal(Vec& a, Vec& b, LaneList<L...>) {
  const Vec top = __builtin_shufflevector(a, b, ((L & Step) != 0 ? kLanes + L - Step : L)...);
  b = __builtin_shufflevector(a, b, ((L & Step) != 0 ? kLanes + L : L + Step)...);
  a = top;
}
template <int Step = 1>
ALWAYS_INLINE void transpose(Vec (&rows)[kLanes]) {
  if constexpr (Step < kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if ((i & Step) == 0) swap_off_diagonal<Step>(rows[i], rows[i + Step], AllLanes());
    }
    transpose<2 * Step>(rows);
  }
}

// Where the runs of a tile lie: of the input, and of the results.
struct ChannelTile {
  const float* x[2];
  int64_t y[2];
  const float* prefetch;  // a line for each input and tap
};

// From one run of a tile to the next in the turned results.
constexpr int kRunLanes = 8;

// Scale, shift and, where no residual comes before it, the activation of a block of 16 channels.
template <int N>
ALWAYS_INLINE void channel_scale(const ChannelConv2d& a, int64_t first, Vec (&acc)[N]) {
  const Epilogue& e = a.out.epilogue;
  const auto of_channels = [&](const float* all, float without) {
    if (all == nullptr) return splat(without);
    if (first >= 0 && first + kLanes <= a.outputs) return load(all + first);
    float some[kLanes];
    for (int64_t i = 0; i < kLanes; ++i)
      some[i] = first + i >= 0 && first + i < a.outputs ? all[first + i] : 0;
    return load(some);
  };
  const Vec scale = of_channels(e.scale, 1), shift = of_channels(e.shift, 0);
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) acc[i] = acc[i] * scale + shift;
  if (e.residual == nullptr) activate<N>(acc, e);
}

// Stores a block of 16 channels, which lie one after the other, 16 pixels each.
template <int P, int R>
inline void channel_results(const ChannelConv2d& a, const ChannelTile& tile, int64_t block,
                            const float* turned) {
  const Epilogue& e = a.out.epilogue;
  const int64_t before = block * kPackedOutputs - a.out_first;
  const int64_t begin = before < 0 ? 0 : before,
                end = before + kPackedOutputs < a.outputs ? before + kPackedOutputs : a.outputs;
  constexpr int kParts = (P + kLanes - 1) / kLanes;
  turned += (begin - before) * kPackedOutputs;
  float* y = a.out.y + begin * a.out.stride;
  const float* residual = e.residual == nullptr ? nullptr : e.residual + begin * e.residual_stride;
  for (int64_t i = begin; i < end; ++i, turned += kPackedOutputs, y += a.out.stride) {
    Vec values[R * kParts];
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < kParts; ++v) values[r * kParts + v] = load(turned + r * kRunLanes + v * kLanes);
    }
    if (residual != nullptr) {
      const Vec weight = splat(e.residual_scale != nullptr ? e.residual_scale[i] : 1.f);
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < kParts; ++v)
          values[r * kParts + v] += load(residual + tile.y[r] + v * kLanes) * weight;
      }
      activate<R * kParts>(values, e);
      residual += e.residual_stride;
    }
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < kParts; ++v) {
        const int rest = P - v * kLanes;
        store_first(y + tile.y[r] + v * kLanes, values[r * kParts + v], rest < kLanes ? rest : kLanes);
      }
    }
  }
}

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
  alignas(64) float turned[B * kPackedOutputs * kPackedOutputs + kPackedOutputs];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    channel_scale(a, block * kPackedOutputs + v * kLanes - a.out_first, acc[v]);
    float* to = turned + v * kLanes * kPackedOutputs;
#pragma GCC unroll 16
    for (int group = 0; group < kPackedOutputs; group += kLanes) {
      Vec rows[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const int r = R > 1 ? (group + i) / kRunLanes : 0, p = group + i - r * kRunLanes;
        rows[i] = r < R && p < P ? acc[v][r * P + p] : Vec{};
      }
      transpose(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(to + i * kPackedOutputs + group, rows[i]);
    }
  }
  for (int b = 0; b < B; ++b) {
    channel_results<P, R>(a, tile, block + b, turned + b * kPackedOutputs * kPackedOutputs);
  }
}

template <int B, int P, int R>
inline void channel_tile_of(const ChannelConv2d& a, const ChannelTile& tile, int64_t block) {
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
  const int width = a.out.width, pitch = a.out.y_pitch;
  const float* own = a.weight + block * a.weight_block;
  int64_t tiles = 0;
  ChannelTile tile;
  const auto place = [&](int r, int row, int column) {
    tile.x[r] = a.x + static_cast<int64_t>(row) * a.x_row + column * a.stride;
    tile.y[r] = static_cast<int64_t>(row) * pitch + column;
  };
  const auto ask = [&] {
    tile.prefetch = next != nullptr && tiles < B ? next + tiles * a.weight_block : own;
    ++tiles;
  };
  const int rest = width % (2 * kChannelPixels);
  const bool odd = rest > 0 && rest <= kChannelPixels;
  const int wide =
      odd ? width / (2 * kChannelPixels) : (width + 2 * kChannelPixels - 1) / (2 * kChannelPixels);
  for (int row = begin; row < end; ++row) {
    for (int i = 0; i < wide; ++i) {
      const int last = width - 2 * kChannelPixels, column = i * 2 * kChannelPixels;
      place(0, row, column < last ? column : last);
      if constexpr (kChannelRuns > 1) {
        ask();
        channel_tile_of<B, 2 * kChannelPixels, 1>(a, tile, block);
      } else {
        for (int half = 0; half < 2; ++half) {
          ask();
          channel_tile_of<B, kChannelPixels, 1>(a, tile, block);
          tile.x[0] += kChannelPixels * a.stride;
          tile.y[0] += kChannelPixels;
        }
      }
    }
  }
  if (!odd) return;
  for (int row = begin; row < end;) {
    ask();
    place(0, row, width - kChannelPixels);
    if constexpr (kChannelRuns > 1) {
      if (row + 1 < end) {
        place(1, row + 1, width - kChannelPixels);
        channel_tile_of<B, kChannelPixels, 2>(a, tile, block);
        row += 2;
        continue;
      }
    }
    channel_tile_of<B, kChannelPixels, 1>(a, tile, block);
    ++row;
  }
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
