// Products of many rows with a weight.
//
// bf16 (but for Hopper: wgmma_gemm.cu): a block of 256 threads computes 128 rows x 128 outputs;
// operands stream through four stages of shared memory (cp.async, 32 columns a stage), fragments
// come by ldmatrix from swizzled rows, and eight warps (2 x 4) each hold 64 x 32 sums in registers.
// f32: a block of 256 threads computes 64 x 64 outputs, each thread 4 x 4, with fused
// multiply-adds. Both walk k in order, so an output depends on its row and its weight alone.

#include "kernels/cuda/gemm.h"

#include <cstdint>

#include "common/status_macros.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/gemm_store.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace mneme {
namespace {

// ---- bf16 --------------------------------------------------------------------------------------

constexpr int kTileRows = 128, kTileOutputs = 128, kTileK = 32;
constexpr int kStages = 4;
constexpr int kGemmThreads = 256;
constexpr int kOperandElements = kTileRows * kTileK;  // of one operand in one stage
constexpr int kStageElements = 2 * kOperandElements;
static_assert(kTileRows == kTileOutputs, "both operands are loaded by one function");

// Element offset of 16-byte vector `vector` (0 .. 3) of row `row`: rows of 64 bytes, vectors
// swapped so that eight rows at one column lie in eight different groups of banks.
__device__ __forceinline__ int Swizzled(int row, int vector) {
  return row * kTileK + ((vector ^ ((row >> 1) & 3)) << 3);
}

// Rows [first, first + 128) and columns [k, k + 32) of a matrix [rows, cols] into one stage; zeros
// outside the matrix, whose columns are a multiple of 8.
__device__ __forceinline__ void LoadOperand(__nv_bfloat16* to, const __nv_bfloat16* from,
                                            int64_t stride, int64_t first, int64_t rows, int64_t k,
                                            int64_t cols) {
#pragma unroll
  for (int i = 0; i < kTileRows * 4 / kGemmThreads; ++i) {
    const int index = static_cast<int>(threadIdx.x) + i * kGemmThreads;
    const int row = index / 4, vector = index % 4;
    const int64_t column = k + vector * 8;
    const bool inside = first + row < rows && column < cols;
    const __nv_bfloat16* source = inside ? from + (first + row) * stride + column : from;
    CopyAsync16(to + Swizzled(row, vector), source, inside);
  }
}

__device__ __forceinline__ void Store(const float (&sums)[4][4], const float2 (&scales)[4],
                                      const float2& factors, const GemmStore& store,
                                      unsigned char* shared, int row, int output) {
  StoreBefore<4> before;
  switch (store.kind) {
    case GemmStore::Kind::kF32:
      return StoreF32<false, 0>(sums, scales, factors, before, store, row, output);
    case GemmStore::Kind::kAdd:
      before.Load(store, row, output);
      return StoreF32<true, 0>(sums, scales, factors, before, store, row, output);
    case GemmStore::Kind::kBf16:
      return StoreBf16<false>(sums, scales, factors, store, shared, row, output);
    case GemmStore::Kind::kSwiGlu:
      return StoreBf16<true>(sums, scales, factors, store, shared, row, output);
    case GemmStore::Kind::kAddScaled:
      return;  // LaunchGemm sends it another way
  }
}

// Grid: (outputs / 128, rows / 128), both rounded up. Shared: kStages * kStageElements bf16.
// `vectors`: store.aligned().
__global__ void __launch_bounds__(kGemmThreads)
    GemmBf16Kernel(const __nv_bfloat16* __restrict__ a, int64_t a_stride, int64_t rows,
                   const __nv_bfloat16* __restrict__ weight, int64_t weight_stride, int64_t n,
                   int64_t k, GemmStore store, bool vectors) {
  __nv_bfloat16* stages = reinterpret_cast<__nv_bfloat16*>(DynamicShared());
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kTileRows;
  const int64_t first_output = static_cast<int64_t>(blockIdx.x) * kTileOutputs;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = warp / 4 * 64, warp_output = warp % 4 * 32;
  const int steps = static_cast<int>((k + kTileK - 1) / kTileK);

  const auto load = [&](int step) {
    __nv_bfloat16* stage = stages + step % kStages * kStageElements;
    const int64_t column = static_cast<int64_t>(step) * kTileK;
    LoadOperand(stage, a, a_stride, first_row, rows, column, k);
    LoadOperand(stage + kOperandElements, weight, weight_stride, first_output, n, column, k);
  };
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) load(step);
    CopyAsyncCommit();
  }

  float sums[4][4][4] = {};  // [16 rows][8 outputs][fragment]
  for (int step = 0; step < steps; ++step) {
    CopyAsyncWait<kStages - 2>();
    // Everybody's copies of this step have come, and everybody is done with the step before, whose
    // stage is filled anew below.
    __syncthreads();
    if (step + kStages - 1 < steps) load(step + kStages - 1);
    CopyAsyncCommit();
    const __nv_bfloat16* as = stages + step % kStages * kStageElements;
    const __nv_bfloat16* ws = as + kOperandElements;
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // 16 columns each
      uint32_t af[4][4], wf[2][4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        // Matrices: rows 0-7, rows 8-15, then both of the next 8 columns.
        const int row = warp_row + m * 16 + lane % 16;
        LoadMatrix4(af[m], as + Swizzled(row, half * 2 + lane / 16));
      }
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        // Matrices: outputs 0-7 at columns 0-7 and 8-15, then outputs 8-15 likewise.
        const int row = warp_output + pair * 16 + lane / 16 * 8 + lane % 8;
        LoadMatrix4(wf[pair], ws + Swizzled(row, half * 2 + lane / 8 % 2));
      }
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int o = 0; o < 4; ++o) {
          MmaBf16(sums[m][o], af[m], wf[o / 2][o % 2 * 2], wf[o / 2][o % 2 * 2 + 1]);
        }
      }
    }
  }

  CopyAsyncWait<0>();
  __syncthreads();  // the stages have been read: results pass through them
  const int row = static_cast<int>(first_row) + warp_row;
  const int output = static_cast<int>(first_output) + warp_output;
  StoreScales<32> scales;
  scales.Load(store, output);
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    const float2 factors = RowFactors(store, row + m * 16);
    if (vectors) {
      Store(sums[m], scales.values, factors, store, DynamicShared() + warp * kStoreBytes,
            row + m * 16, output);
    } else {
      StoreSumsByElement<32>(sums[m], factors, store, row + m * 16, output);
    }
  }
}

