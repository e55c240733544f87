// SPDX-License-Identifier: Apache-2.0
// Which kernel makes the sums: the table of measured break-even points, shipped as data and handed over by
// Python.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dynkern {

enum class TernaryKernel { kDense, kLookup, kLists };

// For calls of at least that many rows on weights of at least that many entries, `kernel` wins where at least
// that share of them is zero.
struct BreakEven {
  int64_t rows, weights;
  TernaryKernel kernel;
  double zeros;
};

// Of the instruction set of that name; later entries go before earlier ones.
void set_break_even(const std::string& isa, std::vector<BreakEven> table);

// What the table says for the instruction set in use; dense where it says nothing.
TernaryKernel choose_ternary(int64_t rows, int64_t weights, double zeros);

// "ternary_dense" and so on, the names in the table of kernels; throws std::invalid_argument.
TernaryKernel ternary_kernel(const std::string& name);
const char* name_of(TernaryKernel kernel);

}  // namespace dynkern
