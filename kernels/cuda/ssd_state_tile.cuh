// 64 rows of the state [H, N, P] of one unit (64 columns of a head's width) in the registers of a
// warpgroup, as the walk and StatesKernel both go on from tile to tile: what a tile of tokens adds,
// the step itself, the way from and to memory, and as bf16 to a panel.

#ifndef MNEME_KERNELS_CUDA_SSD_STATE_TILE_CUH_
#define MNEME_KERNELS_CUDA_SSD_STATE_TILE_CUH_

#include <cstdint>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/ssd_decays.cuh"
#include "kernels/cuda/ssd_kernels.cuh"
#include "kernels/cuda/ssd_panels.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/ops.h"

namespace mneme::ssd {

#ifdef MNEME_HAS_WGMMA
// What the 64 tokens of a tile add to 64 rows of the state (16 a warp), by a warpgroup: B, weighted
// by the decay to the tile's end, times x. Commits; `added` and `weighted` belong to the product
// until it has been waited for.
struct StateProduct {
  uint32_t weighted[kTile / 16][4];

  __device__ __forceinline__ void Weigh(uint32_t b_panel, const Decays& decays) {
    const int lane = Opaque(static_cast<int>(threadIdx.x) % 32), t = lane % 4;
    const int warp = static_cast<int>(threadIdx.x) % kWarpgroup / 32;
    const uint32_t place =
        PanelPlace(b_panel, lane / 16 * 8 + lane % 8, warp * 16 + lane / 8 % 2 * 8);
    const TwoFloats last(decays.high[kTile - 1], decays.low[kTile - 1]);
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) {
      uint32_t b[4];  // (n, token): B transposed
      LoadMatrix4Transposed(b, SharedAt<void>(place + static_cast<uint32_t>(s) * 16 * 128));
      // The decay to the end of the 16 tokens, then that from there on.
      const TwoFloats end(decays.high[s * 16 + 15], decays.low[s * 16 + 15]);
      const float further = Exp(last.Minus(end));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 near =
            *reinterpret_cast<const float2*>(decays.near + s * 16 + half * 8 + t * 2);
        const float2 weight = {near.x * further, near.y * further};
#pragma unroll
        for (int r = half * 2; r < half * 2 + 2; ++r) {
          weighted[s][r] = PackBf16(__uint_as_float(b[r] << 16) * weight.x,
                                    __uint_as_float(b[r] & 0xffff0000u) * weight.y);
        }
      }
    }
  }
  // After WgmmaFence.
  __device__ __forceinline__ void Start(float (&added)[8][4], uint32_t x_panel) const {
    const uint64_t x = PanelOperand(x_panel);
    WgmmaRows<true>(added, weighted[0], x);
#pragma unroll
    for (int s = 1; s < kTile / 16; ++s) {
      WgmmaRows<false>(added, weighted[s], WgmmaAdvance(x, s * 16 * 128));
    }
    WgmmaCommit();
  }
  // Behind the wait for the product.
  __device__ __forceinline__ void Keep() const {
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) KeepRegisters(weighted[s]);
  }
};
#endif  // MNEME_HAS_WGMMA

// Where a lane's part of 64 rows of the state [H, N, P] begins: rows g and g + 8 of the warp's 16,
// columns 2t and 2t + 1 of each eight.
__device__ __forceinline__ int64_t StatePlace(const SsdParams& p, int unit, int slices, int row) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) % kWarpgroup / 32;
  const int64_t n = row + warp * 16 + lane / 4;
  return (unit / slices * p.state_size + n) * p.head_dim +
         static_cast<int64_t>(unit % slices) * kWidth + lane % 4 * 2;
}
__device__ __forceinline__ void LoadState(float (&state)[8][4], const float* from, int64_t P) {
#pragma unroll
  for (int q = 0; q < 8; ++q) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      state[q][e] = from[e * 4 * P + q * 8];
      state[q][e + 1] = from[e * 4 * P + q * 8 + 1];
    }
  }
}
__device__ __forceinline__ void StoreState(float* to, const float (&state)[8][4], int64_t P) {
#pragma unroll
  for (int q = 0; q < 8; ++q) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      to[e * 4 * P + q * 8] = state[q][e];
      to[e * 4 * P + q * 8 + 1] = state[q][e + 1];
    }
  }
}

// state = state * whole + added.
__device__ __forceinline__ void Advance(float (&state)[8][4], float whole,
                                        const float (&added)[8][4]) {
#pragma unroll
  for (int q = 0; q < 8; ++q) {
#pragma unroll
    for (int e = 0; e < 4; ++e) state[q][e] = fmaf(state[q][e], whole, added[q][e]);
  }
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// 64 rows of the state as bf16 into a panel.
__device__ __forceinline__ void HoldState(uint32_t panel, const float (&state)[8][4]) {
  const uint32_t place = PairPlace(panel);
#pragma unroll
  for (int q = 0; q < 8; q += 2) {
    const uint32_t pair[4] = {
        PackBf16(state[q][0], state[q][1]), PackBf16(state[q][2], state[q][3]),
        PackBf16(state[q + 1][0], state[q + 1][1]), PackBf16(state[q + 1][2], state[q + 1][3])};
    StoreMatrix4(SharedAt<void>(place ^ static_cast<uint32_t>(q * 16)), pair);
  }
}
#endif

}  // namespace mneme::ssd

#endif  // MNEME_KERNELS_CUDA_SSD_STATE_TILE_CUH_
