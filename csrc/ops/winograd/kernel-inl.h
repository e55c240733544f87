// SPDX-License-Identifier: Apache-2.0
// In the order of the work: input, weights, products, results. See kernel.h for the mathematics.

inline void winograd_points(const Vec (&d)[kWinogradPoints], Vec (&v)[kWinogradPoints]) {
  const Vec even = d[4] - 4.f * d[2], odd = d[3] - 4.f * d[1];
  const Vec difference = d[4] - d[2], slope = d[3] - d[1];
  v[0] = 4.f * d[0] - 5.f * d[2] + d[4];
  v[1] = even + odd;
  v[2] = even - odd;
  v[3] = difference + 2.f * slope;
  v[4] = difference - 2.f * slope;
  v[5] = 4.f * d[1] - 5.f * d[3] + d[5];
}

// A vector of filters' columns, whose rows lie `row` apart, at the six points.
inline void winograd_filter(const float* w, int64_t row, float* to, int64_t point) {
  const Vec top = load(w), centre = load(w + row), bottom = load(w + 2 * row);
  const Vec ends = (top + bottom) * (-1.f / 6), middle = centre * (1.f / 6);
  const Vec far = top * (1.f / 24) + bottom * (1.f / 6), half = centre * (1.f / 12);
  store(to, top * 0.25f);
  store(to + point, ends - middle);
  store(to + 2 * point, ends + middle);
  store(to + 3 * point, far + half);
  store(to + 4 * point, far - half);
  store(to + 5 * point, bottom);
}

// Six rows of input of one tile of results.
struct WinogradInputRows {
  const float* row[kWinogradPoints];

  WinogradInputRows(const WinogradConv2d& a, int64_t c, int tile, const float* zeros) {
    for (int k = 0; k < kWinogradPoints; ++k) {
      const int y = tile * kWinogradRows + k;
      row[k] = y < a.out.rows + 2 ? a.x + c * a.channel_stride + static_cast<int64_t>(y) * a.x_pitch : zeros;
    }
  }
};

// One row at each of the six points. Without kExact up to a vector past `width` is written.
template <bool kExact>
inline void winograd_input_row(const WinogradInputRows& rows, int64_t first, int width, float* v,
                               int64_t point) {
  for (int j = 0; j < width; j += kLanes) {
    Vec d[kWinogradPoints], points[kWinogradPoints];
    for (int k = 0; k < kWinogradPoints; ++k) d[k] = load(rows.row[k] + first + j);
    winograd_points(d, points);
    for (int u = 0; u < kWinogradPoints; ++u) {
      if (kExact && width - j < kLanes) {
        store_first(v + u * point + j, points[u], width - j);
      } else {
        store(v + u * point + j, points[u]);
      }
    }
  }
}

// One channel's plane whose vectors are halves of two rows.
inline void winograd_input_halves(const WinogradConv2d& a, const WinogradCuts& cuts, int64_t c, float* plane,
                                  const float* zeros) {
  for (int t = 0; t < cuts.tiles; t += 2, plane += kLanes) {
    const WinogradInputRows low(a, c, t, zeros), high(a, c, t + 1, zeros);
    for (int shift = 0; shift < 3; ++shift) {
      Vec d[kWinogradPoints], points[kWinogradPoints];
      for (int k = 0; k < kWinogradPoints; ++k) d[k] = load_halves(low.row[k] + shift, high.row[k] + shift);
      winograd_points(d, points);
      for (int u = 0; u < kWinogradPoints; ++u) store(plane + u * cuts.point + shift * cuts.tap, points[u]);
    }
  }
}

