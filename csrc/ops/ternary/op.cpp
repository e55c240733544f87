// SPDX-License-Identifier: Apache-2.0
#include "ops/ternary/op.h"

#include "ops/active_vector.h"
#include "ops/ternary/blocking.h"

namespace dynkern {
namespace {

// Rows of the batch that a piece of a linear layer takes, as lanes: one tile of the widest ISA.
constexpr int64_t kRowsOfPiece = 256;

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
  const int64_t group_inputs = call.image.channels / call.groups, group_outputs = call.outputs / call.groups;
  // With groups, in_index names the filters of a depthwise layer, so every list is used whole.
  const bool grouped = call.groups > 1;
  call.work = static_cast<double>(weight.lists.nonzeros()) *
              static_cast<double>(call.outputs * group_inputs) /
              static_cast<double>(weight.lists.outputs() * weight.lists.inputs());
  call.cycles = 1.5;  // measured: loads from both caches, and the ends of the lists
  const ConvCuts cuts(call);
  const TernaryBlocking blocking(weight.lists, group_inputs, group_outputs, cuts.pixels(call),
                                 [&](int64_t pixels) { return cuts.touched(pixels); });
  const TernarySlice slice(weight.lists, grouped ? weight.lists.outputs() : call.outputs,
                           grouped ? nullptr : weight.out_index, group_inputs,
                           grouped ? nullptr : weight.in_index, blocking.inputs);
  const std::vector<int32_t> offset = cuts.input_offsets(call);
  const ActiveVector scale(weight.scale, grouped ? weight.in_index : weight.out_index, call.outputs,
                           grouped ? group_outputs : 1);
  const ActiveVector bias(weight.bias, grouped ? weight.in_index : weight.out_index, call.outputs,
                          grouped ? group_outputs : 1);
  cuts.run(call, blocking.partial_floats, [&](const ConvPiece& piece) {
    TernaryListsRun a;
    a.offset = offset.data();
    a.vectors = blocking.vectors;
    a.partial = piece.work;
    a.out = piece.out;
    // One group at a time; without groups, the piece's outputs are the group.
    const int64_t begin = grouped ? 0 : piece.first_output;
    a.outputs = grouped ? group_outputs : piece.end_output - piece.first_output;
    for (int64_t g = 0; g < call.groups; ++g) {
      const int64_t first = begin + g * group_outputs;
      const int64_t group = weight.in_index == nullptr || !grouped ? g : weight.in_index[g];
      slice.apply(a, begin + group * group_outputs);
      a.x = piece.x + g * group_inputs * piece.channel_stride;
      a.out.y = piece.out.y + first * piece.out.stride;
      a.out.epilogue.scale = scale.from(first);
      a.out.epilogue.shift = bias.from(first);
      kernel(a);
    }
  });
}

void run_ternary_linear(const TernaryLinearCall& call, const TernaryOperand& weight) {
  const auto kernel = kernels().ternary_lists;
  const double work = static_cast<double>(weight.lists.nonzeros()) /
                      static_cast<double>(weight.lists.outputs()) *
                      static_cast<double>(call.outputs * call.rows);
  const int threads = work < kLeastWork ? 1 : call.threads;
  // Pieces of rows first, as they share nothing; of outputs where there are too few rows.
  const int64_t pieces_down = (call.rows + kRowsOfPiece - 1) / kRowsOfPiece;
  const int64_t rows_of_piece = (call.rows + pieces_down - 1) / pieces_down;
  const int64_t pieces_across = std::min<int64_t>((threads + pieces_down - 1) / pieces_down, call.outputs);
  const ActiveVector scale(weight.scale, weight.out_index, call.outputs);
  const ActiveVector bias(weight.bias, weight.out_index, call.outputs);
  std::vector<int32_t> offset(static_cast<size_t>(call.inputs));
  for (int64_t k = 0; k < call.inputs; ++k)
    offset[static_cast<size_t>(k)] = static_cast<int32_t>(k * rows_of_piece);
  const int64_t outputs_of_piece = (call.outputs + pieces_across - 1) / pieces_across;
  const TernaryBlocking blocking(weight.lists, call.inputs, outputs_of_piece, rows_of_piece,
                                 [&](int64_t pixels) { return std::min(pixels, rows_of_piece); });
  const TernarySlice slice(weight.lists, call.outputs, weight.out_index, call.inputs, weight.in_index,
                           blocking.inputs);
  const int64_t x_floats = (call.inputs * rows_of_piece + 64 + 15) / 16 * 16;
  const int64_t y_floats = (outputs_of_piece * rows_of_piece + 15) / 16 * 16;
  const int64_t scratch_floats = x_floats + y_floats + blocking.partial_floats;
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
    slice.apply(a, output);
    a.x = x;
    a.offset = offset.data();
    a.vectors = blocking.vectors;
    a.partial = y + y_floats;
    a.outputs = outputs;
    a.out = {y, rows, 1, static_cast<int>(rows), static_cast<int>(rows), static_cast<int>(rows), nullptr, {}};
    a.out.epilogue.scale = scale.from(output);
    a.out.epilogue.shift = bias.from(output);
    kernel(a);
    transpose(y, rows, 1, outputs, rows, call.y + row * call.outputs + output, call.outputs);
  });
}

}  // namespace dynkern
