// SPDX-License-Identifier: Apache-2.0
// The index lists of a packed ternary weight: the form that the CPU kernels walk, derived once and never
// saved.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "ops/ternary/kernel.h"

namespace dynkern {

// Where the inputs of one output lie in the index: those under +1, then those under -1, each sorted.
struct TernaryBounds {
  uint32_t plus, minus, end;
};

using TernaryCuts = std::vector<uint32_t>;  // see TernaryListsRun::cuts

class TernaryLists {
 public:
  // `packed`: (outputs, ceil(inputs * taps / 4)) codes of format 1. Throws std::invalid_argument for an
  // invalid code.
  TernaryLists(const uint8_t* packed, int64_t outputs, int64_t inputs, int64_t taps);

  int64_t outputs() const { return static_cast<int64_t>(bounds_.size()); }
  int64_t inputs() const { return inputs_; }
  int64_t taps() const { return taps_; }
  int64_t nonzeros() const { return static_cast<int64_t>(index_.size() + wide_.size()); }
  int64_t bytes() const;

 private:
  friend class TernarySlice;
  // The cuts of all outputs over all inputs; made once for every size of block and kept.
  const TernaryCuts& whole(int64_t block_inputs) const;

  struct Cache {
    std::mutex mutex;
    std::map<int64_t, TernaryCuts> cuts;
  };
  int64_t inputs_, taps_;
  std::vector<uint16_t> index_;  // if the reduction axis has at most 65,536 elements
  std::vector<uint32_t> wide_;   // otherwise
  std::vector<TernaryBounds> bounds_;
  std::shared_ptr<Cache> cache_ = std::make_shared<Cache>();
};

// The lists of some of the outputs over some of the inputs, cut into blocks of `block_inputs`. Only an index
// set of inputs needs entries of its own; everything else is cuts of the full lists, which must outlive the
// slice.
class TernarySlice {
 public:
  TernarySlice(const TernaryLists& lists, int64_t outputs, const int64_t* out_index, int64_t inputs,
               const int64_t* in_index, int64_t block_inputs);

  // Fills in what `run` needs of the lists, from the given output on.
  void apply(TernaryListsRun& run, int64_t first_output) const {
    run.index = index_;
    run.wide_index = wide_;
    run.cuts = cuts_ + 2 * first_output * (blocks_ + 1);
    run.blocks = blocks_;
  }
  int blocks() const { return blocks_; }
  // What the slice holds beyond the full lists.
  int64_t bytes() const;

 private:
  template <class Index>
  const Index* select(const TernaryLists& lists, const std::vector<Index>& index, std::vector<Index>& own,
                      int64_t outputs, const int64_t* out_index, int64_t inputs, const int64_t* in_index,
                      int64_t block_inputs);

  const uint16_t* index_ = nullptr;
  const uint32_t* wide_ = nullptr;
  const uint32_t* cuts_ = nullptr;
  int blocks_;
  std::vector<uint16_t> own_index_;
  std::vector<uint32_t> own_wide_;
  TernaryCuts own_cuts_;
};

}  // namespace dynkern
