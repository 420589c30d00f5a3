// out = silu(gate) * up.
//
// A thread does 4 values where addresses allow 16-byte reads, else one; a block does pieces of
// rows.

#include <cstdint>

#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/tensor_core.cuh"

namespace mneme {
namespace {

constexpr int kThreads = 256;

// Grid: any; a block strides over pieces of kThreads * kValues values of a row.
template <int kValues, typename Out>
__global__ void __launch_bounds__(kThreads) SwiGluKernel(SwiGluParams p, int64_t pieces) {
  for (int64_t piece = blockIdx.x; piece < p.rows * pieces; piece += gridDim.x) {
    const int64_t r = piece / pieces;
    const int64_t i = (piece % pieces * kThreads + threadIdx.x) * kValues;
    if (i >= p.width) continue;
    const float* gate = p.gate_up + r * p.gate_up_stride + i;
    const float* up = gate + p.width;
    Out* out = static_cast<Out*>(p.out) + r * p.out_stride + i;
    if constexpr (kValues == 1) {
      *out = FromFloat<Out>(Silu(*gate) * *up);
    } else {
      const float4 g = *reinterpret_cast<const float4*>(gate);
      const float4 u = *reinterpret_cast<const float4*>(up);
      Out values[4] = {FromFloat<Out>(Silu(g.x) * u.x), FromFloat<Out>(Silu(g.y) * u.y),
                       FromFloat<Out>(Silu(g.z) * u.z), FromFloat<Out>(Silu(g.w) * u.w)};
      if constexpr (sizeof(Out) == 4) {
        float4 bits;
        memcpy(&bits, values, 16);
        *reinterpret_cast<float4*>(out) = bits;
      } else {
        uint2 bits;
        memcpy(&bits, values, 8);
        *reinterpret_cast<uint2*>(out) = bits;
      }
    }
  }
}

template <int kValues, typename Out>
cudaError_t LaunchSwiGlu(const SwiGluParams& p, cudaStream_t stream) {
  const int64_t pieces = CeilDiv(p.width, kThreads * kValues);
  const int64_t blocks = p.rows * pieces < (1 << 22) ? p.rows * pieces : (1 << 22);
  return Launch(SwiGluKernel<kValues, Out>, static_cast<unsigned>(blocks), kThreads, 0, stream, p,
                pieces);
}

}  // namespace

absl::Status CudaSwiGlu(const SwiGluParams& p, CudaStream& stream) {
  if (p.rows == 0) return absl::OkStatus();
  const int out_bytes = DTypeBytes(p.out_dtype);
  const bool fours = p.width % 4 == 0 && p.gate_up_stride % 4 == 0 && p.out_stride % 4 == 0 &&
                     reinterpret_cast<uintptr_t>(p.gate_up) % 16 == 0 &&
                     reinterpret_cast<uintptr_t>(p.out) % (4 * out_bytes) == 0;
  const auto launch =
      p.out_dtype == DType::kBf16
          ? (fours ? LaunchSwiGlu<4, __nv_bfloat16> : LaunchSwiGlu<1, __nv_bfloat16>)
          : (fours ? LaunchSwiGlu<4, float> : LaunchSwiGlu<1, float>);
  return LaunchStatus(launch(p, stream.get()), "SwiGlu");
}

}  // namespace mneme
