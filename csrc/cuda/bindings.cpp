// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels for Python: numbers and addresses only, so that one build serves every PyTorch.
// dynkern/ops/*/cuda.py allocates, and keeps what is passed alive.
#include "cuda/bindings.h"

#include <pybind11/stl.h>

#include <climits>
#include <stdexcept>
#include <string>

#include "core/ternary_format.h"
#include "cuda/layout.h"
#include "cuda/pack.h"
#include "cuda/ternary_linear.h"

namespace dynkern::cuda {
namespace {

namespace py = pybind11;

[[noreturn]] void refuse(const char* name, const std::string& expected, const std::string& got) {
  throw std::invalid_argument(std::string(name) + ": expected " + expected + ", got " + got);
}

template <class Enum>
Enum as_enum(const char* name, int value, int count) {
  if (value < 0 || value >= count) refuse(name, "0 to " + std::to_string(count - 1), std::to_string(value));
  return static_cast<Enum>(value);
}

template <class T>
T* address(const char* name, uint64_t value, bool needed, size_t alignment = alignof(T)) {
  if (value == 0 && needed) refuse(name, "an address", "null");
  if (value % alignment != 0)
    refuse(name, "an address aligned to " + std::to_string(alignment), std::to_string(value));
  return reinterpret_cast<T*>(value);
}

template <class V>
py::bytes bytes_of_vector(const V& v) {
  return py::bytes(reinterpret_cast<const char*>(v.data()), v.size() * sizeof(v[0]));
}

// (words, starts, bases, rest, bases in a chunk); each but the last is bytes.
py::tuple pack(py::bytes packed_, int64_t outputs, int64_t inputs, int form_, int multiprocessors,
               int threads) {
  const Form form = as_enum<Form>("form", form_, 4);
  const std::string_view packed = packed_;
  if (outputs < 1 || inputs < 1)
    refuse("shape", "positive sizes", std::to_string(outputs) + " x " + std::to_string(inputs));
  if (static_cast<int64_t>(packed.size()) != outputs * packed_row_bytes(inputs)) {
    refuse("packed", std::to_string(outputs * packed_row_bytes(inputs)) + " bytes",
           std::to_string(packed.size()));
  }
  if (multiprocessors < 1) refuse("multiprocessors", "at least 1", std::to_string(multiprocessors));
  Packed result;
  {
    py::gil_scoped_release release;
    result = pack_form(reinterpret_cast<const uint8_t*>(packed.data()), outputs, inputs, form,
                       multiprocessors, threads);
  }
  return py::make_tuple(bytes_of_vector(result.words), bytes_of_vector(result.starts),
                        bytes_of_vector(result.bases), bytes_of_vector(result.rest), result.chunk_groups);
}

// A packed weight on a device, by the addresses of its parts.
struct Weight {
  Form form;
  PackedForm parts;
  int device, multiprocessors;

  Weight(int form_, int64_t outputs, int64_t inputs, uint64_t words, uint64_t starts, uint64_t bases,
         uint64_t rest, int chunk_groups, int device, int multiprocessors)
      : form(as_enum<Form>("form", form_, 4)), device(device), multiprocessors(multiprocessors) {
    if (outputs < 1 || inputs < 1 || outputs > INT_MAX || inputs > INT_MAX) {
      refuse("shape", "positive sizes below 2^31", std::to_string(outputs) + " x " + std::to_string(inputs));
    }
    if (form == Form::kLists && (chunk_groups < 1 || chunk_groups > ListEntry::kMostGroups)) {
      refuse("chunk_groups", "1 to " + std::to_string(ListEntry::kMostGroups), std::to_string(chunk_groups));
    }
    if (multiprocessors < 1) refuse("multiprocessors", "at least 1", std::to_string(multiprocessors));
    const bool lists = form == Form::kLists, sparse = !lists && form != Form::kDense;
    parts = {address<const uint32_t>("words", words, !lists, 16),
             address<const uint32_t>("starts", starts, lists || sparse, sparse ? 16 : 4),
             address<const uint32_t>("bases", bases, false),
             address<const uint16_t>("rest", rest, false),
             static_cast<int>(outputs),
             static_cast<int>(inputs),
             chunk_groups};
  }

