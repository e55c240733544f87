// SPDX-License-Identifier: Apache-2.0
// How kernels whose lanes are pixels walk them: in tiles of whole vectors. The last vector of the last tile
// starts where it ends with the last pixel, over pixels that the one before it computes too, so nothing is
// masked; only an image smaller than one vector is read past its end.

struct PixelTile {
  int64_t first;  // pixel of the tile's first lane
  int last;       // offset of the tile's last vector, at most (vectors - 1) * kLanes
  int vectors;

  int offset(int v) const { return v == vectors - 1 ? last : v * kLanes; }
};

struct PixelTiles {
  int64_t pixels;
  int64_t tiles, vectors;

  PixelTiles(const PlaneOutput& out, int most)
      : pixels(static_cast<int64_t>(out.rows - 1) * out.pitch + out.width),
        tiles(0),
        vectors((pixels + kLanes - 1) / kLanes) {
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

// Copies the pixels of a tile between planes with rows of y_pitch and a buffer with rows of pitch.
template <bool kStore, class Float>
inline void copy_rows(Float* plane, float* buffer, PixelTile tile, const PlaneOutput& out) {
  int64_t row = tile.first / out.pitch;
  const int64_t end = tile.first + tile.last + kLanes;
  for (int64_t start = row * out.pitch; row < out.rows && start < end; ++row, start += out.pitch) {
    const int64_t from = start > tile.first ? start : tile.first;
    const int64_t to = start + out.width < end ? start + out.width : end;
    Float* line = plane + row * out.y_pitch - start;
    for (int64_t p = from; p < to; ++p) {
      if constexpr (kStore) {
        line[p] = buffer[p - tile.first];
      } else {
        buffer[p - tile.first] = line[p];
      }
    }
  }
}

// Epilogue and store of V vectors of pixels of active output i.
template <int V>
inline void finish_tile(Vec (&values)[V], PixelTile tile, const PlaneOutput& out, int64_t i) {
  const Epilogue& e = out.epilogue;
  const Vec scale = splat(e.scale != nullptr ? e.scale[i] : 1.f);
  const Vec shift = splat(e.shift != nullptr ? e.shift[i] : 0.f);
  for (int v = 0; v < V; ++v) values[v] = values[v] * scale + shift;
  tile.vectors = V;
  // Rows that lie in y as they are computed are stored at once, unless a vector would go past the last of
  // them.
  const bool whole =
      out.pitch == out.y_pitch && static_cast<int64_t>(out.rows - 1) * out.pitch + out.width >= kLanes;
  float buffer[V * kLanes];
  if (e.residual != nullptr) {
    const float* residual = e.residual + i * e.residual_stride;
    const float* from = residual + tile.first;
    if (!whole) {
      for (int v = 0; v < V; ++v) store(buffer + v * kLanes, Vec{});
      copy_rows<false>(residual, buffer, tile, out);
      from = buffer;
    }
    const Vec weight = splat(e.residual_scale != nullptr ? e.residual_scale[i] : 1.f);
    for (int v = 0; v < V; ++v) values[v] += load(from + tile.offset(v)) * weight;
  }
  activate<V>(values, e);
  float* y = out.y + i * out.stride;
  if (!whole) {
    for (int v = 0; v < V; ++v) store(buffer + tile.offset(v), values[v]);
    copy_rows<true>(y, buffer, tile, out);
  } else if (out.mask == nullptr) {
    for (int v = 0; v < V; ++v) store(y + tile.first + tile.offset(v), values[v]);
  } else {
    for (int v = 0; v < V; ++v) {
      const int64_t p = tile.first + tile.offset(v);
      store(y + p, keep(values[v], out.mask + p));
    }
  }
}
