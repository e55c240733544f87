// SPDX-License-Identifier: Apache-2.0
// O output channels by V vectors of pixels stay in registers over the whole reduction.

template <int O, int V, bool kOneTap>
inline void conv_tile(const SlicedConv2d& a, int64_t first_output, PixelTile tile) {
  const float* weight[O];
  Vec acc[O][V];
  for (int o = 0; o < O; ++o) {
    int64_t i = first_output + o;
    int64_t out = a.out_index != nullptr ? a.out_index[i] : a.out_first + i;
    weight[o] = a.weight + out * a.weight_out;
    for (int v = 0; v < V; ++v) acc[o][v] = Vec{};
  }
  const float* plane = a.x + tile.first;
  const int taps = kOneTap ? 1 : a.taps;
  for (int64_t c = 0; c < a.channels; ++c, plane += a.channel_stride) {
    int64_t w = (a.in_index != nullptr ? a.in_index[c] : c) * a.weight_in;
    for (int t = 0; t < taps; ++t, w += a.weight_tap) {
      const float* pixels = plane + a.tap_offset[t];
      Vec x[V];
      for (int v = 0; v < V - 1; ++v) x[v] = load(pixels + v * kLanes);
      x[V - 1] = load(pixels + tile.last);
      for (int o = 0; o < O; ++o) {
        Vec s = splat(weight[o][w]);
        for (int v = 0; v < V; ++v) acc[o][v] += s * x[v];
      }
    }
  }
  for (int o = 0; o < O; ++o) finish_tile<V>(acc[o], tile, a.out, first_output + o);
}

template <int O, int V>
void conv_outputs(const SlicedConv2d& a, int64_t first_output, PixelTile tile) {
  if (a.taps == 1) {
    conv_tile<O, V, true>(a, first_output, tile);
  } else {
    conv_tile<O, V, false>(a, first_output, tile);
  }
}

using ConvTile = void (*)(const SlicedConv2d&, int64_t, PixelTile);

// The tile of `outputs` channels and V vectors; only sizes up to kOutputs are asked for.
template <int V>
ConvTile conv_tile_of(int64_t outputs) {
  static constexpr ConvTile kTiles[] = {conv_outputs<1, V>, conv_outputs<2, V>, conv_outputs<3, V>,
                                        conv_outputs<4, V>, conv_outputs<5, V>, conv_outputs<6, V>};
  static_assert(kOutputs <= sizeof kTiles / sizeof *kTiles);
  return kTiles[outputs - 1];
}

void sliced_conv2d(const SlicedConv2d& a) {
  static constexpr ConvTile (*kOfVectors[])(int64_t) = {conv_tile_of<1>, conv_tile_of<2>, conv_tile_of<3>,
                                                        conv_tile_of<4>};
  static_assert(kVectors <= sizeof kOfVectors / sizeof *kOfVectors);
  const PixelTiles tiles(a.out, kVectors);
  const int64_t blocks = (a.outputs + kOutputs - 1) / kOutputs;
  // Pixels outside, outputs inside: the inputs of a tile stay in the first-level cache while the weights
  // stream by.
  for (int64_t i = 0; i < tiles.tiles; ++i) {
    const PixelTile tile = tiles[i];
    for (int64_t b = 0; b < blocks; ++b) {
      int64_t begin = b * a.outputs / blocks, end = (b + 1) * a.outputs / blocks;
      kOfVectors[tile.vectors - 1](end - begin)(a, begin, tile);
    }
  }
}
