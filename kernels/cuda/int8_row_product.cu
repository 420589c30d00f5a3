// Products of few rows of f32 with an int8 weight as stored, on tensor cores, in integers.
//
//   a[r, k] = row_scale[r] * v[r, k],  v = 65536 q2 + 256 q1 + q0,  q in -128 .. 127
//   out[r, n] = sum_k v[r, k] weight[n, k] * row_scale[r] * scale[n]
//
// A row becomes integers of 23 bits, as precise as f32 is at the row's largest value, in three
// digits of 8 bits; the weight stays what it is. The sums are exact, so that no order of adding, no
// cut of k and no number of rows beside changes a result, and every shape of a block is free to
// choose. A block reads its weights once for its rows. It first brings its rows into shared memory
// as digits, on the way normed and gated if so asked; while the weights of its first step are under
// way. A row's values below 1e-31 times everything count as zeros, and a row with a value that is
// not finite gives NaNs.
//
// Layout. A step takes 64 k: lane (g, t) = (lane / 4, lane % 4) has the 16 bytes from k = 16 t of a
// row of the weight (g, g + 8) or of the operand (g), which serve two products of 32 k; that is
// another order of k than the fragments say, the same on both sides. Rows of digits in shared
// memory are 64 bytes longer than a multiple of 128, which keeps a quarter warp's 16-byte reads off
// each other's banks.

#include <cstdint>

#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/tensor_core.cuh"

namespace mneme {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kDigits = 3;
constexpr int kStepK = 64;
constexpr int kKeptVectors = 8;  // 4 values each that a lane keeps of a row; the rest is read again

constexpr float kLargest = 4194303.0f;     // of v
constexpr float kSmallestRow = 1e-31f;     // below it kLargest / x overflows
constexpr float kToInteger = 12582912.0f;  // 1.5 * 2^23: adding it rounds to integers

__host__ __device__ constexpr int64_t PaddedK(int64_t k) {
  return (k + kStepK - 1) / kStepK * kStepK;
}
__host__ __device__ constexpr int64_t DigitRowBytes(int64_t k) {
  return (PaddedK(k) + 127) / 128 * 128 + 64;
}
// Distance of two rows in the block's sums: the four rows that a quarter warp adds to lie 8 banks
// apart.
__host__ __device__ constexpr int SumStride(int outputs) { return outputs + 4; }

__device__ __forceinline__ void LoadFour(const float* from, bool vectors, int64_t left,
                                         float (&to)[4]) {
  if (vectors) {
    const float4 v = *reinterpret_cast<const float4*>(from);
    to[0] = v.x;
    to[1] = v.y;
    to[2] = v.z;
    to[3] = v.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = i < left ? from[i] : 0.0f;
  }
}

// Four values of a row from k on, gated.
__device__ __forceinline__ void LoadOperand(const RowProductParams& p, int64_t row, int64_t k,
                                            bool vectors, float (&v)[4]) {
  LoadFour(p.a + row * p.a_stride + k, vectors, p.k - k, v);
  if (p.gate == nullptr) return;
  float z[4];
  LoadFour(p.gate + row * p.gate_stride + k, vectors, p.k - k, z);
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] *= Silu(z[i]);
}

__device__ __forceinline__ void ScaleFour(const RowProductParams& p, int64_t k, bool vectors,
                                          float scale, float (&v)[4]) {
  float w[4];
  LoadFour(p.norm_weight + k, vectors, p.k - k, w);
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = v[i] * scale * w[i];
}

// The bits of non-negative floats order as they do, NaNs last.
__device__ __forceinline__ uint32_t Magnitude(float v) { return __float_as_uint(v) & 0x7fffffffu; }

