// SPDX-License-Identifier: Apache-2.0
// What kernels whose lanes are channels share: how they cut images into tiles, and how results become planes.

constexpr int kBlockVectors = kPackedOutputs / kLanes;
// Where the registers are few, tiles are one run by one block.
constexpr int kChannelBlocks = kRegisters >= 32 ? 2 : 1;
constexpr int kChannelRuns = kRegisters >= 32 ? 2 : 1;
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

// Epilogue of B blocks of 16 channels, a vector for each pixel, which are turned into planes and stored.
template <int P, int R, int V>
ALWAYS_INLINE void channel_finish(const ChannelConv2d& a, const ChannelTile& tile, int64_t block,
                                  Vec (&acc)[V][R * P]) {
  constexpr int B = V / kBlockVectors;
  alignas(64) float turned[B * kPackedOutputs * kPackedOutputs + kPackedOutputs];
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) {
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

// A tile of R runs of P pixels.
template <int P, int R>
struct Runs {};

// Calls f(Runs, row, column) for tiles that cover rows [begin, end) of that width; the second run lies a row
// below.
template <class F>
inline void channel_tiles(int width, int begin, int end, F&& f) {
  constexpr int kWide = 2 * kChannelPixels;
  const int rest = width % kWide;
  const bool odd = rest > 0 && rest <= kChannelPixels;
  const int wide = odd ? width / kWide : (width + kWide - 1) / kWide;
  for (int row = begin; row < end; ++row) {
    for (int i = 0; i < wide; ++i) {
      const int column = (i + 1) * kWide <= width ? i * kWide : width - kWide;
      if constexpr (kChannelRuns > 1) {
        f(Runs<kWide, 1>(), row, column);
      } else {
        f(Runs<kChannelPixels, 1>(), row, column);
        f(Runs<kChannelPixels, 1>(), row, column + kChannelPixels);
      }
    }
  }
  for (int row = begin; odd && row < end;) {
    if constexpr (kChannelRuns > 1) {
      if (row + 1 < end) {
        f(Runs<kChannelPixels, 2>(), row, width - kChannelPixels);
        row += 2;
        continue;
      }
    }
    f(Runs<kChannelPixels, 1>(), row, width - kChannelPixels);
    ++row;
  }
}
