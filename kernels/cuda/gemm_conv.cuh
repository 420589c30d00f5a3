// ConvSilu in the stores of a product on Hopper (wgmma_gemm.cu), whose warpgroups do tiles of 64
// rows in turn, one tile after the other down the rows.
//
// A warpgroup's results go to shared memory, 64 outputs at a time, as bf16; each lane then takes
// eight outputs of four rows and the three rows before them. The rows before a tile are the last
// ones of the tile before, which the other warpgroup leaves in shared memory (or, where a sequence
// begins, its state). Sequences begin at multiples of 64 rows.

#ifndef MNEME_KERNELS_CUDA_GEMM_CONV_CUH_
#define MNEME_KERNELS_CUDA_GEMM_CONV_CUH_

#include <cstdint>

#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/gemm_store.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/wgmma_tiles.cuh"

#ifdef MNEME_HAS_WGMMA

namespace mneme {

inline constexpr int kConvPast = kConvTaps - 1;

// Shared memory of a block whose slice has kColumns outputs.
template <int kColumns>
struct ConvShared {
  // Of an output: its scale, its taps, its bias.
  static constexpr int kTableRows = kConvTaps + 2;
  float table[kTableRows][kColumns];
  // The last rows of a tile, of the last two of each warpgroup.
  uint32_t last[2][2][kConvPast][kColumns / 2];
  uint64_t ready[2][2];

