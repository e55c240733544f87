// SPDX-License-Identifier: Apache-2.0
// The Python module. Each operator takes a call that its kernel can run, allocates the result and returns it,
// and returns None for any other: dynkern.ops then says what is wrong with the arguments, or lets PyTorch
// run. So the checks here are complete but silent, and the messages stand in one place. There is no libtorch:
// one build serves every PyTorch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "core/isa.h"
#include "core/ternary_format.h"
#include "ops/sliced_conv2d/op.h"
#include "ops/sliced_linear/op.h"
#include "ops/ternary/op.h"
#include "ops/ternary_int8/op.h"
#include "engine_bindings.h"
#include "python_tensor.h"
#ifdef DYNKERN_CUDA
#include "cuda/bindings.h"
#endif

namespace dynkern {
namespace {

// A full convolution's weight, whatever its form: its shape, and the channels of it that a call runs.
struct ConvShape {
  int64_t full_outputs, group_inputs, kernel[2], groups;

  // Fills in `call` but for x and y; false if the arguments do not fit each other. With groups, a sub-net has
  // fewer groups of the same size, and `in` names the filters of a depthwise layer.
  bool fit(const Tensor& x, py::handle geometry, py::handle out_channels, IndexSet& in, IndexSet& out,
           ConvCall& call) const {
    if (groups < 1 || full_outputs % groups != 0 || group_inputs < 1 || !in.valid || !out.valid) return false;
    const int64_t channels = x.size[1], full_inputs = group_inputs * groups;
    if (channels < 1 || channels > full_inputs || (in.given && in.size() != channels)) return false;
    if (out.given && (groups > 1 || !out_channels.is_none())) return false;
    call.groups = 1;
    call.outputs = out.given ? out.size() : full_outputs;
    if (groups > 1) {
      if (channels % group_inputs != 0 || (in.given && group_inputs != 1)) return false;
      call.groups = channels / group_inputs;
      call.outputs = call.groups * (full_outputs / groups);
    }
    if (!out_channels.is_none()) {
      const int64_t wanted = count_or(out_channels, 0);
      if (wanted < 1 || wanted > full_outputs || (groups > 1 && wanted != call.outputs)) return false;
      call.outputs = wanted;
    }
    in.check(groups == 1 ? group_inputs : groups, "in_index");
    out.check(full_outputs, "out_index");
    if (groups > 1 && call.groups == 1 && in.given) {
      // One active group of a depthwise layer is a dense layer with that group's outputs.
      for (int64_t o = 0; o < call.outputs; ++o) out.entries.push_back(in.entries[0] * call.outputs + o);
      out.given = true;
      in = IndexSet(py::none());
    }
    return windows(x, geometry, call);
  }

