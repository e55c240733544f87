// SPDX-License-Identifier: Apache-2.0
#include "cuda/launch-inl.h"

template void dynkern::cuda::launch<dynkern::cuda::Type::kBFloat16>(const LinearPlan&, const LinearArguments&,
                                                                    void*);
