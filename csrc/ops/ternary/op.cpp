// SPDX-License-Identifier: Apache-2.0
#include "ops/ternary/op.h"

namespace dynkern {
namespace {

// Rows of the batch that a piece of a linear layer takes, as lanes: one tile of the widest ISA.
constexpr int64_t kRowsOfPiece = 256;
constexpr double kLeastWork = 200e3;  // additions below which waking a thread costs more than it saves

// to[j * to_row + i] = from[i * row + j * column], in blocks that stay in the first-level cache.
void transpose(const float* from, int64_t row, int64_t column, int64_t rows, int64_t columns, float* to,
               int64_t to_row) {
  constexpr int64_t kBlock = 16;
  for (int64_t j0 = 0; j0 < columns; j0 += kBlock) {
    const int64_t j1 = std::min(columns, j0 + kBlock);
    for (int64_t i0 = 0; i0 < rows; i0 += kBlock) {
      const int64_t i1 = std::min(rows, i0 + kBlock);
      for (int64_t j = j0; j < j1; ++j) {
        for (int64_t i = i0; i < i1; ++i) to[j * to_row + i] = from[i * row + j * column];
      }
    }
  }
}

}  // namespace

void run_ternary_conv2d(ConvCall call, const TernaryOperand& weight) {
  const auto kernel = kernels().ternary_lists;
  const int64_t plane = static_cast<int64_t>(call.window.out[0]) * call.window.out[1];
  const int64_t group_inputs = call.image.channels / call.groups, group_outputs = call.outputs / call.groups;
  // With groups, in_index names the filters of a depthwise layer, so every list is used whole.
  const bool grouped = call.groups > 1;
  const TernarySlice slice(weight.lists, grouped ? weight.lists.outputs() : call.outputs,
                           grouped ? nullptr : weight.out_index, group_inputs,
                           grouped ? nullptr : weight.in_index);
  call.work = slice.nonzeros();
  call.cycles = 1.5;  // bound by loads, most of them from the second-level cache
  const ConvCuts cuts(call);
  const std::vector<int32_t> offset = cuts.input_offsets(call);
  TernaryListsRun shared;
  slice.apply(shared);
  shared.offset = offset.data();
  shared.scale = weight.scale;
  shared.bias = weight.bias;
  shared.out_stride = plane;
  shared.width = call.window.out[1];
  const TernaryBounds* bounds = shared.bounds;
  cuts.run(call, [&](const ConvPiece& piece) {
    TernaryListsRun a = shared;
    a.rows = piece.rows;
    a.pitch = piece.pitch;
    if (!grouped) {
      a.x = piece.x;
      a.bounds = bounds + piece.first_output;
      a.out_first = piece.first_output;
      a.out_index = weight.out_index == nullptr ? nullptr : weight.out_index + piece.first_output;
      a.outputs = piece.end_output - piece.first_output;
      a.y = piece.y + piece.first_output * plane;
      return kernel(a);
    }
    a.out_index = nullptr;
    a.outputs = group_outputs;
    for (int64_t g = 0; g < call.groups; ++g) {
      a.out_first = (weight.in_index == nullptr ? g : weight.in_index[g]) * group_outputs;
      a.bounds = bounds + a.out_first;
      a.x = piece.x + g * group_inputs * piece.channel_stride;
      a.y = piece.y + g * group_outputs * plane;
      kernel(a);
    }
  });
}

void run_ternary_linear(const TernaryLinearCall& call, const TernaryOperand& weight) {
  const auto kernel = kernels().ternary_lists;
  const TernarySlice slice(weight.lists, call.outputs, weight.out_index, call.inputs, weight.in_index);
  const int threads = slice.nonzeros() * static_cast<double>(call.rows) < kLeastWork ? 1 : call.threads;
  // Pieces of rows first, as they share nothing; of outputs where there are too few rows.
  const int64_t pieces_down = (call.rows + kRowsOfPiece - 1) / kRowsOfPiece;
  const int64_t rows_of_piece = (call.rows + pieces_down - 1) / pieces_down;
  const int64_t pieces_across = std::min<int64_t>((threads + pieces_down - 1) / pieces_down, call.outputs);
  std::vector<int32_t> offset(static_cast<size_t>(call.inputs));
  for (int64_t k = 0; k < call.inputs; ++k)
    offset[static_cast<size_t>(k)] = static_cast<int32_t>(k * rows_of_piece);
  const int64_t outputs_of_piece = (call.outputs + pieces_across - 1) / pieces_across;
  const int64_t x_floats = (call.inputs * rows_of_piece + 64 + 15) / 16 * 16;
  const int64_t scratch_floats = x_floats + (outputs_of_piece * rows_of_piece + 15) / 16 * 16;
  float* scratch = Scratch::floats(static_cast<size_t>(threads * scratch_floats));
  parallel_for(pieces_down * pieces_across, threads, [&](int64_t i, int thread) {
    const int64_t row = i / pieces_across * rows_of_piece, output = i % pieces_across * outputs_of_piece;
    const int64_t rows = std::min(rows_of_piece, call.rows - row);
    const int64_t outputs = std::min(outputs_of_piece, call.outputs - output);
    if (rows <= 0 || outputs <= 0) return;
    float* x = scratch + thread * scratch_floats;
    float* y = x + x_floats;
    transpose(call.x + row * call.x_row, call.x_row, call.x_column, rows, call.inputs, x, rows_of_piece);
    TernaryListsRun a;
    slice.apply(a);
    a.x = x;
    a.offset = offset.data();
    a.bounds += output;
    a.out_index = weight.out_index == nullptr ? nullptr : weight.out_index + output;
    a.out_first = output;
    a.outputs = outputs;
    a.scale = weight.scale;
    a.bias = weight.bias;
    a.y = y;
    a.out_stride = rows;
    a.rows = 1;
    a.width = a.pitch = static_cast<int>(rows);
    kernel(a);
    transpose(y, rows, 1, outputs, rows, call.y + row * call.outputs + output, call.outputs);
  });
}

}  // namespace dynkern
