// SPDX-License-Identifier: Apache-2.0
// More rows of activations (dense from 65 on): a matrix product on the tensor cores, dense or 2:4 sparse. The
// weights come 2 bits each from memory into registers and are A; the activations are B and go through shared
// memory, in stages of 128 bytes per row of which one is computed with while the other is on its way.
//
// Sparse: W = W_2:4 + rest, exactly. A product of the tiles is half the work of the dense one; what a group
// of four has beyond two nonzeros, a few in a thousand weights at 90 % zeros, is added from the stage in
// shared memory by the four lanes that hold the output's sums.
#pragma once

#include "cuda/activations-inl.h"
#include "cuda/layout.h"
#include "cuda/mma.h"
#include "cuda/output-inl.h"

namespace dynkern::cuda {

template <Type T, bool Sparse>
struct Matrix {
  static constexpr int MT = 4, NT = 4;  // of a warp: tiles of 16 outputs, groups of 8 rows of x
  static constexpr int kAcross = 2, kBeside = 4;
  static constexpr int kThreads = kAcross * kBeside * kLanes, kBlocksPerUnit = 2;
  static constexpr int kOutputs = kAcross * MT * kTileOutputs, kColumns = kBeside * NT * 8;
  using Sum = SumOf<T>;

  // A stage: of each row of x 128 bytes in eight pieces of 16, in two halves that are read one after the
  // other. The half is followed by 64 bytes, so that pieces are written and read without bank conflicts. Then
  // the weights.
  static constexpr int kStep = 128 / kBytes<T>;            // inputs
  static constexpr int kWords = T == Type::kInt8 ? 4 : 2;  // of a tile, per lane
  static constexpr int kTiles = kAcross * MT;
  static constexpr int kHalfBytes = kColumns * 64 + 64, kWeightsAt = 2 * kHalfBytes;
  static constexpr int kRestAt = kWeightsAt + kTiles * kLanes * kWords * 4, kStagedRounds = 16;
  static constexpr int kStageBytes = kRestAt + (Sparse ? kAcross * kStagedRounds * 16 : 0);
  static constexpr int kPieces = kColumns * 8 / kThreads;  // of a thread
  using Tile = SumTile<Sum, kOutputs, NT * 8>;             // one of the kBeside parts at a time
  static constexpr int kUsedBytes = 2 * kStageBytes > Tile::kBytes ? 2 * kStageBytes : Tile::kBytes;
  static constexpr int kSharedBytes = kUsedBytes + 16;
  static_assert(MT * kTileOutputs == Rest::kOutputs, "a warp's rest lies together");
  static_assert(kTiles * kLanes == kThreads, "a thread copies one lane's words");
  static_assert(kSharedBytes <= 48 * 1024, "what every device gives without asking");

  // Where piece `piece` of row `column` lies. Dense 16-bit tiles have a lane's 16 inputs in two pieces next
  // to each other, of which one is for the first word and the other for the second.
  DK_HD static int piece_at(int column, int piece) {
    constexpr bool kInTurn = !Sparse && T != Type::kInt8;
    const int half = kInTurn ? piece % 2 : piece / 4, slot = kInTurn ? piece / 2 : piece % 4;
    return half * kHalfBytes + column * 64 + slot * 16;
  }

  // Starts the copy of a step's activations into a stage. What is not 16 aligned bytes inside of x goes by
  // hand.
  DK_DEVICE static void start_activations(const LinearArguments& a, unsigned char* stage, int first_row,
                                          int step) {
    DK_ROLL  // the addresses of all pieces would take the registers that the sums need
        for (int i = 0; i < kPieces; ++i) {
      const int p = i * kThreads + thread_index();
      const int row = first_row + p / 8, k = step * kStep + p % 8 * kVector<T>;
      unsigned char* to = stage + piece_at(p / 8, p % 8);
      if (a.vectors && row < a.rows && k + kVector<T> <= a.inputs) {
        copy_async<16>(to, static_cast<const unsigned char*>(a.x) + (row * a.x_row + k) * kBytes<T>);
        continue;
      }
      DK_ROLL
      for (int j = 0; j < kVector<T>; ++j) {
        const bool there = row < a.rows && k + j < a.inputs;
        reinterpret_cast<ElementOf<T>*>(to)[j] =
            there ? static_cast<ElementOf<T>>(element_bits<T>(a, row * a.x_row + k + j)) : ElementOf<T>{0};
      }
    }
  }