// Writes the digits of four values: word k / 4 of each of the digits' rows.
__device__ __forceinline__ void StoreDigits(const float (&v)[4], float inverse,
                                            unsigned char* digits, int64_t digit_bytes) {
  uint32_t bits[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // Integers around kToInteger have their low 23 bits in the mantissa; with 0x80 added to each
    // digit no digit borrows from the next.
    bits[i] = __float_as_uint(fmaf(v[i], inverse, kToInteger)) + (0x808080u - 0x4b400000u);
  }
#pragma unroll
  for (int d = 0; d < kDigits; ++d) {
    const uint32_t selector = 0x0040u + static_cast<uint32_t>(d) * 0x11u;  // byte d of both
    const uint32_t low = __byte_perm(bits[0], bits[1], selector);
    const uint32_t high = __byte_perm(bits[2], bits[3], selector);
    *reinterpret_cast<uint32_t*>(digits + d * digit_bytes) =
        __byte_perm(low, high, 0x5410u) ^ 0x80808080u;
  }
}

// One row as digits, by a warp; returns row_scale.
__device__ __forceinline__ float BringRow(const RowProductParams& p, int64_t row, bool vectors,
                                          unsigned char* digits, int64_t digit_bytes) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int64_t kKept = kKeptVectors * 128;
  float kept[kKeptVectors][4];
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kKeptVectors; ++j) {
    const int64_t k = j * 128 + lane * 4;
    kept[j][0] = kept[j][1] = kept[j][2] = kept[j][3] = 0;
    if (k < p.k) LoadOperand(p, row, k, vectors, kept[j]);
  }
  float scale = 1;
  if (p.norm_weight != nullptr) {
#pragma unroll
    for (int j = 0; j < kKeptVectors; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) squares = fmaf(kept[j][i], kept[j][i], squares);
    }
    for (int64_t k = kKept + lane * 4; k < p.k; k += 128) {
      float v[4];
      LoadOperand(p, row, k, vectors, v);
#pragma unroll
      for (int i = 0; i < 4; ++i) squares = fmaf(v[i], v[i], squares);
    }
    scale = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(p.k) + p.norm_eps);
#pragma unroll
    for (int j = 0; j < kKeptVectors; ++j) {
      const int64_t k = j * 128 + lane * 4;
      if (k < p.k) ScaleFour(p, k, vectors, scale, kept[j]);
    }
  }
  const auto load_again = [&](int64_t k, float(&v)[4]) {
    v[0] = v[1] = v[2] = v[3] = 0;
    if (k >= p.k) return;
    LoadOperand(p, row, k, vectors, v);
    if (p.norm_weight != nullptr) ScaleFour(p, k, vectors, scale, v);
  };
  uint32_t top = 0;
#pragma unroll
  for (int j = 0; j < kKeptVectors; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) top = max(top, Magnitude(kept[j][i]));
  }
  for (int64_t k = kKept + lane * 4; k < p.k; k += 128) {
    float v[4];
    load_again(k, v);
#pragma unroll
    for (int i = 0; i < 4; ++i) top = max(top, Magnitude(v[i]));
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) top = max(top, __shfl_xor_sync(kFullWarp, top, step));
  const float largest = __uint_as_float(top);
  const bool finite = top < 0x7f800000u;
  const float inverse = finite && largest >= kSmallestRow ? kLargest / largest : 0.0f;
  const int64_t padded_k = PaddedK(p.k);
#pragma unroll
  for (int j = 0; j < kKeptVectors; ++j) {
    const int64_t k = j * 128 + lane * 4;
    if (k < padded_k) StoreDigits(kept[j], inverse, digits + k, digit_bytes);
  }
  for (int64_t k = kKept + lane * 4; k < padded_k; k += 128) {
    float v[4];
    load_again(k, v);
    StoreDigits(v, inverse, digits + k, digit_bytes);
  }
  return finite ? largest / kLargest : __uint_as_float(0x7fffffffu);
}

__device__ __forceinline__ void WriteOutput(const RowProductParams& p, int64_t row, int64_t output,
                                            const int (&sums)[kDigits], float row_scale) {
  const int64_t sum =
      static_cast<int64_t>(sums[2]) * 65536 + static_cast<int64_t>(sums[1]) * 256 + sums[0];
  float v = __fmul_rn(static_cast<float>(sum), row_scale);
  v = __fmul_rn(v, p.scale[output]);
  float* to = p.out + row * p.out_stride + output;
  *to = p.accumulate ? __fadd_rn(*to, v) : v;
}

