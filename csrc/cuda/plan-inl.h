// SPDX-License-Identifier: Apache-2.0
// How a call is cut into blocks. No block's share depends on anything but the shapes and the device's size.
#pragma once

#include <algorithm>
#include <string>

#include "cuda/kernels-inl.h"

namespace dynkern::cuda {

constexpr int parts(int all, int part) { return (all + part - 1) / part; }

// Into how many splits to cut `steps` steps, which `warps` warps of a block share, when a split is `blocks`
// blocks and `slots` of them run at a time. The time of a block is taken as its steps and six more, for the
// first load's latency and the results; adding up a split's results as a quarter of one. By arithmetic, not
// by measurement.
inline int best_splits(int steps, int warps, int blocks, int slots) {
  constexpr double kFixedSteps = 6, kStepsPerSplit = 0.25;
  constexpr int kMostSplits = 64;
  int best = 1;
  double least = 0;
  for (int splits = 1; splits <= std::min(kMostSplits, std::max(1, steps / warps)); ++splits) {
    const int share = parts(steps, splits * warps);
    if (splits > 1 && parts(steps, share * warps) != splits) continue;  // some would be left without work
    const double waves = parts(blocks * splits, slots);
    const double cost = waves * (share + kFixedSteps) + (splits > 1 ? splits * kStepsPerSplit : 0);
    if (splits == 1 || cost < least) {
      best = splits;
      least = cost;
    }
  }
  return best;
}

template <class Kernel>
struct SplitsOf;

template <Type T, int NT>
struct SplitsOf<Skinny<T, NT>> {
  static int steps(int inputs) { return parts(inputs, kTileInputs); }
  static constexpr int kWarps = Skinny<T, NT>::kAlong;
};

template <Type T, bool Sparse>
struct SplitsOf<Matrix<T, Sparse>> {
  static int steps(int inputs) { return parts(inputs, Matrix<T, Sparse>::kStep); }
  static constexpr int kWarps = 1;
};

template <Type T, int Rows>
void cut(LinearPlan& plan, Lists<T, Rows>, const PackedForm& weight, int inputs, int) {
  plan.splits = parts(parts(inputs, ListEntry::kGroup), weight.chunk_groups);
  plan.shared_bytes = Lists<T, Rows>::shared_bytes(weight.chunk_groups);
}

template <class Kernel>
void cut(LinearPlan& plan, Kernel, const PackedForm&, int inputs, int multiprocessors) {
  using Splits = SplitsOf<Kernel>;
  plan.splits = best_splits(Splits::steps(inputs), Splits::kWarps, plan.grid[0] * plan.grid[1],
                            Kernel::kBlocksPerUnit * multiprocessors);
  plan.shared_bytes = Kernel::kSharedBytes;
}

// Up to 64 rows the dense product would leave half of its 128 columns empty: two blocks of 32, which run side
// by side, read the weights from the second-level cache once more instead.
inline int columns_of(Form form, int rows) {
  if (form == Form::kLists) return rows <= 2 ? rows : 4;
  if (form == Form::kDense && rows <= 64) return rows <= 8 ? 8 : rows <= 16 ? 16 : 32;
  return 128;
}

inline LinearPlan plan_linear(const PackedForm& weight, Form form, Type x_type, int rows, int inputs,
                              int outputs, int multiprocessors) {
  if (!form_takes(form, x_type))
    throw std::invalid_argument("x: this form of the weight does not take its type");
  LinearPlan plan{};
  plan.form = form;
  plan.x_type = x_type;
  plan.columns = columns_of(form, rows);
  with_kernel(plan, [&](auto kernel) {
    using Kernel = decltype(kernel);
    static_assert(Kernel::kOutputs % kTileOutputs == 0, "whole tiles");
    plan.grid[0] = parts(outputs, Kernel::kOutputs);
    plan.grid[1] = parts(rows, Kernel::kColumns);
    cut(plan, kernel, weight, inputs, multiprocessors);
  });
  plan.grid[2] = plan.splits;
  if (plan.grid[1] > 65535 || plan.grid[2] > 65535) {
    throw std::invalid_argument("x: expected fewer rows, got " + std::to_string(rows));
  }
  if (plan.splits > 1) {
    plan.partial_floats = static_cast<int64_t>(plan.splits) * rows * outputs;
    plan.counters = static_cast<int64_t>(plan.grid[0]) * plan.grid[1];
  }
  return plan;
}

}  // namespace dynkern::cuda
