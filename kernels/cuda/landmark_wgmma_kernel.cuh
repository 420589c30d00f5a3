// The landmark scan of bf16 rows by wgmma (sm_90a), for 8 to 128 queries a pass; dim a multiple of
// 64.
//
// Four warps copy, two warpgroups multiply tiles of 64 rows by [hi, lo], 64 x 2 N, and add the two
// halves. With lists of their own all 1000 warps would find their own best first, and filling
// lists, not bytes or products, would take the time. So the grid shares bounds: each query has 32
// places in memory, one for each 32nd part of the warps, with the best score that the part has met;
// the k-th best of the 32 is a bound for everyone, as it stands for k different rows. A warp's
// first tile only enters its best scores there; then all wait a moment for most of the grid, and
// the bounds leave some ten candidates a query to the whole grid. Warps read the places again after
// 1, 2, 4, 8 .. tiles. For k above 32 a warp has the bound of its own list alone.

#ifndef MNEME_KERNELS_CUDA_LANDMARK_WGMMA_KERNEL_CUH_
#define MNEME_KERNELS_CUDA_LANDMARK_WGMMA_KERNEL_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/landmark_keys.cuh"
#include "kernels/cuda/landmark_tiles.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace mneme::landmark_scan {

// Shapes of ScanWgmmaKernel for up to kQueries queries.
template <int kQueriesValue>
struct WgmmaShape {
  static constexpr int kQueries = kQueriesValue;
  static constexpr int kColumns = 2 * kQueries;  // hi, then lo
  static constexpr int kGroups = 2;              // of four warps, that multiply
  static constexpr int kWarps = kGroups * 4;
  static constexpr int kCopyThreads = 128;  // beside them
  static constexpr int kThreads = kWarps * kWarp + kCopyThreads;
  static constexpr int kRows = 64;
  static constexpr int kSlice = 64;  // of dim, a stage
  static constexpr int kStageBytes = kRows * kSlice * 2;
  static constexpr int kStagesMin = 4, kStagesMax = 16;
  static constexpr int kWarpRows = 16;                 // of a tile: what one step adds to a list
  static constexpr int kLeading = kColumns / 8 * 128;  // from 8 dimensions to the next 8

  // All shared memory but the ring.
  static constexpr int64_t FixedBytes(int64_t dim, int list_keys) {
    return dim * kColumns * 2 + 2 * kStagesMax * 8 + kQueries * 8 +
           int64_t{kWarps} * list_keys * 8 + kQueries * 4 + kWarps * kQueries * 4;
  }
};

// What all multiplying warps of a block know of the queries; in shared memory, raised by atomic
// operations and read without order: an older, lower bound is a bound too (and so is a score that a
// warp overwrites with an older one).
struct Bounds {
  uint64_t* keys;  // [queries]: a candidate's key is at least this
  float* scores;   // [queries]: their scores, minus infinity at first; a NaN without a query

  __device__ __forceinline__ void Raise(int query, uint64_t key) const {
    if (key > keys[query]) {
      atomicMax(reinterpret_cast<unsigned long long*>(keys + query), key);
      atomicExch(scores + query, KeyScore(key));
    }
  }
};

// A warp's lists, in device memory; the counts are in shared memory.
struct WarpLists {
  uint64_t* keys;     // [queries, list_keys]
  int* counts;        // [queries]
  uint64_t* scratch;  // [list_keys], shared memory
  int list_keys;
  int k;

  // Keeps the k best of a list and raises its bound. A whole warp. Keys of a list differ.
  __device__ __forceinline__ void Settle(int query, const Bounds& bounds) const {
    const int lane = threadIdx.x % kWarp;
    uint64_t* list = keys + static_cast<int64_t>(query) * list_keys;
    const int count = counts[query];
    for (int i = lane; i < count; i += kWarp) scratch[i] = list[i];
    __syncwarp();
    for (int i = lane; i < count; i += kWarp) {
      const uint64_t key = scratch[i];
      int rank = 0;
      for (int j = 0; j < count; ++j) rank += scratch[j] > key ? 1 : 0;
      if (rank < k) list[rank] = key;
      if (rank == k - 1) bounds.Raise(query, key);
    }
    if (lane == 0) counts[query] = min(count, k);
    __syncwarp();
  }
};