  // The words of the block's tiles, one lane's by each thread. A tile of the dense form spans 128 inputs,
  // which are two steps of 16-bit activations.
  DK_DEVICE static void start_weights(const LinearArguments& a, unsigned char* stage, int first_tile,
                                      int step) {
    constexpr int kTileSteps = !Sparse && T != Type::kInt8 ? 2 : 1;
    constexpr int kSpan = kTileSteps * kStep;
    const int spans = (a.weight.inputs + kSpan - 1) / kSpan;
    const int tile = first_tile + thread_index() / kLanes;
    uint32_t* to = reinterpret_cast<uint32_t*>(stage + kWeightsAt) + thread_index() * kWords;
    if (tile * kTileOutputs < a.weight.outputs) {
      const int64_t from =
          (static_cast<int64_t>(tile) * spans + step / kTileSteps) * kLanes + thread_index() % kLanes;
      copy_async<4 * kWords>(to, a.weight.words + (from * kTileSteps + step % kTileSteps) * kWords);
    } else {
      DK_UNROLL
      for (int i = 0; i < kWords; ++i) to[i] = Sparse && i % 2 == 1 ? kAnyMetadata : 0;
    }
  }

  // The tensor core's A of one half of the stage: one instruction's registers (sparse), or two instructions'.
  static constexpr int kParts = Sparse ? 1 : 2;
  template <int Half>
  DK_DEVICE static void decode(const uint32_t (&word)[2], uint32_t (&r)[kParts][4]) {
    DK_UNROLL
    for (int part = 0; part < kParts; ++part) {
      DK_UNROLL
      for (int i = 0; i < 4; ++i) {
        if constexpr (T == Type::kInt8) {
          r[part][i] = decode_int8(word[part], i);
        } else {
          r[part][i] = Sparse ? decode_16(word[0], Half, i) : decode_16(word[Half], part, i);
        }
      }
    }
  }

  // One half of the stage.
  template <int Half>
  DK_DEVICE static void multiply(Sum (&acc)[MT][NT][4], const unsigned char* stage, int first_of_tiles,
                                 int first_column, int lane) {
    uint32_t x[NT][4];
    DK_UNROLL
    for (int n = 0; n < NT; ++n) {
      const int at = Half * kHalfBytes + (first_column + 8 * n + lane / 4) * 64 + lane % 4 * 16;
      const uint4 v = *reinterpret_cast<const uint4*>(stage + at);
      x[n][0] = v.x, x[n][1] = v.y, x[n][2] = v.z, x[n][3] = v.w;
      if constexpr (!Sparse && T == Type::kInt8) {
        DK_UNROLL
        for (int i = 0; i < 4; ++i) x[n][i] = permute_bytes(x[n][i], kInt8Order);
      }
    }
    const uint32_t* words =
        reinterpret_cast<const uint32_t*>(stage + kWeightsAt) + (first_of_tiles * kLanes + lane) * kWords;
    DK_UNROLL
    for (int t = 0; t < MT; ++t) {
      // This half's two words, or both words of 16 bits, which serve the halves in turn.
      const uint2 both =
          *reinterpret_cast<const uint2*>(words + t * kLanes * kWords + (kWords == 4 ? 2 * Half : 0));
      const uint32_t word[2] = {both.x, both.y};
      uint32_t r[kParts][4];
      decode<Half>(word, r);
      DK_UNROLL
      for (int n = 0; n < NT; ++n) {
        if constexpr (Sparse) {
          mma_sparse<T, T == Type::kInt8 ? 0 : Half>(acc[t][n], r[0], x[n], word[1]);
        } else {
          mma<T>(acc[t][n], r[0], x[n][0], x[n][1]);
          mma<T>(acc[t][n], r[1], x[n][2], x[n][3]);
        }
      }
    }
  }

  DK_DEVICE static Sum element(const unsigned char* stage, int column, int k) {
    const unsigned char* p = stage + piece_at(column, k / kVector<T>) + k % kVector<T> * kBytes<T>;
    if constexpr (T == Type::kInt8) return *reinterpret_cast<const int8_t*>(p);
    const uint16_t bits = *reinterpret_cast<const uint16_t*>(p);
    return static_cast<Sum>(T == Type::kBFloat16 ? float_of_bfloat16(bits) : float_of_half(bits));
  }

  // Where the rest of a warp's outputs and of a step begins, and how many rounds each eight outputs have.
  DK_DEVICE static uint4 load_header(const LinearArguments& a, int group, int step, int end) {
    const int steps = (a.weight.inputs + kStep - 1) / kStep;
    if (step >= end || group * Rest::kOutputs >= a.weight.outputs) return uint4{0, 0, 0, 0};
    return load_read_only(reinterpret_cast<const uint4*>(a.weight.starts) +
                          static_cast<int64_t>(group) * steps + step);
  }

  // What of a header is needed a step ahead; the rest of it is read again, from the first-level cache, to
  // save registers.
  struct Span {
    uint32_t first;
    int rounds;
  };
  DK_DEVICE static Span load_span(const LinearArguments& a, int group, int step, int end) {
    const uint4 header = load_header(a, group, step, end);
    return {header.x, Rest::rounds(header)};
  }

