// SPDX-License-Identifier: Apache-2.0
#include "ops/ternary/lists.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "core/ternary_format.h"

namespace dynkern {
namespace {

template <class Index>
void build(const uint8_t* packed, int64_t outputs, int64_t size, std::vector<Index>& index,
           std::vector<TernaryBounds>& bounds) {
  const int64_t row_bytes = packed_row_bytes(size);
  std::vector<Index> minus;
  for (int64_t o = 0; o < outputs; ++o, packed += row_bytes) {
    TernaryBounds b;
    b.plus = static_cast<uint32_t>(index.size());
    minus.clear();
    for (int64_t k = 0; k < size; ++k) {
      switch (code_at(packed, k)) {
        case kZero:
          break;
        case kPlus:
          index.push_back(static_cast<Index>(k));
          break;
        case kMinus:
          minus.push_back(static_cast<Index>(k));
          break;
        default:
          throw std::invalid_argument("packed: holds the invalid code 11, in row " + std::to_string(o));
      }
    }
    b.minus = static_cast<uint32_t>(index.size());
    index.insert(index.end(), minus.begin(), minus.end());
    if (index.size() > UINT32_MAX) throw std::invalid_argument("packed: more than 2^32 nonzeros");
    b.end = static_cast<uint32_t>(index.size());
    bounds.push_back(b);
  }
  index.shrink_to_fit();
}

// The cuts of one output after each `step` of the reduction axis, up to `size` of it.
template <class Index>
void cut(const Index* index, TernaryBounds b, int64_t step, int64_t size, TernaryCuts& cuts) {
  uint32_t plus = b.plus, minus = b.minus;
  auto advance = [&](uint32_t& at, uint32_t end, int64_t limit) {
    while (at < end && static_cast<int64_t>(index[at]) < limit) ++at;
    cuts.push_back(at);
  };
  for (int64_t limit = 0; limit < size; limit += step) {
    advance(plus, b.minus, limit);
    advance(minus, b.end, limit);
  }
  advance(plus, b.minus, size);
  advance(minus, b.end, size);
}

int64_t blocks_of(int64_t inputs, int64_t block_inputs) { return (inputs + block_inputs - 1) / block_inputs; }

}  // namespace

TernaryLists::TernaryLists(const uint8_t* packed, int64_t outputs, int64_t inputs, int64_t taps)
    : inputs_(inputs), taps_(taps) {
  const int64_t size = inputs * taps;
  bounds_.reserve(static_cast<size_t>(outputs));
  if (size <= int64_t{1} << 16) {
    build(packed, outputs, size, index_, bounds_);
  } else {
    build(packed, outputs, size, wide_, bounds_);
  }
}

int64_t TernaryLists::bytes() const {
  const std::lock_guard<std::mutex> lock(cache_->mutex);
  size_t bytes = index_.size() * sizeof(uint16_t) + wide_.size() * sizeof(uint32_t) +
                 bounds_.size() * sizeof(TernaryBounds);
  for (const auto& cuts : cache_->cuts) bytes += cuts.second.size() * sizeof(uint32_t);
  return static_cast<int64_t>(bytes);
}

const TernaryCuts& TernaryLists::whole(int64_t block_inputs) const {
  const std::lock_guard<std::mutex> lock(cache_->mutex);
  TernaryCuts& cuts = cache_->cuts[block_inputs];
  if (cuts.empty()) {
    cuts.reserve(2 * bounds_.size() * static_cast<size_t>(blocks_of(inputs_, block_inputs) + 1));
    for (const TernaryBounds& b : bounds_) {
      if (wide_.empty()) {
        cut(index_.data(), b, block_inputs * taps_, inputs_ * taps_, cuts);
      } else {
        cut(wide_.data(), b, block_inputs * taps_, inputs_ * taps_, cuts);
      }
    }
  }
  return cuts;
}

int64_t TernarySlice::bytes() const {
  return static_cast<int64_t>(own_index_.size() * sizeof(uint16_t) +
                              (own_wide_.size() + own_cuts_.size()) * sizeof(uint32_t));
}

TernarySlice::TernarySlice(const TernaryLists& lists, int64_t outputs, const int64_t* out_index,
                           int64_t inputs, const int64_t* in_index, int64_t block_inputs)
    : blocks_(static_cast<int>(blocks_of(inputs, block_inputs))) {
  if (!lists.wide_.empty()) {
    wide_ = select(lists, lists.wide_, own_wide_, outputs, out_index, inputs, in_index, block_inputs);
  } else {
    index_ = select(lists, lists.index_, own_index_, outputs, out_index, inputs, in_index, block_inputs);
    static const uint16_t kNothing = 0;  // a weight of zeros alone has no index to point at
    if (index_ == nullptr) index_ = &kNothing;
  }
  if (cuts_ == nullptr) cuts_ = own_cuts_.data();
}

template <class Index>
const Index* TernarySlice::select(const TernaryLists& lists, const std::vector<Index>& index,
                                  std::vector<Index>& own, int64_t outputs, const int64_t* out_index,
                                  int64_t inputs, const int64_t* in_index, int64_t block_inputs) {
  const int64_t step = block_inputs * lists.taps_, size = inputs * lists.taps_;
  auto row = [&](int64_t i) {
    return lists.bounds_[static_cast<size_t>(out_index == nullptr ? i : out_index[i])];
  };
  if (in_index == nullptr && inputs == lists.inputs_ && out_index == nullptr) {
    cuts_ = lists.whole(block_inputs).data();
    return index.data();
  }
  own_cuts_.reserve(static_cast<size_t>(2 * outputs * (blocks_ + 1)));
  if (in_index == nullptr) {
    // A list is sorted, so a prefix of the inputs is a prefix of it.
    for (int64_t i = 0; i < outputs; ++i) cut(index.data(), row(i), step, size, own_cuts_);
    return index.data();
  }
  // For each input of the full weight, the active inputs that are it.
  std::vector<std::vector<int64_t>> active(static_cast<size_t>(lists.inputs_));
  for (int64_t i = 0; i < inputs; ++i) active[static_cast<size_t>(in_index[i])].push_back(i);
  auto copy = [&](uint32_t begin, uint32_t end) {
    const size_t start = own.size();
    for (uint32_t j = begin; j < end; ++j) {
      const int64_t channel = index[j] / lists.taps_, tap = index[j] % lists.taps_;
      for (int64_t i : active[static_cast<size_t>(channel)])
        own.push_back(static_cast<Index>(i * lists.taps_ + tap));
    }
    std::sort(own.begin() + static_cast<std::ptrdiff_t>(start), own.end());
  };
  std::vector<TernaryBounds> bounds;
  for (int64_t i = 0; i < outputs; ++i) {
    const TernaryBounds full = row(i);
    TernaryBounds b;
    b.plus = static_cast<uint32_t>(own.size());
    copy(full.plus, full.minus);
    b.minus = static_cast<uint32_t>(own.size());
    copy(full.minus, full.end);
    b.end = static_cast<uint32_t>(own.size());
    bounds.push_back(b);
  }
  for (const TernaryBounds& b : bounds) cut(own.data(), b, step, size, own_cuts_);
  return own.data();
}

}  // namespace dynkern
