// SPDX-License-Identifier: Apache-2.0
// The three ways to the sums.

template <class Run>
inline void put_sums(const Run& a, int row, int64_t output, IntVec sum) {
  if (a.sums != nullptr) {
    store_words(a.sums + row * a.sums_row + output, sum);
  } else {
    store(a.results.y + row * a.results.y_row + output, finished(a.results, row, output, sum));
  }
}

// R rows and G vectors of outputs stay in registers over the whole reduction.
template <int R, int G>
inline void dense_tile(const TernaryDenseRun& a, int64_t first) {
  // Where vectors are shorter than a group, several make one.
  constexpr int kPerGroup = kGroupOutputs / kLanes;
  const uint8_t* codes[G];
  for (int g = 0; g < G; ++g) {
    const int64_t vector = first + g;
    codes[g] = a.codes + vector / kPerGroup * a.steps * 64 + vector % kPerGroup * kLanes * 4;
  }
  constexpr int64_t kSteps = kCodeSteps / 4;
  IntVec total[G][R];
  for (auto& outputs : total)
    for (int r = 0; r < R; ++r) outputs[r] = a.start[r] - IntVec{};
  for (int64_t from = 0; from < a.steps; from += kSteps) {
    const int64_t to = a.steps - from < kSteps ? a.steps : from + kSteps;
    IntVec sum[G][R] = {};
    for (int64_t s = from; s < to; ++s) {
      IntVec packed[G];
      for (int g = 0; g < G; ++g) packed[g] = load_words(codes[g] + s * 64);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        IntVec code[G];
        for (int g = 0; g < G; ++g) code[g] = (packed[g] >> (2 * i)) & 0x03030303;
        for (int r = 0; r < R; ++r) {
          int32_t word;
          __builtin_memcpy(&word, a.x + r * a.x_row + s * kDenseInputs + i * 4, 4);
          const IntVec x = word - IntVec{};
          for (int g = 0; g < G; ++g) sum[g][r] = add_codes(sum[g][r], code[g], x);
        }
      }
    }
    for (int g = 0; g < G; ++g)
      for (int r = 0; r < R; ++r) total[g][r] += words_of(sum[g][r]);
  }
  for (int g = 0; g < G; ++g)
    for (int r = 0; r < R; ++r) put_sums(a, r, (first + g) * kLanes, total[g][r]);
}

template <int R>
void dense_rows(const TernaryDenseRun& a) {
  // As many sums and codes as registers hold.
  constexpr int kFit = (kRegisters - 2) / (R + 1);
  constexpr int kVectors = kFit >= 8 ? 8 : kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
  const int64_t vectors = a.groups * (kGroupOutputs / kLanes);
  int64_t i = 0;
  for (; i + kVectors <= vectors; i += kVectors) dense_tile<R, kVectors>(a, i);
  for (; i < vectors; ++i) dense_tile<R, 1>(a, i);
}

void ternary_dense(const TernaryDenseRun& a) {
  static constexpr void (*kOfRows[])(const TernaryDenseRun&) = {dense_rows<1>, dense_rows<2>, dense_rows<3>,
                                                                dense_rows<4>, dense_rows<5>, dense_rows<6>,
                                                                dense_rows<7>, dense_rows<8>};
  static_assert(sizeof kOfRows / sizeof *kOfRows == kByteRows);
  kOfRows[a.rows - 1](a);
}

// Step s of R rows.
template <int R>
inline void lookup_step(const TernaryLookupRun& a, uint32_t s, Words16 (&sum)[R]) {
  const LookupIndex index(a.index + int64_t{s} * 64);
  const uint8_t* x = a.x + int64_t{a.base[s]} * (64 * R);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) add_lookup(sum[r], index, x + r * 64, x + (R + r) * 64);
}

template <int R>
void lookup_rows(const TernaryLookupRun& a) {
  for (int64_t g = 0; g < a.groups; ++g) {
    Words16 sum[R];
    for (Words16& s : sum) s = *reinterpret_cast<const UnalignedWords16*>(a.start + g * kGroupOutputs);
    uint32_t s = a.begin[g];
    const uint32_t end = a.begin[g + 1];
    if constexpr (R <= 2) {
      // So few rows would wait for the addition before: odd steps have sums of their own.
      Words16 odd[R] = {};
      for (; s + 1 < end; s += 2) {
        lookup_step<R>(a, s, sum);
        lookup_step<R>(a, s + 1, odd);
      }
      for (int r = 0; r < R; ++r) sum[r] += odd[r];
    }
    for (; s < end; ++s) lookup_step<R>(a, s, sum);
    for (int r = 0; r < R; ++r) {
      alignas(64) int32_t sums[kGroupOutputs];
      *reinterpret_cast<Words16*>(sums) = sum[r];
      if (a.order != nullptr) {
        const uint16_t* place = a.order + g * kGroupOutputs;
        for (int o = 0; o < kGroupOutputs; ++o) a.sums[r * a.sums_row + place[o]] = sums[o];
        continue;
      }
      for (int v = 0; v < kGroupOutputs; v += kLanes)
        put_sums(a, r, g * kGroupOutputs + v, load_words(sums + v));
    }
  }
}

void ternary_lookup(const TernaryLookupRun& a) {
  static constexpr void (*kOfRows[])(const TernaryLookupRun&) = {
      lookup_rows<1>, lookup_rows<2>, lookup_rows<3>, lookup_rows<4>,
      lookup_rows<5>, lookup_rows<6>, lookup_rows<7>, lookup_rows<8>};
  static_assert(sizeof kOfRows / sizeof *kOfRows == kByteRows);
  kOfRows[a.rows - 1](a);
}

typedef int16_t ShortVec __attribute__((vector_size(2 * kLanes * sizeof(int16_t)), may_alias));

// V vectors of rows; sums of 16 bits hold 258 additions of 127.
template <int V, class Index>
inline void short_list(const TernaryShortListsRun& a, const Index* index, int64_t output, int32_t* total) {
  constexpr uint32_t kMost = 32767 / 127;
  constexpr int kShorts = 2 * kLanes;
  const uint32_t* cut = a.cuts + 4 * output;
  for (int half = 0; half < 2; ++half) {
    for (uint32_t from = cut[half]; from < cut[2 + half]; from += kMost) {
      const uint32_t to = cut[2 + half] - from < kMost ? cut[2 + half] : from + kMost;
      ShortVec sum[V] = {};
      for (uint32_t j = from; j < to; ++j) {
        const auto* x = reinterpret_cast<const ShortVec*>(a.x + a.position[index[j]]);
        for (int v = 0; v < V; ++v) sum[v] += x[v];
      }
      for (int v = 0; v < V; ++v)
        for (int i = 0; i < kShorts; ++i) total[v * kShorts + i] += half == 0 ? sum[v][i] : -sum[v][i];
    }
  }
}

void ternary_short_lists(const TernaryShortListsRun& a) {
  constexpr int kVectors = kListRows / (2 * kLanes);
  for (int64_t o = 0; o < a.outputs; ++o) {
    alignas(64) int32_t total[kListRows] = {};
    if (a.index != nullptr) {
      short_list<kVectors>(a, a.index, o, total);
    } else {
      short_list<kVectors>(a, a.wide_index, o, total);
    }
    for (int r = 0; r < a.rows; ++r) a.sums[r * a.sums_row + o] = total[r];
  }
}
