// SPDX-License-Identifier: Apache-2.0
// Few rows of activations (1 to 32, and up to 64 in two blocks): the weights are the traffic. They come 2
// bits each in the dense form, straight into registers, and are the tensor core's A; the activations, B, come
// through the first-level cache. Four warps stand side by side along the outputs, so that they read the same
// activations, and two along the inputs.
//
// One row wastes seven of B's eight columns, but no time: the tensor core waits for memory as it is. At 4.3
// TB/s a multiprocessor may spend some 13 instructions per 64 bytes of weights and scheduler; decoding takes
// 7 (int8) or 15 (16 bits) per 64 and 128 of them.
#pragma once

#include "cuda/activations-inl.h"
#include "cuda/layout.h"
#include "cuda/mma.h"
#include "cuda/output-inl.h"

namespace dynkern::cuda {

// NT: groups of 8 rows of x; MT: tiles of 16 outputs per warp.
template <Type T, int NT>
struct Skinny {
  static constexpr int MT = NT == 1 ? 2 : 4;
  static constexpr int kAcross = 4, kAlong = 2;  // warps along the outputs and the inputs
  static constexpr int kThreads = kAcross * kAlong * kLanes, kBlocksPerUnit = NT == 1 ? 2 : 1;
  static constexpr int kOutputs = kAcross * MT * kTileOutputs, kColumns = 8 * NT;
  static constexpr int kAhead = 4;  // tiles in flight per warp, against the latency of memory
  using Sum = SumOf<T>;
  using Tile = SumTile<Sum, kOutputs, kColumns>;
  static constexpr int kSharedBytes = Tile::kBytes + 16;

  struct Weights {
    uint4 tile[MT];
  };

  DK_DEVICE static Weights load_weights(const LinearArguments& a, int first_tile, int step, int end,
                                        int lane) {
    const int steps = (a.weight.inputs + kTileInputs - 1) / kTileInputs;
    const int tiles = (a.weight.outputs + kTileOutputs - 1) / kTileOutputs;
    const uint4* words = reinterpret_cast<const uint4*>(a.weight.words);
    Weights w;
    DK_UNROLL
    for (int t = 0; t < MT; ++t) {
      w.tile[t] = uint4{0, 0, 0, 0};
      if (step < end && first_tile + t < tiles) {
        w.tile[t] = load_once(words + (static_cast<int64_t>(first_tile + t) * steps + step) * kLanes + lane);
      }
    }
    return w;
  }

  // One word of each tile, that is 8 inputs of each lane.
  DK_DEVICE static void multiply(Sum (&acc)[MT][NT][4], const uint32_t (&word)[MT],
                                 const uint32_t (&x)[NT][4]) {
    DK_UNROLL
    for (int t = 0; t < MT; ++t) {
      uint32_t w[4];
      if constexpr (T == Type::kInt8) {
        DK_UNROLL
        for (int i = 0; i < 4; ++i) w[i] = decode_int8(word[t], i);
        DK_UNROLL
        for (int n = 0; n < NT; ++n) mma<T>(acc[t][n], w, x[n][0], x[n][1]);
      } else {
        DK_UNROLL
        for (int u = 0; u < 2; ++u) {
          DK_UNROLL
          for (int i = 0; i < 4; ++i) w[i] = decode_16(word[t], u, i);
          DK_UNROLL
          for (int n = 0; n < NT; ++n) mma<T>(acc[t][n], w, x[n][2 * u], x[n][2 * u + 1]);
        }
      }
    }
  }

  // Where a lane's activations of the rows begin. Rows beyond the last one read it again: their sums are not
  // stored.
  struct Rows {
    const unsigned char* row[NT];
  };
  DK_DEVICE static Rows rows_of(const LinearArguments& a, int first_row, int lane) {
    Rows x;
    DK_UNROLL
    for (int n = 0; n < NT; ++n) {
      const int wanted = first_row + 8 * n + lane / 4, row = wanted < a.rows ? wanted : a.rows - 1;
      x.row[n] = static_cast<const unsigned char*>(a.x) + (row * a.x_row + lane % 4 * 16) * kBytes<T>;
    }
    return x;
  }

  // 16 bytes of a lane's activations, `k` inputs further on. Inside: all 128 inputs of the step exist and
  // rows are aligned, so that no load needs a test.
  template <bool Inside>
  DK_DEVICE static uint4 load(const LinearArguments& a, const Rows& rows, int first_row, int n,
                              int first_input, int k, int lane) {
    if constexpr (Inside) {
      return load_read_only(reinterpret_cast<const uint4*>(
          rows.row[n] + static_cast<int64_t>(first_input) * kBytes<T> + k * kBytes<T>));
    } else {
      return load_x<T>(a, first_row + 8 * n + lane / 4, first_input + lane % 4 * 16 + k);
    }
  }

