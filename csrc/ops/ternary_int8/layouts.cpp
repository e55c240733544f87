// SPDX-License-Identifier: Apache-2.0
#include "ops/ternary_int8/layouts.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "core/ternary_format.h"
#include "ops/ternary_int8/kernel.h"

namespace dynkern {

TernaryLayouts::TernaryLayouts(const uint8_t* packed, int64_t outputs, int64_t inputs, int64_t taps)
    : outputs_(outputs), inputs_(inputs), taps_(taps) {
  const int64_t bytes = packed_row_bytes(inputs * taps) * outputs;
  for (int64_t i = 0; i < bytes; ++i) {
    if ((packed[i] & packed[i] >> 1 & 0x55) != 0)
      throw std::invalid_argument("packed: holds the invalid code 11");
    nonzeros_ += __builtin_popcount(packed[i]);
  }
}

double TernaryLayouts::density() const {
  return static_cast<double>(nonzeros_) / static_cast<double>(outputs_ * inputs_ * taps_);
}

int64_t TernaryLayouts::bytes() const {
  const std::lock_guard<std::mutex> lock(cache_->mutex);
  size_t bytes = 0;
  for (const auto& layout : cache_->dense) bytes += layout.second.bytes();
  for (const auto& layout : cache_->lookup) bytes += layout.second.bytes();
  return static_cast<int64_t>(bytes) + (cache_->lists ? cache_->lists->bytes() : 0);
}

const DenseLayout& TernaryLayouts::dense(const uint8_t* packed, TernaryPart part) const {
  const std::lock_guard<std::mutex> lock(cache_->mutex);
  auto known = cache_->dense.find(part);
  if (known == cache_->dense.end()) known = cache_->dense.emplace(part, make_dense(packed, part)).first;
  return known->second;
}

const LookupLayout& TernaryLayouts::lookup(const uint8_t* packed, TernaryPart part) const {
  const std::lock_guard<std::mutex> lock(cache_->mutex);
  auto known = cache_->lookup.find(part);
  if (known == cache_->lookup.end()) known = cache_->lookup.emplace(part, make_lookup(packed, part)).first;
  return known->second;
}

const TernaryLists& TernaryLayouts::lists(const uint8_t* packed) const {
  const std::lock_guard<std::mutex> lock(cache_->mutex);
  if (!cache_->lists) cache_->lists = std::make_unique<TernaryLists>(packed, outputs_, inputs_, taps_);
  return *cache_->lists;
}

template <class F>
void TernaryLayouts::for_groups(const uint8_t* packed, TernaryPart part, const std::vector<uint16_t>& order,
                                F&& f) const {
  const int64_t row_bytes = packed_row_bytes(inputs_ * taps_), padded = channels(part.inputs);
  const int64_t size = part.inputs * taps_, of_group = outputs_ / part.groups;
  std::array<Entries, kGroupOutputs> entries;
  const uint16_t* place = order.data();
  for (int64_t group = 0; group < part.groups; ++group) {
    for (int64_t first = 0; first < of_group; first += kGroupOutputs) {
      for (int64_t o = 0; o < kGroupOutputs; ++o) {
        Entries& row = entries[static_cast<size_t>(o)];
        row.clear();
        const int64_t output =
            order.empty() ? first + o : first / kOutputChunk * kOutputChunk + static_cast<int64_t>(*place++);
        if (output >= of_group) continue;
        const uint8_t* codes = packed + (group * of_group + output) * row_bytes;
        for (int64_t k = 0; k < size; ++k) {
          if (k % 4 == 0 && codes[k / 4] == 0) {
            k += 3;
            continue;
          }
          const int code = code_at(codes, k);
          if (code == kZero) continue;
          const int64_t place = taps_ == 1 ? k : k % taps_ * padded + k / taps_;
          row.push_back(static_cast<uint32_t>(place * 2 + (code == kMinus ? 1 : 0)));
        }
        if (taps_ > 1) std::sort(row.begin(), row.end());
      }
      f(entries);
    }
  }
}

DenseLayout TernaryLayouts::make_dense(const uint8_t* packed, TernaryPart part) const {
  const int64_t of_group = (outputs_ / part.groups + kGroupOutputs - 1) / kGroupOutputs;
  DenseLayout layout;
  layout.steps = (row_size(part.inputs) + kDenseInputs - 1) / kDenseInputs;
  layout.codes = AlignedBytes(static_cast<size_t>(part.groups * of_group * layout.steps * 64));
  std::memset(layout.codes.data(), 0x55, layout.codes.size());  // every code 1: a zero
  uint8_t* codes = layout.codes.data();
  for_groups(packed, part, {}, [&](const auto& entries) {
    for (size_t o = 0; o < entries.size(); ++o) {
      for (uint32_t entry : entries[o]) {
        const uint32_t k = entry / 2, i = k % kDenseInputs / 4;
        uint8_t& code = codes[k / kDenseInputs * 64 + o * 4 + k % 4];
        code = static_cast<uint8_t>(entry % 2 != 0 ? code & ~(1 << 2 * i) : code + (1 << 2 * i));
      }
    }
    codes += layout.steps * 64;
  });
  return layout;
}

std::vector<uint16_t> TernaryLayouts::order_of(const uint8_t* packed, TernaryPart part) const {
  // Random masks of short rows reach 0.85 without a gain that would pay for results out of order.
  constexpr double kMuchFewer = 0.75;
  const int64_t row_bytes = packed_row_bytes(inputs_ * taps_), of_group = outputs_ / part.groups;
  const int64_t padded = (of_group + kGroupOutputs - 1) / kGroupOutputs * kGroupOutputs;
  std::vector<uint16_t> order(static_cast<size_t>(part.groups * padded));
  std::vector<int64_t> counts(static_cast<size_t>(padded));
  int64_t in_order = 0, sorted = 0;
  // The steps of a group are those of its fullest output.
  auto steps = [](const int64_t* count) { return *std::max_element(count, count + kGroupOutputs); };
  for (int64_t group = 0; group < part.groups; ++group) {
    std::fill(counts.begin(), counts.end(), 0);
    for (int64_t o = 0; o < of_group; ++o) {
      const uint8_t* codes = packed + (group * of_group + o) * row_bytes;
      for (int64_t i = 0; i < row_bytes; ++i) counts[static_cast<size_t>(o)] += __builtin_popcount(codes[i]);
    }
    for (int64_t first = 0; first < padded; first += kOutputChunk) {
      const int64_t size = std::min(kOutputChunk, padded - first);
      const int64_t* count = counts.data() + first;
      uint16_t* place = order.data() + group * padded + first;
      for (int64_t o = 0; o < size; ++o) place[o] = static_cast<uint16_t>(o);
      std::stable_sort(place, place + size, [&](uint16_t a, uint16_t b) { return count[a] > count[b]; });
      for (int64_t o = 0; o < size; o += kGroupOutputs) {
        in_order += steps(count + o);
        sorted += count[place[o]];
      }
    }
  }
  if (static_cast<double>(sorted) > kMuchFewer * static_cast<double>(in_order)) order.clear();
  return order;
}

LookupLayout TernaryLayouts::make_lookup(const uint8_t* packed, TernaryPart part) const {
  constexpr uint32_t kEnd = UINT32_MAX;
  LookupLayout layout;
  layout.order = order_of(packed, part);
  std::vector<uint8_t> index;
  for_groups(packed, part, layout.order, [&](const auto& entries) {
    layout.begin.push_back(static_cast<uint32_t>(layout.base.size()));
    std::array<size_t, kGroupOutputs> at{};
    for (;;) {
      // The output that is farthest behind says where the window lies; each takes up to four entries from it.
      uint32_t first = kEnd;
      for (size_t o = 0; o < entries.size(); ++o)
        if (at[o] < entries[o].size()) first = std::min(first, entries[o][at[o]] / 2 / kLookupInputs);
      if (first == kEnd) break;
      layout.base.push_back(static_cast<uint16_t>(first));
      for (size_t o = 0; o < entries.size(); ++o) {
        for (int j = 0; j < 4; ++j) {
          uint8_t byte = kLookupInputs;
          if (at[o] < entries[o].size()) {
            const uint32_t entry = entries[o][at[o]], k = entry / 2, block = k / kLookupInputs - first;
            if (block < 2) {
              byte = static_cast<uint8_t>(block * 64 + k % kLookupInputs + (entry % 2 != 0 ? 128 : 0));
              ++at[o];
            }
          }
          index.push_back(byte);
        }
      }
    }
    for (const Entries& row : entries) {
      int32_t sum = 0;
      for (uint32_t entry : row) sum += entry % 2 != 0 ? -1 : 1;
      layout.start.push_back(-128 * sum);
    }
  });
  layout.begin.push_back(static_cast<uint32_t>(layout.base.size()));
  layout.base.shrink_to_fit();
  layout.index = AlignedBytes(index.size());
  if (!index.empty()) std::memcpy(layout.index.data(), index.data(), index.size());
  return layout;
}

}  // namespace dynkern
