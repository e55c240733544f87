// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "cuda/plan-inl.h"

namespace dynkern::cuda {
namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("ternary_linear: ") + what + ": " + cudaGetErrorString(error));
  }
}

// Makes a device current while it lives.
class Device {
 public:
  explicit Device(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device == before_) return;
    check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = true;
  }
  ~Device() {
    if (changed_) cudaSetDevice(before_);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace

LinearPlan make_plan(const PackedForm& weight, Form form, Type x_type, int rows, int inputs, int outputs,
                     int multiprocessors) {
  return plan_linear(weight, form, x_type, rows, inputs, outputs, multiprocessors);
}

void run_linear(const LinearPlan& plan, const LinearArguments& arguments, int device, void* stream) {
  const Device current(device);
  switch (plan.x_type) {
    case Type::kInt8:
      launch<Type::kInt8>(plan, arguments, stream);
      break;
    case Type::kBFloat16:
      launch<Type::kBFloat16>(plan, arguments, stream);
      break;
    default:
      launch<Type::kFloat16>(plan, arguments, stream);
  }
  check(cudaGetLastError(), "the kernel did not start");
}

}  // namespace dynkern::cuda