  // Half a step: two words of each tile.
  template <bool Inside>
  DK_DEVICE static void half_step(const LinearArguments& a, Sum (&acc)[MT][NT][4],
                                  const uint32_t (&word)[2][MT], const Rows& rows, int first_row,
                                  int first_input, int k, int lane) {
    uint4 both[NT];  // int8: the activations of two words
    if constexpr (T == Type::kInt8) {
      DK_UNROLL
      for (int n = 0; n < NT; ++n) both[n] = load<Inside>(a, rows, first_row, n, first_input, k, lane);
    }
    DK_UNROLL
    for (int s = 0; s < 2; ++s) {
      uint32_t x[NT][4];
      DK_UNROLL
      for (int n = 0; n < NT; ++n) {
        if constexpr (T == Type::kInt8) {
          x[n][0] = permute_bytes(s == 0 ? both[n].x : both[n].z, kInt8Order);
          x[n][1] = permute_bytes(s == 0 ? both[n].y : both[n].w, kInt8Order);
        } else {
          const uint4 v = load<Inside>(a, rows, first_row, n, first_input, k + 8 * s, lane);
          x[n][0] = v.x, x[n][1] = v.y, x[n][2] = v.z, x[n][3] = v.w;
        }
      }
      multiply(acc, word[s], x);
    }
  }

  DK_DEVICE static void step_inside(const LinearArguments& a, Sum (&acc)[MT][NT][4], const Weights& w,
                                    const Rows& rows, int first_row, int first_input, int lane) {
    uint32_t low[2][MT], high[2][MT];
    DK_UNROLL
    for (int t = 0; t < MT; ++t) {
      low[0][t] = w.tile[t].x, low[1][t] = w.tile[t].y;
      high[0][t] = w.tile[t].z, high[1][t] = w.tile[t].w;
    }
    half_step<true>(a, acc, low, rows, first_row, first_input, 0, lane);
    half_step<true>(a, acc, high, rows, first_row, first_input, 64, lane);
  }

  // Seldom, so a loop: short code and few registers are worth more here.
  DK_DEVICE static void step_anywhere(const LinearArguments& a, Sum (&acc)[MT][NT][4], const Weights& w,
                                      const Rows& rows, int first_row, int first_input, int lane) {
    DK_ROLL
    for (int half = 0; half < 2; ++half) {
      uint32_t word[2][MT];
      DK_UNROLL
      for (int t = 0; t < MT; ++t) {
        word[0][t] = half == 0 ? w.tile[t].x : w.tile[t].z;
        word[1][t] = half == 0 ? w.tile[t].y : w.tile[t].w;
      }
      half_step<false>(a, acc, word, rows, first_row, first_input, 64 * half, lane);
    }
  }

  DK_DEVICE static void run(const LinearArguments& a) {
    const int lane = thread_index() % kLanes, warp = thread_index() / kLanes;
    const int across = warp % kAcross, along = warp / kAcross;
    const int first_row = block_index(1) * kColumns;
    const int first_tile = (block_index(0) * kAcross + across) * MT;
    const int steps = (a.inputs + kTileInputs - 1) / kTileInputs;
    const int share = (steps + a.splits * kAlong - 1) / (a.splits * kAlong);
    const int begin = (block_index(2) * kAlong + along) * share;
    const int end = begin + share < steps ? begin + share : steps;

    // All steps but the last one have 128 inputs; of rows that are not aligned, none can be read in whole
    // vectors.
    const int whole = a.vectors ? a.inputs / kTileInputs : 0;
    const int inside = end < whole ? end : whole;

    Sum acc[MT][NT][4] = {};
    const Rows rows = rows_of(a, first_row, lane);
    Weights ring[kAhead];
    DK_UNROLL
    for (int i = 0; i < kAhead; ++i) ring[i] = load_weights(a, first_tile, begin + i, inside, lane);
    int now = begin;
    for (; now < inside; now += kAhead) {
      DK_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        if (now + i >= inside) break;
        const Weights w = ring[i];
        ring[i] = load_weights(a, first_tile, now + i + kAhead, inside, lane);
        step_inside(a, acc, w, rows, first_row, (now + i) * kTileInputs, lane);
      }
    }
    DK_ROLL
    for (now = begin > inside ? begin : inside; now < end; ++now) {
      const Weights w = load_weights(a, first_tile, now, end, lane);
      step_anywhere(a, acc, w, rows, first_row, now * kTileInputs, lane);
    }

    Sum* tile = reinterpret_cast<Sum*>(shared_memory());
    unsigned* flag = reinterpret_cast<unsigned*>(shared_memory() + Tile::kBytes);
    for (int turn = kAlong - 1; turn >= 0; --turn) {
      if (along == turn) {
        DK_UNROLL
        for (int t = 0; t < MT; ++t) {
          DK_UNROLL
          for (int n = 0; n < NT; ++n) {
            Tile::each(tile, (across * MT + t) * kTileOutputs, 8 * n, lane, [&](Sum& sum, int j) {
              sum = turn == kAlong - 1 ? acc[t][n][j] : sum + acc[t][n][j];
            });
          }
        }
      }
      sync_block();
    }
    const int first_output = block_index(0) * kOutputs;
    Tile::template store<kThreads>(a, tile, block_index(2), first_row, first_output, kUnit<T>);
    finish_splits<Sum, kThreads>(
        a, block_index(1) * (a.outputs / kOutputs + (a.outputs % kOutputs != 0)) + block_index(0), flag,
        first_row, kColumns, first_output, kOutputs, kUnit<T>);
  }
};

}  // namespace dynkern::cuda
