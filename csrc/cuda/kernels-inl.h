// SPDX-License-Identifier: Apache-2.0
// The kernels, and which one a plan names. The GPU's launcher and the tests' host program share this table.
#pragma once

#include <stdexcept>

#include "cuda/lists-inl.h"
#include "cuda/matrix-inl.h"
#include "cuda/skinny-inl.h"

namespace dynkern::cuda {

template <Type T, class F>
void with_kernel_of(const LinearPlan& plan, F&& f) {
  if (plan.form == Form::kLists) {
    if (plan.columns == 1) return f(Lists<T, 1>{});
    if (plan.columns == 2) return f(Lists<T, 2>{});
    return f(Lists<T, 4>{});
  }
  if (plan.form != Form::kDense) return f(Matrix<T, true>{});
  if (plan.columns == 8) return f(Skinny<T, 1>{});
  if (plan.columns == 16) return f(Skinny<T, 2>{});
  if (plan.columns == 32) return f(Skinny<T, 4>{});
  return f(Matrix<T, false>{});
}

// Calls f with an object of the kernel's class.
template <class F>
void with_kernel(const LinearPlan& plan, F&& f) {
  switch (plan.x_type) {
    case Type::kInt8:
      return with_kernel_of<Type::kInt8>(plan, f);
    case Type::kBFloat16:
      return with_kernel_of<Type::kBFloat16>(plan, f);
    case Type::kFloat16:
      return with_kernel_of<Type::kFloat16>(plan, f);
    default:
      throw std::invalid_argument("x: expected int8, bfloat16 or float16");
  }
}

}  // namespace dynkern::cuda