// One channel's plane, row after row of tiles.
inline void winograd_input_rows(const WinogradConv2d& a, const WinogradCuts& cuts, int64_t c, float* plane,
                                const float* zeros) {
  const int width = a.out.width;
  const int64_t point = cuts.point;
  for (int t = 0; t < cuts.tiles; ++t, plane += cuts.pitch) {
    const WinogradInputRows rows(a, c, t, zeros);
    if (cuts.form == WinogradForm::kShifted) {
      for (int shift = 0; shift < 3; ++shift) {
        winograd_input_row<true>(rows, shift, width, plane + shift * cuts.tap, point);
      }
    } else if (cuts.form == WinogradForm::kRows) {
      // A vector of zeros ends one row and starts the next.
      for (int u = 0; u < kWinogradPoints; ++u) store(plane + u * point, Vec{});
      winograd_input_row<false>(rows, 1, width, plane + kLanes, point);
    } else {
      for (int u = 0; u < kWinogradPoints; ++u) plane[u * point] = 0;
      winograd_input_row<false>(rows, 1, width, plane + 1, point);
      for (int u = 0; u < kWinogradPoints; ++u) plane[u * point + width + 1] = 0;
    }
  }
}

// All input planes.
inline void winograd_input(const WinogradConv2d& a, const WinogradCuts& cuts, float* v, const float* zeros) {
  for (int64_t c = 0; c < a.channels; ++c) {
    if (cuts.form == WinogradForm::kHalves) {
      winograd_input_halves(a, cuts, c, v + c * cuts.channel, zeros);
    } else {
      winograd_input_rows(a, cuts, c, v + c * cuts.channel, zeros);
    }
  }
  // The zeros that end the last row of all.
  if (cuts.form == WinogradForm::kRows) {
    for (int u = 0; u < kWinogradPoints; ++u) store(v + u * cuts.point + a.channels * cuts.channel, Vec{});
  }
}

inline const float* winograd_filters(const WinogradConv2d& a, int64_t i) {
  return a.weight + (a.out_index != nullptr ? a.out_index[i] : a.out_first + i) * a.weight_out;
}

// The filters of one output and the block of active channels that begins with `first`, put together.
inline void winograd_gather(const WinogradConv2d& a, const float* filters, int64_t first, float* to) {
  for (int64_t i = 0; i < kWinogradChannels && first + i < a.channels; ++i) {
    const int64_t c = a.in_index[first + i];
    const float* from = filters + c / kWinogradChannels * kWinogradFilters + c % kWinogradChannels * 3;
    for (int ky = 0; ky < 3; ++ky) {
      for (int kx = 0; kx < 3; ++kx)
        to[ky * kWinogradFilterRow + i * 3 + kx] = from[ky * kWinogradFilterRow + kx];
    }
  }
}

// Weights that are transformed together: a block of outputs and some blocks of channels.
struct WinogradChunk {
  int64_t first, outputs, block, end;
};

// The chunk that begins with that block of outputs and that of channels; empty after the last.
inline WinogradChunk winograd_chunk(const WinogradConv2d& a, int64_t b, int64_t blocks, int64_t block,
                                    bool one_tile) {
  if (b == blocks) return {0, 0, 0, 0};
  const int64_t first = b * a.outputs / blocks, outputs = (b + 1) * a.outputs / blocks - first;
  // One tile of pixels reads the weights once: transform as many as stay in the first-level cache.
  int64_t end = a.groups->blocks;
  if (one_tile && !a.groups->keep) {
    const int64_t step = kWinogradFirstLevel / (kWinogradPoints * kWinogradFilterRow * outputs) + 1;
    if (block + step < end) end = block + step;
  }
  return {first, outputs, block, end};
}

// The weights of a chunk, `point` floats from point to point.
inline void winograd_weights(const WinogradConv2d& a, const WinogradChunk& chunk, float* g, int64_t point,
                             float* gathered) {
  for (int64_t i = 0; i < chunk.outputs; ++i) {
    for (int64_t block = chunk.block; block < chunk.end; ++block) {
      const float* w = winograd_filters(a, chunk.first + i);
      if (a.in_index != nullptr) {
        winograd_gather(a, w, block * kWinogradChannels, gathered);
        w = gathered;
      } else {
        w += block * kWinogradFilters;
      }
      float* to = g + ((block - chunk.block) * chunk.outputs + i) * kWinogradFilterRow;
      for (int j = 0; j < kWinogradFilterRow; j += kLanes) {
        winograd_filter(w + j, kWinogradFilterRow, to + j, point);
      }
    }
  }
}

