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
