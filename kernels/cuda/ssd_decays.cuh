// Decays of the state over a block of tokens, for the kernels of Ssd.
//
// They are differences of sums of logarithms that are kept in two floats each: where tokens forget
// fast the sums are large, and nothing of the difference of neighbours may be lost.

#ifndef MNEME_KERNELS_CUDA_SSD_DECAYS_CUH_
#define MNEME_KERNELS_CUDA_SSD_DECAYS_CUH_

#include <cstdint>

#include "kernels/cuda/device_math.cuh"
#include "kernels/ops.h"

namespace mneme::ssd {

// A double in two floats.
struct TwoFloats {
  float high, low;
  __device__ __forceinline__ TwoFloats(float upper, float lower) : high(upper), low(lower) {}
  __device__ __forceinline__ explicit TwoFloats(double v)
      : high(static_cast<float>(v)), low(static_cast<float>(v - static_cast<double>(high))) {}
  __device__ __forceinline__ float Minus(const TwoFloats& other) const {
    return (high - other.high) + (low - other.low);
  }
};

// What the rows of a block of tokens need of their decays.
struct Decays {
  float* dt;    // softplus; 0 beyond the rows
  float* high;  // sum of logarithms up to and with the row, upper part
  float* low;   // lower part
  float* near;  // decay to the end of the row's 16 tokens, times dt
  float* out;   // decay to the block's end, times dt; where kOut

  // Of floats for `tokens` tokens.
  __device__ __forceinline__ Decays(float* memory, int tokens)
      : dt(memory), high(dt + tokens), low(high + tokens), near(low + tokens), out(near + tokens) {}
};
constexpr int kDecayArrays = 5;

// dt as it is read, of kEach neighbouring tokens a lane of a warp; 0 beyond the rows.
template <int kEach>
__device__ __forceinline__ void LoadDt(float (&dt)[kEach], const SsdParams& p, int64_t first_row,
                                       int rows, int64_t head) {
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int i = static_cast<int>(threadIdx.x) % 32 * kEach + e;
    dt[e] = i < rows ? p.dt[(first_row + i) * p.dt_stride + head] : 0.0f;
  }
}

// Of a head: what dt is multiplied by, and what is added to it before.
struct HeadDecay {
  double a;
  float bias;
  __device__ __forceinline__ HeadDecay(const SsdParams& p, int64_t head)
      : a(-static_cast<double>(expf(p.a_log[head]))), bias(p.dt_bias[head]) {}
};

// Fills `to` for `tokens` tokens with one warp, of what LoadDt has brought, all but `out` where not
// kOut. Call with a whole warp, and synchronize after.
template <int kEach, bool kOut>
__device__ __forceinline__ void ComputeDecays(const float (&from)[kEach], const HeadDecay& head,
                                              int rows, int tokens, const Decays& to) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float dt[kEach];
  double sums[kEach], sum = 0;
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    dt[e] = lane * kEach + e < rows ? Softplus(from[e] + head.bias) : 0.0f;
    sum += head.a * dt[e];
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
  const TwoFloats last(__shfl_sync(kFullWarp, upto, 31));
  const TwoFloats near(__shfl_sync(kFullWarp, upto, lane | (16 / kEach - 1)));
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int i = lane * kEach + e;
    if (i >= tokens) break;
    const TwoFloats total(before + sums[e]);
    to.dt[i] = dt[e];
    to.high[i] = total.high;
    to.low[i] = total.low;
    to.near[i] = expf(near.Minus(total)) * dt[e];
    if (kOut) to.out[i] = expf(last.Minus(total)) * dt[e];
  }
}

// All of it at once.
template <int kEach>
__device__ __forceinline__ void ComputeDecays(const SsdParams& p, int64_t first_row, int rows,
                                              int tokens, int64_t head, const Decays& to) {
  float dt[kEach];
  LoadDt(dt, p, first_row, rows, head);
  ComputeDecays<kEach, true>(dt, HeadDecay(p, head), rows, tokens, to);
}

}  // namespace mneme::ssd

#endif  // MNEME_KERNELS_CUDA_SSD_DECAYS_CUH_
