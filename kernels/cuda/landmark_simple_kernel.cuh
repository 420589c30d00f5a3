// The landmark scan for any type, width and alignment: a row at a time, its elements side by side
// in the lanes of a warp, sums in f32. What enters goes into the warp's lists (landmark_lists.cuh).

#ifndef MNEME_KERNELS_CUDA_LANDMARK_SIMPLE_KERNEL_CUH_
#define MNEME_KERNELS_CUDA_LANDMARK_SIMPLE_KERNEL_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/landmark_lists.cuh"
#include "kernels/cuda/landmark_shared_bytes.h"
#include "kernels/cuda/landmark_tiles.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace mneme::landmark_scan {

inline constexpr int kSimpleTileRows = 16;

// Grid: any; block and shared memory: PlanSimpleBlock. Each warp scores a row at a time
// against up to kSimpleQueries queries, its lanes side by side along the row.
template <typename T>
__global__ void __launch_bounds__(kSimpleWarpsMax* kWarp) ScanSimpleKernel(const Args args) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  uint64_t* sorted;
  const Lists lists =
      PlaceLists(DynamicShared() + warp * ListBytes(kSimpleQueries, args.capacity, args.k),
                 kSimpleQueries, args, &sorted);
  ClearLists(lists, kSimpleQueries, args.n_queries, lane, kWarp);
  __syncwarp();
  const int64_t list = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + warp;
  TileCursor cursor;
  for (cursor.Start(args, list, args.lists, kSimpleTileRows); cursor.valid();
       cursor.Next(args, kSimpleTileRows)) {
    for (int r = cursor.row_count - 1; r >= 0; --r) {
      const T* row = reinterpret_cast<const T*>(cursor.rows) + static_cast<int64_t>(r) * args.dim;
      float sums[kSimpleQueries] = {};
      for (int d = lane; d < args.dim; d += kWarp) {
        const float x = static_cast<float>(row[d]);
#pragma unroll
        for (int q = 0; q < kSimpleQueries; ++q) {
          if (q < args.n_queries)
            sums[q] += x * args.queries[static_cast<int64_t>(q) * args.dim + d];
        }
      }
      float mine = 0;  // lane q: the score of query q
#pragma unroll
      for (int q = 0; q < kSimpleQueries; ++q) {
        if (q < args.n_queries) {
          float sum = sums[q];
#pragma unroll
          for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
          if (lane == q) mine = sum;
        }
      }
      const bool enters = lane < args.n_queries && mine >= lists.bounds[lane];
      if (enters) lists.Append(lane, mine, cursor.first_row + static_cast<uint32_t>(r));
      if (__any_sync(0xffffffffu, enters)) {
        __syncwarp();
        SettleFull(lists, sorted, args.n_queries);
      }
    }
  }
  WriteLists(lists, sorted, args, list);
}

}  // namespace mneme::landmark_scan

#endif  // MNEME_KERNELS_CUDA_LANDMARK_SIMPLE_KERNEL_CUH_
