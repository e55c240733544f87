// SPDX-License-Identifier: Apache-2.0
#include "cuda/pack.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#include "core/ternary_format.h"
#include "cuda/layout.h"

namespace dynkern::cuda {
namespace {

int64_t parts(int64_t all, int64_t part) { return (all + part - 1) / part; }

// The weight by its codes; zero beyond its end.
struct Codes {
  const uint8_t* packed;
  int64_t outputs, inputs;

  int sign(int64_t output, int64_t input) const {
    if (output >= outputs || input >= inputs) return 0;
    const int code = code_at(packed + output * packed_row_bytes(inputs), input);
    return code == TernaryCode::kPlus ? 1 : code == TernaryCode::kMinus ? -1 : 0;
  }
};

void put_code(uint32_t* words, int words_per_lane, Place place, int word, int sign) {
  words[place.lane * words_per_lane + word] |= code_of_sign(sign) << (2 * place.place);
}

void pack_dense(const Codes& codes, Packed& to) {
  const int64_t tiles = parts(codes.outputs, kTileOutputs), steps = parts(codes.inputs, kTileInputs);
  constexpr int kWords = 4;
  to.words.resize(tiles * steps * kLanes * kWords);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for (int64_t step = 0; step < steps; ++step) {
      uint32_t* words = to.words.data() + (tile * steps + step) * kLanes * kWords;
      for (int row = 0; row < kTileOutputs; ++row) {
        for (int k = 0; k < kTileInputs; ++k) {
          const Place place = dense_place(row, k);
          put_code(words, kWords, place, place.word,
                   codes.sign(tile * kTileOutputs + row, step * kTileInputs + k));
        }
      }
    }
  }
}

// What differs between the sparse forms: a step is 128 inputs of int8, two instructions with two words each,
// or 64 of 16 bits, two instructions that share both words.
struct SparseForm {
  bool int8;
  int step_inputs() const { return int8 ? 128 : 64; }
  int words() const { return int8 ? 4 : 2; }
  int groups() const { return int8 ? 16 : 8; }  // per row and instruction
  int input(int instruction, int group, int j) const {
    return int8 ? instruction * 64 + sparse8_input(group, j) : instruction * 32 + sparse16_input(group, j);
  }
  Place value(int instruction, int row, int group, int kept) const {
    Place p = int8 ? sparse8_place(row, group, kept) : sparse16_place(row, instruction, group, kept);
    p.word = int8 ? 2 * instruction : 0;
    return p;
  }
  MetadataPlace metadata(int instruction, int row, int group) const {
    return int8 ? sparse8_metadata(row, group) : sparse16_metadata(row, instruction, group);
  }
};

// One group of four: its first two nonzeros, filled up with zeros, go into the tile.
void pack_group(const SparseForm& form, const int (&signs)[4], int instruction, int row, int group,
                uint32_t* words, std::vector<uint16_t>& rest) {
  int kept[2], count = 0;
  for (int j = 0; j < 4; ++j) {
    if (signs[j] == 0) continue;
    if (count < 2) {
      kept[count++] = j;
    } else {
      rest.push_back(Rest::entry(form.input(instruction, group, j), signs[j]));
    }
  }
  for (int j = 0; count < 2; ++j) {
    if (signs[j] == 0) kept[count++] = j;
  }
  if (kept[0] > kept[1]) std::swap(kept[0], kept[1]);  // the instruction wants them in order
  const MetadataPlace at = form.metadata(instruction, row, group);
  const int metadata_word = form.int8 ? 2 * instruction + 1 : 1;
  words[at.lane * form.words() + metadata_word] |= static_cast<uint32_t>(kept[0] | kept[1] << 2) << at.bit;
  for (int i = 0; i < 2; ++i) {
    const Place place = form.value(instruction, row, group, i);
    put_code(words, form.words(), place, place.word, signs[kept[i]]);
  }
}

// One tile; its outputs' entries go to `rest`.
void pack_sparse_tile(const Codes& codes, const SparseForm& form, int64_t tile, int64_t step, uint32_t* words,
                      std::vector<uint16_t>* rest) {
  for (int row = 0; row < kTileOutputs; ++row) {
    for (int instruction = 0; instruction < 2; ++instruction) {
      for (int group = 0; group < form.groups(); ++group) {
        int signs[4];
        for (int j = 0; j < 4; ++j) {
          signs[j] = codes.sign(tile * kTileOutputs + row,
                                step * form.step_inputs() + form.input(instruction, group, j));
        }
        pack_group(form, signs, instruction, row, group, words, rest[row]);
      }
    }
  }
}

void pack_sparse(const Codes& codes, const SparseForm& form, Packed& to) {
  const int64_t tiles = parts(codes.outputs, kTileOutputs), steps = parts(codes.inputs, form.step_inputs());
  to.words.resize(tiles * steps * kLanes * form.words());
  constexpr int kTiles = Rest::kOutputs / kTileOutputs;
  for (int64_t first = 0; first < tiles; first += kTiles) {
    for (int64_t step = 0; step < steps; ++step) {
      std::vector<uint16_t> rest[Rest::kOutputs];
      for (int64_t tile = first; tile < std::min(first + kTiles, tiles); ++tile) {
        pack_sparse_tile(codes, form, tile, step,
                         to.words.data() + (tile * steps + step) * kLanes * form.words(),
                         rest + (tile - first) * kTileOutputs);
      }
      uint32_t header[4] = {static_cast<uint32_t>(to.rest.size() / 8)};
      for (int eight = 0; eight < Rest::kOutputs / 8; ++eight) {
        size_t rounds = 0;
        for (int g = 0; g < 8; ++g) rounds = std::max(rounds, rest[eight * 8 + g].size());
        for (size_t i = 0; i < rounds; ++i) {
          for (int g = 0; g < 8; ++g) {
            const auto& list = rest[eight * 8 + g];
            to.rest.push_back(i < list.size() ? list[i] : uint16_t{0});
          }
        }
        header[1 + eight / 4] |= static_cast<uint32_t>(rounds) << (8 * (eight % 4));
        header[3] += static_cast<uint32_t>(rounds);
      }
      to.starts.insert(to.starts.end(), header, header + 4);
    }
  }
}

// So many groups to a chunk that the blocks of 256 outputs fill the device four times over, and no more than
// a base's byte and shared memory (four rows of 16 bits) hold.
int chunk_groups(int64_t outputs, int64_t inputs, int multiprocessors) {
  constexpr int64_t kLeast = 4 * ListEntry::kReach, kMost = ListEntry::kMostGroups;
  const int64_t chunks = parts(4 * multiprocessors, parts(outputs, 256));
  return static_cast<int>(std::clamp(parts(parts(inputs, ListEntry::kGroup), chunks), kLeast, kMost));
}

// The nonzeros of 32 outputs over a chunk, as words of four entries per lane.
struct ChunkWalk {
  struct Nonzero {
    int input, sign;  // input: from the chunk's first
  };
  std::vector<Nonzero> list[kLanes];
  size_t next[kLanes] = {};
  std::vector<uint8_t> bases;   // of each round of words
  std::vector<uint32_t> words;  // a round: one per lane