  // The first rounds of the rest come with the stage; seldom are there more.
  DK_DEVICE static void start_rest(const LinearArguments& a, unsigned char* stage, Span span, int across,
                                   int beside, int lane) {
    if (beside != 0 || lane >= kStagedRounds || lane >= span.rounds) return;
    copy_async<16>(stage + kRestAt + (across * kStagedRounds + lane) * 16,
                   a.weight.rest + (static_cast<int64_t>(span.first) + lane) * 8);
  }

  DK_DEVICE static void add_rest(const LinearArguments& a, Sum (&acc)[MT][NT][4], const unsigned char* stage,
                                 int across, int step, int end_step, int first_column, int lane) {
    const uint4 header = load_header(a, block_index(0) * kAcross + across, step, end_step);
    if (Rest::rounds(header) == 0) return;
    const uint16_t* staged = reinterpret_cast<const uint16_t*>(stage + kRestAt) + across * kStagedRounds * 8;
    const uint16_t* all = a.weight.rest + static_cast<int64_t>(header.x) * 8;
    int round = 0;
    DK_UNROLL
    for (int t = 0; t < MT; ++t) {
      DK_UNROLL
      for (int h = 0; h < 2; ++h) {
        const int end = round + Rest::rounds(header, 2 * t + h);
        DK_ROLL
        for (; round < end; ++round) {
          const int i = round * 8 + lane / 4;
          const uint32_t entry = round < kStagedRounds ? staged[i] : load_read_only(all + i);
          const Sum unit = static_cast<Sum>(Rest::sign(entry) * kUnit<T>);
          const int k = Rest::input(entry);
          DK_UNROLL
          for (int n = 0; n < NT; ++n) {
            DK_UNROLL
            for (int j = 0; j < 2; ++j) {
              acc[t][n][2 * h + j] += unit * element(stage, first_column + 8 * n + lane % 4 * 2 + j, k);
            }
          }
        }
      }
    }
  }

  DK_DEVICE static void run(const LinearArguments& a) {
    const int lane = thread_index() % kLanes, warp = thread_index() / kLanes;
    const int across = warp % kAcross, beside = warp / kAcross;
    const int first_row = block_index(1) * kColumns, first_column = beside * NT * 8;
    const int group = block_index(0) * kAcross + across;  // of the rest
    const int steps = (a.inputs + kStep - 1) / kStep;
    const int share = (steps + a.splits - 1) / a.splits;
    const int begin = block_index(2) * share;
    const int end = begin + share < steps ? begin + share : steps;

    unsigned char* shared = shared_memory();
    Sum acc[MT][NT][4] = {};
    Span span{}, next_span{};
    if constexpr (Sparse) {
      span = load_span(a, group, begin, end);
      next_span = load_span(a, group, begin + 1, end);
    }
    const auto start = [&](int step) {
      unsigned char* stage = shared + (step - begin) % 2 * kStageBytes;
      start_activations(a, stage, first_row, step);
      start_weights(a, stage, block_index(0) * kTiles, step);
      if constexpr (Sparse) start_rest(a, stage, span, across, beside, lane);
    };
    if (begin < end) start(begin);
    for (int step = begin; step < end; ++step) {
      wait_for_copies();
      sync_block();  // this step's stage is there, and the other one is no longer read
      if constexpr (Sparse) {
        span = next_span;
        next_span = load_span(a, group, step + 2, end);
      }
      if (step + 1 < end) start(step + 1);
      const unsigned char* stage = shared + (step - begin) % 2 * kStageBytes;
      multiply<0>(acc, stage, across * MT, first_column, lane);
      multiply<1>(acc, stage, across * MT, first_column, lane);
      if constexpr (Sparse) add_rest(a, acc, stage, across, step, end, first_column, lane);
    }
    sync_block();

    const int first_output = block_index(0) * kOutputs;
    Sum* tile = reinterpret_cast<Sum*>(shared);
    for (int turn = 0; turn < kBeside; ++turn) {
      if (beside == turn) {
        DK_UNROLL
        for (int t = 0; t < MT; ++t) {
          DK_UNROLL
          for (int n = 0; n < NT; ++n) {
            Tile::each(tile, (across * MT + t) * kTileOutputs, 8 * n, lane,
                       [&](Sum& sum, int j) { sum = acc[t][n][j]; });
          }
        }
      }
      sync_block();
      Tile::template store<kThreads>(a, tile, block_index(2), first_row + turn * NT * 8, first_output,
                                     kUnit<T>);
      sync_block();
    }
    const int blocks = (a.outputs + kOutputs - 1) / kOutputs;
    finish_splits<Sum, kThreads>(a, block_index(1) * blocks + block_index(0),
                                 reinterpret_cast<unsigned*>(shared + kUsedBytes), first_row, kColumns,
                                 first_output, kOutputs, kUnit<T>);
  }
};

}  // namespace dynkern::cuda
