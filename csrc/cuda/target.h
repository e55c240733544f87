// SPDX-License-Identifier: Apache-2.0
// What the kernel bodies need of the machine they run on, so that one body compiles for the GPU and, in the
// tests, for a host program that plays the GPU's threads (tests/simt/simt.h).
#pragma once

#include <cstdint>

#include "cuda/host_device.h"

#ifdef __CUDACC__

#define DK_DEVICE __device__ __forceinline__
#define DK_UNROLL _Pragma("unroll")
#define DK_ROLL _Pragma("unroll 1")

namespace dynkern::cuda {

DK_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
DK_DEVICE int block_index(int axis) {
  return static_cast<int>(axis == 0 ? blockIdx.x : axis == 1 ? blockIdx.y : blockIdx.z);
}
DK_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return bytes;
}
// Shared memory by 32-bit addresses, which take one register and one instruction to make.
DK_DEVICE uint32_t shared_address() {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory()));
}
// One or two bytes, without a sign.
template <int Bytes>
DK_DEVICE uint32_t load_shared(uint32_t address) {
  uint32_t v;
  if constexpr (Bytes == 1) {
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(v) : "r"(address));
  } else {
    uint16_t bits;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(bits) : "r"(address));
    v = bits;
  }
  return v;
}
DK_DEVICE void sync_block() { __syncthreads(); }
DK_DEVICE void fence_device() { __threadfence(); }
DK_DEVICE unsigned add_atomic(unsigned* p, unsigned v) { return atomicAdd(p, v); }

// A word whose bytes are those of x that the four digits of `selector` name, lowest first.
DK_DEVICE uint32_t permute_bytes(uint32_t x, uint32_t selector) { return __byte_perm(x, 0, selector); }

// c plus the products of the four bytes of a and b, of no sign or of both.
DK_DEVICE uint32_t dot_bytes(uint32_t a, uint32_t b, uint32_t c) { return __dp4a(a, b, c); }
DK_DEVICE int32_t dot_signed_bytes(uint32_t a, uint32_t b, int32_t c) {
  return __dp4a(static_cast<int>(a), static_cast<int>(b), c);
}

// Weights are read once: they must not push the activations out of the first-level cache.
DK_DEVICE uint4 load_once(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
template <class T>
DK_DEVICE T load_read_only(const T* p) {
  return __ldg(p);
}
// What another block wrote during this launch.
template <class T>
DK_DEVICE T load_fresh(const T* p) {
  return __ldcg(p);
}

// Copies 16 or 8 bytes to shared memory without going through registers; done after wait_for_copies.
template <int Bytes>
DK_DEVICE void copy_async(void* shared, const void* global) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(Bytes) : "memory");
  }
}
DK_DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Rounded once each, whatever stands around them.
DK_DEVICE float rounded_product(float a, float b) { return __fmul_rn(a, b); }
DK_DEVICE float rounded_sum(float a, float b) { return __fadd_rn(a, b); }

DK_DEVICE float float_of_half(uint16_t bits) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
  return v;
}
DK_DEVICE uint16_t half_of_float(float v) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return bits;
}

}  // namespace dynkern::cuda

#else
#include "simt.h"
#endif