// Sorts the numbers of a warp's lanes, largest first.
__device__ __forceinline__ uint32_t SortLanes(uint32_t mine) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int size = 2; size <= kWarp; size *= 2) {
#pragma unroll
    for (int step = size / 2; step > 0; step /= 2) {
      const uint32_t other = __shfl_xor_sync(0xffffffffu, mine, step);
      const bool larger_here = ((lane & step) == 0) == ((lane & size) == 0);
      mine = larger_here ? max(mine, other) : min(mine, other);
    }
  }
  return mine;
}

// Makes queries ready for ScanWgmmaKernel and clears what its blocks share. Grid: enough threads
// for [pass_queries, dim / 8].
inline constexpr int kPrepareThreads = 128;
__global__ void __launch_bounds__(kPrepareThreads) PrepareKernel(const Args args) {
  LetNextKernelStart();
  const int i = static_cast<int>(blockIdx.x * kPrepareThreads + threadIdx.x);
  const int chunks = args.dim / 8;
  if (i < args.pass_queries * chunks) {
    const int q = i / chunks, chunk = i % chunks;
    uint4* to = reinterpret_cast<uint4*>(args.split) + int64_t{chunk} * args.pass_queries * 2 + q;
    SplitQuery(args, q, chunk * 8, to, to + args.pass_queries);
  }
  const int threads = static_cast<int>(gridDim.x) * kPrepareThreads;
  for (int at = i; at < args.pass_queries * kBestPlaces; at += threads) args.bests[at] = 0;
  if (i == 0) *args.arrived = 0;
}

