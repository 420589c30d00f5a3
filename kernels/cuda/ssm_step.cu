// One step of the state space recurrence for many readers (decode), alone or behind the
// convolution.
//   dt = softplus(dt + dt_bias), state = exp(-exp(a_log) dt) state + dt x (outer) B,
//   y = state C + d_skip x
//
// Bound by the state, which is read and written once. A block does one head of one sequence:
// threads lie side by side along the head's width (P), four values each where that is aligned, in
// groups along the state's size (N). Their first cells are under way before x, B and C are brought
// into shared memory. Each group sums its share of y, and the groups' sums meet in shared memory in
// their order. The order depends on the shape and on the alignment of the sequence's state alone.
//
// With the convolution, a block computes the channels that it needs: its head's x, and B and C,
// which all heads of a sequence share. The convolution's state of x is the block's own; that of B
// and C may be written only when all heads have read it, so the last of them to come (a counter a
// sequence says which) writes it. No block waits for another.

#include <cstdint>

#include "common/status_macros.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/tensor_core.cuh"

namespace mneme {
namespace {

// A value of the convolution's input, which is f32 in a step.
__device__ __forceinline__ float ConvInput(const ConvSiluParams& conv, int64_t row, int64_t c) {
  return static_cast<const float*>(conv.in)[row * conv.in_stride + c];
}

constexpr int kThreads = 256;
constexpr int kBatch = 4;  // cells (or fours of cells) of a thread under way at one time
constexpr int kNoConvolution = -1;

// What a block shares, all of it in shared memory.
struct StepInputs {
  float* partial;  // [kThreads * 4]
  float* x;        // [P], then B [N] and C [N]
  float* B;
  float* C;
  float* step;  // dt, decay
};

template <int kValues>
struct Cell {
  float v[kValues];
};
__device__ __forceinline__ void Load(const float* from, Cell<1>& to) { to.v[0] = *from; }
__device__ __forceinline__ void Load(const float* from, Cell<4>& to) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  to.v[0] = v.x;
  to.v[1] = v.y;
  to.v[2] = v.z;
  to.v[3] = v.w;
}
__device__ __forceinline__ void Store(const Cell<1>& from, float* to) { *to = from.v[0]; }
__device__ __forceinline__ void Store(const Cell<4>& from, float* to) {
  *reinterpret_cast<float4*>(to) = {from.v[0], from.v[1], from.v[2], from.v[3]};
}

// Channel i of the block's P + 2 N: its head's x, then B, then C.
__device__ __forceinline__ int64_t Channel(const SsdParams& p, int64_t head, int64_t i) {
  return i < p.head_dim ? head * p.head_dim + i : (p.heads - 1) * p.head_dim + i;
}

// The newest taps - 1 rows become the convolution's state of channel c.
__device__ __forceinline__ void ShiftState(const ConvSiluParams& conv, float* state, float newest,
                                           int64_t c) {
  for (int64_t j = 0; j + 2 < conv.taps; ++j) {
    state[j * conv.channels + c] = state[(j + 1) * conv.channels + c];
  }
  if (conv.taps > 1) state[(conv.taps - 2) * conv.channels + c] = newest;
}

// kTaps: of the convolution; 0: any number; kNoConvolution.
template <int kTaps>
__device__ __forceinline__ float BringChannel(const SsdParams& p, const ConvSiluParams& conv,
                                              const SequenceRows& sequence, int64_t c, bool own) {
  if constexpr (kTaps == kNoConvolution) {
    return p.xbc[sequence.row_begin * p.xbc_stride + c];
  } else {
    float* state = sequence.state + conv.state_offset;
    const float newest = ConvInput(conv, sequence.row_begin, c);
    float sum = conv.bias[c];
    if constexpr (kTaps > 0) {
      float window[kTaps];
      window[kTaps - 1] = newest;
#pragma unroll
      for (int t = 0; t + 1 < kTaps; ++t) window[t] = state[t * conv.channels + c];
#pragma unroll
      for (int t = 0; t < kTaps; ++t)
        sum = fmaf(window[t], conv.weight[t * conv.channels + c], sum);
      if (own) {
#pragma unroll
        for (int t = 0; t + 1 < kTaps; ++t) state[t * conv.channels + c] = window[t + 1];
      }
    } else {
      for (int64_t t = 0; t < conv.taps; ++t) {
        const float value = t + 1 < conv.taps ? state[t * conv.channels + c] : newest;
        sum = fmaf(value, conv.weight[t * conv.channels + c], sum);
      }
      if (own) ShiftState(conv, state, newest, c);
    }
    return Silu(sum);
  }
}

// The block's head of `sequence`; false in every thread but, with the convolution, those of the
// last block of the sequence.
template <int kTaps, int kValues>
__device__ __forceinline__ bool Step(const SsdParams& p, const ConvSiluParams& conv,
                                     const SequenceRows& sequence, int lanes,
                                     const StepInputs& inputs, int* arrivals) {
  __shared__ bool last;
  const int64_t h = blockIdx.x;
  const int P = static_cast<int>(p.head_dim), N = static_cast<int>(p.state_size);
  const int lane = static_cast<int>(threadIdx.x) % lanes, groups = kThreads / lanes;
  const int group = static_cast<int>(threadIdx.x) / lanes;
  float* state = sequence.state + p.state_offset + h * p.state_size * P;
  Cell<kValues> cells[kBatch];
  const auto load = [&](int first_n, int i) {
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int n = first_n + j * groups;
      if (n < N && i < P) Load(state + int64_t{n} * P + i, cells[j]);
    }
  };
  load(group, lane * kValues);