  LinearPlan plan(int x_type, int64_t rows, int64_t inputs, int64_t outputs) const {
    const Type type = as_enum<Type>("x_type", x_type, 3);
    if (!form_takes(form, type))
      refuse("x_type", "a type that this form of the weight takes", std::to_string(x_type));
    if (rows < 1 || rows > INT_MAX / 2)
      refuse("rows", "1 to " + std::to_string(INT_MAX / 2), std::to_string(rows));
    if (inputs < 1 || inputs > parts.inputs) {
      refuse("inputs", "1 to " + std::to_string(parts.inputs), std::to_string(inputs));
    }
    if (outputs < 1 || outputs > parts.outputs) {
      refuse("outputs", "1 to " + std::to_string(parts.outputs), std::to_string(outputs));
    }
    if (type == Type::kInt8 && form != Form::kLists && inputs > kMostInt8Inputs) {
      refuse("inputs", "at most " + std::to_string(kMostInt8Inputs) + " of int8", std::to_string(inputs));
    }
    return make_plan(parts, form, type, static_cast<int>(rows), static_cast<int>(inputs),
                     static_cast<int>(outputs), multiprocessors);
  }

  // Floats of `partial` and counters of `arrived` that a call of this shape needs, and the splits.
  py::tuple needs(int x_type, int64_t rows, int64_t inputs, int64_t outputs) const {
    const LinearPlan p = plan(x_type, rows, inputs, outputs);
    return py::make_tuple(p.partial_floats, p.counters, p.splits);
  }

  void run(uint64_t x, int x_type, int64_t rows, int64_t inputs, int64_t x_row, uint64_t row_scale,
           uint64_t scale, uint64_t bias, int bias_type, uint64_t y, int y_type, int64_t outputs,
           uint64_t partial, uint64_t arrived, uint64_t stream) const {
    const LinearPlan p = plan(x_type, rows, inputs, outputs);
    const size_t size = p.x_type == Type::kInt8 ? 1 : 2;
    if (rows > 1 && x_row < inputs)
      refuse("x_row", "at least " + std::to_string(inputs), std::to_string(x_row));
    LinearArguments a{};
    a.weight = parts;
    a.x = address<const unsigned char>("x", x, true, size);
    a.x_row = x_row;
    a.rows = static_cast<int>(rows);
    a.inputs = static_cast<int>(inputs);
    a.outputs = static_cast<int>(outputs);
    a.row_scale = address<const float>("row_scale", row_scale, false);
    a.scale = address<const float>("scale", scale, false);
    a.bias_type = as_enum<Type>("bias_type", bias_type, 4);
    if (a.bias_type == Type::kInt8) refuse("bias_type", "a floating-point type", "int8");
    a.bias = address<const unsigned char>("bias", bias, false, a.bias_type == Type::kFloat32 ? 4 : 2);
    a.y_type = as_enum<Type>("y_type", y_type, 4);
    if (a.y_type == Type::kInt8) refuse("y_type", "a floating-point type", "int8");
    a.y = address<unsigned char>("y", y, true, a.y_type == Type::kFloat32 ? 4 : 2);
    a.partial = address<float>("partial", partial, p.splits > 1);
    a.arrived = address<unsigned>("arrived", arrived, p.splits > 1);
    a.splits = p.splits;
    a.vectors = x % 16 == 0 && (rows == 1 || x_row * static_cast<int64_t>(size) % 16 == 0);
    py::gil_scoped_release release;
    run_linear(p, a, device, reinterpret_cast<void*>(stream));
  }
};

}  // namespace

void bind(py::module_& m) {
  m.def("cuda_pack", pack, py::arg("packed"), py::arg("outputs"), py::arg("inputs"), py::arg("form"),
        py::arg("multiprocessors"), py::arg("threads") = 1);
  py::class_<Weight>(m, "CudaTernaryLinear")
      .def(py::init<int, int64_t, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, int, int, int>(),
           py::arg("form"), py::arg("outputs"), py::arg("inputs"), py::arg("words"), py::arg("starts"),
           py::arg("bases"), py::arg("rest"), py::arg("chunk_groups"), py::arg("device"),
           py::arg("multiprocessors"))
      .def("needs", &Weight::needs, py::arg("x_type"), py::arg("rows"), py::arg("inputs"), py::arg("outputs"))
      .def("run", &Weight::run, py::arg("x"), py::arg("x_type"), py::arg("rows"), py::arg("inputs"),
           py::arg("x_row"), py::arg("row_scale"), py::arg("scale"), py::arg("bias"), py::arg("bias_type"),
           py::arg("y"), py::arg("y_type"), py::arg("outputs"), py::arg("partial"), py::arg("arrived"),
           py::arg("stream"));
}

}  // namespace dynkern::cuda
