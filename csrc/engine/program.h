// SPDX-License-Identifier: Apache-2.0
// The steps of one sub-net at one input size, ready to run. Built in three moves: values, steps, finish().
// Running changes nothing in it, so any number of threads may run one program at once.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/step.h"
#include "engine/store.h"
#include "ops/planes.h"

namespace dynkern::engine {

struct ConvSpec {
  int x, y;
  size_t weight;
  Window window;
  int bottom, right;                         // padding after the last row and column
  int groups;                                // active ones
  std::vector<int64_t> in_index, out_index;  // empty: the first channels
  StepEpilogue epilogue;
};

struct LinearSpec {
  int x, y;
  size_t weight;
  std::vector<int64_t> in_index, out_index;
  StepEpilogue epilogue;
};

struct PoolSpec {
  int x, y;
  bool maximum;
  Window window;
  bool count_padding;
};

struct CropSpec {
  int x, y;
  int first[3], step[2], count[3], offset[3];
};

// The images of a batch, `stride` floats apart, with strides in floats.
struct Images {
  Image first;
  int64_t stride;

  Image operator[](int64_t i) const {
    Image image = first;
    image.data += i * stride;
    return image;
  }
};

class Program {
 public:
  explicit Program(std::shared_ptr<Store> store) : store_(std::move(store)) {}

  // `zero`: the zero point of a value of kUint8.
  // `across`, `left`: see Value; 0 for planes.
  int add_value(int channels, int height, int width, Element element = Element::kFloat, int zero = 0,
                int across = 0, int left = 0);
  void add_conv2d(ConvSpec spec);
  void add_linear(LinearSpec spec);
  void add_pool2d(PoolSpec spec);
  void add_adaptive_average(int x, int y);
  void add_pointwise(int x, int y, StepEpilogue epilogue);
  void add_multiply(int x, int y, int gate);
  void add_concat(std::vector<int> xs, int y);
  void add_crop(CropSpec spec);
  void add_flatten(int x, int y);
  void add_softmax(int x, int y, bool log);
  void finish(std::vector<int> inputs, std::vector<int> outputs);

  const std::vector<int>& inputs() const { return inputs_; }
  const std::vector<int>& outputs() const { return outputs_; }
  const std::vector<Value>& values() const { return values_; }
  const std::vector<std::unique_ptr<Step>>& steps() const { return steps_; }
  int64_t constant_bytes() const;
  int64_t arena_bytes() const;  // of one running call

  // For each input images of its shape; for each output (batch, output), contiguous.
  void run(const std::vector<Images>& xs, int64_t batch, const std::vector<float*>& ys, int threads) const;

  // For each pixel of planes of that layout -1, or 0 between rows; null without padding. Lives as long as the
  // program.
  const int32_t* mask(const Layout& layout);
  Store& store() const { return *store_; }

 private:
  static constexpr size_t kNoSlot = SIZE_MAX;
  using Maker = std::function<std::unique_ptr<Step>(Program&)>;
  void pair_steps();
  void assign_slots();
  void check_elements(const Step& step) const;
  void run_image(int64_t i, const std::vector<Images>& xs, const std::vector<float*>& ys,
                 float* const* values, Context context) const;
  void read_input(const Image& image, int input, const Context& c) const;
  void write_output(float* y, int output, const Context& c) const;
  void resolve(Arena& arena, float** values) const;

  std::shared_ptr<Store> store_;
  std::vector<Value> values_;
  std::map<std::pair<int, int>, int> pads_;  // by height and width
  std::vector<Maker> makers_;
  std::vector<std::unique_ptr<Step>> steps_;
  std::vector<size_t> layout_ids_, slots_;  // of each value; kNoSlot for one within a step
  std::vector<int> slot_planes_;            // that its slot has room for
  std::map<std::pair<int, int>, std::vector<int32_t>> masks_;
  std::vector<int> inputs_, outputs_;
  int64_t scratch_floats_ = 0;
};

}  // namespace dynkern::engine
