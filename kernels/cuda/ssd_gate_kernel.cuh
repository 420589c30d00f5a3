// SsdParams::gate on y that is there, for the kernels of Ssd that do not gate what they store.

#ifndef MNEME_KERNELS_CUDA_SSD_GATE_KERNEL_CUH_
#define MNEME_KERNELS_CUDA_SSD_GATE_KERNEL_CUH_

#include <cstdint>

#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/ops.h"

namespace mneme::ssd {

constexpr int kGateWidth = 64;  // columns of a head that have a sum of squares
constexpr int kGateWarps = 8;

// Grid: (rows * heads * slices of 64 columns) / kGateWarps; a warp does one of these, in bf16.
__global__ void __launch_bounds__(kGateWarps * 32) GateKernel(SsdParams p, int slices) {
  const int64_t units = p.heads * slices;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kGateWarps + threadIdx.x / 32;
  const int64_t row = index / units, unit = index % units;
  if (row >= p.rows) return;
  const int64_t first = unit / slices * p.head_dim + unit % slices * kGateWidth;
  const int64_t columns = p.head_dim - unit % slices * kGateWidth;  // valid ones, or more
  auto* const y = static_cast<__nv_bfloat16*>(static_cast<void*>(p.y)) + row * p.y_stride + first;
  const auto* const z = static_cast<const __nv_bfloat16*>(p.gate.z) + row * p.gate.z_stride + first;
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x) % 32; i < kGateWidth && i < columns; i += 32) {
    const float v = ToFloat(y[i]) * Silu(ToFloat(z[i]));
    sum = fmaf(v, v, sum);
    y[i] = FromFloat<__nv_bfloat16>(v * p.gate.weight[first + i]);
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kFullWarp, sum, step);
  if (threadIdx.x % 32 == 0) p.gate.squares[row * units + unit] = sum;
}

inline cudaError_t LaunchGate(const SsdParams& p, cudaStream_t stream) {
  const int64_t slices = (p.head_dim + kGateWidth - 1) / kGateWidth;
  const int64_t warps = p.rows * p.heads * slices;
  return Launch(GateKernel, dim3(static_cast<unsigned>((warps + kGateWarps - 1) / kGateWarps)),
                dim3(kGateWarps * 32), 0, stream, p, static_cast<int>(slices));
}

}  // namespace mneme::ssd

#endif  // MNEME_KERNELS_CUDA_SSD_GATE_KERNEL_CUH_
