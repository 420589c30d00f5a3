// The chunk encoder's attention on a GPU: bidirectional within a group of rows (a chunk's tokens
// and its CLS row). Kernels on plain pointers (chunk_attention.cu puts them behind the launcher,
// bench/gpu/hsa_topk_bench.cu times them).
//
// One block a group and head: q, k and v of it come to shared memory once, as bf16, normed on the
// way where that is asked for, and each warp takes 16 rows through both products with its scores in
// registers. Reading the rows is the cost.
// Results in f32 are computed in f32 by the kernel for any shape.

#ifndef MNEME_KERNELS_CUDA_CHUNK_ATTENTION_KERNELS_CUH_
#define MNEME_KERNELS_CUDA_CHUNK_ATTENTION_KERNELS_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "kernels/cuda/tensor_core.cuh"
#include "kernels/ops.h"

namespace mneme::chunk_attention {

inline constexpr int kLanes = 32;
inline constexpr int kWidth = 64;  // D of the fast kernel
inline constexpr int kRowBytes = kWidth * 2;

// Where the 16-byte chunk `chunk` of row `row` lies: swapped so that eight rows at one chunk use
// all banks.
__device__ __forceinline__ int Place(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ (row & 7)) << 4);
}

// Eight neighbouring values of a row, and eight of f32 or bf16 as they lie in memory.
struct Eight {
  float v[8];
};
template <typename In>
struct alignas(16) RawEight {
  In v[8];
};
template <typename In>
__device__ __forceinline__ Eight Widen(const RawEight<In>& raw) {
  Eight to;
#pragma unroll
  for (int i = 0; i < 8; ++i) to.v[i] = static_cast<float>(raw.v[i]);
  return to;
}
template <typename In>
__device__ __forceinline__ RawEight<In> ReadEight(const In* from, bool vectors) {
  RawEight<In> raw;
  if (vectors) {
    raw = *reinterpret_cast<const RawEight<In>*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) raw.v[i] = from[i];
  }
  return raw;
}

__device__ __forceinline__ void LoadFloats(const float* from, bool vectors, Eight& to) {
  const RawEight<float> raw = ReadEight(from, vectors);
#pragma unroll
  for (int i = 0; i < 8; ++i) to.v[i] = raw.v[i];
}

// HeadNorm of a head of 64 of which each of four neighbouring lanes holds columns c .. c + 7 (`a`)
// and c + 32 .. c + 39 (`b`), times `factor`, and its turn to its position.
__device__ __forceinline__ void NormSixteen(const Eight& a_weight, const Eight& b_weight, float eps,
                                            float factor, const Eight& cosine, const Eight& sine,
                                            Eight& a, Eight& b) {
  float squares = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) squares += a.v[i] * a.v[i] + b.v[i] * b.v[i];
  squares += __shfl_xor_sync(0xffffffffu, squares, 1);
  squares += __shfl_xor_sync(0xffffffffu, squares, 2);
  const float scale = factor / sqrtf(squares / kWidth + eps);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float first = a.v[i] * (scale * a_weight.v[i]);
    const float second = b.v[i] * (scale * b_weight.v[i]);
    a.v[i] = first * cosine.v[i] - second * sine.v[i];
    b.v[i] = second * cosine.v[i] + first * sine.v[i];
  }
}

__device__ __forceinline__ uint4 PackEight(const Eight& x) {
  return make_uint4(PackBf16(x.v[0], x.v[1]), PackBf16(x.v[2], x.v[3]), PackBf16(x.v[4], x.v[5]),
                    PackBf16(x.v[6], x.v[7]));
}

