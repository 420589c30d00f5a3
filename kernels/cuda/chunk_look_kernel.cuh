// The second look at the selected pages: a kernel on plain pointers (chunk_look.cu puts it behind
// the launcher).
//
// A block takes a row, a warp a page of it, a lane the tokens lane, lane + 32 .. of the page: a
// K row is one or a few lines of the cache, which its lane reads in pieces of 16 bytes, and q comes
// to all lanes at once. Two tokens and eight heads of a lane share what it reads. A lane keeps the
// largest product and the sum of exponentials of its tokens, which the warp then puts together.
// When all pages of the row have their score, one warp makes their weights, 32 pages at a time.

#ifndef MNEME_KERNELS_CUDA_CHUNK_LOOK_KERNEL_CUH_
#define MNEME_KERNELS_CUDA_CHUNK_LOOK_KERNEL_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/ops.h"

namespace mneme::look {

inline constexpr int kWarps = 8;
inline constexpr int kHeads = 8;   // that a lane takes at one time
inline constexpr int kTokens = 2;  // the same

// `kCount` neighbouring values as floats: 1, or 16 bytes of an aligned T.
template <int kCount>
__device__ __forceinline__ void LoadPiece(const float* from, float (&to)[kCount]) {
  static_assert(kCount == 1 || kCount % 4 == 0);
  if constexpr (kCount == 1) {
    to[0] = from[0];
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 v = LoadFour(from + i);
      to[i] = v.x;
      to[i + 1] = v.y;
      to[i + 2] = v.z;
      to[i + 3] = v.w;
    }
  }
}
template <int kCount>
__device__ __forceinline__ void LoadPiece(const __nv_bfloat16* from, float (&to)[kCount]) {
  static_assert(kCount == 1 || kCount == 8);
  if constexpr (kCount == 1) {
    to[0] = ToFloat(from[0]);
  } else {
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[2 * i] = __uint_as_float(words[i] << 16);
      to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
}

// sum_h head_weight[h] m_h of one page, the same in every lane. q: the row's. The order of the sums
// depends on the shape alone.
template <typename T, int kPiece>
__device__ float LookAtPage(const ChunkLookParams& p, const float* q, const T* keys) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t width = p.head_dim, tokens = p.chunk_tokens;
  const float scale = 1.0f / sqrtf(static_cast<float>(width));
  const float log_tokens = logf(static_cast<float>(tokens));
  float total = 0;
  for (int64_t first = 0; first < p.heads; first += kHeads) {
    const int heads = static_cast<int>(p.heads - first < kHeads ? p.heads - first : kHeads);
    const float* const q_first = q + first * width;
    float top[kHeads], sum[kHeads];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      top[h] = -HUGE_VALF;
      sum[h] = 0;
    }
    for (int64_t begin = 0; begin < tokens; begin += kTokens * 32) {
      float products[kTokens][kHeads] = {};
      const T* rows[kTokens];
#pragma unroll
      for (int j = 0; j < kTokens; ++j) {
        const int64_t token = begin + j * 32 + lane;
        rows[j] = keys + (token < tokens ? token : tokens - 1) * width;
      }
      for (int64_t d = 0; d < width; d += kPiece) {
        float k[kTokens][kPiece];
#pragma unroll
        for (int j = 0; j < kTokens; ++j) LoadPiece(rows[j] + d, k[j]);
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          if (h >= heads) break;
          float piece[kPiece];
          LoadPiece(q_first + h * width + d, piece);
#pragma unroll
          for (int i = 0; i < kPiece; ++i) {
#pragma unroll
            for (int j = 0; j < kTokens; ++j) products[j][h] += piece[i] * k[j][i];
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kTokens; ++j) {
        if (begin + j * 32 + lane >= tokens) break;
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          const float product = products[j][h] * scale;
          const float larger = fmaxf(top[h], product);
          sum[h] = sum[h] * expf(top[h] - larger) + expf(product - larger);
          top[h] = larger;
        }
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (h >= heads) break;
      const float highest = WarpMax(top[h]);
      const float all = WarpSum(sum[h] * expf(top[h] - highest));
      total += p.head_weight[first + h] * (highest + logf(all) - log_tokens);
    }
  }
  return total;
}

