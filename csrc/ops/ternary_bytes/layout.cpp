// SPDX-License-Identifier: Apache-2.0
#include "ops/ternary_bytes/layout.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "core/ternary_format.h"
#include "ops/ternary_bytes/kernel.h"

namespace dynkern {
namespace {

// A nonzero: the number of its block, its byte there, and whether it is minus.
struct Entry {
  uint32_t block;
  uint8_t byte;
  bool minus;
};

int32_t block_of(int32_t offset) {
  return offset >= 0 ? offset / kByteBlock : -((kByteBlock - 1 - offset) / kByteBlock);
}

}  // namespace

TernaryCodes::TernaryCodes(const uint8_t* packed, int64_t outputs, int64_t inputs, int64_t taps)
    : packed_(packed, packed + outputs * packed_row_bytes(inputs * taps)),
      outputs_(outputs),
      inputs_(inputs),
      taps_(taps) {}

int64_t TernaryCodes::bytes() const {
  const std::lock_guard<std::mutex> lock(cache_->mutex);
  int64_t bytes = static_cast<int64_t>(packed_.size());
  for (const auto& known : cache_->layouts) bytes += known.second.bytes();
  return bytes;
}

const ByteLayout& TernaryCodes::layout(int64_t inputs, const std::vector<int32_t>& tap_offset) const {
  const std::lock_guard<std::mutex> lock(cache_->mutex);
  auto known = cache_->layouts.find({inputs, tap_offset});
  if (known == cache_->layouts.end())
    known = cache_->layouts.emplace(std::make_pair(inputs, tap_offset), make(inputs, tap_offset)).first;
  return known->second;
}

ByteLayout TernaryCodes::make(int64_t inputs, const std::vector<int32_t>& tap_offset) const {
  // What a window of two steps costs, in windows of one step, ends of lists and all.
  constexpr double kTwoSteps = 1.75;
  ByteLayout one = make(inputs, tap_offset, 1), two = make(inputs, tap_offset, 2);
  const bool fewer =
      kTwoSteps * static_cast<double>(two.window.size()) < static_cast<double>(one.window.size());
  return fewer ? std::move(two) : std::move(one);
}

ByteLayout TernaryCodes::make(int64_t inputs, const std::vector<int32_t>& tap_offset, int together) const {
  // The blocks that hold inputs, in the order of memory.
  std::vector<int32_t> blocks;
  for (int32_t tap : tap_offset) {
    for (int32_t b = block_of(tap); b <= block_of(tap + static_cast<int32_t>(inputs) - 1); ++b)
      blocks.push_back(b);
  }
  std::sort(blocks.begin(), blocks.end());
  blocks.erase(std::unique(blocks.begin(), blocks.end()), blocks.end());

  ByteLayout layout;
  layout.together = together;
  std::vector<uint8_t> index;
  std::array<std::vector<Entry>, kByteGroup> rows;
  for (int64_t first = 0; first < outputs_; first += kByteGroup) {
    for (int64_t o = 0; o < kByteGroup; ++o) {
      std::vector<Entry>& row = rows[static_cast<size_t>(o)];
      row.clear();
      int32_t sum = 0;
      if (first + o < outputs_) {
        const uint8_t* codes = packed_.data() + (first + o) * packed_row_bytes(inputs_ * taps_);
        for (int64_t k = 0; k < inputs * taps_; ++k) {
          const int code = code_at(codes, k);
          if (code == kZero) continue;
          const int32_t at = tap_offset[static_cast<size_t>(k % taps_)] + static_cast<int32_t>(k / taps_);
          const auto block = std::lower_bound(blocks.begin(), blocks.end(), block_of(at)) - blocks.begin();
          row.push_back({static_cast<uint32_t>(block), static_cast<uint8_t>(at - block_of(at) * kByteBlock),
                         code == kMinus});
          sum += code == kMinus ? -1 : 1;
        }
      }
      std::sort(row.begin(), row.end(), [](const Entry& a, const Entry& b) {
        return a.block != b.block ? a.block < b.block : a.byte < b.byte;
      });
      layout.sums.push_back(sum);
    }
    layout.begin.push_back(static_cast<uint32_t>(layout.window.size() / 2));
    std::array<size_t, kByteGroup> at{};
    for (;;) {
      // The output that is farthest behind says where the window lies; each takes up to four entries a step
      // from it.
      uint32_t low = UINT32_MAX;
      for (size_t o = 0; o < rows.size(); ++o)
        if (at[o] < rows[o].size()) low = std::min(low, rows[o][at[o]].block);
      if (low == UINT32_MAX) break;
      const size_t high = std::min<size_t>(low + 1, blocks.size() - 1);
      layout.window.push_back(blocks[low] * kByteBlock);
      layout.window.push_back(blocks[high] * kByteBlock);
      for (int step = 0; step < together; ++step) {
        for (size_t o = 0; o < rows.size(); ++o) {
          for (int j = 0; j < 4; ++j) {
            uint8_t byte = kNoInput;
            if (at[o] < rows[o].size()) {
              const Entry& entry = rows[o][at[o]];
              const unsigned place = (entry.block - low) * kByteBlock + entry.byte + (entry.minus ? 128 : 0);
              // The last byte under a minus would look like none: it waits for the next window.
              if (entry.block - low < 2 && place != kNoInput) {
                byte = static_cast<uint8_t>(place);
                ++at[o];
              }
            }
            index.push_back(byte);
          }
        }
      }
    }
  }
  layout.begin.push_back(static_cast<uint32_t>(layout.window.size() / 2));
  layout.window.shrink_to_fit();
  layout.index = AlignedBytes(index.size());
  if (!index.empty()) std::memcpy(layout.index.data(), index.data(), index.size());
  return layout;
}

}  // namespace dynkern
