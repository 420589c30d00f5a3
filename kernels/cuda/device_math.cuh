// Small device functions that many kernels share: warp sums, bf16, the network's scalar functions.

#ifndef MNEME_KERNELS_CUDA_DEVICE_MATH_CUH_
#define MNEME_KERNELS_CUDA_DEVICE_MATH_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace mneme {

inline constexpr unsigned kFullWarp = 0xffffffffu;

__device__ __forceinline__ float WarpSum(float v) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(kFullWarp, v, step);
  return v;
}

__device__ __forceinline__ float WarpMax(float v) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(kFullWarp, v, step));
  return v;
}

// Sum over the block, the same in every thread; the order depends on blockDim.x alone. blockDim.x
// is a multiple of 32, `partial` is shared memory of 32 floats. Safe to call again at once.
__device__ __forceinline__ float BlockSum(float v, float* partial) {
  v = WarpSum(v);
  const int warps = static_cast<int>(blockDim.x) / 32;
  if (warps == 1) return v;
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  v = WarpSum(lane < warps ? partial[lane] : 0.0f);
  __syncthreads();
  return v;
}

__device__ __forceinline__ float ToFloat(float v) { return v; }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 v) { return __bfloat162float(v); }

// Four values that lie aligned to all of them.
__device__ __forceinline__ float4 LoadFour(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}
__device__ __forceinline__ float4 LoadFour(const __nv_bfloat16* from) {
  const uint2 bits = *reinterpret_cast<const uint2*>(from);
  return {__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u),
          __uint_as_float(bits.y << 16), __uint_as_float(bits.y & 0xffff0000u)};
}
__device__ __forceinline__ void StoreFour(float* to, float4 v) {
  *reinterpret_cast<float4*>(to) = v;
}
__device__ __forceinline__ void StoreFour(__nv_bfloat16* to, float4 v) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y);
  const __nv_bfloat162 high = __floats2bfloat162_rn(v.z, v.w);
  uint2 bits;
  memcpy(&bits.x, &low, 4);
  memcpy(&bits.y, &high, 4);
  *reinterpret_cast<uint2*>(to) = bits;
}

template <typename T>
__device__ __forceinline__ T FromFloat(float v);
template <>
__device__ __forceinline__ float FromFloat<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ __nv_bfloat16 FromFloat<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// x / (1 + e^-x), to a few ulps; 0 where that is below 2^-120, x at plus infinity of floats.
__device__ __forceinline__ float Silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// log(1 + e^x), to full precision: dt multiplies long sums.
__device__ __forceinline__ float Softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

}  // namespace mneme

#endif  // MNEME_KERNELS_CUDA_DEVICE_MATH_CUH_
