// RMSNorm in its forms: of rows, behind a gate, per head with rotary positions, of a chunk's rows
// before its CLS row, and of keys on their way into pages.
//
// A warp does one row (or head). Rows of up to 2048 values whose addresses allow it are read once,
// 16 bytes at a time, and kept in registers between the sum of squares and the scaling; others are
// read twice. The order of the sum depends on the width and on which of the two it is, and that on
// the width, the pointers and the strides alone, not on how many rows there are.

#include <cstdint>

#include "common/status_macros.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/tensor_core.cuh"

namespace mneme {
namespace {

constexpr int kRowsPerBlock = 4;
constexpr int kThreads = kRowsPerBlock * 32;

unsigned Blocks(int64_t rows) { return static_cast<unsigned>(CeilDiv(rows, kRowsPerBlock)); }

// The row of this warp.
__device__ __forceinline__ int64_t WarpRow() {
  return static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / 32;
}

// What is normed: `in` itself, or in * silu(gate).
struct PlainRow {
  const float* in;
  __device__ __forceinline__ float At(int64_t i) const { return in[i]; }
  __device__ __forceinline__ float4 Four(int64_t i) const {
    return *reinterpret_cast<const float4*>(in + i);
  }
};
template <typename In>
struct GatedRow {
  const In* in;
  const In* gate;
  __device__ __forceinline__ float At(int64_t i) const {
    return ToFloat(in[i]) * Silu(ToFloat(gate[i]));
  }
  __device__ __forceinline__ float4 Four(int64_t i) const {
    const float4 v = LoadFour(in + i), z = LoadFour(gate + i);
    return {v.x * Silu(z.x), v.y * Silu(z.y), v.z * Silu(z.z), v.w * Silu(z.w)};
  }
};

__device__ __forceinline__ float NormScale(float squares, int64_t width, float eps) {
  return 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(width) + eps);
}

// kVectors: float4 values that a lane keeps, for widths up to 128 * kVectors; 0: any width and any
// alignment.
template <int kVectors, typename Row, typename Out>
__device__ __forceinline__ void NormRow(const Row& row, const float* weight, float eps,
                                        int64_t width, Out* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float squares = 0;
  if constexpr (kVectors == 0) {
    for (int64_t i = lane; i < width; i += 32) {
      const float v = row.At(i);
      squares = fmaf(v, v, squares);
    }
    const float scale = NormScale(squares, width, eps);
    for (int64_t i = lane; i < width; i += 32) {
      out[i] = FromFloat<Out>(row.At(i) * scale * weight[i]);
    }
  } else {
    float4 v[kVectors];
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const int i = (j * 32 + lane) * 4;
      v[j] = i < width ? row.Four(i) : float4{0, 0, 0, 0};
    }
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      squares = fmaf(v[j].x, v[j].x, squares);
      squares = fmaf(v[j].y, v[j].y, squares);
      squares = fmaf(v[j].z, v[j].z, squares);
      squares = fmaf(v[j].w, v[j].w, squares);
    }
    const float scale = NormScale(squares, width, eps);
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const int i = (j * 32 + lane) * 4;
      if (i >= width) continue;
      const float4 w = *reinterpret_cast<const float4*>(weight + i);
      StoreFour(out + i, {v[j].x * scale * w.x, v[j].y * scale * w.y, v[j].z * scale * w.z,
                          v[j].w * scale * w.w});
    }
  }
}

bool Aligned(const void* pointer, int64_t stride, int64_t element_bytes, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0 && stride * element_bytes % bytes == 0;
}

// Calls fn with the kVectors that fits: std::integral_constant-like.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};
template <typename Fn>
auto WithVectors(int64_t width, bool aligned, Fn fn) {
  if (!aligned || width % 4 != 0 || width > 2048) return fn(Constant<0>());
  if (width <= 128) return fn(Constant<1>());
  if (width <= 512) return fn(Constant<4>());
  if (width <= 1024) return fn(Constant<8>());
  return fn(Constant<16>());
}

