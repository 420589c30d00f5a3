// Fibers, barriers, and the runtime's functions on host memory. x86-64 only.

#include "tests/kernels/cuda_emulation/emulator.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <random>

extern "C" void mneme_switch_fiber(void** save, void* to);
asm(R"(
.globl mneme_switch_fiber
mneme_switch_fiber:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");

namespace mneme::emulation {

Fiber* current = nullptr;
dim3 block_dim, grid_dim;
uint3 block_index = {};
unsigned char* dynamic_shared = nullptr;

namespace {

constexpr int64_t kStackBytes = 128 * 1024;
constexpr int64_t kGuardBytes = 1024;
constexpr int64_t kRoundsMax = 20'000'000;  // without an end: a deadlock

// Threads that meet: the last one to come opens it for all.
struct Meeting {
  int arrived = 0;
  bool flag = false, result = false;
  int64_t generation = 0;

  // True for the thread that comes last, before the others go on.
  template <typename Fn>
  void Join(int threads, Fn last) {
    if (++arrived == threads) {
      arrived = 0;
      last();
      ++generation;
      return;
    }
    const int64_t mine = generation;
    while (generation == mine) Yield();
  }
  bool JoinOr(int threads, bool mine) {
    flag = flag || mine;
    Join(threads, [&] {
      result = flag;
      flag = false;
    });
    return result;
  }
};

struct Warp {
  Meeting meeting;
  LaneArgs lanes[32] = {};
};

void* scheduler_stack_pointer = nullptr;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
Meeting block_meeting, named_meetings[16];
const std::function<void()>* body = nullptr;
int live = 0;

void FiberMain() {
  (*body)();
  current->done = true;
  --live;
  for (;;) Yield();
}

// Where a switch to a new fiber pops six registers and returns into FiberMain.
void* NewStack(unsigned char* memory) {
  void** top = reinterpret_cast<void**>(memory + kStackBytes - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&FiberMain);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  return top;
}

void RunBlock(std::mt19937* random) {
  const size_t count = fibers.size();
  for (int64_t round = 0; live > 0; ++round) {
    if (round == kRoundsMax) {
      std::fprintf(stderr, "emulation: block %u makes no progress\n", block_index.x);
      std::abort();
    }
    const size_t start = (*random)() % count, step = (*random)() % 2 == 0 ? 1 : count - 1;
    for (size_t i = 0, at = start; i < count; ++i, at = (at + step) % count) {
      if (fibers[at].done || (*random)() % 8 == 0) continue;
      current = &fibers[at];
      mneme_switch_fiber(&scheduler_stack_pointer, current->stack_pointer);
    }
  }
}

}  // namespace

void Yield() { mneme_switch_fiber(&current->stack_pointer, scheduler_stack_pointer); }

bool BlockBarrier(bool flag) { return block_meeting.JoinOr(static_cast<int>(fibers.size()), flag); }

bool NamedBarrier(int id, int threads, bool flag) {
  return named_meetings[id].JoinOr(threads, flag);
}

void WarpMeeting(const void* in, void* out, const std::function<void(const LaneArgs*)>& all) {
  Warp& warp = warps[static_cast<size_t>(current->warp)];
  warp.lanes[current->lane] = {in, out};
  warp.meeting.Join(32, [&] { all(warp.lanes); });
}

void RunGrid(dim3 grid, dim3 block, int64_t shared_bytes, const std::function<void()>& kernel) {
  static std::mt19937 random(1);
  static std::vector<unsigned char*> stacks;
  const size_t threads = block.x;
  while (stacks.size() < threads) {
    stacks.push_back(static_cast<unsigned char*>(
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)));
  }
  std::vector<unsigned char> memory(static_cast<size_t>(shared_bytes + kGuardBytes + 1024));
  dynamic_shared = memory.data() + (1024 - reinterpret_cast<uintptr_t>(memory.data()) % 1024);
  block_dim = block;
  grid_dim = grid;
  body = &kernel;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      block_index = {x, y, 0};
      std::memset(dynamic_shared, 0xff, static_cast<size_t>(shared_bytes));
      std::memset(dynamic_shared + shared_bytes, 0xcd, kGuardBytes);
      fibers.assign(threads, Fiber());
      warps.assign((threads + 31) / 32, Warp());
      live = static_cast<int>(threads);
      for (size_t i = 0; i < threads; ++i) {
        fibers[i].index = {static_cast<unsigned>(i), 0, 0};
        fibers[i].warp = static_cast<int>(i / 32);
        fibers[i].lane = static_cast<int>(i % 32);
        fibers[i].stack_pointer = NewStack(stacks[i]);
      }
      RunBlock(&random);
      for (int64_t i = 0; i < kGuardBytes; ++i) {
        if (dynamic_shared[shared_bytes + i] == 0xcd) continue;
        std::fprintf(stderr, "emulation: shared memory written at %lld of %lld bytes\n",
                     static_cast<long long>(shared_bytes + i),
                     static_cast<long long>(shared_bytes));
        std::abort();
      }
    }
  }
}

}  // namespace mneme::emulation

// The runtime, as far as the benches use it. A machine of two multiprocessors with Hopper's shared
// memory.
extern "C" {

cudaError_t cudaMalloc(void** data, size_t bytes) {
  *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return *data == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFree(void* data) {
  std::free(data);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  if (bytes > 0) std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(to, value, bytes);
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the emulation"; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::memset(properties, 0, sizeof(*properties));
  std::snprintf(properties->name, sizeof(properties->name), "emulation");
  properties->major = 9;
  properties->multiProcessorCount = 2;
  properties->sharedMemPerBlockOptin = 232448;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = nullptr;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = nullptr;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) {
  *ms = 0;
  return cudaSuccess;
}

}  // extern "C"
