// SPDX-License-Identifier: Apache-2.0
// From the packed ternary weight (format 1, core/ternary_format.h) to the forms that the GPU kernels read
// (layout.h). Runs on the host, once, when a weight is moved to a device.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/ternary_linear.h"

namespace dynkern::cuda {

struct Packed {
  std::vector<uint32_t> words, starts, bases;
  std::vector<uint16_t> rest;
  int chunk_groups = 0;
};

// `packed`: (outputs, ceil(inputs / 4)) valid codes. `multiprocessors`: of the device, for the lists' chunks.
// On at most `threads` threads; the result does not depend on how many. Throws std::invalid_argument for a
// shape that offsets of 32 bits do not reach.
Packed pack_form(const uint8_t* packed, int64_t outputs, int64_t inputs, Form form, int multiprocessors,
                 int threads);

}  // namespace dynkern::cuda
