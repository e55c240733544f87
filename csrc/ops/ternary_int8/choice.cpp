// SPDX-License-Identifier: Apache-2.0
#include "ops/ternary_int8/choice.h"

#include <map>
#include <stdexcept>

#include "core/isa.h"

namespace dynkern {
namespace {

constexpr const char* kNames[] = {"ternary_dense", "ternary_lookup", "ternary_short_lists"};

// Written while Python imports the package, only read afterwards.
std::map<std::string, std::vector<BreakEven>>& tables() {
  static std::map<std::string, std::vector<BreakEven>> tables;
  return tables;
}

}  // namespace

void set_break_even(const std::string& isa, std::vector<BreakEven> table) {
  tables()[isa] = std::move(table);
}

TernaryKernel choose_ternary(int64_t rows, int64_t weights, double zeros) {
  const auto table = tables().find(kernels().isa);
  if (table == tables().end()) return TernaryKernel::kDense;
  const std::vector<BreakEven>& entries = table->second;
  for (auto e = entries.rbegin(); e != entries.rend(); ++e) {
    if (rows >= e->rows && weights >= e->weights)
      return zeros >= e->zeros ? e->kernel : TernaryKernel::kDense;
  }
  return TernaryKernel::kDense;
}

TernaryKernel ternary_kernel(const std::string& name) {
  for (TernaryKernel kernel : {TernaryKernel::kDense, TernaryKernel::kLookup, TernaryKernel::kLists}) {
    if (name == name_of(kernel)) return kernel;
  }
  throw std::invalid_argument("kernel: expected ternary_dense, ternary_lookup or ternary_short_lists, got " +
                              name);
}

const char* name_of(TernaryKernel kernel) { return kNames[static_cast<int>(kernel)]; }

}  // namespace dynkern
