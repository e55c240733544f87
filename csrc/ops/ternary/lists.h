// SPDX-License-Identifier: Apache-2.0
// The index lists of a packed ternary weight: the form that the CPU kernels walk, derived once and never
// saved.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/ternary/kernel.h"

namespace dynkern {

class TernaryLists {
 public:
  // `packed`: (outputs, ceil(inputs * taps / 4)) codes of format 1. Throws std::invalid_argument for an
  // invalid code.
  TernaryLists(const uint8_t* packed, int64_t outputs, int64_t inputs, int64_t taps);

  int64_t outputs() const { return outputs_; }
  int64_t inputs() const { return inputs_; }
  int64_t taps() const { return taps_; }
  int64_t nonzeros() const { return static_cast<int64_t>(index_.size() + wide_.size()); }
  int64_t bytes() const;

 private:
  friend class TernarySlice;
  int64_t outputs_, inputs_, taps_;
  std::vector<uint16_t> index_;  // if the reduction axis has at most 65,536 elements
  std::vector<uint32_t> wide_;   // otherwise
  std::vector<TernaryBounds> bounds_;
};

// The lists of some of the outputs, over some of the inputs; views of the full lists where they are prefixes.
class TernarySlice {
 public:
  TernarySlice(const TernaryLists& lists, int64_t outputs, const int64_t* out_index, int64_t inputs,
               const int64_t* in_index);

  void apply(TernaryListsRun& run) const {
    run.index = index_;
    run.wide_index = wide_;
    run.bounds = bounds_;
  }
  double nonzeros() const { return nonzeros_; }
  // What the slice holds beyond the full lists.
  int64_t bytes() const;

 private:
  template <class Index>
  const Index* select(const TernaryLists& lists, const std::vector<Index>& index, std::vector<Index>& own,
                      int64_t outputs, const int64_t* out_index, int64_t inputs, const int64_t* in_index);

  const uint16_t* index_ = nullptr;
  const uint32_t* wide_ = nullptr;
  const TernaryBounds* bounds_ = nullptr;
  double nonzeros_ = 0;
  std::vector<uint16_t> own_index_;
  std::vector<uint32_t> own_wide_;
  std::vector<TernaryBounds> own_bounds_;
};

}  // namespace dynkern
