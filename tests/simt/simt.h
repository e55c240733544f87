// SPDX-License-Identifier: Apache-2.0
// The GPU's threads, played on the host: csrc/cuda/target.h includes this where nvcc does not compile. A
// block's threads are fibers that run until they wait, for the block (sync_block) or for their warp (a
// tensor-core instruction); see machine.cpp. What the instructions do is written here from the PTX manual,
// not from layout.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/host_device.h"

#define DK_DEVICE inline
#define DK_UNROLL
#define DK_ROLL

namespace simt {

// What a lane brings to a tensor-core instruction: pointers to its own registers.
struct Mma {
  int kind;  // of Type; sparse ones count from 10, and from 20 with the second selector
  void* c;
  const uint32_t *a, *b;
  uint32_t e;
};

int thread();
int block(int axis);
unsigned char* shared();
void sync();
void mma(const Mma& operands);
void copy_later(void* to, const void* from, int bytes);
void finish_copies();

}  // namespace simt

namespace dynkern::cuda {

inline int thread_index() { return simt::thread(); }
inline int block_index(int axis) { return simt::block(axis); }
inline unsigned char* shared_memory() { return simt::shared(); }
inline uint32_t shared_address() { return 0; }
template <int Bytes>
uint32_t load_shared(uint32_t address) {
  const unsigned char* p = simt::shared() + address;
  if constexpr (Bytes == 1) return *p;
  return *reinterpret_cast<const uint16_t*>(p);
}
inline void sync_block() { simt::sync(); }
inline void fence_device() {}
inline unsigned add_atomic(unsigned* p, unsigned v) {
  const unsigned before = *p;
  *p += v;
  return before;
}
inline uint32_t permute_bytes(uint32_t x, uint32_t selector) {
  uint32_t y = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t byte = selector >> (4 * i) & 0xF;
    y |= (byte < 4 ? x >> (8 * byte) & 0xFF : 0) << (8 * i);
  }
  return y;
}
inline uint32_t dot_bytes(uint32_t a, uint32_t b, uint32_t c) {
  for (int i = 0; i < 32; i += 8) c += (a >> i & 0xFF) * (b >> i & 0xFF);
  return c;
}
inline int32_t dot_signed_bytes(uint32_t a, uint32_t b, int32_t c) {
  for (int i = 0; i < 32; i += 8) c += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
  return c;
}
inline uint4 load_once(const uint4* p) { return *p; }
template <class T>
T load_read_only(const T* p) {
  return *p;
}
template <class T>
T load_fresh(const T* p) {
  return *p;
}
template <int Bytes>
void copy_async(void* shared, const void* global) {
  simt::copy_later(shared, global, Bytes);
}
inline void wait_for_copies() { simt::finish_copies(); }
inline float rounded_product(float a, float b) { return a * b; }
inline float rounded_sum(float a, float b) { return a + b; }
inline float float_of_half(uint16_t bits) {
  _Float16 v;
  std::memcpy(&v, &bits, 2);
  return static_cast<float>(v);
}
inline uint16_t half_of_float(float v) {
  const _Float16 h = static_cast<_Float16>(v);
  uint16_t bits;
  std::memcpy(&bits, &h, 2);
  return bits;
}

}  // namespace dynkern::cuda

#include "cuda/types.h"

namespace dynkern::cuda {

template <Type T>
void mma(SumOf<T> (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[4] = {b0, b1, 0, 0};
  simt::mma({static_cast<int>(T), c, a, b, 0});
}

template <Type T, int Selector>
void mma_sparse(SumOf<T> (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t e) {
  simt::mma({static_cast<int>(T) + 10 + 10 * Selector, c, a, b, e});
}

}  // namespace dynkern::cuda
