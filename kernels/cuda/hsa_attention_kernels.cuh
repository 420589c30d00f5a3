// Hierarchical sparse attention on a GPU (arXiv 2504.16795): kernels on plain pointers
// (hsa_attention.cu puts them behind the launcher, bench/gpu/hsa_topk_bench.cu times them).
//
// Many rows: hsa_prefill_kernels.cuh. Few rows (decode): one block a token (and 16 heads), one warp
// a page, results added eight pages at a time in the order of the table. All heads of a token read
// the same pages, so one token is one tile of 16 heads for the tensor cores, and a page is read
// whole: scores of 64 keys fit in registers, softmax needs one step. A page's result is rounded and
// added as prefill does it.

#ifndef MNEME_KERNELS_CUDA_HSA_ATTENTION_KERNELS_CUH_
#define MNEME_KERNELS_CUDA_HSA_ATTENTION_KERNELS_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "kernels/cuda/hsa_prefill_kernels.cuh"
#include "kernels/cuda/hsa_tiles.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/ops.h"

namespace mneme::hsa {

// weight * softmax(q K^T) V for 16 heads and one page, as RoundResult leaves it. q: 16 swapped
// rows, scaled so that the exponential is one of base two; page: 128 swapped rows. Fragments as in
// tensor_core.cuh.
__device__ __forceinline__ void AttendPage(const unsigned char* q, const unsigned char* page,
                                           float weight, uint32_t (&words)[kWidth / 8][2]) {
  const int lane = threadIdx.x % kLanes;
  const int low_row = lane % 8, matrix = lane / 8;
  float scores[kPageTokens / 8][4] = {};
#pragma unroll
  for (int step = 0; step < kWidth / 16; ++step) {
    uint32_t a[4];
    LoadMatrix4(a, q + Swapped(lane % 16, step * 2 + lane / 16));
#pragma unroll
    for (int pair = 0; pair < kPageTokens / 16; ++pair) {
      uint32_t b[4];
      LoadMatrix4(b, page + Swapped(pair * 16 + matrix / 2 * 8 + low_row, step * 2 + matrix % 2));
      MmaBf16(scores[pair * 2], a, b[0], b[1]);
      MmaBf16(scores[pair * 2 + 1], a, b[2], b[3]);
    }
  }
  uint32_t a[kPageTokens / 16][4];
  float scales[2];
  Softmax(scores, a, scales);
  const unsigned char* values = page + kPageTokens * kRowBytes;
  float product[kWidth / 8][4] = {};
#pragma unroll
  for (int step = 0; step < kPageTokens / 16; ++step) {
#pragma unroll
    for (int pair = 0; pair < kWidth / 16; ++pair) {
      uint32_t b[4];
      LoadMatrix4Transposed(
          b, values + Swapped(step * 16 + matrix % 2 * 8 + low_row, pair * 2 + matrix / 2));
      MmaBf16(product[pair * 2], a[step], b[0], b[1]);
      MmaBf16(product[pair * 2 + 1], a[step], b[2], b[3]);
    }
  }
  const float weights[2] = {weight, weight};
  FinishSoftmax(weights, scales);
  RoundResult(product, scales, words);
}

// Four floats of a row of q, zero outside.
__device__ __forceinline__ float4 LoadQ(const HsaAttendParams& p, int64_t row, int64_t column,
                                        bool inside, bool vectors) {
  if (!inside) return make_float4(0, 0, 0, 0);
  const float* from = p.q + row * p.q_stride + column;
  if (vectors) return *reinterpret_cast<const float4*>(from);
  return make_float4(from[0], from[1], from[2], from[3]);
}

__device__ __forceinline__ void StoreQ(unsigned char* tile, int head, int column, float4 v,
                                       float scale) {
  *reinterpret_cast<uint2*>(tile + Swapped(head, column / 8) + column % 8 * 2) =
      make_uint2(PackBf16(v.x * scale, v.y * scale), PackBf16(v.z * scale, v.w * scale));
}

// ---- decode ------------------------------------------------------------------------------------

inline constexpr int kDecodeWarps = 8;
inline constexpr int64_t kDecodeSharedBytes = kTileBytes + kDecodeWarps * kPageBytes;

// Grid: (rows, groups of 16 heads); block: kDecodeWarps warps; shared: kDecodeSharedBytes: q
// [16 heads][64], a page a warp, which afterwards holds its sums [16][64] in f32. bf16 pages,
// D = S = 64.
template <typename Out>
__global__ void __launch_bounds__(kDecodeWarps* kLanes)
    HsaDecodeKernel(const HsaAttendParams p, const Alignment aligned) {
  LetNextKernelStart();
  const int thread = threadIdx.x, warp = thread / kLanes, lane = thread % kLanes;
  const int64_t row = blockIdx.x;
  const int first_head = static_cast<int>(blockIdx.y) * kHeads;
  unsigned char* tile = DynamicShared();
  unsigned char* page = tile + kTileBytes + warp * kPageBytes;
  const int count = p.page_counts[row];
  const auto copy = [&](int i) {
    if (i < count) CopyRows<2 * kPageTokens>(page, p.pages[row * p.pages_max + i], 0);
    CopyAsyncCommit();
  };
  copy(warp);
  {
    const int head = thread / (kWidth / 4), column = thread % (kWidth / 4) * 4;
    StoreQ(tile, head, column,
           LoadQ(p, row, static_cast<int64_t>(first_head + head) * kWidth + column,
                 first_head + head < p.heads, aligned.q),
           kLog2E / sqrtf(static_cast<float>(kWidth)));
  }
  __syncthreads();
  float* partial = reinterpret_cast<float*>(page);
  const float* partials = reinterpret_cast<const float*>(tile + kTileBytes);
  constexpr int kValues = kHeads * kWidth / (kDecodeWarps * kLanes);  // of a thread
  float sums[kValues] = {};
  for (int first = 0; first < count; first += kDecodeWarps) {
    CopyAsyncWait<0>();
    __syncwarp();
    if (first + warp < count) {
      uint32_t words[kWidth / 8][2];
      AttendPage(tile, page, p.weights[row * p.pages_max + first + warp], words);
      __syncwarp();
#pragma unroll
      for (int j = 0; j < kWidth / 8; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          *reinterpret_cast<float2*>(partial + (lane / 4 + half * 8) * kWidth + j * 8 +
                                     lane % 4 * 2) =
              make_float2(LowHalf(words[j][half]), HighHalf(words[j][half]));
        }
      }
    }
    __syncthreads();
    for (int w = 0; w < min(count - first, kDecodeWarps); ++w) {
#pragma unroll
      for (int k = 0; k < kValues; ++k) {
        sums[k] += partials[w * (kPageBytes / 4) + k * kDecodeWarps * kLanes + thread];
      }
    }
    __syncthreads();
    if (first + kDecodeWarps < count) copy(first + kDecodeWarps + warp);
  }
#pragma unroll
  for (int k = 0; k < kValues; ++k) {
    const int i = k * kDecodeWarps * kLanes + thread;
    if (first_head + i / kWidth < p.heads) {
      static_cast<Out*>(p.out)[row * p.out_stride + static_cast<int64_t>(first_head) * kWidth + i] =
          static_cast<Out>(sums[k]);
    }
  }
}

