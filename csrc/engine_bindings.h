// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "ops/ternary/lists.h"

namespace dynkern {

// The lists of a packed weight given as a uint8 tensor; throws std::invalid_argument if it does not fit
// `shape`.
TernaryLists make_lists(pybind11::handle packed, const std::vector<int64_t>& shape);

void bind_engine(pybind11::module_& m);

}  // namespace dynkern
