// SPDX-License-Identifier: Apache-2.0
#include "machine.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>

#include "simt.h"

namespace simt {
namespace {

constexpr size_t kPage = 4096, kStack = 128 * 1024;
constexpr int kWarp = 32;

enum class Wait { kNone, kBlock, kWarp, kDone };

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Fiber {
  ucontext_t start;
  jmp_buf here;
  bool started = false;
  Wait wait = Wait::kNone;
  Mma operands{};
  std::vector<Copy> copies;
};

struct Machine {
  Launch launch{};
  const std::function<void()>* kernel = nullptr;
  int block[3] = {};
  unsigned char* shared = nullptr;
  std::vector<Fiber> fibers;
  std::unique_ptr<unsigned char[]> stacks;
  int current = 0;
  jmp_buf scheduler;
  sigjmp_buf fault;
};

Machine* machine = nullptr;

void enter() {
  (*machine->kernel)();
  machine->fibers[machine->current].wait = Wait::kDone;
  _longjmp(machine->scheduler, 1);
}

void resume(int thread) {
  Fiber& f = machine->fibers[thread];
  machine->current = thread;
  f.wait = Wait::kNone;
  if (_setjmp(machine->scheduler) != 0) return;
  if (f.started) _longjmp(f.here, 1);
  f.started = true;
  getcontext(&f.start);
  f.start.uc_stack.ss_sp = machine->stacks.get() + thread * kStack;
  f.start.uc_stack.ss_size = kStack;
  f.start.uc_link = nullptr;
  makecontext(&f.start, enter, 0);
  setcontext(&f.start);
}

void wait(Wait what) {
  Fiber& f = machine->fibers[machine->current];
  f.wait = what;
  if (_setjmp(f.here) == 0) _longjmp(machine->scheduler, 1);
}

[[noreturn]] void fail(const std::string& what) {
  const int* b = machine->block;
  throw std::runtime_error(what + " (block " + std::to_string(b[0]) + ", " + std::to_string(b[1]) + ", " +
                           std::to_string(b[2]) + ", thread " + std::to_string(machine->current) + ")");
}

// The fragments of the PTX manual, "Matrix Fragments for mma.m16n8k16/k32" and for their sparse forms.
struct Fragments {
  const Fiber* lanes;
  int type;

  double element(uint32_t bits) const {
    if (type == 0) return static_cast<int8_t>(bits);
    if (type == 2) return dynkern::cuda::float_of_half(static_cast<uint16_t>(bits));
    const uint32_t wide = bits << 16;
    float v;
    std::memcpy(&v, &wide, 4);
    return v;
  }
  int per_register() const { return type == 0 ? 4 : 2; }
  // A, 16 rows: register i of lane (g, q) holds row g + 8 (i % 2), columns from per (q + 4 (i / 2)) on.
  double a(int row, int column) const {
    const int per = per_register(), i = row / 8 + 2 * (column / (4 * per));
    const Fiber& lane = lanes[row % 8 * 4 + column / per % 4];
    return element(lane.operands.a[i] >> (32 / per * (column % per)) & (type == 0 ? 0xFF : 0xFFFF));
  }
  // B, 8 columns: register i of lane (g, q) holds column g, rows from per (q + 4 i) on.
  double b(int row, int column) const {
    const int per = per_register();
    const Fiber& lane = lanes[column * 4 + row / per % 4];
    return element(lane.operands.b[row / (4 * per)] >> (32 / per * (row % per)) &
                   (type == 0 ? 0xFF : 0xFFFF));
  }
  // Which column of the group of four the kept element is: 2 bits.
  int kept(int row, int compressed, int selector) const {
    const int group = compressed / 2, i = compressed % 2;
    if (type == 0) {  // lane (g, q): row g + 8 (q % 2), the eight groups from 8 (q / 2) on
      const uint32_t e = lanes[row % 8 * 4 + row / 8 + group / 8 * 2].operands.e;
      return e >> (4 * (group % 8) + 2 * i) & 3;
    }
    // Lanes 2 s and 2 s + 1 of four: row g in the low and g + 8 in the high half, the four groups from 4 (q %
    // 2) on.
    const uint32_t e = lanes[row % 8 * 4 + 2 * selector + group / 4].operands.e;
    return e >> (16 * (row / 8) + 4 * (group % 4) + 2 * i) & 3;
  }
};

void run_mma(Fiber* lanes) {
  const int kind = lanes[0].operands.kind;
  const Fragments f{lanes, kind % 10};
  const bool sparse = kind >= 10;
  const int columns = 8 * f.per_register();  // of A as it is stored
  double b[64][8];
  for (int k = 0; k < (sparse ? 2 : 1) * columns; ++k) {
    for (int column = 0; column < 8; ++column) b[k][column] = f.b(k, column);
  }
  for (int row = 0; row < 16; ++row) {
    double sum[8] = {};
    int before = -1;
    for (int k = 0; k < columns; ++k) {
      int from = k;
      if (sparse) {
        const int kept = f.kept(row, k, kind / 10 - 1);
        if (k % 2 == 1 && kept <= before) fail("a sparse group's metadata are not in order");
        before = kept;
        from = k / 2 * 4 + kept;
      }
      const double a = f.a(row, k);
      for (int column = 0; column < 8; ++column) sum[column] += a * b[from][column];
    }
    for (int column = 0; column < 8; ++column) {
      void* c = lanes[row % 8 * 4 + column / 2].operands.c;
      const int i = row / 8 * 2 + column % 2;
      if (f.type == 0) {
        static_cast<int32_t*>(c)[i] += static_cast<int32_t>(sum[column]);
      } else {
        static_cast<float*>(c)[i] = static_cast<float>(static_cast<float*>(c)[i] + sum[column]);
      }
    }
  }
}

// Lets the warp's threads run until all of them wait for the block, or are done.
void run_warp(int warp) {
  Fiber* lanes = machine->fibers.data() + warp * kWarp;
  for (;;) {
    bool ran = false;
    int at_mma = 0;
    for (int lane = 0; lane < kWarp; ++lane) {
      if (lanes[lane].wait == Wait::kNone) {
        resume(warp * kWarp + lane);
        ran = true;
      }
      if (lanes[lane].wait == Wait::kWarp) ++at_mma;
    }
    if (at_mma > 0) {
      for (int lane = 0; lane < kWarp; ++lane) {
        if (at_mma < kWarp || lanes[lane].operands.kind != lanes[0].operands.kind) {
          fail("the lanes of a warp are at different instructions");
        }
        lanes[lane].wait = Wait::kNone;
      }
      run_mma(lanes);
    } else if (!ran) {
      return;
    }
  }
}

void run_block() {
  const int warps = machine->launch.threads / kWarp;
  machine->fibers.assign(machine->launch.threads, Fiber{});
  for (;;) {
    for (int i = 0; i < warps; ++i) run_warp(machine->launch.reversed ? warps - 1 - i : i);
    int done = 0;
    for (Fiber& f : machine->fibers) done += f.wait == Wait::kDone;
    if (done == machine->launch.threads) return;
    if (done > 0) fail("some threads ended while others wait at a barrier");
    for (Fiber& f : machine->fibers) f.wait = Wait::kNone;
  }
}

void on_fault(int signal) { siglongjmp(machine->fault, signal); }

// Turns a fault of the kernel into a return of sigsetjmp, for as long as it lives.
class Faults {
 public:
  Faults() {
    stack_.reset(new unsigned char[kStack]);
    stack_t alternative{};
    alternative.ss_sp = stack_.get();
    alternative.ss_size = kStack;
    sigaltstack(&alternative, &stack_before_);
    struct sigaction action{};
    action.sa_handler = on_fault;
    action.sa_flags = SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &action, &before_[i]);
  }
  ~Faults() {
    for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &before_[i], nullptr);
    sigaltstack(&stack_before_, nullptr);
  }

