// Rows of 64 numbers in the order in which the lanes of a matrix fragment hold them: q on its way
// into an A operand, results on their way out of an accumulator.
//
// A "piece" is 16 bytes of a row of 64 bf16 numbers in the order of fragments: piece 4 h + t, h <
// 2, t < 4, holds columns 8 j + 2 t and the next for j = 4 h .. 4 h + 3, what lane t of a row's
// four has of an accumulator and, as steps 2 h and 2 h + 1, of an A operand.

#ifndef MNEME_KERNELS_CUDA_HSA_PIECES_CUH_
#define MNEME_KERNELS_CUDA_HSA_PIECES_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "kernels/cuda/hsa_tiles.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace mneme::hsa {

// One row of q, 64 floats, as lane t of its four has it in an A operand: piece h's words are [h].
// value(j): columns 8 j + 2 t and the next, a float2.
template <typename Value>
__device__ __forceinline__ void MakePieces(const Value& value, uint4 (&pieces)[2]) {
  const float scale = kLog2E / sqrtf(static_cast<float>(kWidth));
  uint32_t words[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float2 v = value(j);
    words[j] = PackBf16(v.x * scale, v.y * scale);
  }
  pieces[0] = make_uint4(words[0], words[1], words[2], words[3]);
  pieces[1] = make_uint4(words[4], words[5], words[6], words[7]);
}
__device__ __forceinline__ void LoadPieces(const float* row, int t, bool vectors,
                                           uint4 (&pieces)[2]) {
  MakePieces(
      [&](int j) {
        const float* from = row + j * 8 + t * 2;
        return vectors ? *reinterpret_cast<const float2*>(from) : make_float2(from[0], from[1]);
      },
      pieces);
}

// The A operand of rows lane / 4 and lane / 4 + 8 from their pieces.
__device__ __forceinline__ void PlacePieces(const uint4 (&pieces)[2], int half,
                                            uint32_t (&a)[kWidth / 16][4]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    a[2 * h][half] = pieces[h].x;
    a[2 * h][half + 2] = pieces[h].y;
    a[2 * h + 1][half] = pieces[h].z;
    a[2 * h + 1][half + 2] = pieces[h].w;
  }
}

// Among the four lanes of a row: lane t has words [j], and gets word t of lanes 0 .. 3.
__device__ __forceinline__ void TransposeQuad(uint32_t (&words)[4]) {
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool upper = (t & step) != 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int low = step == 1 ? 2 * i : i, high = low + step;
      const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? words[low] : words[high], step);
      (upper ? words[low] : words[high]) = got;
    }
  }
}

// Writes piece 4 h + t of a row of `out`, as floats. All lanes of the warp; `valid` ones write.
template <typename Out>
__device__ __forceinline__ void StorePiece(Out* row, int h, const float (&v)[4][2], bool vectors,
                                           bool valid) {
  const int t = static_cast<int>(threadIdx.x) % 4;
  if constexpr (sizeof(Out) == 2) {
    if (vectors) {
      uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) words[j] = PackBf16(v[j][0], v[j][1]);
      TransposeQuad(words);
      if (valid) {
        *reinterpret_cast<uint4*>(row + (4 * h + t) * 8) =
            make_uint4(words[0], words[1], words[2], words[3]);
      }
      return;
    }
  }
  if (!valid) return;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    Out* to = row + (4 * h + j) * 8 + t * 2;
    to[0] = static_cast<Out>(v[j][0]);
    to[1] = static_cast<Out>(v[j][1]);
  }
}

}  // namespace mneme::hsa

#endif  // MNEME_KERNELS_CUDA_HSA_PIECES_CUH_
