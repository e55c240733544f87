// SPDX-License-Identifier: Apache-2.0

// kLanes bytes as words.
inline IntVec load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  return (IntVec)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  return (IntVec)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  IntVec v;
  for (int i = 0; i < kLanes; ++i) v[i] = p[i];
  return v;
#endif
}

// The first `count` lanes of q, as bytes, to all copies of a pixel.
inline void put_bytes(const ByteRow& out, int64_t pixel, int64_t channel, IntVec q, int64_t count) {
  uint8_t* y = out.y + pixel * out.pixel + channel;
  if (count >= kLanes) {
    for (int i = 0; i < out.count; ++i) store_low_bytes(reinterpret_cast<int8_t*>(y + out.copies[i]), q);
    return;
  }
  int8_t bytes[kLanes];
  store_low_bytes(bytes, q);
  for (int i = 0; i < out.count; ++i) {
    for (int64_t j = 0; j < count; ++j) y[out.copies[i] + j] = static_cast<uint8_t>(bytes[j]);
  }
}

// What is the same for all pixels of kLanes outputs from `first` on. Kept apart from the arguments, which any
// store of bytes might change as far as the compiler knows.
template <bool kResidual>
struct ByteEnds {
  Vec scale, shift, residual_scale, low, high;
  const uint8_t* residual;
  int64_t residual_pixel;

  ByteEnds(const TernaryBytes& a, int64_t pixel, int64_t first)
      : scale(load(a.epilogue.scale + first)),
        shift(load(a.epilogue.shift + first)),
        low(splat(a.epilogue.low)),
        high(splat(a.epilogue.high)),
        residual_pixel(a.residual_pixel) {
    if constexpr (kResidual) {
      residual_scale = load(a.epilogue.residual_scale + first);
      residual = a.residual + pixel * residual_pixel + first;
    }
  }
  Vec value(IntVec sum, int r) const {
    Vec y = in_register(to_float(sum) * scale) + shift;
    if constexpr (kResidual)
      y += in_register(to_float(load_bytes(residual + r * residual_pixel)) * residual_scale);
    return y;
  }
  IntVec integers(IntVec sum, int r) const { return nearest(limit(value(sum, r), low, high)); }
};

inline IntVec lanes_from(const Words16& sum, int first) {
  IntVec words;
  __builtin_memcpy(&words, reinterpret_cast<const char*>(&sum) + first * 4, sizeof words);
  return words;
}

// The results of 16 outputs from `output` on, for R pixels.
template <bool kResidual, int R>
inline void finish_bytes(const TernaryBytes& a, int64_t pixel, int64_t output, const Words16 (&sum)[R]) {
  for (int l = 0; l < kByteGroup; l += kLanes) {
    const int64_t first = output + l, left = a.outputs - first;
    if (left <= 0) return;
    const ByteEnds<kResidual> ends(a, pixel, first);
    if (a.out.count == 3 && left >= kLanes) {
      const int64_t step = a.out.pixel, second = a.out.copies[1] - a.out.copies[0];
      const int64_t third = a.out.copies[2] - a.out.copies[0];
      auto* y = reinterpret_cast<int8_t*>(a.out.y + pixel * step + first + a.out.copies[0]);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r, y += step) {
        const IntVec q = ends.integers(lanes_from(sum[r], l), r);
        store_low_bytes(y, q);
        store_low_bytes(y + second, q);
        store_low_bytes(y + third, q);
      }
    } else if (a.out.count == 1 && left >= kLanes) {
      const int64_t step = a.out.pixel;
      auto* y = reinterpret_cast<int8_t*>(a.out.y + pixel * step + first + a.out.copies[0]);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r, y += step) store_low_bytes(y, ends.integers(lanes_from(sum[r], l), r));
    } else if (a.out.count > 0) {
      for (int r = 0; r < R; ++r)
        put_bytes(a.out, pixel + r, first, ends.integers(lanes_from(sum[r], l), r), left);
    } else {
      for (int r = 0; r < R; ++r) {
        Vec values[1] = {ends.value(lanes_from(sum[r], l), r)};
        activate<1>(values, a.epilogue);
        for (int i = 0; i < kLanes && i < left; ++i)
          a.planes[(first + i) * a.plane_stride + pixel + r] = values[0][i];
      }
    }
  }
}

