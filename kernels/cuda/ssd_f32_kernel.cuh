// Ssd in f32, for callers that ask for it and for states too large for ssd_kernels.cuh; the
// formulas are there. A thread block walks through a sequence for 32 columns of a head, blocks of
// up to 32 tokens in shared memory as f32. Nothing depends on other sequences, so a sequence cut at
// a multiple of 32 rows gives the same bits.

#ifndef MNEME_KERNELS_CUDA_SSD_F32_KERNEL_CUH_
#define MNEME_KERNELS_CUDA_SSD_F32_KERNEL_CUH_

#include <cstdint>

#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/ssd_decays.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/ops.h"

namespace mneme::ssd {

constexpr int kF32Width = 32;
constexpr int kF32Threads = 256, kF32Warps = kF32Threads / 32;
constexpr int kF32TokensMax = 32;

constexpr int64_t F32SharedBytes(int64_t tokens, int64_t state_size) {
  return 4 * (tokens * state_size + tokens * (state_size + 1) + state_size * kF32Width +
              2 * tokens * kF32Width + tokens * (tokens + 1) + kDecayArrays * tokens);
}

// Grid: (heads * slices of 32 columns, sequences). A lane does one column; shared: F32SharedBytes.
// `tokens`: of a block, at most 32, dividing 64.
template <typename T>
__global__ void __launch_bounds__(kF32Threads)
    F32Kernel(SsdParams p, const SequenceRows* __restrict__ sequences, int slices, int tokens) {
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
    const T* const xbc =
        static_cast<const T*>(static_cast<const void*>(p.xbc)) + first_row * p.xbc_stride;
    __syncthreads();  // the block before has been read
    if (warp == 0) ComputeDecays<1>(p, first_row, rows, tokens, head, decays);
    for (int i = tid; i < tokens * N; i += kF32Threads) {
      const int row = i / N, n = i % N;
      const T* from = xbc + row * p.xbc_stride + p.heads * P + n;
      Bs[row * (N + 1) + n] = row < rows ? ToFloat(from[0]) : 0.0f;
      Cs[row * N + n] = row < rows ? ToFloat(from[N]) : 0.0f;
    }
    __syncthreads();
    for (int i = warp; i < tokens; i += kF32Warps) {
      const float v =
          i < rows && inside ? ToFloat(xbc[i * p.xbc_stride + head * P + column]) : 0.0f;
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
      sum *= expf(decays.high[i]);
      for (int j = 0; j <= i; ++j) {
        sum = fmaf(Ms[i * (tokens + 1) + j], Xs[j * kF32Width + lane], sum);
      }
      if (inside) {
        static_cast<T*>(static_cast<void*>(p.y))[(first_row + i) * p.y_stride + head * P + column] =
            FromFloat<T>(fmaf(p.d_skip[head], Xs[i * kF32Width + lane], sum));
      }
    }
    __syncthreads();  // the state has been read
    const float whole = expf(decays.high[tokens - 1]);
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

// `tokens`: of a block, as for the kernel.
template <typename T>
cudaError_t LaunchF32(const SsdParams& p, const SequenceRows* sequences, int64_t count, int tokens,
                      cudaStream_t stream) {
  const int64_t slices = (p.head_dim + kF32Width - 1) / kF32Width;
  const dim3 grid(static_cast<unsigned>(p.heads * slices), static_cast<unsigned>(count));
  return Launch(F32Kernel<T>, grid, dim3(kF32Threads), F32SharedBytes(tokens, p.state_size), stream,
                p, sequences, static_cast<int>(slices), tokens);
}

}  // namespace mneme::ssd

#endif  // MNEME_KERNELS_CUDA_SSD_F32_KERNEL_CUH_
