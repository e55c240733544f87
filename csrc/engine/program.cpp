// SPDX-License-Identifier: Apache-2.0
#include "engine/program.h"

#include <omp.h>

#include <algorithm>
#include <stdexcept>

#include "core/parallel.h"
#include "core/scratch.h"
#include "engine/steps.h"

namespace dynkern::engine {

int Program::add_value(int channels, int height, int width, Element element, int zero, int across, int left) {
  if (channels < 1 || height < 1 || width < 1) throw std::invalid_argument("value: expected positive sizes");
  if (zero < 0 || zero > (element == Element::kUint8 ? 255 : 0)) {
    throw std::invalid_argument("value: zero point out of range");
  }
  if (across < 0 || left < 0 || left >= std::max(across, 1) || (across > 0 && element != Element::kUint8)) {
    throw std::invalid_argument("value: pixels side by side are bytes, and one of them is the pixel itself");
  }
  // Whole lines of the cache.
  const int pixel_words = static_cast<int>((int64_t{across} * channels + 63) / 64 * 16);
  const uint32_t fill = 0x01010101u * static_cast<uint32_t>(zero);
  values_.push_back({channels,
                     {height, width, 0, fill, pixel_words, across > 1 ? channels : 0, across > 1 ? left : 0},
                     element,
                     across,
                     left});
  pads_.try_emplace({height, width}, 0);
  return static_cast<int>(values_.size()) - 1;
}

void Program::add_conv2d(ConvSpec spec) {
  const Value &x = values_.at(static_cast<size_t>(spec.x)), &y = values_.at(static_cast<size_t>(spec.y));
  int& pad = pads_[{x.layout.height, x.layout.width}];
  pad = std::max({pad, direct_padding(spec, x, y, *store_), split_padding(spec, x)});
  // Bytes are always read in place.
  if (x.across > 0) pad = std::max({pad, spec.window.top, spec.window.left, spec.bottom, spec.right});
  makers_.push_back([spec = std::move(spec)](Program& p) { return make_conv2d(spec, p); });
}

void Program::add_linear(LinearSpec spec) {
  makers_.push_back([spec = std::move(spec)](Program& p) { return make_linear(spec, p); });
}

void Program::add_pool2d(PoolSpec spec) {
  makers_.push_back([spec](Program& p) { return make_pool2d(spec, p); });
}

void Program::add_adaptive_average(int x, int y) {
  makers_.push_back([=](Program& p) { return make_adaptive_average(x, y, p); });
}

void Program::add_pointwise(int x, int y, StepEpilogue epilogue) {
  makers_.push_back([=, e = std::move(epilogue)](Program& p) { return make_pointwise(x, y, e, p); });
}

void Program::add_multiply(int x, int y, int gate) {
  makers_.push_back([=](Program& p) { return make_multiply(x, y, gate, p); });
}

void Program::add_concat(std::vector<int> xs, int y) {
  makers_.push_back([=, xs = std::move(xs)](Program& p) { return make_concat(xs, y, p); });
}

void Program::add_crop(CropSpec spec) {
  makers_.push_back([spec](Program& p) { return make_crop(spec, p); });
}

void Program::add_flatten(int x, int y) {
  makers_.push_back([=](Program& p) { return make_flatten(x, y, p); });
}

void Program::add_softmax(int x, int y, bool log) {
  makers_.push_back([=](Program& p) { return make_softmax(x, y, log, p); });
}

void Program::finish(std::vector<int> inputs, std::vector<int> outputs) {
  for (const std::vector<int>* ends : {&inputs, &outputs}) {
    for (int v : *ends) {
      if (values_.at(static_cast<size_t>(v)).element != Element::kFloat) {
        throw std::invalid_argument("finish: inputs and outputs are floats");
      }
    }
  }
  inputs_ = std::move(inputs);
  outputs_ = std::move(outputs);
  for (Value& v : values_) {
    v.layout.pad = pads_[{v.layout.height, v.layout.width}];
    if (v.planes() * v.layout.channel() > INT32_MAX) {
      throw std::invalid_argument("value: an activation of more than 2^31 elements");
    }
    layout_ids_.push_back(store_->layout_id(v.layout));
  }
  for (const Maker& make : makers_) steps_.push_back(make(*this));
  makers_.clear();
  for (const auto& step : steps_) check_elements(*step);
  pair_steps();
  for (const auto& step : steps_) scratch_floats_ = std::max(scratch_floats_, step->scratch_floats());
  scratch_floats_ = (scratch_floats_ + 15) / 16 * 16;
  assign_slots();
}

void Program::check_elements(const Step& step) const {
  std::vector<int> used = step.reads();
  used.push_back(step.writes());
  for (int v : used) {
    if (values_[static_cast<size_t>(v)].element != Element::kFloat && !step.takes_words()) {
      throw std::invalid_argument(step.describe() + ": it takes no quantised values");
    }
    if (values_[static_cast<size_t>(v)].across > 0 && !step.takes_bytes()) {
      throw std::invalid_argument(step.describe() + ": it takes no bytes whose channels are neighbours");
    }
  }
}

// A step that reads its input by channels, which nobody else reads, runs together with the step that makes
// it.
void Program::pair_steps() {
  std::vector<int> readers(values_.size(), 0);
  std::vector<size_t> maker(values_.size(), SIZE_MAX);
  for (int v : outputs_) readers[static_cast<size_t>(v)] = 1;
  for (size_t s = 0; s < steps_.size(); ++s) {
    for (int v : steps_[s]->reads()) ++readers[static_cast<size_t>(v)];
    maker[static_cast<size_t>(steps_[s]->writes())] = s;
  }
  for (auto& step : steps_) {
    if (!step->keeps_channels()) continue;
    const size_t x = static_cast<size_t>(step->reads()[0]);
    if (readers[x] != 1 || maker[x] == SIZE_MAX || !steps_[maker[x]]->makes_channels()) continue;
    step = make_paired(std::move(steps_[maker[x]]), std::move(step), *this);
  }
  steps_.erase(std::remove(steps_.begin(), steps_.end(), nullptr), steps_.end());
}

// A value takes the first slot of its layout that no living value holds, and gives it back after its last
// reader.
void Program::assign_slots() {
  std::vector<int> last(values_.size(), -1);
  for (size_t s = 0; s < steps_.size(); ++s) {
    for (int v : steps_[s]->reads()) last[static_cast<size_t>(v)] = static_cast<int>(s);
  }
  for (int v : outputs_) last[static_cast<size_t>(v)] = static_cast<int>(steps_.size());
  std::map<size_t, std::vector<bool>> taken;
  slots_.assign(values_.size(), kNoSlot);
  auto take = [&](int v) {
    std::vector<bool>& of_layout = taken[layout_ids_[static_cast<size_t>(v)]];
    const auto free = std::find(of_layout.begin(), of_layout.end(), false);
    slots_[static_cast<size_t>(v)] = static_cast<size_t>(free - of_layout.begin());
    if (free == of_layout.end()) {
      of_layout.push_back(true);
    } else {
      *free = true;
    }
  };
  for (int v : inputs_) take(v);
  for (size_t s = 0; s < steps_.size(); ++s) {
    take(steps_[s]->writes());
    std::vector<int> done = steps_[s]->reads();
    done.push_back(steps_[s]->writes());
    for (int v : done) {
      if (last[static_cast<size_t>(v)] <= static_cast<int>(s)) {
        taken[layout_ids_[static_cast<size_t>(v)]][slots_[static_cast<size_t>(v)]] = false;
      }
    }
  }
  // A slot is asked for with room for all its values, so that it does not move while a call runs.
  std::map<std::pair<size_t, size_t>, int> most;
  for (size_t v = 0; v < values_.size(); ++v) {
    if (slots_[v] == kNoSlot) continue;
    int& planes = most[{layout_ids_[v], slots_[v]}];
    planes = std::max(planes, values_[v].planes());
  }
  for (size_t v = 0; v < values_.size(); ++v) {
    slot_planes_.push_back(slots_[v] == kNoSlot ? 0 : most[{layout_ids_[v], slots_[v]}]);
  }
}

const int32_t* Program::mask(const Layout& layout) {
  if (layout.pad == 0) return nullptr;
  std::vector<int32_t>& mask = masks_[{layout.height, layout.width}];
  if (mask.empty()) {
    for (int y = 0; y < layout.height; ++y) {
      for (int x = 0; x < layout.pitch(); ++x) mask.push_back(x < layout.width ? -1 : 0);
    }
  }
  return mask.data();
}

int64_t Program::constant_bytes() const {
  int64_t bytes = 0;
  for (const auto& step : steps_) bytes += step->constant_bytes();
  for (const auto& mask : masks_) bytes += static_cast<int64_t>(mask.second.size() * sizeof(int32_t));
  return bytes;
}

int64_t Program::arena_bytes() const {
  std::map<std::pair<size_t, size_t>, int64_t> floats;  // by slot
  for (size_t v = 0; v < values_.size(); ++v) {
    if (slots_[v] == kNoSlot) continue;
    int64_t& most = floats[{layout_ids_[v], slots_[v]}];
    most = std::max(most, values_[v].planes() * values_[v].layout.channel());
  }
  int64_t sum = scratch_floats_;
  for (const auto& slot : floats) sum += slot.second;
  return sum * static_cast<int64_t>(sizeof(float));
}

void Program::resolve(Arena& arena, float** values) const {
  for (size_t v = 0; v < values_.size(); ++v) {
    const Value& value = values_[v];
    if (slots_[v] == kNoSlot) continue;
    values[v] =
        arena.slot(layout_ids_[v], value.layout, slots_[v], slot_planes_[v]) + value.layout.first_word();
  }
}

void Program::read_input(const Image& image, int input, const Context& c) const {
  const Value& in = values_[static_cast<size_t>(input)];
  const Range channels = share(in.channels, c);
  for (int64_t i = channels.begin; i < channels.end; ++i) {
    for (int64_t row = 0; row < image.height; ++row) {
      const float* from = image.data + i * image.channel_stride + row * image.row_stride;
      float* to = c.value[input] + i * in.layout.channel() + row * in.layout.pitch();
      if (image.column_stride == 1) {
        std::copy(from, from + image.width, to);
        continue;
      }
      for (int64_t column = 0; column < image.width; ++column)
        to[column] = from[column * image.column_stride];
    }
  }
}

void Program::write_output(float* y, int output, const Context& c) const {
  const Value& out = values_[static_cast<size_t>(output)];
  const Range results = share(out.channels, c);
  const int64_t plane = static_cast<int64_t>(out.layout.height) * out.layout.width;
  for (int64_t i = results.begin; i < results.end; ++i) {
    for (int64_t row = 0; row < out.layout.height; ++row) {
      const float* from = c.value[output] + i * out.layout.channel() + row * out.layout.pitch();
      std::copy(from, from + out.layout.width, y + i * plane + row * out.layout.width);
    }
  }
}

void Program::run_image(int64_t i, const std::vector<Images>& xs, const std::vector<float*>& ys,
                        float* const* values, Context c) const {
  c.value = values;
  for (size_t x = 0; x < xs.size(); ++x) read_input(xs[x][i], inputs_[x], c);
  for (const auto& step : steps_) {
    if (c.threads > 1) {
#pragma omp barrier
    }
    step->run(c);
  }
  if (c.threads > 1) {
#pragma omp barrier
  }
  for (size_t y = 0; y < ys.size(); ++y) {
    const Value& out = values_[static_cast<size_t>(outputs_[y])];
    const int64_t size = out.channels * static_cast<int64_t>(out.layout.height) * out.layout.width;
    write_output(ys[y] + i * size, outputs_[y], c);
  }
}

void Program::run(const std::vector<Images>& xs, int64_t batch, const std::vector<float*>& ys,
                  int threads) const {
  // Images are shared out among the threads where there are enough of them; else all threads share each
  // image.
  const bool apart = batch >= threads;
  const int arenas = apart ? threads : 1;
  std::vector<std::unique_ptr<Arena>> arena;
  std::vector<float*> values(values_.size() * static_cast<size_t>(arenas));
  for (int i = 0; i < arenas; ++i) {
    arena.push_back(store_->acquire());
    resolve(*arena.back(), values.data() + static_cast<size_t>(i) * values_.size());
  }
  float* scratch = Scratch::floats(static_cast<size_t>(threads) * static_cast<size_t>(scratch_floats_));
  if (apart) {
    parallel_for(batch, threads, [&](int64_t i, int thread) {
      run_image(i, xs, ys, values.data() + static_cast<size_t>(thread) * values_.size(),
                {nullptr, scratch + thread * scratch_floats_, 0, 1});
    });
  } else {
#pragma omp parallel num_threads(threads)
    {
      const int thread = omp_get_thread_num(), team = omp_get_num_threads();
      for (int64_t i = 0; i < batch; ++i) {
        run_image(i, xs, ys, values.data(), {nullptr, scratch + thread * scratch_floats_, thread, team});
        // Nobody may write the next input while another still reads this result.
#pragma omp barrier
      }
    }
  }
  for (auto& a : arena) store_->release(std::move(a));
}

}  // namespace dynkern::engine
