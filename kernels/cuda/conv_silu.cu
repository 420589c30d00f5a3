// Causal depthwise convolution with bias and SiLU, over sequences with a state.
//
// Rows are cut into pieces of one sequence each; a thread does one piece for four channels (one,
// where alignment does not allow four), walking down the rows with the last taps - 1 values in
// registers and the next eight on their way. The first piece of a sequence, which alone
// reads its state, also writes the new one.

#include <algorithm>
#include <cstdint>

#include "common/status_macros.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/tensor_core.cuh"

namespace mneme {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kPieceRows = 64;

struct Piece {
  SequenceRows sequence;
  int64_t row_begin;  // within the sequence
  int64_t row_count;  // 0 or less: there is no such piece
};
// How sequences are cut. Only first pieces read a state: pieces have at least taps - 1 rows.
struct Cut {
  const SequenceRows* sequences;
  int64_t count;       // of sequences
  int64_t pieces_max;  // of a sequence; of all below 2^32
  int64_t piece_rows;
  __device__ __forceinline__ Piece At(int64_t index) const {
    const auto at = static_cast<uint32_t>(index), each = static_cast<uint32_t>(pieces_max);
    Piece piece = {.sequence = sequences[at / each]};
    piece.row_begin = at % each * piece_rows;
    const int64_t left = piece.sequence.row_count - piece.row_begin;
    piece.row_count = left < piece_rows ? left : piece_rows;
    return piece;
  }
};

// Row `row` of the sequence at channel c; rows before the first are the state.
template <typename T>
__device__ __forceinline__ float RowValue(const ConvSiluParams& p, const SequenceRows& sequence,
                                          int64_t row, int64_t c) {
  return row >= 0
             ? ToFloat(static_cast<const T*>(p.in)[(sequence.row_begin + row) * p.in_stride + c])
             : sequence.state[p.state_offset + (p.taps - 1 + row) * p.channels + c];
}

template <typename T>
__device__ __forceinline__ float SiluTo(float x) {
  if constexpr (sizeof(T) == 2) return SiluToBf16(x);
  return Silu(x);
}

// The newest taps - 1 rows of (state, rows) become the state; ascending, as row j comes from j or
// later.
template <typename T>
__device__ __forceinline__ void UpdateState(const ConvSiluParams& p, const SequenceRows& sequence,
                                            int64_t c) {
  const int64_t past = p.taps - 1;
  for (int64_t j = 0; j < past; ++j) {
    sequence.state[p.state_offset + j * p.channels + c] =
        RowValue<T>(p, sequence, j + sequence.row_count - past, c);
  }
}

// Four values as they lie in memory.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T values[4];
};

// The piece and the first channel of this thread: `threads` of them a piece.
struct Place {
  int64_t piece, c;
  __device__ __forceinline__ Place(int64_t threads, int channels) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    piece = index / threads;
    c = index % threads * channels;
  }
};

// Grid: pieces * channels / 4 threads. Four channels a thread, rows and vectors aligned to them.
template <int kTaps, typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 6 : 4)
    ConvSiluFourKernel(ConvSiluParams p, Cut cut) {
  constexpr int kRows = 8;  // under way at a time
  const Place place(p.channels / 4, 4);
  if (place.piece >= cut.count * cut.pieces_max) return;
  const Piece piece = cut.At(place.piece);
  if (piece.row_count <= 0) return;
  const int64_t c = place.c;
  float4 weight[kTaps], window[kTaps];
#pragma unroll
  for (int t = 0; t < kTaps; ++t) weight[t] = LoadFour(p.weight + t * p.channels + c);
  const float4 bias = LoadFour(p.bias + c);
#pragma unroll
  for (int t = 1; t < kTaps; ++t) {
    const int64_t row = piece.row_begin - kTaps + t;
    window[t] = {RowValue<T>(p, piece.sequence, row, c), RowValue<T>(p, piece.sequence, row, c + 1),
                 RowValue<T>(p, piece.sequence, row, c + 2),
                 RowValue<T>(p, piece.sequence, row, c + 3)};
  }
  const int64_t first = piece.sequence.row_begin + piece.row_begin;
  const T* const in = static_cast<const T*>(p.in) + first * p.in_stride + c;
  T* const out = static_cast<T*>(p.out) + first * p.out_stride + c;
  const int rows = static_cast<int>(piece.row_count);
  for (int r = 0; r < rows; r += kRows) {
    Four<T> next[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (r + i < rows) next[i] = *reinterpret_cast<const Four<T>*>(in + (r + i) * p.in_stride);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (r + i >= rows) break;
#pragma unroll
      for (int t = 1; t < kTaps; ++t) window[t - 1] = window[t];
      window[kTaps - 1] = LoadFour(next[i].values);
      float4 sum = bias;
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
        sum.x = fmaf(window[t].x, weight[t].x, sum.x);
        sum.y = fmaf(window[t].y, weight[t].y, sum.y);
        sum.z = fmaf(window[t].z, weight[t].z, sum.z);
        sum.w = fmaf(window[t].w, weight[t].w, sum.w);
      }
      StoreFour(out + (r + i) * p.out_stride,
                {SiluTo<T>(sum.x), SiluTo<T>(sum.y), SiluTo<T>(sum.z), SiluTo<T>(sum.w)});
    }
  }
  if (piece.row_begin != 0) return;
