// Products of few rows with a weight of bf16 or f32 as stored, and rows of any weight. (int8:
// int8_row_product.cu, but for the longest k, which come here.)
//
// RowProduct: a warp computes 4 outputs for up to 8 rows. Its lanes walk k side by side, 4 elements
// each (128 a step), so that the weight is read once, in whole lines, for the 8 rows; the sums of
// the lanes meet at the end. The order of every sum depends on k alone.

#include <cstdint>

#include "common/status_macros.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/tensor_core.cuh"

namespace mneme {
namespace {

constexpr int kWarps = 4;
constexpr int kOutputs = 4;  // of a warp

// Four stored elements, from an address aligned to their size.
__device__ __forceinline__ void LoadFour(const int8_t* from, float (&to)[4]) {
  const char4 v = *reinterpret_cast<const char4*>(from);
  to[0] = static_cast<float>(v.x);
  to[1] = static_cast<float>(v.y);
  to[2] = static_cast<float>(v.z);
  to[3] = static_cast<float>(v.w);
}
__device__ __forceinline__ void LoadFour(const __nv_bfloat16* from, float (&to)[4]) {
  const uint2 v = *reinterpret_cast<const uint2*>(from);
  to[0] = __uint_as_float(v.x << 16);
  to[1] = __uint_as_float(v.x & 0xffff0000u);
  to[2] = __uint_as_float(v.y << 16);
  to[3] = __uint_as_float(v.y & 0xffff0000u);
}
__device__ __forceinline__ void LoadFour(const float* from, float (&to)[4]) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  to[0] = v.x;
  to[1] = v.y;
  to[2] = v.z;
  to[3] = v.w;
}

// Grid: (outputs / (kWarps * kOutputs), rows / kRows), both rounded up; kWarps * 32 threads.
// `vectors`: rows of a are aligned to 16 bytes.
template <typename W, int kRows>
__global__ void __launch_bounds__(kWarps * 32)
    RowProductKernel(RowProductParams p, int64_t first_row, bool vectors) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t output = (static_cast<int64_t>(blockIdx.x) * kWarps + warp) * kOutputs;
  const int64_t row = first_row + static_cast<int64_t>(blockIdx.y) * kRows;
  if (output >= p.n) return;
  const W* weight = static_cast<const W*>(p.weight);
  float sums[kOutputs][kRows] = {};
  for (int64_t k = lane * 4; k < p.k; k += 128) {
    float w[kOutputs][4];
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      // The last output again where there are fewer: its sums are not written.
      const int64_t at = output + o < p.n ? output + o : p.n - 1;
      LoadFour(weight + at * p.weight_stride + k, w[o]);
    }
    const bool whole = k + 4 <= p.k;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float a[4] = {};
      if (row + r < p.rows) {
        const float* from = p.a + (row + r) * p.a_stride + k;
        if (vectors && whole) {
          LoadFour(from, a);
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (k + i < p.k) a[i] = from[i];
          }
        }
      }
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[o][r] = fmaf(w[o][i], a[i], sums[o][r]);
      }
    }
  }
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    const float scale = p.scale == nullptr || output + o >= p.n ? 1.0f : p.scale[output + o];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float sum = WarpSum(sums[o][r]);
      if (lane != (o * kRows + r) % 32 || output + o >= p.n || row + r >= p.rows) continue;
      float* to = p.out + (row + r) * p.out_stride + output + o;
      const float v = __fmul_rn(sum, scale);
      *to = p.accumulate ? __fadd_rn(*to, v) : v;
    }
  }
}

template <typename W>
cudaError_t LaunchRows(const RowProductParams& p, cudaStream_t stream) {
  const bool vectors = reinterpret_cast<uintptr_t>(p.a) % 16 == 0 && p.a_stride % 4 == 0;
  const unsigned blocks = static_cast<unsigned>(CeilDiv(p.n, kWarps * kOutputs));
  constexpr int64_t kRowsMax = int64_t{65535} * 8;
  cudaError_t error = cudaSuccess;
  for (int64_t r = 0; r < p.rows && error == cudaSuccess; r += kRowsMax) {
    const int64_t rows = p.rows - r < kRowsMax ? p.rows - r : kRowsMax;
    const auto kernel = rows == 1   ? RowProductKernel<W, 1>
                        : rows <= 4 ? RowProductKernel<W, 4>
                                    : RowProductKernel<W, 8>;
    const dim3 grid(blocks, static_cast<unsigned>(CeilDiv(rows, 8)));
    error = Launch(kernel, grid, kWarps * 32, 0, stream, p, r, vectors);
  }
  return error;
}

