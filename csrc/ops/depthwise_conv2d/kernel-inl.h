// SPDX-License-Identifier: Apache-2.0
// R rows by one vector of results stay in registers while the rows of the input that they share pass by once.

constexpr int kDepthwiseRows = kRegisters >= 32 ? 8 : 4;

// The next row. The compiler would else keep a pointer for every row, more than there are registers.
template <class Float>
ALWAYS_INLINE Float* next_row(Float* row, int64_t pitch) {
  row += pitch;
  __asm__("" : "+r"(row));
  return row;
}

// Input vectors under KW taps side by side, for results S apart.
template <int KW, int S>
ALWAYS_INLINE void depthwise_load(const float* x, Vec (&v)[KW]) {
  if constexpr (S == 1) {
    for (int j = 0; j < KW; ++j) v[j] = load_once(x + j);
  } else {
    const Vec a = load_once(x), b = load_once(x + kLanes);
    v[0] = even_lanes(a, b);
    if constexpr (KW > 1) v[1] = odd_lanes(a, b);
    for (int j = 2; j < KW; ++j) v[j] = shift_in(v[j - 2], x[2 * kLanes + j - 2]);
  }
}

// A kernel of KH x KW taps side by side, and stride S both ways.
template <int KH, int KW, int S>
struct FixedTaps {
  const int64_t x_pitch;
  Vec weight[KH * KW];

  FixedTaps(const DepthwiseConv2d& a, const float* w) : x_pitch(a.x_pitch) {
#pragma GCC unroll 32
    for (int t = 0; t < KH * KW; ++t) weight[t] = splat(w[t * a.weight_tap]);
  }

  template <int R>
  ALWAYS_INLINE void sums(const float* x, Vec (&acc)[R]) const {
    for (int r = 0; r < R; ++r) acc[r] = Vec{};
#pragma GCC unroll 32
    for (int i = 0; i < (R - 1) * S + KH; ++i, x = next_row(x, x_pitch)) {
      Vec v[KW];
      depthwise_load<KW, S>(x, v);
#pragma GCC unroll 8
      for (int j = 0; j < KW; ++j) {
#pragma GCC unroll 8
        for (int k = 0; k < KH; ++k) {
          const int r = (i - k) / S;
          if (i >= k && (i - k) % S == 0 && r < R) acc[r] += weight[k * KW + j] * v[j];
        }
      }
    }
  }
};

// Any kernel and dilation, any vertical stride, horizontal stride S.
template <int S>
struct AnyTaps {
  const DepthwiseConv2d& a;
  const float* weight;

  AnyTaps(const DepthwiseConv2d& a, const float* w) : a(a), weight(w) {}

  template <int R>
  ALWAYS_INLINE void sums(const float* x, Vec (&acc)[R]) const {
    for (int r = 0; r < R; ++r) acc[r] = Vec{};
    const int64_t down = static_cast<int64_t>(a.stride[0]) * a.x_pitch;
    const float* w = weight;
    for (int k = 0; k < a.kernel[0]; ++k) {
      const float* row = x + static_cast<int64_t>(k) * a.dilation[0] * a.x_pitch;
      for (int j = 0; j < a.kernel[1]; ++j, w += a.weight_tap) {
        const Vec s = splat(*w);
        for (int r = 0; r < R; ++r) {
          Vec v[1];
          depthwise_load<1, S>(row + r * down + j * a.dilation[1], v);
          acc[r] += s * v[0];
        }
      }
    }
  }
};

// The epilogue of one channel. `start` is where the first of R rows lies within a plane.
struct ChannelEpilogue {
  const Epilogue e;
  const Vec scale, shift, weight;
  const float* residual;
  const int64_t pitch;

  ChannelEpilogue(const PlaneOutput& out, int64_t i)
      : e(out.epilogue),
        scale(splat(e.scale != nullptr ? e.scale[i] : 1.f)),
        shift(splat(e.shift != nullptr ? e.shift[i] : 0.f)),
        weight(splat(e.residual_scale != nullptr ? e.residual_scale[i] : 1.f)),
        residual(e.residual == nullptr ? nullptr : e.residual + i * e.residual_stride),
        pitch(out.y_pitch) {}

  template <int R>
  ALWAYS_INLINE void apply(Vec (&acc)[R], int64_t start) const {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r] = acc[r] * scale + shift;
    if (residual != nullptr) {
      const float* row = residual + start;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r, row = next_row(row, pitch)) acc[r] += load(row) * weight;
    }
    activate<R>(acc, e);
  }
};