  // Threads 0 .. threads - 1 call it; a barrier of theirs afterwards.
  __device__ __forceinline__ void Load(const GemmStore& store, int column, int threads) {
    const GemmConv& conv = store.conv;
    for (int i = static_cast<int>(threadIdx.x); i < kColumns; i += threads) {
      const int output = column + i, channel = output - conv.begin;
      const bool inside = channel >= 0 && channel < conv.channels;
      table[0][i] = store.scale == nullptr || output >= store.n ? 1.0f : store.scale[output];
      for (int t = 0; t < kConvTaps; ++t) {
        table[1 + t][i] = inside ? conv.weight[t * conv.channels + channel] : 0.0f;
      }
      table[1 + kConvTaps][i] = inside ? conv.bias[channel] : 0.0f;
    }
  }
};

__device__ __forceinline__ float2 UnpackBf16(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

// One tile of a warpgroup: `index` counts the block's tiles.
template <int kColumns>
struct ConvTileStore {
  static constexpr int kPass = 8;  // fragments of 8 outputs
  const GemmStore& store;
  ConvShared<kColumns>& shared;
  unsigned char* staging;  // the warpgroup's: 64 rows of kStoreRowBytes
  int group;               // warpgroup, 0 or 1
  int column;              // of the slice
  int lane = static_cast<int>(threadIdx.x) % 32;
  int warp = static_cast<int>(threadIdx.x) / 32 % 4;

  // Of this lane's outputs of fragment j.
  __device__ __forceinline__ float2 Scale(int j) const {
    return *reinterpret_cast<const float2*>(&shared.table[0][j * 8 + lane % 4 * 2]);
  }
  static __device__ __forceinline__ float2 Scaled(const float (&sums)[4], int half,
                                                  const float2& scale, const float2& factors) {
    const float factor = half == 0 ? factors.x : factors.y;
    return {sums[half * 2] * scale.x * factor, sums[half * 2 + 1] * scale.y * factor};
  }

  // Leaves the last rows for the next tile.
  __device__ __forceinline__ void LeaveLast(const float (&sums)[kColumns / 8][4],
                                            const float2& factors, int index) const {
    if (warp != 3) return;
    const int buffer = index / 2 % 2, row = lane / 4 - (8 - kConvPast);
    if (row >= 0) {
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
        const float2 v = Scaled(sums[j], 1, Scale(j), factors);
        shared.last[group][buffer][row][j * 4 + lane % 4] = PackBf16(v.x, v.y);
      }
    }
    __syncwarp();
    if (lane == 0) PhaseArrive(&shared.ready[group][buffer]);
  }

  // Eight outputs, from output `at` of the slice on, of row `row` of the tile; negative rows are
  // those before it.
  __device__ __forceinline__ uint4 Chunk(const ConvTile& tile, int index, int row, int pass_at,
                                         int at) const {
    if (row >= 0) {
      return *reinterpret_cast<const uint4*>(staging + row * kStoreRowBytes + (at - pass_at) * 2);
    }
    const int past = kConvPast + row;
    if (tile.before != nullptr) {
      const float* const from =
          tile.before + past * store.conv.channels + column + at - store.conv.begin;
      return make_uint4(PackBf16(from[0], from[1]), PackBf16(from[2], from[3]),
                        PackBf16(from[4], from[5]), PackBf16(from[6], from[7]));
    }
    const int other = index - 1;
    return *reinterpret_cast<const uint4*>(&shared.last[1 - group][other / 2 % 2][past][at / 2]);
  }

  // Convolves four rows from `row` on and stores those that are in the tile.
  __device__ __forceinline__ void Convolve(const ConvTile& tile, int index, int row, int pass_at,
                                           int at, int64_t first_row) const {
    constexpr int kRows = 4;
    uint4 in[kConvPast + kRows];
#pragma unroll
    for (int i = 0; i < kConvPast + kRows; ++i) {
      in[i] = Chunk(tile, index, row - kConvPast + i, pass_at, at);
    }
    uint4 out[kRows];
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      float2 taps[kConvTaps], x[kConvPast + kRows];
#pragma unroll
      for (int t = 0; t < kConvTaps; ++t) {
        taps[t] = *reinterpret_cast<const float2*>(&shared.table[1 + t][at + pair * 2]);
      }
      const float2 bias =
          *reinterpret_cast<const float2*>(&shared.table[1 + kConvTaps][at + pair * 2]);
#pragma unroll
      for (int i = 0; i < kConvPast + kRows; ++i) x[i] = UnpackBf16((&in[i].x)[pair]);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        float2 sum = bias;
#pragma unroll
        for (int t = 0; t < kConvTaps; ++t) {
          sum.x = fmaf(x[i + t].x, taps[t].x, sum.x);
          sum.y = fmaf(x[i + t].y, taps[t].y, sum.y);
        }
        (&out[i].x)[pair] = PackBf16(Silu(sum.x), Silu(sum.y));
      }
    }
    __nv_bfloat16* const to = static_cast<__nv_bfloat16*>(store.conv.out) +
                              (first_row + row) * store.conv.out_stride + column + at -
                              store.conv.begin;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (row + i < tile.rows) {
        *reinterpret_cast<uint4*>(to + i * store.conv.out_stride) = out[i];
      }
    }
  }

  // Stores the tile's rows, from row `first_row` of the matrix on. Named barrier 3 + group.
  __device__ __forceinline__ void Store(const float (&sums)[kColumns / 8][4], const float2& factors,
                                        const ConvTile& tile, int index, int64_t first_row) const {
    const GemmConv& conv = store.conv;
    if (tile.before == nullptr) {
      const int other = index - 1;
      PhaseWait(&shared.ready[1 - group][other / 2 % 2], static_cast<uint32_t>(other / 4 % 2));
    }
    const bool has_tail = column + kColumns > store.tail_begin;
#pragma unroll
    for (int first = 0; first < kColumns / 8; first += kPass) {
      __syncwarp();
      NamedSync(3 + group, 128);  // what is there has been read
#pragma unroll
      for (int i = 0; i < kPass; ++i) {
        const float2 scale = Scale(first + i);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = warp * 16 + lane / 4 + half * 8;
          const float2 v = Scaled(sums[first + i], half, scale, factors);
          *reinterpret_cast<uint32_t*>(staging + row * kStoreRowBytes + i * 16 + lane % 4 * 4) =
              PackBf16(v.x, v.y);
          if (!has_tail || row >= tile.rows) continue;
          const int to = column + (first + i) * 8 + lane % 4 * 2 - store.tail_begin;
          float* const tail = store.tail + (first_row + row) * store.tail_stride + to;
          const int count = store.tail_end - store.tail_begin;
          if (to >= 0 && to < count) tail[0] = v.x;
          if (to + 1 >= 0 && to + 1 < count) tail[1] = v.y;
        }
      }
      __syncwarp();
      NamedSync(3 + group, 128);
      const int at = (first + lane % 8) * 8, output = column + at;
      const int row = warp * 16 + lane / 8 * 4;
      if (output >= store.n) continue;
      if (output < conv.begin || output >= conv.begin + conv.channels) {
        __nv_bfloat16* const to =
            static_cast<__nv_bfloat16*>(store.out) + (first_row + row) * store.stride + output;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (row + i < tile.rows) {
            *reinterpret_cast<uint4*>(to + i * store.stride) =
                Chunk(tile, index, row + i, first * 8, at);
          }
        }
        continue;
      }
      Convolve(tile, index, row, first * 8, at, first_row);
      if (tile.after != nullptr && warp == 1 && lane / 8 < kConvPast) {
        const int past = lane / 8;
        const uint4 x = Chunk(tile, index, tile.rows - kConvPast + past, first * 8, at);
        float* const to = tile.after + past * conv.channels + output - conv.begin;
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
          *reinterpret_cast<float2*>(to + pair * 2) = UnpackBf16((&x.x)[pair]);
        }
      }
    }
  }
};

}  // namespace mneme

#endif  // MNEME_HAS_WGMMA

#endif  // MNEME_KERNELS_CUDA_GEMM_CONV_CUH_