// Grid: groups * heads, heads first, as they lie in memory; block: kTiles warps; shared: q, k, v
// [kTiles * 16 rows][64] bf16, rows swapped, zero from group_rows on. D = 64, bf16 out, group_rows
// <= kTiles * 16, and more than the variant before takes (LaunchFor).
template <int kTiles, typename In>
__global__ void __launch_bounds__(kTiles* kLanes, kTiles < 9 ? 15 / kTiles : 1)
    ChunkAttentionKernel(const ChunkAttentionParams p, const bool in_vectors,
                         const bool out_vectors) {
  constexpr int kRows = kTiles * 16;
  constexpr int kMatrixBytes = kRows * kRowBytes;
  const int thread = threadIdx.x, warp = thread / kLanes, lane = thread % kLanes;
  const int64_t heads = p.heads;
  const int64_t first_row = blockIdx.x / heads * p.group_rows;
  const int head = static_cast<int>(blockIdx.x % heads);
  const int rows = static_cast<int>(p.group_rows);
  const int64_t width = heads * kWidth;
  unsigned char* matrices = DynamicShared();

  // scores / sqrt(D) in base two: the factor goes into q.
  const float q_scale = 1.44269504088896340736f / sqrtf(static_cast<float>(kWidth));
  // A row is four neighbouring threads', each with eight columns of either half. Rows from
  // group_rows on are read as the first and become zeros.
  constexpr int kEach = kRows * 4 / (kTiles * kLanes), kHalf = kWidth / 2;
  const int chunk = thread % 4, first = chunk * 8;
  const In* const from =
      static_cast<const In*>(p.qkv) + first_row * p.qkv_stride + head * kWidth + first;
  const auto row_of = [&](int i) { return i * kTiles * 8 + thread / 4; };
  const auto read_row = [&](int i) { return row_of(i) < rows ? row_of(i) : 0; };
  const auto place = [&](int part, int i, int half) {
    return matrices + part * kMatrixBytes + Place(row_of(i), chunk + half * 4);
  };
  const auto write = [&](int part, int i, const Eight& a, const Eight& b) {
    const bool valid = row_of(i) < rows;
    *reinterpret_cast<uint4*>(place(part, i, 0)) = valid ? PackEight(a) : make_uint4(0, 0, 0, 0);
    *reinterpret_cast<uint4*>(place(part, i, 1)) = valid ? PackEight(b) : make_uint4(0, 0, 0, 0);
  };
  RawEight<In> raw[2][kEach][2];
#pragma unroll
  for (int part = 0; part < 2; ++part) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        raw[part][i][half] =
            ReadEight(from + part * width + half * kHalf + read_row(i) * p.qkv_stride, in_vectors);
      }
    }
  }
  // Values need nothing done to them.
  const bool copy_values = sizeof(In) == 2 && in_vectors;
  if (copy_values) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        CopyAsync16(place(2, i, half), from + 2 * width + half * kHalf + read_row(i) * p.qkv_stride,
                    row_of(i) < rows);
      }
    }
    CopyAsyncCommit();
  }
  if (p.q_norm != nullptr) {
    Eight cosine[kEach], sine[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      LoadFloats(p.cosine + read_row(i) * kHalf + first, in_vectors, cosine[i]);
      LoadFloats(p.sine + read_row(i) * kHalf + first, in_vectors, sine[i]);
    }
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const float* const norm = part == 0 ? p.q_norm : p.k_norm;
      Eight a_weight, b_weight;
      LoadFloats(norm + first, in_vectors, a_weight);
      LoadFloats(norm + kHalf + first, in_vectors, b_weight);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        Eight a = Widen(raw[part][i][0]), b = Widen(raw[part][i][1]);
        NormSixteen(a_weight, b_weight, p.eps, part == 0 ? q_scale : 1.0f, cosine[i], sine[i], a,
                    b);
        write(part, i, a, b);
      }
    }
  } else {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        Eight a = Widen(raw[part][i][0]), b = Widen(raw[part][i][1]);
#pragma unroll
        for (int c = 0; c < 8 && part == 0; ++c) {
          a.v[c] *= q_scale;
          b.v[c] *= q_scale;
        }
        write(part, i, a, b);
      }
    }
  }
  if (copy_values) {
    CopyAsyncWait<0>();
  } else {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const In* const values = from + 2 * width + read_row(i) * p.qkv_stride;
      write(2, i, Widen(ReadEight(values, in_vectors)),
            Widen(ReadEight(values + kHalf, in_vectors)));
    }
  }
  __syncthreads();

  unsigned char* q = matrices + warp * 16 * kRowBytes;  // 16 rows: Place's swap repeats every 8
  const unsigned char* keys = matrices + kMatrixBytes;
  const unsigned char* values = keys + kMatrixBytes;
  const int low_row = lane % 8, matrix = lane / 8;
  float scores[kTiles * 2][4] = {};
#pragma unroll
  for (int step = 0; step < kWidth / 16; ++step) {
    uint32_t a[4];
    LoadMatrix4(a, q + Place(lane % 16, step * 2 + lane / 16));
#pragma unroll
    for (int pair = 0; pair < kTiles; ++pair) {
      uint32_t b[4];
      LoadMatrix4(b, keys + Place(pair * 16 + matrix / 2 * 8 + low_row, step * 2 + matrix % 2));
      MmaBf16(scores[pair * 2], a, b[0], b[1]);
      MmaBf16(scores[pair * 2 + 1], a, b[2], b[3]);
    }
  }
  // Fragments whose columns all groups of this kTiles have.
  constexpr int kPlain = kTiles == 6 ? 10 : kTiles == 5 ? 4 : 0;
  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = __uint_as_float(0xff800000u);
