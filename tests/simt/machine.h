// SPDX-License-Identifier: Apache-2.0
// Runs a kernel's grid on the host and says what went wrong: memory outside of its buffers, undefined
// behaviour, a barrier that not all threads reach, lanes of a warp at different instructions.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

namespace simt {

// Memory that ends where no page follows, filled with 0xFF (NaN of every float).
class Guarded {
 public:
  explicit Guarded(size_t bytes);
  ~Guarded();
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  unsigned char* data() const { return data_; }
  // Whether what lies beside it in its pages is as it was: nothing was written there.
  bool intact() const;
  size_t size() const { return bytes_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  unsigned char *map_, *data_;
  size_t bytes_, mapped_;
};

struct Launch {
  int grid[3];
  int threads;
  int shared_bytes;
  bool reversed;  // warps and blocks from the last to the first
};

// Throws std::runtime_error.
void run(const Launch& launch, const std::function<void()>& kernel);

}  // namespace simt