// ---- f32 ---------------------------------------------------------------------------------------

constexpr int kF32Tile = 64, kF32TileK = 16;

// Grid: (outputs / 64, rows / 64), both rounded up; 256 threads.
__global__ void __launch_bounds__(256)
    GemmF32Kernel(const float* __restrict__ a, int64_t a_stride, int64_t rows,
                  const float* __restrict__ weight, int64_t weight_stride, int64_t n, int64_t k,
                  const float* __restrict__ scale, float* __restrict__ out, bool accumulate) {
  // Columns first, padded: threads of a warp write along k and read along rows.
  __shared__ float as[kF32TileK][kF32Tile + 4], ws[kF32TileK][kF32Tile + 4];
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kF32Tile;
  const int64_t first_output = static_cast<int64_t>(blockIdx.x) * kF32Tile;
  const int tid = static_cast<int>(threadIdx.x), tx = tid % 16, ty = tid / 16;
  float sums[4][4] = {};
  for (int64_t k0 = 0; k0 < k; k0 += kF32TileK) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = ty + i * 16;
      const int64_t column = k0 + tx;
      const bool in_k = column < k;
      as[tx][row] =
          in_k && first_row + row < rows ? a[(first_row + row) * a_stride + column] : 0.0f;
      ws[tx][row] = in_k && first_output + row < n
                        ? weight[(first_output + row) * weight_stride + column]
                        : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int c = 0; c < kF32TileK; ++c) {
      float av[4], wv[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        av[i] = as[c][ty * 4 + i];
        wv[i] = ws[c][tx * 4 + i];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(av[i], wv[j], sums[i][j]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = first_row + ty * 4 + i;
    if (row >= rows) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t output = first_output + tx * 4 + j;
      if (output >= n) continue;
      const float v = scale == nullptr ? sums[i][j] : sums[i][j] * scale[output];
      float* to = out + row * n + output;
      *to = accumulate ? *to + v : v;
    }
  }
}

