// The best candidates that a warp has met, in shared memory: a list of keys a query, which is cut
// down to the k best whenever it might overflow; the k-th best is then the bound that a score must
// reach to enter. Lists and what belongs to them lie in ListBytes a warp.

#ifndef MNEME_KERNELS_CUDA_LANDMARK_LISTS_CUH_
#define MNEME_KERNELS_CUDA_LANDMARK_LISTS_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/landmark_keys.cuh"
#include "kernels/cuda/landmark_shared_bytes.h"
#include "kernels/cuda/landmark_tiles.cuh"

namespace mneme::landmark_scan {

// The lists of a warp or of several that take turns, in shared memory.
struct Lists {
  uint64_t* keys;  // [queries, capacity]
  int* counts;     // [queries]
  float* bounds;   // [queries]
  int capacity;
  int k;

  // Any lane. The caller knows that there is room.
  __device__ __forceinline__ void Append(int query, float score, uint32_t row) const {
    const int at = atomicAdd(counts + query, 1);
    keys[query * capacity + at] = MakeKey(score, row);
  }

  // Keeps the k best of a list, best first, and moves its bound up. A whole warp, with its own
  // `sorted` [k]. Keys of a list differ, so each has a rank of its own.
  __device__ __forceinline__ void Settle(int query, uint64_t* sorted) const {
    const int lane = threadIdx.x % kWarp;
    uint64_t* list = keys + query * capacity;
    const int count = min(counts[query], capacity);
    const int kept = min(count, k);
    for (int i = lane; i < count; i += kWarp) {
      const uint64_t key = list[i];
      int rank = 0;
      for (int j = 0; j < count; ++j) rank += list[j] > key ? 1 : 0;
      if (rank < k) sorted[rank] = key;
    }
    __syncwarp();
    for (int i = lane; i < kept; i += kWarp) list[i] = sorted[i];
    if (lane == 0) {
      counts[query] = kept;
      if (kept == k) bounds[query] = NextAbove(KeyScore(sorted[k - 1]));
    }
    __syncwarp();
  }
};

// Lists and, behind them, the `sorted` of Settle; `memory` is aligned to 8 bytes.
__device__ __forceinline__ Lists PlaceLists(unsigned char* memory, int queries, const Args& args,
                                            uint64_t** sorted) {
  Lists lists;
  lists.keys = reinterpret_cast<uint64_t*>(memory);
  *sorted = lists.keys + queries * args.capacity;
  lists.counts = reinterpret_cast<int*>(*sorted + args.k);
  lists.bounds = reinterpret_cast<float*>(lists.counts + queries);
  lists.capacity = args.capacity;
  lists.k = args.k;
  return lists;
}

__device__ __forceinline__ void ClearLists(const Lists& lists, int queries, int n_queries, int lane,
                                           int lanes) {
  for (int q = lane; q < queries; q += lanes) {
    lists.counts[q] = 0;
    lists.bounds[q] = q < n_queries ? MinusInfinity() : Unreachable();
  }
}

// Settles the lists of one warp that another step might overfill, and those that have k keys but no
// bound yet. True when it settled one.
__device__ __forceinline__ bool SettleFull(const Lists& lists, uint64_t* sorted, int n_queries) {
  bool settled = false;
  const int lane = threadIdx.x % kWarp;
  for (int base = 0; base < n_queries; base += kWarp) {
    const int q = base + lane;
    bool full = false;
    if (q < n_queries) {
      const int count = lists.counts[q];
      full = count > lists.capacity - kSlack ||
             (count >= lists.k && lists.bounds[q] == MinusInfinity());
    }
    for (unsigned todo = __ballot_sync(0xffffffffu, full); todo != 0; todo &= todo - 1) {
      lists.Settle(base + __ffs(static_cast<int>(todo)) - 1, sorted);
      settled = true;
    }
  }
  return settled;
}

// Writes a warp's lists to their place in memory.
__device__ __forceinline__ void WriteLists(const Lists& lists, uint64_t* sorted, const Args& args,
                                           int64_t list) {
  const int lane = threadIdx.x % kWarp;
  for (int q = 0; q < args.n_queries; ++q) {
    lists.Settle(q, sorted);
    uint64_t* out = args.keys + (list * args.pass_queries + q) * args.list_keys;
    for (int i = lane; i < lists.counts[q]; i += kWarp) out[i] = lists.keys[q * lists.capacity + i];
    if (lane == 0) args.counts[static_cast<int64_t>(q) * args.lists + list] = lists.counts[q];
  }
}

}  // namespace mneme::landmark_scan

#endif  // MNEME_KERNELS_CUDA_LANDMARK_LISTS_CUH_
