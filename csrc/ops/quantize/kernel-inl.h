// SPDX-License-Identifier: Apache-2.0

template <int V>
inline void store_tile(const IntVec (&words)[V], float* plane, PixelTile tile, const PlaneOutput& out,
                       const Between<V>& between) {
  TileBuffer<V> buffer;
  float* y = buffer.write(plane, tile, out);
  for (int v = 0; v < V; ++v) store_words(y + tile.offset(v), between.keep(words[v], tile.offset(v)));
  buffer.written(plane, tile, out);
}

template <bool kWide, int V>
void quantize_tile(const Quantize& a, PixelTile tile) {
  constexpr int kPerWord = kWide ? 2 : 4;
  const Between<V> between(tile, a.out, a.fill);
  tile.vectors = V;
  const Vec low = splat(a.low), high = splat(a.high);
  const IntVec nothing = splat_words(static_cast<int32_t>(kWide ? 0 : a.fill & 255));
  for (int64_t c = 0; c < a.channels; c += kPerWord) {
    IntVec q[kPerWord][V], words[V];
    for (int i = 0; i < kPerWord; ++i) {
      if (c + i >= a.channels) {
        for (int v = 0; v < V; ++v) q[i][v] = nothing;
        continue;
      }
      const float* x = a.x + (c + i) * a.x_stride + tile.first;
      const Vec scale = splat(a.scale[c + i]), shift = splat(a.shift[c + i]);
      for (int v = 0; v < V; ++v) {
        q[i][v] = nearest(limit(in_register(load(x + tile.offset(v)) * scale) + shift, low, high));
      }
    }
    for (int v = 0; v < V; ++v) {
      if constexpr (kWide) {
        words[v] = pack_halves(q[0][v], q[1][v]);
      } else {
        words[v] = pack_bytes(q[0][v], q[1][v], q[2][v], q[3][v]);
      }
    }
    store_tile<V>(words, a.out.y + c / kPerWord * a.out.stride, tile, a.out, between);
  }
}

template <bool kWide, int V>
void dequantize_tile(const Dequantize& a, PixelTile tile) {
  constexpr int kPerWord = kWide ? 2 : 4;
  const Between<V> between(tile, a.out, 0);
  tile.vectors = V;
  for (int64_t c = 0; c < a.channels; ++c) {
    const float* x = a.x + c / kPerWord * a.x_stride + tile.first;
    const Vec scale = splat(a.scale[c]), shift = splat(a.shift[c]);
    const int part = static_cast<int>(c % kPerWord);
    IntVec values[V];
    for (int v = 0; v < V; ++v) {
      const IntVec words = load_words(x + tile.offset(v));
      const IntVec q = kWide ? half_of(words, part) : byte_of(words, part);
      values[v] = reinterpret_cast<IntVec>(in_register(to_float(q) * scale) + shift);
    }
    store_tile<V>(values, a.out.y + c * a.out.stride, tile, a.out, between);
  }
}

template <class Arguments>
void of_tiles(const Arguments& a, void (*const (&tile_of_vectors)[4])(const Arguments&, PixelTile)) {
  const PixelTiles tiles(a.out, 4);
  for (int64_t i = 0; i < tiles.tiles; ++i) {
    const PixelTile tile = tiles[i];
    tile_of_vectors[tile.vectors - 1](a, tile);
  }
}

void quantize(const Quantize& a) {
  static constexpr void (*kBytes[])(const Quantize&, PixelTile) = {
      quantize_tile<false, 1>, quantize_tile<false, 2>, quantize_tile<false, 3>, quantize_tile<false, 4>};
  static constexpr void (*kHalves[])(const Quantize&, PixelTile) = {
      quantize_tile<true, 1>, quantize_tile<true, 2>, quantize_tile<true, 3>, quantize_tile<true, 4>};
  of_tiles(a, a.element == Element::kInt16 ? kHalves : kBytes);
}

void dequantize(const Dequantize& a) {
  static constexpr void (*kBytes[])(const Dequantize&, PixelTile) = {
      dequantize_tile<false, 1>, dequantize_tile<false, 2>, dequantize_tile<false, 3>,
      dequantize_tile<false, 4>};
  static constexpr void (*kHalves[])(const Dequantize&, PixelTile) = {
      dequantize_tile<true, 1>, dequantize_tile<true, 2>, dequantize_tile<true, 3>, dequantize_tile<true, 4>};
  of_tiles(a, a.element == Element::kInt16 ? kHalves : kBytes);
}
