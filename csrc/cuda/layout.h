// SPDX-License-Identifier: Apache-2.0
// Where each weight lies in the forms that the GPU kernels read, and how a register of them is decoded. The
// packer (pack.cpp) and the kernels share these functions; the tests check that they are inverse to each
// other.
//
// A weight takes two bits, sign and "not zero": 00 is 0, 01 is +1, 11 is -1. At the top of a byte that is 0,
// +64 or -64 of int8; at the top of 16 bits 0, +2 or -2 of bfloat16 and of float16 alike. So a shift and an
// AND turn a word into tensor-core registers, and the constant factor is taken out of the sum (exactly).
//
// Dense form. Tiles of 16 outputs x 128 inputs, a tile 512 bytes: lane l of the warp has the 16 bytes at 16
// l, four words. With g = l / 4, q = l % 4, word s holds, for the outputs g and g + 8, the eight inputs from
// 64 (s / 2) + 16 q + 8 (s % 2) on: a lane's inputs lie together in memory, so that activations need no
// shuffle.
//
// Sparse forms. Of every group of four inputs at most two weights are in the tiles, with the tensor core's
// metadata; the others are in a list, `rest` (Rest below).
//
// List form. See ListEntry below.
#pragma once

#include "cuda/host_device.h"
#include "cuda/types.h"

namespace dynkern::cuda {

constexpr int kTileOutputs = 16;
constexpr int kTileInputs = 128;
constexpr int kLanes = 32;

constexpr uint32_t kPlusCode = 1, kMinusCode = 3;
constexpr uint32_t code_of_sign(int sign) { return sign == 0 ? 0u : sign > 0 ? kPlusCode : kMinusCode; }

// What a decoded weight of +1 is.
template <Type T>
constexpr int kUnit = T == Type::kInt8 ? 64 : 2;

// A place for one code: word `word` of lane `lane`, bits 2 place and 2 place + 1.
struct Place {
  int lane, word, place;
};

// Register i of the tensor core's A, int8: its byte b is bits 8 b + 2 i and the next.
DK_HD uint32_t decode_int8(uint32_t word, int i) { return (word << (6 - 2 * i)) & 0xC0C0C0C0u; }
constexpr int int8_place(int i, int byte) { return 4 * byte + i; }

// Register i of A of the instruction u of two, 16 bits an element: element e is in byte i / 2 + 2 e.
DK_HD uint32_t decode_16(uint32_t word, int u, int i) {
  return (word << ((i / 2 == 0 ? 14 : 6) - 2 * (i % 2 + 2 * u))) & 0xC000C000u;
}
constexpr int place_16(int u, int i, int e) { return 4 * (i / 2 + 2 * e) + i % 2 + 2 * u; }

// Dense form: the weight of output `row` (of 16) and input `k` (of 128).
constexpr Place dense_place(int row, int k) {
  const int e = k % 8, i = row / 8 + 2 * (e / 4);
  // Element e % 4 = 0, 1, 2, 3 is in byte 0, 2, 1, 3: int8 then wants its activations in the order
  // kInt8Order, and 16-bit elements, which are decoded from bytes two apart, in their own.
  const int byte = (e % 4) / 2 + 2 * (e % 2);
  return {row % 8 * 4 + k % 64 / 16, k / 64 * 2 + k % 16 / 8, int8_place(i, byte)};
}
constexpr uint32_t kInt8Order = 0x3120;  // permute_bytes

// Sparse forms: which input, counted from the first of the instruction's (64 of int8, 32 of 16 bits), element
// `j` of group `group` is, so that a lane's activations lie together: B's register r of lane q holds the
// inputs from 16 bytes q + 4 bytes r on.
constexpr int sparse8_input(int group, int j) { return group % 4 * 16 + group / 4 * 4 + j; }
constexpr int sparse16_input(int group, int j) {
  return (2 * (group % 2) + j / 2) * 8 + group / 2 * 2 + j % 2;
}

// Where kept element `kept` (0 or 1) of a group lies in the word of its instruction's lane.
constexpr Place sparse8_place(int row, int group, int kept) {
  const int i = row / 8 + 2 * (group / 8);
  return {row % 8 * 4 + group % 8 / 2, 0, int8_place(i, group % 2 * 2 + kept)};
}
// A word serves two instructions, u = 0 and 1.
constexpr Place sparse16_place(int row, int u, int group, int kept) {
  return {row % 8 * 4 + group % 4, 0, place_16(u, row / 8 + 2 * (group / 4), kept)};
}

// The lane and the lowest bit of the four bits of metadata of a group: 2 bits per kept element, the lower
// first.
struct MetadataPlace {
  int lane, bit;
};
constexpr MetadataPlace sparse8_metadata(int row, int group) {
  return {row % 8 * 4 + row / 8 + group / 8 * 2, group % 8 * 4};
}
// Instruction u reads it from the lanes 2 u and 2 u + 1 of every four.
constexpr MetadataPlace sparse16_metadata(int row, int u, int group) {
  return {row % 8 * 4 + 2 * u + group / 4, row / 8 * 16 + group % 4 * 4};
}

// Metadata that name the first two elements of every group: the instruction wants them in order even under
// zeros.
constexpr uint32_t kAnyMetadata = 0x44444444;

// The rest. For each 64 outputs and each step of 128 bytes of activations a header of four words: the first
// round, and for every 8 of the outputs a byte, how many rounds they have. A round is eight entries, one per
// output, of 16 bits: the input within the step, its sign, and whether there is one at all.
struct Rest {
  static constexpr int kOutputs = 64;
  static constexpr uint16_t entry(int k, int sign) {
    return static_cast<uint16_t>(k | (sign < 0 ? 0x80 : 0) | 0x100);
  }
  DK_HD static int input(uint32_t entry) { return static_cast<int>(entry & 0x7F); }
  DK_HD static int sign(uint32_t entry) { return (entry & 0x100) == 0 ? 0 : (entry & 0x80) == 0 ? 1 : -1; }
  DK_HD static int rounds(const uint4& header, int eight) {
    return static_cast<int>((eight < 4 ? header.y : header.z) >> (8 * (eight % 4)) & 0xFF);
  }
  DK_HD static int rounds(const uint4& header) { return static_cast<int>(header.w); }
};

// List form. In shared memory the activations of 15 inputs take a group of 16 slots, the last of them zero. A
// warp walks 32 outputs, one per lane, together: an entry is a byte, a slot within the 8 groups (120 inputs)
// from a base on, the same for all lanes, and the sign above it; a lane that has nothing to do names the
// first group's zero. A word has four entries of one base; a quad four words, whose bases, in groups from the
// chunk's first, are the four bytes of a word of their own. The base is that of the lane that is furthest
// behind, so that lanes drift apart by up to 120 inputs and wait for each other only beyond: their lists need
// not be equally long over any short stretch.
struct ListEntry {
  static constexpr int kGroup = 15, kGroupSlots = 16, kReach = 8;
  static constexpr int kMostGroups = 256;  // of a chunk
  static constexpr uint32_t kNothing = kGroup;
  static constexpr uint32_t entry(int slot, int sign) {
    return static_cast<uint32_t>(slot) | (sign < 0 ? 0x80u : 0u);
  }
  static constexpr uint32_t kSlots = 0x7F7F7F7F;  // of a word's entries; the other bits are signs
};

}  // namespace dynkern::cuda
