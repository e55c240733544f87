// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/conv_call.h"
#include "ops/ternary/op.h"
#include "ops/ternary_int8/tiles.h"

namespace dynkern {

// Rows longer than this do not fit the sums of 32 bits or the blocks of the lookup layout.
constexpr int64_t kMostInt8Inputs = int64_t{1} << 22;

// Rows of the batch with contiguous entries.
void run_ternary_linear_int8(const TernaryLinearCall& call, const Int8Operand& weight);

// Images whose columns are neighbours; `work` and `cycles` of the call are not read.
void run_ternary_conv2d_int8(const ConvCall& call, const Int8Operand& weight);

}  // namespace dynkern
