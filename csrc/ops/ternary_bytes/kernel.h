// SPDX-License-Identifier: Apache-2.0
// Ternary convolution of bytes whose channels are neighbours, read where they lie: no patch is put together.
//
//   sum[p][o] = start[o] + sum over the nonzeros of o of  w * x[p][offset of its input]
//   y[p][o] = epilogue(sum[p][o]), rounded to the nearest integer if y is bytes
//
// Lanes are outputs. Each step offers 16 outputs 4 places each, in a window of two blocks of 64 bytes near
// the pixel; it is decoded once for 8 pixels. No multiply-add of the epilogue is fused: integers are the same
// bits under every instruction set.
#pragma once

#include <cstdint>

#include "ops/plane_output.h"

namespace dynkern {

constexpr int kByteGroup = 16;      // outputs whose weights lie together
constexpr int kByteBlock = 64;      // bytes of half a window
constexpr uint8_t kNoInput = 0xff;  // a place that is not used

// Where a row of pixels goes: `count` copies, which lie at those bytes from `y`.
struct ByteRow {
  uint8_t* y;
  int64_t pixel;  // bytes between pixels
  const int64_t* copies;
  int count;
};

struct TernaryBytes {
  // Four bytes for each of 16 outputs a step: a byte of the window (bits 0 to 6) and a sign (bit 7: minus).
  const uint8_t* index;
  const int32_t* window;  // two a window: where its blocks begin, from the pixel on
  const uint32_t* begin;  // groups + 1: the windows of each group of outputs
  int together;           // steps of a window, 1 or 2
  int64_t groups;

  const uint8_t* x;
  int64_t x_step;  // bytes between the pixels under neighbouring results
  int64_t pixels;  // of the row

  // Vectors go on to whole groups, and scale, shift and (with a residual) residual scale are there.
  const int32_t* start;
  Epilogue epilogue;        // its residual is not used
  const uint8_t* residual;  // null for none
  int64_t residual_pixel;
  int64_t outputs;
  ByteRow out;  // without copies: floats instead, to planes
  float* planes;
  int64_t plane_stride;
};

// A row of planes of floats to bytes: nearest(clamp(scale * x + shift)).
struct BytesOfPlanes {
  const float* x;
  int64_t channel_stride, channels, pixels;
  const float* scale;
  const float* shift;
  float low, high;
  ByteRow out;
};

// And back: scale * q + shift.
struct PlanesOfBytes {
  const uint8_t* x;
  int64_t pixel;
  int64_t channels, pixels;
  const float* scale;
  const float* shift;
  float* y;
  int64_t channel_stride;
};

}  // namespace dynkern
