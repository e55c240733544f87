// SPDX-License-Identifier: Apache-2.0
// The quantised weight of a convolution as its kernel reads it: any first outputs and inputs of it, in place.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/element.h"

namespace dynkern {

class QuantizedWeight {
 public:
  // `values`: integers (outputs, inputs, taps), contiguous; int8 for activations of kUint8, else int16.
  QuantizedWeight(const int8_t* values, int64_t outputs, int64_t inputs, int64_t taps);
  QuantizedWeight(const int16_t* values, int64_t outputs, int64_t inputs, int64_t taps);

  Element element() const { return element_; }
  int64_t outputs() const { return outputs_; }
  int64_t inputs() const { return inputs_; }
  int64_t taps() const { return taps_; }

  // Words [outputs / 4][planes][taps][4], each with the weights of the input channels of one word; zeros past
  // the last input and output.
  const int32_t* words() const { return words_.data(); }
  int64_t block() const { return 4 * planes_ * taps_; }  // words of four outputs

  // For each of the first `outputs`, rounded up to four, the sum of all weights in the first `planes`.
  std::vector<int32_t> sums(int64_t outputs, int64_t planes) const;

  // So many words in a row, wherever they begin, have an exact sum in 32 bits for any input.
  int64_t flush() const { return flush_; }

  int64_t bytes() const { return static_cast<int64_t>(words_.size() * sizeof(int32_t)); }

 private:
  template <class Integer>
  void pack(const Integer* values);
  int64_t exact_words() const;

  Element element_;
  int64_t outputs_, inputs_, taps_, planes_, flush_;
  std::vector<int32_t> words_;
};

}  // namespace dynkern