 private:
  // geometry (a list or tuple): vertical and horizontal stride; top, bottom, left, right padding; vertical
  // and horizontal dilation.
  bool windows(const Tensor& x, py::handle geometry, ConvCall& call) const {
    int64_t g[8];
    for (int i = 0; i < 8; ++i) g[i] = integer(PySequence_Fast_GET_ITEM(geometry.ptr(), i));
    Window& w = call.window;
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t padded = x.size[2 + axis] + g[2 + 2 * axis] + g[3 + 2 * axis];
      const int64_t extent = g[6 + axis] * (kernel[axis] - 1) + 1;
      if (kernel[axis] < 1 || padded < extent || padded > INT32_MAX) return false;
      w.kernel[axis] = static_cast<int>(kernel[axis]);
      w.stride[axis] = static_cast<int>(g[axis]);
      w.dilation[axis] = static_cast<int>(g[6 + axis]);
      w.out[axis] = static_cast<int>((padded - extent) / g[axis] + 1);
    }
    w.top = static_cast<int>(g[2]);
    w.left = static_cast<int>(g[4]);
    call.image = {x.floats(), x.size[1], x.size[2], x.size[3], x.stride[1], x.stride[2], x.stride[3]};
    call.batch = x.size[0];
    call.batch_stride = x.stride[0];
    return true;
  }
};

py::object conv_result(ConvCall& call, int threads) {
  Tensor y;
  py::object result = empty({call.batch, call.outputs, call.window.out[0], call.window.out[1]}, y);
  call.y = y.floats();
  call.threads = threads;
  return result;
}

py::object sliced_conv2d(py::handle x_, py::handle weight_, py::handle bias, py::handle geometry,
                         int64_t groups, py::handle out_channels, py::handle in_index, py::handle out_index,
                         int threads) {
  const py::object& dtype = Torch::get().float32;
  Tensor x, w;
  ConvWeight weight;
  if (!read(x_, dtype, 4, x) || !read(weight_, dtype, 4, w) || !read_vector(bias, w.size[0], weight.bias)) {
    return py::none();
  }
  // The kernel steps through the taps evenly, as they lie in both memory formats and in slices of them.
  const bool tall = w.size[2] > 1, wide = w.size[3] > 1;
  if (tall && wide && w.stride[2] != w.size[3] * w.stride[3]) return py::none();
  IndexSet in(in_index), out(out_index);
  ConvCall call;
  if (!ConvShape{w.size[0], w.size[1], {w.size[2], w.size[3]}, groups}.fit(x, geometry, out_channels, in, out,
                                                                           call)) {
    return py::none();
  }
  call.work = static_cast<double>(call.outputs * (call.image.channels / call.groups) * w.size[2] * w.size[3]);
  call.cycles = 0.5;  // two fused multiply-adds a cycle
  py::object result = conv_result(call, threads);
  weight.data = w.floats();
  weight.out_stride = w.stride[0];
  weight.in_stride = w.stride[1];
  weight.tap_stride = wide ? w.stride[3] : w.stride[2];
  weight.in_index = in.data();
  weight.out_index = out.data();
  if (call.batch == 0) return result;
  py::gil_scoped_release release;
  run_sliced_conv2d(call, weight);
  return result;
}

py::object ternary_conv2d(py::handle x_, const TernaryLists& lists, py::handle scale, py::handle bias,
                          int64_t kernel_height, int64_t kernel_width, py::handle geometry, int64_t groups,
                          py::handle out_channels, py::handle in_index, py::handle out_index, int threads) {
  Tensor x;
  TernaryOperand weight{lists};
  if (!read(x_, Torch::get().float32, 4, x) || !read_vector(scale, lists.outputs(), weight.scale) ||
      !read_vector(bias, lists.outputs(), weight.bias) || kernel_height * kernel_width != lists.taps()) {
    return py::none();
  }
  IndexSet in(in_index), out(out_index);
  ConvCall call;
  const ConvShape shape{lists.outputs(), lists.inputs(), {kernel_height, kernel_width}, groups};
  if (!shape.fit(x, geometry, out_channels, in, out, call)) return py::none();
  py::object result = conv_result(call, threads);
  weight.in_index = in.data();
  weight.out_index = out.data();
  if (call.batch == 0) return result;
  py::gil_scoped_release release;
  run_ternary_conv2d(call, weight);
  return result;
}

// How many outputs of a linear layer run; 0 if the arguments do not fit each other.
int64_t linear_outputs(const Tensor& x, int64_t full_outputs, int64_t full_inputs, py::handle out_features,
                       const IndexSet& in, const IndexSet& out) {
  if (!in.valid || !out.valid || x.size[1] < 1 || x.size[1] > full_inputs) return 0;
  if ((in.given && in.size() != x.size[1]) || (out.given && !out_features.is_none())) return 0;
  in.check(full_inputs, "in_index");
  out.check(full_outputs, "out_index");
  if (out.given) return out.size();
  const int64_t wanted = count_or(out_features, full_outputs);
  return wanted <= full_outputs ? wanted : 0;
}

py::object sliced_linear(py::handle x_, py::handle weight_, py::handle bias, py::handle out_features,
                         py::handle in_index, py::handle out_index, int threads) {
  const py::object& dtype = Torch::get().float32;
  Tensor x, w, y;
  SlicedLinear call;
  if (!read(x_, dtype, 2, x) || !read(weight_, dtype, 2, w) || !read_vector(bias, w.size[0], call.bias))
    return py::none();
  if ((x.size[1] > 1 && x.stride[1] != 1) || (w.size[1] > 1 && w.stride[1] != 1)) return py::none();
  const IndexSet in(in_index), out(out_index);
  call.outputs = linear_outputs(x, w.size[0], w.size[1], out_features, in, out);
  if (call.outputs < 1) return py::none();
  py::object result = empty({x.size[0], call.outputs}, y);
  call.x = x.floats();
  call.rows = x.size[0];
  call.x_row = x.stride[0];
  call.weight = w.floats();
  call.weight_out = w.stride[0];
  call.out_index = out.data();
  call.out_first = 0;
  call.y = y.floats();
  call.y_row = call.outputs;
  py::gil_scoped_release release;
  run_sliced_linear(call, x.size[1], in.data(), threads);
  return result;
}

py::object ternary_linear(py::handle x_, const TernaryLists& lists, py::handle scale, py::handle bias,
                          py::handle out_features, py::handle in_index, py::handle out_index, int threads) {
  Tensor x, y;
  TernaryOperand weight{lists};
  if (!read(x_, Torch::get().float32, 2, x) || !read_vector(scale, lists.outputs(), weight.scale) ||
      !read_vector(bias, lists.outputs(), weight.bias) || lists.taps() != 1) {
    return py::none();
  }
  const IndexSet in(in_index), out(out_index);
  const int64_t outputs = linear_outputs(x, lists.outputs(), lists.inputs(), out_features, in, out);
  if (outputs < 1) return py::none();
  py::object result = empty({x.size[0], outputs}, y);
  weight.in_index = in.data();
  weight.out_index = out.data();
  if (x.size[0] == 0) return result;
  const TernaryLinearCall call{x.floats(),  x.size[0],  x.size[1], x.stride[0],
                               x.stride[1], y.floats(), outputs,   threads};
  py::gil_scoped_release release;
  run_ternary_linear(call, weight);
  return result;
}

// The codes of a packed weight of those sizes; null if `object` is anything else.
const uint8_t* codes_of(py::handle object, const TernaryLayouts& layouts) {
  Tensor t;
  const int64_t bytes = packed_row_bytes(layouts.inputs() * layouts.taps());
  const bool fits = read(object, Torch::get().uint8, 2, t) && t.size[0] == layouts.outputs() &&
                    t.size[1] == bytes && contiguous(t);
  return fits ? static_cast<const uint8_t*>(t.data) : nullptr;
}

// What both operators with quantised activations take beside the shape of the call.
bool read_int8(py::handle packed, py::handle scale, py::handle bias, Int8Operand& weight) {
  weight.packed = codes_of(packed, weight.layouts);
  const int64_t outputs = weight.layouts.outputs();
  return weight.packed != nullptr && read_vector(scale, outputs, weight.scale) &&
         read_vector(bias, outputs, weight.bias) &&
         weight.layouts.inputs() * weight.layouts.taps() <= kMostInt8Inputs;
}

py::object ternary_linear_int8(py::handle x_, const TernaryLayouts& layouts, py::handle packed,
                               py::handle scale, py::handle bias, py::handle out_features,
                               py::handle in_index, py::handle out_index, double activation_scale,
                               bool per_row, int threads, const std::string& kernel) {
  Tensor x, y;
  Int8Operand weight{layouts, nullptr};
  if (!read(x_, Torch::get().float32, 2, x) || !read_int8(packed, scale, bias, weight) ||
      layouts.taps() != 1 || (x.count() > 0 && x.size[1] > 1 && x.stride[1] != 1)) {
    return py::none();
  }
  const IndexSet in(in_index), out(out_index);
  const int64_t outputs = linear_outputs(x, layouts.outputs(), layouts.inputs(), out_features, in, out);
  if (outputs < 1) return py::none();
  py::object result = empty({x.size[0], outputs}, y);
  weight.in_index = in.data();
  weight.out_index = out.data();
  weight.activation_scale = static_cast<float>(activation_scale);
  weight.per_row = per_row;
  if (!kernel.empty()) weight.kernel = kernel.c_str();
  if (x.size[0] == 0) return result;
  const TernaryLinearCall call{x.floats(),  x.size[0],  x.size[1], x.stride[0],
                               x.stride[1], y.floats(), outputs,   threads};
  py::gil_scoped_release release;
  run_ternary_linear_int8(call, weight);
  return result;
}

py::object ternary_conv2d_int8(py::handle x_, const TernaryLayouts& layouts, py::handle packed,
                               py::handle scale, py::handle bias, int64_t kernel_height, int64_t kernel_width,
                               py::handle geometry, int64_t groups, py::handle out_channels,
                               py::handle in_index, py::handle out_index, double activation_scale,
                               bool per_row, int threads, const std::string& kernel) {
  Tensor x;
  Int8Operand weight{layouts, nullptr};
  if (!read(x_, Torch::get().float32, 4, x) || !read_int8(packed, scale, bias, weight) ||
      kernel_height * kernel_width != layouts.taps() ||
      (x.count() > 0 && x.size[3] > 1 && x.stride[3] != 1)) {
    return py::none();
  }
  IndexSet in(in_index), out(out_index);
  ConvCall call;
  const ConvShape shape{layouts.outputs(), layouts.inputs(), {kernel_height, kernel_width}, groups};
  if (!shape.fit(x, geometry, out_channels, in, out, call)) return py::none();
  py::object result = conv_result(call, threads);
  weight.in_index = in.data();
  weight.out_index = out.data();
  weight.activation_scale = static_cast<float>(activation_scale);
  weight.per_row = per_row;
  if (!kernel.empty()) weight.kernel = kernel.c_str();
  if (call.batch == 0) return result;
  py::gil_scoped_release release;
  run_ternary_conv2d_int8(call, weight);
  return result;
}

// rows, weights, kernel and share of zeros of every entry.
void set_ternary_break_even(const std::string& isa,
                            const std::vector<std::tuple<int64_t, int64_t, std::string, double>>& entries) {
  std::vector<BreakEven> table;
  for (const auto& [rows, weights, kernel, zeros] : entries)
    table.push_back({rows, weights, ternary_kernel(kernel), zeros});
  set_break_even(isa, std::move(table));
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const KernelTable* table : available_isas()) names.emplace_back(table->isa);
  return names;
}

