// The landmark scan of bf16 rows by mma.sync, for 8 or 32 queries a pass: any GPU of sm_80 or
// later. Each warp owns tiles of 32 rows and copies slices of them into its own ring of shared
// memory, ahead of the products; all warps read the queries [hi, lo] from there too. What enters
// goes into the warp's lists (landmark_lists.cuh).

#ifndef MNEME_KERNELS_CUDA_LANDMARK_MMA_KERNEL_CUH_
#define MNEME_KERNELS_CUDA_LANDMARK_MMA_KERNEL_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/landmark_lists.cuh"
#include "kernels/cuda/landmark_tiles.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace mneme::landmark_scan {

// Shapes of ScanMmaKernel for up to kQueries queries. Each warp owns tiles of 32 rows and a ring of
// kStages slices of them, [32 rows, kSlice], rows padded by 16 bytes against bank conflicts.
template <int kQueriesValue>
struct MmaShape {
  static constexpr int kQueries = kQueriesValue;
  static constexpr int kWarps = 4;
  static constexpr int kRows = 32;
  static constexpr int kSlice = 128;
  static constexpr int kStages = 4;
  static constexpr int kPitch = kSlice * 2 + 16;
  static constexpr int kStageBytes = kRows * kPitch;
  static constexpr int kRowChunks = kSlice / 8;           // of 16 bytes
  static constexpr int kRowsAtOnce = kWarp / kRowChunks;  // rows that one copy of a warp covers
  static constexpr int kCopies = kRows / kRowsAtOnce;     // copies a stage and lane
  static constexpr int kGroup = kQueries / 8 < 4 ? kQueries / 8 : 4;  // query tiles side by side

  static int64_t SharedBytes(int64_t dim, int capacity, int k) {
    const int64_t padded = (dim + 15) / 16 * 16;
    return int64_t{kWarps} * kStages * kStageBytes + 2 * kQueries * (padded * 2 + 16) +
           kWarps * ListBytes(kQueries, capacity, k);
  }
};

