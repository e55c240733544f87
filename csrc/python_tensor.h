// SPDX-License-Identifier: Apache-2.0
// PyTorch tensors seen from C++ without libtorch: through the attributes of the Python object. A lookup takes
// some tens of nanoseconds, so only what a call needs is asked for, and the C API is used directly.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace dynkern {

namespace py = pybind11;

// What the extension needs of the torch module, looked up once.
struct Torch {
  py::object empty, float32, uint8, int8, int16, int64;

  static const Torch& get() {
    // Never freed: the interpreter may be gone when static objects are destroyed.
    static const Torch* torch = [] {
      py::module_ m = py::module_::import("torch");
      return new Torch{m.attr("empty"), m.attr("float32"), m.attr("uint8"),
                       m.attr("int8"),  m.attr("int16"),   m.attr("int64")};
    }();
    return *torch;
  }
};

constexpr int kMostDimensions = 4;

struct Tensor {
  void* data = nullptr;
  int dimensions = 0;
  int64_t size[kMostDimensions] = {};
  int64_t stride[kMostDimensions] = {};

  float* floats() const { return static_cast<float*>(data); }
  int64_t count() const {
    int64_t n = 1;
    for (int i = 0; i < dimensions; ++i) n *= size[i];
    return n;
  }
};

inline py::object owned(PyObject* object) {
  if (object == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

inline int64_t integer(PyObject* object) {
  const int64_t value = PyLong_AsLongLong(object);
  if (value == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return value;
}

// An optional number of channels: `all` for None; 0, which no layer has, for what is no plain integer.
inline int64_t count_or(py::handle object, int64_t all) {
  if (object.is_none()) return all;
  return PyLong_CheckExact(object.ptr()) != 0 ? integer(object.ptr()) : 0;
}

// Reads `object` if it is a tensor on the CPU of that dtype and number of dimensions; false otherwise.
inline bool read(py::handle object, const py::object& dtype, int dimensions, Tensor& t) {
  static PyObject* const kDtype = PyUnicode_InternFromString("dtype");
  static PyObject* const kIsCpu = PyUnicode_InternFromString("is_cpu");
  static PyObject* const kShape = PyUnicode_InternFromString("shape");
  static PyObject* const kStride = PyUnicode_InternFromString("stride");
  static PyObject* const kDataPtr = PyUnicode_InternFromString("data_ptr");
  PyObject* self = object.ptr();
  if (PyObject_HasAttr(self, kDtype) == 0) return false;
  if (owned(PyObject_GetAttr(self, kDtype)).ptr() != dtype.ptr()) return false;
  if (owned(PyObject_GetAttr(self, kIsCpu)).ptr() != Py_True) return false;
  const py::object sizes = owned(PyObject_GetAttr(self, kShape));
  if (PyTuple_GET_SIZE(sizes.ptr()) != dimensions) return false;
  // A sparse tensor has neither strides nor data.
  const py::object strides = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(self, kStride));
  const py::object data = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(self, kDataPtr));
  if (!strides || !data) {
    PyErr_Clear();
    return false;
  }
  t.dimensions = dimensions;
  for (int i = 0; i < dimensions; ++i) {
    t.size[i] = integer(PyTuple_GET_ITEM(sizes.ptr(), i));
    t.stride[i] = integer(PyTuple_GET_ITEM(strides.ptr(), i));
  }
  t.data = PyLong_AsVoidPtr(data.ptr());
  return true;
}

inline bool contiguous(const Tensor& t) {
  int64_t stride = 1;
  for (int i = t.dimensions - 1; i >= 0; stride *= t.size[i--]) {
    if (t.size[i] > 1 && t.stride[i] != stride) return false;
  }
  return true;
}

// Reads one float per output channel, null for None; false if `object` is anything else.
inline bool read_vector(py::handle object, int64_t size, const float*& data) {
  data = nullptr;
  if (object.is_none()) return true;
  Tensor t;
  if (!read(object, Torch::get().float32, 1, t) || t.size[0] != size || (size > 1 && t.stride[0] != 1))
    return false;
  data = t.floats();
  return true;
}

// An index set: its entries, or none for None. `valid` is false if it is not a vector of integers on the CPU.
struct IndexSet {
  std::vector<int64_t> entries;
  bool given, valid;

  explicit IndexSet(py::handle object) : given(!object.is_none()), valid(true) {
    Tensor t;
    if (!given) return;
    valid = read(object, Torch::get().int64, 1, t) && t.size[0] > 0;
    if (!valid) return;
    const auto* data = static_cast<const int64_t*>(t.data);
    for (int64_t i = 0; i < t.size[0]; ++i) entries.push_back(data[i * t.stride[0]]);
  }

  int64_t size() const { return static_cast<int64_t>(entries.size()); }
  const int64_t* data() const { return given ? entries.data() : nullptr; }

  // Only the values can be wrong where shapes are right, and nobody but this code looks at them.
  void check(int64_t limit, const char* name) const {
    for (int64_t value : entries) {
      if (value < 0 || value >= limit) {
        throw std::invalid_argument(std::string(name) + ": expected channels 0 to " +
                                    std::to_string(limit - 1) + ", got " + std::to_string(value));
      }
    }
  }
};

// A new float32 tensor; `t` is its view.
inline py::object empty(std::initializer_list<int64_t> sizes, Tensor& t) {
  const py::object shape = owned(PyTuple_New(static_cast<Py_ssize_t>(sizes.size())));
  t.dimensions = 0;
  for (int64_t size : sizes) {
    PyTuple_SET_ITEM(shape.ptr(), t.dimensions, PyLong_FromLongLong(size));
    t.size[t.dimensions++] = size;
  }
  int64_t stride = 1;
  for (int i = t.dimensions - 1; i >= 0; stride *= t.size[i--]) t.stride[i] = stride;
  static PyObject* const kDataPtr = PyUnicode_InternFromString("data_ptr");
  py::object y = owned(PyObject_CallOneArg(Torch::get().empty.ptr(), shape.ptr()));
  t.data = PyLong_AsVoidPtr(owned(PyObject_CallMethodNoArgs(y.ptr(), kDataPtr)).ptr());
  return y;
}

}  // namespace dynkern
