// The state space recurrence over many tokens, in blocks (arXiv 2405.21060, section 6). Within a
// block, with d_i the decay from the block's beginning up to and with token i, and S the state
// before it:
//   y_i = d_i C_i S + sum_{j <= i} (d_i / d_j) (C_i B_j) dt_j x_j + D x_i
//   S'  = d_last S + sum_j (d_last / d_j) dt_j B_j (outer) x_j
// Decays are differences of sums of logarithms that are kept in two floats each: where tokens
// forget fast the sums are large, and nothing of the difference of neighbours may be lost.
//
// A thread block does one head of one sequence (or a slice of its width P) from the first block of
// tokens to the last, so that the state never leaves the chip in between.
//
// bf16: blocks of 64 tokens. B, C, x and the mixed matrix M_ij = (d_i / d_j) (C_i B_j) dt_j lie in
// shared memory as bf16; a warp owns 16 columns of the width. Its part of the state, transposed
// [16, N], stays in registers as f32 sums of tensor core products, in which form (rounded to bf16)
// it is also the operand of C S: fragments of sums and of operands hold the same elements. f32:
// blocks of up to 32 tokens and slices of 32 columns, all in shared memory as f32.
//
// Blocks begin at whole multiples from the sequence's first row, and nothing depends on other
// sequences, so a sequence cut at a multiple of 64 rows gives the same bits.

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/tensor_core.cuh"

namespace mneme {
namespace {

// What the rows of a block of tokens need of their decays.
struct Decays {
  float* dt;    // softplus; 0 beyond the rows
  float* high;  // sum of logarithms up to and with the row, upper part
  float* low;   // lower part
  float* in;    // decay from the block's beginning
  float* out;   // decay to the block's end, times dt

  // Of floats for `tokens` tokens.
  __device__ __forceinline__ Decays(float* memory, int tokens)
      : dt(memory), high(dt + tokens), low(high + tokens), in(low + tokens), out(in + tokens) {}
};
constexpr int kDecayArrays = 5;

// Fills them with one warp; a lane does kEach neighbouring tokens of 32 * kEach. Call with a whole
// warp, and synchronize after.
template <int kEach>
__device__ __forceinline__ void ComputeDecays(const SsdParams& p, int64_t first_row, int rows,
                                              int tokens, int64_t head, const Decays& to) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const double a = -static_cast<double>(expf(p.a_log[head]));
  const float bias = p.dt_bias[head];
  float dt[kEach];
  double sums[kEach], sum = 0;
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int i = lane * kEach + e;
    dt[e] = i < rows ? Softplus(p.dt[(first_row + i) * p.dt_stride + head] + bias) : 0.0f;
    sum += a * dt[e];
    sums[e] = sum;
  }
  // Sum of the lanes before.
  double upto = sum;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const double other = __shfl_up_sync(kFullWarp, upto, step);
    if (lane >= step) upto += other;
  }
  double before = __shfl_up_sync(kFullWarp, upto, 1);
  if (lane == 0) before = 0;
  const double last = __shfl_sync(kFullWarp, upto, 31);
  const float last_high = static_cast<float>(last);
  const float last_low = static_cast<float>(last - static_cast<double>(last_high));
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int i = lane * kEach + e;
    if (i >= tokens) break;
    const double total = before + sums[e];
    const float high = static_cast<float>(total);
    const float low = static_cast<float>(total - static_cast<double>(high));
    to.dt[i] = dt[e];
    to.high[i] = high;
    to.low[i] = low;
    to.in[i] = expf(high);
    to.out[i] = expf((last_high - high) + (last_low - low)) * dt[e];
  }
}

// ---- bf16 --------------------------------------------------------------------------------------

constexpr int kTokens = 64;
constexpr int kWidthMax = 64;            // columns of a thread block: 16 a warp
constexpr int kXStride = kWidthMax + 8;  // 16 bytes of padding: eight rows, eight groups of banks
constexpr int kMStride = kTokens + 8;

