// SPDX-License-Identifier: Apache-2.0
// The steps of ops/ternary_bytes/kernel.h for one weight and one arrangement of its inputs around a pixel.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/aligned.h"

namespace dynkern {

struct ByteLayout {
  AlignedBytes index;
  std::vector<int32_t> window;
  std::vector<uint32_t> begin;
  int together = 1;
  std::vector<int32_t> sums;  // of the weights of each output, to whole groups

  int64_t bytes() const {
    return static_cast<int64_t>(index.size() + (window.size() + begin.size() + sums.size()) * 4);
  }
};

// A packed weight, and the layouts that were made of it.
class TernaryCodes {
 public:
  // `packed` as in TernaryLists.
  TernaryCodes(const uint8_t* packed, int64_t outputs, int64_t inputs, int64_t taps);

  int64_t outputs() const { return outputs_; }
  int64_t inputs() const { return inputs_; }
  int64_t taps() const { return taps_; }
  int64_t bytes() const;

  // For the first `inputs`; tap t of input i is tap_offset[t] + i bytes from the pixel. Valid as long as
  // this.
  const ByteLayout& layout(int64_t inputs, const std::vector<int32_t>& tap_offset) const;

 private:
  // That of fewer windows or of fewer steps, whichever takes less time.
  ByteLayout make(int64_t inputs, const std::vector<int32_t>& tap_offset) const;
  ByteLayout make(int64_t inputs, const std::vector<int32_t>& tap_offset, int together) const;

  struct Cache {
    std::mutex mutex;
    std::map<std::pair<int64_t, std::vector<int32_t>>, ByteLayout> layouts;
  };
  std::vector<uint8_t> packed_;
  int64_t outputs_, inputs_, taps_;
  std::unique_ptr<Cache> cache_ = std::make_unique<Cache>();
};

}  // namespace dynkern
