// SPDX-License-Identifier: Apache-2.0
// V vectors of pixels of one output stay in registers while its two lists are walked; every nonzero is one
// add per vector.

template <int V, class Index>
inline void lists_output(const TernaryListsRun& a, const Index* index, int64_t i, PixelTile tile) {
  Vec acc[V] = {};
  const float* x = a.x + tile.first;
  const TernaryBounds bounds = a.bounds[i];
  for (int64_t j = bounds.plus; j < bounds.minus; ++j) {
    const float* pixels = x + a.offset[index[j]];
    for (int v = 0; v < V - 1; ++v) acc[v] += load(pixels + v * kLanes);
    acc[V - 1] += load(pixels + tile.last);
  }
  for (int64_t j = bounds.minus; j < bounds.end; ++j) {
    const float* pixels = x + a.offset[index[j]];
    for (int v = 0; v < V - 1; ++v) acc[v] -= load(pixels + v * kLanes);
    acc[V - 1] -= load(pixels + tile.last);
  }
  finish_tile<V>(acc, tile, a.out, i);
}

template <int V>
void lists_tile(const TernaryListsRun& a, PixelTile tile) {
  if (a.index != nullptr) {
    for (int64_t i = 0; i < a.outputs; ++i) lists_output<V>(a, a.index, i, tile);
  } else {
    for (int64_t i = 0; i < a.outputs; ++i) lists_output<V>(a, a.wide_index, i, tile);
  }
}

void ternary_lists(const TernaryListsRun& a) {
  static constexpr void (*kOfVectors[])(const TernaryListsRun&, PixelTile) = {
      lists_tile<1>,  lists_tile<2>,  lists_tile<3>,  lists_tile<4>,  lists_tile<5>,  lists_tile<6>,
      lists_tile<7>,  lists_tile<8>,  lists_tile<9>,  lists_tile<10>, lists_tile<11>, lists_tile<12>,
      lists_tile<13>, lists_tile<14>, lists_tile<15>, lists_tile<16>};
  static_assert(kListVectors <= sizeof kOfVectors / sizeof *kOfVectors);
  const PixelTiles tiles(a.out, kListVectors);
  for (int64_t i = 0; i < tiles.tiles; ++i) {
    const PixelTile tile = tiles[i];
    kOfVectors[tile.vectors - 1](a, tile);
  }
}
