// SPDX-License-Identifier: Apache-2.0
// In the order of the work: planes, weights, products, results.

// The planes of some rows of tiles, at the six points.
inline void channel_winograd_planes(const ChannelWinograd& a, int first, int tiles, float* v,
                                    const float* zeros) {
  const ChannelConv2d& conv = a.conv;
  const int input_rows = conv.out.rows + 2;
  for (int64_t c = 0; c < conv.channels; ++c) {
    const float* x = conv.x + conv.tap_offset[0] + c * conv.channel_stride;
    for (int t = 0; t < tiles; ++t) {
      const float* row[kWinogradPoints];
      for (int k = 0; k < kWinogradPoints; ++k) {
        const int y = (first + t) * kWinogradRows + k;
        row[k] = y < input_rows ? x + static_cast<int64_t>(y) * conv.x_row : zeros;
      }
      float* to = v + c * a.cuts->channel + t * a.cuts->row;
      // Up to a vector past the row is written, over what comes later.
      for (int64_t j = 0; j < a.cuts->row; j += kLanes) {
        Vec d[kWinogradPoints], points[kWinogradPoints];
        for (int k = 0; k < kWinogradPoints; ++k) d[k] = load(row[k] + j);
        winograd_points(d, points);
        for (int u = 0; u < kWinogradPoints; ++u) store(to + u * a.cuts->point + j, points[u]);
      }
    }
  }
}

// The weights of B blocks of outputs and some channels: (point, channel, kernel column, B, 16).
template <int B>
void channel_winograd_weights(const ChannelConv2d& a, int64_t block, int64_t begin, int64_t end, float* g) {
  const int64_t point = (end - begin) * 3 * B * kPackedOutputs;
  for (int b = 0; b < B; ++b) {
    const float* weight = a.weight + (block + b) * a.weight_block;
    float* of_block = g + b * kPackedOutputs;
    for (int64_t c = begin; c < end; ++c) {
      const float* w = weight + (a.in_index != nullptr ? a.in_index[c] : c) * 9 * kPackedOutputs;
      for (int j = 0; j < 3 * kPackedOutputs; j += kPackedOutputs, of_block += B * kPackedOutputs) {
        for (int lane = 0; lane < kPackedOutputs; lane += kLanes) {
          winograd_filter(w + j + lane, 3 * kPackedOutputs, of_block + lane, point);
        }
      }
    }
  }
}

// A tile's products at one point: (B, R * P, 16) of m.
struct ChannelProduct {
  const float* v;
  int64_t channels, channel, second;  // second: from the first run to the next
  const float* g;
  float* m;
  bool more;              // add to m
  const float* prefetch;  // a line for each channel and kernel column
};

template <int B, int P, int R>
void channel_product(const ChannelProduct& a) {
  constexpr int V = B * kBlockVectors;
  Vec acc[V][R * P];
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) {
#pragma GCC unroll 16
    for (int i = 0; i < R * P; ++i) {
      acc[v][i] = a.more ? load(a.m + (v * R * P + i) * kLanes) : Vec{};
    }
  }
  const float *x = a.v, *w = a.g, *prefetch = a.prefetch;
  for (int64_t c = 0; c < a.channels; ++c, x += a.channel) {
    for (int t = 0; t < 3; ++t, w += B * kPackedOutputs, prefetch += kPackedOutputs) {
      __builtin_prefetch(prefetch, 0, 2);
      Vec s[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) s[v] = load_once(w + v * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < R * P; ++i) {
        const Vec pixel = in_register(splat(x[t + i / P * a.second + i % P]));
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) acc[v][i] += s[v] * pixel;
      }
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) {
#pragma GCC unroll 16
    for (int i = 0; i < R * P; ++i) store(a.m + (v * R * P + i) * kLanes, acc[v][i]);
  }
}

// Row r of the results of B blocks, which lie where the products did.
template <int B, int P, int R, int kRuns>
void channel_winograd_row(const ChannelConv2d& a, const ChannelTile& tile, int64_t block, const float* m) {
  for (int b = 0; b < B; ++b) {
    Vec acc[kBlockVectors][R * P];
#pragma GCC unroll 16
    for (int v = 0; v < kBlockVectors; ++v) {
#pragma GCC unroll 16
      for (int i = 0; i < R * P; ++i) {
        acc[v][i] = load(m + ((b * kBlockVectors + v) * kRuns * P + i) * kLanes);
      }
    }
    channel_finish<P, R>(a, tile, block + b, acc);
  }
}