// Filters lie far apart, a few lines of each are read at a time, and the hardware does not guess which are
// next: ask for one of `shares` equal shares.
inline void winograd_prefetch(const WinogradConv2d& a, const WinogradChunk& next, int64_t share,
                              int64_t shares) {
  if (a.in_index != nullptr) return;
  constexpr int64_t kLine = 16;
  const int64_t lines = (next.end - next.block) * kWinogradFilters / kLine, all = next.outputs * lines;
  int64_t line = share * all / shares;
  for (const int64_t stop = (share + 1) * all / shares; line < stop;) {
    const int64_t output = line / lines,
                  stop_output = (output + 1) * lines < stop ? (output + 1) * lines : stop;
    const float* filters = winograd_filters(a, next.first + output) + next.block * kWinogradFilters;
    for (; line < stop_output; ++line) __builtin_prefetch(filters + (line - output * lines) * kLine);
  }
}

// One tile of pixels and a block of outputs, at some of the points.
struct WinogradProduct {
  const float* v;  // planes of the first of the points, from the first channel on
  int64_t v_point, channels, channel, tap;
  const int64_t* first_tap;  // of each vector of pixels
  const float* g;
  int64_t g_point;
  float* m;   // O by V vectors for each point
  bool more;  // add to m
  int points;
};

template <int O, int V>
void winograd_product(const WinogradProduct& a) {
  const float *plane = a.v, *weights = a.g;
  float* m = a.m;
  for (int u = 0; u < a.points; ++u, plane += a.v_point, weights += a.g_point, m += O * V * kLanes) {
    Vec acc[O][V];
    const float* pixels[V];
    for (int v = 0; v < V; ++v) pixels[v] = plane + a.first_tap[v];
    for (int o = 0; o < O; ++o) {
      for (int v = 0; v < V; ++v) acc[o][v] = a.more ? load(m + (o * V + v) * kLanes) : Vec{};
    }
    const float* block = weights;
    int64_t i = 0;
    for (int64_t rest = a.channels; rest > 0; rest -= kWinogradChannels, block += O * kWinogradFilterRow) {
      const float* end = block + 3 * (rest < kWinogradChannels ? rest : kWinogradChannels);
      for (const float* g = block; g < end; g += 3, i += a.channel) {
        for (int kx = 0; kx < 3; ++kx) {
          Vec x[V];
          for (int v = 0; v < V; ++v) x[v] = load(pixels[v] + i + kx * a.tap);
          for (int o = 0; o < O; ++o) {
            const Vec s = splat(g[o * kWinogradFilterRow + kx]);
            for (int v = 0; v < V; ++v) acc[o][v] += s * x[v];
          }
        }
      }
    }
    for (int o = 0; o < O; ++o) {
      for (int v = 0; v < V; ++v) store(m + (o * V + v) * kLanes, acc[o][v]);
    }
  }
}

// Where a vector of pixels in each of four rows goes: `rows` of them from `start` on, `lanes` wide. Of
// halves, the second one goes four rows below the first, where `below` rows exist.
struct WinogradPlace {
  int64_t start;
  int rows, below, lanes;

  WinogradPlace(const PlaneOutput& out, int row, int j, bool halves)
      : start(static_cast<int64_t>(row) * out.y_pitch + j),
        rows(out.rows - row < kWinogradRows ? out.rows - row : kWinogradRows),
        below(halves && out.rows - row > kWinogradRows ? out.rows - row - kWinogradRows : 0),
        lanes(out.width - j < kLanes ? out.width - j : kLanes) {
    if (below > kWinogradRows) below = kWinogradRows;
  }
};

// One output channel of a call, and its epilogue.
struct WinogradChannel {
  float* y;
  const float* residual;
  int64_t pitch;
  Vec scale, shift, weight;
  const Epilogue& epilogue;

