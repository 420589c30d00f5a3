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
  float* step;  // dt, decay, and a word for the order of arrival
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

// What a convolution's state of one channel becomes, kept by the thread that read it (kTaps > 1).
template <int kTaps>
struct Window {
  float v[kTaps > 1 ? kTaps - 1 : 1];
};

// The newest taps - 1 rows become the convolution's state of channel c.
__device__ __forceinline__ void ShiftState(const ConvSiluParams& conv, float* state, float newest,
                                           int64_t c) {
  for (int64_t j = 0; j + 2 < conv.taps; ++j) {
    state[j * conv.channels + c] = state[(j + 1) * conv.channels + c];
  }
  if (conv.taps > 1) state[(conv.taps - 2) * conv.channels + c] = newest;
}
template <int kTaps>
__device__ __forceinline__ void StoreWindow(const ConvSiluParams& conv, const Window<kTaps>& window,
                                            float* state, int64_t c) {
#pragma unroll
  for (int t = 0; t + 1 < kTaps; ++t) state[t * conv.channels + c] = window.v[t];
}

// Channel c of x, B and C; `own`: its state of the convolution goes on. kTaps: of the convolution;
// 0: any number; kNoConvolution.
template <int kTaps>
__device__ __forceinline__ float BringChannel(const SsdParams& p, const ConvSiluParams& conv,
                                              const SequenceRows& sequence, int64_t c, bool own,
                                              Window<kTaps>& window) {
  if constexpr (kTaps == kNoConvolution) {
    return p.xbc[sequence.row_begin * p.xbc_stride + c];
  } else {
    float* state = sequence.state + conv.state_offset;
    const float newest = ConvInput(conv, sequence.row_begin, c);
    float sum = conv.bias[c];
    if constexpr (kTaps > 0) {
      float values[kTaps];
      values[kTaps - 1] = newest;
#pragma unroll
      for (int t = 0; t + 1 < kTaps; ++t) values[t] = state[t * conv.channels + c];
#pragma unroll
      for (int t = 0; t < kTaps; ++t)
        sum = fmaf(values[t], conv.weight[t * conv.channels + c], sum);
#pragma unroll
      for (int t = 0; t + 1 < kTaps; ++t) window.v[t] = values[t + 1];
      if (own) StoreWindow<kTaps>(conv, window, state, c);
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

// The cells of one head, [N, P], for a thread: those of `kValues` neighbours along P from i on, at
// every groups-th n.
template <int kValues>
struct Cells {
  Cell<kValues> v[kBatch];

  __device__ __forceinline__ void Load(const float* state, int P, int N, int first_n, int groups,
                                       int i) {
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int n = first_n + j * groups;
      if (n < N && i < P) mneme::Load(state + int64_t{n} * P + i, v[j]);
    }
  }
};

// One step of the block's head, [N, P] at `state`. `cells`: the thread's first ones.
template <int kValues>
__device__ __forceinline__ void Step(const StepInputs& inputs, int P, int N, int lanes,
                                     float d_skip, float* state, Cells<kValues>& cells, float* y) {
  const int lane = static_cast<int>(threadIdx.x) % lanes, groups = kThreads / lanes;
  const int group = static_cast<int>(threadIdx.x) / lanes, width = lanes * kValues;
  const float dt = inputs.step[0], decay = inputs.step[1];
  for (int first = 0; first < P; first += width) {
    const int i = first + lane * kValues;
    float input[kValues], sum[kValues] = {};
#pragma unroll
    for (int v = 0; v < kValues; ++v) input[v] = i < P ? dt * inputs.x[i + v] : 0.0f;
    for (int first_n = group; first_n < N; first_n += kBatch * groups) {
      if (first_n != group || first != 0) cells.Load(state, P, N, first_n, groups, i);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int n = first_n + j * groups;
        if (n >= N || i >= P) continue;
#pragma unroll
        for (int v = 0; v < kValues; ++v) {
          const float cell = fmaf(input[v], inputs.B[n], cells.v[j].v[v] * decay);
          cells.v[j].v[v] = cell;
          sum[v] = fmaf(cell, inputs.C[n], sum[v]);
        }
        Store(cells.v[j], state + int64_t{n} * P + i);
      }
    }
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      inputs.partial[(group * lanes + lane) * kValues + v] = sum[v];
    }
    __syncthreads();
    for (int at = static_cast<int>(threadIdx.x); at < width && first + at < P; at += kThreads) {
      float value = d_skip * inputs.x[first + at];
      for (int g = 0; g < groups; ++g) value += inputs.partial[g * width + at];
      y[first + at] = value;
    }
    __syncthreads();
  }
}

