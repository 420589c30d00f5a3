// The largest value of each row: greedy decoding without the logits leaving the device.
//
// A block does a row. A value and its column become one integer that orders as the operation says:
// the value's bits, mapped so that they order as the floats do, above the column counted from the
// end. NaNs become zero, less than any value.

#include <cstdint>

#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/tensor_core.cuh"

namespace mneme {
namespace {

constexpr int kThreads = 1024;
constexpr int kUnroll = 8;  // values of a thread under way at one time

__device__ __forceinline__ uint64_t Rank(float value, uint32_t column) {
  const uint32_t bits = __float_as_uint(value + 0.0f);  // no minus zero
  const uint32_t order = bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
  const uint64_t rank = static_cast<uint64_t>(order) << 32 | (0xffffffffu - column);
  return value != value ? 0 : rank;
}

__device__ __forceinline__ uint64_t WarpLargest(uint64_t rank) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const uint64_t other = __shfl_xor_sync(kFullWarp, rank, step);
    rank = other > rank ? other : rank;
  }
  return rank;
}

// Grid: rows, rounded down to what a grid may have; a block strides over rows. kThreads threads.
__global__ void __launch_bounds__(kThreads) ArgMaxKernel(ArgMaxParams p) {
  __shared__ uint64_t partial[kThreads / 32];
  WaitForKernelBefore();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int64_t r = blockIdx.x; r < p.rows; r += gridDim.x) {
    const float* row = p.in + r * p.in_stride;
    uint64_t best = 0;
    const uint32_t columns = static_cast<uint32_t>(p.columns);  // below 2^31: no sum overflows
    for (uint32_t first = threadIdx.x; first < columns; first += kThreads * kUnroll) {
      float values[kUnroll];
#pragma unroll
      for (int j = 0; j < kUnroll; ++j) {
        const uint32_t i = first + j * kThreads;
        if (i < columns) values[j] = row[i];
      }
#pragma unroll
      for (int j = 0; j < kUnroll; ++j) {
        const uint32_t i = first + j * kThreads;
        const uint64_t rank = i < columns ? Rank(values[j], i) : 0;
        best = rank > best ? rank : best;
      }
    }
    best = WarpLargest(best);
    if (lane == 0) partial[warp] = best;
    __syncthreads();
    if (warp == 0) {
      best = WarpLargest(partial[lane]);
      if (lane == 0) {
        p.out[r] = best == 0 ? 0 : static_cast<int32_t>(0xffffffffu - (best & 0xffffffffu));
      }
    }
    __syncthreads();
  }
}

}  // namespace

absl::Status CudaArgMax(const ArgMaxParams& p, CudaStream& stream) {
  if (p.rows == 0) return absl::OkStatus();
  const unsigned grid = static_cast<unsigned>(p.rows < (1 << 20) ? p.rows : (1 << 20));
  return LaunchStatus(
      LaunchOverlapping(ArgMaxKernel, grid, kThreads, 0, stream.get(), stream.kernels_overlap(), p),
      "ArgMax");
}

}  // namespace mneme
