// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pybind11/pybind11.h>

namespace dynkern::cuda {

void bind(pybind11::module_& m);

}  // namespace dynkern::cuda
