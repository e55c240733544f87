// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/isa.h"
#include "engine/conv_step.h"
#include "engine/steps.h"
#include "ops/winograd/cuts.h"

namespace dynkern::engine {
namespace {

class WinogradConvStep : public ConvStep {
 public:
  WinogradConvStep(const ConvSpec& spec, const float* filters, Program& program)
      : ConvStep(spec, program),
        filters_(filters),
        groups_(groups(y_.layout.height)),
        inputs_(program.store().dense(spec.weight)->shape[1]) {}

  std::string describe() const override { return "conv2d " + how() + ", winograd"; }

 private:
  int row_tile() const override { return kWinogradRows; }
  // Of all outputs, also where threads share them: how planes lie, and so what memory they take, depends on
  // that number.
  WinogradGroups groups(int rows, int lanes = kernels().lanes) const {
    return WinogradGroups(group_inputs_, group_outputs_, rows, y_.layout.width, lanes);
  }

  int64_t work_floats() const override {
    int64_t most = 0;
    for (const KernelTable* table : available_isas()) {
      // Fewer rows, where threads share them, may want copies where all of them do not.
      for (int rows = y_.layout.height; rows > 0; rows -= kWinogradRows) {
        most = std::max(most, groups(rows, table->lanes).floats);
      }
    }
    return most;
  }

  void compute(const float* x, int64_t, Range outputs, const PlaneOutput& out, float* work) const override {
    WinogradConv2d a;
    a.x = x + tap_offset_[0];
    a.channels = group_inputs_;
    a.channel_stride = channel_stride_;
    a.x_pitch = x_.layout.pitch();
    a.weight = filters_;
    a.weight_out = (inputs_ + kWinogradChannels - 1) / kWinogradChannels * kWinogradFilters;
    a.in_index = spec_.in_index.empty() ? nullptr : spec_.in_index.data();
    a.out_index = spec_.out_index.empty() ? nullptr : spec_.out_index.data() + outputs.begin;
    a.out_first = outputs.begin;
    a.outputs = outputs.end - outputs.begin;
    a.out = out;
    a.work = work;
    if (out.rows == y_.layout.height && lanes_ == kernels().lanes) {
      a.groups = &groups_;
      return kernels().winograd_conv2d(a);
    }
    const WinogradGroups part = groups(out.rows);
    a.groups = &part;
    kernels().winograd_conv2d(a);
  }

  const float* const filters_;
  const int lanes_ = kernels().lanes;
  const WinogradGroups groups_;  // of a call that computes all rows
  const int64_t inputs_;         // of the full weight
};

}  // namespace

std::unique_ptr<Step> make_winograd_conv2d(const ConvSpec& spec, Program& program) {
  const Window& w = spec.window;
  const Value &x = program.values()[static_cast<size_t>(spec.x)],
              &y = program.values()[static_cast<size_t>(spec.y)];
  if (spec.groups > 1 || w.kernel[0] != 3 || w.kernel[1] != 3 || w.dilation[0] != 1 || w.dilation[1] != 1 ||
      w.top != 1 || w.left != 1 || direct_padding(spec, x, y, program.store()) != 1) {
    return nullptr;
  }
  const float* filters = program.store().winograd_filters(spec.weight);
  return filters == nullptr ? nullptr : std::make_unique<WinogradConvStep>(spec, filters, program);
}

}  // namespace dynkern::engine