// ---- any shape ---------------------------------------------------------------------------------

inline constexpr int kSimpleThreads = 128;

__device__ __forceinline__ float BlockReduce(float v, bool maximum, float* partial) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, v, step);
    v = maximum ? fmaxf(v, other) : v + other;
  }
  if (threadIdx.x % kLanes == 0) partial[threadIdx.x / kLanes] = v;
  __syncthreads();
  v = partial[0];
  for (int w = 1; w < kSimpleThreads / kLanes; ++w)
    v = maximum ? fmaxf(v, partial[w]) : v + partial[w];
  __syncthreads();
  return v;
}

// Grid: (rows, heads); block: kSimpleThreads; shared, all in f32: a word a warp, q [D], sums [D],
// scores [S], and room behind them, as loops over the scores are compiled to read in pairs and
// ahead. (None of it static: behind static memory DynamicShared() skips to its alignment.)
__host__ __device__ constexpr int64_t SimpleSharedBytes(int64_t head_dim, int64_t chunk_tokens) {
  return (kSimpleThreads / kLanes + 2 * head_dim + chunk_tokens + 8) * 4;
}
template <typename T, typename Out>
__global__ void __launch_bounds__(kSimpleThreads) HsaSimpleKernel(const HsaAttendParams p) {
  float* partial = reinterpret_cast<float*>(DynamicShared());
  float* q = partial + kSimpleThreads / kLanes;
  float* sums = q + p.head_dim;
  float* scores = sums + p.head_dim;
  const int64_t row = blockIdx.x, head = blockIdx.y;
  const int width = static_cast<int>(p.head_dim), tokens = static_cast<int>(p.chunk_tokens);
  const float scale = 1.0f / sqrtf(static_cast<float>(width));
  for (int d = threadIdx.x; d < width; d += kSimpleThreads) {
    q[d] = p.q[row * p.q_stride + head * width + d] * scale;
    sums[d] = 0;
  }
  __syncthreads();
  for (int i = 0; i < p.page_counts[row]; ++i) {
    const T* keys = static_cast<const T*>(p.pages[row * p.pages_max + i]);
    const T* values = keys + static_cast<int64_t>(tokens) * width;
    float top = -HUGE_VALF;
    for (int s = threadIdx.x; s < tokens; s += kSimpleThreads) {
      float score = 0;
      for (int d = 0; d < width; ++d) {
        score += q[d] * static_cast<float>(keys[static_cast<int64_t>(s) * width + d]);
      }
      scores[s] = score;
      top = fmaxf(top, score);
    }
    top = BlockReduce(top, true, partial);
    float sum = 0;
    for (int s = threadIdx.x; s < tokens; s += kSimpleThreads) {
      scores[s] = expf(scores[s] - top);
      sum += scores[s];
    }
    sum = BlockReduce(sum, false, partial);
    const float weight = p.weights[row * p.pages_max + i] / sum;
    for (int d = threadIdx.x; d < width; d += kSimpleThreads) {
      float value = 0;
      for (int s = 0; s < tokens; ++s) {
        value += scores[s] * static_cast<float>(values[static_cast<int64_t>(s) * width + d]);
      }
      sums[d] += weight * value;
    }
    __syncthreads();
  }
  for (int d = threadIdx.x; d < width; d += kSimpleThreads) {
    static_cast<Out*>(p.out)[row * p.out_stride + head * width + d] = static_cast<Out>(sums[d]);
  }
}

