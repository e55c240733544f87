// SPDX-License-Identifier: Apache-2.0
#include "ops/ternary_int8/tiles.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/isa.h"

namespace dynkern {
namespace {

bool has_duplicates(const int64_t* index, int64_t count, int64_t limit) {
  if (index == nullptr) return false;
  std::vector<bool> seen(static_cast<size_t>(limit));
  for (int64_t i = 0; i < count; ++i) {
    if (seen[static_cast<size_t>(index[i])]) return true;
    seen[static_cast<size_t>(index[i])] = true;
  }
  return false;
}

// Segments of `length` bytes each, one after the other in blocks of `block` bytes.
std::vector<RowPiece> pieces_of(const std::vector<int64_t>& segments, int64_t length, int64_t block) {
  std::vector<RowPiece> pieces;
  int64_t place = 0;
  for (size_t s = 0; s < segments.size();) {
    // Segments that follow each other in memory are one.
    int64_t from = segments[s], left = length;
    for (++s; s < segments.size() && segments[s] == from + left; ++s) left += length;
    while (left > 0) {
      const int64_t at = place % block, count = std::min(left, block - at);
      const uint64_t bytes = (count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << at;
      pieces.push_back({static_cast<int32_t>(from - at), static_cast<int32_t>(place / block), bytes});
      from += count, place += count, left -= count;
    }
  }
  return pieces;
}

}  // namespace

RowScale::RowScale(float greatest, float given) : scale(given), inverse(1 / given) {
  if (given > 0) {
    if (std::isnan(greatest)) scale = greatest;
    return;
  }
  // Below, the inverse would not be finite.
  constexpr float kLeast = 1e-30f;
  scale = greatest < kLeast ? 0 : greatest / 127.f;
  inverse = greatest < kLeast ? 0 : 127.f / greatest;
  if (!std::isfinite(greatest)) scale = std::numeric_limits<float>::quiet_NaN();
}

TernaryPlan::TernaryPlan(const Int8Operand& weight, int64_t rows, int64_t inputs, int64_t groups) {
  const TernaryLayouts& layouts = weight.layouts;
  const int64_t* in_index = groups == 1 ? weight.in_index : nullptr;
  kernel = weight.kernel != nullptr
               ? ternary_kernel(weight.kernel)
               : choose_ternary(rows, layouts.outputs() * layouts.inputs() * layouts.taps(),
                                1 - layouts.density());
  if (has_duplicates(in_index, inputs, layouts.inputs())) kernel = TernaryKernel::kLists;
  // Lists have entries of their own for an index set of inputs; the other layouts meet all of them.
  spread = in_index != nullptr && kernel != TernaryKernel::kLists;
}

TernaryTiles::TernaryTiles(const Int8Operand& weight, TernaryPlan plan, int64_t inputs, int64_t outputs,
                           int64_t groups, const std::vector<int64_t>& segments)
    : weight_(weight), kernel_(plan.kernel), outputs_(outputs), groups_(groups) {
  const TernaryLayouts& layouts = weight.layouts;
  const TernaryPart part{plan.spread ? layouts.inputs() : inputs, groups};
  row_size_ = layouts.row_size(part.inputs);
  std::vector<int64_t> one{0};
  const int64_t block = kernel_ == TernaryKernel::kLookup ? kLookupInputs : 64;
  pieces_ = pieces_of(segments.empty() ? one : segments,
                      segments.empty() ? row_size_ : layouts.channels(part.inputs), block);
  blocks_ = (row_size_ + block - 1) / block;
  // An odd number of lines, or all rows of a tile would compete for the same places of the cache.
  row_bytes_ = (blocks_ | 1) * 64;
  switch (kernel_) {
    case TernaryKernel::kDense:
      dense_ = &layouts.dense(weight.packed, part);
      part_bytes_ = static_cast<size_t>(kByteRows * row_bytes_);
      break;
    case TernaryKernel::kLookup:
      lookup_ = &layouts.lookup(weight.packed, part);
      part_bytes_ = static_cast<size_t>(kByteRows * (blocks_ + 1) * 64);
      break;
    case TernaryKernel::kLists:
      // The tile, and behind it one row as it comes.
      tile_bytes_ = static_cast<size_t>(row_size_ * kListRows * 2 + blocks_ * 64 + 63) / 64 * 64;
      slice_ = std::make_unique<TernarySlice>(
          layouts.lists(weight.packed), groups > 1 ? layouts.outputs() : outputs,
          groups > 1 ? nullptr : weight.out_index, inputs, groups > 1 ? nullptr : weight.in_index, inputs);
      for (int64_t k = 0; k < inputs * layouts.taps(); ++k) {
        const int64_t place = k % layouts.taps() * layouts.channels(inputs) + k / layouts.taps();
        position_.push_back(static_cast<int32_t>(place * kListRows));
      }
      if (groups == 1) {
        scale_ = std::make_unique<ActiveVector>(weight.scale, weight.out_index, outputs);
        bias_ = std::make_unique<ActiveVector>(weight.bias, weight.out_index, outputs);
      }
      break;
  }
  if (kernel_ != TernaryKernel::kLists) tile_bytes_ = kTileRows / kByteRows * part_bytes_;
}

size_t TernaryTiles::bytes() const {
  return tile_bytes_ + static_cast<size_t>(kListRows * kSumsRow + kListRows) * sizeof(int32_t);
}

void TernaryTiles::put(unsigned char* work, int rows, int r, const int8_t* x) const {
  GatherRow a{x, pieces_.data(), static_cast<int64_t>(pieces_.size()), 0, work, 64, nullptr};
  const int most = kernel_ == TernaryKernel::kLists ? kListRows : rows_of_part(rows);
  const int first = r / most * most, in_part = r - first;
  unsigned char* part = work + static_cast<size_t>(r / most) * part_bytes_;
  if (kernel_ == TernaryKernel::kLookup) {
    a.add = 128;
    a.y = part + in_part * 64;
    a.block_stride = std::min(most, rows - first) * 64;
    kernels().gather_row(a);
    return;
  }
  if (kernel_ == TernaryKernel::kDense) {
    a.y = part + in_part * row_bytes_;
    int32_t sum = 0;
    a.sum = &sum;
    kernels().gather_row(a);
    starts_of(work)[r] = -sum;
    return;
  }
  auto* tile = reinterpret_cast<int16_t*>(work);
  a.y = work + tile_bytes_ - blocks_ * 64;
  kernels().gather_row(a);
  for (int64_t k = 0; k < row_size_; ++k) tile[k * kListRows + r] = static_cast<int8_t>(a.y[k]);
}

void TernaryTiles::lists(unsigned char* work, int rows, int64_t of_weight, int64_t first,
                         int64_t count) const {
  TernaryListsRun lists;
  slice_->apply(lists, of_weight * (weight_.layouts.outputs() / groups_) + first);
  TernaryShortListsRun a;
  a.x = reinterpret_cast<const int16_t*>(work);
  a.position = position_.data();
  a.index = lists.index;
  a.wide_index = lists.wide_index;
  a.cuts = lists.cuts;
  a.outputs = count;
  a.rows = rows;
  a.sums = sums_of(work);
  a.sums_row = kSumsRow;
  kernels().ternary_short_lists(a);
}

template <class Run>
void TernaryTiles::fill(Run& run, unsigned char* work, int rows, int first_row, int64_t groups,
                        const TernaryResults* results) const {
  run.groups = groups;
  run.rows = rows;
  run.sums = results == nullptr ? sums_of(work) + first_row * kSumsRow : nullptr;
  run.sums_row = kSumsRow;
  if (results == nullptr) return;
  run.results = *results;
  run.results.y += first_row * results->y_row;
  run.results.row_scale += first_row;
}

void TernaryTiles::sums(unsigned char* work, int rows, int64_t of_weight, int64_t first, int64_t count,
                        const TernaryResults* results) const {
  if (kernel_ == TernaryKernel::kLists) return lists(work, rows, of_weight, first, count);
  const int64_t of_group = (weight_.layouts.outputs() / groups_ + kGroupOutputs - 1) / kGroupOutputs;
  const int64_t group = of_group * of_weight + first / kGroupOutputs;
  const int64_t groups = (count + kGroupOutputs - 1) / kGroupOutputs;
  const int most = rows_of_part(rows);
  for (int r = 0; r < rows; r += most) {
    unsigned char* part = work + static_cast<size_t>(r / most) * part_bytes_;
    const int rows_now = std::min(most, rows - r);
    if (kernel_ == TernaryKernel::kDense) {
      TernaryDenseRun a;
      a.codes = dense_->codes.data() + group * dense_->steps * 64;
      a.steps = dense_->steps;
      a.x = reinterpret_cast<const int8_t*>(part);
      a.x_row = row_bytes_;
      a.start = starts_of(work) + r;
      fill(a, work, rows_now, r, groups, results);
      kernels().ternary_dense(a);
    } else {
      TernaryLookupRun a;
      a.index = lookup_->index.data();
      a.base = lookup_->base.data();
      a.begin = lookup_->begin.data() + group;
      a.x = part;
      a.start = lookup_->start.data() + group * kGroupOutputs;
      a.order = lookup_->order.empty() ? nullptr : lookup_->order.data() + group * kGroupOutputs;
      fill(a, work, rows_now, r, groups, results);
      kernels().ternary_lookup(a);
    }
  }
}

void TernaryTiles::run(unsigned char* work, int rows, int64_t group, int64_t of_weight, int64_t first_output,
                       int64_t end_output, const RowsOutput& out) const {
  const int64_t of_group = weight_.layouts.outputs() / groups_, base = groups_ > 1 ? of_weight * of_group : 0;
  TernaryFinish finish;
  finish.sums = sums_of(work);
  finish.sums_row = kSumsRow;
  finish.rows = rows;
  finish.row_scale = out.row_scale;
  finish.y_row = out.y_row;
  finish.y_output = out.y_output;
  auto scaled = [&](const float* all, int64_t output) { return all == nullptr ? nullptr : all + output; };
  const bool select = weight_.out_index != nullptr && groups_ == 1 && kernel_ != TernaryKernel::kLists;
  const bool ordered = lookup_ != nullptr && !lookup_->order.empty();
  // With an index set of outputs, chunks are of the full weight, and each result finds its own place.
  const int64_t end = select ? of_group : end_output;
  for (int64_t first = select ? 0 : first_output; first < end; first += kChunk) {
    const int64_t count = std::min(kChunk, end - first);
    if (!select) {
      int64_t direct = 0;
      if (kernel_ != TernaryKernel::kLists && out.y_output == 1 && !ordered) {
        // Whole groups at once; what is left over has no room for a whole vector of results.
        direct = count / kGroupOutputs * kGroupOutputs;
        const TernaryResults results{out.y + group * outputs_ + first, out.y_row, out.row_scale,
                                     scaled(weight_.scale, base + first), scaled(weight_.bias, base + first)};
        if (direct > 0) sums(work, rows, of_weight, first, direct, &results);
        if (direct == count) continue;
      }
      // Out of order, any output may be in any group of the chunk.
      sums(work, rows, of_weight, first + direct,
           ordered ? std::min(kChunk, of_group - first) : count - direct);
      const int64_t from = first + direct;
      finish.outputs = count - direct;
      finish.scale = scale_ ? scale_->from(from) : scaled(weight_.scale, base + from);
      finish.bias = bias_ ? bias_->from(from) : scaled(weight_.bias, base + from);
      finish.y = out.y + (group * outputs_ + from) * out.y_output;
      kernels().ternary_finish(finish);
      continue;
    }
    bool known = false;
    for (int64_t i = first_output; i < end_output; ++i) {
      const int64_t output = weight_.out_index[i];
      if (output < first || output >= first + count) continue;
      if (!known) sums(work, rows, of_weight, first, count);
      known = true;
      finish.sums = sums_of(work) + output - first;
      finish.outputs = 1;
      finish.scale = scaled(weight_.scale, output);
      finish.bias = scaled(weight_.bias, output);
      finish.y = out.y + i * out.y_output;
      kernels().ternary_finish(finish);
    }
  }
}

}  // namespace dynkern
