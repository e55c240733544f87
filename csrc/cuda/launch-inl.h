// SPDX-License-Identifier: Apache-2.0
// The kernels' entry points, and their launch, for one type of activations.
#pragma once

#include <cuda_runtime.h>

#include "cuda/launch.h"
#include "cuda/kernels-inl.h"

namespace dynkern::cuda {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocksPerUnit)
    ternary_linear_kernel(const __grid_constant__ LinearArguments a) {
  Kernel::run(a);
}

template <Type T>
void launch(const LinearPlan& plan, const LinearArguments& arguments, void* stream) {
  const dim3 grid(plan.grid[0], plan.grid[1], plan.grid[2]);
  with_kernel_of<T>(plan, [&](auto kernel) {
    using Kernel = decltype(kernel);
    ternary_linear_kernel<Kernel>
        <<<grid, Kernel::kThreads, plan.shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments);
  });
}

}  // namespace dynkern::cuda
