// SPDX-License-Identifier: Apache-2.0
// Vectors of kLanes words of four bytes: dot products of codes 0 to 2 with signed bytes, and look-ups of
// bytes. Every function gives the same bits under every instruction set.

// The low byte of each word.
inline void store_low_bytes(int8_t* p, IntVec v) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v));
#elif defined(__AVX2__)
  const __m256i order = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                         0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i bytes = _mm256_shuffle_epi8((__m256i)v, order);
  const __m128i joined =
      _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), joined);
#else
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(v[i]);
#endif
}

// a0 b0 a1 b1 ...: of the first halves, and of the second ones.
#if defined(__AVX512F__)
inline Vec interleave_low(Vec a, Vec b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline Vec interleave_high(Vec a, Vec b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif defined(__AVX2__)
inline Vec interleave_low(Vec a, Vec b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
inline Vec interleave_high(Vec a, Vec b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#else
inline Vec interleave_low(Vec a, Vec b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
inline Vec interleave_high(Vec a, Vec b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
#endif

// Sums of products of codes and signed bytes: add_codes at most kCodeSteps times, then words_of.
#if defined(__AVX512VNNI__)
constexpr int64_t kCodeSteps = int64_t{1} << 32;
inline IntVec add_codes(IntVec sum, IntVec codes, IntVec x) {
  return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)x);
}
inline IntVec words_of(IntVec sum) { return sum; }
#else
constexpr int64_t kCodeSteps = 64;  // of twice 2 * 127 at most in 16 bits
#if defined(__AVX512BW__)
inline IntVec add_codes(IntVec sum, IntVec codes, IntVec x) {
  return (IntVec)_mm512_add_epi16((__m512i)sum, _mm512_maddubs_epi16((__m512i)codes, (__m512i)x));
}
inline IntVec words_of(IntVec sum) { return (IntVec)_mm512_madd_epi16((__m512i)sum, _mm512_set1_epi16(1)); }
#elif defined(__AVX2__)
inline IntVec add_codes(IntVec sum, IntVec codes, IntVec x) {
  return (IntVec)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)codes, (__m256i)x));
}
inline IntVec words_of(IntVec sum) { return (IntVec)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1)); }
#else
typedef int16_t CodeHalves __attribute__((vector_size(kLanes * sizeof(int32_t))));
inline IntVec add_codes(IntVec sum, IntVec codes, IntVec x) {
  const CodeHalves even = (CodeHalves)(codes & 0x00ff00ff), odd = (CodeHalves)((codes >> 8) & 0x00ff00ff);
  const CodeHalves x_odd = (CodeHalves)x >> 8, x_even = (CodeHalves)((CodeHalves)x << 8) >> 8;
  return (IntVec)((CodeHalves)sum + even * x_even + odd * x_odd);
}
inline IntVec words_of(IntVec sum) { return ((sum << 16) >> 16) + (sum >> 16); }
#endif
#endif

// Adds four bytes of a table of 128, under their signs, to each of 16 outputs. Index: see TernaryLookupRun.
typedef int32_t Words16 __attribute__((vector_size(64)));
typedef int32_t UnalignedWords16 __attribute__((vector_size(64), aligned(4), may_alias));
#if defined(__AVX512VBMI__)
struct LookupIndex {
  __m512i index, signs;
  explicit LookupIndex(const uint8_t* p) : index(_mm512_load_si512(p)) {
    signs = _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), _mm512_set1_epi8(1), _mm512_set1_epi8(-1));
  }
};
inline void add_lookup(Words16& sum, const LookupIndex& i, const uint8_t* low, const uint8_t* high) {
  const __m512i x = _mm512_permutex2var_epi8(_mm512_load_si512(low), i.index, _mm512_load_si512(high));
  sum = (Words16)_mm512_dpbusd_epi32((__m512i)sum, x, i.signs);
}
#else
struct LookupIndex {
  const uint8_t* index;
  explicit LookupIndex(const uint8_t* p) : index(p) {}
};
inline void add_lookup(Words16& sum, const LookupIndex& i, const uint8_t* low, const uint8_t* high) {
  for (int j = 0; j < 64; ++j) {
    const int at = i.index[j] & 127, x = at < 64 ? low[at] : high[at - 64];
    sum[j / 4] += i.index[j] < 128 ? x : -x;
  }
}
#endif

