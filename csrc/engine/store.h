// SPDX-License-Identifier: Apache-2.0
// What the sub-nets of one network share: the weights, and the memory for activations.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "engine/layout.h"
#include "ops/ternary/lists.h"

namespace dynkern::engine {

// Memory of activations for one running call. A slot belongs to one layout for good, so that its padding
// stays zero whichever sub-net uses it.
class Arena {
 public:
  // At least `channels` planes of `layout`, the number-th of its slots; valid as long as the arena.
  float* slot(size_t layout_id, const Layout& layout, size_t number, int channels);

 private:
  struct Slot {
    std::unique_ptr<float[]> data;
    int64_t floats = 0;
  };
  std::vector<std::deque<Slot>> slots_;  // by layout
};

struct DenseWeight {
  std::vector<float> data;
  std::vector<int64_t> shape;  // (outputs, inputs / groups, kernel height, kernel width) or (outputs, inputs)
};

class Store {
 public:
  size_t add_dense(DenseWeight weight);
  size_t add_ternary(TernaryLists lists);

  // Null if that weight is of the other kind.
  const DenseWeight* dense(size_t id) const { return weights_.at(id).dense.get(); }
  const TernaryLists* ternary(size_t id) const { return weights_.at(id).ternary.get(); }

  size_t layout_id(const Layout& layout);
  int64_t weight_bytes() const;

  // An arena that no other call uses. Give it back after the call.
  std::unique_ptr<Arena> acquire();
  void release(std::unique_ptr<Arena> arena);

 private:
  struct Weight {
    std::unique_ptr<DenseWeight> dense;
    std::unique_ptr<TernaryLists> ternary;
  };
  std::vector<Weight> weights_;
  std::vector<Layout> layouts_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Arena>> free_;
};

}  // namespace dynkern::engine