// Grid: rows / kRowsPerBlock.
template <int kVectors, typename Out>
__global__ void __launch_bounds__(kThreads) RmsNormKernel(RmsNormParams p) {
  WaitForKernelBefore();
  LetNextKernelStart();
  const int64_t r = WarpRow();
  if (r >= p.rows) return;
  NormRow<kVectors>(PlainRow{p.in + r * p.in_stride}, p.weight, p.eps, p.width,
                    static_cast<Out*>(p.out) + r * p.out_stride);
}

template <int kVectors, typename In, typename Out>
__global__ void __launch_bounds__(kThreads) GateNormKernel(GateNormParams p) {
  const int64_t r = WarpRow();
  if (r >= p.rows) return;
  NormRow<kVectors>(GatedRow<In>{static_cast<const In*>(p.y) + r * p.y_stride,
                                 static_cast<const In*>(p.z) + r * p.z_stride},
                    p.weight, p.eps, p.width, static_cast<Out*>(p.out) + r * p.out_stride);
}

// What NextNorm wants of row r, which this warp has written to `row`; its lanes read what they
// wrote, four values each, or one where kVectors is 0.
template <int kVectors>
__device__ __forceinline__ void PrepareNext(const NextNorm& next, const float* row, int64_t r,
                                            int64_t width) {
  constexpr int kValues = kVectors == 0 ? 1 : 4;
  __syncwarp();
  __nv_bfloat16* const scaled = static_cast<__nv_bfloat16*>(next.scaled) + r * width;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float squares = 0;
  for (int64_t i = lane * kValues; i < width; i += 32 * kValues) {
    if constexpr (kVectors == 0) {
      squares = fmaf(row[i], row[i], squares);
      scaled[i] = FromFloat<__nv_bfloat16>(row[i] * next.weight[i]);
    } else {
      const float4 v = LoadFour(row + i), w = LoadFour(next.weight + i);
      squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
      StoreFour(scaled + i, {v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w});
    }
  }
  squares = WarpSum(squares);
  const int64_t parts = (width + kSquareColumns - 1) / kSquareColumns;
  for (int64_t i = lane; i < parts; i += 32) {
    next.squares[r * parts + i] = i == 0 ? squares : 0.0f;
  }
}

__host__ __device__ __forceinline__ int64_t GroupRows(const ChunkInputParams& p) {
  return p.chunk_tokens + p.halo_tokens + 1;
}

// Output row r of ChunkInput: the row that it is the norm of, or CLS, or zeros.
struct ChunkInputRow {
  int64_t from;
  bool is_cls, is_zero;
};
__device__ __forceinline__ ChunkInputRow ChunkInputRowAt(const ChunkInputParams& p, int64_t r) {
  const int64_t chunk = r / GroupRows(p), t = r % GroupRows(p);
  const int64_t from = chunk * p.chunk_tokens + t;
  const bool is_cls = t == p.chunk_tokens + p.halo_tokens;
  const bool in_halo = !is_cls && t >= p.chunk_tokens;
  return {from, is_cls, in_halo && from >= __ldg(p.sequence_ends + chunk)};
}

// Grid: output rows / kRowsPerBlock.
template <int kVectors>
__global__ void __launch_bounds__(kThreads) ChunkInputKernel(ChunkInputParams p) {
  const int64_t r = WarpRow();
  if (r >= p.chunks * GroupRows(p)) return;
  const ChunkInputRow row = ChunkInputRowAt(p, r);
  float* out = p.out + r * p.out_stride;
  if (row.is_cls || row.is_zero) {
    for (int64_t i = threadIdx.x % 32; i < p.width; i += 32) out[i] = row.is_cls ? p.cls[i] : 0.0f;
  } else {
    NormRow<kVectors>(PlainRow{p.hidden + row.from * p.hidden_stride}, p.weight, p.eps, p.width,
                      out);
  }
  if (p.next.weight != nullptr) PrepareNext<kVectors>(p.next, out, r, p.width);
}

