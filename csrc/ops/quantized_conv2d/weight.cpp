// SPDX-License-Identifier: Apache-2.0
#include "ops/quantized_conv2d/weight.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "ops/quantized_conv2d/kernel.h"

namespace dynkern {
namespace {

constexpr int64_t kLargestUint8 = 255, kLargestInt8 = 128, kLargestInt16 = 32767;

// Integer number i of a word.
int64_t part(int32_t word, int i, Element element) {
  const uint32_t bits = static_cast<uint32_t>(word);
  return element == Element::kUint8 ? static_cast<int64_t>(static_cast<int8_t>(bits >> (8 * i)))
                                    : static_cast<int64_t>(static_cast<int16_t>(bits >> (16 * i)));
}

}  // namespace

QuantizedWeight::QuantizedWeight(const int8_t* values, int64_t outputs, int64_t inputs, int64_t taps)
    : element_(Element::kUint8), outputs_(outputs), inputs_(inputs), taps_(taps), planes_((inputs + 3) / 4) {
  if (planes_ * 4 * taps_ * kLargestUint8 * kLargestInt8 > INT32_MAX) {
    throw std::invalid_argument("weight: too many inputs for exact sums of 32 bits");
  }
  pack(values);
  flush_ = planes_ * taps_;
}

QuantizedWeight::QuantizedWeight(const int16_t* values, int64_t outputs, int64_t inputs, int64_t taps)
    : element_(Element::kInt16), outputs_(outputs), inputs_(inputs), taps_(taps), planes_((inputs + 1) / 2) {
  for (int64_t i = 0; i < outputs * inputs * taps; ++i) {
    if (values[i] < -kLargestInt16) throw std::invalid_argument("weight: expected at least -32767");
  }
  pack(values);
  flush_ = exact_words();
}

template <class Integer>
void QuantizedWeight::pack(const Integer* values) {
  constexpr int kOutputs = kQuantizedOutputs;
  const int per_word = channels_of_word(element_), bits = 32 / per_word;
  words_.assign(static_cast<size_t>((outputs_ + kOutputs - 1) / kOutputs * block()), 0);
  for (int64_t o = 0; o < outputs_; ++o) {
    for (int64_t i = 0; i < inputs_; ++i) {
      for (int64_t t = 0; t < taps_; ++t) {
        const uint32_t value =
            static_cast<uint32_t>(static_cast<int32_t>(values[(o * inputs_ + i) * taps_ + t]));
        const uint32_t kept = value & ((1u << bits) - 1);
        const int64_t at = o / kOutputs * block() + (i / per_word * taps_ + t) * kOutputs + o % kOutputs;
        int32_t& word = words_[static_cast<size_t>(at)];
        word = static_cast<int32_t>(static_cast<uint32_t>(word) | kept << (bits * (i % per_word)));
      }
    }
  }
}

std::vector<int32_t> QuantizedWeight::sums(int64_t outputs, int64_t planes) const {
  constexpr int kOutputs = kQuantizedOutputs;
  std::vector<int32_t> sums;
  for (int64_t o = 0; o < (outputs + kOutputs - 1) / kOutputs * kOutputs; ++o) {
    int64_t sum = 0;
    for (int64_t w = 0; w < planes * taps_; ++w) {
      const int32_t word = words_[static_cast<size_t>(o / kOutputs * block() + w * kOutputs + o % kOutputs)];
      for (int i = 0; i < channels_of_word(element_); ++i) sum += part(word, i, element_);
    }
    sums.push_back(static_cast<int32_t>(sum));
  }
  return sums;
}

// The longest run of words such that every run of that length has weights small enough, by two pointers.
int64_t QuantizedWeight::exact_words() const {
  const int64_t count = planes_ * taps_;
  int64_t shortest = count;
  for (int64_t o = 0; o < outputs_; ++o) {
    auto size = [&](int64_t w) {
      const int32_t word = words_[static_cast<size_t>(o / kQuantizedOutputs * block() +
                                                      w * kQuantizedOutputs + o % kQuantizedOutputs)];
      return std::abs(part(word, 0, element_)) + std::abs(part(word, 1, element_));
    };
    int64_t begin = 0, sum = 0;
    for (int64_t end = 0; end < count; ++end) {
      sum += size(end);
      // The run from `begin` to before `end` is as long as it may be: no run may be longer.
      while (sum * kLargestInt16 > INT32_MAX) {
        shortest = std::min(shortest, end - begin);
        sum -= size(begin++);
      }
    }
  }
  return shortest;
}

}  // namespace dynkern
