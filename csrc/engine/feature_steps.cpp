// SPDX-License-Identifier: Apache-2.0
// Steps on vectors of features: linear layers, flattening, softmax.
#include <algorithm>
#include <cmath>

#include "core/isa.h"
#include "engine/steps.h"
#include "ops/sliced_linear/op.h"

namespace dynkern::engine {
namespace {

const int64_t* or_null(const std::vector<int64_t>& index) { return index.empty() ? nullptr : index.data(); }

Features features_of(const Context& c, const std::vector<Value>& values, const StepEpilogue& epilogue, int x,
                     int y, Range range) {
  return {c.value[x] + range.begin, c.value[y] + range.begin, range.end - range.begin,
          epilogue.at(c, values, range.begin)};
}

class LinearStep : public Step {
 public:
  LinearStep(const LinearSpec& spec, Program& program)
      : spec_(spec),
        values_(program.values()),
        weight_(program.store().plain(spec.weight)),
        weight_out_(program.store().dense(spec.weight)->shape[1]),
        outputs_(values_[static_cast<size_t>(spec.y)].channels),
        runs_(runs_of(values_[static_cast<size_t>(spec.x)].channels, or_null(spec.in_index))) {
    // The kernel adds the shift by itself; only what is beyond it takes another pass.
    const StepEpilogue& e = spec.epilogue;
    plain_ = e.scale.empty() && e.residual < 0 && e.activation == Activation::kNone;
  }

  void run(const Context& c) const override {
    const Range outputs = share(outputs_, c);
    if (outputs.begin == outputs.end) return;
    SlicedLinear a;
    a.x = c.value[spec_.x];
    a.rows = 1;
    a.x_row = 0;
    a.runs = runs_.data();
    a.run_count = static_cast<int64_t>(runs_.size());
    a.weight = weight_;
    a.weight_out = weight_out_;
    a.out_index = spec_.out_index.empty() ? nullptr : spec_.out_index.data() + outputs.begin;
    a.out_first = outputs.begin;
    a.outputs = outputs.end - outputs.begin;
    a.bias = plain_ && !spec_.epilogue.shift.empty() ? spec_.epilogue.shift.data() + outputs.begin : nullptr;
    a.y = c.value[spec_.y] + outputs.begin;
    a.y_row = 0;
    kernels().sliced_linear(a);
    if (!plain_) kernels().features(features_of(c, values_, spec_.epilogue, spec_.y, spec_.y, outputs));
  }

  std::string describe() const override { return "linear"; }
  std::vector<int> reads() const override { return spec_.epilogue.reads(spec_.x); }
  int writes() const override { return spec_.y; }
  int64_t constant_bytes() const override { return spec_.epilogue.bytes(); }

 private:
  const LinearSpec spec_;
  const std::vector<Value>& values_;
  const float* const weight_;
  const int64_t weight_out_;
  const int64_t outputs_;
  const std::vector<Run> runs_;
  bool plain_;
};

// One row has no pixels to fill the lanes with; each output adds and subtracts its inputs one by one.
class TernaryLinearStep : public Step {
 public:
  TernaryLinearStep(const LinearSpec& spec, Program& program)
      : spec_(spec),
        values_(program.values()),
        outputs_(values_[static_cast<size_t>(spec.y)].channels),
        slice_(*program.store().ternary(spec.weight), outputs_, or_null(spec_.out_index),
               values_[static_cast<size_t>(spec.x)].channels, or_null(spec_.in_index),
               values_[static_cast<size_t>(spec.x)].channels) {}

  void run(const Context& c) const override {
    const Range outputs = share(outputs_, c);
    if (outputs.begin == outputs.end) return;
    TernaryListsRun lists;
    slice_.apply(lists, 0);
    const float* x = c.value[spec_.x];
    for (int64_t o = outputs.begin; o < outputs.end; ++o) {
      const uint32_t* cut = lists.cuts + 4 * o;  // of the one block
      float sum = 0;
      for (uint32_t j = cut[0]; j < cut[2]; ++j) sum += x[at(lists, j)];
      for (uint32_t j = cut[1]; j < cut[3]; ++j) sum -= x[at(lists, j)];
      c.value[spec_.y][o] = sum;
    }
    kernels().features(features_of(c, values_, spec_.epilogue, spec_.y, spec_.y, outputs));
  }

  std::string describe() const override { return "ternary linear, lists"; }
  std::vector<int> reads() const override { return spec_.epilogue.reads(spec_.x); }
  int writes() const override { return spec_.y; }
  int64_t constant_bytes() const override { return spec_.epilogue.bytes() + slice_.bytes(); }

 private:
  static int64_t at(const TernaryListsRun& lists, int64_t j) {
    return lists.index != nullptr ? lists.index[j] : static_cast<int64_t>(lists.wide_index[j]);
  }

  const LinearSpec spec_;
  const std::vector<Value>& values_;
  const int64_t outputs_;
  const TernarySlice slice_;
};

class FlattenStep : public Step {
 public:
  FlattenStep(int x, int y, Program& program)
      : x_(x), y_(y), from_(program.values()[static_cast<size_t>(x)]) {}

  void run(const Context& c) const override {
    const Layout& layout = from_.layout;
    const Range channels = share(from_.channels, c);
    for (int64_t i = channels.begin; i < channels.end; ++i) {
      for (int64_t row = 0; row < layout.height; ++row) {
        const float* line = c.value[x_] + i * layout.channel() + row * layout.pitch();
        std::copy(line, line + layout.width, c.value[y_] + (i * layout.height + row) * layout.width);
      }
    }
  }

  std::string describe() const override { return "flatten"; }
  std::vector<int> reads() const override { return {x_}; }
  int writes() const override { return y_; }

 private:
  const int x_, y_;
  const Value from_;
};

class SoftmaxStep : public Step {
 public:
  SoftmaxStep(int x, int y, bool log, Program& program)
      : x_(x), y_(y), log_(log), count_(program.values()[static_cast<size_t>(x)].channels) {}

  void run(const Context& c) const override {
    if (c.thread != 0) return;
    const float* x = c.value[x_];
    float* y = c.value[y_];
    const float most = *std::max_element(x, x + count_);
    float sum = 0;
    for (int i = 0; i < count_; ++i) sum += y[i] = std::exp(x[i] - most);
    for (int i = 0; i < count_; ++i) y[i] = log_ ? x[i] - most - std::log(sum) : y[i] / sum;
  }

  std::string describe() const override { return log_ ? "log_softmax" : "softmax"; }
  std::vector<int> reads() const override { return {x_}; }
  int writes() const override { return y_; }

 private:
  const int x_, y_;
  const bool log_;
  const int count_;
};

}  // namespace

std::unique_ptr<Step> make_linear(const LinearSpec& spec, Program& program) {
  if (program.store().dense(spec.weight) != nullptr) return std::make_unique<LinearStep>(spec, program);
  return std::make_unique<TernaryLinearStep>(spec, program);
}

std::unique_ptr<Step> make_flatten(int x, int y, Program& program) {
  return std::make_unique<FlattenStep>(x, y, program);
}

std::unique_ptr<Step> make_softmax(int x, int y, bool log, Program& program) {
  return std::make_unique<SoftmaxStep>(x, y, log, program);
}

}  // namespace dynkern::engine