constexpr int64_t Bf16SharedBytes(int state_padded) {
  return int64_t{2} * kTokens * ((state_padded + 8) * 2 + kXStride * 2 + kMStride) +
         int64_t{4} * kDecayArrays * kTokens;
}

// Four neighbouring floats of a row that has `count` from column 0; zeros beyond.
__device__ __forceinline__ float4 LoadFour(const float* row, int column, int64_t count,
                                           bool aligned) {
  if (aligned && column + 4 <= count) return *reinterpret_cast<const float4*>(row + column);
  float4 v = {0, 0, 0, 0};
  if (column < count) v.x = row[column];
  if (column + 1 < count) v.y = row[column + 1];
  if (column + 2 < count) v.z = row[column + 2];
  if (column + 3 < count) v.w = row[column + 3];
  return v;
}

__device__ __forceinline__ void StoreFourBf16(__nv_bfloat16* to, float4 v) {
  uint2 bits;
  bits.x = PackBf16(v.x, v.y);
  bits.y = PackBf16(v.z, v.w);
  *reinterpret_cast<uint2*>(to) = bits;
}

// Grid: (heads * slices of the width, sequences); 32 threads for each 16 columns of a slice.
// Shared: Bf16SharedBytes(8 * kStateTiles). kStateTiles: N rounded up, in eights, an even number.
// `aligned`: B, C and x of every row begin at 16 bytes.
template <int kStateTiles>
__global__ void __launch_bounds__(128)
    SsdBf16Kernel(SsdParams p, const SequenceRows* __restrict__ sequences, int slices,
                  bool aligned) {
  constexpr int kN = kStateTiles * 8;
  constexpr int kBcStride = kN + 8;
  __nv_bfloat16* const Bs = reinterpret_cast<__nv_bfloat16*>(DynamicShared());  // [tokens, N]
  __nv_bfloat16* const Cs = Bs + kTokens * kBcStride;                           // [tokens, N]
  __nv_bfloat16* const Xs = Cs + kTokens * kBcStride;                           // [tokens, width]
  __nv_bfloat16* const Xout = Xs + kTokens * kXStride;  // the same times decay to the end
  __nv_bfloat16* const Ms = Xout + kTokens * kXStride;  // [tokens, tokens]
  const Decays decays(reinterpret_cast<float*>(Ms + kTokens * kMStride), kTokens);

  const SequenceRows sequence = sequences[blockIdx.y];
  if (sequence.row_count == 0) return;
  const int threads = static_cast<int>(blockDim.x), warps = threads / 32;
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32;
  const int g = lane / 4, t = lane % 4;
  const int64_t P = p.head_dim, N = p.state_size;
  const int64_t head = blockIdx.x / slices;
  const int64_t first_column = static_cast<int64_t>(blockIdx.x % slices) * warps * 16;
  const int64_t columns = P - first_column;  // valid ones of the slice, or more
  const int width = warps * 16;
  float* const memory = sequence.state + p.state_offset + head * N * P + first_column;

  // state[j]: rows p = warp * 16 + g and + 8, columns n = 8 j + 2 t and + 1, of S transposed.
  const int p0 = warp * 16 + g, p1 = p0 + 8;
  float state[kStateTiles][4];
#pragma unroll
  for (int j = 0; j < kStateTiles; ++j) {
    const int n = j * 8 + t * 2;
    state[j][0] = n < N && p0 < columns ? memory[n * P + p0] : 0.0f;
    state[j][1] = n + 1 < N && p0 < columns ? memory[(n + 1) * P + p0] : 0.0f;
    state[j][2] = n < N && p1 < columns ? memory[n * P + p1] : 0.0f;
    state[j][3] = n + 1 < N && p1 < columns ? memory[(n + 1) * P + p1] : 0.0f;
  }

  for (int64_t r = 0; r < sequence.row_count; r += kTokens) {
    const int rows =
        sequence.row_count - r < kTokens ? static_cast<int>(sequence.row_count - r) : kTokens;
    const int64_t first_row = sequence.row_begin + r;
    const float* const xbc = p.xbc + first_row * p.xbc_stride;
    const float* const x = xbc + head * P + first_column;

    __syncthreads();  // the block before has been read
    if (warp == 0) ComputeDecays<2>(p, first_row, rows, kTokens, head, decays);
#pragma unroll 4
    for (int i = tid; i < kTokens * (kN / 4); i += threads) {
      const int row = i / (kN / 4), column = i % (kN / 4) * 4;
      const float* from = xbc + row * p.xbc_stride + p.heads * P;
      float4 b = {0, 0, 0, 0}, c = {0, 0, 0, 0};
      if (row < rows) {
        b = LoadFour(from, column, N, aligned);
        c = LoadFour(from + N, column, N, aligned);
      }
      StoreFourBf16(Bs + row * kBcStride + column, b);
      StoreFourBf16(Cs + row * kBcStride + column, c);
    }
    __syncthreads();  // decays
    for (int i = tid; i < kTokens * (width / 4); i += threads) {
      const int row = i / (width / 4), column = i % (width / 4) * 4;
      float4 v = {0, 0, 0, 0};
      if (row < rows) v = LoadFour(x + row * p.xbc_stride, column, columns, aligned);
      StoreFourBf16(Xs + row * kXStride + column, v);
      const float weight = decays.out[row];
      StoreFourBf16(Xout + row * kXStride + column,
                    {v.x * weight, v.y * weight, v.z * weight, v.w * weight});
    }

    // M, 16 rows a warp (several times where there are fewer warps); what lies above the diagonal
    // of 16 x 16 tiles is never read.
    for (int m = warp; m < kTokens / 16; m += warps) {
      float products[kTokens / 8][4] = {};
#pragma unroll
      for (int s = 0; s < kN / 16; ++s) {
        uint32_t c[4];
        LoadMatrix4(c, Cs + (m * 16 + lane % 16) * kBcStride + s * 16 + lane / 16 * 8);
#pragma unroll
        for (int pair = 0; pair < kTokens / 16; ++pair) {
          if (pair > m) continue;
          uint32_t b[4];
          LoadMatrix4(b, Bs + (pair * 16 + lane / 16 * 8 + lane % 8) * kBcStride + s * 16 +
                             lane / 8 % 2 * 8);
          MmaBf16(products[pair * 2], c, b[0], b[1]);
          MmaBf16(products[pair * 2 + 1], c, b[2], b[3]);
        }
      }
      const int i0 = m * 16 + g, i1 = i0 + 8;
      const float high0 = decays.high[i0], low0 = decays.low[i0];
      const float high1 = decays.high[i1], low1 = decays.low[i1];
#pragma unroll
      for (int tile = 0; tile < kTokens / 8; ++tile) {
        if (tile / 2 > m) continue;
        const int j = tile * 8 + t * 2;
        float mixed[4];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float high = decays.high[j + e], low = decays.low[j + e], dt = decays.dt[j + e];
          mixed[e] =
              j + e <= i0 ? products[tile][e] * __expf((high0 - high) + (low0 - low)) * dt : 0.0f;
          mixed[2 + e] = j + e <= i1
                             ? products[tile][2 + e] * __expf((high1 - high) + (low1 - low)) * dt
                             : 0.0f;
        }
        *reinterpret_cast<uint32_t*>(Ms + i0 * kMStride + j) = PackBf16(mixed[0], mixed[1]);
        *reinterpret_cast<uint32_t*>(Ms + i1 * kMStride + j) = PackBf16(mixed[2], mixed[3]);
      }
    }
    __syncthreads();  // x and M

    // y, this warp's 16 columns of all 64 rows: first d C S.
    float y[kTokens / 16][2][4] = {};
#pragma unroll
    for (int s = 0; s < kN / 16; ++s) {
      // The operand (n, p) of 16 n and 2 x 8 p: the sums that this lane holds.
      const uint32_t b00 = PackBf16(state[2 * s][0], state[2 * s][1]);
      const uint32_t b01 = PackBf16(state[2 * s + 1][0], state[2 * s + 1][1]);
      const uint32_t b10 = PackBf16(state[2 * s][2], state[2 * s][3]);
      const uint32_t b11 = PackBf16(state[2 * s + 1][2], state[2 * s + 1][3]);
#pragma unroll
      for (int m = 0; m < kTokens / 16; ++m) {
        uint32_t c[4];
        LoadMatrix4(c, Cs + (m * 16 + lane % 16) * kBcStride + s * 16 + lane / 16 * 8);
        MmaBf16(y[m][0], c, b00, b01);
        MmaBf16(y[m][1], c, b10, b11);
      }
    }
#pragma unroll
    for (int m = 0; m < kTokens / 16; ++m) {
      const float in0 = decays.in[m * 16 + g], in1 = decays.in[m * 16 + g + 8];
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        y[m][q][0] *= in0;
        y[m][q][1] *= in0;
        y[m][q][2] *= in1;
        y[m][q][3] *= in1;
      }
    }
    // Then M x.