// Grid: (heads, sequences); kThreads threads; shared: what StepInputs says. `lanes`,
// `vector_lanes`: threads side by side along P, one value or four each, powers of two that divide
// kThreads. `arrivals`: [sequences], zero before and after.
template <int kTaps>
__global__ void __launch_bounds__(kThreads, 4)
    SsmStepKernel(SsdParams p, ConvSiluParams conv, const SequenceRows* __restrict__ sequences,
                  int lanes, int vector_lanes, int* arrivals) {
  WaitForKernelBefore();
  LetNextKernelStart();
  const SequenceRows sequence = sequences[blockIdx.y];
  const int P = static_cast<int>(p.head_dim), N = static_cast<int>(p.state_size);
  const int h = static_cast<int>(blockIdx.x);
  float* const partial = reinterpret_cast<float*>(DynamicShared());
  float* const x = partial + kThreads * 4;
  const StepInputs inputs = {
      .partial = partial, .x = x, .B = x + P, .C = x + P + N, .step = x + P + 2 * N};
  int* const arrived_last = reinterpret_cast<int*>(inputs.step + 2);
  float* state = sequence.state + p.state_offset + h * p.state_size * p.head_dim;
  const bool vectors = P % 4 == 0 && reinterpret_cast<uintptr_t>(state) % sizeof(float4) == 0;
  Cells<4> cells;
  if (vectors) {
    const int lane = static_cast<int>(threadIdx.x) % vector_lanes;
    cells.Load(state, P, N, static_cast<int>(threadIdx.x) / vector_lanes, kThreads / vector_lanes,
               lane * 4);
  }

  Window<kTaps> window;
  for (int i = static_cast<int>(threadIdx.x); i < P + 2 * N; i += kThreads) {
    inputs.x[i] = BringChannel<kTaps>(p, conv, sequence, Channel(p, h, i), /*own=*/i < P, window);
  }
  if (threadIdx.x == kThreads - 1) {
    const float dt = Softplus(p.dt[sequence.row_begin * p.dt_stride + h] + p.dt_bias[h]);
    inputs.step[0] = dt;
    inputs.step[1] = expf(-expf(p.a_log[h]) * dt);
  }
  __syncthreads();
  if (kTaps != kNoConvolution && threadIdx.x == 0) {
    __threadfence();
    const bool last = atomicAdd(arrivals + blockIdx.y, 1) == static_cast<int>(p.heads) - 1;
    if (last) arrivals[blockIdx.y] = 0;
    *arrived_last = last ? 1 : 0;
  }

  float* y = p.y + sequence.row_begin * p.y_stride + static_cast<int64_t>(h) * P;
  if (vectors) {
    Step<4>(inputs, P, N, vector_lanes, p.d_skip[h], state, cells, y);
  } else {
    Cells<1> scalars;
    const int lane = static_cast<int>(threadIdx.x) % lanes;
    scalars.Load(state, P, N, static_cast<int>(threadIdx.x) / lanes, kThreads / lanes, lane);
    Step<1>(inputs, P, N, lanes, p.d_skip[h], state, scalars, y);
  }

  if (kTaps == kNoConvolution || *arrived_last == 0) return;
  float* conv_state = sequence.state + conv.state_offset;
  for (int i = static_cast<int>(threadIdx.x); i < P + 2 * N; i += kThreads) {
    if (i < P) continue;
    const int64_t c = Channel(p, h, i);
    if (kTaps > 0 && P + 2 * N <= kThreads) {
      StoreWindow<kTaps>(conv, window, conv_state, c);
    } else {
      ShiftState(conv, conv_state, ConvInput(conv, sequence.row_begin, c), c);
    }
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
  const int64_t shared_bytes = (kThreads * 4 + p.head_dim + 2 * p.state_size + 3) * 4;
  for (int64_t first = 0; first < p.sequence_count; first += kSequencesMax) {
    const int64_t left = p.sequence_count - first;
    const dim3 grid(static_cast<unsigned>(p.heads),
                    static_cast<unsigned>(left < kSequencesMax ? left : kSequencesMax));
    RETURN_IF_ERROR(LaunchStatus(
        LaunchOverlapping(kernel, grid, kThreads, shared_bytes, stream.get(),
                          stream.kernels_overlap(), p, conv == nullptr ? ConvSiluParams() : *conv,
                          sequences + first, Lanes(p.head_dim), Lanes(p.head_dim / 4), arrivals),
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
