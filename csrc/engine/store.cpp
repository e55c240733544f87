// SPDX-License-Identifier: Apache-2.0
#include "engine/store.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "ops/channel_conv2d/kernel.h"
#include "ops/winograd/kernel.h"

namespace dynkern::engine {

float* Arena::slot(size_t layout_id, const Layout& layout, size_t number, int planes) {
  if (slots_.size() <= layout_id) slots_.resize(layout_id + 1);
  auto& slots = slots_[layout_id];
  while (slots.size() <= number) slots.emplace_back();
  AlignedFloats& slot = slots[number];
  // Kernels read up to one vector past the end of a small image.
  const size_t floats = static_cast<size_t>(planes * layout.channel() + 64);
  if (slot.size() < floats) {
    float fill;
    std::memcpy(&fill, &layout.fill, sizeof fill);
    slot = AlignedFloats(floats);
    if (layout.fill != 0) std::fill_n(slot.data(), floats, fill);
  }
  return slot.data();
}

namespace {

// Calls f(plain, ordered) for each filter element: its place as it came, and in blocks of channels.
template <class F>
void for_each_filter_element(const std::vector<int64_t>& shape, F&& f) {
  const int64_t blocks = (shape[1] + kWinogradChannels - 1) / kWinogradChannels;
  for (int64_t o = 0; o < shape[0]; ++o) {
    for (int64_t c = 0; c < shape[1]; ++c) {
      const int64_t block = (o * blocks + c / kWinogradChannels) * kWinogradFilters;
      for (int64_t tap = 0; tap < 9; ++tap) {
        f((o * shape[1] + c) * 9 + tap,
          block + tap / 3 * kWinogradFilterRow + c % kWinogradChannels * 3 + tap % 3);
      }
    }
  }
}

// The same for blocks of outputs.
template <class F>
void for_each_packed_element(const std::vector<int64_t>& shape, F&& f) {
  const int64_t inputs = shape[1] * shape[2] * shape[3];
  for (int64_t o = 0; o < shape[0]; ++o) {
    const int64_t block = o / kPackedOutputs * inputs * kPackedOutputs + o % kPackedOutputs;
    for (int64_t i = 0; i < inputs; ++i) f(o * inputs + i, block + i * kPackedOutputs);
  }
}

int64_t count(const std::vector<int64_t>& shape) {
  int64_t product = 1;
  for (int64_t size : shape) product *= size;
  return product;
}

}  // namespace

size_t Store::add_dense(const float* values, std::vector<int64_t> shape) {
  auto weight = std::make_unique<DenseWeight>();
  weight->plain = AlignedFloats(static_cast<size_t>(count(shape)));
  std::copy_n(values, weight->plain.size(), weight->plain.data());
  weight->shape = std::move(shape);
  weights_.push_back({std::move(weight), nullptr, nullptr, nullptr});
  return weights_.size() - 1;
}

const float* Store::plain(size_t id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  DenseWeight& w = *weights_.at(id).dense;
  if (w.plain.data() == nullptr) {
    w.plain = AlignedFloats(static_cast<size_t>(count(w.shape)));
    float* plain = w.plain.data();
    if (w.filters.data() != nullptr) {
      for_each_filter_element(w.shape, [&](int64_t i, int64_t j) { plain[i] = w.filters.data()[j]; });
    } else {
      for_each_packed_element(w.shape, [&](int64_t i, int64_t j) { plain[i] = w.packed.data()[j]; });
    }
  }
  w.read_plain = true;
  return w.plain.data();
}

const float* Store::winograd_filters(size_t id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  DenseWeight& w = *weights_.at(id).dense;
  if (w.filters.data() == nullptr) {
    if (w.read_plain || w.packed.data() != nullptr) return nullptr;
    const int64_t blocks = (w.shape[1] + kWinogradChannels - 1) / kWinogradChannels;
    w.filters = AlignedFloats(static_cast<size_t>(w.shape[0] * blocks * kWinogradFilters));
    for_each_filter_element(w.shape, [&](int64_t i, int64_t j) { w.filters.data()[j] = w.plain.data()[i]; });
    w.plain = AlignedFloats();
  }
  return w.filters.data();
}

const float* Store::packed(size_t id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  DenseWeight& w = *weights_.at(id).dense;
  if (w.packed.data() == nullptr) {
    const int64_t outputs = (w.shape[0] + kPackedOutputs - 1) / kPackedOutputs * kPackedOutputs;
    if (w.shape.size() != 4 || 4 * outputs > 5 * w.shape[0] || w.read_plain || w.filters.data() != nullptr) {
      return nullptr;
    }
    w.packed = AlignedFloats(static_cast<size_t>(count(w.shape) / w.shape[0] * outputs));
    for_each_packed_element(w.shape, [&](int64_t i, int64_t j) { w.packed.data()[j] = w.plain.data()[i]; });
    w.plain = AlignedFloats();
  }
  return w.packed.data();
}

size_t Store::add_ternary(TernaryLists lists) {
  weights_.push_back({nullptr, std::make_unique<TernaryLists>(std::move(lists)), nullptr, nullptr});
  return weights_.size() - 1;
}

size_t Store::add_quantized(QuantizedWeight weight) {
  weights_.push_back({nullptr, nullptr, std::make_unique<QuantizedWeight>(std::move(weight)), nullptr});
  return weights_.size() - 1;
}

size_t Store::add_codes(TernaryCodes codes) {
  weights_.push_back({nullptr, nullptr, nullptr, std::make_unique<TernaryCodes>(std::move(codes))});
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
    if (w.dense) {
      const size_t floats = w.dense->plain.size() + w.dense->filters.size() + w.dense->packed.size();
      bytes += static_cast<int64_t>(floats * sizeof(float));
    }
    if (w.ternary) bytes += w.ternary->bytes();
    if (w.quantized) bytes += w.quantized->bytes();
    if (w.codes) bytes += w.codes->bytes();
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