std::vector<std::string> kernel_names() {
  return {
#define DYNKERN_NAME_OF(name, Arguments) #name,
      DYNKERN_KERNELS(DYNKERN_NAME_OF)
#undef DYNKERN_NAME_OF
  };
}

}  // namespace

namespace {

// Contiguous codes on the CPU of a weight of that shape, and its taps.
const uint8_t* checked_codes(py::handle packed_, const std::vector<int64_t>& shape, int64_t& taps) {
  Tensor packed;
  taps = 1;
  for (size_t i = 2; i < shape.size(); ++i) taps *= shape[i];
  if (shape.size() < 2 || !read(packed_, Torch::get().uint8, 2, packed) || packed.size[0] != shape[0] ||
      packed.size[1] != packed_row_bytes(shape[1] * taps) || packed.stride[0] != packed.size[1]) {
    throw std::invalid_argument(
        "packed: expected contiguous uint8 codes on the CPU that fit the shape of the weight");
  }
  return static_cast<const uint8_t*>(packed.data);
}

}  // namespace

TernaryLists make_lists(py::handle packed, const std::vector<int64_t>& shape) {
  int64_t taps;
  const uint8_t* codes = checked_codes(packed, shape, taps);
  return TernaryLists(codes, shape[0], shape[1], taps);
}

