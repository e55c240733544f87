// SPDX-License-Identifier: Apache-2.0
// What the tests call by ctypes. Functions return null, or what went wrong.
#include <cstring>
#include <string>

#include "core/ternary_format.h"
#include "cuda/pack.h"
#include "cuda/plan-inl.h"
#include "machine.h"

namespace dynkern::cuda {
namespace {

template <class T>
simt::Guarded& copy_in(simt::Guarded& to, const T* from) {
  if (to.size() > 0) std::memcpy(to.data(), from, to.size());
  return to;
}

struct Call {
  int form, x_type, rows, inputs, outputs, full_inputs, full_outputs, x_row, bias_type, y_type,
      multiprocessors, reversed;
  int x_bytes, offset;  // of the buffer of x, and where its first row lies
};

void run_call(const Call& c, const uint8_t* packed, const unsigned char* x, const float* row_scale,
              const float* scale, const unsigned char* bias, unsigned char* y, int* plan_out) {
  const Form form = static_cast<Form>(c.form);
  const Packed weight = pack_form(packed, c.full_outputs, c.full_inputs, form, c.multiprocessors, 1);
  const auto bytes = [](const auto& v) { return v.size() * sizeof(v[0]); };
  simt::Guarded words(bytes(weight.words)), starts(bytes(weight.starts)), bases(bytes(weight.bases)),
      rest(bytes(weight.rest)), x_buffer(c.x_bytes), rows_buffer(c.rows * 4),
      scale_buffer(c.full_outputs * 4), bias_buffer(c.full_outputs * (c.bias_type == 3 ? 4 : 2)),
      y_buffer(size_t(c.rows) * c.outputs * (c.y_type == 3 ? 4 : 2));
  copy_in(words, weight.words.data());
  copy_in(starts, weight.starts.data());
  copy_in(bases, weight.bases.data());
  copy_in(rest, weight.rest.data());
  copy_in(x_buffer, x);

  LinearArguments a{};
  a.weight = {words.as<uint32_t>(), starts.as<uint32_t>(), bases.as<uint32_t>(), rest.as<uint16_t>(),
              c.full_outputs,       c.full_inputs,         weight.chunk_groups};
  const Type x_type = static_cast<Type>(c.x_type);
  const LinearPlan plan = plan_linear(a.weight, form, x_type, c.rows, c.inputs, c.outputs, c.multiprocessors);
  simt::Guarded partial(plan.partial_floats * 4), arrived(plan.counters * 4);
  std::memset(arrived.data(), 0, arrived.size());  // as the caller must
  const int size = c.x_type == 0 ? 1 : 2;
  a.x = x_buffer.data() + c.offset * size;
  a.x_row = c.x_row;
  a.rows = c.rows;
  a.inputs = c.inputs;
  a.outputs = c.outputs;
  if (row_scale != nullptr) a.row_scale = copy_in(rows_buffer, row_scale).as<float>();
  if (scale != nullptr) a.scale = copy_in(scale_buffer, scale).as<float>();
  if (bias != nullptr) a.bias = copy_in(bias_buffer, bias).data();
  a.bias_type = static_cast<Type>(c.bias_type);
  a.y = y_buffer.data();
  a.y_type = static_cast<Type>(c.y_type);
  a.partial = partial.as<float>();
  a.arrived = arrived.as<unsigned>();
  a.splits = plan.splits;
  a.vectors = c.offset * size % 16 == 0 && c.x_row * size % 16 == 0;
  with_kernel(plan, [&](auto kernel) {
    using Kernel = decltype(kernel);
    const simt::Launch launch{
        {plan.grid[0], plan.grid[1], plan.grid[2]}, Kernel::kThreads, plan.shared_bytes, c.reversed != 0};
    simt::run(launch, [&] { Kernel::run(a); });
  });
  for (const simt::Guarded* buffer : {&words, &starts, &bases, &rest, &x_buffer, &rows_buffer, &scale_buffer,
                                      &bias_buffer, &y_buffer, &partial, &arrived}) {
    if (!buffer->intact()) throw std::runtime_error("memory was written beside its buffer");
  }
  for (int64_t i = 0; i < plan.counters; ++i) {
    if (a.arrived[i] != 0) throw std::runtime_error("a counter was not left at zero");
  }
  std::memcpy(y, y_buffer.data(), y_buffer.size());
  const int facts[] = {plan.columns, plan.splits, plan.grid[0], plan.grid[1]};
  std::memcpy(plan_out, facts, sizeof facts);
}

const char* guarded(const std::function<void()>& f) {
  static std::string message;
  try {
    f();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace
}  // namespace dynkern::cuda

using namespace dynkern::cuda;

extern "C" {

const char* emulate_linear(const Call* call, const uint8_t* packed, const unsigned char* x,
                           const float* row_scale, const float* scale, const unsigned char* bias,
                           unsigned char* y, int* plan) {
  return guarded([&] { run_call(*call, packed, x, row_scale, scale, bias, y, plan); });
}

// Kernels with a mistake each, which the machine must find.
const char* emulate_mistake(int which) {
  return guarded([&] {
    simt::Guarded buffer(64);
    simt::run({{1, 1, 1}, 64, 256, false}, [&] {
      const int t = thread_index();
      int32_t c[4] = {};
      const uint32_t a[4] = {};
      switch (which) {
        case 0:
          buffer.as<uint32_t>()[16 + t] = 0;
          break;
        case 1:
          shared_memory()[256 + t] = 0;
          break;
        case 2:
          if (t < 63) sync_block();
          break;
        case 3:
          if (t != 5) mma<Type::kInt8>(c, a, 0, 0);
          break;
        case 4:
          buffer.as<int32_t>()[0] = 0x7FFFFFFF - buffer.as<int32_t>()[1];
          break;  // which is -1
        case 5:
          buffer.as<uint32_t>()[t % 4] = reinterpret_cast<const uint4*>(buffer.data() + 4)->x;
          break;
        case 6:
          mma_sparse<Type::kInt8, 0>(c, a, a, 0);
          break;
        case 7:  // in the same page, before it
          if (t == 0) *(shared_memory() - 8) = 0;
          break;
        default:
          break;
      }
    });
  });
}

// 1 if a thread of the second warp sees what the first wrote without a barrier between them.
int emulate_race(int reversed) {
  int seen = 0;
  simt::run({{1, 1, 1}, 64, 256, reversed != 0}, [&] {
    if (thread_index() == 0) shared_memory()[0] = 1;
    if (thread_index() == 32) seen = shared_memory()[0];
  });
  return seen == 1;
}

// Where a form puts a weight: lane, word of the lane's, and place of the code in the word.
void place_of(int form, int row, int unit, int k, int* place) {
  Place p = form == 0   ? dense_place(row, k)
            : form == 2 ? sparse8_place(row, k / 2, k % 2)
                        : sparse16_place(row, unit, k / 2, k % 2);
  const int found[] = {p.lane, p.word, p.place};
  std::memcpy(place, found, sizeof found);
}
void metadata_of(int form, int row, int unit, int group, int* place) {
  const MetadataPlace p = form == 2 ? sparse8_metadata(row, group) : sparse16_metadata(row, unit, group);
  place[0] = p.lane;
  place[1] = p.bit;
}
int sparse_input(int form, int group, int j) {
  return form == 2 ? sparse8_input(group, j) : sparse16_input(group, j);
}
uint32_t decoded_int8(uint32_t word, int i) { return decode_int8(word, i); }
uint32_t decoded_16(uint32_t word, int u, int i) { return decode_16(word, u, i); }

// The lists of a weight as they are, for looking at them: the bytes, and the bases of each word. Returns
// the quads.
int packed_lists(const uint8_t* packed, int outputs, int inputs, int multiprocessors, uint32_t* words,
                 uint32_t* bases, int most_quads) {
  const Packed p = pack_form(packed, outputs, inputs, Form::kLists, multiprocessors, 1);
  const int quads = static_cast<int>(p.bases.size());
  if (quads <= most_quads) {
    std::memcpy(words, p.words.data(), p.words.size() * 4);
    std::memcpy(bases, p.bases.data(), p.bases.size() * 4);
  }
  return quads;
}

// Splits of a call's inputs, for a device of so many multiprocessors.
int splits_of(int form, int x_type, int rows, int inputs, int outputs, int multiprocessors) {
  PackedForm weight{};
  weight.inputs = inputs;
  weight.outputs = outputs;
  weight.chunk_groups = ListEntry::kMostGroups;
  return plan_linear(weight, static_cast<Form>(form), static_cast<Type>(x_type), rows, inputs, outputs,
                     multiprocessors)
      .splits;
}
}