#pragma unroll
  for (int e = 0; e < 4; ++e) UpdateState<T>(p, piece.sequence, c + e);
}

// Grid: pieces * channels threads. A channel a thread, any alignment and number of taps.
template <typename T>
__global__ void __launch_bounds__(kThreads) ConvSiluKernel(ConvSiluParams p, Cut cut) {
  const Place place(p.channels, 1);
  if (place.piece >= cut.count * cut.pieces_max) return;
  const Piece piece = cut.At(place.piece);
  if (piece.row_count <= 0) return;
  const int64_t c = place.c;
  T* out = static_cast<T*>(p.out) + (piece.sequence.row_begin + piece.row_begin) * p.out_stride + c;
  for (int64_t r = 0; r < piece.row_count; ++r) {
    float sum = p.bias[c];
    for (int64_t t = 0; t < p.taps; ++t) {
      sum = fmaf(RowValue<T>(p, piece.sequence, piece.row_begin + r - (p.taps - 1) + t, c),
                 p.weight[t * p.channels + c], sum);
    }
    out[r * p.out_stride] = FromFloat<T>(SiluTo<T>(sum));
  }
  if (piece.row_begin == 0) UpdateState<T>(p, piece.sequence, c);
}

template <typename T>
absl::Status LaunchConv(const ConvSiluParams& p, const Cut& cut, cudaStream_t stream) {
  const auto aligned = [](const void* data, int64_t bytes) {
    return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0;
  };
  constexpr int64_t kBytes = 4 * sizeof(T);
  const bool fours = p.taps >= 2 && p.taps <= 4 && p.channels % 4 == 0 && p.in_stride % 4 == 0 &&
                     p.out_stride % 4 == 0 && aligned(p.in, kBytes) && aligned(p.out, kBytes) &&
                     aligned(p.weight, 16) && aligned(p.bias, 16);
  const auto kernel = !fours        ? ConvSiluKernel<T>
                      : p.taps == 2 ? ConvSiluFourKernel<2, T>
                      : p.taps == 3 ? ConvSiluFourKernel<3, T>
                                    : ConvSiluFourKernel<4, T>;
  const int64_t threads = cut.count * cut.pieces_max * (p.channels / (fours ? 4 : 1));
  return LaunchStatus(Launch(kernel, static_cast<unsigned>(CeilDiv(threads, kThreads)), kThreads, 0,
                             stream, p, cut),
                      "ConvSilu");
}

}  // namespace

absl::Status CudaConvSilu(const ConvSiluParams& p, CudaStream& stream) {
  int64_t longest = 0;
  for (int64_t i = 0; i < p.sequence_count; ++i) {
    longest = std::max(longest, p.sequences[i].row_count);
  }
  if (longest == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(const SequenceRows* const sequences,
                   stream.UploadOf(p.sequences, p.sequence_count));
  const auto launch = p.io_dtype == DType::kBf16 ? LaunchConv<__nv_bfloat16> : LaunchConv<float>;
  const int64_t piece_rows = std::max(kPieceRows, p.taps - 1);
  return launch(p,
                {.sequences = sequences,
                 .count = p.sequence_count,
                 .pieces_max = CeilDiv(longest, piece_rows),
                 .piece_rows = piece_rows},
                stream.get());
}

}  // namespace mneme