// Grid: any (one block a multiprocessor fills the memory); block: kWarps warps; shared: the warps'
// rings, the queries [hi, lo][kQueries][padded dim + 8], the warps' lists. dim is a multiple of 8,
// rows are aligned to 16 bytes.
template <typename S>
__global__ void __launch_bounds__(S::kWarps* kWarp, 1) ScanMmaKernel(const Args args) {
  constexpr int kQueryTiles = S::kQueries / 8;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int padded = (args.dim + 15) / 16 * 16;
  const int query_pitch = padded * 2 + 16;
  unsigned char* ring = DynamicShared() + warp * (S::kStages * S::kStageBytes);
  unsigned char* query_hi = DynamicShared() + S::kWarps * S::kStages * S::kStageBytes;
  unsigned char* query_lo = query_hi + S::kQueries * query_pitch;
  uint64_t* sorted;
  const Lists lists = PlaceLists(
      query_lo + S::kQueries * query_pitch + warp * ListBytes(S::kQueries, args.capacity, args.k),
      S::kQueries, args, &sorted);
  const int64_t list = static_cast<int64_t>(blockIdx.x) * S::kWarps + warp;
  const int slices = (padded + S::kSlice - 1) / S::kSlice;

  TileCursor copy_cursor, cursor;
  copy_cursor.Start(args, list, args.lists, S::kRows);
  cursor = copy_cursor;
  int copy_slice = 0, copy_stage = 0;
  const int copy_row = lane / S::kRowChunks, copy_chunk = lane % S::kRowChunks;
  // Starts the copy of the next slice, if there is one; always closes a group.
  const auto copy_next = [&] {
    if (copy_cursor.valid()) {
      unsigned char* to =
          ring + copy_stage * S::kStageBytes + copy_row * S::kPitch + copy_chunk * 16;
      const int chunk = copy_slice * S::kRowChunks + copy_chunk;
      const bool inside = chunk * 8 < args.dim;
      const unsigned char* from = copy_cursor.rows + (inside ? chunk * 16 : 0);
#pragma unroll
      for (int i = 0; i < S::kCopies; ++i) {
        const int row = copy_row + i * S::kRowsAtOnce;
        const bool valid = inside && row < copy_cursor.row_count;
        CopyAsync16(to + i * S::kRowsAtOnce * S::kPitch,
                    from + (valid ? static_cast<int64_t>(row) * args.dim * 2 : 0), valid);
      }
      if (++copy_slice == slices) {
        copy_slice = 0;
        copy_cursor.Next(args, S::kRows);
      }
    }
    copy_stage = copy_stage + 1 == S::kStages ? 0 : copy_stage + 1;
    CopyAsyncCommit();
  };
  for (int i = 0; i < S::kStages - 1; ++i) copy_next();

  for (int i = threadIdx.x; i < S::kQueries * (padded / 8); i += S::kWarps * kWarp) {
    const int q = i / (padded / 8), d = i % (padded / 8) * 8;
    uint4 hi, lo;
    SplitQuery(args, q, d, &hi, &lo);
    *reinterpret_cast<uint4*>(query_hi + q * query_pitch + d * 2) = hi;
    *reinterpret_cast<uint4*>(query_lo + q * query_pitch + d * 2) = lo;
  }
  ClearLists(lists, S::kQueries, args.n_queries, lane, kWarp);
  __syncthreads();

  // Columns of this thread: query tile j, (lane % 4) * 2 + c.
  float bounds[kQueryTiles][2];
  const auto load_bounds = [&] {
#pragma unroll
    for (int j = 0; j < kQueryTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) bounds[j][c] = lists.bounds[j * 8 + lane % 4 * 2 + c];
    }
  };
  load_bounds();

  // Where this lane's rows of A and B fragments begin.
  const int a_offset = lane % 16 * S::kPitch + lane / 16 * 16;
  const unsigned char* b_base =
      (lane / 16 == 0 ? query_hi : query_lo) + lane % 8 * query_pitch + lane / 8 % 2 * 16;
  int stage = 0;
  for (; cursor.valid(); cursor.Next(args, S::kRows)) {
    float sums[2][kQueryTiles][4] = {};
    for (int slice = 0; slice < slices; ++slice) {
      CopyAsyncWait<S::kStages - 2>();
      __syncwarp();
      copy_next();  // into the stage that was read before this one
      const unsigned char* rows = ring + stage * S::kStageBytes + a_offset;
      const unsigned char* queries = b_base + slice * S::kSlice * 2;
      const int steps = min(S::kSlice, padded - slice * S::kSlice) / 16;
#pragma unroll
      for (int step = 0; step < S::kSlice / 16; ++step) {
        if (step < steps) {
          uint32_t a[2][4];
          LoadMatrix4(a[0], rows + step * 32);
          LoadMatrix4(a[1], rows + 16 * S::kPitch + step * 32);
#pragma unroll
          for (int j0 = 0; j0 < kQueryTiles; j0 += S::kGroup) {
            uint32_t b[S::kGroup][4];
#pragma unroll
            for (int j = 0; j < S::kGroup; ++j) {
              LoadMatrix4(b[j], queries + (j0 + j) * 8 * query_pitch + step * 32);
            }
#pragma unroll
            for (int part = 0; part < 2; ++part) {
#pragma unroll
              for (int j = 0; j < S::kGroup; ++j) {
                MmaBf16(sums[0][j0 + j], a[0], b[j][part * 2], b[j][part * 2 + 1]);
                MmaBf16(sums[1][j0 + j], a[1], b[j][part * 2], b[j][part * 2 + 1]);
              }
            }
          }
        }
      }
      __syncwarp();  // this stage may be written again from the next slice on
      stage = stage + 1 == S::kStages ? 0 : stage + 1;
    }
#pragma unroll
    for (int m = 1; m >= 0; --m) {  // newer rows first
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (m * 16 + h * 8 + lane / 4 >= cursor.row_count) {
#pragma unroll
          for (int j = 0; j < kQueryTiles; ++j) {
            sums[m][j][h * 2] = sums[m][j][h * 2 + 1] = Unreachable();
          }
        }
      }
      bool enters = false;
#pragma unroll
      for (int j = 0; j < kQueryTiles; ++j) {
        const bool here = sums[m][j][0] >= bounds[j][0] || sums[m][j][2] >= bounds[j][0] ||
                          sums[m][j][1] >= bounds[j][1] || sums[m][j][3] >= bounds[j][1];
        if (here) {
          enters = true;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (sums[m][j][i] >= bounds[j][i % 2]) {
              lists.Append(j * 8 + lane % 4 * 2 + i % 2, sums[m][j][i],
                           cursor.first_row + static_cast<uint32_t>(m * 16 + i / 2 * 8 + lane / 4));
            }
          }
        }
      }
      if (__any_sync(0xffffffffu, enters)) {
        __syncwarp();
        if (SettleFull(lists, sorted, args.n_queries)) load_bounds();
      }
    }
  }
  CopyAsyncWait<0>();
  __syncwarp();
  WriteLists(lists, sorted, args, list);
}

}  // namespace mneme::landmark_scan

#endif  // MNEME_KERNELS_CUDA_LANDMARK_MMA_KERNEL_CUH_
