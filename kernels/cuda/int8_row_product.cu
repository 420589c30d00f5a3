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

__device__ __forceinline__ float SumOfSquares(const float (&v)[4]) {
  float sum = v[0] * v[0];
#pragma unroll
  for (int i = 1; i < 4; ++i) sum = fmaf(v[i], v[i], sum);
  return sum;
}

// The sum over a row's pieces of 128 for one of its 32 places: eight in a tree, the rest one by
// one.
__device__ __forceinline__ float TreeOfEight(const float (&sums)[8]) {
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

__device__ __forceinline__ float NormScale(const RowProductParams& p, float squares) {
  return 1.0f / sqrtf(squares / static_cast<float>(p.k) + p.norm_eps);
}

// What a row is multiplied with to become integers, and what undoes that, from its largest
// magnitude.
__device__ __forceinline__ float ToIntegers(uint32_t top) {
  const float largest = __uint_as_float(top);
  return top < 0x7f800000u && largest >= kSmallestRow ? kLargest / largest : 0.0f;
}
__device__ __forceinline__ float FromIntegers(uint32_t top) {
  return top < 0x7f800000u ? __uint_as_float(top) / kLargest : __uint_as_float(0x7fffffffu);
}

// The block's rows as digits. A row has 32 places, each with every 32nd four of its values; 32 /
// kRowTiles lanes serve it, with kRowTiles places each. The order of the sum of squares is that of
// the places and the pieces of 128, whatever lanes do them.
template <int kRowTiles>
__device__ __forceinline__ void BringRows(const RowProductParams& p, int64_t first_row,
                                          bool vectors, unsigned char* digits, int64_t row_bytes,
                                          float* row_scale) {
  constexpr int kRows = 8 * kRowTiles, kLanes = 32 / kRowTiles;
  constexpr int kKept = kRowTiles == 4   ? 3
                        : kRowTiles == 2 ? 6
                                         : 8;  // pieces that stay in registers
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int r = static_cast<int>(threadIdx.x) / kLanes;
  const bool present = first_row + r < p.rows;
  const int64_t row = present ? first_row + r : first_row;
  const int64_t padded_k = PaddedK(p.k), digit_bytes = kRows * row_bytes;
  const auto at = [&](int piece, int place) -> int64_t {
    return int64_t{piece} * 128 + (lane + kLanes * place) * 4;
  };
  float kept[kKept][kRowTiles][4];
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
#pragma unroll
    for (int u = 0; u < kRowTiles; ++u) {
      const int64_t k = at(i, u);
      kept[i][u][0] = kept[i][u][1] = kept[i][u][2] = kept[i][u][3] = 0;
      if (k < p.k) LoadOperand(p, row, k, vectors, kept[i][u]);
    }
  }
  const int pieces = static_cast<int>((padded_k + 127) / 128);
  float scale = 1;
  if (p.norm_weight != nullptr) {
    float squares[kRowTiles];
#pragma unroll
    for (int u = 0; u < kRowTiles; ++u) {
      float sums[8] = {};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (i < kKept) {
          sums[i] = SumOfSquares(kept[i % kKept][u]);
        } else if (at(i, u) < p.k) {
          float v[4];
          LoadOperand(p, row, at(i, u), vectors, v);
          sums[i] = SumOfSquares(v);
        }
      }
      squares[u] = TreeOfEight(sums);
      for (int i = 8; i < pieces; ++i) {
        if (at(i, u) >= p.k) continue;
        float v[4];
        LoadOperand(p, row, at(i, u), vectors, v);
        squares[u] += SumOfSquares(v);
      }
    }
    // Places 16 apart meet first, then 8 apart, and so on: in a lane, then between lanes.
#pragma unroll
    for (int step = kRowTiles / 2; step > 0; step /= 2) {
#pragma unroll
      for (int u = 0; u < step; ++u) squares[u] += squares[u + step];
    }
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) {
      squares[0] += __shfl_xor_sync(kFullWarp, squares[0], step);
    }
    scale = NormScale(p, squares[0]);
  }
  const auto load_again = [&](int64_t k, float(&v)[4]) {
    v[0] = v[1] = v[2] = v[3] = 0;
    if (k >= p.k) return;
    LoadOperand(p, row, k, vectors, v);
    if (p.norm_weight != nullptr) ScaleFour(p, k, vectors, scale, v);
  };
  uint32_t top = 0;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
#pragma unroll
    for (int u = 0; u < kRowTiles; ++u) {
      const int64_t k = at(i, u);
      if (k >= p.k) continue;
      if (p.norm_weight != nullptr) ScaleFour(p, k, vectors, scale, kept[i][u]);
#pragma unroll
      for (int c = 0; c < 4; ++c) top = max(top, Magnitude(kept[i][u][c]));
    }
  }
  for (int i = kKept; i < pieces; ++i) {
#pragma unroll
    for (int u = 0; u < kRowTiles; ++u) {
      float v[4];
      load_again(at(i, u), v);
#pragma unroll
      for (int c = 0; c < 4; ++c) top = max(top, Magnitude(v[c]));
    }
  }
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    top = max(top, __shfl_xor_sync(kFullWarp, top, step));
  }
  // Rows beyond the last keep what shared memory held: their sums are not written.
  if (!present) return;
  const float inverse = ToIntegers(top);
  unsigned char* to = digits + r * row_bytes;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