#pragma unroll
    for (int s = 0; s < kTokens / 16; ++s) {
      uint32_t b[4];
      LoadMatrix4Transposed(b, Xs + (s * 16 + lane % 16) * kXStride + warp * 16 + lane / 16 * 8);
#pragma unroll
      for (int m = s; m < kTokens / 16; ++m) {
        uint32_t a[4];
        LoadMatrix4(a, Ms + (m * 16 + lane % 16) * kMStride + s * 16 + lane / 16 * 8);
        MmaBf16(y[m][0], a, b[0], b[1]);
        MmaBf16(y[m][1], a, b[2], b[3]);
      }
    }
    const float skip = p.d_skip[head];
#pragma unroll
    for (int m = 0; m < kTokens / 16; ++m) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int i = m * 16 + part * 8 + g;
        if (i >= rows) continue;
        const float* from = x + i * p.xbc_stride;
        float* to = p.y + (first_row + i) * p.y_stride + head * P + first_column;
#pragma unroll
        for (int q = 0; q < 2; ++q) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int column = warp * 16 + q * 8 + t * 2 + e;
            if (column < columns) to[column] = fmaf(skip, from[column], y[m][q][part * 2 + e]);
          }
        }
      }
    }

    // The state after the block.
    const float whole = decays.in[kTokens - 1];
