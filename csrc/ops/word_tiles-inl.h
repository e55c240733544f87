// SPDX-License-Identifier: Apache-2.0
// Tiles of planes of words: reading and writing them as pixel_tiles-inl.h does with floats.

// Where V vectors of a tile are, in the plane itself or, if its rows do not lie there as they are computed,
// in a buffer.
template <int V>
struct TileBuffer {
  float words[V * kLanes];

  const float* read(const float* plane, PixelTile tile, const PlaneOutput& out) {
    if (lies_whole(out)) return plane + tile.first;
    for (int v = 0; v < V; ++v) store(words + v * kLanes, Vec{});
    copy_rows<false>(plane, words, tile, out);
    return words;
  }

  float* write(float* plane, PixelTile tile, const PlaneOutput& out) {
    return lies_whole(out) ? plane + tile.first : words;
  }

  void written(float* plane, PixelTile tile, const PlaneOutput& out) {
    if (!lies_whole(out)) copy_rows<true>(plane, words, tile, out);
  }

  // Whether the rows lie in the plane as they are computed, and no vector goes past the last of them.
  static bool lies_whole(const PlaneOutput& out) {
    return out.pitch == out.y_pitch && static_cast<int64_t>(out.rows - 1) * out.pitch + out.width >= kLanes;
  }
};

// What lies between rows, of V vectors of a tile that is stored.
template <int V>
struct Between {
  const int32_t* mask;
  IntVec fill;

  Between(PixelTile tile, const PlaneOutput& out, uint32_t word)
      : mask(out.mask != nullptr && TileBuffer<V>::lies_whole(out) ? out.mask + tile.first : nullptr),
        fill(splat_words(static_cast<int32_t>(word))) {}

  IntVec keep(IntVec words, int offset) const {
    if (mask == nullptr) return words;
    const IntVec inside = *reinterpret_cast<const UnalignedIntVec*>(mask + offset);
    return (words & inside) | (fill & ~inside);
  }
};