// Grid: one block a multiprocessor; block: S::kThreads, eight warps that multiply, then four that
// copy; shared: the ring [stages][64 rows][64 dimensions], 16-byte chunks of a row swapped by
// chunk ^ (row % 8); the queries as in Args::split, which are wgmma's cores; S::FixedBytes.
template <typename S>
__global__ void __launch_bounds__(S::kThreads, 1) ScanWgmmaKernel(const Args args) {
#ifdef MNEME_HAS_WGMMA
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int query_bytes = args.dim * S::kColumns * 2;
  unsigned char* ring = DynamicShared();
  unsigned char* queries = ring + args.stages * S::kStageBytes;
  uint64_t* loaded = reinterpret_cast<uint64_t*>(queries + query_bytes);
  uint64_t* consumed = loaded + S::kStagesMax;
  Bounds bounds;
  bounds.keys = consumed + S::kStagesMax;
  uint64_t* scratch = bounds.keys + S::kQueries;
  bounds.scores = reinterpret_cast<float*>(scratch + S::kWarps * args.list_keys);
  int* counts = reinterpret_cast<int*>(bounds.scores + S::kQueries);
  const int slices = args.dim / S::kSlice;

  TileCursor cursor;
  cursor.Start(args, blockIdx.x, gridDim.x, S::kRows);
  if (threadIdx.x == 0) {
    for (int s = 0; s < args.stages; ++s) {
      PhaseInit(loaded + s, S::kCopyThreads);
      PhaseInit(consumed + s, 4 * kWarpArrivals);
    }
  }
  __syncthreads();

  if (warp >= S::kWarps) {  // copy
    GiveRegisters<40>();
    const int row = static_cast<int>(threadIdx.x) % S::kCopyThreads / 8,
              chunk = static_cast<int>(threadIdx.x) % 8;
    constexpr int kRowsAtOnce = S::kCopyThreads / 8;
    const int64_t row_bytes = int64_t{args.dim} * 2;
    unsigned char* to = ring + row * 128 + (chunk ^ row % 8) * 16;
    int stage = 0;
    uint32_t parity = 1;
    for (; cursor.valid(); cursor.Next(args, S::kRows)) {
      const unsigned char* from = cursor.rows + row * row_bytes + chunk * 16;
      for (int slice = 0; slice < slices; ++slice) {
        PhaseWait(consumed + stage, parity);
#pragma unroll
        for (int i = 0; i < S::kRows / kRowsAtOnce; ++i) {
          const bool valid = row + i * kRowsAtOnce < cursor.row_count;
          CopyAsync16(to + stage * S::kStageBytes + i * kRowsAtOnce * 128,
                      valid ? from + i * kRowsAtOnce * row_bytes + slice * 128 : cursor.rows,
                      valid);
        }
        PhaseArriveAfterCopies(loaded + stage);
        if (++stage == args.stages) {
          stage = 0;
          parity ^= 1;
        }
      }
    }
    CopyAsyncCommit();
    CopyAsyncWait<0>();
    return;
  }

  TakeRegisters<232>();
  WaitForKernelBefore();
  for (int i = threadIdx.x; i < query_bytes / 16; i += S::kWarps * kWarp) {
    CopyAsync16(queries + i * 16, args.split + i * 16);
  }
  CopyAsyncCommit();
  WarpLists lists;
  const int64_t list = static_cast<int64_t>(blockIdx.x) * S::kWarps + warp;
  lists.keys = args.keys + list * S::kQueries * args.list_keys;
  lists.counts = counts + warp * S::kQueries;
  lists.scratch = scratch + warp * args.list_keys;
  lists.list_keys = args.list_keys;
  lists.k = args.k;
  for (int q = lane; q < S::kQueries; q += kWarp) lists.counts[q] = 0;
  for (int q = threadIdx.x; q < S::kQueries; q += S::kWarps * kWarp) {
    bounds.keys[q] = 0;
    bounds.scores[q] = q < args.n_queries ? MinusInfinity() : Unreachable();
  }
  CopyAsyncWait<0>();
  FenceAsyncProxy();
  BarrierOr(1, S::kWarps * kWarp, false);

  constexpr int kTiles = S::kQueries / 8;  // of 8 queries
  const int group = warp / 4, group_warp = warp % 4;
  uint32_t* const bests = args.bests + list % kBestPlaces;
  // Raises the bounds of this warp's share of the queries to what the grid has met.
  const auto refresh = [&] {
    if (args.k > kBestPlaces) return;
#pragma unroll 4
    for (int q = warp; q < args.n_queries; q += S::kWarps) {
      const uint32_t sorted = SortLanes(__ldcg(args.bests + q * kBestPlaces + lane));
      const uint32_t worst = __shfl_sync(0xffffffffu, sorted, args.k - 1);
      if (lane == 0 && worst != 0) bounds.Raise(q, static_cast<uint64_t>(worst) << 32);
    }
  };

  const uint64_t ring_descriptor = WgmmaSwappedDescriptor(ring);
  const uint64_t query_descriptor = WgmmaDescriptor(queries, S::kLeading, 128);
  int stage = 0;
  uint32_t parity = 0;
  const auto advance = [&](int stages) {
    stage += stages;
    while (stage >= args.stages) {
      stage -= args.stages;
      parity ^= 1;
    }
  };
  if (group == 1) {
    advance(slices);
    cursor.Next(args, S::kRows);
  }
  for (int step = 0;; ++step) {
    float sums[2 * kTiles][4];
    const bool any = cursor.valid();
    if (any) {
      int before = 0;
      for (int slice = 0; slice < slices; ++slice) {
        PhaseWait(loaded + stage, parity);
        FenceAsyncProxy();
        WgmmaFence();
#pragma unroll
        for (int i = 0; i < S::kSlice / 16; ++i) {
          WgmmaBf16<S::kColumns>(sums,
                                 WgmmaAdvance(ring_descriptor, stage * S::kStageBytes + i * 32),
                                 WgmmaAdvance(query_descriptor, (slice * 4 + i) * 2 * S::kLeading),
                                 slice > 0 || i > 0);
        }
        WgmmaCommit();
        if (slice > 0) {
          WgmmaWait<1>();
          PhaseArriveOfWarp(consumed + before, lane);
        }
        before = stage;
        advance(1);
      }
      WgmmaWait<0>();
      PhaseArriveOfWarp(consumed + before, lane);
      advance(slices);  // the other group's
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[j][i] += sums[j + kTiles][i];
      }
      if (cursor.row_count < S::kRows) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          if (group_warp * S::kWarpRows + h * 8 + lane / 4 >= cursor.row_count) {
#pragma unroll
            for (int j = 0; j < kTiles; ++j) sums[j][h * 2] = sums[j][h * 2 + 1] = Unreachable();
          }
        }
      }
    }
    if (step == 0) {
      if (any && args.k <= kBestPlaces) {
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float best = fmaxf(fmaxf(sums[j][c], sums[j][c + 2]), MinusInfinity());
#pragma unroll
            for (int lanes = 4; lanes < kWarp; lanes *= 2) {
              best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, lanes));
            }
            if (lane < 4 && best > MinusInfinity()) {
              atomicMax(bests + (j * 8 + lane * 2 + c) * kBestPlaces,
                        static_cast<uint32_t>(MakeKey(best, 0) >> 32));
            }
          }
        }
      }
      // Only a matter of speed, so the wait has an end whatever happens to the other blocks.
      if (args.k <= kBestPlaces && args.tile_count >= int64_t{2} * gridDim.x) {
        __threadfence();
        __syncwarp();
        if (lane == 0) atomicAdd(args.arrived, 1u);
        for (int i = 0; i < 16 && __ldcg(args.arrived) < gridDim.x * (S::kWarps * 7 / 8); ++i) {
          __nanosleep(250);
        }
        __syncwarp();
      }
      refresh();
      BarrierOr(1, S::kWarps * kWarp, false);
    } else if ((step & (step - 1)) == 0) {
      refresh();
    }
    if (!any) break;

    bool enters = false;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const float2 bound = *reinterpret_cast<const float2*>(bounds.scores + j * 8 + lane % 4 * 2);
      enters = enters || sums[j][0] >= bound.x || sums[j][1] >= bound.y || sums[j][2] >= bound.x ||
               sums[j][3] >= bound.y;
    }
    if (__any_sync(0xffffffffu, enters)) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const int query = j * 8 + lane % 4 * 2;
        const float2 bound = *reinterpret_cast<const float2*>(bounds.scores + query);
        if (sums[j][0] >= bound.x || sums[j][1] >= bound.y || sums[j][2] >= bound.x ||
            sums[j][3] >= bound.y) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int q = query + i % 2;
            const uint64_t key = MakeKey(
                sums[j][i],
                cursor.first_row + static_cast<uint32_t>(group_warp * 16 + i / 2 * 8 + lane / 4));
            if (sums[j][i] >= (i % 2 == 0 ? bound.x : bound.y) && key >= bounds.keys[q]) {
              lists
                  .keys[static_cast<int64_t>(q) * args.list_keys + atomicAdd(lists.counts + q, 1)] =
                  key;
              atomicMax(bests + q * kBestPlaces, static_cast<uint32_t>(key >> 32));
            }
          }
        }
      }
      __syncwarp();
      for (int base = 0; base < args.n_queries; base += kWarp) {
        const int q = base + lane;
        const bool full = q < args.n_queries && lists.counts[q] > args.list_keys - S::kWarpRows;
        for (unsigned todo = __ballot_sync(0xffffffffu, full); todo != 0; todo &= todo - 1) {
          lists.Settle(base + __ffs(static_cast<int>(todo)) - 1, bounds);
        }
      }
    }
    cursor.Next(args, S::kRows);
    cursor.Next(args, S::kRows);
  }
  __syncwarp();
  for (int q = lane; q < args.n_queries; q += kWarp) {
    args.counts[static_cast<int64_t>(q) * args.lists + list] = lists.counts[q];
  }
#endif
}

}  // namespace mneme::landmark_scan

#endif  // MNEME_KERNELS_CUDA_LANDMARK_WGMMA_KERNEL_CUH_
