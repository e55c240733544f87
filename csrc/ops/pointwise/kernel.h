// SPDX-License-Identifier: Apache-2.0
// The epilogue alone, y[i] = epilogue(x[i]), over planes and over features.
#pragma once

#include <cstdint>

#include "ops/plane_output.h"

namespace dynkern {

struct Pointwise {
  const float* x;  // rows as in out, `x_stride` floats between channels
  int64_t x_stride;
  int64_t channels;
  PlaneOutput out;
};

// As Pointwise, but each of `count` neighbours in memory is a channel of one pixel.
struct Features {
  const float* x;
  float* y;
  int64_t count;
  Epilogue epilogue;  // residual_stride is not used
};

}  // namespace dynkern
