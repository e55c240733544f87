// SPDX-License-Identifier: Apache-2.0
// Linear layer with a packed ternary weight, on a CUDA device.
//
//   y[m][o] = bias[o] + scale[o] row_scale[m] sum over k of w[o][k] x[m][k]
//
// for the first `outputs` rows and the first `inputs` columns of the weight, so that a narrower sub-net runs
// from the one weight. Sums of int8 activations are exact integers; others are float32.
//
// Nothing here allocates, waits or reads what a kernel wrote, so a call can be captured in a CUDA graph.
#pragma once

#include <cstdint>

#include "cuda/types.h"

namespace dynkern::cuda {

// A packed weight in one of its forms, see layout.h and pack.h.
struct PackedForm {
  const uint32_t* words;   // tiles, or quads of lists
  const uint32_t* starts;  // lists: the first quad of each tile and chunk; sparse: the headers of the rest
  const uint32_t* bases;   // lists: the bases of each quad
  const uint16_t* rest;    // sparse: rounds of eight entries
  int outputs, inputs;     // of the full weight
  int chunk_groups;        // lists: groups in a chunk
};

struct LinearArguments {
  PackedForm weight;
  const void* x;  // (rows, inputs)
  int64_t x_row;  // from one row to the next, in elements
  int rows, inputs, outputs;
  const float* row_scale;  // (rows), or null
  const float* scale;      // (outputs), or null
  const void* bias;        // (outputs), or null
  Type bias_type;
  void* y;  // (rows, outputs), contiguous
  Type y_type;
  float* partial;     // (splits, rows, outputs), if splits > 1
  unsigned* arrived;  // one per block of results, zero before the call and again after it, if splits > 1
  int splits;         // of the inputs, over blocks
  bool vectors;       // rows of x can be read 16 bytes at a time
};

// How a call is cut: a function of its shape and the device alone, so that results do not depend on anything
// else.
struct LinearPlan {
  Form form;
  Type x_type;
  int columns;  // rows of x that a block takes: 8, 16, 32 (tensor cores), 1, 2, 4 (lists), 64 and up (matrix
                // product)
  // Blocks of outputs, of rows, splits: blocks that read the same weights are started one after the other.
  int grid[3];
  int splits;
  int shared_bytes;
  int64_t partial_floats, counters;
};

// Whether that form can take activations of that type.
constexpr bool form_takes(Form form, Type x) {
  if (x == Type::kFloat32) return false;
  return form == Form::kDense || form == Form::kLists || (form == Form::kSparse8) == (x == Type::kInt8);
}

// Above this number of inputs a sum of int8 products might pass 32 bits.
constexpr int kMostInt8Inputs = 0x7FFFFFFF / (64 * 128);

LinearPlan make_plan(const PackedForm& weight, Form form, Type x_type, int rows, int inputs, int outputs,
                     int multiprocessors);

// Starts the kernel on a stream (a cudaStream_t) of a device. Throws std::runtime_error with CUDA's words.
void run_linear(const LinearPlan& plan, const LinearArguments& arguments, int device, void* stream);

}  // namespace dynkern::cuda