#pragma unroll
    for (int j = 0; j < kStateTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) state[j][e] *= whole;
    }
#pragma unroll
    for (int s = 0; s < kTokens / 16; ++s) {
      uint32_t a[4];  // (p, token): x transposed
      LoadMatrix4Transposed(
          a, Xout + (s * 16 + lane / 16 * 8 + lane % 8) * kXStride + warp * 16 + lane / 8 % 2 * 8);
#pragma unroll
      for (int pair = 0; pair < kN / 16; ++pair) {
        uint32_t b[4];  // (token, n)
        LoadMatrix4Transposed(b, Bs + (s * 16 + lane % 16) * kBcStride + pair * 16 + lane / 16 * 8);
        MmaBf16(state[pair * 2], a, b[0], b[1]);
        MmaBf16(state[pair * 2 + 1], a, b[2], b[3]);
      }
    }
  }

#pragma unroll
  for (int j = 0; j < kStateTiles; ++j) {
    const int n = j * 8 + t * 2;
    if (n < N && p0 < columns) memory[n * P + p0] = state[j][0];
    if (n + 1 < N && p0 < columns) memory[(n + 1) * P + p0] = state[j][1];
    if (n < N && p1 < columns) memory[n * P + p1] = state[j][2];
    if (n + 1 < N && p1 < columns) memory[(n + 1) * P + p1] = state[j][3];
  }
}