// Shared: digits [kDigits][rows][DigitRowBytes], row scales [rows], and if k_warps > 1 sums
// [kDigits][rows][SumStride].
int64_t SharedBytes(int64_t k, int rows, int outputs, int k_warps) {
  return kDigits * rows * DigitRowBytes(k) + rows * 4 +
         (k_warps > 1 ? int64_t{kDigits} * rows * SumStride(outputs) * 4 : 0);
}

// Grid: row blocks of 8 * kRowTiles * output blocks (output blocks side by side); kThreads threads.
// `k_warps` warps (a power of two up to kWarps) share the k of 16 * kOutTiles outputs. `vectors`:
// a, gate and norm_weight can be read 16 bytes at a time, and k is a multiple of 4.
template <int kOutTiles, int kRowTiles>
__global__ void __launch_bounds__(kThreads, kOutTiles == 1 ? 2 : 1)
    Int8ProductKernel(RowProductParams p, int k_warps, unsigned output_blocks, bool vectors) {
  constexpr int kRows = 8 * kRowTiles;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4;
  const int block_outputs = kWarps / k_warps * 16 * kOutTiles;
  const int warp_output = warp / k_warps * 16 * kOutTiles;
  const int64_t output = static_cast<int64_t>(blockIdx.x % output_blocks) * block_outputs;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x / output_blocks) * kRows;
  const int steps = static_cast<int>(PaddedK(p.k) / kStepK);
  const int64_t row_bytes = DigitRowBytes(p.k), digit_bytes = kRows * row_bytes;
  unsigned char* digits = DynamicShared();
  float* row_scale = reinterpret_cast<float*>(digits + kDigits * digit_bytes);
  int* shared_sums = reinterpret_cast<int*>(row_scale + kRows);

  const auto load_weights = [&](int step, uint4(&w)[kOutTiles][2]) {
    const int64_t k = int64_t{step} * kStepK + t * 16;
#pragma unroll
    for (int m = 0; m < kOutTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t n = output + warp_output + m * 16 + half * 8 + g;
        w[m][half] = n < p.n && k < p.weight_stride
                         ? *reinterpret_cast<const uint4*>(static_cast<const int8_t*>(p.weight) +
                                                           n * p.weight_stride + k)
                         : uint4{0, 0, 0, 0};
      }
    }
  };

  int step = warp % k_warps;
  uint4 w[kOutTiles][2];
  if (step < steps) load_weights(step, w);
  if (k_warps > 1) {
    for (int i = static_cast<int>(threadIdx.x); i < kDigits * kRows * SumStride(block_outputs);
         i += kThreads) {
      shared_sums[i] = 0;
    }
  }
  for (int r = warp; r < kRows && first_row + r < p.rows; r += kWarps) {
    const float scale = BringRow(p, first_row + r, vectors, digits + r * row_bytes, digit_bytes);
    if (lane == 0) row_scale[r] = scale;
  }
  __syncthreads();

  int sums[kOutTiles][kRowTiles][kDigits][4] = {};
  for (; step < steps; step += k_warps) {
    uint4 next[kOutTiles][2];
    if (step + k_warps < steps) load_weights(step + k_warps, next);
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      if (first_row + tile * 8 >= p.rows) continue;
#pragma unroll
      for (int d = 0; d < kDigits; ++d) {
        // Rows beyond the last hold anything: their sums are not written.
        const uint4 b = *reinterpret_cast<const uint4*>(
            digits + d * digit_bytes + (tile * 8 + g) * row_bytes + step * kStepK + t * 16);
#pragma unroll
        for (int m = 0; m < kOutTiles; ++m) {
          const uint4 low = w[m][0], high = w[m][1];
          MmaInt8(sums[m][tile][d], {low.x, high.x, low.y, high.y}, b.x, b.y);
          MmaInt8(sums[m][tile][d], {low.z, high.z, low.w, high.w}, b.z, b.w);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kOutTiles; ++m) {
      w[m][0] = next[m][0];
      w[m][1] = next[m][1];
    }
  }

  if (k_warps == 1) {
#pragma unroll
    for (int m = 0; m < kOutTiles; ++m) {
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int64_t n = output + warp_output + m * 16 + c / 2 * 8 + g;
          const int r = tile * 8 + t * 2 + c % 2;
          if (n >= p.n || first_row + r >= p.rows) continue;
          WriteOutput(p, first_row + r, n,
                      {sums[m][tile][0][c], sums[m][tile][1][c], sums[m][tile][2][c]},
                      row_scale[r]);
        }
      }
    }
    return;
  }
  const int sum_stride = SumStride(block_outputs);
