// SPDX-License-Identifier: Apache-2.0
// One step of a program. A team of threads runs it together, each its share; they meet before the next step.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/element.h"
#include "engine/layout.h"
#include "ops/element.h"
#include "ops/plane_output.h"

namespace dynkern::engine {

struct Value {
  int channels;
  Layout layout;
  Element element = Element::kFloat;
  // Of bytes whose channels are neighbours: each pixel holds so many pixels of its row, from the one `left`
  // before it on. A convolution reads the patch under a pixel in fewer pieces then.
  int across = 0, left = 0;

  int per_word() const { return channels_of_word(element); }
  int planes() const {
    return layout.pixel_words > 0 ? layout.pixel_words : (channels + per_word() - 1) / per_word();
  }
  int64_t pixel_bytes() const { return int64_t{4} * layout.pixel_words; }
  // Where the channels of a pixel lie in it.
  int64_t own() const { return static_cast<int64_t>(left) * channels; }
  // The zero point of a quantised value.
  int zero() const { return element == Element::kUint8 ? static_cast<int>(layout.fill & 255) : 0; }
  bool features() const { return layout.height == 1 && layout.width == 1; }
};

// What one thread of the team sees. `value[i]` is pixel (0, 0) of channel 0 of value i.
struct Context {
  float* const* value;
  float* scratch;
  int thread, threads;
};

struct Range {
  int64_t begin, end;
};

// The share of [0, count) of one thread.
inline Range share(int64_t count, const Context& c) {
  return {count * c.thread / c.threads, count * (c.thread + 1) / c.threads};
}

// An epilogue that owns its vectors; residual < 0 means none.
struct StepEpilogue {
  std::vector<float> scale, shift, residual_scale;  // empty: 1, 0, 1
  int residual = -1;
  Activation activation = Activation::kNone;
  float low = 0, high = 0;

  Epilogue at(const Context& c, const std::vector<Value>& values, int64_t channel) const {
    auto from = [&](const std::vector<float>& v) { return v.empty() ? nullptr : v.data() + channel; };
    Epilogue e{from(scale), from(shift), from(residual_scale), nullptr, 0, activation, low, high};
    if (residual >= 0) {
      const Value& from = values[static_cast<size_t>(residual)];
      e.residual_stride = from.layout.channel();
      e.residual = c.value[residual] + channel / from.per_word() * e.residual_stride;
    }
    return e;
  }
  // What a step with this epilogue on x reads.
  std::vector<int> reads(int x) const {
    return residual < 0 ? std::vector<int>{x} : std::vector<int>{x, residual};
  }
  int64_t bytes() const {
    return static_cast<int64_t>((scale.size() + shift.size() + residual_scale.size()) * sizeof(float));
  }
};

class Step {
 public:
  virtual ~Step() = default;
  virtual void run(const Context& context) const = 0;
  virtual std::string describe() const = 0;    // kind and kernel, for people
  virtual std::vector<int> reads() const = 0;  // values
  virtual int writes() const = 0;
  virtual bool takes_words() const { return false; }  // whether values may be quantised
  virtual bool takes_bytes() const { return false; }  // and may be bytes whose channels are neighbours

  // Whether one thread can compute some output channels alone, by run_channels; and whether it then reads
  // only those channels of its first value.
  virtual bool makes_channels() const { return false; }
  virtual bool keeps_channels() const { return false; }
  virtual void run_channels(const Context&, Range) const {}

  virtual int64_t scratch_floats() const { return 0; }  // of each thread
  virtual int64_t constant_bytes() const { return 0; }
};

}  // namespace dynkern::engine
