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
    b.plus = static_cast<int64_t>(index.size());
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
    b.minus = static_cast<int64_t>(index.size());
    index.insert(index.end(), minus.begin(), minus.end());
    b.end = static_cast<int64_t>(index.size());
    bounds.push_back(b);
  }
  index.shrink_to_fit();
}

}  // namespace

TernaryLists::TernaryLists(const uint8_t* packed, int64_t outputs, int64_t inputs, int64_t taps)
    : outputs_(outputs), inputs_(inputs), taps_(taps) {
  const int64_t size = inputs * taps;
  bounds_.reserve(static_cast<size_t>(outputs));
  if (size <= int64_t{1} << 16) {
    build(packed, outputs, size, index_, bounds_);
  } else {
    build(packed, outputs, size, wide_, bounds_);
  }
}

int64_t TernaryLists::bytes() const {
  return static_cast<int64_t>(index_.size() * sizeof(uint16_t) + wide_.size() * sizeof(uint32_t) +
                              bounds_.size() * sizeof(TernaryBounds));
}

int64_t TernarySlice::bytes() const {
  return static_cast<int64_t>(own_index_.size() * sizeof(uint16_t) + own_wide_.size() * sizeof(uint32_t) +
                              own_bounds_.size() * sizeof(TernaryBounds));
}

TernarySlice::TernarySlice(const TernaryLists& lists, int64_t outputs, const int64_t* out_index,
                           int64_t inputs, const int64_t* in_index) {
  if (!lists.wide_.empty()) {
    wide_ = select(lists, lists.wide_, own_wide_, outputs, out_index, inputs, in_index);
  } else {
    index_ = select(lists, lists.index_, own_index_, outputs, out_index, inputs, in_index);
    static const uint16_t kNothing = 0;  // a weight of zeros alone has no index to point at
    if (index_ == nullptr) index_ = &kNothing;
  }
}

template <class Index>
const Index* TernarySlice::select(const TernaryLists& lists, const std::vector<Index>& index,
                                  std::vector<Index>& own, int64_t outputs, const int64_t* out_index,
                                  int64_t inputs, const int64_t* in_index) {
  auto row = [&](int64_t i) {
    return lists.bounds_[static_cast<size_t>(out_index == nullptr ? i : out_index[i])];
  };
  auto keep = [&](TernaryBounds b) {
    own_bounds_.push_back(b);
    nonzeros_ += static_cast<double>(b.end - b.plus);
  };
  if (in_index == nullptr && inputs == lists.inputs_ && out_index == nullptr) {
    bounds_ = lists.bounds_.data();
    nonzeros_ = outputs == 0 ? 0 : static_cast<double>(lists.bounds_[static_cast<size_t>(outputs - 1)].end);
    return index.data();
  }
  own_bounds_.reserve(static_cast<size_t>(outputs));
  const Index* all = index.data();
  if (in_index == nullptr && inputs == lists.inputs_) {
    for (int64_t i = 0; i < outputs; ++i) keep(row(i));
    bounds_ = own_bounds_.data();
    return all;
  }
  // Inputs are chosen: copy the entries that stay. A list is sorted, so a prefix of the inputs is a prefix of
  // it.
  const int64_t limit = in_index == nullptr ? inputs * lists.taps_ : 0;
  std::vector<int64_t> first(in_index == nullptr ? 0 : static_cast<size_t>(lists.inputs_), -1);
  std::vector<int64_t> next(in_index == nullptr ? 0 : static_cast<size_t>(inputs), -1);
  for (int64_t i = inputs - 1; in_index != nullptr && i >= 0; --i) {
    next[static_cast<size_t>(i)] = first[static_cast<size_t>(in_index[i])];
    first[static_cast<size_t>(in_index[i])] = i;
  }
  auto copy = [&](int64_t begin, int64_t end) {
    if (in_index == nullptr) {
      const Index* stop = std::lower_bound(all + begin, all + end, limit, [](Index k, int64_t most) {
        return static_cast<int64_t>(k) < most;
      });
      own.insert(own.end(), all + begin, stop);
      return;
    }
    for (int64_t j = begin; j < end; ++j) {
      const int64_t channel = all[j] / lists.taps_, tap = all[j] % lists.taps_;
      for (int64_t i = first[static_cast<size_t>(channel)]; i >= 0; i = next[static_cast<size_t>(i)]) {
        own.push_back(static_cast<Index>(i * lists.taps_ + tap));
      }
    }
  };
  for (int64_t i = 0; i < outputs; ++i) {
    const TernaryBounds full = row(i);
    TernaryBounds b;
    b.plus = static_cast<int64_t>(own.size());
    copy(full.plus, full.minus);
    b.minus = static_cast<int64_t>(own.size());
    copy(full.minus, full.end);
    b.end = static_cast<int64_t>(own.size());
    keep(b);
  }
  bounds_ = own_bounds_.data();
  return own.data();
}

}  // namespace dynkern
