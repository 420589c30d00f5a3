// What kernels/cuda/tensor_core.cuh offers, on the emulator; the comments are there.

#ifndef MNEME_TESTS_KERNELS_CUDA_EMULATION_KERNELS_CUDA_TENSOR_CORE_CUH_
#define MNEME_TESTS_KERNELS_CUDA_EMULATION_KERNELS_CUDA_TENSOR_CORE_CUH_

#include <cstdio>
#include <cstdlib>

#include "tests/kernels/cuda_emulation/emulator.h"
#include "kernels/dtype.h"

namespace mneme {

inline unsigned char* DynamicShared() { return emulation::dynamic_shared; }

inline uint32_t PackBf16(float low, float high) {
  return FloatToBf16(low) | static_cast<uint32_t>(FloatToBf16(high)) << 16;
}
inline float Exp2(float x) { return std::exp2(x); }
inline float Reciprocal(float x) { return 1 / x; }
inline float SiluToBf16(float x) { return x / (1 + std::exp(-x)); }

inline void CheckAligned(const void* address, const char* what) {
  if (reinterpret_cast<uintptr_t>(address) % 16 == 0) return;
  std::fprintf(stderr, "%s: address %p is not aligned to 16 bytes\n", what, address);
  std::abort();
}

inline void LoadMatrices(uint32_t (&r)[4], const void* row, bool transposed) {
  struct Four {
    uint32_t r[4];
  };
  CheckAligned(row, "ldmatrix");
  const auto load = [&](const void* const* rows, Four* out) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int m = 0; m < 4; ++m) {
        uint32_t element[2];
        for (int c = 0; c < 2; ++c) {
          int i = lane / 4, j = lane % 4 * 2 + c;
          if (transposed) std::swap(i, j);
          element[c] = static_cast<const uint16_t*>(rows[m * 8 + i])[j];
        }
        out[lane].r[m] = element[0] | element[1] << 16;
      }
    }
  };
  const Four four = emulation::OverWarp<Four>(row, load);
  std::copy(four.r, four.r + 4, r);
}
inline void LoadMatrix4(uint32_t (&r)[4], const void* row) { LoadMatrices(r, row, false); }
inline void LoadMatrix4Transposed(uint32_t (&r)[4], const void* row) { LoadMatrices(r, row, true); }

inline void StoreMatrix4(void* row, const uint32_t (&r)[4]) {
  struct Lane {
    void* row;
    uint32_t r[4];
  };
  CheckAligned(row, "stmatrix");
  emulation::OverWarp<int>(Lane{row, {r[0], r[1], r[2], r[3]}}, [](const Lane* in, int* out) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int m = 0; m < 4; ++m) {
        std::memcpy(static_cast<unsigned char*>(in[m * 8 + lane / 4].row) + lane % 4 * 4,
                    &in[lane].r[m], 4);
      }
      out[lane] = 0;
    }
  });
}

inline void MmaBf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Operands {
    uint32_t a[4], b[2];
    float d[4];
  };
  struct Sums {
    float d[4];
  };
  const Operands own = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {d[0], d[1], d[2], d[3]}};
  const Sums sums = emulation::OverWarp<Sums>(own, [](const Operands* in, Sums* out) {
    float A[16][16], B[16][8];
    const auto half = [](uint32_t bits, int c) {
      return Bf16ToFloat(static_cast<Bf16>(bits >> (16 * c)));
    };
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int c = 0; c < 2; ++c) {
        for (int r = 0; r < 4; ++r) A[g + r % 2 * 8][t * 2 + c + r / 2 * 8] = half(in[lane].a[r], c);
        for (int r = 0; r < 2; ++r) B[t * 2 + c + r * 8][g] = half(in[lane].b[r], c);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int r = 0; r < 4; ++r) {
        float sum = in[lane].d[r];
        for (int k = 0; k < 16; ++k) sum += A[lane / 4 + r / 2 * 8][k] * B[k][lane % 4 * 2 + r % 2];
        out[lane].d[r] = sum;
      }
    }
  });
  std::copy(sums.d, sums.d + 4, d);
}

