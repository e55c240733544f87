// SPDX-License-Identifier: Apache-2.0
// Which instruction set runs: the best that the CPU has and the build holds, or the one that DYNKERN_ISA
// names.
#pragma once

#include <string>
#include <vector>

#include "ops/kernels.h"

namespace dynkern {

// Tables that this build holds and this CPU can run, slowest first.
const std::vector<const KernelTable*>& available_isas();

// The table in use.
const KernelTable& kernels();

// Use the table of that name from now on; throws std::invalid_argument if it is not available.
void force_isa(const std::string& name);

}  // namespace dynkern
