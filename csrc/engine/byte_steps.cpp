// SPDX-License-Identifier: Apache-2.0
// Steps between floats and bytes whose channels are neighbours.
#include <stdexcept>

#include "core/isa.h"
#include "engine/byte_values.h"
#include "engine/quantized.h"
#include "engine/steps.h"

namespace dynkern::engine {
namespace {

class ByteStep : public Step {
 public:
  ByteStep(int x, int y, const StepEpilogue& epilogue, Program& program)
      : x_(x),
        y_(y),
        from_(program.values()[static_cast<size_t>(x)]),
        to_(program.values()[static_cast<size_t>(y)]),
        epilogue_(epilogue) {
    const size_t channels = static_cast<size_t>(to_.channels);
    if (epilogue.residual >= 0 || epilogue.scale.size() != channels || epilogue.shift.size() != channels) {
      throw std::invalid_argument(
          "pointwise: between floats and quantised values only scale and shift, of all channels");
    }
  }

  std::vector<int> reads() const override { return {x_}; }
  int writes() const override { return y_; }
  bool takes_words() const override { return true; }
  bool takes_bytes() const override { return true; }
  int64_t constant_bytes() const override { return epilogue_.bytes(); }

 protected:
  const int x_, y_;
  const Value from_, to_;
  const StepEpilogue epilogue_;
};

class ToBytesStep : public ByteStep {
 public:
  ToBytesStep(int x, int y, const StepEpilogue& epilogue, Program& program)
      : ByteStep(x, y, epilogue, program), copies_(copies_of(to_)) {
    if (from_.element != Element::kFloat) throw std::invalid_argument("pointwise: bytes are made of floats");
    check_bounds(epilogue, to_);
  }

  void run(const Context& c) const override {
    const Range rows = share(to_.layout.height, c);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      kernels().bytes_of_planes({c.value[x_] + row * from_.layout.pitch(), from_.layout.channel(),
                                 to_.channels, to_.layout.width, epilogue_.scale.data(),
                                 epilogue_.shift.data(), epilogue_.low, epilogue_.high,
                                 byte_row(c, y_, to_, row, copies_)});
    }
  }

  std::string describe() const override { return "quantize to bytes of pixels"; }

 private:
  const std::vector<int64_t> copies_;
};

class FromBytesStep : public ByteStep {
 public:
  FromBytesStep(int x, int y, const StepEpilogue& epilogue, Program& program)
      : ByteStep(x, y, epilogue, program) {
    if (to_.element != Element::kFloat || epilogue.activation != Activation::kNone) {
      throw std::invalid_argument(
          "pointwise: of a quantised value there is only its float, without activation");
    }
  }

  void run(const Context& c) const override {
    const Range rows = share(to_.layout.height, c);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      kernels().planes_of_bytes({bytes_of(c, x_, from_, row) + from_.own(), from_.pixel_bytes(), to_.channels,
                                 to_.layout.width, epilogue_.scale.data(), epilogue_.shift.data(),
                                 c.value[y_] + row * to_.layout.pitch(), to_.layout.channel()});
    }
  }

  std::string describe() const override { return "dequantize bytes of pixels"; }
};

}  // namespace

std::unique_ptr<Step> make_to_bytes(int x, int y, const StepEpilogue& epilogue, Program& program) {
  return std::make_unique<ToBytesStep>(x, y, epilogue, program);
}

std::unique_ptr<Step> make_from_bytes(int x, int y, const StepEpilogue& epilogue, Program& program) {
  return std::make_unique<FromBytesStep>(x, y, epilogue, program);
}

}  // namespace dynkern::engine
