// SPDX-License-Identifier: Apache-2.0
#include "core/isa.h"
#include "engine/conv_step.h"
#include "ops/ternary/blocking.h"

namespace dynkern::engine {
namespace {

class TernaryConvStep : public ConvStep {
 public:
  TernaryConvStep(const ConvSpec& spec, Program& program)
      : ConvStep(spec, program),
        blocking_(*program.store().ternary(spec.weight), group_inputs_, group_outputs_,
                  static_cast<int64_t>(y_.layout.height) * y_.layout.pitch(),
                  [&](int64_t pixels) { return touched(pixels); }),
        slice_(*program.store().ternary(spec.weight),
               spec.groups > 1 ? program.store().ternary(spec.weight)->outputs() : group_outputs_,
               spec.groups > 1 || spec.out_index.empty() ? nullptr : spec_.out_index.data(), group_inputs_,
               spec.groups > 1 || spec.in_index.empty() ? nullptr : spec_.in_index.data(), blocking_.inputs) {
    for (int64_t i = 0; i < group_inputs_; ++i) {
      for (int32_t tap : tap_offset_) offset_.push_back(static_cast<int32_t>(i * channel_stride_ + tap));
    }
  }

  std::string describe() const override { return "ternary conv2d " + how() + ", lists"; }
  int64_t constant_bytes() const override {
    return ConvStep::constant_bytes() + slice_.bytes() +
           static_cast<int64_t>(offset_.size() * sizeof(int32_t));
  }

 private:
  int64_t work_floats() const override { return blocking_.partial_floats; }

  void compute(const float* x, int64_t g, Range outputs, const PlaneOutput& out, float* work) const override {
    TernaryListsRun a;
    slice_.apply(a, first_output(g) + outputs.begin);
    a.x = x;
    a.offset = offset_.data();
    a.vectors = blocking_.vectors;
    a.partial = work;
    a.outputs = outputs.end - outputs.begin;
    a.out = out;
    kernels().ternary_lists(a);
  }

  const TernaryBlocking blocking_;
  const TernarySlice slice_;
  std::vector<int32_t> offset_;
};

}  // namespace

std::unique_ptr<Step> make_ternary_conv2d(const ConvSpec& spec, Program& program) {
  return std::make_unique<TernaryConvStep>(spec, program);
}

}  // namespace dynkern::engine
