// SPDX-License-Identifier: Apache-2.0
// The one thread loop. OpenMP, so that the pool is the one PyTorch has already started.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace dynkern {

// Multiply-adds or additions below which waking a thread costs more than it saves.
constexpr double kLeastWork = 200e3;

// f(i, thread) for every i in [0, count), on at most `threads` threads; thread < threads. f must not throw.
template <class F>
void parallel_for(int64_t count, int threads, F&& f) {
  threads = static_cast<int>(std::min<int64_t>(threads, count));
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) f(i, 0);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) f(i, omp_get_thread_num());
}

}  // namespace dynkern