// ---- rows --------------------------------------------------------------------------------------

// Grid: rows / 128, rounded up; 128 threads, each a row.
__global__ void __launch_bounds__(128) RowFactorsKernel(RowFactorsParams p) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (r >= p.rows) return;
  const float* const squares = p.squares + r * p.stride;
  float sum = 0;
#pragma unroll 4
  for (int64_t i = 0; i < p.parts; ++i) sum += squares[i];
  p.factors[r] = 1.0f / sqrtf(sum / static_cast<float>(p.norm_width) + p.eps);
}

// Grid: rows / 4, rounded up; 128 threads, a warp a row.
__global__ void __launch_bounds__(128) NextNormKernel(const float* __restrict__ in, int64_t stride,
                                                      int64_t rows, int64_t width, NextNorm next) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * 4 + threadIdx.x / 32;
  if (r >= rows) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float* const row = in + r * stride;
  __nv_bfloat16* const scaled = static_cast<__nv_bfloat16*>(next.scaled) + r * width;
  const int64_t parts = (width + kSquareColumns - 1) / kSquareColumns;
  for (int64_t part = 0; part < parts; ++part) {
    float squares = 0;
    for (int i = lane; i < kSquareColumns; i += 32) {
      const int64_t column = part * kSquareColumns + i;
      if (column >= width) break;
      const float v = row[column];
      squares = fmaf(v, v, squares);
      scaled[column] = FromFloat<__nv_bfloat16>(v * next.weight[column]);
    }
    squares = WarpSum(squares);
    if (lane == 0) next.squares[r * parts + part] = squares;
  }
}

// Grid: rows, rounded down to what a grid may have; a block strides over rows.
__global__ void __launch_bounds__(128)
    UnscaleKernel(const __nv_bfloat16* __restrict__ scaled, const float* __restrict__ unscale,
                  int64_t rows, int64_t width, float* __restrict__ out) {
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
      out[r * width + i] = ToFloat(scaled[r * width + i]) * unscale[i];
    }
  }
}

// Grid: rows, rounded down to what a grid may have; a block strides over rows.
template <typename T>
__global__ void CopyRowsKernel(const T* __restrict__ from, int64_t from_stride, int64_t width,
                               T* __restrict__ to, int64_t to_stride, int64_t rows) {
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    for (int64_t i = threadIdx.x; i < to_stride; i += blockDim.x) {
      to[r * to_stride + i] = i < width ? from[r * from_stride + i] : T{0};
    }
  }
}

template <typename T>
cudaError_t LaunchCopy(const void* from, int64_t from_stride, int64_t width, void* to,
                       int64_t to_stride, int64_t rows, cudaStream_t stream) {
  const unsigned grid = static_cast<unsigned>(rows < (1 << 20) ? rows : (1 << 20));
  return Launch(CopyRowsKernel<T>, grid, 128, 0, stream, static_cast<const T*>(from), from_stride,
                width, static_cast<T*>(to), to_stride, rows);
}

}  // namespace