  for (int i = static_cast<int>(threadIdx.x); i < P + 2 * N; i += kThreads) {
    inputs.x[i] = BringChannel<kTaps>(p, conv, sequence, Channel(p, h, i), i < P);
  }
  if (threadIdx.x == kThreads - 1) {
    const float dt = Softplus(p.dt[sequence.row_begin * p.dt_stride + h] + p.dt_bias[h]);
    inputs.step[0] = dt;
    inputs.step[1] = expf(-expf(p.a_log[h]) * dt);
  }
  __syncthreads();
  if (threadIdx.x == 0 && kTaps != kNoConvolution) {
    __threadfence();
    last = atomicAdd(arrivals + blockIdx.y, 1) == static_cast<int>(p.heads) - 1;
    if (last) arrivals[blockIdx.y] = 0;
  }

  const float dt = inputs.step[0], decay = inputs.step[1], d_skip = p.d_skip[h];
  float* y = p.y + sequence.row_begin * p.y_stride + h * P;
  for (int first = 0; first < P; first += lanes * kValues) {
    const int i = first + lane * kValues;
    float input[kValues], sum[kValues] = {};
#pragma unroll
    for (int v = 0; v < kValues; ++v) input[v] = i < P ? dt * inputs.x[i + v] : 0.0f;
    for (int first_n = group; first_n < N; first_n += kBatch * groups) {
      if (first_n != group || first != 0) load(first_n, i);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int n = first_n + j * groups;
        if (n >= N || i >= P) continue;
#pragma unroll
        for (int v = 0; v < kValues; ++v) {
          const float cell = fmaf(input[v], inputs.B[n], cells[j].v[v] * decay);
          cells[j].v[v] = cell;
          sum[v] = fmaf(cell, inputs.C[n], sum[v]);
        }
        Store(cells[j], state + int64_t{n} * P + i);
      }
    }
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      inputs.partial[(group * lanes + lane) * kValues + v] = sum[v];
    }
    __syncthreads();
    const int width = lanes * kValues;
    for (int at = static_cast<int>(threadIdx.x); at < width && first + at < P; at += kThreads) {
      float value = d_skip * inputs.x[first + at];
      for (int g = 0; g < groups; ++g) value += inputs.partial[g * width + at];
      y[first + at] = value;
    }
    __syncthreads();
  }
  return kTaps != kNoConvolution && last;
}

