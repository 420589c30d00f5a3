// The last step of a landmark scan: of the lists that its warps leave for each query the k best
// candidates, in order. The order of keys is total, so the result does not depend on which warp met
// which row.

#ifndef MNEME_KERNELS_CUDA_LANDMARK_MERGE_KERNEL_CUH_
#define MNEME_KERNELS_CUDA_LANDMARK_MERGE_KERNEL_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/landmark_keys.cuh"
#include "kernels/cuda/landmark_tiles.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace mneme::landmark_scan {

inline constexpr int kMergeThreads = 512;
inline constexpr int kMergeKeys = 1024;

// Sorts out the k best of one query's lists. Grid: n_queries; block: kMergeThreads. Up to
// kMergeKeys keys are gathered and each one's rank is counted; of more, the largest are found
// first, byte by byte. Without lists there are no candidates.
__global__ void __launch_bounds__(kMergeThreads)
    MergeListsKernel(const Args args, int64_t* indices, float* scores) {
  __shared__ uint64_t gathered[kMergeKeys];
  __shared__ int histogram[256];
  __shared__ int gathered_count, chosen, above, within;
  WaitForKernelBefore();
  const int query = blockIdx.x, thread = threadIdx.x;
  const auto for_lists = [&](auto fn) {
    for (int64_t list = thread; list < args.lists; list += kMergeThreads) {
      const uint64_t* keys = args.keys + (list * args.pass_queries + query) * args.list_keys;
      const int count = args.counts[int64_t{query} * args.lists + list];
      if (count > 0) fn(keys, count);
    }
  };
  if (thread == 0) gathered_count = 0;
  __syncthreads();
  for_lists([&](const uint64_t* keys, int count) {
    const int at = atomicAdd(&gathered_count, count);
    for (int i = 0; i < count && at + i < kMergeKeys; ++i) gathered[at + i] = keys[i];
  });
  __syncthreads();
  if (gathered_count > kMergeKeys) {
    uint64_t least = 0;  // at least k keys reach this
    if (thread == 0) above = 0;
    for (int shift = 56;; shift -= 8) {
      for (int i = thread; i < 256; i += kMergeThreads) histogram[i] = 0;
      __syncthreads();
      for_lists([&](const uint64_t* keys, int count) {
        for (int i = 0; i < count; ++i) {
          if (shift == 56 || keys[i] >> (shift + 8) == least >> (shift + 8)) {
            atomicAdd(histogram + (keys[i] >> shift & 255), 1);
          }
        }
      });
      __syncthreads();
      if (thread < 256) {
        int larger = above;
        for (int i = thread + 1; i < 256; ++i) larger += histogram[i];
        if (larger < args.k && larger + histogram[thread] >= args.k) {
          chosen = thread;
          within = larger + histogram[thread];
        }
      }
      __syncthreads();
      least |= static_cast<uint64_t>(chosen) << shift;
      if (thread == 0) above = within - histogram[chosen];
      if (within <= kMergeKeys) break;  // at the latest with the last byte, as keys differ
      __syncthreads();
    }
    if (thread == 0) gathered_count = 0;
    __syncthreads();
    for_lists([&](const uint64_t* keys, int count) {
      for (int i = 0; i < count; ++i) {
        if (keys[i] >= least) gathered[atomicAdd(&gathered_count, 1)] = keys[i];
      }
    });
    __syncthreads();
  }
  const int count = gathered_count;
  for (int i = thread; i < count; i += kMergeThreads) {
    const uint64_t key = gathered[i];
    int rank = 0;
    for (int j = 0; j < count; ++j) rank += gathered[j] > key ? 1 : 0;
    if (rank < args.k) {
      indices[static_cast<int64_t>(query) * args.k + rank] =
          static_cast<int64_t>(key & 0xffffffffu);
      scores[static_cast<int64_t>(query) * args.k + rank] = KeyScore(key);
    }
  }
  for (int i = count + thread; i < args.k; i += kMergeThreads) {
    indices[static_cast<int64_t>(query) * args.k + i] = -1;
    scores[static_cast<int64_t>(query) * args.k + i] = MinusInfinity();
  }
}

}  // namespace mneme::landmark_scan

#endif  // MNEME_KERNELS_CUDA_LANDMARK_MERGE_KERNEL_CUH_
