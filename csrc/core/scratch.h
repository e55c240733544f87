// SPDX-License-Identifier: Apache-2.0
// Working memory of a call: one buffer per calling thread that grows to the largest need and is then reused.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace dynkern {

class Scratch {
 public:
  ~Scratch() { std::free(data_); }

  // At least `count` floats, aligned to a cache line, valid until the next call on this thread; content
  // undefined.
  static float* floats(size_t count) {
    thread_local Scratch scratch;
    return scratch.grow(count);
  }

 private:
  float* grow(size_t count) {
    if (count > size_) {
      std::free(data_);
      size_ = 0;
      size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
      data_ = static_cast<float*>(std::aligned_alloc(64, bytes));
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = count;
    }
    return data_;
  }

  float* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace dynkern
