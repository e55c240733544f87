// SPDX-License-Identifier: Apache-2.0
// Vectors of kLanes floats, written with GCC/Clang vector types: the compiler emits what intrinsics would.
// Included once per ISA, inside that ISA's namespace, after its header has set kLanes and the register tile.
// No templates of the standard library here or in kernel bodies: the linker would merge their instances
// across instruction sets.

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
typedef float UnalignedVec __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
inline Vec splat(float s) { return s - Vec{}; }

inline float sum(Vec v) {
  float s = 0;
  for (int i = 0; i < kLanes; ++i) s += v[i];
  return s;
}
