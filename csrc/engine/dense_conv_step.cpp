// SPDX-License-Identifier: Apache-2.0
#include "core/isa.h"
#include "engine/conv_step.h"
#include "ops/channel_conv2d/kernel.h"

namespace dynkern::engine {
namespace {

class DenseConvStep : public ConvStep {
 public:
  DenseConvStep(const ConvSpec& spec, Program& program)
      : ConvStep(spec, program),
        packed_(spec.groups > 1 ? nullptr : program.store().packed(spec.weight)),
        weight_(packed_ != nullptr ? packed_ : program.store().plain(spec.weight)),
        weight_out_(program.store().dense(spec.weight)->shape[1] * taps_) {}

  std::string describe() const override { return "conv2d " + how(); }

 private:
  void compute(const float* x, int64_t g, Range outputs, const PlaneOutput& out, float*) const override {
    SlicedConv2d a;
    a.x = x;
    a.channels = group_inputs_;
    a.channel_stride = channel_stride_;
    a.tap_offset = tap_offset_.data();
    a.taps = taps_;
    a.weight = weight_;
    a.weight_block = packed_ != nullptr ? kPackedOutputs : 1;
    a.weight_tap = a.weight_block;
    a.weight_in = taps_ * a.weight_block;
    a.weight_out = weight_out_ * a.weight_block;
    a.in_index = spec_.groups > 1 || spec_.in_index.empty() ? nullptr : spec_.in_index.data();
    a.out_index = spec_.out_index.empty() ? nullptr : spec_.out_index.data() + outputs.begin;
    a.out_first = first_output(g) + outputs.begin;
    a.outputs = outputs.end - outputs.begin;
    a.out = out;
    kernels().sliced_conv2d(a);
  }

  const float* const packed_;  // null: the weight is plain
  const float* const weight_;
  const int64_t weight_out_;
};

}  // namespace

std::unique_ptr<Step> make_dense_conv2d(const ConvSpec& spec, Program& program) {
  return std::make_unique<DenseConvStep>(spec, program);
}

}  // namespace dynkern::engine
