// SPDX-License-Identifier: Apache-2.0

template <int V>
void pointwise_tile(const Pointwise& a, PixelTile tile) {
  for (int64_t i = 0; i < a.channels; ++i) {
    const float* x = a.x + i * a.x_stride + tile.first;
    Vec values[V];
    for (int v = 0; v < V; ++v) values[v] = load(x + tile.offset(v));
    finish_tile<V>(values, tile, a.out, i);
  }
}

void pointwise(const Pointwise& a) {
  static constexpr void (*kOfVectors[])(const Pointwise&, PixelTile) = {pointwise_tile<1>, pointwise_tile<2>,
                                                                        pointwise_tile<3>, pointwise_tile<4>};
  const PixelTiles tiles(a.out, 4);
  for (int64_t i = 0; i < tiles.tiles; ++i) {
    const PixelTile tile = tiles[i];
    kOfVectors[tile.vectors - 1](a, tile);
  }
}

void features(const Features& a) {
  const Epilogue& e = a.epilogue;
  for (int64_t i = 0; i < a.count; i += kLanes) {
    const int64_t rest = a.count - i < kLanes ? a.count - i : kLanes;
    float part[kLanes];
    auto read = [&](const float* from, float otherwise) {
      if (from == nullptr) return splat(otherwise);
      if (rest == kLanes) return load(from + i);
      for (int64_t j = 0; j < rest; ++j) part[j] = from[i + j];
      for (int64_t j = rest; j < kLanes; ++j) part[j] = 0;
      return load(part);
    };
    Vec y[1] = {read(a.x, 0) * read(e.scale, 1) + read(e.shift, 0)};
    if (e.residual != nullptr) y[0] += read(e.residual, 0) * read(e.residual_scale, 1);
    activate<1>(y, e);
    if (rest == kLanes) {
      store(a.y + i, y[0]);
    } else {
      store(part, y[0]);
      for (int64_t j = 0; j < rest; ++j) a.y[i + j] = part[j];
    }
  }
}
