// SPDX-License-Identifier: Apache-2.0
// Steps on planes other than convolutions: pooling, pointwise functions, moving channels about.
#include <algorithm>
#include <cstring>

#include "core/isa.h"
#include "engine/steps.h"

namespace dynkern::engine {
namespace {

class PlaneStep : public Step {
 public:
  PlaneStep(int x, int y, Program& program)
      : x_(x), y_(y), values_(program.values()), from_(value(x)), to_(value(y)) {}

  std::vector<int> reads() const override { return {x_}; }
  int writes() const override { return y_; }

 protected:
  const Value& value(int i) const { return values_[static_cast<size_t>(i)]; }
  float* plane(const Context& c, int i, int64_t channel) const {
    return c.value[i] + channel * value(i).layout.channel();
  }

  const int x_, y_;
  const std::vector<Value>& values_;
  const Value from_, to_;
};

class PoolStep : public PlaneStep {
 public:
  PoolStep(const PoolSpec& spec, Program& program) : PlaneStep(spec.x, spec.y, program), spec_(spec) {}

  void run(const Context& c) const override {
    const Range channels = share(to_.channels, c);
    if (channels.begin == channels.end) return;
    kernels().pool2d({plane(c, x_, channels.begin), from_.layout.channel(), from_.layout.height,
                      from_.layout.width, from_.layout.pitch(), spec_.window, spec_.maximum,
                      spec_.count_padding, channels.end - channels.begin, plane(c, y_, channels.begin),
                      to_.layout.channel(), to_.layout.pitch(), c.scratch});
  }

  std::string describe() const override { return spec_.maximum ? "max_pool2d" : "avg_pool2d"; }
  int64_t scratch_floats() const override {
    int64_t most = 0;
    for (const KernelTable* table : available_isas()) {
      most = std::max(most, pool_line(spec_.window, from_.layout.width, table->lanes));
    }
    return most;
  }

 private:
  const PoolSpec spec_;
};

class AdaptiveAverageStep : public PlaneStep {
 public:
  using PlaneStep::PlaneStep;

  void run(const Context& c) const override {
    const Range channels = share(to_.channels, c);
    const int height = to_.layout.height, width = to_.layout.width;
    for (int64_t i = channels.begin; i < channels.end; ++i) {
      for (int row = 0; row < height; ++row) {
        for (int column = 0; column < width; ++column) {
          plane(c, y_, i)[row * to_.layout.pitch() + column] =
              mean(plane(c, x_, i), part(row, height, from_.layout.height),
                   part(column, width, from_.layout.width));
        }
      }
    }
  }

  std::string describe() const override { return "adaptive_avg_pool2d"; }

 private:
  static Range part(int i, int parts, int size) {
    return {static_cast<int64_t>(i) * size / parts, (static_cast<int64_t>(i + 1) * size + parts - 1) / parts};
  }

  float mean(const float* x, Range rows, Range columns) const {
    constexpr int kSums = 16;  // independent, so that the compiler adds vectors
    float sums[kSums] = {}, rest = 0;
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const float* line = x + i * from_.layout.pitch();
      int64_t j = columns.begin;
      for (; j + kSums <= columns.end; j += kSums) {
        for (int k = 0; k < kSums; ++k) sums[k] += line[j + k];
      }
      for (; j < columns.end; ++j) rest += line[j];
    }
    for (float sum : sums) rest += sum;
    return rest / static_cast<float>((rows.end - rows.begin) * (columns.end - columns.begin));
  }
};

class PointwiseStep : public PlaneStep {
 public:
  PointwiseStep(int x, int y, const StepEpilogue& epilogue, Program& program)
      : PlaneStep(x, y, program), epilogue_(epilogue), mask_(program.mask(to_.layout)) {}

  void run(const Context& c) const override {
    const Range channels = share(to_.channels, c);
    if (channels.begin == channels.end) return;
    const Epilogue epilogue = epilogue_.at(c, values_, channels.begin);
    const int64_t count = channels.end - channels.begin;
    const Layout& layout = to_.layout;
    float* y = plane(c, y_, channels.begin);
    const float* x = plane(c, x_, channels.begin);
    if (to_.features()) return kernels().features({x, y, count, epilogue});
    kernels().pointwise({x,
                         layout.channel(),
                         count,
                         {y, layout.channel(), layout.height, layout.width, layout.pitch(), layout.pitch(),
                          mask_, epilogue}});
  }

  std::string describe() const override { return "pointwise"; }
  std::vector<int> reads() const override { return epilogue_.reads(x_); }
  int64_t constant_bytes() const override { return epilogue_.bytes(); }

 private:
  const StepEpilogue epilogue_;
  const int32_t* const mask_;
};

class MultiplyStep : public PlaneStep {
 public:
  MultiplyStep(int x, int y, int gate, Program& program)
      : PlaneStep(x, y, program), gate_(gate), wide_(!value(gate).features() || to_.features()) {}