#pragma unroll
    for (int u = 0; u < kRowTiles; ++u) {
      const int64_t k = at(i, u);
      if (k < padded_k) StoreDigits(kept[i][u], inverse, to + k, digit_bytes);
    }
  }
  for (int i = kKept; i < pieces; ++i) {
#pragma unroll
    for (int u = 0; u < kRowTiles; ++u) {
      const int64_t k = at(i, u);
      float v[4];
      load_again(k, v);
      if (k < padded_k) StoreDigits(v, inverse, to + k, digit_bytes);
    }
  }
  if (lane == 0) row_scale[r] = FromIntegers(top);
}

// The same for a row alone, of at most 8 pieces, a warp a piece.
__device__ __forceinline__ void BringLoneRow(const RowProductParams& p, bool vectors,
                                             unsigned char* digits, int64_t digit_bytes,
                                             float* row_scale) {
  __shared__ float sums[kWarps][32];
  __shared__ uint32_t tops[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t k = static_cast<int64_t>(threadIdx.x) * 4;
  float v[4] = {}, w[4] = {};
  if (k < p.k) LoadOperand(p, 0, k, vectors, v);
  if (p.norm_weight != nullptr) {
    if (k < p.k) LoadFour(p.norm_weight + k, vectors, p.k - k, w);
    sums[warp][lane] = SumOfSquares(v);
    __syncthreads();
    float places[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) places[i] = sums[i][lane];
    const float scale = NormScale(p, WarpSum(TreeOfEight(places)));
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = v[i] * scale * w[i];
  }
  uint32_t top = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) top = max(top, Magnitude(v[i]));
#pragma unroll
  for (int step = 16; step > 0; step /= 2) top = max(top, __shfl_xor_sync(kFullWarp, top, step));
  if (lane == 0) tops[warp] = top;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kWarps; ++i) top = max(top, tops[i]);
  if (k < PaddedK(p.k)) StoreDigits(v, ToIntegers(top), digits + k, digit_bytes);
  if (threadIdx.x == 0) row_scale[0] = FromIntegers(top);
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

// Of shared memory beside the dynamic part, rounded up to where that may begin.
constexpr int64_t kStaticBytes = 2048;

// Shared: digits [kDigits][rows][DigitRowBytes], row scales [rows], and if k_warps > 1 sums
// [kDigits][rows][SumStride].
int64_t SharedBytes(int64_t k, int rows, int outputs, int k_warps) {
  return kDigits * rows * DigitRowBytes(k) + rows * 4 +
         (k_warps > 1 ? int64_t{kDigits} * rows * SumStride(outputs) * 4 : 0);
}