// ---- on the host -------------------------------------------------------------------------------

enum class Variant { kSimple, kDecode, kPrefill };

struct Machine {
  int multiprocessors = 0;
  int major = 0;
  int64_t shared_bytes_max = 0;
  int64_t slice_rows = kSliceRows;  // prefill's; a multiple of kInvertThreads
};

inline bool CanCompute(Variant variant, const HsaAttendParams& p, const Machine& machine) {
  if (variant == Variant::kSimple) {
    return SimpleSharedBytes(p.head_dim, p.chunk_tokens) <= 48 * 1024;
  }
  if (p.page_dtype != DType::kBf16 || p.head_dim != kWidth || p.chunk_tokens != kPageTokens) {
    return false;
  }
  if (variant == Variant::kDecode) return kDecodeSharedBytes <= machine.shared_bytes_max;
  return machine.major == 9 && p.pages_max >= 1 && p.pages_max <= kPagesMax &&
         p.heads <= kStepRows && p.rows * p.pages_max <= INT32_MAX / 2 &&
         std::max({kInvertSharedBytes, kRunSharedBytes, kPagesSharedBytes}) <=
             machine.shared_bytes_max;
}

// Prefill's kernels pay when the rows occupy the machine.
inline constexpr int64_t kPrefillRowsMin = 2048;
inline Variant Choose(const HsaAttendParams& p, const Machine& machine) {
  if (p.rows >= kPrefillRowsMin && CanCompute(Variant::kPrefill, p, machine)) {
    return Variant::kPrefill;
  }
  return CanCompute(Variant::kDecode, p, machine) ? Variant::kDecode : Variant::kSimple;
}

// Device memory that LaunchHsa needs beside inputs and outputs.
inline int64_t WorkspaceBytes(Variant variant, const HsaAttendParams& p, const Machine& machine) {
  if (variant != Variant::kPrefill || p.rows == 0) return 0;
  PrefillArgs args;
  return PlanPrefill(p, machine.slice_rows, nullptr, &args);
}

template <typename Out>
cudaError_t LaunchAs(Variant variant, const HsaAttendParams& p, const Machine& machine,
                     void* workspace, cudaStream_t stream) {
  const auto blocks = [](int64_t count) { return static_cast<unsigned>(count); };
  const unsigned head_groups = blocks((p.heads + kHeads - 1) / kHeads);
  switch (variant) {
    case Variant::kPrefill: {
      PrefillArgs args;
      PlanPrefill(p, machine.slice_rows, workspace, &args);
      return LaunchPrefill<Out>(p, args, machine.multiprocessors, stream);
    }
    case Variant::kDecode:
      return Launch(HsaDecodeKernel<Out>, dim3(blocks(p.rows), head_groups),
                    dim3(kDecodeWarps * kLanes), kDecodeSharedBytes, stream, p, AlignmentOf(p));
    case Variant::kSimple:
      break;
  }
  return Launch(p.page_dtype == DType::kBf16 ? HsaSimpleKernel<__nv_bfloat16, Out>
                                             : HsaSimpleKernel<float, Out>,
                dim3(blocks(p.rows), blocks(p.heads)), dim3(kSimpleThreads),
                SimpleSharedBytes(p.head_dim, p.chunk_tokens), stream, p);
}

// `workspace`: WorkspaceBytes of device memory, aligned to 256 bytes.
inline cudaError_t LaunchHsa(Variant variant, const HsaAttendParams& p, const Machine& machine,
                             void* workspace, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  return p.out_dtype == DType::kBf16
             ? LaunchAs<__nv_bfloat16>(variant, p, machine, workspace, stream)
             : LaunchAs<float>(variant, p, machine, workspace, stream);
}

}  // namespace mneme::hsa

#endif  // MNEME_KERNELS_CUDA_HSA_ATTENTION_KERNELS_CUH_