// One channel of at least kLanes columns, R rows at a time. The last vector of a row ends with it, and the
// last rows end with the image, over pixels that those before them compute too.
template <class Taps, int R>
void depthwise_channel(const DepthwiseConv2d& a, const float* x, const float* weight, int64_t i) {
  const Taps taps(a, weight);
  const ChannelEpilogue epilogue(a.out, i);
  const int width = a.out.width, rows = a.out.rows;
  const int64_t pitch = a.out.y_pitch, down = static_cast<int64_t>(a.stride[0]) * a.x_pitch,
                right = a.stride[1];
  float* y = a.out.y + i * a.out.stride;
  for (int block = 0; block < rows; block += R) {
    const int row = block + R > rows ? rows - R : block;
    for (int column = 0; column < width; column += kLanes) {
      const int at = column + kLanes > width ? width - kLanes : column;
      Vec acc[R];
      taps.template sums<R>(x + row * down + at * right, acc);
      epilogue.apply<R>(acc, row * pitch + at);
      float* to = y + row * pitch + at;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r, to = next_row(to, pitch)) store(to, acc[r]);
    }
  }
}

// One channel of fewer columns. Lanes past its width become zeros, over what the next rows write after it;
// the pixels alone are written where there is no next row.
template <class Taps, int R>
void depthwise_narrow_channel(const DepthwiseConv2d& a, const float* x, const float* weight, int64_t i) {
  const Taps taps(a, weight);
  const ChannelEpilogue epilogue(a.out, i);
  const int width = a.out.width, rows = a.out.rows;
  const int64_t pitch = a.out.y_pitch, down = static_cast<int64_t>(a.stride[0]) * a.x_pitch;
  const int64_t end = (rows - 1) * pitch + width;
  float* y = a.out.y + i * a.out.stride;
  for (int block = 0; block < rows; block += R) {
    const int row = block + R > rows ? rows - R : block;
    Vec acc[R];
    taps.template sums<R>(x + row * down, acc);
    epilogue.apply<R>(acc, row * pitch);
    int64_t at = row * pitch;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r, at += pitch) {
      if (at + kLanes <= end) {
        store(y + at, first_lanes(acc[r], width));
      } else {
        store_first(y + at, acc[r], width);
      }
    }
  }
}

template <class Taps, bool kNarrow, int R>
void depthwise_channels(const DepthwiseConv2d& a) {
  for (int64_t c = 0; c < a.channels; ++c) {
    const int64_t filter = (a.index != nullptr ? a.index[c] : a.first + c) * a.multiplier;
    for (int64_t m = 0; m < a.multiplier; ++m) {
      const float *x = a.x + c * a.x_stride, *weight = a.weight + (filter + m) * a.weight_out;
      if constexpr (kNarrow) {
        depthwise_narrow_channel<Taps, R>(a, x, weight, c * a.multiplier + m);
      } else {
        depthwise_channel<Taps, R>(a, x, weight, c * a.multiplier + m);
      }
    }
  }
}

template <class Taps, bool kNarrow, int R>
constexpr auto depthwise_of_rows() {
  if constexpr (R <= kDepthwiseRows) {
    return depthwise_channels<Taps, kNarrow, R>;
  } else {
    return nullptr;
  }
}

template <class Taps, bool kNarrow>
void depthwise_planes(const DepthwiseConv2d& a) {
  static constexpr void (*kOfRows[])(const DepthwiseConv2d&) = {
      depthwise_of_rows<Taps, kNarrow, 1>(), depthwise_of_rows<Taps, kNarrow, 2>(),
      depthwise_of_rows<Taps, kNarrow, 3>(), depthwise_of_rows<Taps, kNarrow, 4>(),
      depthwise_of_rows<Taps, kNarrow, 5>(), depthwise_of_rows<Taps, kNarrow, 6>(),
      depthwise_of_rows<Taps, kNarrow, 7>(), depthwise_of_rows<Taps, kNarrow, 8>()};
  static_assert(kDepthwiseRows <= sizeof kOfRows / sizeof *kOfRows);
  // As few blocks of rows as can be, of as few rows as they can do with.
  const int blocks = (a.out.rows + kDepthwiseRows - 1) / kDepthwiseRows;
  kOfRows[(a.out.rows + blocks - 1) / blocks - 1](a);
}

template <class Taps>
void depthwise_taps(const DepthwiseConv2d& a) {
  return a.out.width < kLanes ? depthwise_planes<Taps, true>(a) : depthwise_planes<Taps, false>(a);
}

void depthwise_conv2d(const DepthwiseConv2d& a) {
  const int k = a.kernel[0], s = a.stride[1];
  const bool square = k == a.kernel[1] && s == a.stride[0] && a.dilation[0] == 1 && a.dilation[1] == 1;
  if (square && k == 3)
    return s == 1 ? depthwise_taps<FixedTaps<3, 3, 1>>(a) : depthwise_taps<FixedTaps<3, 3, 2>>(a);
  if (square && k == 5)
    return s == 1 ? depthwise_taps<FixedTaps<5, 5, 1>>(a) : depthwise_taps<FixedTaps<5, 5, 2>>(a);
  return s == 1 ? depthwise_taps<AnyTaps<1>>(a) : depthwise_taps<AnyTaps<2>>(a);
}
