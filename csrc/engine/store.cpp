// SPDX-License-Identifier: Apache-2.0
#include "engine/store.h"

#include <algorithm>

namespace dynkern::engine {

float* Arena::slot(size_t layout_id, const Layout& layout, size_t number, int channels) {
  if (slots_.size() <= layout_id) slots_.resize(layout_id + 1);
  auto& slots = slots_[layout_id];
  while (slots.size() <= number) slots.emplace_back();
  Slot& slot = slots[number];
  // Kernels read up to one vector past the end of a small image.
  const int64_t floats = channels * layout.channel() + 64;
  if (slot.floats < floats) {
    slot.data.reset(new float[static_cast<size_t>(floats)]());
    slot.floats = floats;
  }
  return slot.data.get();
}

size_t Store::add_dense(DenseWeight weight) {
  weights_.push_back({std::make_unique<DenseWeight>(std::move(weight)), nullptr});
  return weights_.size() - 1;
}

size_t Store::add_ternary(TernaryLists lists) {
  weights_.push_back({nullptr, std::make_unique<TernaryLists>(std::move(lists))});
  return weights_.size() - 1;
}

size_t Store::layout_id(const Layout& layout) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto known = std::find(layouts_.begin(), layouts_.end(), layout);
  if (known != layouts_.end()) return static_cast<size_t>(known - layouts_.begin());
  layouts_.push_back(layout);
  return layouts_.size() - 1;
}

int64_t Store::weight_bytes() const {
  int64_t bytes = 0;
  for (const Weight& w : weights_) {
    bytes += w.dense ? static_cast<int64_t>(w.dense->data.size() * sizeof(float)) : w.ternary->bytes();
  }
  return bytes;
}

std::unique_ptr<Arena> Store::acquire() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (free_.empty()) return std::make_unique<Arena>();
  std::unique_ptr<Arena> arena = std::move(free_.back());
  free_.pop_back();
  return arena;
}

void Store::release(std::unique_ptr<Arena> arena) {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(std::move(arena));
}

}  // namespace dynkern::engine
