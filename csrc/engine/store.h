// SPDX-License-Identifier: Apache-2.0
// What the sub-nets of one network share: the weights, and the memory for activations.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "core/aligned.h"
#include "engine/layout.h"
#include "ops/quantized_conv2d/weight.h"
#include "ops/ternary/lists.h"
#include "ops/ternary_bytes/layout.h"

namespace dynkern::engine {

// Memory of activations for one running call. A slot belongs to one layout for good, so that its padding
// stays zero whichever sub-net uses it.
class Arena {
 public:
  // At least `planes` planes of `layout`, the number-th of its slots; valid as long as the arena.
  float* slot(size_t layout_id, const Layout& layout, size_t number, int planes);

 private:
  std::vector<std::deque<AlignedFloats>> slots_;  // by layout
};

// A dense weight: as it came, or in the order that a kernel reads.
struct DenseWeight {
  std::vector<int64_t> shape;  // (outputs, inputs / groups, kernel height, kernel width) or (outputs, inputs)
  AlignedFloats plain, filters, packed;
  bool read_plain = false;  // somebody keeps a pointer to `plain`
};

class Store {
 public:
  size_t add_dense(const float* values, std::vector<int64_t> shape);
  size_t add_ternary(TernaryLists lists);
  size_t add_quantized(QuantizedWeight weight);
  size_t add_codes(TernaryCodes codes);

  // Null if that weight is of another kind.
  const DenseWeight* dense(size_t id) const { return weights_.at(id).dense.get(); }
  const TernaryLists* ternary(size_t id) const { return weights_.at(id).ternary.get(); }
  const QuantizedWeight* quantized(size_t id) const { return weights_.at(id).quantized.get(); }

  const TernaryCodes* codes(size_t id) const { return weights_.at(id).codes.get(); }

  // The values of a dense weight, as they came. Valid as long as the store.
  const float* plain(size_t id);

  // The filters of a 3x3 weight as ops/winograd/kernel.h wants them, in the place of the plain ones; null if
  // somebody reads those.
  const float* winograd_filters(size_t id);

  // A convolution's weight as ops/channel_conv2d/kernel.h wants it, in the place of the plain one; null if
  // somebody reads that, or if filling the last outputs up takes much memory.
  const float* packed(size_t id);

  size_t layout_id(const Layout& layout);
  int64_t weight_bytes() const;

  // An arena that no other call uses. Give it back after the call.
  std::unique_ptr<Arena> acquire();
  void release(std::unique_ptr<Arena> arena);

 private:
  struct Weight {
    std::unique_ptr<DenseWeight> dense;
    std::unique_ptr<TernaryLists> ternary;
    std::unique_ptr<QuantizedWeight> quantized;
    std::unique_ptr<TernaryCodes> codes;
  };
  std::vector<Weight> weights_;
  std::vector<Layout> layouts_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Arena>> free_;
};

}  // namespace dynkern::engine
