// SPDX-License-Identifier: Apache-2.0
// Rows first, along whole lines of words; then columns, at every place, of which those of the stride stay.

template <class Parts>
inline IntVec larger_parts(IntVec a, IntVec b) {
  const Parts x = (Parts)a, y = (Parts)b;
  return (IntVec)(x > y ? x : y);
}

// One line of results: rows [first, end) of x, whose padding stands in `line` and is less than everything.
template <class Parts>
inline void max_pool_line_of(const QuantizedMaxPool& a, const float* x, int first, int end, float* line,
                             float* across, IntVec nothing) {
  const Window& w = a.window;
  float* inside = line + w.left;
  for (int p = 0; p < a.width; p += kLanes) {
    // The last vector ends with the line; only one shorter than a vector is read past its end.
    const int place = p + kLanes > a.width && a.width >= kLanes ? a.width - kLanes : p;
    IntVec most = nothing;
    for (int row = first; row < end; ++row) {
      most = larger_parts<Parts>(most, load_words(x + static_cast<int64_t>(row) * a.x_pitch + place));
    }
    store_words(inside + place, most);
  }
  store_words(inside + a.width, nothing);
  const int places = (w.out[1] - 1) * w.stride[1] + 1;
  for (int p = 0; p < places; p += kLanes) {
    IntVec most = load_words(line + p);
    for (int k = 1; k < w.kernel[1]; ++k) most = larger_parts<Parts>(most, load_words(line + p + k));
    store_words(across + p, most);
  }
}

template <class Parts>
void max_pool_planes(const QuantizedMaxPool& a, IntVec nothing) {
  const Window& w = a.window;
  const int64_t words = max_pool_line(w, a.width);
  float *line = a.work, *across = a.work + words;
  for (int64_t p = 0; p + kLanes <= words; p += kLanes) store_words(line + p, nothing);
  store_words(line + words - kLanes, nothing);
  for (int64_t c = 0; c < a.planes; ++c) {
    for (int i = 0; i < w.out[0]; ++i) {
      const int top = i * w.stride[0] - w.top;
      const int first = top > 0 ? top : 0, end = top + w.kernel[0] < a.height ? top + w.kernel[0] : a.height;
      max_pool_line_of<Parts>(a, a.x + c * a.x_stride, first, end, line, across, nothing);
      float* y = a.y + c * a.y_stride + static_cast<int64_t>(i) * a.y_pitch;
      for (int j = 0; j < w.out[1]; ++j) y[j] = across[j * w.stride[1]];
    }
  }
}

void quantized_max_pool(const QuantizedMaxPool& a) {
  if (a.element == Element::kUint8) {
    max_pool_planes<ByteVec>(a, IntVec{});
  } else {
    max_pool_planes<ShortVec>(a, splat_words(static_cast<int32_t>(0x80008000u)));
  }
}
