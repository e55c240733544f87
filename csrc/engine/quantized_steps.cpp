// SPDX-License-Identifier: Apache-2.0
// Steps between floats and quantised values, and those that move quantised values about.
#include <algorithm>
#include <stdexcept>

#include "core/isa.h"
#include "engine/quantized.h"
#include "engine/steps.h"

namespace dynkern::engine {
namespace {

class WordStep : public Step {
 public:
  WordStep(int x, int y, Program& program)
      : x_(x),
        y_(y),
        from_(program.values()[static_cast<size_t>(x)]),
        to_(program.values()[static_cast<size_t>(y)]),
        mask_(program.mask(to_.layout)) {}

  std::vector<int> reads() const override { return {x_}; }
  int writes() const override { return y_; }
  bool takes_words() const override { return true; }

 protected:
  // From plane `first` of y on.
  PlaneOutput output(const Context& c, int64_t first) const {
    const Layout& layout = to_.layout;
    return {c.value[y_] + first * layout.channel(),
            layout.channel(),
            layout.height,
            layout.width,
            layout.pitch(),
            layout.pitch(),
            mask_,
            {}};
  }
  bool alike() const { return to_.element == from_.element && to_.layout.fill == from_.layout.fill; }
  const float* plane(const Context& c, int64_t i) const { return c.value[x_] + i * from_.layout.channel(); }

  const int x_, y_;
  const Value from_, to_;
  const int32_t* const mask_;
};

class ConvertStep : public WordStep {
 public:
  ConvertStep(int x, int y, const StepEpilogue& epilogue, Program& program)
      : WordStep(x, y, program), epilogue_(epilogue) {
    const size_t channels = static_cast<size_t>(to_.channels);
    if (epilogue.residual >= 0 || epilogue.scale.size() != channels || epilogue.shift.size() != channels) {
      throw std::invalid_argument(
          "pointwise: between floats and quantised values only scale and shift, of all channels");
    }
  }

  int64_t constant_bytes() const override { return epilogue_.bytes(); }

 protected:
  const float* scale(int64_t i) const { return epilogue_.scale.data() + i; }
  const float* shift(int64_t i) const { return epilogue_.shift.data() + i; }

  const StepEpilogue epilogue_;
};

class QuantizeStep : public ConvertStep {
 public:
  QuantizeStep(int x, int y, const StepEpilogue& epilogue, Program& program)
      : ConvertStep(x, y, epilogue, program) {
    check_bounds(epilogue, to_);
  }

  void run(const Context& c) const override {
    const Range planes = share(to_.planes(), c);
    const int64_t first = planes.begin * to_.per_word();
    const int64_t end = std::min<int64_t>(planes.end * to_.per_word(), to_.channels);
    if (first >= end) return;
    kernels().quantize({to_.element, plane(c, first), from_.layout.channel(), end - first, to_.layout.fill,
                        scale(first), shift(first), epilogue_.low, epilogue_.high, output(c, planes.begin)});
  }

  std::string describe() const override {
    return to_.element == Element::kUint8 ? "quantize to uint8" : "quantize to int16";
  }
};

class DequantizeStep : public ConvertStep {
 public:
  DequantizeStep(int x, int y, const StepEpilogue& epilogue, Program& program)
      : ConvertStep(x, y, epilogue, program) {
    if (to_.element != Element::kFloat || epilogue.activation != Activation::kNone) {
      throw std::invalid_argument(
          "pointwise: of a quantised value there is only its float, without activation");
    }
  }

  void run(const Context& c) const override {
    // Words are not torn apart.
    const Range planes = share(from_.planes(), c);
    const int64_t first = planes.begin * from_.per_word();
    const int64_t end = std::min<int64_t>(planes.end * from_.per_word(), from_.channels);
    if (first >= end) return;
    kernels().dequantize({from_.element, plane(c, planes.begin), from_.layout.channel(), end - first,
                          scale(first), shift(first), output(c, first)});
  }

  std::string describe() const override { return "dequantize"; }
};

class QuantizedMaxPoolStep : public WordStep {
 public:
  QuantizedMaxPoolStep(const PoolSpec& spec, Program& program)
      : WordStep(spec.x, spec.y, program), spec_(spec) {
    if (!spec.maximum || !alike()) throw std::invalid_argument("pool2d: of quantised values only maxima");
  }