// The same from what NextNorm left, the norm being a factor of the row; kValues (4 or 1) values a
// lane at a time.
template <int kValues>
__global__ void __launch_bounds__(kThreads) ScaledChunkInputKernel(ChunkInputParams p) {
  const int64_t r = WarpRow();
  if (r >= p.chunks * GroupRows(p)) return;
  const auto [from_row, is_cls, is_zero] = ChunkInputRowAt(p, r);
  const int64_t parts = (p.width + kSquareColumns - 1) / kSquareColumns;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float factor = 1;
  if (!is_cls && !is_zero) {
    float squares = 0;
    for (int64_t i = 0; i < parts; ++i) squares += __ldg(p.squares + from_row * parts + i);
    factor = 1.0f / sqrtf(squares / static_cast<float>(p.width) + p.eps);
  }
  const auto* const from = static_cast<const __nv_bfloat16*>(p.scaled) + from_row * p.width;
  __nv_bfloat16* const scaled = static_cast<__nv_bfloat16*>(p.next.scaled) + r * p.width;
  float* const out = p.out == nullptr ? nullptr : p.out + r * p.out_stride;
  float squares = 0;
#pragma unroll 3
  for (int64_t i = lane * kValues; i < p.width; i += 32 * kValues) {
    if constexpr (kValues == 1) {
      const float v = is_cls ? p.cls[i] : is_zero ? 0.0f : ToFloat(from[i]) * factor;
      if (out != nullptr) out[i] = v;
      scaled[i] = FromFloat<__nv_bfloat16>(v * p.next.weight[i]);
      squares = fmaf(v, v, squares);
    } else {
      float4 v = {0, 0, 0, 0};
      if (is_cls) {
        v = __ldg(reinterpret_cast<const float4*>(p.cls + i));
      } else if (!is_zero) {
        const uint2 bits = __ldg(reinterpret_cast<const uint2*>(from + i));
        v = {__uint_as_float(bits.x << 16) * factor, __uint_as_float(bits.x & 0xffff0000u) * factor,
             __uint_as_float(bits.y << 16) * factor,
             __uint_as_float(bits.y & 0xffff0000u) * factor};
      }
      const float4 w = __ldg(reinterpret_cast<const float4*>(p.next.weight + i));
      if (out != nullptr) StoreFour(out + i, v);
      StoreFour(scaled + i, {v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w});
      squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
  }
  squares = WarpSum(squares);
  for (int64_t i = lane; i < parts; i += 32) {
    p.next.squares[r * parts + i] = i == 0 ? squares : 0.0f;
  }
}

// Grid: page rows (chunks * 2 * S) / kRowsPerBlock: the keys of a chunk, then its values.
template <typename Out>
__global__ void __launch_bounds__(kThreads) WritePagesKernel(WritePagesParams p) {
  const int64_t r = WarpRow();
  if (r >= p.chunks * 2 * p.chunk_tokens) return;
  const int64_t chunk = r / (2 * p.chunk_tokens), at = r % (2 * p.chunk_tokens);
  const int64_t first = chunk * p.group_rows;
  Out* out = static_cast<Out*>(p.pages) + r * p.head_dim;
  if (at < p.chunk_tokens) {
    NormRow<0>(PlainRow{p.k + (first + at) * p.stride}, p.k_norm_weight, p.eps, p.head_dim, out);
    return;
  }
  const float* v = p.v + (first + at - p.chunk_tokens) * p.stride;
  for (int64_t i = threadIdx.x % 32; i < p.head_dim; i += 32) out[i] = FromFloat<Out>(v[i]);
}

// The same where a row is `lanes` (a power of two up to 32) lanes of four aligned values. Grid:
// tokens (chunks * S) times lanes, in blocks of kThreads: a lane does its four of the key and of
// the value.
template <typename Out>
__global__ void __launch_bounds__(kThreads) WritePagesFourKernel(WritePagesParams p, int lanes) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t token = index / lanes;
  const int i = static_cast<int>(index % lanes) * 4;
  const bool valid = token < p.chunks * p.chunk_tokens;
  const int64_t chunk = token / p.chunk_tokens, t = token % p.chunk_tokens;
  const int64_t from = (chunk * p.group_rows + t) * p.stride + i;
  float4 k = {0, 0, 0, 0}, v = {0, 0, 0, 0};
  if (valid) {
    k = LoadFour(p.k + from);
    v = LoadFour(p.v + from);
  }
  const float4 w = LoadFour(p.k_norm_weight + i);
  float squares = k.x * k.x + k.y * k.y + k.z * k.z + k.w * k.w;
  for (int step = 1; step < lanes; step *= 2) {
    squares += __shfl_xor_sync(kFullWarp, squares, step);
  }
  if (!valid) return;
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(p.head_dim) + p.eps);
  Out* const out = static_cast<Out*>(p.pages) + (chunk * 2 * p.chunk_tokens + t) * p.head_dim + i;
  StoreFour(out, {k.x * scale * w.x, k.y * scale * w.y, k.z * scale * w.z, k.w * scale * w.w});
  StoreFour(out + p.chunk_tokens * p.head_dim, v);
}

