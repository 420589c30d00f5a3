// A page's attention for a tile of 64 rows of (token, head) by wgmma (sm_90a): q in registers, the
// page's 64 K rows and 64 V rows in shared memory, 128-byte rows swapped as hsa_tiles.cuh has it.

#ifndef MNEME_KERNELS_CUDA_HSA_ATTEND_TILE_CUH_
#define MNEME_KERNELS_CUDA_HSA_ATTEND_TILE_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/hsa_tiles.cuh"

namespace mneme::hsa {

// softmax(q K^T) V of 64 rows and one page, 16 rows a warp, as RoundResult takes it: a row's
// product, still to be scaled. A warpgroup.
__device__ __forceinline__ void AttendTile(const uint32_t (&q)[kWidth / 16][4], uint64_t keys,
                                           uint64_t values, const float (&weights)[2],
                                           float (&product)[kWidth / 8][4], float (&scales)[2]) {
#ifdef MNEME_HAS_WGMMA
  uint32_t a[kPageTokens / 16][4];
  {
    float scores[kPageTokens / 8][4];
    WgmmaFence();
    WgmmaRows<true, false>(scores, q[0], keys);
#pragma unroll
    for (int step = 1; step < kWidth / 16; ++step) {
      WgmmaRows<false, false>(scores, q[step], WgmmaAdvance(keys, step * 32));
    }
    WgmmaCommit();
    WgmmaWait<0>();
#pragma unroll
    for (int step = 0; step < kWidth / 16; ++step) KeepRegisters(q[step]);
    Softmax(scores, a, scales);
  }
  WgmmaFence();
  WgmmaRows<true>(product, a[0], values);
#pragma unroll
  for (int step = 1; step < kPageTokens / 16; ++step) {
    WgmmaRows<false>(product, a[step], WgmmaAdvance(values, step * 16 * kRowBytes));
  }
  WgmmaCommit();
  FinishSoftmax(weights, scales);
  WgmmaWait<0>();
#pragma unroll
  for (int step = 0; step < kPageTokens / 16; ++step) KeepRegisters(a[step]);
#endif
}

}  // namespace mneme::hsa

#endif  // MNEME_KERNELS_CUDA_HSA_ATTEND_TILE_CUH_