  WinogradChannel(const PlaneOutput& out, int64_t i)
      : y(out.y + i * out.stride),
        residual(out.epilogue.residual == nullptr ? nullptr
                                                  : out.epilogue.residual + i * out.epilogue.residual_stride),
        pitch(out.y_pitch),
        scale(splat(out.epilogue.scale != nullptr ? out.epilogue.scale[i] : 1.f)),
        shift(splat(out.epilogue.shift != nullptr ? out.epilogue.shift[i] : 0.f)),
        weight(splat(out.epilogue.residual_scale != nullptr ? out.epilogue.residual_scale[i] : 1.f)),
        epilogue(out.epilogue) {}

  // Epilogue and store of four rows.
  void finish(Vec (&values)[kWinogradRows], const WinogradPlace& place) const {
    for (Vec& v : values) v = v * scale + shift;
    if (residual != nullptr) {
      const float* from = residual + place.start;
      if (place.below > 0) {
        for (int r = 0; r < kWinogradRows; ++r) {
          values[r] +=
              load_halves(from + r * pitch, from + (r < place.below ? kWinogradRows + r : r) * pitch) *
              weight;
        }
      } else if (place.rows == kWinogradRows) {
        for (int r = 0; r < kWinogradRows; ++r) values[r] += load(from + r * pitch) * weight;
      } else {
        for (int r = 0; r < place.rows; ++r) values[r] += load(from + r * pitch) * weight;
      }
    }
    activate<kWinogradRows>(values, epilogue);
    float* to = y + place.start;
    if (place.below == kWinogradRows) {
      for (int r = 0; r < kWinogradRows; ++r)
        store_halves(to + r * pitch, to + (kWinogradRows + r) * pitch, values[r]);
    } else if (place.rows == kWinogradRows && place.lanes == kLanes) {
      for (int r = 0; r < kWinogradRows; ++r) store(to + r * pitch, values[r]);
    } else {
      Vec some[kWinogradRows];
      for (int r = 0; r < kWinogradRows; ++r) some[r] = values[r];
      store_some(some, place, to);
    }
  }

 private:
  // Not inlined, and given a copy, so that what is rare takes no registers from what is not.
  __attribute__((noinline)) void store_some(const Vec (&values)[kWinogradRows], const WinogradPlace& place,
                                            float* to) const {
    for (int r = 0; r < place.rows; ++r) {
      if (r < place.below) {
        store_halves(to + r * pitch, to + (kWinogradRows + r) * pitch, values[r]);
      } else {
        store_first(to + r * pitch, values[r], place.lanes);
      }
    }
  }
};

// Four rows of results from the six products, which lie `point` apart.
inline void winograd_combine(const float* m, int64_t point, Vec (&y)[kWinogradRows]) {
  const Vec m1 = load(m + point), m2 = load(m + 2 * point), m3 = load(m + 3 * point),
            m4 = load(m + 4 * point);
  const Vec s = m1 + m2, d = m1 - m2, s2 = m3 + m4, d2 = m3 - m4;
  y[0] = load(m) + s + s2;
  y[1] = d + 2.f * d2;
  y[2] = s + 4.f * s2;
  y[3] = d + 8.f * d2 + load(m + 5 * point);
}