template <int B, int P, int R>
void channel_winograd_results(const ChannelConv2d& a, int64_t block, int first_tile, int column, float* m) {
  constexpr int64_t kPoint = B * R * P * kPackedOutputs;
  for (int64_t i = 0; i < kPoint; i += kLanes) {
    Vec y[kWinogradRows];
    winograd_combine(m + i, kPoint, y);
    for (int r = 0; r < kWinogradRows; ++r) store(m + r * kPoint + i, y[r]);
  }
  for (int r = 0; r < kWinogradRows; ++r) {
    const int row = first_tile * kWinogradRows + r;
    if (row >= a.out.rows) return;
    ChannelTile tile;
    tile.y[0] = static_cast<int64_t>(row) * a.out.y_pitch + column;
    tile.y[1] = tile.y[0] + static_cast<int64_t>(kWinogradRows) * a.out.y_pitch;
    if (R > 1 && row + kWinogradRows < a.out.rows) {
      channel_winograd_row<B, P, R, R>(a, tile, block, m + r * kPoint);
    } else {
      channel_winograd_row<B, P, 1, R>(a, tile, block, m + r * kPoint);
    }
  }
}

struct ChannelWinogradMemory {
  float *v, *g, *m, *zeros;

  explicit ChannelWinogradMemory(const ChannelWinograd& a)
      : v(a.work), g(v + a.cuts->planes), m(g + a.cuts->weights), zeros(m + a.cuts->sums) {}
};

// Channels [begin, begin + count) of one tile; m moves on to the next one's.
template <int B, int P, int R>
inline void channel_winograd_tile(const ChannelWinograd& a, const ChannelWinogradMemory& memory,
                                  int64_t block, int first, int64_t begin, int64_t count, const float* next,
                                  int row, int column, float*& m, Runs<P, R>) {
  constexpr int64_t kPoint = B * R * P * kPackedOutputs;
  const ChannelWinogradCuts& cuts = *a.cuts;
  const int64_t weights = count * 3 * B * kPackedOutputs, lines = count * 3 * kPackedOutputs;
  ChannelProduct product;
  product.v = memory.v + begin * cuts.channel + row * cuts.row + column;
  product.channels = count;
  product.channel = cuts.channel;
  product.second = cuts.row;
  product.g = memory.g;
  product.m = m;
  product.more = begin > 0;
  for (int u = 0; u < kWinogradPoints; ++u) {
    product.prefetch = product.g;
    if (next != nullptr && u < 3 * B) product.prefetch = next + u / 3 * a.conv.weight_block + u % 3 * lines;
    channel_product<B, P, R>(product);
    product.v += cuts.point;
    product.g += weights;
    product.m += kPoint;
  }
  if (begin + count == a.conv.channels) {
    channel_winograd_results<B, P, R>(a.conv, block, first + row, column, m);
  }
  m += kWinogradPoints * kPoint;
}

// Some rows of tiles, for B blocks of outputs.
template <int B>
void channel_winograd_blocks(const ChannelWinograd& a, const ChannelWinogradMemory& memory, int64_t block,
                             int first, int tiles, bool follows) {
  constexpr int64_t kChunk = ChannelWinogradCuts::kChunk;
  const ChannelConv2d& conv = a.conv;
  for (int64_t begin = 0; begin < conv.channels; begin += kChunk) {
    const int64_t end = begin + kChunk < conv.channels ? begin + kChunk : conv.channels, count = end - begin;
    channel_winograd_weights<B>(conv, block, begin, end, memory.g);
    const bool last = end == conv.channels;
    // The weights that come next are asked for by the first tile.
    const float* next = conv.in_index != nullptr ? nullptr
                        : !last   ? conv.weight + block * conv.weight_block + end * 9 * kPackedOutputs
                        : follows ? conv.weight + (block + B) * conv.weight_block
                                  : nullptr;
    float* m = memory.m;
    channel_tiles(conv.out.width, 0, tiles, [&](auto runs, int row, int column) {
      channel_winograd_tile<B>(a, memory, block, first, begin, count, next, row, column, m, runs);
      next = nullptr;
    });
  }
}

void channel_winograd(const ChannelWinograd& a) {
  const ChannelConv2d& conv = a.conv;
  const ChannelWinogradMemory memory(a);
  for (int64_t i = 0; i < a.cuts->row + kLanes; ++i) memory.zeros[i] = 0;
  const int64_t begin = conv.out_first / kPackedOutputs,
                end = (conv.out_first + conv.outputs + kPackedOutputs - 1) / kPackedOutputs;
  const int all = (conv.out.rows + kWinogradRows - 1) / kWinogradRows;
  const int group = static_cast<int>(a.cuts->rows);
  for (int first = 0; first < all; first += group) {
    const int tiles = first + group < all ? group : all - first;
    channel_winograd_planes(a, first, tiles, memory.v, memory.zeros);
    for (int64_t block = begin; block < end;) {
      if (kChannelBlocks > 1 && block + 1 < end) {
        channel_winograd_blocks<kChannelBlocks>(a, memory, block, first, tiles, block + 2 < end);
        block += 2;
      } else {
        channel_winograd_blocks<1>(a, memory, block, first, tiles, block + 1 < end);
        ++block;
      }
    }
  }
}