#pragma unroll
    for (int j = 0; j < kTiles * 2; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& score = scores[j][half * 2 + c];
        if (j >= kPlain && j * 8 + lane % 4 * 2 + c >= rows) score = __uint_as_float(0xff800000u);
        top = fmaxf(top, score);
      }
    }
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kTiles * 2; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& score = scores[j][half * 2 + c];
        score = Exp2(score - top);
        sum += score;
      }
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    inverse[half] = 1.0f / sum;
  }
  float sums[kWidth / 8][4] = {};
#pragma unroll
  for (int step = 0; step < kTiles; ++step) {
    const uint32_t a[4] = {PackBf16(scores[step * 2][0], scores[step * 2][1]),
                           PackBf16(scores[step * 2][2], scores[step * 2][3]),
                           PackBf16(scores[step * 2 + 1][0], scores[step * 2 + 1][1]),
                           PackBf16(scores[step * 2 + 1][2], scores[step * 2 + 1][3])};
#pragma unroll
    for (int pair = 0; pair < kWidth / 16; ++pair) {
      uint32_t b[4];
      LoadMatrix4Transposed(
          b, values + Place(step * 16 + matrix % 2 * 8 + low_row, pair * 2 + matrix / 2));
      MmaBf16(sums[pair * 2], a, b[0], b[1]);
      MmaBf16(sums[pair * 2 + 1], a, b[2], b[3]);
    }
  }
  __syncwarp();  // this warp's rows of q have been read: they take the result
#pragma unroll
  for (int j = 0; j < kWidth / 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      *reinterpret_cast<uint32_t*>(q + Place(lane / 4 + half * 8, j) + lane % 4 * 4) =
          PackBf16(sums[j][half * 2] * inverse[half], sums[j][half * 2 + 1] * inverse[half]);
    }
  }
  __syncwarp();
  __nv_bfloat16* out =
      static_cast<__nv_bfloat16*>(p.out) + first_row * p.out_stride + head * kWidth;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = i * 4 + lane / 8;
    if (warp * 16 + row < rows) {
      __nv_bfloat16* to = out + (warp * 16 + row) * p.out_stride + lane % 8 * 8;
      const unsigned char* from = q + Place(row, lane % 8);
      if (out_vectors) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
      } else {
        for (int c = 0; c < 8; ++c) to[c] = reinterpret_cast<const __nv_bfloat16*>(from)[c];
      }
    }
  }
}

// Value d of a head in one of q and k, of which `norm` (or null) is the HeadNorm weight and
// `scale` the head's 1 / root mean square.
template <typename In>
__device__ __forceinline__ float NormedValue(const ChunkAttentionParams& p, const In* x,
                                             const float* norm, float scale, int row, int d) {
  if (norm == nullptr) return static_cast<float>(x[d]);
  const int half = static_cast<int>(p.head_dim) / 2, other = d < half ? d + half : d - half;
  const int64_t position = static_cast<int64_t>(row) * half + d % half;
  const float own = static_cast<float>(x[d]) * scale * norm[d];
  const float partner = static_cast<float>(x[other]) * scale * norm[other];
  return own * p.cosine[position] + (d < half ? -partner : partner) * p.sine[position];
}
template <typename In>
__device__ __forceinline__ float NormScaleOf(const ChunkAttentionParams& p, const In* x) {
  if (p.q_norm == nullptr) return 1;
  float squares = 0;
  for (int d = 0; d < p.head_dim; ++d) {
    squares += static_cast<float>(x[d]) * static_cast<float>(x[d]);
  }
  return 1.0f / sqrtf(squares / static_cast<float>(p.head_dim) + p.eps);
}

