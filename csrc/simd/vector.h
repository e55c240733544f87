// SPDX-License-Identifier: Apache-2.0
// Vectors of kLanes floats, written with GCC/Clang vector types: the compiler emits what intrinsics would.
// Included once per ISA, inside that ISA's namespace, after its header has set kLanes and the register tile.
// No templates of the standard library here or in kernel bodies: the linker would merge their instances
// across instruction sets.

// For functions on arrays of vectors, which stay in registers only if they are inlined.
#define ALWAYS_INLINE inline __attribute__((always_inline))

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t IntVec __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef float UnalignedVec __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));
typedef int32_t UnalignedIntVec __attribute__((vector_size(kLanes * sizeof(int32_t)), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline IntVec load_words(const void* p) { return *reinterpret_cast<const UnalignedIntVec*>(p); }
inline void store_words(void* p, IntVec v) { *reinterpret_cast<UnalignedIntVec*>(p) = v; }

// v, computed once, into a register: the compiler then neither fuses it into a multiply-add nor cancels it
// against what follows.
inline Vec in_register(Vec v) {
#ifdef __aarch64__
  __asm__("" : "+w"(v));
#else
  __asm__("" : "+v"(v));
#endif
  return v;
}

// Where a vector is used several times the compiler may else load it each time as an operand, and a load that
// crosses a cache line costs more than the arithmetic.
inline Vec load_once(const float* p) { return in_register(load(p)); }
inline void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
inline Vec splat(float s) { return s - Vec{}; }

// x, but at least `low`, or at most `high`. NaN stays NaN.
#if defined(__AVX512F__)
// With a mask, since GCC 12 warns of the undefined operand of its own intrinsic without one.
inline Vec larger(Vec low, Vec x) { return _mm512_maskz_max_ps(0xffff, low, x); }
inline Vec smaller(Vec high, Vec x) { return _mm512_maskz_min_ps(0xffff, high, x); }
#elif defined(__AVX2__)
inline Vec larger(Vec low, Vec x) { return _mm256_max_ps(low, x); }
inline Vec smaller(Vec high, Vec x) { return _mm256_min_ps(high, x); }
#else
inline Vec larger(Vec low, Vec x) { return x < low ? low : x; }
inline Vec smaller(Vec high, Vec x) { return x > high ? high : x; }
#endif

inline float sum(Vec v) {
  float s = 0;
  for (int i = 0; i < kLanes; ++i) s += v[i];
  return s;
}

// Lane numbers as a list, for shuffles.
template <int... L>
struct LaneList {};
template <int N, int... L>
struct LanesUpTo : LanesUpTo<N - 1, N - 1, L...> {};
template <int... L>
struct LanesUpTo<0, L...> {
  using List = LaneList<L...>;
};
using AllLanes = LanesUpTo<kLanes>::List;

template <int... L>
inline Vec every_other(Vec a, Vec b, LaneList<L...>) {
  return __builtin_shufflevector(a, b, (2 * L)...);
}
template <int... L>
inline Vec every_other_from_one(Vec a, Vec b, LaneList<L...>) {
  return __builtin_shufflevector(a, b, (2 * L + 1)...);
}
template <int... L>
inline Vec one_on(Vec a, Vec b, LaneList<L...>) {
  return __builtin_shufflevector(a, b, (L + 1)...);
}

constexpr int kHalf = kLanes / 2;
using HalfLanes = LanesUpTo<kHalf>::List;
typedef float HalfVec __attribute__((vector_size(kHalf * sizeof(float)), aligned(4), may_alias));

template <int... L>
inline Vec join(HalfVec low, HalfVec high, LaneList<L...>) {
  return __builtin_shufflevector(low, high, L...);
}
template <int... L>
inline void split(Vec v, HalfVec* low, HalfVec* high, LaneList<L...>) {
  *low = __builtin_shufflevector(v, v, L...);
  *high = __builtin_shufflevector(v, v, (kHalf + L)...);
}

// kHalf floats at p, then kHalf at q.
inline Vec load_halves(const float* p, const float* q) {
  return join(*reinterpret_cast<const HalfVec*>(p), *reinterpret_cast<const HalfVec*>(q), AllLanes());
}
inline void store_halves(float* p, float* q, Vec v) {
  split(v, reinterpret_cast<HalfVec*>(p), reinterpret_cast<HalfVec*>(q), HalfLanes());
}

// Of the 2 * kLanes numbers in a and b the 1st, 3rd, ..., and the 2nd, 4th, ...
inline Vec even_lanes(Vec a, Vec b) { return every_other(a, b, AllLanes()); }
inline Vec odd_lanes(Vec a, Vec b) { return every_other_from_one(a, b, AllLanes()); }

// v without its first lane, and s after its last one.
inline Vec shift_in(Vec v, float s) { return one_on(v, splat(s), AllLanes()); }

// The first `count` lanes of v (all, if there are fewer), the others 0.
template <int... L>
inline Vec lanes_before(Vec v, int count, LaneList<L...>) {
  const IntVec lane = {L...};
  return lane < count ? v : Vec{};
}
inline Vec first_lanes(Vec v, int count) { return lanes_before(v, count, AllLanes()); }

template <int N>
inline void copy_ends(float* to, const float* from, int count) {
  float first[N], last[N];
  std::memcpy(first, from, sizeof first);
  std::memcpy(last, from + count - N, sizeof last);
  std::memcpy(to, first, sizeof first);
  std::memcpy(to + count - N, last, sizeof last);
}

// Stores the first `count` lanes, 1 to kLanes.
inline void store_first(float* p, Vec v, int count) {
  if (count == kLanes) return store(p, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), v);
#else
  // Each half by two stores that may overlap.
  float lanes[kLanes];
  store(lanes, v);
  int size = kLanes / 2;
  while (size > count) size /= 2;
  if constexpr (kLanes > 4) {
    if (size == 4) return copy_ends<4>(p, lanes, count);
  }
  if (size == 2) return copy_ends<2>(p, lanes, count);
  p[0] = lanes[0];
#endif
}

// v where the mask is -1, 0 where it is 0.
inline Vec keep(Vec v, const int32_t* mask) {
  return reinterpret_cast<Vec>(reinterpret_cast<IntVec>(v) & *reinterpret_cast<const UnalignedIntVec*>(mask));
}

// Adding 1.5 * 2^23 leaves the nearest integer in the low bits (|x| < 2^22).
inline Vec round_to_int(Vec x) { return in_register(x + 12582912.f) - 12582912.f; }

// x * 2^n for whole n in the range of normal exponents.
inline Vec scale_by_power_of_two(Vec x, Vec n) {
  const IntVec exponent = __builtin_convertvector(n, IntVec) + 127;
  return x * reinterpret_cast<Vec>(exponent << 23);
}