  bool done() const {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (next[lane] < list[lane].size()) return false;
    }
    return true;
  }
  // The group of the lane that is furthest behind.
  int base() const {
    int least = INT_MAX;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (next[lane] < list[lane].size())
        least = std::min(least, list[lane][next[lane]].input / ListEntry::kGroup);
    }
    return least;
  }
  void add_round() {
    const int first = base();
    bases.push_back(static_cast<uint8_t>(first));
    for (int lane = 0; lane < kLanes; ++lane) {
      uint32_t word = 0;
      for (int i = 0; i < 4; ++i) {
        uint32_t entry = ListEntry::kNothing;
        if (next[lane] < list[lane].size()) {
          const Nonzero& n = list[lane][next[lane]];
          const int group = n.input / ListEntry::kGroup - first;
          if (group < ListEntry::kReach) {
            entry = ListEntry::entry(group * ListEntry::kGroupSlots + n.input % ListEntry::kGroup, n.sign);
            ++next[lane];
          }
        }
        word |= entry << (8 * i);
      }
      words.push_back(word);
    }
  }
};

void pack_lists(const Codes& codes, Packed& to) {
  const int64_t tiles = parts(codes.outputs, kLanes);
  const int64_t chunks = parts(parts(codes.inputs, ListEntry::kGroup), to.chunk_groups);
  const int chunk_inputs = to.chunk_groups * ListEntry::kGroup;
  constexpr uint32_t kNothingWord = ListEntry::kNothing * 0x01010101u;
  to.starts.assign(1, 0);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      ChunkWalk walk;
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int k = 0; k < chunk_inputs; ++k) {
          const int sign = codes.sign(tile * kLanes + lane, chunk * chunk_inputs + k);
          if (sign != 0) walk.list[lane].push_back({k, sign});
        }
      }
      while (!walk.done()) walk.add_round();
      const size_t quads = (walk.bases.size() + 3) / 4;
      walk.bases.resize(4 * quads, 0);
      walk.words.resize(4 * quads * kLanes, kNothingWord);
      for (size_t quad = 0; quad < quads; ++quad) {
        uint32_t bases = 0;
        for (size_t i = 0; i < 4; ++i) bases |= static_cast<uint32_t>(walk.bases[4 * quad + i]) << (8 * i);
        to.bases.push_back(bases);
        for (int lane = 0; lane < kLanes; ++lane) {
          for (size_t i = 0; i < 4; ++i) to.words.push_back(walk.words[(4 * quad + i) * kLanes + lane]);
        }
      }
      to.starts.push_back(static_cast<uint32_t>(to.bases.size()));
    }
  }
}

