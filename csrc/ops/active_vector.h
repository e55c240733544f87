// SPDX-License-Identifier: Apache-2.0
// One number per output channel of the full weight, seen as one per active output: where it lies for a
// prefix, gathered for an index set.
#pragma once

#include <cstdint>
#include <vector>

namespace dynkern {

class ActiveVector {
 public:
  // `full` may be null, which stays null. With groups, `index` names groups, of `per_group` outputs each.
  ActiveVector(const float* full, const int64_t* index, int64_t count, int64_t per_group = 1) : data_(full) {
    if (full == nullptr || index == nullptr) return;
    own_.reserve(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i)
      own_.push_back(full[index[i / per_group] * per_group + i % per_group]);
    data_ = own_.data();
  }

  const float* from(int64_t first) const { return data_ == nullptr ? nullptr : data_ + first; }

 private:
  std::vector<float> own_;
  const float* data_;
};

}  // namespace dynkern