// Weights of `count` scores by stick-breaking (chunk_weights.h). A warp.
__device__ __forceinline__ void BreakStick(const float* scores, float* weights, int64_t count) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float spent = 0;  // sum of softplus(s_j) so far: -log of what is left of the stick
  for (int64_t begin = 0; begin < count; begin += 32) {
    const float score = begin + lane < count ? scores[begin + lane] : -HUGE_VALF;
    const float own = score == -HUGE_VALF ? 0.0f : Softplus(score);
    float through = own;  // of lanes up to this one
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const float before = __shfl_up_sync(kFullWarp, through, step);
      if (lane >= step) through += before;
    }
    float before = __shfl_up_sync(kFullWarp, through, 1);
    if (lane == 0) before = 0;
    if (begin + lane < count) {
      // log sigmoid(s) = -softplus(-s): no difference of large numbers.
      weights[begin + lane] =
          score == -HUGE_VALF ? 0.0f : expf(-(spent + before + Softplus(-score)));
    }
    spent += __shfl_sync(kFullWarp, through, 31);
  }
}

// The same by a softmax in which newer chunks have a margin, u less the best score as there. It
// lies in `weights` between passes; a lane reads no weight but its own. A warp.
__device__ __forceinline__ void PreferNewest(const float* scores, float margin, float* weights,
                                             int64_t count) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float best = 0;  // of the null option too
  for (int64_t i = lane; i < count; i += 32) best = fmaxf(best, scores[i]);
  best = WarpMax(best);
  float top = -best;
  for (int64_t i = lane; i < count; i += 32) {
    const float score = scores[i];
    float u = score - best;
    if (score != -HUGE_VALF) {
      for (int64_t j = 0; j < i; ++j) u -= Softplus(scores[j] - score + margin);
    }
    weights[i] = u;
    top = fmaxf(top, u);
  }
  top = WarpMax(top);
  float sum = 0;
  for (int64_t i = lane; i < count; i += 32) {
    const float part = expf(weights[i] - top);
    weights[i] = part;
    sum += part;
  }
  sum = WarpSum(sum) + expf(-best - top);
  for (int64_t i = lane; i < count; i += 32) weights[i] /= sum;
}

// Grid: rows, rounded down to what a grid may have; a block strides over rows. kWarps warps. No
// shared memory: q and K come through the L1 cache. `vectors`: q allows 16-byte reads, and so do
// K rows of pages that are aligned to that.
template <typename T>
__global__ void __launch_bounds__(kWarps * 32, 2)
    ChunkLookKernel(const ChunkLookParams p, const bool vectors) {
  WaitForKernelBefore();
  LetNextKernelStart();
  constexpr int kPiece = 16 / sizeof(T);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const int64_t first = row * p.pages_max;
    const int count = p.page_counts[row];
    const float* const q = p.q + row * p.q_stride;
    for (int64_t i = warp; i < p.pages_max; i += kWarps) {
      float score = i < count ? p.scores[first + i] : -HUGE_VALF;
      if (score != -HUGE_VALF) {
        const T* const keys = static_cast<const T*>(p.pages[first + i]);
        score += vectors && reinterpret_cast<uintptr_t>(keys) % 16 == 0
                     ? LookAtPage<T, kPiece>(p, q, keys)
                     : LookAtPage<T, 1>(p, q, keys);
      }
      if (lane == 0) p.corrected[first + i] = score;
    }
    __syncthreads();
    if (warp != 0) continue;
    if (p.newest_margin == 0) {
      BreakStick(p.corrected + first, p.weights + first, p.pages_max);
    } else {
      PreferNewest(p.corrected + first, static_cast<float>(p.newest_margin), p.weights + first,
                   p.pages_max);
    }
  }
}

// ---- on the host -------------------------------------------------------------------------------

inline cudaError_t LaunchChunkLook(const ChunkLookParams& p, bool overlaps, cudaStream_t stream) {
  if (p.rows == 0 || p.pages_max == 0) return cudaSuccess;
  const bool bf16 = p.page_dtype == DType::kBf16;
  const bool vectors = reinterpret_cast<uintptr_t>(p.q) % 16 == 0 && p.q_stride % 4 == 0 &&
                       p.head_dim % (bf16 ? 8 : 4) == 0;
  return LaunchOverlapping(bf16 ? ChunkLookKernel<__nv_bfloat16> : ChunkLookKernel<float>,
                           dim3(static_cast<unsigned>(p.rows < (1 << 20) ? p.rows : (1 << 20))),
                           dim3(kWarps * 32), 0, stream, overlaps, p, vectors);
}

}  // namespace mneme::look

#endif  // MNEME_KERNELS_CUDA_CHUNK_LOOK_KERNEL_CUH_
