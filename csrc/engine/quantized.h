// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "engine/step.h"

namespace dynkern::engine {

// Throws std::invalid_argument unless the epilogue's activation keeps `y`, if quantised, within its integers.
void check_bounds(const StepEpilogue& epilogue, const Value& y);

}  // namespace dynkern::engine