// Grid: row blocks of 8 * kRowTiles * output blocks (output blocks side by side); kThreads threads.
// `k_warps` warps (a power of two up to kWarps) share the k of 16 outputs. `vectors`: a, gate and
// norm_weight can be read 16 bytes at a time, and k is a multiple of 4.
template <int kRowTiles>
__global__ void __launch_bounds__(kThreads, 2)
    Int8ProductKernel(RowProductParams p, int k_warps, unsigned output_blocks, bool vectors) {
  constexpr int kRows = 8 * kRowTiles;
  constexpr int kAhead = 4 - kRowTiles / 2;  // steps whose weights are under way
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4;
  const int block_outputs = kWarps / k_warps * 16, warp_output = warp / k_warps * 16;
  const int64_t output = static_cast<int64_t>(blockIdx.x % output_blocks) * block_outputs;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x / output_blocks) * kRows;
  const int steps = static_cast<int>(PaddedK(p.k) / kStepK);
  const int64_t row_bytes = DigitRowBytes(p.k), digit_bytes = kRows * row_bytes;
  unsigned char* digits = DynamicShared();
  float* row_scale = reinterpret_cast<float*>(digits + kDigits * digit_bytes);
  int* shared_sums = reinterpret_cast<int*>(row_scale + kRows);

  const auto load_weights = [&](int step, uint4(&w)[2]) {
    const int64_t k = int64_t{step} * kStepK + t * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t n = output + warp_output + half * 8 + g;
      w[half] = n < p.n && k < p.weight_stride
                    ? *reinterpret_cast<const uint4*>(static_cast<const int8_t*>(p.weight) +
                                                      n * p.weight_stride + k)
                    : uint4{0, 0, 0, 0};
    }
  };

  const int first_step = warp % k_warps;
  uint4 w[kAhead][2];
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    if (first_step + j * k_warps < steps) load_weights(first_step + j * k_warps, w[j]);
  }
  if (k_warps > 1) {
    for (int i = static_cast<int>(threadIdx.x); i < kDigits * kRows * SumStride(block_outputs);
         i += kThreads) {
      shared_sums[i] = 0;
    }
  }
  // Weights do not change; everything else may be what the kernel before leaves.
  WaitForKernelBefore();
  LetNextKernelStart();
  if (kRowTiles == 1 && p.rows == 1 && p.k <= kWarps * 128) {
    BringLoneRow(p, vectors, digits, digit_bytes, row_scale);
  } else {
    BringRows<kRowTiles>(p, first_row, vectors, digits, row_bytes, row_scale);
  }
  __syncthreads();

  int sums[kRowTiles][kDigits][4] = {};
  for (int step = first_step; step < steps; step += kAhead * k_warps) {
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int present = step + j * k_warps;
      if (present >= steps) break;
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        if (first_row + tile * 8 >= p.rows) continue;
#pragma unroll
        for (int d = 0; d < kDigits; ++d) {
          const uint4 b = *reinterpret_cast<const uint4*>(
              digits + d * digit_bytes + (tile * 8 + g) * row_bytes + present * kStepK + t * 16);
          MmaInt8(sums[tile][d], {w[j][0].x, w[j][1].x, w[j][0].y, w[j][1].y}, b.x, b.y);
          MmaInt8(sums[tile][d], {w[j][0].z, w[j][1].z, w[j][0].w, w[j][1].w}, b.z, b.w);
        }
      }
      if (present + kAhead * k_warps < steps) load_weights(present + kAhead * k_warps, w[j]);
    }
  }

  if (k_warps == 1) {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int64_t n = output + warp_output + c / 2 * 8 + g;
        const int r = tile * 8 + t * 2 + c % 2;
        if (n >= p.n || first_row + r >= p.rows) continue;
        WriteOutput(p, first_row + r, n, {sums[tile][0][c], sums[tile][1][c], sums[tile][2][c]},
                    row_scale[r]);
      }
    }
    return;
  }
  const int sum_stride = SumStride(block_outputs);
#pragma unroll
  for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
    for (int d = 0; d < kDigits; ++d) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int n = warp_output + c / 2 * 8 + g, r = tile * 8 + t * 2 + c % 2;
        if (first_row + r >= p.rows) continue;
        atomicAdd(&shared_sums[(d * kRows + r) * sum_stride + n], sums[tile][d][c]);
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

int64_t OutputBlocks(const RowProductParams& p, int k_warps) {
  return CeilDiv(p.n, kWarps / k_warps * 16);
}

template <int kRowTiles>
cudaError_t LaunchTiles(const RowProductParams& p, int64_t blocks_wanted, cudaStream_t stream,
                        bool overlaps) {
  const int64_t row_blocks = CeilDiv(p.rows, 8 * kRowTiles);
  int k_warps = 1;
  while (k_warps < kWarps && row_blocks * OutputBlocks(p, k_warps) < blocks_wanted) k_warps *= 2;
  const int64_t output_blocks = OutputBlocks(p, k_warps);
  return LaunchOverlapping(
      Int8ProductKernel<kRowTiles>, dim3(static_cast<unsigned>(row_blocks * output_blocks)),
      dim3(kThreads), SharedBytes(p.k, 8 * kRowTiles, kWarps / k_warps * 16, k_warps), stream,
      overlaps, p, k_warps, static_cast<unsigned>(output_blocks), CanReadVectors(p));
}

// Most rows a block as long as there is a block for every multiprocessor (each weight is read once
// a block) and they fit in shared memory; with few rows, more blocks of fewer outputs each, whose k
// the warps share.
cudaError_t LaunchInt8(const RowProductParams& p, int64_t multiprocessors, int64_t shared_bytes_max,
                       bool overlaps, cudaStream_t stream) {
  const auto pays = [&](int rows) {
    return p.rows > rows / 2 && CeilDiv(p.rows, rows) * OutputBlocks(p, 1) >= multiprocessors &&
           SharedBytes(p.k, rows, 128, 1) + kStaticBytes <= shared_bytes_max;
  };
  if (pays(32)) return LaunchTiles<4>(p, multiprocessors, stream, overlaps);
  if (pays(16)) return LaunchTiles<2>(p, multiprocessors, stream, overlaps);
  return LaunchTiles<1>(p, multiprocessors, stream, overlaps);
}

}  // namespace

bool Int8RowProductFits(int64_t k, const DeviceInfo& device) {
  return SharedBytes(k, 8, kWarps / 2 * 16, 2) + kStaticBytes <= device.shared_bytes_max;
}

absl::Status LaunchInt8RowProduct(const RowProductParams& p, CudaStream& stream) {
  if (p.rows == 0) return absl::OkStatus();
  stream.NoteWork();
  return LaunchStatus(
      LaunchInt8(p, stream.device().multiprocessors, stream.device().shared_bytes_max,
                 stream.kernels_overlap(), stream.get()),
      "Matmul of few rows, int8");
}

}  // namespace mneme
