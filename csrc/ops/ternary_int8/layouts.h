// SPDX-License-Identifier: Apache-2.0
// What the kernels read of a packed ternary weight: derived from it when first needed, and never saved.
// Inputs stand in the order of the rows that they meet: taps first, then channels, padded to fours where
// there are several taps.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "core/aligned.h"
#include "ops/ternary/lists.h"

namespace dynkern {

// Outputs whose sums stay in the first-level cache.
constexpr int64_t kOutputChunk = 512;

// The part of a weight that a layout holds.
struct TernaryPart {
  int64_t inputs;  // the first ones of each group
  int64_t groups;  // of the convolution; outputs of each are padded to whole groups of 16

  bool operator<(const TernaryPart& other) const {
    return inputs != other.inputs ? inputs < other.inputs : groups < other.groups;
  }
};

struct DenseLayout {
  int64_t steps;  // of a group of 16 outputs
  AlignedBytes codes;

  size_t bytes() const { return codes.size(); }
};

struct LookupLayout {
  AlignedBytes index;
  std::vector<uint16_t> base;
  std::vector<uint32_t> begin;
  std::vector<int32_t> start;  // one per padded output
  // Which output of its chunk each of them is; empty if they stand in order.
  std::vector<uint16_t> order;

  size_t bytes() const {
    return index.size() + (base.size() + order.size()) * 2 + (begin.size() + start.size()) * 4;
  }
};

class TernaryLayouts {
 public:
  // `packed` as in TernaryLists; the functions below get the same codes again.
  TernaryLayouts(const uint8_t* packed, int64_t outputs, int64_t inputs, int64_t taps);

  int64_t outputs() const { return outputs_; }
  int64_t inputs() const { return inputs_; }
  int64_t taps() const { return taps_; }
  int64_t nonzeros() const { return nonzeros_; }
  double density() const;
  int64_t bytes() const;

  // Entries of a row over that many inputs.
  int64_t row_size(int64_t inputs) const { return taps_ * channels(inputs); }
  int64_t channels(int64_t inputs) const { return taps_ == 1 ? inputs : (inputs + 3) / 4 * 4; }

  const DenseLayout& dense(const uint8_t* packed, TernaryPart part) const;
  const LookupLayout& lookup(const uint8_t* packed, TernaryPart part) const;
  const TernaryLists& lists(const uint8_t* packed) const;

 private:
  using Entries = std::vector<uint32_t>;  // place in the row * 2 + 1 if minus, sorted
  // Calls f with the entries of 16 outputs, for all of them; `order` as in LookupLayout.
  template <class F>
  void for_groups(const uint8_t* packed, TernaryPart part, const std::vector<uint16_t>& order, F&& f) const;
  // The order by numbers of nonzeros, if steps then have much fewer places that nothing fills.
  std::vector<uint16_t> order_of(const uint8_t* packed, TernaryPart part) const;
  DenseLayout make_dense(const uint8_t* packed, TernaryPart part) const;
  LookupLayout make_lookup(const uint8_t* packed, TernaryPart part) const;

  struct Cache {
    std::mutex mutex;
    std::map<TernaryPart, DenseLayout> dense;
    std::map<TernaryPart, LookupLayout> lookup;
    std::unique_ptr<TernaryLists> lists;
  };
  int64_t outputs_, inputs_, taps_, nonzeros_ = 0;
  std::shared_ptr<Cache> cache_ = std::make_shared<Cache>();
};

}  // namespace dynkern
