// SPDX-License-Identifier: Apache-2.0
// Ternary weights times rows of int8 activations. A row is a row of the batch, or the patch under one pixel.
//
//   sum[m][o] = sum over k of w[o][k] q[m][k],       w in {-1, 0, +1}, |q| <= 127, exact in 32 bits
//   y[m][o] = scale_of_row[m] * scale[o] * sum[m][o] + bias[o]
//
// Three kernels make the sums, each from a layout of its own:
//   dense    2 bits a weight, unpacked on the way to byte dot products: for weights with few zeros
//   lookup   lanes are outputs; each takes its next few nonzeros from a window of the row by a byte
//   permutation lists    lanes are rows, of 16 bits; the plain form of skipping, for CPUs without byte
//   permutations
#pragma once

#include <cstdint>

namespace dynkern {

constexpr int kGroupOutputs = 16;  // outputs whose weights lie together in the layouts of dense and lookup
constexpr int kDenseInputs = 16;   // inputs of 64 bytes of a dense layout
constexpr int kLookupInputs = 63;  // inputs in a block of a row; the byte after them is 0
constexpr int kByteRows = 8;       // most rows that dense and lookup take at once
constexpr int kListRows = 64;      // rows that lists takes at once

// Results of whole groups whose rows are contiguous, written while the sums are in registers.
struct TernaryResults {
  float* y;
  int64_t y_row;
  const float* row_scale;
  const float* scale;  // null for 1
  const float* bias;   // null for none
};

// codes[group][step][output][j], each byte w + 1 of the inputs 16 step + 4 i + j in its bits 2 i.
struct TernaryDenseRun {
  const uint8_t* codes;
  int64_t steps, groups;
  const int8_t* x;  // rows of `x_row` bytes, zeros past the last input
  int64_t x_row;
  int rows;              // 1 to kByteRows
  const int32_t* start;  // one per row: minus the sum of its bytes
  int32_t* sums;         // [rows][sums_row]; null: results instead
  int64_t sums_row;
  TernaryResults results;
};

// Step s of a group works on the blocks base[s] and base[s] + 1 of every row. Each of its 64 bytes names a
// byte of the two (bits 0 to 6) and a sign (bit 7: minus), four for each of 16 outputs; a byte 63 names a
// zero.
struct TernaryLookupRun {
  const uint8_t* index;
  const uint16_t* base;
  const uint32_t* begin;  // groups + 1: the steps of each group
  int64_t groups;
  const uint8_t* x;       // [block][row][64], 128 + q; one block more than there are
  int rows;               // 1 to kByteRows
  const uint16_t* order;  // null, or of each output its place among the sums
  const int32_t* start;   // one per output: minus 128 times the sum of its weights
  int32_t* sums;          // [rows][sums_row]; null: results instead
  int64_t sums_row;
  TernaryResults results;
};

// As TernaryListsRun, without blocks.
struct TernaryShortListsRun {
  const int16_t* x;         // [position][kListRows], aligned
  const int32_t* position;  // of each entry of the lists
  const uint16_t* index;
  const uint32_t* wide_index;
  const uint32_t* cuts;  // four per output: plus from, minus from, plus to, minus to
  int64_t outputs;
  int rows;
  int32_t* sums;
  int64_t sums_row;
};

struct TernaryFinish {
  const int32_t* sums;
  int64_t sums_row;
  int64_t rows, outputs;
  const float* row_scale;
  const float* scale;  // null for 1
  const float* bias;   // null for none
  float* y;
  int64_t y_row, y_output;  // one of them 1
};

// q = the nearest integer of x / scale, ties to even, within +-127.
struct QuantizeRow {
  const float* x;
  int64_t count;
  float inverse;  // 1 / scale
  int8_t* q;
};

// The greatest |x|; NaN if there is one.
struct GreatestMagnitude {
  const float* x;
  int64_t count;
  float* result;
};

// A row of an image, its channels last: q[pixel][channel], as in QuantizeRow.
struct QuantizeImageRow {
  const float* x;
  const int64_t* offset;    // of each channel of q in x; negative for one that stays zero
  int64_t channels, width;  // a multiple of 4
  float inverse;
  int8_t* q;
  int64_t pixel_stride;
};

// Byte j of a block of 64 is x[from + j], where bit j of `bytes` is set.
struct RowPiece {
  int32_t from, block;
  uint64_t bytes;
};

// Brings one row into the form that a kernel reads: blocks put together from pieces, in order; what no piece
// names is zero.
struct GatherRow {
  const int8_t* x;
  const RowPiece* pieces;
  int64_t count;
  uint8_t add;  // to the bytes of pieces: 0 or 128
  uint8_t* y;   // of block 0, aligned
  int64_t block_stride;
  int32_t* sum;  // null, or where the sum of all bytes is added
};

}  // namespace dynkern
