// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/sliced_linear/kernel.h"

namespace dynkern {

// Computes `call`, whose runs are those of `in_index` (null: the first `inputs`), on up to `threads` threads.
void run_sliced_linear(SlicedLinear call, int64_t inputs, const int64_t* in_index, int threads);

}  // namespace dynkern