template <int kStateTiles>
absl::Status LaunchBf16(const SsdParams& p, const SequenceRows* sequences, int64_t count,
                        cudaStream_t stream) {
  constexpr int64_t kShared = Bf16SharedBytes(kStateTiles * 8);
  const int64_t warps = p.head_dim >= kWidthMax ? kWidthMax / 16 : CeilDiv(p.head_dim, 16);
  const int64_t slices = CeilDiv(p.head_dim, warps * 16);
  const bool aligned = reinterpret_cast<uintptr_t>(p.xbc) % 16 == 0 && p.xbc_stride % 4 == 0 &&
                       p.head_dim % 4 == 0 && p.state_size % 4 == 0;
  const dim3 grid(static_cast<unsigned>(p.heads * slices), static_cast<unsigned>(count));
  return LaunchStatus(Launch(SsdBf16Kernel<kStateTiles>, grid, static_cast<unsigned>(warps * 32),
                             kShared, stream, p, sequences, static_cast<int>(slices), aligned),
                      "Ssd in bf16");
}

// ---- f32 ---------------------------------------------------------------------------------------

constexpr int kF32Width = 32;
constexpr int kF32Threads = 256, kF32Warps = kF32Threads / 32;
constexpr int kF32TokensMax = 32;

constexpr int64_t F32SharedBytes(int64_t tokens, int64_t state_size) {
  return 4 * (tokens * state_size + tokens * (state_size + 1) + state_size * kF32Width +
              2 * tokens * kF32Width + tokens * (tokens + 1) + kDecayArrays * tokens);
}

// Grid: (heads * slices of 32 columns, sequences). A lane does one column; shared: F32SharedBytes.
// `tokens`: of a block, at most 32, dividing 64.
__global__ void __launch_bounds__(kF32Threads)
    SsdF32Kernel(SsdParams p, const SequenceRows* __restrict__ sequences, int slices, int tokens) {
  const int N = static_cast<int>(p.state_size);
  float* const Cs = reinterpret_cast<float*>(DynamicShared());  // [tokens, N]
  float* const Bs = Cs + tokens * N;                            // [tokens, N + 1]
  float* const state = Bs + tokens * (N + 1);                   // [N, width]
  float* const Xs = state + N * kF32Width;                      // [tokens, width]
  float* const Xout = Xs + tokens * kF32Width;                  // the same times decay to the end
  float* const Ms = Xout + tokens * kF32Width;                  // [tokens, tokens + 1]
  const Decays decays(Ms + tokens * (tokens + 1), tokens);

  const SequenceRows sequence = sequences[blockIdx.y];
  if (sequence.row_count == 0) return;
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32;
  const int64_t P = p.head_dim, head = blockIdx.x / slices;
  const int64_t column = static_cast<int64_t>(blockIdx.x % slices) * kF32Width + lane;
  const bool inside = column < P;
  float* const memory = sequence.state + p.state_offset + head * p.state_size * P + column;
  for (int n = warp; n < N; n += kF32Warps) {
    state[n * kF32Width + lane] = inside ? memory[n * P] : 0.0f;
  }

  for (int64_t r = 0; r < sequence.row_count; r += tokens) {
    const int rows =
        sequence.row_count - r < tokens ? static_cast<int>(sequence.row_count - r) : tokens;
    const int64_t first_row = sequence.row_begin + r;
    const float* const xbc = p.xbc + first_row * p.xbc_stride;
    __syncthreads();  // the block before has been read
    if (warp == 0) ComputeDecays<1>(p, first_row, rows, tokens, head, decays);
    for (int i = tid; i < tokens * N; i += kF32Threads) {
      const int row = i / N, n = i % N;
      const float* from = xbc + row * p.xbc_stride + p.heads * P + n;
      Bs[row * (N + 1) + n] = row < rows ? from[0] : 0.0f;
      Cs[row * N + n] = row < rows ? from[N] : 0.0f;
    }
    __syncthreads();
    for (int i = warp; i < tokens; i += kF32Warps) {
      const float v = i < rows && inside ? xbc[i * p.xbc_stride + head * P + column] : 0.0f;
      Xs[i * kF32Width + lane] = v;
      Xout[i * kF32Width + lane] = v * decays.out[i];
      if (lane > i) continue;
      const int j = lane;
      float sum = 0;
      for (int n = 0; n < N; ++n) sum = fmaf(Cs[i * N + n], Bs[j * (N + 1) + n], sum);
      Ms[i * (tokens + 1) + j] =
          sum * expf((decays.high[i] - decays.high[j]) + (decays.low[i] - decays.low[j])) *
          decays.dt[j];
    }
    __syncthreads();
    for (int i = warp; i < rows; i += kF32Warps) {
      float sum = 0;
      for (int n = 0; n < N; ++n) sum = fmaf(Cs[i * N + n], state[n * kF32Width + lane], sum);
      sum *= decays.in[i];
      for (int j = 0; j <= i; ++j) {
        sum = fmaf(Ms[i * (tokens + 1) + j], Xs[j * kF32Width + lane], sum);
      }
      if (inside) {
        p.y[(first_row + i) * p.y_stride + head * P + column] =
            fmaf(p.d_skip[head], Xs[i * kF32Width + lane], sum);
      }
    }
    __syncthreads();  // the state has been read
    const float whole = decays.in[tokens - 1];
    for (int n = warp; n < N; n += kF32Warps) {
      float sum = state[n * kF32Width + lane] * whole;
      for (int j = 0; j < tokens; ++j) {
        sum = fmaf(Bs[j * (N + 1) + n], Xout[j * kF32Width + lane], sum);
      }
      state[n * kF32Width + lane] = sum;
    }
  }
  // Each warp writes what it alone has updated.
  for (int n = warp; n < N && inside; n += kF32Warps) {
    memory[n * P] = state[n * kF32Width + lane];
  }
}

