// SPDX-License-Identifier: Apache-2.0
// Plays the part of CUDA's runtime that the launcher uses, and keeps count: csrc/cuda/*.cu, as nvcc compiled
// them, are linked against this instead of cudart.
#include <cstdint>
#include <cstring>
#include <exception>
#include <string>

#include "cuda/ternary_linear.h"

namespace {

struct Dim3 {
  unsigned x, y, z;
};

struct Launch {
  int count, device, threads;
  unsigned grid[3];
  uint64_t shared, stream;
};

int current = 0, error = 0, wrong_device = -1, pushed = 0;
Launch last{};
Dim3 pushed_grid, pushed_block;
size_t pushed_shared;
void* pushed_stream;
std::string message;

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char*, char*, const char*, int, void*, void*, void*, void*, int*) {}
char __cudaInitModule(void**) { return 0; }

unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void* stream) {
  ++pushed;
  pushed_grid = grid;
  pushed_block = block;
  pushed_shared = shared;
  pushed_stream = stream;
  return 0;
}
unsigned __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared, void* stream) {
  --pushed;
  *grid = pushed_grid;
  *block = pushed_block;
  *shared = pushed_shared;
  std::memcpy(stream, &pushed_stream, sizeof pushed_stream);
  return 0;
}
unsigned __cudaGetKernel(const void** kernel, const void* entry) {
  *kernel = entry;
  return 0;
}
unsigned __cudaLaunchKernel(const void*, Dim3 grid, Dim3 block, void**, size_t shared, void* stream) {
  last = {last.count + 1,           current, static_cast<int>(block.x * block.y * block.z),
          {grid.x, grid.y, grid.z}, shared,  reinterpret_cast<uint64_t>(stream)};
  return 0;
}
unsigned cudaLaunchKernel(const void* kernel, Dim3 grid, Dim3 block, void** arguments, size_t shared,
                          void* stream) {
  return __cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}
unsigned cudaGetDevice(int* device) {
  *device = current;
  return 0;
}
unsigned cudaSetDevice(int device) {
  if (device == wrong_device) return 101;
  current = device;
  return 0;
}
unsigned cudaGetLastError() { return error; }
const char* cudaGetErrorString(unsigned code) { return code == 101 ? "no such device" : "out of resources"; }

// One call on `device`, while `before` is current. Null, or the error's words; `found` is the launch and then
// the current device.
const char* call(int form, int x_type, int rows, int inputs, int outputs, int before, int device, int fails,
                 int missing, int64_t* found) {
  using namespace dynkern::cuda;
  current = before;
  error = fails;
  wrong_device = missing;
  last = {};
  PackedForm weight{};
  weight.outputs = outputs;
  weight.inputs = inputs;
  weight.chunk_groups = 32;
  LinearArguments a{};
  a.weight = weight;
  a.rows = rows;
  a.inputs = inputs;
  a.outputs = outputs;
  const char* what = nullptr;
  try {
    const LinearPlan plan =
        make_plan(weight, static_cast<Form>(form), static_cast<Type>(x_type), rows, inputs, outputs, 132);
    a.splits = plan.splits;
    run_linear(plan, a, device, reinterpret_cast<void*>(uintptr_t{77}));
  } catch (const std::exception& e) {
    message = e.what();
    what = message.c_str();
  }
  const int64_t values[] = {last.count,
                            last.device,
                            last.threads,
                            last.grid[0],
                            last.grid[1],
                            last.grid[2],
                            static_cast<int64_t>(last.shared),
                            static_cast<int64_t>(last.stream),
                            current,
                            pushed};
  std::memcpy(found, values, sizeof values);
  return what;
}
}