// The results of one tile of pixels: stored, or, where vectors are not those of rows, put aside in `sums`.
inline void winograd_results(const WinogradConv2d& a, const WinogradCuts& cuts, int64_t first_output,
                             int64_t outputs, int64_t begin, int vectors, const float* m, float* sums) {
  const int64_t point = outputs * vectors * kLanes;
  if (cuts.form == WinogradForm::kPacked || cuts.form == WinogradForm::kShifted) {
    const int64_t row = cuts.vectors * kLanes;
    for (int64_t o = 0; o < outputs; ++o, sums += kWinogradRows * row) {
      for (int64_t v = begin; v < begin + vectors; ++v, m += kLanes) {
        Vec y[kWinogradRows];
        winograd_combine(m, point, y);
        for (int r = 0; r < kWinogradRows; ++r) store(sums + r * row + v * kLanes, y[r]);
      }
    }
    return;
  }
  const bool halves = cuts.form == WinogradForm::kHalves;
  const int row_vectors = halves ? 1 : static_cast<int>(cuts.row_vectors);
  for (int v = 0; v < vectors; ++v) {
    const int i = static_cast<int>(begin) + v;
    const WinogradPlace place(a.out, i / row_vectors * kWinogradRows * (halves ? 2 : 1),
                              i % row_vectors * kLanes, halves);
    for (int64_t o = 0; o < outputs; ++o) {
      Vec y[kWinogradRows];
      winograd_combine(m + (o * vectors + v) * kLanes, point, y);
      WinogradChannel(a.out, first_output + o).finish(y, place);
    }
  }
}

// The results that were put aside.
inline void winograd_rows(const WinogradConv2d& a, const WinogradCuts& cuts, int64_t first_output,
                          int64_t outputs, const float* sums) {
  const int64_t row = cuts.vectors * kLanes;
  for (int64_t o = 0; o < outputs; ++o, sums += kWinogradRows * row) {
    const WinogradChannel channel(a.out, first_output + o);
    for (int t = 0; t < cuts.tiles; ++t) {
      for (int j = 0; j < a.out.width; j += kLanes) {
        Vec y[kWinogradRows];
        for (int r = 0; r < kWinogradRows; ++r) y[r] = load(sums + r * row + t * cuts.pitch + j);
        channel.finish(y, WinogradPlace(a.out, t * kWinogradRows, j, false));
      }
    }
  }
}

constexpr int kWinogradVectors = 4;

constexpr int winograd_vectors(int outputs) {
  const int most = (kRegisters - 1) / (outputs + 1);
  return most < kWinogradVectors ? most : kWinogradVectors;
}

using WinogradTile = void (*)(const WinogradProduct&);

template <int O, int V>
constexpr WinogradTile winograd_tile_of() {
  if constexpr (V <= winograd_vectors(O)) {
    return winograd_product<O, V>;
  } else {
    return nullptr;
  }
}

template <int... kOutput>
inline WinogradTile winograd_tile(int64_t outputs, int vectors, std::integer_sequence<int, kOutput...>) {
  static constexpr WinogradTile kTiles[][kWinogradVectors] = {
      {winograd_tile_of<kOutput + 1, 1>(), winograd_tile_of<kOutput + 1, 2>(),
       winograd_tile_of<kOutput + 1, 3>(), winograd_tile_of<kOutput + 1, 4>()}...};
  return kTiles[outputs - 1][vectors - 1];
}

// Into how many blocks the outputs are cut, evenly: as costs least, in half cycles for an input.
inline int64_t winograd_blocks(int64_t outputs, int64_t vectors) {
  int64_t best = 0, least = 0;
  for (int size = kRegisters / 2; size >= 1; --size) {
    const int64_t blocks = (outputs + size - 1) / size, height = (outputs + blocks - 1) / blocks;
    const int most = winograd_vectors(static_cast<int>(height));
    const int64_t tiles = (vectors + most - 1) / most, width = (vectors + tiles - 1) / tiles;
    const int64_t loads = height + 2 * width;
    int64_t cost = height * width;
    if (cost < loads) cost = loads;
    if (cost < 8) cost = 8;  // as many sums as hide the latency of a multiply-add
    cost *= blocks * tiles;
    if (best == 0 || cost < least) {
      best = blocks;
      least = cost;
    }
  }
  return best;
}

struct WinogradMemory {
  float *v, *g, *gathered, *m, *sums, *zeros;

  WinogradMemory(float* work, const WinogradGroups& groups)
      : v(work),
        g(v + kWinogradPoints * groups.point),
        gathered(g + groups.weights),
        m(gathered + kWinogradFilters),
        sums(m + groups.sums),
        zeros(sums + groups.results) {}
};

