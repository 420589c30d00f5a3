// What the kernels of hierarchical sparse attention share: the shape of pages, a page's softmax in
// registers.

#ifndef MNEME_KERNELS_CUDA_HSA_TILES_CUH_
#define MNEME_KERNELS_CUDA_HSA_TILES_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/tensor_core.cuh"
#include "kernels/ops.h"

namespace mneme::hsa {

inline constexpr int kLanes = 32;
inline constexpr int kHeads = 16;       // rows of a tile
inline constexpr int kWidth = 64;       // D of the fast kernels
inline constexpr int kPageTokens = 64;  // S of the fast kernels
inline constexpr int kRowBytes = kWidth * 2;
inline constexpr int kTileBytes = kHeads * kRowBytes;           // q of one token
inline constexpr int kPageBytes = 2 * kPageTokens * kRowBytes;  // K, then V
inline constexpr float kLog2E = 1.44269504088896340736f;

// Where the 16-byte chunk `chunk` of row `row` lies in a matrix of 128-byte rows in shared memory:
// swapped so that eight rows at one chunk use all banks.
__device__ __forceinline__ int Swapped(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ (row & 7)) << 4);
}

// exp2(scores - their largest), as A fragments, and `sums` of them, of a 16 x 64 tile whose rows
// lane / 4 and lane / 4 + 8 are this thread's.
__device__ __forceinline__ void Softmax(float (&scores)[kPageTokens / 8][4],
                                        uint32_t (&a)[kPageTokens / 16][4], float (&sums)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = scores[0][half * 2];
#pragma unroll
    for (int j = 0; j < kPageTokens / 8; ++j) {
      top = fmaxf(top, fmaxf(scores[j][half * 2], scores[j][half * 2 + 1]));
    }
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    sums[half] = 0;
#pragma unroll
    for (int j = 0; j < kPageTokens / 8; ++j) {
      const float low = Exp2(scores[j][half * 2] - top);
      const float high = Exp2(scores[j][half * 2 + 1] - top);
      sums[half] += low + high;
      a[j / 2][j % 2 * 2 + half] = PackBf16(low, high);
    }
  }
}

// Turns Softmax's sums, over the lanes of a row, into weight / sum.
__device__ __forceinline__ void FinishSoftmax(const float (&weights)[2], float (&sums)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = sums[half];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    sums[half] = weights[half] / sum;
  }
}

// Whether rows may be read and written 16 bytes at a time.
struct Alignment {
  bool q;
  bool out;
};
inline Alignment AlignmentOf(const HsaAttendParams& p) {
  const auto aligned = [](const void* data, int64_t row_bytes) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && row_bytes % 16 == 0;
  };
  return {aligned(p.q, p.q_stride * 4), aligned(p.out, p.out_stride * DTypeBytes(p.out_dtype))};
}

}  // namespace mneme::hsa

#endif  // MNEME_KERNELS_CUDA_HSA_TILES_CUH_
