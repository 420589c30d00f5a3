// Runs CUDA kernels on the host, for the logic of kernels where there is no GPU: what they index,
// what they wait for, what they leave out. Slow; says nothing about speed.
//
// A kernel is compiled as C++: this header defines the language's words (threadIdx, __shared__,
// warp functions) and, in this folder, kernels/cuda/tensor_core.cuh replaces the file of that name.
// The threads of a block are fibers of one host thread, run in an order that a fixed seed shuffles,
// so that a missing barrier shows as a wrong result; blocks run one after the other. Functions of a
// warp are taken by all its 32 lanes. Asynchronous copies happen when they are waited for, shared
// memory starts as NaNs, and a write beyond it ends the program. The CUDA runtime's functions that
// the benches use work on host memory.
//
//   g++ -std=c++20 -O1 -x c++ -I tests/kernels/cuda_emulation -I . -I /usr/local/cuda/include
//       bench/gpu/hsa_topk_bench.cu tests/kernels/cuda_emulation/emulator.cc -o emulated_check
//   ./emulated_check --check-only 1

#ifndef MNEME_TESTS_KERNELS_CUDA_EMULATION_EMULATOR_H_
#define MNEME_TESTS_KERNELS_CUDA_EMULATION_EMULATOR_H_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace mneme::emulation {

// Bytes under way to shared memory; zeros when `from` is null.
struct CopyUnderWay {
  void* to;
  const void* from;
  size_t bytes;
};

// One thread of a kernel.
struct Fiber {
  void* stack_pointer = nullptr;
  uint3 index = {};
  int warp = 0, lane = 0;
  bool done = false;
  std::vector<CopyUnderWay> open_copies;
  std::vector<std::vector<CopyUnderWay>> copy_groups;
};

extern Fiber* current;
extern dim3 block_dim, grid_dim;
extern uint3 block_index;
extern unsigned char* dynamic_shared;

// Lets other threads run.
void Yield();
// Waits for all threads of the block, or for `threads` of them at barrier `id` in 1 .. 15; true
// when one of them came with `flag`.
bool BlockBarrier(bool flag);
bool NamedBarrier(int id, int threads, bool flag);
// Waits for all lanes of the warp; `all` runs once with what each lane brought.
struct LaneArgs {
  const void* in;
  void* out;
};
void WarpMeeting(const void* in, void* out, const std::function<void(const LaneArgs*)>& all);
// Runs a kernel to its end.
void RunGrid(dim3 grid, dim3 block, int64_t shared_bytes, const std::function<void()>& kernel);

// fn(in[32], out[32]) over the lanes of the warp.
template <typename Out, typename In, typename Fn>
Out OverWarp(const In& value, Fn fn) {
  Out result{};
  WarpMeeting(&value, &result, [&](const LaneArgs* lanes) {
    In in[32];
    Out out[32];
    for (int i = 0; i < 32; ++i) in[i] = *static_cast<const In*>(lanes[i].in);
    fn(in, out);
    for (int i = 0; i < 32; ++i) *static_cast<Out*>(lanes[i].out) = out[i];
  });
  return result;
}

}  // namespace mneme::emulation

#define threadIdx (::mneme::emulation::current->index)
#define blockIdx (::mneme::emulation::block_index)
#define blockDim (::mneme::emulation::block_dim)
#define gridDim (::mneme::emulation::grid_dim)

inline void __syncthreads() { mneme::emulation::BlockBarrier(false); }
inline int __syncthreads_or(int flag) { return mneme::emulation::BlockBarrier(flag != 0); }
inline void __nanosleep(unsigned) { mneme::emulation::Yield(); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return mneme::emulation::OverWarp<T>(value, [&](const T* in, T* out) {
    for (int i = 0; i < 32; ++i) out[i] = in[i ^ mask];
  });
}
template <typename T>
T __shfl_sync(unsigned, T value, int from) {
  struct Asked {
    T value;
    int from;
  };
  return mneme::emulation::OverWarp<T>(Asked{value, from}, [](const Asked* in, T* out) {
    for (int i = 0; i < 32; ++i) out[i] = in[in[i].from & 31].value;
  });
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int distance) {
  return mneme::emulation::OverWarp<T>(value, [&](const T* in, T* out) {
    for (int i = 0; i < 32; ++i) out[i] = in[i < distance ? i : i - distance];
  });
}
inline unsigned __ballot_sync(unsigned, int flag) {
  return mneme::emulation::OverWarp<unsigned>(flag, [](const int* in, unsigned* out) {
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i) bits |= (in[i] != 0 ? 1u : 0u) << i;
    std::fill(out, out + 32, bits);
  });
}
inline int __any_sync(unsigned mask, int flag) { return __ballot_sync(mask, flag) != 0 ? 1 : 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu) { __ballot_sync(mask, 0); }
inline unsigned __reduce_min_sync(unsigned, unsigned value) {
  return mneme::emulation::OverWarp<unsigned>(value, [](const unsigned* in, unsigned* out) {
    std::fill(out, out + 32, *std::min_element(in, in + 32));
  });
}
template <typename T>
void __stcg(T* to, T value) {
  *to = value;
}
inline float __expf(float x) { return std::exp(x); }
inline int atomicAdd(int* word, int value) {
  const int before = *word;
  *word += value;
  return before;
}
inline unsigned atomicAdd(unsigned* word, unsigned value) {
  const unsigned before = *word;
  *word += value;
  return before;
}
inline unsigned atomicMax(unsigned* word, unsigned value) {
  const unsigned before = *word;
  *word = std::max(before, value);
  return before;
}
inline unsigned long long atomicMax(unsigned long long* word, unsigned long long value) {
  const unsigned long long before = *word;
  *word = std::max(before, value);
  return before;
}
inline float atomicExch(float* word, float value) {
  const float before = *word;
  *word = value;
  return before;
}
inline unsigned atomicOr(unsigned* word, unsigned value) {
  const unsigned before = *word;
  *word |= value;
  return before;
}
inline unsigned long long atomicCAS(unsigned long long* word, unsigned long long expected,
                                    unsigned long long value) {
  const unsigned long long before = *word;
  if (before == expected) *word = value;
  return before;
}
inline void __threadfence() {}
template <typename T>
T __ldcg(const T* from) {
  mneme::emulation::Yield();
  return *from;
}
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= (static_cast<unsigned>(both >> (8 * (selector >> (4 * i) & 7))) & 0xff) << (8 * i);
  }
  return result;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
using std::max;
using std::min;

#endif  // MNEME_TESTS_KERNELS_CUDA_EMULATION_EMULATOR_H_