inline void MmaInt8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Operands {
    uint32_t a[4], b[2];
    int d[4];
  };
  struct Sums {
    int d[4];
  };
  const Operands own = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {d[0], d[1], d[2], d[3]}};
  const Sums sums = emulation::OverWarp<Sums>(own, [](const Operands* in, Sums* out) {
    int A[16][32], B[32][8];
    const auto byte = [](uint32_t bits, int c) { return static_cast<int8_t>(bits >> (8 * c)); };
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int c = 0; c < 4; ++c) {
        for (int r = 0; r < 4; ++r) {
          A[g + r % 2 * 8][t * 4 + c + r / 2 * 16] = byte(in[lane].a[r], c);
        }
        for (int r = 0; r < 2; ++r) B[t * 4 + c + r * 16][g] = byte(in[lane].b[r], c);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int r = 0; r < 4; ++r) {
        int sum = in[lane].d[r];
        for (int k = 0; k < 32; ++k) sum += A[lane / 4 + r / 2 * 8][k] * B[k][lane % 4 * 2 + r % 2];
        out[lane].d[r] = sum;
      }
    }
  });
  std::copy(sums.d, sums.d + 4, d);
}

// The bytes arrive when they are waited for; until then they are NaNs.
inline void CopyAsync16(void* shared, const void* global, bool valid = true) {
  CheckAligned(shared, "cp.async to");
  if (valid) CheckAligned(global, "cp.async from");
  std::memset(shared, 0xff, 16);
  emulation::current->open_copies.push_back({shared, valid ? global : nullptr, 16});
}
inline void CopyAsync8(void* shared, const void* global) {
  std::memset(shared, 0xff, 8);
  emulation::current->open_copies.push_back({shared, global, 8});
}
inline void CopyAsyncCommit() {
  emulation::current->copy_groups.push_back(std::move(emulation::current->open_copies));
  emulation::current->open_copies.clear();
}
template <int kPending>
void CopyAsyncWait() {
  std::vector<std::vector<emulation::CopyUnderWay>>& groups = emulation::current->copy_groups;
  for (; groups.size() > kPending; groups.erase(groups.begin())) {
    for (const emulation::CopyUnderWay& copy : groups.front()) {
      if (copy.from == nullptr) {
        std::memset(copy.to, 0, copy.bytes);
      } else {
        std::memcpy(copy.to, copy.from, copy.bytes);
      }
    }
  }
}

inline void PrefetchL2(const void*) {}
inline void StoreRelease(int* word, int value) { *word = value; }
inline int LoadAcquire(const int* word) {
  emulation::Yield();
  return *word;
}
inline void StoreReleaseDevice(int* word, int value) { *word = value; }
inline int LoadAcquireDevice(const int* word) { return LoadAcquire(word); }
inline bool BarrierOr(int id, int threads, bool flag) {
  return emulation::NamedBarrier(id, threads, flag);
}

inline void Barrier(int id, int threads) { emulation::NamedBarrier(id, threads, false); }

template <typename... Params, typename... Values>
cudaError_t Launch(void (*kernel)(Params...), dim3 grid, dim3 block, int64_t shared_bytes,
                   cudaStream_t, Values... values) {
  emulation::RunGrid(grid, block, shared_bytes, [=] { kernel(values...); });
  return cudaSuccess;
}
template <typename... Params, typename... Values>
cudaError_t LaunchOverlapping(void (*kernel)(Params...), dim3 grid, dim3 block,
                              int64_t shared_bytes, cudaStream_t stream, bool, Values... values) {
  return Launch(kernel, grid, block, shared_bytes, stream, values...);
}
inline void WaitForKernelBefore() {}
inline void LetNextKernelStart() {}

}  // namespace mneme

#endif  // MNEME_TESTS_KERNELS_CUDA_EMULATION_KERNELS_CUDA_TENSOR_CORE_CUH_
