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

  // Four entries. Each instruction counts: at 4.3 TB/s a scheduler has seven for an entry of all its lanes.
  // One byte product picks an entry's slot, scales it and adds the base, `first`. Signs: those of int8 are
  // the factors of a byte product too; a 16-bit number gets its sign where it is brought to the upper half of
  // a float's bits (or by itself, float16), from a word that has nothing but signs.
  DK_DEVICE static void walk(const LinearArguments& a, uint32_t first, uint32_t word, Sum (&acc)[Rows]) {
    const uint32_t row_bytes = a.weight.chunk_groups * ListEntry::kGroupSlots * kBytes<T>;
    const uint32_t slots = word & ListEntry::kSlots, signs = word & ~ListEntry::kSlots;
    uint32_t value[Rows][4];
    DK_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint32_t at = dot_bytes(slots, uint32_t{kBytes<T>} << (8 * i), first);
      DK_UNROLL
      for (int m = 0; m < Rows; ++m) {
        value[m][i] = load_shared<kBytes<T>>(at + m * row_bytes);
      }
    }
    DK_UNROLL
    for (int m = 0; m < Rows; ++m) {
      if constexpr (T == Type::kInt8) {
        // 1, and -1 (0xFF) where the sign is set.
        const uint32_t units = (signs >> 7) * 0xFEu ^ 0x01010101u;
        const uint32_t values =
            value[m][0] + value[m][1] * 0x100u + (value[m][2] + value[m][3] * 0x100u) * 0x10000u;
        acc[m] = dot_signed_bytes(values, units, acc[m]);
      } else {
        DK_UNROLL
        for (int i = 0; i < 4; ++i) {
          if constexpr (T == Type::kBFloat16) {
            const uint32_t sign = permute_bytes(signs, 0x0444u | static_cast<uint32_t>(i) << 12);
            acc[m] += bits_as<float>(value[m][i] * 0x10000u + sign);
          } else {
            const uint32_t sign = permute_bytes(signs, 0x4404u | static_cast<uint32_t>(i) << 4);
            acc[m] += float_of_half(static_cast<uint16_t>(value[m][i] ^ sign));
          }
        }
      }
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
        const uint32_t word[4] = {quad.x, quad.y, quad.z, quad.w};
        DK_UNROLL
        for (int i = 0; i < 4; ++i) {
          // A byte product here, too, brings the word's base to where its inputs lie.
          constexpr uint32_t kBaseBytes = ListEntry::kGroupSlots * kBytes<T>;
          walk(a, dot_bytes(bases, kBaseBytes << (8 * i), shared_address()), word[i], acc);
        }
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
