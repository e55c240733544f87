// SPDX-License-Identifier: Apache-2.0
// What stands before and after the sums: quantising, scaling. No product is fused with the addition after it,
// so that every instruction set gives the same bits.

inline IntVec load_bits(const float* p) { return *reinterpret_cast<const UnalignedIntVec*>(p); }

// The low byte of each word is the nearest integer of x * inverse, ties to even. NaN becomes -127.
inline IntVec quantized(Vec x, Vec inverse) {
  x = in_register(x * inverse);
  x = x > -127.f ? x : splat(-127.f);
  x = x < 127.f ? x : splat(127.f);
  return reinterpret_cast<IntVec>(in_register(x + 12582912.f));
}

void greatest_magnitude(const GreatestMagnitude& a) {
  // As integers, so that NaN is greater than infinity.
  constexpr int kSums = 4;
  IntVec most[kSums] = {};
  int64_t i = 0;
  auto take = [&](IntVec& m, const float* p) {
    const IntVec bits = load_bits(p) & 0x7fffffff;
    m = bits > m ? bits : m;
  };
  for (; i + kSums * kLanes <= a.count; i += kSums * kLanes)
    for (int s = 0; s < kSums; ++s) take(most[s], a.x + i + s * kLanes);
  for (; i + kLanes <= a.count; i += kLanes) take(most[0], a.x + i);
  int32_t result = 0;
  for (const IntVec& m : most)
    for (int l = 0; l < kLanes; ++l) result = m[l] > result ? m[l] : result;
  for (; i < a.count; ++i) {
    int32_t bits;
    __builtin_memcpy(&bits, a.x + i, 4);
    bits &= 0x7fffffff;
    result = bits > result ? bits : result;
  }
  __builtin_memcpy(a.result, &result, 4);
}

void quantize_row(const QuantizeRow& a) {
  const Vec inverse = splat(a.inverse);
  int64_t i = 0;
  for (; i + kLanes <= a.count; i += kLanes) store_low_bytes(a.q + i, quantized(load(a.x + i), inverse));
  for (; i < a.count; ++i) a.q[i] = static_cast<int8_t>(quantized(splat(a.x[i]), inverse)[0]);
}

// Rows of kLanes values become columns: every round interleaves the two halves of the list of rows.
inline void transpose_square(Vec (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    Vec next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = interleave_low(rows[i], rows[i + kLanes / 2]);
      next[2 * i + 1] = interleave_high(rows[i], rows[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

// Pixels [p, p + pixels) of 4 channels, one word each.
inline IntVec quantized_words(const QuantizeImageRow& a, int64_t c, int64_t p, int64_t pixels) {
  IntVec words = {};
  for (int i = 0; i < 4; ++i) {
    if (a.offset[c + i] < 0) continue;
    const float* x = a.x + a.offset[c + i] + p;
    Vec values = {};
    if (pixels == kLanes) {
      values = load(x);
    } else {
      for (int64_t l = 0; l < pixels; ++l) values[l] = x[l];
    }
    words |= (quantized(values, splat(a.inverse)) & 255) << (8 * i);
  }
  return words;
}

void quantize_image_row(const QuantizeImageRow& a) {
  // Squares of kLanes pixels by kLanes words. The last channels come first: whole vectors are stored, whose
  // ends fall on what is written after them.
  const int8_t* const end = a.q + a.width * a.pixel_stride;
  constexpr int64_t kChannels = 4 * kLanes;
  for (int64_t first = (a.channels - 1) / kChannels * kChannels; first >= 0; first -= kChannels) {
    const int64_t bytes = a.channels - first < kChannels ? a.channels - first : kChannels;
    for (int64_t p = 0; p < a.width; p += kLanes) {
      const int64_t pixels = a.width - p < kLanes ? a.width - p : kLanes;
      Vec square[kLanes] = {};
      for (int64_t c = 0; c < bytes; c += 4)
        square[c / 4] = reinterpret_cast<Vec>(quantized_words(a, first + c, p, pixels));
      transpose_square(square);
      for (int64_t l = 0; l < pixels; ++l) {
        int8_t* q = a.q + (p + l) * a.pixel_stride + first;
        if (q + kChannels <= end) {
          store_words(q, reinterpret_cast<IntVec>(square[l]));
        } else {
          __builtin_memcpy(q, &square[l], static_cast<size_t>(bytes));
        }
      }
    }
  }
}

void gather_row(const GatherRow& a) {
  for (int64_t i = 0; i < a.count;) {
    const int32_t block = a.pieces[i].block;
    Block bytes;
    for (; i < a.count && a.pieces[i].block == block; ++i)
      bytes.merge(a.x + a.pieces[i].from, a.pieces[i].bytes, a.add);
    bytes.put(a.y + block * a.block_stride);
    if (a.sum != nullptr) *a.sum += bytes.sum();
  }
}

// Of kLanes outputs from `output` on, for TernaryFinish and TernaryResults.
template <class Ends>
inline Vec finished(const Ends& a, int64_t row, int64_t output, IntVec sum) {
  Vec scale = splat(a.row_scale[row]);
  if (a.scale != nullptr) scale = in_register(scale * load(a.scale + output));
  const Vec y = in_register(__builtin_convertvector(sum, Vec) * scale);
  return a.bias != nullptr ? y + load(a.bias + output) : y;
}

inline Vec finished(const TernaryFinish& a, int64_t row, int64_t output) {
  return finished(a, row, output, load_words(a.sums + row * a.sums_row + output));
}

inline float finished_one(const TernaryFinish& a, int64_t row, int64_t output) {
  Vec scale = splat(a.row_scale[row]);
  if (a.scale != nullptr) scale = in_register(scale * a.scale[output]);
  const Vec y = in_register(scale * static_cast<float>(a.sums[row * a.sums_row + output]));
  return (a.bias != nullptr ? y + a.bias[output] : y)[0];
}

void ternary_finish(const TernaryFinish& a) {
  int64_t row = 0;
  if (a.y_output == 1) {
    for (; row < a.rows; ++row) {
      float* y = a.y + row * a.y_row;
      int64_t o = 0;
      for (; o + kLanes <= a.outputs; o += kLanes) store(y + o, finished(a, row, o));
      for (; o < a.outputs; ++o) y[o] = finished_one(a, row, o);
    }
    return;
  }
  for (; row < a.rows; row += kLanes) {
    int64_t o = 0;
    if (row + kLanes <= a.rows) {
      for (; o + kLanes <= a.outputs; o += kLanes) {
        Vec square[kLanes];
        for (int i = 0; i < kLanes; ++i) square[i] = finished(a, row + i, o);
        transpose_square(square);
        for (int i = 0; i < kLanes; ++i) store(a.y + (o + i) * a.y_output + row, square[i]);
      }
    }
    const int64_t end = row + kLanes < a.rows ? row + kLanes : a.rows;
    for (; o < a.outputs; ++o)
      for (int64_t r = row; r < end; ++r) a.y[o * a.y_output + r] = finished_one(a, r, o);
  }
}