  void run(const Context& c) const override {
    const Range planes = share(to_.planes(), c);
    kernels().quantized_max_pool({to_.element, plane(c, planes.begin), from_.layout.channel(),
                                  from_.layout.pitch(), from_.layout.height, from_.layout.width,
                                  planes.end - planes.begin, spec_.window,
                                  c.value[y_] + planes.begin * to_.layout.channel(), to_.layout.channel(),
                                  to_.layout.pitch(), c.scratch});
  }

  std::string describe() const override {
    return to_.element == Element::kUint8 ? "max_pool2d of uint8" : "max_pool2d of int16";
  }
  int64_t scratch_floats() const override { return 2 * max_pool_line(spec_.window, from_.layout.width); }

 private:
  const PoolSpec spec_;
};

// A crop of quantised channels: whole words where the channels keep their place in them, else one by one.
template <class Integer>
class QuantizedCropStep : public WordStep {
 public:
  QuantizedCropStep(const CropSpec& spec, Program& program) : WordStep(spec.x, spec.y, program), spec_(spec) {
    if (!alike()) throw std::invalid_argument("crop: expected x and y quantised alike");
  }

  void run(const Context& c) const override {
    const Range planes = share(to_.planes(), c);
    const int per_word = to_.per_word();
    for (int64_t i = planes.begin; i < planes.end; ++i) {
      uint32_t* y = words(c.value[y_] + i * to_.layout.channel());
      for (int row = 0; row < to_.layout.height; ++row) {
        std::fill_n(y + static_cast<int64_t>(row) * to_.layout.pitch(), to_.layout.width, to_.layout.fill);
      }
      const int64_t first = i * per_word - spec_.offset[0];  // channel of the crop in the word's first place
      if (first >= 0 && first + per_word <= spec_.count[0] && (first + spec_.first[0]) % per_word == 0) {
        copy(words(plane(c, (first + spec_.first[0]) / per_word)), y, 1);
        continue;
      }
      for (int64_t place = 0; place < per_word; ++place) {
        const int64_t channel = first + place;
        if (channel < 0 || channel >= spec_.count[0]) continue;
        const int64_t from = channel + spec_.first[0];
        copy(parts(plane(c, from / per_word)) + from % per_word, parts(reinterpret_cast<float*>(y)) + place,
             per_word);
      }
    }
  }

  std::string describe() const override {
    return to_.element == Element::kUint8 ? "crop of uint8" : "crop of int16";
  }

 private:
  typedef uint32_t __attribute__((may_alias)) Word;
  typedef Integer __attribute__((may_alias)) Part;
  static Word* words(float* p) { return reinterpret_cast<Word*>(p); }
  static const Word* words(const float* p) { return reinterpret_cast<const Word*>(p); }
  static Part* parts(float* p) { return reinterpret_cast<Part*>(p); }
  static const Part* parts(const float* p) { return reinterpret_cast<const Part*>(p); }

  // The rows and columns of one plane, whose pixels are `stride` apart.
  template <class T>
  void copy(const T* x, T* y, int64_t stride) const {
    for (int row = 0; row < spec_.count[1]; ++row) {
      const T* from =
          x + stride * (static_cast<int64_t>(spec_.first[1] + row * spec_.step[0]) * from_.layout.pitch() +
                        spec_.first[2]);
      T* to =
          y + stride * (static_cast<int64_t>(spec_.offset[1] + row) * to_.layout.pitch() + spec_.offset[2]);
      for (int column = 0; column < spec_.count[2]; ++column) {
        to[column * stride] = from[column * spec_.step[1] * stride];
      }
    }
  }

  const CropSpec spec_;
};

}  // namespace

std::unique_ptr<Step> make_quantize(int x, int y, const StepEpilogue& epilogue, Program& program) {
  return std::make_unique<QuantizeStep>(x, y, epilogue, program);
}

std::unique_ptr<Step> make_dequantize(int x, int y, const StepEpilogue& epilogue, Program& program) {
  return std::make_unique<DequantizeStep>(x, y, epilogue, program);
}

std::unique_ptr<Step> make_quantized_max_pool(const PoolSpec& spec, Program& program) {
  return std::make_unique<QuantizedMaxPoolStep>(spec, program);
}

std::unique_ptr<Step> make_quantized_crop(const CropSpec& spec, Program& program) {
  if (program.values()[static_cast<size_t>(spec.x)].element == Element::kUint8) {
    return std::make_unique<QuantizedCropStep<uint8_t>>(spec, program);
  }
  return std::make_unique<QuantizedCropStep<int16_t>>(spec, program);
}

}  // namespace dynkern::engine
