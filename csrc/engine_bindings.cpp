// SPDX-License-Identifier: Apache-2.0
// The engine's part of the Python module: dynkern.engine.native builds programs step by step through it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/ternary_format.h"
#include "engine/program.h"
#include "engine_bindings.h"
#include "python_tensor.h"

namespace dynkern {
namespace {

using engine::Program;
using engine::StepEpilogue;
using engine::Store;
using Index = std::vector<int64_t>;
using Geometry = std::array<int, 8>;

std::vector<float> copy_vector(py::handle object, const char* name) {
  if (object.is_none()) return {};
  Tensor t;
  if (!read(object, Torch::get().float32, 1, t) || (t.size[0] > 1 && t.stride[0] != 1)) {
    throw std::invalid_argument(std::string(name) + ": expected a contiguous float32 vector on the CPU");
  }
  return {t.floats(), t.floats() + t.size[0]};
}

size_t add_dense(Store& store, py::handle weight) {
  Tensor t;
  const py::object& dtype = Torch::get().float32;
  if ((!read(weight, dtype, 4, t) && !read(weight, dtype, 2, t)) || !contiguous(t)) {
    throw std::invalid_argument(
        "weight: expected a contiguous float32 tensor of 2 or 4 dimensions on the CPU");
  }
  return store.add_dense(t.floats(), {t.size, t.size + t.dimensions});
}

size_t add_ternary(Store& store, py::handle packed, const std::vector<int64_t>& shape) {
  return store.add_ternary(make_lists(packed, shape));
}

// Integers of a convolution's weight: int8 for activations of uint8, int16 for those of int16.
size_t add_quantized(Store& store, py::handle weight) {
  Tensor t;
  const Torch& torch = Torch::get();
  const bool narrow = read(weight, torch.int8, 4, t);
  if ((!narrow && !read(weight, torch.int16, 4, t)) || !contiguous(t)) {
    throw std::invalid_argument(
        "weight: expected a contiguous int8 or int16 tensor of 4 dimensions on the CPU");
  }
  const int64_t taps = t.size[2] * t.size[3];
  if (narrow) {
    return store.add_quantized(
        QuantizedWeight(static_cast<const int8_t*>(t.data), t.size[0], t.size[1], taps));
  }
  return store.add_quantized(
      QuantizedWeight(static_cast<const int16_t*>(t.data), t.size[0], t.size[1], taps));
}

size_t add_codes(Store& store, py::handle packed_, const std::vector<int64_t>& shape) {
  Tensor packed;
  int64_t taps = 1;
  for (size_t i = 2; i < shape.size(); ++i) taps *= shape[i];
  if (shape.size() != 4 || !read(packed_, Torch::get().uint8, 2, packed) || !contiguous(packed) ||
      packed.size[0] != shape[0] || packed.size[1] != packed_row_bytes(shape[1] * taps)) {
    throw std::invalid_argument("packed: expected contiguous uint8 codes of that shape on the CPU");
  }
  return store.add_codes(TernaryCodes(static_cast<const uint8_t*>(packed.data), shape[0], shape[1], taps));
}

int add_value(Program& p, int channels, int height, int width, const std::string& element, int zero,
              int across, int left) {
  constexpr std::array<const char*, 3> kElements = {"float32", "uint8", "int16"};
  for (size_t i = 0; i < kElements.size(); ++i) {
    if (element == kElements[i])
      return p.add_value(channels, height, width, static_cast<Element>(i), zero, across, left);
  }
  throw std::invalid_argument("element: unknown kind '" + element + "'");
}

const std::array<const char*, 9> kActivations = {"none",      "clamp",       "gelu",    "gelu_tanh", "silu",
                                                 "hardswish", "hardsigmoid", "sigmoid", "tanh"};

StepEpilogue make_epilogue(py::handle scale, py::handle shift, int residual, py::handle residual_scale,
                           const std::string& activation, float low, float high) {
  for (size_t i = 0; i < kActivations.size(); ++i) {
    if (activation == kActivations[i]) {
      return {copy_vector(scale, "scale"),
              copy_vector(shift, "shift"),
              copy_vector(residual_scale, "residual_scale"),
              residual,
              static_cast<Activation>(i),
              low,
              high};
    }
  }
  throw std::invalid_argument("activation: unknown kind '" + activation + "'");
}

Window window(const engine::Value& x, const engine::Value& y, std::array<int, 2> kernel, const Geometry& g) {
  Window w{{kernel[0], kernel[1]}, {g[0], g[1]}, {g[6], g[7]}, g[2], g[4], {y.layout.height, y.layout.width}};
  const int size[2] = {x.layout.height, x.layout.width};
  for (int axis = 0; axis < 2; ++axis) {
    const int extent = w.dilation[axis] * (w.kernel[axis] - 1) + 1;
    const int padded =
        size[axis] + g[static_cast<size_t>(2 + 2 * axis)] + g[static_cast<size_t>(3 + 2 * axis)];
    if (kernel[static_cast<size_t>(axis)] < 1 || w.stride[axis] < 1 || w.dilation[axis] < 1 ||
        (padded - extent) / w.stride[axis] + 1 < w.out[axis]) {
      throw std::invalid_argument("geometry: the result does not fit the input");
    }
  }
  return w;
}

const engine::Value& value(const Program& p, int i) { return p.values().at(static_cast<size_t>(i)); }

void check_index(const Index& index, int64_t count, int64_t limit, const char* name) {
  if (index.empty() ? count > limit : static_cast<int64_t>(index.size()) != count) {
    throw std::invalid_argument(std::string(name) + ": does not fit the weight");
  }
  for (int64_t i : index) {
    if (i < 0 || i >= limit) throw std::invalid_argument(std::string(name) + ": out of range");
  }
}

void check_epilogue(const Program& p, const StepEpilogue& e, int y) {
  const engine::Value& out = value(p, y);
  for (const std::vector<float>* v : {&e.scale, &e.shift, &e.residual_scale}) {
    if (!v->empty() && static_cast<int>(v->size()) != out.channels) {
      throw std::invalid_argument("epilogue: expected one number per channel");
    }
  }
  if (e.residual < 0) return;
  const engine::Value& r = value(p, e.residual);
  if (r.channels != out.channels || !r.layout.same_size(out.layout)) {
    throw std::invalid_argument("epilogue: the residual is of another shape");
  }
}

// The shape of a weight of the store: outputs, inputs of a group, taps.
std::array<int64_t, 3> weight_shape(const Program& p, size_t id) {
  if (const engine::DenseWeight* w = p.store().dense(id)) {
    return {w->shape[0], w->shape[1], w->shape.size() == 4 ? w->shape[2] * w->shape[3] : 1};
  }
  if (const QuantizedWeight* w = p.store().quantized(id)) return {w->outputs(), w->inputs(), w->taps()};
  if (const TernaryCodes* w = p.store().codes(id)) return {w->outputs(), w->inputs(), w->taps()};
  const TernaryLists* lists = p.store().ternary(id);
  return {lists->outputs(), lists->inputs(), lists->taps()};
}

void conv2d(Program& p, int x, int y, size_t weight, std::array<int, 2> kernel, const Geometry& geometry,
            int groups, const Index& in_index, const Index& out_index, const StepEpilogue& epilogue) {
  const auto shape = weight_shape(p, weight);
  const engine::Value &from = value(p, x), &to = value(p, y);
  if (groups < 1 || from.channels % groups != 0 || to.channels % groups != 0 ||
      kernel[0] * kernel[1] != shape[2]) {
    throw std::invalid_argument("conv2d: groups or kernel do not fit");
  }
  if (groups == 1) {
    check_index(in_index, from.channels, shape[1], "in_index");
    check_index(out_index, to.channels, shape[0], "out_index");
  } else {
    const int64_t multiplier = to.channels / groups;
    if (from.channels / groups != shape[1] || !out_index.empty())
      throw std::invalid_argument("conv2d: groups do not fit");
    check_index(in_index, groups, shape[0] / multiplier, "in_index");
  }
  check_epilogue(p, epilogue, y);
  p.add_conv2d({x, y, weight, window(from, to, kernel, geometry), geometry[3], geometry[5], groups, in_index,
                out_index, epilogue});
}

void linear(Program& p, int x, int y, size_t weight, const Index& in_index, const Index& out_index,
            const StepEpilogue& epilogue) {
  const auto shape = weight_shape(p, weight);
  if (!value(p, x).features() || !value(p, y).features() || shape[2] != 1 ||
      p.store().quantized(weight) != nullptr || p.store().codes(weight) != nullptr) {
    throw std::invalid_argument("linear: expected features");
  }
  check_index(in_index, value(p, x).channels, shape[1], "in_index");
  check_index(out_index, value(p, y).channels, shape[0], "out_index");
  check_epilogue(p, epilogue, y);
  p.add_linear({x, y, weight, in_index, out_index, epilogue});
}

void same_channels(const Program& p, int x, int y, bool size) {
  const engine::Value &from = value(p, x), &to = value(p, y);
  if (from.channels != to.channels || (size && !from.layout.same_size(to.layout))) {
    throw std::invalid_argument("step: its values are of different shapes");
  }
}

void pool2d(Program& p, int x, int y, bool maximum, std::array<int, 2> kernel, const Geometry& geometry,
            bool count_padding) {
  same_channels(p, x, y, false);
  p.add_pool2d({x, y, maximum, window(value(p, x), value(p, y), kernel, geometry), count_padding});
}

void crop(Program& p, int x, int y, std::array<int, 3> first, std::array<int, 2> step,
          std::array<int, 3> count, std::array<int, 3> offset) {
  const engine::Value &from = value(p, x), &to = value(p, y);
  const int in[3] = {from.channels, from.layout.height, from.layout.width};
  const int out[3] = {to.channels, to.layout.height, to.layout.width};
  const int steps[3] = {1, step[0], step[1]};
  engine::CropSpec spec{x, y, {}, {step[0], step[1]}, {}, {}};
  for (size_t i = 0; i < 3; ++i) {
    if (first[i] < 0 || count[i] < 0 || steps[i] < 1 || offset[i] < 0 || offset[i] + count[i] > out[i] ||
        (count[i] > 0 && first[i] + (count[i] - 1) * steps[i] >= in[i])) {
      throw std::invalid_argument("crop: leaves its values");
    }
    spec.first[i] = first[i];
    spec.count[i] = count[i];
    spec.offset[i] = offset[i];
  }
  p.add_crop(spec);
}

void concat(Program& p, const std::vector<int>& xs, int y) {
  int channels = 0;
  for (int x : xs) {
    if (!(value(p, x).layout == value(p, y).layout))
      throw std::invalid_argument("concat: values of different sizes");
    channels += value(p, x).channels;
  }
  if (xs.empty() || channels != value(p, y).channels)
    throw std::invalid_argument("concat: channels do not add up");
  p.add_concat(xs, y);
}

// Reads the images of input i; false if `x` is not a float32 tensor (N, C, H, W) on the CPU of its shape.
bool read_images(const Program& p, size_t i, py::handle x_, engine::Images& images, int64_t& batch) {
  Tensor x;
  const engine::Value& in = value(p, p.inputs()[i]);
  if (!read(x_, Torch::get().float32, 4, x) || x.size[1] != in.channels || x.size[2] != in.layout.height ||
      x.size[3] != in.layout.width) {
    return false;
  }
  images = {{x.floats(), x.size[1], x.size[2], x.size[3], x.stride[1], x.stride[2], x.stride[3]},
            x.stride[0]};
  batch = x.size[0];
  return true;
}

py::object new_result(const Program& p, size_t i, int64_t batch, int dimensions, float*& data) {
  Tensor y;
  const engine::Value& out = value(p, p.outputs()[i]);
  py::object result = dimensions == 2 ? empty({batch, out.channels}, y)
                                      : empty({batch, out.channels, out.layout.height, out.layout.width}, y);
  data = y.floats();
  return result;
}

// The result of a program with one input and one output; None if `x` is not right for it.
py::object run(const Program& p, py::handle x, int dimensions, int threads) {
  std::vector<engine::Images> xs(1);
  std::vector<float*> ys(1);
  int64_t batch = 0;
  if (!read_images(p, 0, x, xs[0], batch)) return py::none();
  py::object result = new_result(p, 0, batch, dimensions, ys[0]);
  if (batch == 0) return result;
  py::gil_scoped_release release;
  p.run(xs, batch, ys, threads < 1 ? 1 : threads);
  return result;
}

// All results (N, C, H, W) for as many inputs as the program has, of one batch.
py::list run_many(const Program& p, const py::list& inputs, int threads) {
  std::vector<engine::Images> xs(p.inputs().size());
  std::vector<float*> ys(p.outputs().size());
  int64_t batch = 0, first = 0;
  py::list results;
  for (size_t i = 0; i < xs.size(); ++i) {
    if (inputs.size() != xs.size() || !read_images(p, i, inputs[i], xs[i], batch) ||
        (i > 0 && batch != first)) {
      throw std::invalid_argument("run_many: input " + std::to_string(i) + " is not as planned");
    }
    first = batch;
  }
  for (size_t i = 0; i < ys.size(); ++i) results.append(new_result(p, i, batch, 4, ys[i]));
  if (batch == 0) return results;
  py::gil_scoped_release release;
  p.run(xs, batch, ys, threads < 1 ? 1 : threads);
  return results;
}

py::list describe(const Program& p) {
  py::list steps;
  for (const auto& step : p.steps()) {
    py::dict row;
    const engine::Value& out = value(p, step->writes());
    row["step"] = step->describe();
    row["reads"] = step->reads();
    row["writes"] = step->writes();
    row["shape"] = py::make_tuple(out.channels, out.layout.height, out.layout.width);
    steps.append(row);
  }
  return steps;
}

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<StepEpilogue>(m, "Epilogue")
      .def(py::init(&make_epilogue), py::arg("scale"), py::arg("shift"), py::arg("residual"),
           py::arg("residual_scale"), py::arg("activation"), py::arg("low"), py::arg("high"));
  py::class_<Store, std::shared_ptr<Store>>(m, "Store")
      .def(py::init<>())
      .def("add_dense", add_dense)
      .def("add_ternary", add_ternary)
      .def("add_quantized", add_quantized)
      .def("add_codes", add_codes)
      .def_property_readonly("weight_bytes", &Store::weight_bytes);
  py::class_<Program>(m, "Program")
      .def(py::init<std::shared_ptr<Store>>())
      .def("value", add_value)
      .def("conv2d", conv2d)
      .def("linear", linear)
      .def("pool2d", pool2d)
      .def("adaptive_average",
           [](Program& p, int x, int y) {
             same_channels(p, x, y, false);
             p.add_adaptive_average(x, y);
           })
      .def("pointwise",
           [](Program& p, int x, int y, const StepEpilogue& epilogue) {
             same_channels(p, x, y, true);
             check_epilogue(p, epilogue, y);
             p.add_pointwise(x, y, epilogue);
           })
      .def("multiply",
           [](Program& p, int x, int y, int gate) {
             same_channels(p, x, y, true);
             same_channels(p, gate, y, !value(p, gate).features());
             p.add_multiply(x, y, gate);
           })
      .def("concat", concat)
      .def("crop", crop)
      .def("flatten",
           [](Program& p, int x, int y) {
             const engine::Value& from = value(p, x);
             if (!value(p, y).features() ||
                 from.channels * from.layout.height * from.layout.width != value(p, y).channels) {
               throw std::invalid_argument("flatten: sizes do not agree");
             }
             p.add_flatten(x, y);
           })
      .def("softmax",
           [](Program& p, int x, int y, bool log) {
             same_channels(p, x, y, true);
             if (!value(p, x).features()) throw std::invalid_argument("softmax: expected features");
             p.add_softmax(x, y, log);
           })
      .def("finish",
           [](Program& p, const std::vector<int>& inputs, const std::vector<int>& outputs) {
             for (int v : inputs) value(p, v);
             for (int v : outputs) value(p, v);
             if (inputs.empty() || outputs.empty())
               throw std::invalid_argument("finish: expected inputs and outputs");
             p.finish(inputs, outputs);
           })
      .def("run", run)
      .def("run_many", run_many)
      .def("describe", describe)
      .def_property_readonly("constant_bytes", &Program::constant_bytes)
      .def_property_readonly("arena_bytes", &Program::arena_bytes);
}

}  // namespace dynkern