void pack_slab(const Codes& codes, Form form, Packed& to) {
  switch (form) {
    case Form::kDense:
      pack_dense(codes, to);
      break;
    case Form::kLists:
      pack_lists(codes, to);
      break;
    case Form::kSparse8:
      pack_sparse(codes, SparseForm{true}, to);
      break;
    case Form::kSparse16:
      pack_sparse(codes, SparseForm{false}, to);
      break;
  }
}

// Puts a slab behind those before it; what counts quads or rounds goes on counting.
void append(const Packed& slab, Form form, Packed& to) {
  const uint32_t quads = static_cast<uint32_t>(to.bases.size()),
                 rounds = static_cast<uint32_t>(to.rest.size() / 8);
  const size_t headers = to.starts.size();
  const bool lists = form == Form::kLists;
  // The first of a slab's starts is the end of the slab before it.
  to.starts.insert(to.starts.end(), slab.starts.begin() + (lists && headers > 0 ? 1 : 0), slab.starts.end());
  for (size_t i = headers; i < to.starts.size(); i += lists ? 1 : 4) to.starts[i] += lists ? quads : rounds;
  to.words.insert(to.words.end(), slab.words.begin(), slab.words.end());
  to.bases.insert(to.bases.end(), slab.bases.begin(), slab.bases.end());
  to.rest.insert(to.rest.end(), slab.rest.begin(), slab.rest.end());
}

}  // namespace

Packed pack_form(const uint8_t* packed, int64_t outputs, int64_t inputs, Form form, int multiprocessors,
                 int threads) {
  // Tiles are counted in 32 bits, and an input or output, rounded up to a block, must stay an int.
  constexpr int64_t kMost = INT_MAX - 4096;
  if (outputs < 1 || inputs < 1 || outputs > kMost || inputs > kMost ||
      parts(outputs, kTileOutputs) * parts(inputs, 64) > INT_MAX / 2) {
    throw std::invalid_argument("weight: expected a shape that 32-bit offsets reach, got (" +
                                std::to_string(outputs) + ", " + std::to_string(inputs) + ")");
  }
  const int chunk = form == Form::kLists ? chunk_groups(outputs, inputs, multiprocessors) : 0;
  // A multiple of what every form takes together.
  constexpr int64_t kSlab = 4 * Rest::kOutputs;
  std::vector<Packed> slabs(parts(outputs, kSlab));
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i; (i = next++) < slabs.size();) {
      const int64_t first = static_cast<int64_t>(i) * kSlab;
      slabs[i].chunk_groups = chunk;
      pack_slab({packed + first * packed_row_bytes(inputs), std::min(kSlab, outputs - first), inputs}, form,
                slabs[i]);
    }
  };
  std::vector<std::thread> others(std::min<size_t>(std::max(threads, 1), slabs.size()) - 1);
  try {
    for (std::thread& other : others) other = std::thread(work);
  } catch (const std::system_error&) {
    // Those that there are do it.
  }
  work();
  for (std::thread& other : others) {
    if (other.joinable()) other.join();
  }

  Packed to;
  to.chunk_groups = chunk;
  for (Packed& slab : slabs) {
    append(slab, form, to);
    slab = Packed{};
  }
  return to;
}

}  // namespace dynkern::cuda
