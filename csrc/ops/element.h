// SPDX-License-Identifier: Apache-2.0
// What a 32-bit word of a plane holds: one float, or the quantised values of neighbouring channels at that
// pixel, the first one in the lowest bits. Channels past the last one of a value hold its zero point.
#pragma once

namespace dynkern {

enum class Element {
  kFloat,
  kUint8,  // 4 channels: value = scale * (q - zero point)
  kInt16,  // 2 channels: value = scale * q, |q| <= 32767
};

constexpr int channels_of_word(Element element) {
  return element == Element::kUint8 ? 4 : element == Element::kInt16 ? 2 : 1;
}

}  // namespace dynkern
