// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "ops/sliced_linear/kernel.h"

namespace dynkern {

// The neighbours among the inputs of `in_index` (null: the first `inputs`).
std::vector<Run> runs_of(int64_t inputs, const int64_t* in_index);

// Computes `call`, whose bias is of the full weight and whose runs are those of `in_index`, on up to
// `threads` threads.
void run_sliced_linear(SlicedLinear call, int64_t inputs, const int64_t* in_index, int threads);

}  // namespace dynkern