  void run(const Context& c) const override {
    const Range channels = share(to_.channels, c);
    // Padding is zero in every factor, so whole planes can be multiplied.
    const int64_t size = to_.layout.channel() - to_.layout.origin();
    for (int64_t i = channels.begin; i < channels.end; ++i) {
      const float *x = plane(c, x_, i), *gate = plane(c, gate_, i);
      float* y = plane(c, y_, i);
      for (int row = 0; row < to_.layout.height; ++row) {
        const int64_t start = static_cast<int64_t>(row) * to_.layout.pitch();
        for (int64_t p = start; p < start + to_.layout.width && p < size; ++p)
          y[p] = x[p] * (wide_ ? gate[p] : gate[0]);
      }
    }
  }

  std::string describe() const override { return "multiply"; }
  std::vector<int> reads() const override { return {x_, gate_}; }

 private:
  const int gate_;
  const bool wide_;
};

class ConcatStep : public PlaneStep {
 public:
  ConcatStep(const std::vector<int>& xs, int y, Program& program)
      : PlaneStep(xs.at(0), y, program), xs_(xs) {}

  void run(const Context& c) const override {
    const Range channels = share(to_.channels, c);
    const int64_t size = to_.layout.channel(), origin = to_.layout.origin();
    int64_t first = 0;
    for (int x : xs_) {
      const int64_t begin = std::max(first, channels.begin),
                    end = std::min(first + value(x).channels, channels.end);
      if (begin < end) {
        // Padding and all: it is zero in both.
        std::memcpy(plane(c, y_, begin) - origin, plane(c, x, begin - first) - origin,
                    sizeof(float) * static_cast<size_t>((end - begin) * size));
      }
      first += value(x).channels;
    }
  }

  std::string describe() const override { return "concat"; }
  std::vector<int> reads() const override { return xs_; }

 private:
  const std::vector<int> xs_;
};

class CropStep : public PlaneStep {
 public:
  CropStep(const CropSpec& spec, Program& program) : PlaneStep(spec.x, spec.y, program), spec_(spec) {}

  void run(const Context& c) const override {
    const Range channels = share(to_.channels, c);
    for (int64_t i = channels.begin; i < channels.end; ++i) {
      float* y = plane(c, y_, i);
      for (int row = 0; row < to_.layout.height; ++row) {
        std::fill_n(y + static_cast<int64_t>(row) * to_.layout.pitch(), to_.layout.width, 0.f);
      }
      const int64_t channel = i - spec_.offset[0];
      if (channel < 0 || channel >= spec_.count[0]) continue;
      const float* x = plane(c, x_, spec_.first[0] + channel);
      for (int row = 0; row < spec_.count[1]; ++row) {
        const float* from =
            x + static_cast<int64_t>(spec_.first[1] + row * spec_.step[0]) * from_.layout.pitch() +
            spec_.first[2];
        float* to = y + static_cast<int64_t>(spec_.offset[1] + row) * to_.layout.pitch() + spec_.offset[2];
        for (int column = 0; column < spec_.count[2]; ++column) to[column] = from[column * spec_.step[1]];
      }
    }
  }

  std::string describe() const override { return "crop"; }

 private:
  const CropSpec spec_;
};

}  // namespace

std::unique_ptr<Step> make_pool2d(const PoolSpec& spec, Program& program) {
  if (program.values()[static_cast<size_t>(spec.x)].element != Element::kFloat) {
    return make_quantized_max_pool(spec, program);
  }
  return std::make_unique<PoolStep>(spec, program);
}

std::unique_ptr<Step> make_adaptive_average(int x, int y, Program& program) {
  return std::make_unique<AdaptiveAverageStep>(x, y, program);
}

std::unique_ptr<Step> make_pointwise(int x, int y, const StepEpilogue& epilogue, Program& program) {
  const bool from_words = program.values()[static_cast<size_t>(x)].element != Element::kFloat;
  const bool to_words = program.values()[static_cast<size_t>(y)].element != Element::kFloat;
  const std::vector<Value>& values = program.values();
  if (values[static_cast<size_t>(x)].across > 0) return make_from_bytes(x, y, epilogue, program);
  if (values[static_cast<size_t>(y)].across > 0) return make_to_bytes(x, y, epilogue, program);
  if (from_words) return make_dequantize(x, y, epilogue, program);
  if (to_words) return make_quantize(x, y, epilogue, program);
  return std::make_unique<PointwiseStep>(x, y, epilogue, program);
}

std::unique_ptr<Step> make_multiply(int x, int y, int gate, Program& program) {
  return std::make_unique<MultiplyStep>(x, y, gate, program);
}

std::unique_ptr<Step> make_concat(const std::vector<int>& xs, int y, Program& program) {
  return std::make_unique<ConcatStep>(xs, y, program);
}

std::unique_ptr<Step> make_crop(const CropSpec& spec, Program& program) {
  if (program.values()[static_cast<size_t>(spec.x)].element != Element::kFloat) {
    return make_quantized_crop(spec, program);
  }
  return std::make_unique<CropStep>(spec, program);
}

}  // namespace dynkern::engine
