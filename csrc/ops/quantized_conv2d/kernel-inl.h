// SPDX-License-Identifier: Apache-2.0
// Blocks of four outputs by V vectors of pixels stay in registers over the whole reduction.

// sum(o, v) is that of output `first` + o, over vector v of the tile. One word of results, from output
// `first` on.
template <bool kWide, bool kResidual, int V, class Sum>
inline void finish_word(Sum sum, PixelTile tile, const QuantizedConv2d& a, int64_t first) {
  constexpr int kPerWord = kWide ? 2 : 4;
  const Epilogue& e = a.out.epilogue;
  tile.vectors = V;
  TileBuffer<V> residual_buffer, buffer;
  const float* residual = nullptr;
  if (kResidual)
    residual = residual_buffer.read(e.residual + first / kPerWord * e.residual_stride, tile, a.out);
  float* plane = a.out.y + first / kPerWord * a.out.stride;
  float* y = buffer.write(plane, tile, a.out);
  const Between<V> between(tile, a.out, a.out_fill);
  const Vec low = splat(e.low), high = splat(e.high);
  // Unrolled, so that the sums stay in registers.
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    const int offset = tile.offset(v);
    const IntVec from = kResidual ? load_words(residual + offset) : IntVec{};
    IntVec q[kPerWord], words;
    for (int o = 0; o < kPerWord; ++o) {
      Vec value = in_register(sum(o, v) * splat(e.scale[first + o])) + splat(e.shift[first + o]);
      if (kResidual) {
        const IntVec other = kWide ? half_of(from, o) : byte_of(from, o);
        value += in_register(to_float(other) * splat(e.residual_scale[first + o]));
      }
      q[o] = nearest(limit(value, low, high));
    }
    if constexpr (kWide) {
      words = pack_halves(q[0], q[1]);
    } else {
      words = pack_bytes(q[0], q[1], q[2], q[3]);
    }
    store_words(y + offset, between.keep(words, offset));
  }
  buffer.written(plane, tile, a.out);
}

// One plane of floats, of output `first`, that is number o of its block.
template <bool kWide, int V>
void finish_floats(Vec (&values)[V], PixelTile tile, const QuantizedConv2d& a, int64_t output) {
  constexpr int kPerWord = kWide ? 2 : 4;
  const Epilogue& e = a.out.epilogue;
  tile.vectors = V;
  TileBuffer<V> buffer;
  const Vec scale = splat(e.scale[output]), shift = splat(e.shift[output]);
  for (Vec& v : values) v = in_register(v * scale) + shift;
  if (e.residual != nullptr) {
    const int part = static_cast<int>(output % kPerWord);
    const Vec weight = splat(e.residual_scale[output]);
    const float* residual = buffer.read(e.residual + output / kPerWord * e.residual_stride, tile, a.out);
    for (int v = 0; v < V; ++v) {
      const IntVec from = load_words(residual + tile.offset(v));
      values[v] += in_register(to_float(kWide ? half_of(from, part) : byte_of(from, part)) * weight);
    }
  }
  activate<V>(values, e);
  float* plane = a.out.y + output * a.out.stride;
  float* y = buffer.write(plane, tile, a.out);
  const Between<V> between(tile, a.out, 0);
  for (int v = 0; v < V; ++v) {
    const int offset = tile.offset(v);
    store_words(y + offset, between.keep(reinterpret_cast<IntVec>(values[v]), offset));
  }
  buffer.written(plane, tile, a.out);
}

// The four outputs from `first` on.
template <bool kWide, int V, class Sum>
inline void finish_quantized(Sum sum, PixelTile tile, const QuantizedConv2d& a, int64_t first) {
  if (a.out_element == Element::kFloat) {
    for (int o = 0; o < kQuantizedOutputs && first + o < a.outputs; ++o) {
      Vec values[V];
      for (int v = 0; v < V; ++v) values[v] = sum(o, v);
      finish_floats<kWide, V>(values, tile, a, first + o);
    }
    return;
  }
  constexpr int kPerWord = kWide ? 2 : 4;
  for (int part = 0; part < kQuantizedOutputs && first + part < a.outputs; part += kPerWord) {
    auto of_part = [&](int o, int v) { return sum(part + o, v); };
    if (a.out.epilogue.residual != nullptr) {
      finish_word<kWide, true, V>(of_part, tile, a, first + part);
    } else {
      finish_word<kWide, false, V>(of_part, tile, a, first + part);
    }
  }
}