// Grid: (groups, heads); block: any number of warps, each a row at a time; shared: a row of q [D]
// and of scores [group_rows] a warp, in f32.
template <typename In, typename Out>
__global__ void ChunkAttentionSimpleKernel(const ChunkAttentionParams p) {
  const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int warps = static_cast<int>(blockDim.x) / kLanes;
  const int rows = static_cast<int>(p.group_rows), head_dim = static_cast<int>(p.head_dim);
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * p.group_rows;
  const int64_t width = p.heads * p.head_dim, column = static_cast<int64_t>(blockIdx.y) * head_dim;
  const In* const qkv = static_cast<const In*>(p.qkv);
  float* q = reinterpret_cast<float*>(DynamicShared()) + warp * (head_dim + rows);
  float* scores = q + head_dim;
  const float scale = 1.0f / sqrtf(static_cast<float>(head_dim));
  for (int row = warp; row < rows; row += warps) {
    const In* from = qkv + (first_row + row) * p.qkv_stride + column;
    const float q_scale = NormScaleOf(p, from);
    __syncwarp();
    for (int d = lane; d < head_dim; d += kLanes) {
      q[d] = NormedValue(p, from, p.q_norm, q_scale, row, d) * scale;
    }
    __syncwarp();
    float top = __uint_as_float(0xff800000u);
    for (int t = lane; t < rows; t += kLanes) {
      const In* key = qkv + (first_row + t) * p.qkv_stride + width + column;
      const float k_scale = NormScaleOf(p, key);
      float score = 0;
      for (int d = 0; d < head_dim; ++d) {
        score += q[d] * NormedValue(p, key, p.k_norm, k_scale, t, d);
      }
      scores[t] = score;
      top = fmaxf(top, score);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
    }
    float sum = 0;
    for (int t = lane; t < rows; t += kLanes) {
      scores[t] = expf(scores[t] - top);
      sum += scores[t];
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    __syncwarp();
    Out* out = static_cast<Out*>(p.out) + (first_row + row) * p.out_stride + column;
    for (int d = lane; d < head_dim; d += kLanes) {
      const In* value = qkv + first_row * p.qkv_stride + 2 * width + column + d;
      float mixed = 0;
      for (int t = 0; t < rows; ++t) {
        mixed += scores[t] * static_cast<float>(value[t * p.qkv_stride]);
      }
      out[d] = static_cast<Out>(mixed / sum);
    }
  }
}

// ---- on the host -------------------------------------------------------------------------------

enum class Variant { kSimple, kFast };

// Warps of the simple kernel that fit in shared memory, at most eight; 0: not even one.
inline int SimpleWarps(const ChunkAttentionParams& p) {
  const int64_t fit = 48 * 1024 / ((p.head_dim + p.group_rows) * 4);
  return static_cast<int>(fit < 8 ? fit : 8);
}

inline bool CanCompute(Variant variant, const ChunkAttentionParams& p) {
  if (variant == Variant::kSimple) return SimpleWarps(p) > 0;
  return p.out_dtype == DType::kBf16 && p.head_dim == kWidth && p.group_rows <= 144;
}

template <typename In>
cudaError_t LaunchFor(Variant variant, const ChunkAttentionParams& p, cudaStream_t stream) {
  const auto groups = static_cast<unsigned>(p.groups), heads = static_cast<unsigned>(p.heads);
  if (variant == Variant::kSimple) {
    const int warps = SimpleWarps(p);
    return Launch(p.out_dtype == DType::kBf16 ? ChunkAttentionSimpleKernel<In, __nv_bfloat16>
                                              : ChunkAttentionSimpleKernel<In, float>,
                  dim3(groups, heads), dim3(static_cast<unsigned>(warps * kLanes)),
                  warps * (p.head_dim + p.group_rows) * 4, stream, p);
  }
  const auto aligned = [](const void* data, int64_t row_bytes) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && row_bytes % 16 == 0;
  };
  const bool norms = p.q_norm == nullptr || (aligned(p.q_norm, 0) && aligned(p.k_norm, 0) &&
                                             aligned(p.cosine, 0) && aligned(p.sine, 0));
  const bool in = aligned(p.qkv, p.qkv_stride * sizeof(In)) && norms;
  const bool out = aligned(p.out, p.out_stride * 2);
  const auto launch = [&](void (*kernel)(ChunkAttentionParams, bool, bool), int tiles) {
    return Launch(kernel, dim3(groups * heads), dim3(static_cast<unsigned>(tiles * kLanes)),
                  int64_t{3} * tiles * 16 * kRowBytes, stream, p, in, out);
  };
  // A chunk's tokens, those behind it and its CLS row: 16 + 1, 64 + 1, 64 + 31 + 1, 128 + 1 rows.
  if (p.group_rows <= 32) return launch(ChunkAttentionKernel<2, In>, 2);
  if (p.group_rows <= 80) return launch(ChunkAttentionKernel<5, In>, 5);
  if (p.group_rows <= 96) return launch(ChunkAttentionKernel<6, In>, 6);
  return launch(ChunkAttentionKernel<9, In>, 9);
}

inline cudaError_t LaunchChunkAttention(Variant variant, const ChunkAttentionParams& p,
                                        cudaStream_t stream) {
  if (p.groups == 0) return cudaSuccess;
  return p.in_dtype == DType::kBf16 ? LaunchFor<__nv_bfloat16>(variant, p, stream)
                                    : LaunchFor<float>(variant, p, stream);
}

}  // namespace mneme::chunk_attention

#endif  // MNEME_KERNELS_CUDA_CHUNK_ATTENTION_KERNELS_CUH_