// Grid: rows, rounded down to what a grid may have; a block strides over rows.
template <typename W>
__global__ void GatherKernel(GatherParams p) {
  WaitForKernelBefore();
  LetNextKernelStart();
  const W* weight = static_cast<const W*>(p.weight);
  for (int64_t r = blockIdx.x; r < p.rows; r += gridDim.x) {
    const int64_t id = p.ids[r];
    const bool known = id >= 0 && id < p.n;
    const float scale = p.scale == nullptr || !known ? 1.0f : p.scale[id];
    for (int64_t i = threadIdx.x; i < p.k; i += blockDim.x) {
      float v = 0;
      if (known) {
        if constexpr (sizeof(W) == 1) {
          v = static_cast<float>(weight[id * p.weight_stride + i]) * scale;
        } else {
          v = ToFloat(weight[id * p.weight_stride + i]);
        }
      }
      p.out[r * p.out_stride + i] = v;
    }
  }
}

// Grid: rows / 4, rounded up; 128 threads, a warp a row. k a multiple of 4, all rows aligned to
// four values.
template <typename W>
__global__ void __launch_bounds__(128) GatherFourKernel(GatherParams p) {
  WaitForKernelBefore();
  LetNextKernelStart();
  const int64_t r = static_cast<int64_t>(blockIdx.x) * 4 + threadIdx.x / 32;
  if (r >= p.rows) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t id = p.ids[r];
  const bool known = id >= 0 && id < p.n;
  const float scale = p.scale == nullptr || !known ? 1.0f : p.scale[id];
  const W* const from = static_cast<const W*>(p.weight) + (known ? id : 0) * p.weight_stride;
  __nv_bfloat16* const scaled = static_cast<__nv_bfloat16*>(p.next.scaled) + r * p.k;
  float squares = 0;
  constexpr int kUnderWay = 4;
  for (int64_t first = lane * 4; first < p.k; first += 128 * kUnderWay) {
    float stored[kUnderWay][4] = {};
#pragma unroll
    for (int j = 0; j < kUnderWay; ++j) {
      if (known && first + j * 128 < p.k) LoadFour(from + first + j * 128, stored[j]);
    }
#pragma unroll
    for (int j = 0; j < kUnderWay; ++j) {
      const int64_t i = first + j * 128;
      if (i >= p.k) break;
      const float4 v = {stored[j][0] * scale, stored[j][1] * scale, stored[j][2] * scale,
                        stored[j][3] * scale};
      if (p.out != nullptr) StoreFour(p.out + r * p.out_stride + i, v);
      if (p.next.weight == nullptr) continue;
      const float4 w = mneme::LoadFour(p.next.weight + i);
      StoreFour(scaled + i, {v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w});
      squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
  }
  if (p.next.weight == nullptr) return;
  squares = WarpSum(squares);
  const int64_t parts = (p.k + kSquareColumns - 1) / kSquareColumns;
  for (int64_t i = lane; i < parts; i += 32) {
    p.next.squares[r * parts + i] = i == 0 ? squares : 0.0f;
  }
}

template <typename W>
absl::Status LaunchGatherOf(const GatherParams& p, CudaStream& stream) {
  const auto aligned = [](const void* data, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(data) % bytes == 0;
  };
  const auto launch = [&](void (*kernel)(GatherParams), int64_t blocks) {
    return LaunchStatus(LaunchOverlapping(kernel, static_cast<unsigned>(blocks), 128, 0,
                                          stream.get(), stream.kernels_overlap(), p),
                        "Embed");
  };
  if (p.k % 4 == 0 && p.out_stride % 4 == 0 && aligned(p.out, 16) && aligned(p.next.weight, 16) &&
      aligned(p.next.scaled, 8)) {
    return launch(GatherFourKernel<W>, CeilDiv(p.rows, 4));
  }
  if (p.out == nullptr) {
    GatherParams whole = p;
    ASSIGN_OR_RETURN(whole.out, stream.ScratchOf<float>(p.rows * p.k));
    whole.out_stride = p.k;
    return LaunchGatherOf<W>(whole, stream);
  }
  RETURN_IF_ERROR(launch(GatherKernel<W>, p.rows < (1 << 20) ? p.rows : (1 << 20)));
  if (p.next.weight == nullptr) return absl::OkStatus();
  return LaunchNextNorm(p.out, p.out_stride, p.rows, p.k, p.next, stream);
}

}  // namespace

absl::Status LaunchRowProduct(const RowProductParams& p, CudaStream& stream) {
  if (p.rows == 0) return absl::OkStatus();
  stream.NoteWork();
  const auto launch = p.weight_dtype == DType::kI8     ? LaunchRows<int8_t>
                      : p.weight_dtype == DType::kBf16 ? LaunchRows<__nv_bfloat16>
                                                       : LaunchRows<float>;
  return LaunchStatus(launch(p, stream.get()), "Matmul of few rows");
}

absl::Status LaunchGather(const GatherParams& p, CudaStream& stream) {
  if (p.rows == 0) return absl::OkStatus();
  stream.NoteWork();
  const auto launch = p.weight_dtype == DType::kI8     ? LaunchGatherOf<int8_t>
                      : p.weight_dtype == DType::kBf16 ? LaunchGatherOf<__nv_bfloat16>
                                                       : LaunchGatherOf<float>;
  return launch(p, stream);
}

}  // namespace mneme