#pragma unroll
  for (int m = 0; m < kOutTiles; ++m) {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int d = 0; d < kDigits; ++d) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int n = warp_output + m * 16 + c / 2 * 8 + g, r = tile * 8 + t * 2 + c % 2;
          atomicAdd(&shared_sums[(d * kRows + r) * sum_stride + n], sums[m][tile][d][c]);
        }
      }
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kRows * block_outputs; i += kThreads) {
    const int r = i / block_outputs, n = i % block_outputs;
    if (output + n >= p.n || first_row + r >= p.rows) continue;
    const int* sum = shared_sums + r * sum_stride + n;
    WriteOutput(p, first_row + r, output + n,
                {sum[0], sum[kRows * sum_stride], sum[2 * kRows * sum_stride]}, row_scale[r]);
  }
}

bool CanReadVectors(const RowProductParams& p) {
  const auto aligned = [](const float* pointer, int64_t stride) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride % 4 == 0;
  };
  return p.k % 4 == 0 && aligned(p.a, p.a_stride) && aligned(p.gate, p.gate_stride) &&
         aligned(p.norm_weight, 0);
}

// `blocks_wanted`: with fewer, more warps share the k of fewer outputs.
template <int kOutTiles, int kRowTiles>
cudaError_t LaunchTiles(const RowProductParams& p, int64_t blocks_wanted, cudaStream_t stream) {
  const int64_t row_blocks = CeilDiv(p.rows, 8 * kRowTiles);
  const auto outputs = [](int k_warps) { return kWarps / k_warps * 16 * kOutTiles; };
  int k_warps = kWarps;
  while (k_warps > 1 && row_blocks * CeilDiv(p.n, outputs(k_warps / 2)) >= blocks_wanted) {
    k_warps /= 2;
  }
  const int64_t output_blocks = CeilDiv(p.n, outputs(k_warps));
  return Launch(Int8ProductKernel<kOutTiles, kRowTiles>,
                dim3(static_cast<unsigned>(row_blocks * output_blocks)), dim3(kThreads),
                SharedBytes(p.k, 8 * kRowTiles, outputs(k_warps), k_warps), stream, p, k_warps,
                static_cast<unsigned>(output_blocks), CanReadVectors(p));
}

// The largest tile that the rows fill and shared memory holds.
cudaError_t LaunchInt8(const RowProductParams& p, int64_t multiprocessors, int64_t shared_bytes_max,
                       cudaStream_t stream) {
  // With the sums of the most outputs that more than one warp does.
  const auto fits = [&](int rows, int out_tiles) {
    return SharedBytes(p.k, rows, kWarps / 2 * 16 * out_tiles, 2) <= shared_bytes_max;
  };
  if (p.rows > 16 && fits(32, 2)) return LaunchTiles<2, 4>(p, multiprocessors * 3 / 4, stream);
  if (p.rows > 8 && fits(16, 1)) return LaunchTiles<1, 2>(p, multiprocessors * 3 / 2, stream);
  return LaunchTiles<1, 1>(p, multiprocessors * 3 / 2, stream);
}

}  // namespace

bool Int8RowProductFits(int64_t k, const DeviceInfo& device) {
  return SharedBytes(k, 8, kWarps / 2 * 16, 2) <= device.shared_bytes_max;
}

absl::Status LaunchInt8RowProduct(const RowProductParams& p, CudaStream& stream) {
  if (p.rows == 0) return absl::OkStatus();
  stream.NoteWork();
  return LaunchStatus(LaunchInt8(p, stream.device().multiprocessors,
                                 stream.device().shared_bytes_max, stream.get()),
                      "Matmul of few rows, int8");
}

}  // namespace mneme
