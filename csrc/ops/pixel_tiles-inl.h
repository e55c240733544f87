// SPDX-License-Identifier: Apache-2.0
// How kernels whose lanes are pixels walk them: in tiles of whole vectors. The last vector of the last tile
// starts where it ends with the last pixel, over pixels that the one before it computes too, so nothing is
// masked; only an image smaller than one vector is read past its end.

struct PixelTile {
  int64_t first;  // pixel of the tile's first lane
  int last;       // offset of the tile's last vector, at most (vectors - 1) * kLanes
  int vectors;
};

struct PixelTiles {
  int64_t pixels;
  int64_t tiles, vectors;

  PixelTiles(int64_t pixels, int most) : pixels(pixels), tiles(0), vectors((pixels + kLanes - 1) / kLanes) {
    tiles = (vectors + most - 1) / most;
  }

  // The vectors are dealt out evenly: two tiles of 3 rather than one of 4 and one of 2.
  PixelTile operator[](int64_t i) const {
    int64_t begin = i * vectors / tiles, end = (i + 1) * vectors / tiles;
    int64_t first = begin * kLanes, last = (end - begin - 1) * kLanes;
    if (first + last + kLanes > pixels && pixels >= kLanes) last = pixels - kLanes - first;
    return {first, static_cast<int>(last), static_cast<int>(end - begin)};
  }
};

// Store the vectors of one output channel of a tile: rows of `width` results, `pitch` pixels apart in the
// tile.
template <int V>
inline void store_tile(const Vec (&values)[V], PixelTile tile, float* y, int rows, int width, int pitch) {
  if (width == pitch && static_cast<int64_t>(rows) * width >= kLanes) {
    for (int v = 0; v < V - 1; ++v) store(y + tile.first + v * kLanes, values[v]);
    store(y + tile.first + tile.last, values[V - 1]);
    return;
  }
  float buffer[V * kLanes];
  for (int v = 0; v < V - 1; ++v) store(buffer + v * kLanes, values[v]);
  store(buffer + tile.last, values[V - 1]);
  int64_t row = tile.first / pitch;
  int64_t end = tile.first + tile.last + kLanes;
  for (int64_t start = row * pitch; row < rows && start < end; ++row, start += pitch) {
    int64_t from = start > tile.first ? start : tile.first;
    int64_t to = start + width < end ? start + width : end;
    float* line = y + row * width - start;
    for (int64_t p = from; p < to; ++p) line[p] = buffer[p - tile.first];
  }
}
