// SPDX-License-Identifier: Apache-2.0
// First down the columns, along whole lines of the image, then along the one line that is left.

template <bool kMaximum>
inline Vec pool_both(Vec a, Vec b) {
  if (!kMaximum) return a + b;
  const IntVec keep_a = (a > b) | (a != a);
  return keep_a ? a : b;
}

// kLanes neighbours of the line that are `stride` apart.
inline Vec pool_load(const float* line, int stride) {
  if (stride == 1) return load(line);
  if (stride == 2) return even_lanes(load(line), load(line + kLanes));
  Vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = line[i * stride];
  return v;
}

// The line of a row of results: its window's rows of the image as one, `first` to `end`.
template <bool kMaximum>
inline void pool_down(const Pool2d& a, const float* x, int first, int end, float* line) {
  for (int j = 0; j < a.width; j += kLanes) {
    Vec v = load(x + static_cast<int64_t>(first) * a.x_pitch + j);
    for (int i = first + 1; i < end; ++i) {
      v = pool_both<kMaximum>(v, load(x + static_cast<int64_t>(i) * a.x_pitch + j));
    }
    store_first(line + j, v, a.width - j < kLanes ? a.width - j : kLanes);
  }
}

template <bool kMaximum>
inline void pool_along(const Pool2d& a, const float* line, int rows, float* y) {
  const Window& w = a.window;
  for (int j = 0; j < w.out[1]; j += kLanes) {
    const float* from = line + static_cast<int64_t>(j) * w.stride[1];
    Vec v = pool_load(from, w.stride[1]);
    for (int k = 1; k < w.kernel[1]; ++k) v = pool_both<kMaximum>(v, pool_load(from + k, w.stride[1]));
    const int lanes = w.out[1] - j < kLanes ? w.out[1] - j : kLanes;
    if (!kMaximum) {
      Vec count = splat(static_cast<float>(w.kernel[0] * w.kernel[1]));
      for (int i = 0; i < lanes && !a.count_padding; ++i) {
        const int left = (j + i) * w.stride[1] - w.left, right = left + w.kernel[1];
        count[i] = static_cast<float>(rows * ((right < a.width ? right : a.width) - (left > 0 ? left : 0)));
      }
      v /= count;
    }
    store_first(y + j, v, lanes);
  }
}

template <bool kMaximum>
inline void pool_planes(const Pool2d& a) {
  const Window& w = a.window;
  const float nothing = kMaximum ? -__builtin_inff() : 0.f;
  const int64_t size = pool_line(w, a.width, kLanes);
  for (int64_t i = 0; i < size; ++i) a.work[i] = nothing;
  float* line = a.work + w.left;
  for (int64_t c = 0; c < a.channels; ++c) {
    for (int row = 0; row < w.out[0]; ++row) {
      const int top = row * w.stride[0] - w.top, bottom = top + w.kernel[0];
      const int first = top > 0 ? top : 0, end = bottom < a.height ? bottom : a.height;
      pool_down<kMaximum>(a, a.x + c * a.x_stride, first, end, line);
      pool_along<kMaximum>(a, a.work, end - first,
                           a.y + c * a.y_stride + static_cast<int64_t>(row) * a.y_pitch);
    }
  }
}

void pool2d(const Pool2d& a) {
  if (a.maximum) {
    pool_planes<true>(a);
  } else {
    pool_planes<false>(a);
  }
}
