// Causal depthwise convolution with bias and SiLU, over sequences with a state.
//
// Rows are cut into pieces of one sequence each; a block does one piece for 128 channels, a thread
// one channel, walking down the rows with the last taps - 1 values in registers. A piece that is a
// whole sequence (a decode step, a short prompt) also writes the new state; for the others a second
// kernel does, after all pieces have read the old one.

#include <cstdint>
#include <vector>

#include "common/status_macros.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/tensor_core.cuh"

namespace mneme {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kPieceRows = 32;

struct Piece {
  SequenceRows sequence;
  int64_t row_begin;  // within the sequence
  int64_t row_count;
};

// Row `row` of the sequence at channel c; rows before the first are the state.
__device__ __forceinline__ float RowValue(const ConvSiluParams& p, const SequenceRows& sequence,
                                          int64_t row, int64_t c) {
  return row >= 0 ? p.in[(sequence.row_begin + row) * p.in_stride + c]
                  : sequence.state[p.state_offset + (p.taps - 1 + row) * p.channels + c];
}

// The newest taps - 1 rows of (state, rows) become the state; ascending, as row j comes from j or
// later.
__device__ __forceinline__ void UpdateState(const ConvSiluParams& p, const SequenceRows& sequence,
                                            int64_t c) {
  const int64_t past = p.taps - 1;
  for (int64_t j = 0; j < past; ++j) {
    sequence.state[p.state_offset + j * p.channels + c] =
        RowValue(p, sequence, j + sequence.row_count - past, c);
  }
}

// Grid: (pieces, channels / kThreads). kTaps 0: any number.
template <int kTaps>
__global__ void __launch_bounds__(kThreads)
    ConvSiluKernel(ConvSiluParams p, const Piece* __restrict__ pieces) {
  const Piece piece = pieces[blockIdx.x];
  const int64_t c = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (c >= p.channels) return;
  const float bias = p.bias[c];
  float* out = p.out + (piece.sequence.row_begin + piece.row_begin) * p.out_stride + c;
  if constexpr (kTaps > 0) {
    float weight[kTaps], window[kTaps];
#pragma unroll
    for (int t = 0; t < kTaps; ++t) weight[t] = p.weight[t * p.channels + c];
#pragma unroll
    for (int t = 1; t < kTaps; ++t) {
      window[t] = RowValue(p, piece.sequence, piece.row_begin - kTaps + t, c);
    }
    const float* in = p.in + (piece.sequence.row_begin + piece.row_begin) * p.in_stride + c;
#pragma unroll 4
    for (int64_t r = 0; r < piece.row_count; ++r) {
#pragma unroll
      for (int t = 1; t < kTaps; ++t) window[t - 1] = window[t];
      window[kTaps - 1] = in[r * p.in_stride];
      float sum = bias;
#pragma unroll
      for (int t = 0; t < kTaps; ++t) sum = fmaf(window[t], weight[t], sum);
      out[r * p.out_stride] = Silu(sum);
    }
  } else {
    for (int64_t r = 0; r < piece.row_count; ++r) {
      float sum = bias;
      for (int64_t t = 0; t < p.taps; ++t) {
        sum = fmaf(RowValue(p, piece.sequence, piece.row_begin + r - (p.taps - 1) + t, c),
                   p.weight[t * p.channels + c], sum);
      }
      out[r * p.out_stride] = Silu(sum);
    }
  }
  if (piece.row_count == piece.sequence.row_count) UpdateState(p, piece.sequence, c);
}

// Grid: (first pieces of the sequences of several, channels / kThreads).
__global__ void __launch_bounds__(kThreads)
    ConvStateKernel(ConvSiluParams p, const Piece* __restrict__ pieces) {
  const Piece piece = pieces[blockIdx.x];
  const int64_t c = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (c < p.channels) UpdateState(p, piece.sequence, c);
}

}  // namespace

absl::Status CudaConvSilu(const ConvSiluParams& p, CudaStream& stream) {
  // The long sequences' first pieces lead, so that the second kernel finds them together.
  std::vector<Piece> pieces;
  for (int64_t i = 0; i < p.sequence_count; ++i) {
    if (p.sequences[i].row_count > kPieceRows) pieces.push_back({p.sequences[i], 0, kPieceRows});
  }
  const unsigned long_sequences = static_cast<unsigned>(pieces.size());
  for (int64_t i = 0; i < p.sequence_count; ++i) {
    const SequenceRows& sequence = p.sequences[i];
    for (int64_t r = sequence.row_count > kPieceRows ? kPieceRows : 0; r < sequence.row_count;
         r += kPieceRows) {
      const int64_t left = sequence.row_count - r;
      pieces.push_back({sequence, r, left < kPieceRows ? left : kPieceRows});
    }
  }
  if (pieces.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const Piece* const table,
                   stream.UploadOf(pieces.data(), static_cast<int64_t>(pieces.size())));
  const unsigned columns = static_cast<unsigned>(CeilDiv(p.channels, kThreads));
  const dim3 grid(static_cast<unsigned>(pieces.size()), columns);
  const auto kernel = p.taps == 2   ? ConvSiluKernel<2>
                      : p.taps == 3 ? ConvSiluKernel<3>
                      : p.taps == 4 ? ConvSiluKernel<4>
                                    : ConvSiluKernel<0>;
  RETURN_IF_ERROR(
      LaunchStatus(Launch(kernel, grid, kThreads, 0, stream.get(), p, table), "ConvSilu"));
  if (long_sequences == 0) return absl::OkStatus();
  return LaunchStatus(
      Launch(ConvStateKernel, dim3(long_sequences, columns), kThreads, 0, stream.get(), p, table),
      "ConvSilu, state");
}

}  // namespace mneme
