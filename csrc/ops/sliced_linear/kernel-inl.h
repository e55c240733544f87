// SPDX-License-Identifier: Apache-2.0
// M rows by O outputs of partial sums stay in registers; each is a vector along the reduction, added up at
// the end.

template <int M, int O>
void linear_tile(const SlicedLinear& a, int64_t first_row, int64_t first_output) {
  const float *x[M], *weight[O];
  float tail[M][O];
  Vec acc[M][O];
  for (int m = 0; m < M; ++m) x[m] = a.x + (first_row + m) * a.x_row;
  for (int o = 0; o < O; ++o) {
    int64_t i = first_output + o;
    int64_t out = a.out_index != nullptr ? a.out_index[i] : a.out_first + i;
    weight[o] = a.weight + out * a.weight_out;
    for (int m = 0; m < M; ++m) {
      tail[m][o] = a.bias != nullptr ? a.bias[i] : 0.f;
      acc[m][o] = Vec{};
    }
  }
  for (int64_t r = 0; r < a.run_count; ++r) {
    const Run run = a.runs[r];
    int64_t i = 0;
    for (; i + kLanes <= run.size; i += kLanes) {
      Vec b[M];
      for (int m = 0; m < M; ++m) b[m] = load(x[m] + run.x + i);
      for (int o = 0; o < O; ++o) {
        Vec s = load(weight[o] + run.weight + i);
        for (int m = 0; m < M; ++m) acc[m][o] += s * b[m];
      }
    }
    for (; i < run.size; ++i) {
      for (int o = 0; o < O; ++o) {
        for (int m = 0; m < M; ++m) tail[m][o] += weight[o][run.weight + i] * x[m][run.x + i];
      }
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int o = 0; o < O; ++o)
      a.y[(first_row + m) * a.y_row + first_output + o] = tail[m][o] + sum(acc[m][o]);
  }
}

template <int M>
void linear_rows(const SlicedLinear& a, int64_t first_row, int64_t first_output, int64_t outputs) {
  static constexpr void (*kTiles[])(const SlicedLinear&, int64_t, int64_t) = {
      linear_tile<M, 1>, linear_tile<M, 2>, linear_tile<M, 3>, linear_tile<M, 4>};
  kTiles[outputs - 1](a, first_row, first_output);
}

void sliced_linear(const SlicedLinear& a) {
  constexpr int kRowsOfTile = kLinearRows, kOutputsOfTile = 4;
  static constexpr void (*kOfRows[])(const SlicedLinear&, int64_t, int64_t, int64_t) = {
      linear_rows<1>, linear_rows<2>, linear_rows<3>, linear_rows<4>, linear_rows<5>, linear_rows<6>};
  static_assert(kRowsOfTile <= sizeof kOfRows / sizeof *kOfRows);
  // Outputs outside: their weights, read once from far away, stay in the first-level cache while the rows
  // pass.
  for (int64_t o = 0; o < a.outputs; o += kOutputsOfTile) {
    int64_t outputs = a.outputs - o < kOutputsOfTile ? a.outputs - o : kOutputsOfTile;
    for (int64_t m = 0; m < a.rows; m += kRowsOfTile) {
      int64_t rows = a.rows - m < kRowsOfTile ? a.rows - m : kRowsOfTile;
      kOfRows[rows - 1](a, m, o, outputs);
    }
  }
}
