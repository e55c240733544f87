// SPDX-License-Identifier: Apache-2.0
// How an activation lies in memory: padded planes, one per channel, which a convolution of stride 1 reads in
// place.
//
//   pixel (y, x) of a channel = origin + y * pitch + x,   pitch = width + pad
//
// The `pad` columns between two rows are the right padding of one and the left padding of the next; `pad`
// rows lie above and below. All of it is `fill` when the arena is made and stays so: steps write pixels, and
// `fill` between rows. A pixel is a 32-bit word: a float, or several quantised channels (engine/element.h),
// whose zero the fill is.
#pragma once

#include <cstdint>

namespace dynkern::engine {

struct Layout {
  int height, width, pad;
  uint32_t fill = 0;
  // 0: planes. Else the channels of a pixel are neighbours, in so many words, and there is one plane of
  // pixels.
  int pixel_words = 0;
  // How pixels hold their neighbours, in which part of the padding lies: the channels of each, and how many
  // are before the pixel itself; 0 if they do not.
  int held_channels = 0, held_before = 0;

  int pitch() const { return width + pad; }
  int64_t origin() const { return static_cast<int64_t>(pad) * pitch() + pad; }
  // Words before pixel (0, 0).
  int64_t first_word() const { return origin() * (pixel_words > 0 ? pixel_words : 1); }
  int64_t channel() const { return static_cast<int64_t>(height + 2 * pad) * pitch() + pad; }
  bool same_size(const Layout& other) const { return height == other.height && width == other.width; }
  bool operator==(const Layout& other) const {
    return same_size(other) && pad == other.pad && fill == other.fill && pixel_words == other.pixel_words &&
           held_channels == other.held_channels && held_before == other.held_before;
  }
};

}  // namespace dynkern::engine
