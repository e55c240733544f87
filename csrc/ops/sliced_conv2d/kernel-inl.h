// SPDX-License-Identifier: Apache-2.0
// O output channels by V vectors of pixels stay in registers over the whole reduction.

constexpr int kMostVectors = 8;

template <int O, int V, bool kOneTap>
inline void conv_tile(const SlicedConv2d& a, int64_t first_output, PixelTile tile) {
  const float* weight[O];
  Vec acc[O][V];
  for (int o = 0; o < O; ++o) {
    int64_t i = first_output + o;
    int64_t out = a.out_index != nullptr ? a.out_index[i] : a.out_first + i;
    weight[o] = a.weight + out / a.weight_block * a.weight_out + out % a.weight_block;
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

// Vectors of pixels in a tile of that many outputs: as many as the registers hold, with one for the weight.
constexpr int conv_vectors(int outputs) {
  const int most = (kRegisters - 1) / (outputs + 1);
  return most < kMostVectors ? most : kMostVectors;
}

using ConvTile = void (*)(const SlicedConv2d&, int64_t, PixelTile);

template <int O, int V>
constexpr ConvTile conv_tile_of() {
  if constexpr (O <= kOutputs && V <= conv_vectors(O)) {
    return conv_outputs<O, V>;
  } else {
    return nullptr;
  }
}

template <int V>
ConvTile conv_tile_for(int64_t outputs) {
  static constexpr ConvTile kTiles[] = {conv_tile_of<1, V>(), conv_tile_of<2, V>(), conv_tile_of<3, V>(),
                                        conv_tile_of<4, V>(), conv_tile_of<5, V>(), conv_tile_of<6, V>()};
  static_assert(kOutputs <= sizeof kTiles / sizeof *kTiles);
  return kTiles[outputs - 1];
}

// Into how many blocks the outputs are cut, evenly: as makes the fewest tiles, each of which has a start and
// an end to pay.
inline int64_t conv_blocks(int64_t outputs, int64_t vectors) {
  int64_t best = 0, fewest = 0;
  for (int size = kOutputs; size >= 1; --size) {
    const int64_t blocks = (outputs + size - 1) / size;
    const int most = conv_vectors(static_cast<int>((outputs + blocks - 1) / blocks));
    const int64_t tiles = blocks * ((vectors + most - 1) / most);
    if (best == 0 || tiles < fewest) {
      best = blocks;
      fewest = tiles;
    }
  }
  return best;
}

void sliced_conv2d(const SlicedConv2d& a) {
  static constexpr ConvTile (*kForVectors[])(int64_t) = {conv_tile_for<1>, conv_tile_for<2>, conv_tile_for<3>,
                                                         conv_tile_for<4>, conv_tile_for<5>, conv_tile_for<6>,
                                                         conv_tile_for<7>, conv_tile_for<8>};
  static_assert(kMostVectors <= sizeof kForVectors / sizeof *kForVectors);
  const int64_t blocks = conv_blocks(a.outputs, PixelTiles(a.out, 1).vectors);
  const PixelTiles tiles(a.out, conv_vectors(static_cast<int>((a.outputs + blocks - 1) / blocks)));
  // Pixels outside, outputs inside: the inputs of a tile stay in the first-level cache while the weights
  // stream by.
  for (int64_t i = 0; i < tiles.tiles; ++i) {
    const PixelTile tile = tiles[i];
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t begin = b * a.outputs / blocks, end = (b + 1) * a.outputs / blocks;
      kForVectors[tile.vectors - 1](end - begin)(a, begin, tile);
    }
  }
}
