// SPDX-License-Identifier: Apache-2.0
// What every convolution step has in common: where inputs come from, where results go, and how threads share
// the work. A kind of convolution computes one group's outputs over one band of rows.
#pragma once

#include <vector>

#include "engine/program.h"
#include "ops/quantized_conv2d/kernel.h"

namespace dynkern::engine {

class ConvStep : public Step {
 public:
  // `in_place`: the input is read where it lies, also with a stride, if its padding allows it.
  ConvStep(const ConvSpec& spec, Program& program, bool in_place);
  ConvStep(const ConvSpec& spec, Program& program);

  void run(const Context& c) const override;
  // 1x1 convolutions: others would prepare their input for each part.
  bool makes_channels() const override { return spec_.groups == 1 && direct_ && taps_ == 1; }
  void run_channels(const Context& c, Range outputs) const override {
    run_part(c, {0, 1}, {0, y_.layout.height}, outputs);
  }
  std::vector<int> reads() const override { return spec_.epilogue.reads(spec_.x); }
  int writes() const override { return spec_.y; }
  int64_t scratch_floats() const override { return plane_floats() + work_floats(); }
  int64_t constant_bytes() const override {
    return spec_.epilogue.bytes() + static_cast<int64_t>(tap_offset_.size() * sizeof(int32_t));
  }

 protected:
  // Outputs of group g, whose first input plane is x, with the working memory that was asked for.
  virtual void compute(const float* x, int64_t g, Range outputs, const PlaneOutput& out,
                       float* work) const = 0;
  virtual int64_t work_floats() const { return 0; }
  // Rows and outputs of the result that one thread computes together.
  virtual int row_tile() const { return 1; }
  virtual int output_tile() const { return x_.element == Element::kFloat ? 1 : kQuantizedOutputs; }

  // Floats of one input channel that the kernel reads for a tile of `pixels`.
  int64_t touched(int64_t pixels) const;

  // The first output channel of group g in the full weight.
  int64_t first_output(int64_t g) const;

  // The shape, for people.
  std::string how() const;

  const ConvSpec spec_;
  const std::vector<Value>& values_;
  const Value x_, y_;
  const bool direct_;
  const Planes planes_;
  const int taps_;
  const int64_t group_inputs_, group_outputs_;
  int band_rows_;
  int64_t channel_stride_;
  std::vector<int32_t> tap_offset_;

 private:
  int64_t plane_floats() const { return direct_ ? 0 : (group_inputs_ * channel_stride_ + 64 + 15) / 16 * 16; }
  Range share_outputs(const Context& c) const;
  PlaneOutput output(const Context& c, int64_t channel, Range rows, int pitch) const;
  // The planes of a group's inputs for a band of rows, in the scratch memory.
  void fill_planes(const Context& c, int64_t first_channel, Range rows) const;
  void run_part(const Context& c, Range groups, Range band, Range outputs) const;

  const int32_t* mask_;
};

std::unique_ptr<Step> make_dense_conv2d(const ConvSpec& spec, Program& program);
// Null if the algorithm does not fit.
std::unique_ptr<Step> make_channel_conv2d(const ConvSpec& spec, Program& program);
std::unique_ptr<Step> make_winograd_conv2d(const ConvSpec& spec, Program& program);
std::unique_ptr<Step> make_quantized_conv2d(const ConvSpec& spec, Program& program);
std::unique_ptr<Step> make_ternary_bytes(const ConvSpec& spec, Program& program);
std::unique_ptr<Step> make_ternary_conv2d(const ConvSpec& spec, Program& program);

}  // namespace dynkern::engine