// The same with places that are not used (kNoInput), and tables at any address.
#if defined(__AVX512VBMI__)
struct WindowIndex {
  __m512i index, signs;
  explicit WindowIndex(const uint8_t* p) : index(_mm512_load_si512(p)) {
    const __m512i ones =
        _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), _mm512_set1_epi8(1), _mm512_set1_epi8(-1));
    signs = _mm512_maskz_mov_epi8(_mm512_cmpneq_epi8_mask(index, _mm512_set1_epi8(-1)), ones);
  }
};
inline void add_window(Words16& sum, const WindowIndex& i, const uint8_t* low, const uint8_t* high) {
  const __m512i x = _mm512_permutex2var_epi8(_mm512_loadu_si512(low), i.index, _mm512_loadu_si512(high));
  sum = (Words16)_mm512_dpbusd_epi32((__m512i)sum, x, i.signs);
}
// Two steps on one window.
inline void add_window(Words16& sum, const WindowIndex& i, Words16& other_sum, const WindowIndex& other,
                       const uint8_t* low, const uint8_t* high) {
  const __m512i a = _mm512_loadu_si512(low), b = _mm512_loadu_si512(high);
  sum = (Words16)_mm512_dpbusd_epi32((__m512i)sum, _mm512_permutex2var_epi8(a, i.index, b), i.signs);
  other_sum = (Words16)_mm512_dpbusd_epi32((__m512i)other_sum, _mm512_permutex2var_epi8(a, other.index, b),
                                           other.signs);
}
#else
struct WindowIndex {
  const uint8_t* index;
  explicit WindowIndex(const uint8_t* p) : index(p) {}
};
inline void add_window(Words16& sum, const WindowIndex& i, const uint8_t* low, const uint8_t* high) {
  for (int j = 0; j < 64; ++j) {
    if (i.index[j] == kNoInput) continue;
    const int at = i.index[j] & 127, x = at < 64 ? low[at] : high[at - 64];
    sum[j / 4] += i.index[j] < 128 ? x : -x;
  }
}
inline void add_window(Words16& sum, const WindowIndex& i, Words16& other_sum, const WindowIndex& other,
                       const uint8_t* low, const uint8_t* high) {
  add_window(sum, i, low, high);
  add_window(other_sum, other, low, high);
}
#endif

// 64 bytes put together from parts of memory. Only bytes whose bit is set are read.
#if defined(__AVX512BW__)
struct Block {
  __m512i bytes = _mm512_setzero_si512();
  void merge(const int8_t* p, uint64_t bits, uint8_t add) {
    const __m512i part = _mm512_maskz_loadu_epi8(bits, p);
    bytes = _mm512_mask_add_epi8(bytes, bits, part, _mm512_set1_epi8(static_cast<char>(add)));
  }
  void put(uint8_t* p) const { _mm512_store_si512(p, bytes); }
  int32_t sum() const {  // of signed bytes
    const __m512i flipped = _mm512_xor_si512(bytes, _mm512_set1_epi8(-128));
    const __m512i sums = _mm512_sad_epu8(flipped, _mm512_setzero_si512());
    const __m256i half = _mm256_add_epi32(_mm512_maskz_extracti64x4_epi64(255, sums, 0),
                                          _mm512_maskz_extracti64x4_epi64(255, sums, 1));
    const __m128i quarter = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    return _mm_extract_epi32(quarter, 0) + _mm_extract_epi32(quarter, 2) - 64 * 128;
  }
};
#else
struct Block {
  uint8_t bytes[64] = {};
  void merge(const int8_t* p, uint64_t bits, uint8_t add) {
    const int from = __builtin_ctzll(bits), to = 64 - __builtin_clzll(bits);
    for (int j = from; j < to; ++j) bytes[j] = static_cast<uint8_t>(p[j] + add);
  }
  void put(uint8_t* p) const { std::memcpy(p, bytes, 64); }
  int32_t sum() const {
    int32_t sum = 0;
    for (uint8_t byte : bytes) sum += static_cast<int8_t>(byte);
    return sum;
  }
};
#endif