// Grid: (row, head) pairs / kRowsPerBlock. A lane does the pairs (i, half + i) that a rotation
// mixes, so what it writes in place is read again by no other lane.
__global__ void __launch_bounds__(kThreads) HeadNormKernel(HeadNormParams p) {
  WaitForKernelBefore();
  LetNextKernelStart();
  const int64_t index = WarpRow();
  if (index >= p.rows * p.heads) return;
  const int64_t r = index / p.heads, h = index % p.heads;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t half = p.head_dim / 2;
  float* x = p.data + r * p.stride + h * p.head_dim;
  float squares = 0;
  for (int64_t i = lane; i < half; i += 32) {
    squares = fmaf(x[i], x[i], squares);
    squares = fmaf(x[half + i], x[half + i], squares);
  }
  const bool odd = p.head_dim % 2 != 0 && lane == 0;  // the value without a partner
  if (odd) squares = fmaf(x[p.head_dim - 1], x[p.head_dim - 1], squares);
  const float scale = NormScale(squares, p.head_dim, p.eps);
  const int64_t position = p.cosine == nullptr ? 0 : r % p.period * half;
  for (int64_t i = lane; i < half; i += 32) {
    const float a = x[i] * scale * p.weight[i];
    const float b = x[half + i] * scale * p.weight[half + i];
    if (p.cosine == nullptr) {
      x[i] = a;
      x[half + i] = b;
    } else {
      const float c = p.cosine[position + i], s = p.sine[position + i];
      x[i] = a * c - b * s;
      x[half + i] = b * c + a * s;
    }
  }
  if (odd) x[p.head_dim - 1] *= scale * p.weight[p.head_dim - 1];
}

}  // namespace

namespace {

absl::Status ScaledChunkInput(const ChunkInputParams& p, CudaStream& stream) {
  const bool aligned = p.width % 4 == 0 && Aligned(p.scaled, 0, 2, 8) &&
                       Aligned(p.next.scaled, 0, 2, 8) && Aligned(p.next.weight, 0, 4, 16) &&
                       Aligned(p.cls, 0, 4, 16) && Aligned(p.out, p.out_stride, 4, 16);
  return LaunchStatus(Launch(aligned ? ScaledChunkInputKernel<4> : ScaledChunkInputKernel<1>,
                             Blocks(p.chunks * GroupRows(p)), kThreads, 0, stream.get(), p),
                      "ChunkInput");
}

}  // namespace

absl::Status CudaRmsNorm(const RmsNormParams& p, CudaStream& stream) {
  if (p.rows == 0) return absl::OkStatus();
  const int out_bytes = DTypeBytes(p.out_dtype);
  const bool aligned = Aligned(p.in, p.in_stride, 4, 16) && Aligned(p.weight, 0, 4, 16) &&
                       Aligned(p.out, p.out_stride, out_bytes, 4 * out_bytes);
  return WithVectors(p.width, aligned, [&](auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    const auto kernel = p.out_dtype == DType::kBf16 ? RmsNormKernel<kVectors, __nv_bfloat16>
                                                    : RmsNormKernel<kVectors, float>;
    return LaunchStatus(LaunchOverlapping(kernel, Blocks(p.rows), kThreads, 0, stream.get(),
                                          stream.kernels_overlap(), p),
                        "RmsNorm");
  });
}

