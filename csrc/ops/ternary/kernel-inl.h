// SPDX-License-Identifier: Apache-2.0
// V vectors of pixels of one output stay in registers while the part of its lists in one block of inputs is
// walked.

template <int V, class Index>
inline void lists_block(const TernaryListsRun& a, const Index* index, int64_t i, int block, PixelTile tile) {
  const float* x = a.x + tile.first;
  const uint32_t* cut = a.cuts + 2 * (i * (a.blocks + 1) + block);
  float* partial = a.partial + i * V * kLanes;
  Vec acc[V];
  for (int v = 0; v < V; ++v) acc[v] = block == 0 ? Vec{} : load(partial + v * kLanes);
  for (uint32_t j = cut[0]; j < cut[2]; ++j) {
    const float* pixels = x + a.offset[index[j]];
    for (int v = 0; v < V - 1; ++v) acc[v] += load(pixels + v * kLanes);
    acc[V - 1] += load(pixels + tile.last);
  }
  for (uint32_t j = cut[1]; j < cut[3]; ++j) {
    const float* pixels = x + a.offset[index[j]];
    for (int v = 0; v < V - 1; ++v) acc[v] -= load(pixels + v * kLanes);
    acc[V - 1] -= load(pixels + tile.last);
  }
  if (block + 1 < a.blocks) {
    for (int v = 0; v < V; ++v) store(partial + v * kLanes, acc[v]);
  } else {
    finish_tile<V>(acc, tile, a.out, i);
  }
}

template <int V>
void lists_tile(const TernaryListsRun& a, PixelTile tile) {
  for (int block = 0; block < a.blocks; ++block) {
    if (a.index != nullptr) {
      for (int64_t i = 0; i < a.outputs; ++i) lists_block<V>(a, a.index, i, block, tile);
    } else {
      for (int64_t i = 0; i < a.outputs; ++i) lists_block<V>(a, a.wide_index, i, block, tile);
    }
  }
}

void ternary_lists(const TernaryListsRun& a) {
  static constexpr void (*kOfVectors[])(const TernaryListsRun&, PixelTile) = {
      lists_tile<1>,  lists_tile<2>,  lists_tile<3>,  lists_tile<4>,  lists_tile<5>,  lists_tile<6>,
      lists_tile<7>,  lists_tile<8>,  lists_tile<9>,  lists_tile<10>, lists_tile<11>, lists_tile<12>,
      lists_tile<13>, lists_tile<14>, lists_tile<15>, lists_tile<16>};
  static_assert(kListVectors <= sizeof kOfVectors / sizeof *kOfVectors);
  const PixelTiles tiles(a.out, a.vectors < kListVectors ? a.vectors : kListVectors);
  for (int64_t i = 0; i < tiles.tiles; ++i) {
    const PixelTile tile = tiles[i];
    kOfVectors[tile.vectors - 1](a, tile);
  }
}
