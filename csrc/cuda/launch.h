// SPDX-License-Identifier: Apache-2.0
// Launches of one type of activations, each compiled in a file of its own.
#pragma once

#include "cuda/ternary_linear.h"

namespace dynkern::cuda {

template <Type T>
void launch(const LinearPlan& plan, const LinearArguments& arguments, void* stream);

}  // namespace dynkern::cuda