absl::Status CudaGateNorm(const GateNormParams& p, CudaStream& stream) {
  if (p.rows == 0) return absl::OkStatus();
  const int out_bytes = DTypeBytes(p.out_dtype);
  const int in_bytes = DTypeBytes(p.in_dtype);
  const bool aligned = Aligned(p.y, p.y_stride, in_bytes, 4 * in_bytes) &&
                       Aligned(p.z, p.z_stride, in_bytes, 4 * in_bytes) &&
                       Aligned(p.weight, 0, 4, 16) &&
                       Aligned(p.out, p.out_stride, out_bytes, 4 * out_bytes);
  return WithVectors(p.width, aligned, [&](auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    const auto kernel =
        p.in_dtype == DType::kBf16
            ? (p.out_dtype == DType::kBf16 ? GateNormKernel<kVectors, __nv_bfloat16, __nv_bfloat16>
                                           : GateNormKernel<kVectors, __nv_bfloat16, float>)
            : (p.out_dtype == DType::kBf16 ? GateNormKernel<kVectors, float, __nv_bfloat16>
                                           : GateNormKernel<kVectors, float, float>);
    return LaunchStatus(Launch(kernel, Blocks(p.rows), kThreads, 0, stream.get(), p), "GateNorm");
  });
}

absl::Status CudaHeadNorm(const HeadNormParams& p, CudaStream& stream) {
  if (p.rows == 0) return absl::OkStatus();
  return LaunchStatus(LaunchOverlapping(HeadNormKernel, Blocks(p.rows * p.heads), kThreads, 0,
                                        stream.get(), stream.kernels_overlap(), p),
                      "HeadNorm");
}

absl::Status CudaChunkInput(const ChunkInputParams& p, CudaStream& stream) {
  if (p.chunks == 0) return absl::OkStatus();
  if (p.scaled != nullptr) return ScaledChunkInput(p, stream);
  if (p.out == nullptr) {
    ChunkInputParams whole = p;
    ASSIGN_OR_RETURN(whole.out, stream.ScratchOf<float>(p.chunks * GroupRows(p) * p.width));
    whole.out_stride = p.width;
    return CudaChunkInput(whole, stream);
  }
  const bool aligned = Aligned(p.hidden, p.hidden_stride, 4, 16) && Aligned(p.weight, 0, 4, 16) &&
                       Aligned(p.out, p.out_stride, 4, 16) && Aligned(p.next.weight, 0, 4, 16) &&
                       Aligned(p.next.scaled, p.width, 2, 8);
  return WithVectors(p.width, aligned, [&](auto vectors) {
    return LaunchStatus(Launch(ChunkInputKernel<decltype(vectors)::value>,
                               Blocks(p.chunks * GroupRows(p)), kThreads, 0, stream.get(), p),
                        "ChunkInput");
  });
}

absl::Status CudaWritePages(const WritePagesParams& p, CudaStream& stream) {
  if (p.chunks == 0) return absl::OkStatus();
  const int64_t lanes = p.head_dim / 4;
  if (p.head_dim % 4 == 0 && lanes <= 32 && (lanes & (lanes - 1)) == 0 &&
      Aligned(p.k, p.stride, 4, 16) && Aligned(p.v, p.stride, 4, 16) &&
      Aligned(p.k_norm_weight, 0, 4, 16) && Aligned(p.pages, 0, 1, 4 * DTypeBytes(p.page_dtype))) {
    const auto four = p.page_dtype == DType::kBf16 ? WritePagesFourKernel<__nv_bfloat16>
                                                   : WritePagesFourKernel<float>;
    return LaunchStatus(
        Launch(four, static_cast<unsigned>(CeilDiv(p.chunks * p.chunk_tokens * lanes, kThreads)),
               kThreads, 0, stream.get(), p, static_cast<int>(lanes)),
        "WritePages");
  }
  const auto kernel =
      p.page_dtype == DType::kBf16 ? WritePagesKernel<__nv_bfloat16> : WritePagesKernel<float>;
  return LaunchStatus(
      Launch(kernel, Blocks(p.chunks * 2 * p.chunk_tokens), kThreads, 0, stream.get(), p),
      "WritePages");
}

}  // namespace mneme
