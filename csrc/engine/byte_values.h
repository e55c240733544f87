// SPDX-License-Identifier: Apache-2.0
// Values of bytes whose channels are neighbours: where the copies of a pixel lie.
#pragma once

#include <stdexcept>
#include <vector>

#include "engine/step.h"
#include "ops/ternary_bytes/kernel.h"

namespace dynkern::engine {

// Of a value's pixel: pixel x stands in place `left` of its own pixel, in the place after that of the one
// before it, and so on.
inline std::vector<int64_t> copies_of(const Value& value) {
  std::vector<int64_t> copies;
  if (value.layout.pad < value.left || value.layout.pad < value.across - 1 - value.left) {
    throw std::invalid_argument("value: its pixels side by side go past the padding");
  }
  for (int place = 0; place < value.across; ++place)
    copies.push_back((value.left - place) * value.pixel_bytes() + int64_t{place} * value.channels);
  return copies;
}

inline uint8_t* bytes_of(const Context& c, int value, const Value& of, int64_t row) {
  return reinterpret_cast<uint8_t*>(c.value[value]) + row * of.layout.pitch() * of.pixel_bytes();
}

inline ByteRow byte_row(const Context& c, int value, const Value& of, int64_t row,
                        const std::vector<int64_t>& copies) {
  return {bytes_of(c, value, of, row), of.pixel_bytes(), copies.data(), static_cast<int>(copies.size())};
}

}  // namespace dynkern::engine