template <int V>
void quantized_bytes(const QuantizedConv2d& a, int64_t block, PixelTile tile) {
  IntVec acc[kQuantizedOutputs][V];
  const int64_t first = block * kQuantizedOutputs;
  for (int o = 0; o < kQuantizedOutputs; ++o) {
    for (int v = 0; v < V; ++v) acc[o][v] = splat_words(a.start[first + o]);
  }
  const int32_t* weight = a.weight + block * a.weight_block;
  const float* plane = a.x + tile.first;
  int64_t c = 0;
  do {
    int t = 0;
    do {
      const float* pixels = plane + a.tap_offset[t];
      ByteWords x[V];
      for (int v = 0; v < V - 1; ++v) x[v] = unsigned_bytes(load_words(pixels + v * kLanes));
      x[V - 1] = unsigned_bytes(load_words(pixels + tile.last));
      for (int o = 0; o < kQuantizedOutputs; ++o) {
        const ByteWords w = signed_bytes(splat_words(weight[o]));
        for (int v = 0; v < V; ++v) acc[o][v] = add_dot_bytes(acc[o][v], x[v], w);
      }
      weight += kQuantizedOutputs;
    } while (++t < a.taps);
    plane += a.channel_stride;
  } while (++c < a.planes);
  finish_quantized<false, V>([&](int o, int v) { return to_float(acc[o][v]); }, tile, a, first);
}

template <int V>
void quantized_halves(const QuantizedConv2d& a, int64_t block, PixelTile tile) {
  IntVec acc[kQuantizedOutputs][V];
  Vec sums[kQuantizedOutputs][V];
  for (int o = 0; o < kQuantizedOutputs; ++o) {
    for (int v = 0; v < V; ++v) {
      acc[o][v] = IntVec{};
      sums[o][v] = Vec{};
    }
  }
  const int32_t* weight = a.weight + block * a.weight_block;
  const float* plane = a.x + tile.first;
  int64_t left = a.flush;
  auto flush = [&] {
    for (int o = 0; o < kQuantizedOutputs; ++o) {
      for (int v = 0; v < V; ++v) {
        sums[o][v] += to_float(acc[o][v]);
        acc[o][v] = IntVec{};
      }
    }
    left = a.flush;
  };
  for (int64_t c = 0; c < a.planes; ++c, plane += a.channel_stride) {
    for (int t = 0; t < a.taps; ++t, weight += kQuantizedOutputs) {
      const float* pixels = plane + a.tap_offset[t];
      IntVec x[V];
      for (int v = 0; v < V - 1; ++v) x[v] = load_words(pixels + v * kLanes);
      x[V - 1] = load_words(pixels + tile.last);
      for (int o = 0; o < kQuantizedOutputs; ++o) {
        const IntVec w = splat_words(weight[o]);
        for (int v = 0; v < V; ++v) acc[o][v] = add_dot_halves(acc[o][v], x[v], w);
      }
      if (--left == 0) flush();
    }
  }
  flush();
  finish_quantized<true, V>([&](int o, int v) { return sums[o][v]; }, tile, a, block * kQuantizedOutputs);
}

using QuantizedTile = void (*)(const QuantizedConv2d&, int64_t, PixelTile);

template <int V>
constexpr QuantizedTile bytes_of() {
  if constexpr (V <= kByteVectors) {
    return quantized_bytes<V>;
  } else {
    return nullptr;
  }
}

template <int V>
constexpr QuantizedTile halves_of() {
  if constexpr (V <= kHalfVectors) {
    return quantized_halves<V>;
  } else {
    return nullptr;
  }
}

void quantized_conv2d(const QuantizedConv2d& a) {
  static constexpr QuantizedTile kBytes[] = {bytes_of<1>(), bytes_of<2>(), bytes_of<3>(),
                                             bytes_of<4>(), bytes_of<5>(), bytes_of<6>()};
  static constexpr QuantizedTile kHalves[] = {halves_of<1>(), halves_of<2>(), halves_of<3>()};
  static_assert(kByteVectors <= sizeof kBytes / sizeof *kBytes);
  static_assert(kHalfVectors <= sizeof kHalves / sizeof *kHalves);
  const bool wide = a.element == Element::kInt16;
  const PixelTiles tiles(a.out, wide ? kHalfVectors : kByteVectors);
  const int64_t blocks = (a.outputs + kQuantizedOutputs - 1) / kQuantizedOutputs;
  for (int64_t i = 0; i < tiles.tiles; ++i) {
    const PixelTile tile = tiles[i];
    const QuantizedTile run = (wide ? kHalves : kBytes)[tile.vectors - 1];
    for (int64_t b = 0; b < blocks; ++b) run(a, b, tile);
  }
}
