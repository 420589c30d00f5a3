// A candidate of a landmark scan as one 64-bit key: the score's bits in an order that integers
// keep, then the row's index, so of two equal scores the newer row has the larger key. Key 0 means
// none. A NaN reaches no bound.

#ifndef MNEME_KERNELS_CUDA_LANDMARK_KEYS_CUH_
#define MNEME_KERNELS_CUDA_LANDMARK_KEYS_CUH_

#include <cuda_runtime.h>

#include <cstdint>

namespace mneme::landmark_scan {

__device__ __forceinline__ uint64_t MakeKey(float score, uint32_t row) {
  const uint32_t bits = __float_as_uint(score + 0.0f);  // -0 becomes 0
  const uint32_t ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | row;
}

__device__ __forceinline__ float KeyScore(uint64_t key) {
  const uint32_t ordered = static_cast<uint32_t>(key >> 32);
  return __uint_as_float((ordered & 0x80000000u) != 0 ? ordered & 0x7fffffffu : ~ordered);
}

__device__ __forceinline__ float MinusInfinity() { return __uint_as_float(0xff800000u); }
// Reached by no score.
__device__ __forceinline__ float Unreachable() { return __uint_as_float(0x7fc00000u); }

// The least float above `v` (not a NaN; of plus infinity, a NaN).
__device__ __forceinline__ float NextAbove(float v) {
  const uint32_t bits = __float_as_uint(v + 0.0f);
  return __uint_as_float((bits & 0x80000000u) != 0 ? bits - 1 : bits + 1);
}

}  // namespace mneme::landmark_scan

#endif  // MNEME_KERNELS_CUDA_LANDMARK_KEYS_CUH_
