// Shared memory that the lists of the landmark scan take (landmark_lists.cuh), and how many warps
// of its plain kernel (landmark_simple_kernel.cuh) a block therefore has. Nothing of CUDA's, so
// that tests need no GPU.

#ifndef MNEME_KERNELS_CUDA_LANDMARK_SHARED_BYTES_H_
#define MNEME_KERNELS_CUDA_LANDMARK_SHARED_BYTES_H_

#include <algorithm>
#include <cstdint>

namespace mneme::landmark_scan {

inline constexpr int kSlack = 16;  // rows that one step of a warp adds to a list at most

// Of the lists of `queries` queries.
constexpr int64_t ListBytes(int queries, int capacity, int k) {
  return int64_t{queries} * capacity * 8 + queries * 8 + int64_t{k} * 8;
}

inline constexpr int kSimpleWarpsMax = 8;
inline constexpr int kSimpleQueries = 8;

// A block of the plain kernel that keeps the `k` best.
struct SimpleBlock {
  int warps = 0;
  int capacity = 0;
  int64_t shared_bytes = 0;
};

// As many warps as fit: eight, but for large k on GPUs of little shared memory. Every GPU has
// enough for one.
constexpr SimpleBlock PlanSimpleBlock(int k, int64_t shared_bytes_max) {
  const int capacity = k + kSlack;
  const int64_t warp_bytes = ListBytes(kSimpleQueries, capacity, k);
  const int64_t warps = std::min<int64_t>(kSimpleWarpsMax, shared_bytes_max / warp_bytes);
  return {static_cast<int>(warps), capacity, warps * warp_bytes};
}

}  // namespace mneme::landmark_scan

#endif  // MNEME_KERNELS_CUDA_LANDMARK_SHARED_BYTES_H_