TernaryLayouts make_layouts(py::handle packed, const std::vector<int64_t>& shape) {
  int64_t taps;
  const uint8_t* codes = checked_codes(packed, shape, taps);
  return TernaryLayouts(codes, shape[0], shape[1], taps);
}

}  // namespace dynkern

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "dynkern's native kernels; dynkern.ops is their public interface";
  dynkern::kernels();  // an unknown DYNKERN_ISA is an error of the import, not of some later call
  m.def("isa", [] { return std::string(dynkern::kernels().isa); }, "The instruction set in use.");
  m.def("isas", dynkern::isa_names, "The instruction sets that this build and CPU have, slowest first.");
  m.def("force_isa", dynkern::force_isa, py::arg("name"),
        "Use the kernels of that instruction set from now on.");
  m.def("kernels", dynkern::kernel_names, "The kernels; each is compiled for every instruction set.");
  py::class_<dynkern::TernaryLists>(m, "TernaryLists")
      .def(py::init(&dynkern::make_lists), py::arg("packed"), py::arg("shape"))
      .def_property_readonly("nonzeros", &dynkern::TernaryLists::nonzeros)
      .def_property_readonly("nbytes", &dynkern::TernaryLists::bytes);
  py::class_<dynkern::TernaryLayouts>(m, "TernaryLayouts")
      .def(py::init(&dynkern::make_layouts), py::arg("packed"), py::arg("shape"))
      .def_property_readonly("nonzeros", &dynkern::TernaryLayouts::nonzeros)
      .def_property_readonly("nbytes", &dynkern::TernaryLayouts::bytes);
  dynkern::bind_engine(m);
#ifdef DYNKERN_CUDA
  m.attr("cuda_architectures") = DYNKERN_CUDA;
  dynkern::cuda::bind(m);
#else
  m.attr("cuda_architectures") = py::none();
#endif
  m.def("sliced_conv2d", dynkern::sliced_conv2d);
  m.def("sliced_linear", dynkern::sliced_linear);
  m.def("ternary_conv2d", dynkern::ternary_conv2d);
  m.def("ternary_linear", dynkern::ternary_linear);
  m.def("ternary_conv2d_int8", dynkern::ternary_conv2d_int8);
  m.def("ternary_linear_int8", dynkern::ternary_linear_int8);
  m.def("set_ternary_break_even", dynkern::set_ternary_break_even);
  m.def("ternary_kernel", [](int64_t rows, int64_t weights, double zeros) {
    return std::string(dynkern::name_of(dynkern::choose_ternary(rows, weights, zeros)));
  });
}
