// SPDX-License-Identifier: Apache-2.0
// One to four rows of activations and mostly-zero weights: a zero is neither read nor visited. A lane has an
// output and walks the list of its nonzeros; the activations of a chunk of inputs lie in shared memory, in
// their own type.
//
// All lanes are within 120 inputs of each other, so a gather touches 32 words of shared memory (int8) or 64
// (16 bits): of each bank one word or two, where an unordered walk would meet some three and a half.
#pragma once

#include "cuda/activations-inl.h"
#include "cuda/layout.h"
#include "cuda/output-inl.h"

namespace dynkern::cuda {

template <Type T, int Rows>
struct Lists {
  static constexpr int kWarps = 8, kThreads = kWarps * kLanes, kBlocksPerUnit = 4;
  static constexpr int kOutputs = kThreads, kColumns = Rows;
  using Sum = SumOf<T>;
  using Element = ElementOf<T>;

  // A base may be among the last groups, from which on its entries reach no further.
  DK_HD static constexpr int shared_bytes(int chunk_groups) {
    return Rows * chunk_groups * ListEntry::kGroupSlots * kBytes<T> + 16;
  }

  // The activation at `p` under a weight whose sign is bit 31.
  DK_DEVICE static Sum signed_value(const Element* p, uint32_t sign) {
    if constexpr (T == Type::kInt8) {
      return *p * (static_cast<int32_t>(sign) >> 31 | 1);
    } else {
      const uint16_t bits = static_cast<uint16_t>(*p ^ sign >> 16);
      return T == Type::kBFloat16 ? float_of_bfloat16(bits) : float_of_half(bits);
    }
  }

  DK_DEVICE static void stage(const LinearArguments& a, Element* x, int first_row, int chunk) {
    const int slots = a.weight.chunk_groups * ListEntry::kGroupSlots;
    for (int i = thread_index(); i < slots; i += kThreads) {
      const int slot = i % ListEntry::kGroupSlots;
      const int k = (chunk * a.weight.chunk_groups + i / ListEntry::kGroupSlots) * ListEntry::kGroup + slot;
      DK_UNROLL
      for (int m = 0; m < Rows; ++m) {
        const bool there = slot < ListEntry::kGroup && k < a.inputs && first_row + m < a.rows;
        x[m * slots + i] =
            there ? static_cast<Element>(element_bits<T>(a, (first_row + m) * a.x_row + k)) : Element{0};
      }
    }
  }

  DK_DEVICE static void walk(const LinearArguments& a, const Element* x, uint32_t word, uint32_t base_group,
                             Sum (&acc)[Rows]) {
    const Element* base = x + base_group * ListEntry::kGroupSlots;
    const int slots = a.weight.chunk_groups * ListEntry::kGroupSlots;
    DK_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Element* p = base + ListEntry::slot(word, i);
      DK_UNROLL
      for (int m = 0; m < Rows; ++m) acc[m] += signed_value(p + m * slots, ListEntry::sign(word, i));
    }
  }

  DK_DEVICE static void run(const LinearArguments& a) {
    const int lane = thread_index() % kLanes, warp = thread_index() / kLanes;
    const int chunk = block_index(2), first_row = block_index(1) * Rows;
    const int tile = block_index(0) * kWarps + warp;
    Element* x = reinterpret_cast<Element*>(shared_memory());
    stage(a, x, first_row, chunk);
    sync_block();

    Sum acc[Rows] = {};
    if (tile * kLanes < a.outputs) {
      const int groups = (a.weight.inputs + ListEntry::kGroup - 1) / ListEntry::kGroup;
      const int chunks = (groups + a.weight.chunk_groups - 1) / a.weight.chunk_groups;
      const uint32_t* starts = a.weight.starts + static_cast<int64_t>(tile) * chunks + chunk;
      const uint32_t end = load_read_only(starts + 1);
      const uint4* quads = reinterpret_cast<const uint4*>(a.weight.words) + lane;
      uint32_t now = load_read_only(starts);
      uint4 next{};
      uint32_t next_bases = 0;
      if (now < end) {
        next = load_once(quads + static_cast<int64_t>(now) * kLanes);
        next_bases = load_read_only(a.weight.bases + now);
      }
      while (now < end) {
        const uint4 quad = next;
        const uint32_t bases = next_bases;
        if (++now < end) {
          next = load_once(quads + static_cast<int64_t>(now) * kLanes);
          next_bases = load_read_only(a.weight.bases + now);
        }
        walk(a, x, quad.x, bases & 0xFF, acc);
        walk(a, x, quad.y, bases >> 8 & 0xFF, acc);
        walk(a, x, quad.z, bases >> 16 & 0xFF, acc);
        walk(a, x, quad.w, bases >> 24, acc);
      }
    }
    const int output = tile * kLanes + lane;
    DK_UNROLL
    for (int m = 0; m < Rows; ++m) store_sum(a, chunk, first_row + m, output, acc[m], 1);
    unsigned* flag = reinterpret_cast<unsigned*>(shared_memory() + shared_bytes(a.weight.chunk_groups) - 16);
    const int blocks = (a.outputs + kOutputs - 1) / kOutputs;
    finish_splits<Sum, kThreads>(a, block_index(1) * blocks + block_index(0), flag, first_row, Rows,
                                 block_index(0) * kOutputs, kOutputs, 1);
  }
};

}  // namespace dynkern::cuda