// Grid: (heads, sequences); kThreads threads; shared: what StepInputs says.
// `lanes`, `vector_lanes`: threads side by side along P, one value or four each, powers of two that
// divide kThreads. `arrivals`: [sequences], zero before and after.
template <int kTaps>
__global__ void __launch_bounds__(kThreads, 4)
    SsmStepKernel(SsdParams p, ConvSiluParams conv, const SequenceRows* __restrict__ sequences,
                  int lanes, int vector_lanes, int* arrivals) {
  const SequenceRows sequence = sequences[blockIdx.y];
  float* const partial = reinterpret_cast<float*>(DynamicShared());
  float* const x = partial + kThreads * 4;
  const StepInputs inputs = {.partial = partial,
                             .x = x,
                             .B = x + p.head_dim,
                             .C = x + p.head_dim + p.state_size,
                             .step = x + p.head_dim + 2 * p.state_size};
  const bool vectors =
      p.head_dim % 4 == 0 &&
      reinterpret_cast<uintptr_t>(sequence.state + p.state_offset) % sizeof(float4) == 0;
  const bool last = vectors ? Step<kTaps, 4>(p, conv, sequence, vector_lanes, inputs, arrivals)
                            : Step<kTaps, 1>(p, conv, sequence, lanes, inputs, arrivals);
  if (!last) return;
  float* state = sequence.state + conv.state_offset;
  for (int64_t i = threadIdx.x; i < 2 * p.state_size; i += kThreads) {
    const int64_t c = p.heads * p.head_dim + i;
    ShiftState(conv, state, ConvInput(conv, sequence.row_begin, c), c);
  }
}

// Threads side by side along `values` values.
int Lanes(int64_t values) {
  int lanes = 1;
  while (lanes < values && lanes < kThreads) lanes *= 2;
  return lanes;
}

absl::Status LaunchSteps(const SsdParams& p, const ConvSiluParams* conv, CudaStream& stream) {
  if (p.sequence_count == 0) return absl::OkStatus();
  if (p.io_dtype != DType::kF32 || (conv != nullptr && conv->io_dtype != DType::kF32))
    return absl::InvalidArgumentError("SsmStep takes f32 rows");
  const SequenceRows* sequences = p.backend_sequences;
  if (sequences == nullptr) {
    ASSIGN_OR_RETURN(sequences, stream.UploadOf(p.sequences, p.sequence_count));
  }
  // What a grid's y allows, in further launches.
  constexpr int64_t kSequencesMax = 65535;
  int* arrivals = nullptr;
  if (conv != nullptr) {
    const int64_t count = p.sequence_count < kSequencesMax ? p.sequence_count : kSequencesMax;
    ASSIGN_OR_RETURN(arrivals, stream.Counters(count));
  }
  const auto kernel = conv == nullptr   ? SsmStepKernel<kNoConvolution>
                      : conv->taps == 4 ? SsmStepKernel<4>
                                        : SsmStepKernel<0>;
  const int64_t shared_bytes = (kThreads * 4 + p.head_dim + 2 * p.state_size + 2) * 4;
  for (int64_t first = 0; first < p.sequence_count; first += kSequencesMax) {
    const int64_t left = p.sequence_count - first;
    const dim3 grid(static_cast<unsigned>(p.heads),
                    static_cast<unsigned>(left < kSequencesMax ? left : kSequencesMax));
    RETURN_IF_ERROR(
        LaunchStatus(Launch(kernel, grid, kThreads, shared_bytes, stream.get(), p,
                            conv == nullptr ? ConvSiluParams() : *conv, sequences + first,
                            Lanes(p.head_dim), Lanes(p.head_dim / 4), arrivals),
                     "SsmStep"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CudaSsmStep(const SsdParams& p, CudaStream& stream) {
  return LaunchSteps(p, nullptr, stream);
}

absl::Status CudaConvSsmStep(const ConvSiluParams& conv, const SsdParams& p, CudaStream& stream) {
  return LaunchSteps(p, &conv, stream);
}

}  // namespace mneme
