// SPDX-License-Identifier: Apache-2.0
// Vectors of kLanes 32-bit words that hold bytes or half-words: dot products, rounding, packing. Every
// function gives the same bits under every instruction set.

#if defined(__AVX512VNNI__)
constexpr int kByteVectors = 6, kHalfVectors = 3;  // vectors of pixels in a tile of 4 outputs
#elif defined(__AVX512BW__)
constexpr int kByteVectors = 4, kHalfVectors = 3;
#else
constexpr int kByteVectors = 2, kHalfVectors = 1;
#endif

// The parts of as many words.
typedef uint8_t ByteVec __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef int16_t ShortVec __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint16_t UnsignedShortVec __attribute__((vector_size(kLanes * sizeof(int32_t))));

inline IntVec splat_words(int32_t s) { return s - IntVec{}; }
inline Vec to_float(IntVec v) { return __builtin_convertvector(v, Vec); }

// a0 b0 + a1 b1 of the signed half-words of each word.
inline IntVec dot_halves(IntVec a, IntVec b) {
#if defined(__AVX512BW__)
  return (IntVec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (IntVec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (IntVec)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

inline IntVec add_dot_halves(IntVec sum, IntVec a, IntVec b) {
#if defined(__AVX512VNNI__)
  return (IntVec)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#else
  return sum + dot_halves(a, b);
#endif
}

// Words of unsigned bytes (pixels) and of signed ones (weights), in the form that the dot product takes.
// Without VNNI that is two words of half-words: vpmaddubsw would saturate.
#if defined(__AVX512VNNI__)
struct ByteWords {
  IntVec words;
};
inline ByteWords unsigned_bytes(IntVec v) { return {v}; }
inline ByteWords signed_bytes(IntVec v) { return {v}; }
inline IntVec add_dot_bytes(IntVec sum, ByteWords x, ByteWords w) {
  return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x.words, (__m512i)w.words);
}
#else
struct ByteWords {
  IntVec even, odd;
};
inline ByteWords unsigned_bytes(IntVec v) { return {v & 0x00ff00ff, (IntVec)((UnsignedShortVec)v >> 8)}; }
inline ByteWords signed_bytes(IntVec v) {
  const ShortVec halves = (ShortVec)v;
  return {(IntVec)((ShortVec)(v << 8) >> 8), (IntVec)(halves >> 8)};
}
inline IntVec add_dot_bytes(IntVec sum, ByteWords x, ByteWords w) {
  return sum + dot_halves(x.even, w.even) + dot_halves(x.odd, w.odd);
}
#endif

// The nearest integers, ties to even; |v| < 2^22.
inline IntVec nearest(Vec v) {
#if defined(__AVX512F__)
  return (IntVec)_mm512_cvtps_epi32((__m512)v);
#elif defined(__AVX2__)
  return (IntVec)_mm256_cvtps_epi32((__m256)v);
#else
  return (IntVec)in_register(v + 12582912.f) - 0x4b400000;
#endif
}

// low where v is less or NaN, high where it is more.
inline Vec limit(Vec v, Vec low, Vec high) {
#if defined(__AVX512F__)
  return (Vec)_mm512_min_ps(_mm512_max_ps((__m512)v, (__m512)low), (__m512)high);
#elif defined(__AVX2__)
  return (Vec)_mm256_min_ps(_mm256_max_ps((__m256)v, (__m256)low), (__m256)high);
#else
  v = v > low ? v : low;
  return v < high ? v : high;
#endif
}

// Words of four integers between 0 and 255, the first in the lowest byte.
inline IntVec pack_bytes(IntVec a, IntVec b, IntVec c, IntVec d) {
#if defined(__AVX512BW__)
  const __m512i order =
      _mm512_broadcast_i32x4(_mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0));
  const __m512i ab = _mm512_packs_epi32((__m512i)a, (__m512i)b),
                cd = _mm512_packs_epi32((__m512i)c, (__m512i)d);
  return (IntVec)_mm512_shuffle_epi8(_mm512_packus_epi16(ab, cd), order);
#elif defined(__AVX2__)
  const __m256i order =
      _mm256_broadcastsi128_si256(_mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0));
  const __m256i ab = _mm256_packs_epi32((__m256i)a, (__m256i)b),
                cd = _mm256_packs_epi32((__m256i)c, (__m256i)d);
  return (IntVec)_mm256_shuffle_epi8(_mm256_packus_epi16(ab, cd), order);
#else
  return a | (b << 8) | (c << 16) | (d << 24);
#endif
}

// Words of two integers of 16 bits.
inline IntVec pack_halves(IntVec a, IntVec b) { return (a & 0xffff) | (b << 16); }

// Byte or half-word number i of each word.
inline IntVec byte_of(IntVec words, int i) { return (words >> (8 * i)) & 0xff; }
inline IntVec half_of(IntVec words, int i) { return i == 0 ? (words << 16) >> 16 : words >> 16; }
