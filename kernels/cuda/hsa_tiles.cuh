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

// Starts copying kRows rows of a page, from `first` on, into swapped rows; a whole warp. A page
// that is not aligned to 16 bytes is copied at once, through registers. `first` is a multiple of 8.
template <int kRows>
__device__ __forceinline__ void CopyRows(unsigned char* to, const void* page, int first) {
  const int lane = threadIdx.x % kLanes;
  const unsigned char* from =
      static_cast<const unsigned char*>(page) + first * kRowBytes + lane * 16;
  if (reinterpret_cast<uintptr_t>(page) % 16 == 0) {
    const int row = lane / 8, chunk = lane % 8;  // rows row + 4 i
    unsigned char* even = to + Swapped(first + row, chunk);
    unsigned char* odd = to + Swapped(first + row + 4, chunk);
#pragma unroll
    for (int i = 0; i < kRows / 4; i += 2) {
      CopyAsync16(even + i * 512, from + i * 512);
      CopyAsync16(odd + i * 512, from + (i + 1) * 512);
    }
  } else {
    const uint16_t* elements = static_cast<const uint16_t*>(page);
    for (int i = first * kWidth + lane; i < (first + kRows) * kWidth; i += kLanes) {
      const int row = i / kWidth, column = i % kWidth;
      *reinterpret_cast<uint16_t*>(to + Swapped(row, column / 8) + column % 8 * 2) = elements[i];
    }
  }
}

// exp2(scores - shifts), as A fragments, and this lane's sums of them, of a 16 x 64 tile whose rows
// lane / 4 and lane / 4 + 8 are this thread's.
__device__ __forceinline__ void Exponentials(const float (&scores)[kPageTokens / 8][4],
                                             const float (&shifts)[2],
                                             uint32_t (&a)[kPageTokens / 16][4], float (&sums)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sums[half] = 0;
#pragma unroll
    for (int j = 0; j < kPageTokens / 8; ++j) {
      const float low = Exp2(scores[j][half * 2] - shifts[half]);
      const float high = Exp2(scores[j][half * 2 + 1] - shifts[half]);
      sums[half] += low + high;
      a[j / 2][j % 2 * 2 + half] = PackBf16(low, high);
    }
  }
}

// The exponentials of a row's softmax over a page. As a shift makes no difference to a softmax,
// there is none (that saves finding the largest score), unless a lane's sum for the row is out of
// the range in which nothing is lost; then, for this row alone, the largest score.
__device__ __forceinline__ void Softmax(const float (&scores)[kPageTokens / 8][4],
                                        uint32_t (&a)[kPageTokens / 16][4], float (&sums)[2]) {
  float shifts[2] = {};
  Exponentials(scores, shifts, a, sums);
  const auto kept = [&](int half) { return sums[half] > 0x1p-60f && sums[half] < 0x1p60f; };
  if (!__any_sync(0xffffffffu, !(kept(0) && kept(1)))) return;
  const unsigned rows[2] = {__ballot_sync(0xffffffffu, !kept(0)),
                            __ballot_sync(0xffffffffu, !kept(1))};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = scores[0][half * 2];
#pragma unroll
    for (int j = 0; j < kPageTokens / 8; ++j) {
      top = fmaxf(top, fmaxf(scores[j][half * 2], scores[j][half * 2 + 1]));
    }
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    if ((rows[half] >> (threadIdx.x % kLanes & ~3u) & 15u) != 0) shifts[half] = top;
  }
  Exponentials(scores, shifts, a, sums);
}

// Turns Softmax's sums, over the lanes of a row, into weight / sum.
__device__ __forceinline__ void FinishSoftmax(const float (&weights)[2], float (&sums)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = sums[half];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    sums[half] = weights[half] * Reciprocal(sum);
  }
}

// scales * product, rounded to bf16: words [j][half] hold columns 8 j + 2 (lane % 4) and the next
// of row lane / 4 + 8 half.
__device__ __forceinline__ void RoundResult(const float (&product)[kWidth / 8][4],
                                            const float (&scales)[2],
                                            uint32_t (&words)[kWidth / 8][2]) {
#pragma unroll
  for (int j = 0; j < kWidth / 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      words[j][half] =
          PackBf16(product[j][half * 2] * scales[half], product[j][half * 2 + 1] * scales[half]);
    }
  }
}
__device__ __forceinline__ float LowHalf(uint32_t word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float HighHalf(uint32_t word) {
  return __uint_as_float(word & 0xffff0000u);
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