// R pixels side by side, windows of N steps.
template <int R, int N>
void bytes_of_pixels(const TernaryBytes& a, int64_t pixel) {
  const uint8_t* x = a.x + pixel * a.x_step;
  const int64_t step = a.x_step;
  uint32_t w = a.begin[0];
  for (int64_t g = 0; g < a.groups; ++g) {
    Words16 sum[R];
    for (Words16& total : sum) total = *reinterpret_cast<const UnalignedWords16*>(a.start + g * kByteGroup);
    Words16 second[R] = {};  // a chain of its own
    for (const uint32_t end = a.begin[g + 1]; w < end; ++w) {
      const uint8_t* index = a.index + int64_t{w} * (64 * N);
      const uint8_t *low = x + a.window[2 * w], *high = x + a.window[2 * w + 1];
      const WindowIndex first(index);
      if constexpr (N == 1) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) add_window(sum[r], first, low + r * step, high + r * step);
      } else {
        const WindowIndex other(index + 64);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          add_window(sum[r], first, second[r], other, low + r * step, high + r * step);
      }
    }
    if constexpr (N > 1) {
      for (int r = 0; r < R; ++r) sum[r] += second[r];
    }
    if (a.residual != nullptr) {
      finish_bytes<true, R>(a, pixel, g * kByteGroup, sum);
    } else {
      finish_bytes<false, R>(a, pixel, g * kByteGroup, sum);
    }
  }
}

template <int N>
void bytes_of_row(const TernaryBytes& a) {
  int64_t p = 0;
  for (; p + 8 <= a.pixels; p += 8) bytes_of_pixels<8, N>(a, p);
  for (; p + 4 <= a.pixels; p += 4) bytes_of_pixels<4, N>(a, p);
  for (; p < a.pixels; ++p) bytes_of_pixels<1, N>(a, p);
}

void ternary_bytes(const TernaryBytes& a) { a.together == 1 ? bytes_of_row<1>(a) : bytes_of_row<2>(a); }

// Up to kLanes floats; the others are 0.
inline Vec load_up_to(const float* p, int64_t count) {
  if (count >= kLanes) return load(p);
  Vec v = {};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}

void bytes_of_planes(const BytesOfPlanes& a) {
  // Squares of kLanes channels by as many pixels.
  for (int64_t c = 0; c < a.channels; c += kLanes) {
    const int64_t channels = a.channels - c;
    const Vec scale = load_up_to(a.scale + c, channels), shift = load_up_to(a.shift + c, channels);
    for (int64_t p = 0; p < a.pixels; p += kLanes) {
      const int64_t pixels = a.pixels - p;
      Vec square[kLanes] = {};
      for (int64_t i = 0; i < kLanes && i < channels; ++i)
        square[i] = load_up_to(a.x + (c + i) * a.channel_stride + p, pixels);
      transpose_square(square);
      for (int64_t i = 0; i < kLanes && i < pixels; ++i) {
        const Vec value = in_register(square[i] * scale) + shift;
        put_bytes(a.out, p + i, c, nearest(limit(value, splat(a.low), splat(a.high))), channels);
      }
    }
  }
}

void planes_of_bytes(const PlanesOfBytes& a) {
  for (int64_t c = 0; c < a.channels; c += kLanes) {
    const int64_t channels = a.channels - c;
    const Vec scale = load_up_to(a.scale + c, channels), shift = load_up_to(a.shift + c, channels);
    for (int64_t p = 0; p < a.pixels; p += kLanes) {
      const int64_t pixels = a.pixels - p;
      Vec square[kLanes] = {};
      for (int64_t i = 0; i < kLanes && i < pixels; ++i)
        square[i] = in_register(to_float(load_bytes(a.x + (p + i) * a.pixel + c)) * scale) + shift;
      transpose_square(square);
      for (int64_t i = 0; i < kLanes && i < channels; ++i) {
        float* y = a.y + (c + i) * a.channel_stride + p;
        if (pixels >= kLanes) {
          store(y, square[i]);
        } else {
          for (int64_t l = 0; l < pixels; ++l) y[l] = square[i][l];
        }
      }
    }
  }
}