// The rows of one group, for `blocks` blocks of outputs.
inline void winograd_group(const WinogradConv2d& a, const WinogradCuts& cuts, const WinogradMemory& memory,
                           int64_t blocks, bool first_group) {
  const WinogradGroups& groups = *a.groups;
  const bool fresh = first_group || !groups.keep;
  winograd_input(a, cuts, memory.v, memory.zeros);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t height = (b + 1) * a.outputs / blocks - b * a.outputs / blocks;
    const int most = winograd_vectors(static_cast<int>(height));
    const int64_t tiles = (cuts.vectors + most - 1) / most;
    for (int64_t block = 0; block < groups.blocks;) {
      const WinogradChunk chunk = winograd_chunk(a, b, blocks, block, tiles == 1);
      const bool last = chunk.end == groups.blocks;
      const WinogradChunk next =
          fresh ? winograd_chunk(a, last ? b + 1 : b, blocks, last ? 0 : chunk.end, tiles == 1)
                : WinogradChunk{0, 0, 0, 0};
      float* g =
          memory.g + (groups.keep ? chunk.first * groups.blocks * kWinogradPoints * kWinogradFilterRow : 0);
      const int64_t point = chunk.outputs * kWinogradFilterRow * (chunk.end - chunk.block);
      if (fresh) winograd_weights(a, chunk, g, point, memory.gathered);
      const int64_t first_channel = block * kWinogradChannels, rest = a.channels - first_channel;
      const int64_t channels = last ? rest : (chunk.end - block) * kWinogradChannels;
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t begin = t * cuts.vectors / tiles;
        const int vectors = static_cast<int>((t + 1) * cuts.vectors / tiles - begin);
        int64_t first_tap[kWinogradVectors];
        for (int i = 0; i < vectors; ++i) first_tap[i] = cuts.first_tap(begin + i, kLanes);
        const WinogradTile product =
            winograd_tile(chunk.outputs, vectors, std::make_integer_sequence<int, kRegisters / 2>());
        // Point by point where the next weights are asked for meanwhile.
        const int step = next.outputs > 0 ? 1 : kWinogradPoints;
        for (int u = 0; u < kWinogradPoints; u += step) {
          product({memory.v + u * cuts.point + first_channel * cuts.channel, cuts.point, channels,
                   cuts.channel, cuts.tap, first_tap, g + u * point, point,
                   memory.m + u * chunk.outputs * vectors * kLanes, block > 0, step});
          if (next.outputs > 0) winograd_prefetch(a, next, t * kWinogradPoints + u, tiles * kWinogradPoints);
        }
        if (last)
          winograd_results(a, cuts, chunk.first, chunk.outputs, begin, vectors, memory.m, memory.sums);
      }
      if (last && (cuts.form == WinogradForm::kPacked || cuts.form == WinogradForm::kShifted)) {
        winograd_rows(a, cuts, chunk.first, chunk.outputs, memory.sums);
      }
      block = chunk.end;
    }
  }
}

void winograd_conv2d(const WinogradConv2d& a) {
  const WinogradGroups& groups = *a.groups;
  const WinogradMemory memory(a.work, groups);
  const int64_t blocks = winograd_blocks(a.outputs, groups.whole.vectors);
  for (int64_t i = 0; i < groups.zeros; ++i) memory.zeros[i] = 0;
  for (int row = 0; row < a.out.rows; row += groups.rows) {
    WinogradConv2d group = a;
    const int64_t start = static_cast<int64_t>(row) * a.out.y_pitch;
    const int rest = a.out.rows - row;
    group.x += static_cast<int64_t>(row) * a.x_pitch;
    group.out.y += start;
    if (a.out.epilogue.residual != nullptr) group.out.epilogue.residual += start;
    group.out.rows = rest < groups.rows ? rest : groups.rows;
    winograd_group(group, rest > groups.rows ? groups.whole : groups.last, memory, blocks, row == 0);
  }
}