absl::Status LaunchGemm(const GemmParams& p, CudaStream& stream) {
  if (p.rows == 0) return absl::OkStatus();
  if (p.next.weight != nullptr && !(CanWgmmaGemm(p, stream.device()) && WgmmaStoresNext(p))) {
    GemmParams alone = p;
    alone.next = {};
    if (p.next.unscale != nullptr) {
      if (p.out == nullptr) {
        ASSIGN_OR_RETURN(alone.out, stream.ScratchOf<float>(p.rows * p.n));
      }
      RETURN_IF_ERROR(LaunchUnscale(p.next.scaled, p.next.unscale, p.rows, p.n,
                                    static_cast<float*>(alone.out), stream));
    }
    RETURN_IF_ERROR(LaunchGemm(alone, stream));
    return LaunchNextNorm(static_cast<const float*>(alone.out), p.n, p.rows, p.n, p.next, stream);
  }
  stream.NoteWork();
  const bool halves = p.dtype == DType::kBf16;
  if (!halves && (p.out_dtype != DType::kF32 || p.tail != nullptr || p.swiglu)) {
    return absl::UnimplementedError("Matmul of many rows: f32 operands give f32 results only");
  }
  if (CanWgmmaGemm(p, stream.device())) return LaunchWgmmaGemm(p, stream);
  const int64_t tile_rows = halves ? kTileRows : kF32Tile;
  const int64_t tile_outputs = halves ? kTileOutputs : kF32Tile;
  // Rows beyond what a grid's y allows come in further launches.
  const int64_t rows_max = 65535 * tile_rows;
  cudaError_t error = cudaSuccess;
  for (int64_t r = 0; r < p.rows && error == cudaSuccess; r += rows_max) {
    const int64_t rows = p.rows - r < rows_max ? p.rows - r : rows_max;
    const dim3 grid(static_cast<unsigned>(CeilDiv(p.n, tile_outputs)),
                    static_cast<unsigned>(CeilDiv(rows, tile_rows)));
    if (halves) {
      GemmParams part = p;
      part.rows = rows;
      part.out = static_cast<char*>(p.out) +
                 r * (p.swiglu ? p.n / 2 : p.n) * DTypeBytes(p.swiglu ? DType::kBf16 : p.out_dtype);
      if (p.tail != nullptr) part.tail = p.tail + r * p.tail_stride;
      if (p.factor != nullptr) part.factor = p.factor + r;
      const GemmStore store = GemmStore::Of(part);
      error = Launch(GemmBf16Kernel, grid, kGemmThreads, kStages * kStageElements * 2, stream.get(),
                     static_cast<const __nv_bfloat16*>(p.a) + r * p.a_stride, p.a_stride, rows,
                     static_cast<const __nv_bfloat16*>(p.weight), p.weight_stride, p.n, p.k, store,
                     store.aligned());
    } else {
      error = Launch(GemmF32Kernel, grid, 256, 0, stream.get(),
                     static_cast<const float*>(p.a) + r * p.a_stride, p.a_stride, rows,
                     static_cast<const float*>(p.weight), p.weight_stride, p.n, p.k, p.scale,
                     static_cast<float*>(p.out) + r * p.n, p.accumulate);
    }
  }
  return LaunchStatus(error, "Matmul of many rows");
}

absl::Status LaunchRowFactors(const RowFactorsParams& p, CudaStream& stream) {
  if (p.rows == 0) return absl::OkStatus();
  stream.NoteWork();
  return LaunchStatus(Launch(RowFactorsKernel, static_cast<unsigned>(CeilDiv(p.rows, 128)), 128, 0,
                             stream.get(), p),
                      "factors of rows");
}

absl::Status LaunchNextNorm(const float* in, int64_t stride, int64_t rows, int64_t width,
                            const NextNorm& next, CudaStream& stream) {
  if (rows == 0) return absl::OkStatus();
  stream.NoteWork();
  return LaunchStatus(Launch(NextNormKernel, static_cast<unsigned>(CeilDiv(rows, 4)), 128, 0,
                             stream.get(), in, stride, rows, width, next),
                      "rows for the next norm");
}

absl::Status LaunchUnscale(const void* scaled, const float* unscale, int64_t rows, int64_t width,
                           float* out, CudaStream& stream) {
  if (rows == 0) return absl::OkStatus();
  stream.NoteWork();
  const unsigned grid = static_cast<unsigned>(rows < (1 << 20) ? rows : (1 << 20));
  return LaunchStatus(Launch(UnscaleKernel, grid, 128, 0, stream.get(),
                             static_cast<const __nv_bfloat16*>(scaled), unscale, rows, width, out),
                      "rows of the residual stream");
}

absl::Status LaunchCopyRows(const void* from, int64_t from_stride, int64_t width, void* to,
                            int64_t to_stride, int64_t rows, int bytes, CudaStream& stream) {
  if (rows == 0) return absl::OkStatus();
  stream.NoteWork();
  const auto launch = bytes == 2 ? LaunchCopy<uint16_t> : LaunchCopy<uint32_t>;
  return LaunchStatus(launch(from, from_stride, width, to, to_stride, rows, stream.get()),
                      "copy of rows");
}

}  // namespace mneme