absl::Status LaunchF32(const SsdParams& p, const SequenceRows* sequences, int64_t count,
                       CudaStream& stream) {
  int tokens = kF32TokensMax;
  while (tokens > 1 && F32SharedBytes(tokens, p.state_size) > stream.device().shared_bytes_max) {
    tokens /= 2;
  }
  const int64_t shared = F32SharedBytes(tokens, p.state_size);
  if (shared > stream.device().shared_bytes_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("Ssd: a state of ", p.state_size, " needs ", shared,
                     " bytes of shared memory, the device has ", stream.device().shared_bytes_max));
  }
  const int64_t slices = CeilDiv(p.head_dim, kF32Width);
  const dim3 grid(static_cast<unsigned>(p.heads * slices), static_cast<unsigned>(count));
  return LaunchStatus(Launch(SsdF32Kernel, grid, kF32Threads, shared, stream.get(), p, sequences,
                             static_cast<int>(slices), tokens),
                      "Ssd in f32");
}

absl::Status LaunchSsd(const SsdParams& p, const SequenceRows* sequences, int64_t count,
                       CudaStream& stream) {
  if (p.compute_dtype == DType::kBf16) {
    if (p.state_size <= 16) return LaunchBf16<2>(p, sequences, count, stream.get());
    if (p.state_size <= 32) return LaunchBf16<4>(p, sequences, count, stream.get());
    if (p.state_size <= 64) return LaunchBf16<8>(p, sequences, count, stream.get());
    if (p.state_size <= 128) return LaunchBf16<16>(p, sequences, count, stream.get());
    if (p.state_size <= 256) return LaunchBf16<32>(p, sequences, count, stream.get());
  }
  return LaunchF32(p, sequences, count, stream);
}

}  // namespace

absl::Status CudaSsd(const SsdParams& p, CudaStream& stream) {
  if (p.rows == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(const SequenceRows* const sequences,
                   stream.UploadOf(p.sequences, p.sequence_count));
  // What a grid's y allows, in further launches.
  constexpr int64_t kSequencesMax = 65535;
  for (int64_t first = 0; first < p.sequence_count; first += kSequencesMax) {
    const int64_t left = p.sequence_count - first;
    RETURN_IF_ERROR(
        LaunchSsd(p, sequences + first, left < kSequencesMax ? left : kSequencesMax, stream));
  }
  return absl::OkStatus();
}

}  // namespace mneme
