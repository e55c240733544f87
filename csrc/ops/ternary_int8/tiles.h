// SPDX-License-Identifier: Apache-2.0
// One ternary weight with quantised activations, ready to run on tiles of rows: the chosen kernel, its
// layout, and the form of the rows that it reads.
#pragma once

#include <memory>
#include <vector>

#include "ops/active_vector.h"
#include "ops/ternary_int8/choice.h"
#include "ops/ternary_int8/kernel.h"
#include "ops/ternary_int8/layouts.h"

namespace dynkern {

struct Int8Operand {
  const TernaryLayouts& layouts;
  const uint8_t* packed;
  const int64_t* in_index = nullptr;  // as in TernaryOperand
  const int64_t* out_index = nullptr;
  const float* scale = nullptr;
  const float* bias = nullptr;
  const char* kernel = nullptr;  // forces one; null: the table chooses
  float activation_scale = 0;    // 0: of the greatest magnitude
  bool per_row = true;           // one for each row of the batch
};

// Where the results of some rows go.
struct RowsOutput {
  float* y;
  int64_t y_row, y_output;  // strides; one of them is 1
  const float* row_scale;
};

// Which kernel a call runs.
struct TernaryPlan {
  TernaryKernel kernel;
  bool spread;  // rows hold all inputs of the weight, zeros where they are not active

  // `inputs`: active ones of a group.
  TernaryPlan(const Int8Operand& weight, int64_t rows, int64_t inputs, int64_t groups);
};

class TernaryTiles {
 public:
  // A row of `inputs` channels, of one of the weight's `groups` groups. `outputs`: active ones of a group.
  // `segments`: where the channels of each tap lie, in the order of the taps; empty for one contiguous row.
  TernaryTiles(const Int8Operand& weight, TernaryPlan plan, int64_t inputs, int64_t outputs, int64_t groups,
               const std::vector<int64_t>& segments);

  // Rows that are taken together: whole vectors of results, where those of a row are not neighbours.
  int rows() const { return kernel_ == TernaryKernel::kLists ? kListRows : kTileRows; }
  // Bytes of working memory.
  size_t bytes() const;

  // Put row r of `rows` into the tile at the beginning of the working memory.
  void put(unsigned char* work, int rows, int r, const int8_t* x) const;
  // The results [first_output, end_output) of the rows in the tile, for active group `group`, whose weights
  // are those of group `of_weight`. first_output must be a multiple of kChunk.
  void run(unsigned char* work, int rows, int64_t group, int64_t of_weight, int64_t first_output,
           int64_t end_output, const RowsOutput& out) const;

  static constexpr int kMostRows = kListRows;
  static constexpr int64_t kChunk = kOutputChunk;
  // Between the sums of two rows: no power of two, or those of all rows would compete for the same lines.
  static constexpr int64_t kSumsRow = kChunk + 16;

 private:
  static constexpr int kTileRows = 16;
  void lists(unsigned char* work, int rows, int64_t of_weight, int64_t first, int64_t count) const;
  // Rows of the parts of a tile that a kernel takes at once, all but the last one.
  static int rows_of_part(int rows) {
    const int parts = (rows + kByteRows - 1) / kByteRows;
    return (rows + parts - 1) / parts;
  }
  // Sums of whole groups, or, if `results` is given, what comes of them.
  void sums(unsigned char* work, int rows, int64_t of_weight, int64_t first, int64_t count,
            const TernaryResults* results = nullptr) const;
  template <class Run>
  void fill(Run& run, unsigned char* work, int rows, int first_row, int64_t groups,
            const TernaryResults* results) const;
  int32_t* sums_of(unsigned char* work) const { return reinterpret_cast<int32_t*>(work + tile_bytes_); }
  int32_t* starts_of(unsigned char* work) const { return sums_of(work) + kListRows * kSumsRow; }

  const Int8Operand& weight_;
  TernaryKernel kernel_;
  int64_t outputs_, groups_, row_size_, blocks_, row_bytes_;
  size_t part_bytes_ = 0, tile_bytes_;
  std::vector<RowPiece> pieces_;
  const DenseLayout* dense_ = nullptr;
  const LookupLayout* lookup_ = nullptr;
  std::unique_ptr<TernarySlice> slice_;
  std::vector<int32_t> position_;
  std::unique_ptr<ActiveVector> scale_, bias_;  // lists alone: of the active outputs
};

// The scale of rows with that greatest magnitude, and its inverse; zeros for rows of zeros, NaN where there
// is a number that is not finite.
struct RowScale {
  float scale, inverse;
  RowScale(float greatest, float given);
};

}  // namespace dynkern
