// SPDX-License-Identifier: Apache-2.0
#include "core/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace dynkern {

// Every ISA that CMake compiled, with the CPU features that it needs: the one list of them.
#if defined(__x86_64__)
#define DYNKERN_HAS_AVX2() (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#define DYNKERN_HAS_AVX512()                                                                        \
  (DYNKERN_HAS_AVX2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && \
   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
#define DYNKERN_HAS_AVX512_VNNI() (DYNKERN_HAS_AVX512() && __builtin_cpu_supports("avx512vnni"))
#define DYNKERN_HAS_AVX512_VBMI() (DYNKERN_HAS_AVX512_VNNI() && __builtin_cpu_supports("avx512vbmi"))
#endif

namespace generic {
extern const KernelTable table;
}
#ifdef DYNKERN_BUILD_AVX2
namespace avx2 {
extern const KernelTable table;
}
#endif
#ifdef DYNKERN_BUILD_AVX512
namespace avx512 {
extern const KernelTable table;
}
#endif
#ifdef DYNKERN_BUILD_AVX512_VNNI
namespace avx512_vnni {
extern const KernelTable table;
}
#endif
#ifdef DYNKERN_BUILD_AVX512_VBMI
namespace avx512_vbmi {
extern const KernelTable table;
}
#endif

namespace {

std::vector<const KernelTable*> detect() {
  std::vector<const KernelTable*> found{&generic::table};
#ifdef DYNKERN_BUILD_AVX2
  if (DYNKERN_HAS_AVX2()) found.push_back(&avx2::table);
#endif
#ifdef DYNKERN_BUILD_AVX512
  if (DYNKERN_HAS_AVX512()) found.push_back(&avx512::table);
#endif
#ifdef DYNKERN_BUILD_AVX512_VNNI
  if (DYNKERN_HAS_AVX512_VNNI()) found.push_back(&avx512_vnni::table);
#endif
#ifdef DYNKERN_BUILD_AVX512_VBMI
  if (DYNKERN_HAS_AVX512_VBMI()) found.push_back(&avx512_vbmi::table);
#endif
  return found;
}

const KernelTable* find(const std::string& name) {
  std::string names;
  for (const KernelTable* table : available_isas()) {
    if (name == table->isa) return table;
    names += (names.empty() ? "" : ", ") + std::string(table->isa);
  }
  throw std::invalid_argument("DYNKERN_ISA: expected one of " + names +
                              " (what this build and CPU have), got '" + name + "'");
}

const KernelTable* initial() {
  const char* name = std::getenv("DYNKERN_ISA");
  return name != nullptr && *name != '\0' ? find(name) : available_isas().back();
}

std::atomic<const KernelTable*>& current() {
  static std::atomic<const KernelTable*> table{initial()};
  return table;
}

}  // namespace

const std::vector<const KernelTable*>& available_isas() {
  static const std::vector<const KernelTable*> found = detect();
  return found;
}

const KernelTable& kernels() { return *current().load(std::memory_order_relaxed); }

void force_isa(const std::string& name) { current().store(find(name), std::memory_order_relaxed); }

}  // namespace dynkern
