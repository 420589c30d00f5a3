// One step of the state space recurrence for many readers (decode).
//   dt = softplus(dt + dt_bias), state = exp(-exp(a_log) dt) state + dt x (outer) B,
//   y = state C + d_skip x
//
// Bound by the state, which is read and written once. A block does one head of one sequence:
// threads lie side by side along the head's width (P), in groups along the state's size (N); each
// group sums its share of y, and the groups' sums meet in shared memory in their order. The order
// depends on the shape alone.

#include <cstdint>

#include "common/status_macros.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/tensor_core.cuh"

namespace mneme {
namespace {

constexpr int kThreads = 256;

// Grid: (heads, sequences); kThreads threads. `lanes`: threads side by side along P, a power of two
// that divides kThreads.
__global__ void __launch_bounds__(kThreads)
    SsmStepKernel(SsdParams p, const SequenceRows* __restrict__ sequences, int lanes) {
  __shared__ float partial[kThreads];
  const int64_t h = blockIdx.x;
  const SequenceRows sequence = sequences[blockIdx.y];
  const int64_t row = sequence.row_begin, P = p.head_dim, N = p.state_size;
  const float* xbc = p.xbc + row * p.xbc_stride;
  const float* B = xbc + p.heads * P;
  const float* C = B + N;
  const float dt = Softplus(p.dt[row * p.dt_stride + h] + p.dt_bias[h]);
  const float decay = expf(-expf(p.a_log[h]) * dt);
  const int lane = static_cast<int>(threadIdx.x) % lanes, groups = kThreads / lanes;
  const int group = static_cast<int>(threadIdx.x) / lanes;
  float* state = sequence.state + p.state_offset + h * N * P;
  for (int64_t first = 0; first < P; first += lanes) {
    const int64_t i = first + lane;
    const float x = i < P ? xbc[h * P + i] : 0.0f;
    float sum = 0;
    if (i < P) {
#pragma unroll 4
      for (int64_t n = group; n < N; n += groups) {
        float* cell = state + n * P + i;
        const float v = fmaf(dt * x, B[n], *cell * decay);
        *cell = v;
        sum = fmaf(v, C[n], sum);
      }
    }
    partial[threadIdx.x] = sum;
    __syncthreads();
    if (group == 0 && i < P) {
      float y = p.d_skip[h] * x;
      for (int g = 0; g < groups; ++g) y += partial[g * lanes + lane];
      p.y[row * p.y_stride + h * P + i] = y;
    }
    __syncthreads();
  }
}

}  // namespace

absl::Status CudaSsmStep(const SsdParams& p, CudaStream& stream) {
  if (p.sequence_count == 0) return absl::OkStatus();
  if (p.io_dtype != DType::kF32) return absl::InvalidArgumentError("SsmStep takes f32 rows");
  ASSIGN_OR_RETURN(const SequenceRows* const sequences,
                   stream.UploadOf(p.sequences, p.sequence_count));
  int lanes = 32;
  while (lanes < p.head_dim && lanes < kThreads) lanes *= 2;
  // What a grid's y allows, in further launches.
  constexpr int64_t kSequencesMax = 65535;
  for (int64_t first = 0; first < p.sequence_count; first += kSequencesMax) {
    const int64_t left = p.sequence_count - first;
    const dim3 grid(static_cast<unsigned>(p.heads),
                    static_cast<unsigned>(left < kSequencesMax ? left : kSequencesMax));
    RETURN_IF_ERROR(LaunchStatus(
        Launch(SsmStepKernel, grid, kThreads, 0, stream.get(), p, sequences + first, lanes),
        "SsmStep"));
  }
  return absl::OkStatus();
}

}  // namespace mneme