 private:
  static constexpr int kSignals[3] = {SIGSEGV, SIGBUS, SIGILL};
  struct sigaction before_[3];
  stack_t stack_before_{};
  std::unique_ptr<unsigned char[]> stack_;
};

}  // namespace

int thread() { return machine->current; }
int block(int axis) { return machine->block[axis]; }
unsigned char* shared() { return machine->shared; }
void sync() { wait(Wait::kBlock); }
void mma(const Mma& operands) {
  machine->fibers[machine->current].operands = operands;
  wait(Wait::kWarp);
}
// Until the copy is waited for, what it will overwrite is worth nothing.
void copy_later(void* to, const void* from, int bytes) {
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0)
    __builtin_trap();
  std::memset(to, 0xFF, bytes);
  machine->fibers[machine->current].copies.push_back({to, from, bytes});
}
void finish_copies() {
  auto& copies = machine->fibers[machine->current].copies;
  for (const Copy& copy : copies) std::memcpy(copy.to, copy.from, copy.bytes);
  copies.clear();
}

Guarded::Guarded(size_t bytes) : bytes_(bytes) {
  const size_t used = (bytes + 15) / 16 * 16, pages = (used + kPage - 1) / kPage;
  mapped_ = (pages + 2) * kPage;
  void* map = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED ||
      mprotect(static_cast<unsigned char*>(map) + kPage, pages * kPage, PROT_READ | PROT_WRITE) != 0) {
    throw std::bad_alloc();
  }
  map_ = static_cast<unsigned char*>(map);
  std::memset(map_ + kPage, 0xFF, pages * kPage);
  data_ = map_ + kPage + pages * kPage - used;
}

bool Guarded::intact() const {
  const unsigned char *first = map_ + kPage, *end = map_ + mapped_ - kPage;
  const auto untouched = [](unsigned char byte) { return byte == 0xFF; };
  return std::all_of(first, static_cast<const unsigned char*>(data_), untouched) &&
         std::all_of(static_cast<const unsigned char*>(data_) + bytes_, end, untouched);
}

Guarded::~Guarded() { munmap(map_, mapped_); }

void run(const Launch& launch, const std::function<void()>& kernel) {
  Machine here;
  here.launch = launch;
  here.kernel = &kernel;
  here.stacks.reset(new unsigned char[launch.threads * kStack]);
  machine = &here;
  const Faults faults;
  const int signal = sigsetjmp(here.fault, 1);
  if (signal != 0) fail(signal == SIGILL ? "undefined behaviour" : "memory outside of its buffer");
  const int blocks = launch.grid[0] * launch.grid[1] * launch.grid[2];
  for (int i = 0; i < blocks; ++i) {
    int block = launch.reversed ? blocks - 1 - i : i;
    for (int axis = 0; axis < 3; ++axis) {
      here.block[axis] = block % launch.grid[axis];
      block /= launch.grid[axis];
    }
    const Guarded shared(launch.shared_bytes);
    here.shared = shared.data();
    run_block();
    if (!shared.intact()) fail("shared memory was written beside its buffer");
  }
}

}  // namespace simt
