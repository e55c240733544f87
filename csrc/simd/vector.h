// SPDX-License-Identifier: Apache-2.0
// Vectors of kLanes floats, written with GCC/Clang vector types: the compiler emits what intrinsics would.
// Included once per ISA, inside that ISA's namespace, after its header has set kLanes and the register tile.
// No templates of the standard library here or in kernel bodies: the linker would merge their instances
// across instruction sets.

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t IntVec __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef float UnalignedVec __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));
typedef int32_t UnalignedIntVec __attribute__((vector_size(kLanes * sizeof(int32_t)), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
inline Vec splat(float s) { return s - Vec{}; }

// The first `count` lanes only, 1 to kLanes of them.
inline void store_first(float* p, Vec v, int count) {
  if (count == kLanes) return store(p, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), v);
#else
  for (int i = 0; i < count; ++i) p[i] = v[i];
#endif
}

constexpr int kHalf = kLanes / 2;

// kHalf floats at p, then kHalf at q.
inline Vec load_halves(const float* p, const float* q) {
#if defined(__AVX512F__)
  const __m512d low = _mm512_castps_pd(_mm512_castps256_ps512(_mm256_loadu_ps(p)));
  return _mm512_castpd_ps(_mm512_insertf64x4(low, _mm256_castps_pd(_mm256_loadu_ps(q)), 1));
#elif defined(__AVX2__)
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(q), 1);
#else
  Vec v;
  for (int i = 0; i < kHalf; ++i) v[i] = p[i];
  for (int i = 0; i < kHalf; ++i) v[kHalf + i] = q[i];
  return v;
#endif
}

inline void store_halves(float* p, float* q, Vec v) {
#if defined(__AVX512F__)
  _mm256_storeu_ps(p, _mm512_castps512_ps256(v));
  _mm256_storeu_ps(q, _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
#elif defined(__AVX2__)
  _mm_storeu_ps(p, _mm256_castps256_ps128(v));
  _mm_storeu_ps(q, _mm256_extractf128_ps(v, 1));
#else
  for (int i = 0; i < kHalf; ++i) p[i] = v[i];
  for (int i = 0; i < kHalf; ++i) q[i] = v[kHalf + i];
#endif
}

inline float sum(Vec v) {
  float s = 0;
  for (int i = 0; i < kLanes; ++i) s += v[i];
  return s;
}

// v where the mask is -1, 0 where it is 0.
inline Vec keep(Vec v, const int32_t* mask) {
  return reinterpret_cast<Vec>(reinterpret_cast<IntVec>(v) & *reinterpret_cast<const UnalignedIntVec*>(mask));
}

// Adding 1.5 * 2^23 leaves the nearest integer in the low bits (|x| < 2^22).
inline Vec round_to_int(Vec x) {
  Vec shifted = x + 12582912.f;
  __asm__("" : "+x"(shifted));  // or the compiler might cancel the two
  return shifted - 12582912.f;
}

// x * 2^n for whole n in the range of normal exponents.
inline Vec scale_by_power_of_two(Vec x, Vec n) {
  const IntVec exponent = __builtin_convertvector(n, IntVec) + 127;
  return x * reinterpret_cast<Vec>(exponent << 23);
}
