// SPDX-License-Identifier: Apache-2.0
// A 1x1 convolution and the depthwise convolution of its result, some channels at a time: what lies between
// them never leaves the cache, and takes no memory in the arena.
#include <algorithm>

#include "engine/steps.h"

namespace dynkern::engine {
namespace {

// Floats of the channels in between that are made at once. Anything from 8 to 256 Ki is as good.
constexpr int64_t kChunkFloats = 32 * 1024;
// A multiple of what the convolution kernels compute at once.
constexpr int kChannels = 16;

class PairedStep : public Step {
 public:
  PairedStep(std::unique_ptr<Step> first, std::unique_ptr<Step> second, Program& program)
      : first_(std::move(first)),
        second_(std::move(second)),
        middle_(first_->writes()),
        values_(program.values().size()),
        channels_(program.values()[static_cast<size_t>(middle_)].channels),
        layout_(program.values()[static_cast<size_t>(middle_)].layout) {
    chunk_ = std::max<int64_t>(kChunkFloats / layout_.channel() / kChannels, 1) * kChannels;
    chunk_ = std::min<int64_t>(chunk_, channels_);
  }

  void run(const Context& c) const override {
    const Range units = share((channels_ + kChannels - 1) / kChannels, c);
    const Range mine{units.begin * kChannels, std::min<int64_t>(units.end * kChannels, channels_)};
    if (mine.begin >= mine.end) return;
    auto** value = reinterpret_cast<float**>(c.scratch);
    std::copy_n(c.value, values_, value);
    float* planes = c.scratch + pointer_floats();
    clear_padding(planes);
    const Context inner{value, planes + plane_floats(), 0, 1};
    const int64_t count = (mine.end - mine.begin + chunk_ - 1) / chunk_;
    for (int64_t i = 0; i < count; ++i) {
      const Range channels{mine.begin + i * chunk_, std::min(mine.begin + (i + 1) * chunk_, mine.end)};
      value[middle_] = planes + layout_.origin() - channels.begin * layout_.channel();
      first_->run_channels(inner, channels);
      second_->run_channels(inner, channels);
    }
  }

  std::string describe() const override {
    return first_->describe() + "; " + second_->describe() + "; " + std::to_string(chunk_) +
           " channels at a time";
  }
  std::vector<int> reads() const override {
    std::vector<int> all = first_->reads();
    for (int v : second_->reads()) {
      if (v != middle_) all.push_back(v);
    }
    return all;
  }
  int writes() const override { return second_->writes(); }
  int64_t scratch_floats() const override {
    return pointer_floats() + plane_floats() + std::max(first_->scratch_floats(), second_->scratch_floats());
  }
  int64_t constant_bytes() const override { return first_->constant_bytes() + second_->constant_bytes(); }

 private:
  static int64_t lines(int64_t floats) { return (floats + 15) / 16 * 16; }
  int64_t pointer_floats() const {
    return lines(static_cast<int64_t>(values_ * sizeof(float*) / sizeof(float)) + 1);
  }
  // Kernels read up to two vectors past the end.
  int64_t plane_floats() const { return lines(chunk_ * layout_.channel() + 64); }

  void clear_padding(float* planes) const {
    if (layout_.pad == 0) return;
    for (int64_t i = 0; i < chunk_; ++i, planes += layout_.channel()) {
      float* row = planes + layout_.origin();
      std::fill(planes, row, 0.f);
      for (int y = 0; y < layout_.height; ++y, row += layout_.pitch()) {
        std::fill_n(row + layout_.width, layout_.pad, 0.f);
      }
      std::fill(row, planes + layout_.channel(), 0.f);
    }
  }

  const std::unique_ptr<Step> first_, second_;
  const int middle_;
  const size_t values_;
  const int64_t channels_;
  const Layout layout_;
  int64_t chunk_;
};

}  // namespace

std::unique_ptr<Step> make_paired(std::unique_ptr<Step> first, std::unique_ptr<Step> second,
                                  Program& program) {
  return std::make_unique<PairedStep>(std::move(first), std::move(second), program);
}

}  // namespace dynkern::engine
