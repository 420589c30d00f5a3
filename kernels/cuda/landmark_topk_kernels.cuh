// The landmark scan on a GPU: kernels and their choice, on plain pointers (landmark_topk.cu puts
// them behind the launcher, bench/gpu/hsa_topk_bench.cu times them).
//
// How it works. The landmarks are cut into tiles of a few rows, and every block (or warp) of a
// persistent grid goes through neighbouring tiles, newest first, with copies into a ring of shared
// memory running ahead. What reaches the bound of a query goes into a list of the warp; a second
// kernel merges the lists by a total order. Scores are never written. Queries lie in shared memory
// as two bf16 numbers, q = hi + lo, so a query loses nothing above 2^-17 of its value (as in the
// CPU's scan).
//
// A candidate is one 64-bit key: the score's bits in an order that integers keep, then the row's
// index, so of two equal scores the newer row has the larger key. Key 0 means none. A NaN reaches
// no bound. Bounds only leave out rows that k others beat, so results do not depend on the order in
// which warps meet; and every variant of a machine sums a score in one order, so they do not depend
// on the other queries of a call.
//
// scan_wgmma. Four warps copy, two warpgroups multiply tiles of 64 rows by [hi, lo], 64 x 2 N, and
// add the two halves. With lists of their own all 1000 warps would find their own best first, and
// filling lists, not bytes or products, would take the time. So the grid shares bounds: each query
// has 32 places in memory, one for each 32nd part of the warps, with the best score that the part
// has met; the k-th best of the 32 is a bound for everyone, as it stands for k different rows. A
// warp's first tile only enters its best scores there; then all wait a moment for most of the grid,
// and the bounds leave some ten candidates a query to the whole grid. Warps read the places again
// after 1, 2, 4, 8 .. tiles. For k above 32 a warp has the bound of its own list alone.
//
// Variants:
//   scan_simple     any type, width and alignment; a row at a time
//   scan_mma<N>     bf16, N = 8 or 32 queries a pass, mma.sync
//   scan_wgmma<N>   bf16, N = 8 .. 128 queries a pass, dim a multiple of 64, sm_90a

#ifndef MNEME_KERNELS_CUDA_LANDMARK_TOPK_KERNELS_CUH_
#define MNEME_KERNELS_CUDA_LANDMARK_TOPK_KERNELS_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/dtype.h"

namespace mneme::landmark_scan {

// Rows [first_row, first_row + row_count) of all landmarks, cut into tiles from `first_tile` on.
struct Slab {
  const void* rows;
  int64_t first_tile;
  uint32_t first_row;
  uint32_t row_count;
};

enum class Variant { kSimple, kMma8, kMma32, kWgmma8, kWgmma16, kWgmma32, kWgmma64, kWgmma128 };

inline constexpr int kBestPlaces = 32;  // shared best scores of a query

// What the choice of a variant depends on.
struct Shape {
  DType dtype = DType::kBf16;
  int64_t dim = 0;
  int64_t n_queries = 0;
  int k = 0;
  bool aligned = false;  // every slab starts at a multiple of 16 bytes
};

struct Machine {
  int multiprocessors = 0;
  int major = 0;
  int64_t shared_bytes_max = 0;
};

// One pass handles `pass_queries` queries; for each of them `lists` lists of up to `list_keys` keys
// come out.
struct Plan {
  Variant variant = Variant::kSimple;
  int pass_queries = 0;
  int tile_rows = 0;
  int blocks = 0;
  int threads = 0;
  int lists = 0;
  int list_keys = 0;
  int capacity = 0;  // keys that a list in shared memory has room for while scanning
  int stages = 0;    // of scan_wgmma's ring
  int64_t shared_bytes = 0;
  int64_t split_bytes = 0;  // of the queries as scan_wgmma reads them
  // Device memory that a pass needs beside its inputs and outputs, in this order: keys, split
  // queries, counts, bests.
  int64_t workspace_bytes() const {
    return int64_t{lists} * pass_queries * (list_keys * 8 + 4) + split_bytes +
           (int64_t{pass_queries} * kBestPlaces + 1) * 4;
  }
};

struct Args {
  const float* queries;  // [n_queries, dim] of this pass
  int n_queries;
  int dim;
  DType dtype;
  const Slab* slabs;  // device memory, none empty
  int slab_count;
  int64_t tile_count;
  int k;
  void* workspace;  // plan.workspace_bytes() of device memory, aligned to 16 bytes

  // Set by LaunchScan.
  int capacity = 0, stages = 0;
  int pass_queries = 0, lists = 0, list_keys = 0;
  uint64_t* keys = nullptr;        // [lists, pass_queries, list_keys]
  unsigned char* split = nullptr;  // [dim / 8][hi, lo][pass_queries][8] bf16
  int* counts = nullptr;           // [pass_queries, lists]
  uint32_t* bests = nullptr;    // [pass_queries, kBestPlaces]: the high half of a key, 0 for none
  uint32_t* arrived = nullptr;  // warps that have entered their first best scores
};

inline constexpr int kWarp = 32;
inline constexpr int kSlack = 16;  // rows that one step of a warp adds to a list at most

// ---- keys --------------------------------------------------------------------------------------

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

// ---- lists -------------------------------------------------------------------------------------

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

// ---- tiles -------------------------------------------------------------------------------------

// Neighbouring tiles, newest first: those of part `part` of `parts`.
struct TileCursor {
  int64_t tile, end;          // past the end when tile < end
  const unsigned char* rows;  // of the tile
  uint32_t first_row;         // global index of its first row
  int row_count;
  Slab slab;
  int slab_index;

  __device__ __forceinline__ bool valid() const { return tile >= end; }
  __device__ __forceinline__ void Start(const Args& args, int64_t part, int64_t parts,
                                        int tile_rows) {
    tile = args.tile_count * (part + 1) / parts - 1;
    end = args.tile_count * part / parts;
    if (!valid()) return;
    int low = 0, high = args.slab_count;  // the last slab that begins at or before the tile
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (args.slabs[middle].first_tile > tile ? high : low) = middle;
    }
    slab_index = low;
    slab = args.slabs[low];
    Place(args, tile_rows);
  }
  __device__ __forceinline__ void Next(const Args& args, int tile_rows) {
    --tile;
    if (!valid()) return;
    if (tile < slab.first_tile) slab = args.slabs[--slab_index];
    Place(args, tile_rows);
  }

 private:
  __device__ __forceinline__ void Place(const Args& args, int tile_rows) {
    const uint32_t begin = static_cast<uint32_t>(tile - slab.first_tile) * tile_rows;
    const int element_bytes = args.dtype == DType::kBf16 ? 2 : 4;
    rows = static_cast<const unsigned char*>(slab.rows) +
           static_cast<int64_t>(begin) * args.dim * element_bytes;
    first_row = slab.first_row + begin;
    row_count = static_cast<int>(min(slab.row_count - begin, static_cast<uint32_t>(tile_rows)));
  }
};

// Eight floats of query `q` from `d` on (zero beyond the query), as hi and lo.
__device__ __forceinline__ void SplitQuery(const Args& args, int q, int d, uint4* hi, uint4* lo) {
  uint32_t high[4], low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float v[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int at = d + 2 * i + c;
      v[c] = q < args.n_queries && at < args.dim
                 ? args.queries[static_cast<int64_t>(q) * args.dim + at]
                 : 0.0f;
    }
    high[i] = PackBf16(v[0], v[1]);
    low[i] = PackBf16(v[0] - __uint_as_float(high[i] << 16),
                      v[1] - __uint_as_float(high[i] & 0xffff0000u));
  }
  *hi = make_uint4(high[0], high[1], high[2], high[3]);
  *lo = make_uint4(low[0], low[1], low[2], low[3]);
}

// ---- any shape ---------------------------------------------------------------------------------

inline constexpr int kSimpleWarps = 8;
inline constexpr int kSimpleQueries = 8;
inline constexpr int kSimpleTileRows = 16;

__host__ __device__ constexpr int64_t ListBytes(int queries, int capacity, int k) {
  return int64_t{queries} * capacity * 8 + queries * 8 + int64_t{k} * 8;
}

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

// Grid: any; block: kSimpleWarps warps; shared: ListBytes a warp. Each warp scores a row at a time
// against up to kSimpleQueries queries, its lanes side by side along the row.
template <typename T>
__global__ void __launch_bounds__(kSimpleWarps* kWarp) ScanSimpleKernel(const Args args) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  uint64_t* sorted;
  const Lists lists =
      PlaceLists(DynamicShared() + warp * ListBytes(kSimpleQueries, args.capacity, args.k),
                 kSimpleQueries, args, &sorted);
  ClearLists(lists, kSimpleQueries, args.n_queries, lane, kWarp);
  __syncwarp();
  const int64_t list = static_cast<int64_t>(blockIdx.x) * kSimpleWarps + warp;
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

// ---- bf16 through mma.sync ---------------------------------------------------------------------

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

// ---- bf16 through wgmma ------------------------------------------------------------------------

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
  LetKernelBehindStart();
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
      PhaseInit(consumed + s, 4);
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
  WaitForKernelsBefore();
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
          if (lane == 0) PhaseArrive(consumed + before);
        }
        before = stage;
        advance(1);
      }
      WgmmaWait<0>();
      if (lane == 0) PhaseArrive(consumed + before);
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

// ---- merge -------------------------------------------------------------------------------------

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
  WaitForKernelsBefore();
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

// ---- on the host -------------------------------------------------------------------------------

// Cuts slabs into tiles; leaves empty ones out. Sets the number of tiles.
struct HostSlab {
  const void* rows;
  int64_t row_count;
};
inline std::vector<Slab> CutSlabs(const std::vector<HostSlab>& slabs, int tile_rows,
                                  int64_t* tile_count) {
  std::vector<Slab> cut;
  int64_t first_row = 0;
  *tile_count = 0;
  for (const HostSlab& slab : slabs) {
    if (slab.row_count > 0) {
      cut.push_back({slab.rows, *tile_count, static_cast<uint32_t>(first_row),
                     static_cast<uint32_t>(slab.row_count)});
    }
    *tile_count += (slab.row_count + tile_rows - 1) / tile_rows;
    first_row += slab.row_count;
  }
  return cut;
}

template <int kQueries>
bool TryMma(const Shape& shape, const Machine& machine, Variant variant, Plan* plan) {
  using S = MmaShape<kQueries>;
  const int capacity = (shape.k + kSlack + 7) / 8 * 8 < 32 ? 32 : (shape.k + kSlack + 7) / 8 * 8;
  const int64_t bytes = S::SharedBytes(shape.dim, capacity, shape.k);
  if (bytes > machine.shared_bytes_max) return false;
  *plan = {.variant = variant,
           .pass_queries = kQueries,
           .tile_rows = S::kRows,
           .blocks = machine.multiprocessors,
           .threads = S::kWarps * kWarp,
           .lists = machine.multiprocessors * S::kWarps,
           .list_keys = shape.k,
           .capacity = capacity,
           .stages = 0,
           .shared_bytes = bytes};
  return true;
}

inline constexpr int64_t kWorkspaceBytesMax = 64 << 20;  // of more than 8 queries

template <int kQueries>
bool TryWgmma(const Shape& shape, const Machine& machine, Variant variant, Plan* plan) {
  using S = WgmmaShape<kQueries>;
  if (machine.major != 9 || shape.dim % S::kSlice != 0 || shape.dim == 0) return false;
  const int list_keys = shape.k + S::kWarpRows;
  const int64_t fixed = S::FixedBytes(shape.dim, list_keys);
  const int64_t stages = (machine.shared_bytes_max - fixed) / S::kStageBytes;
  if (fixed > machine.shared_bytes_max || stages < S::kStagesMin) return false;
  *plan = {.variant = variant,
           .pass_queries = kQueries,
           .tile_rows = S::kRows,
           .blocks = machine.multiprocessors,
           .threads = S::kThreads,
           .lists = machine.multiprocessors * S::kWarps,
           .list_keys = list_keys,
           .capacity = 0,
           .stages = static_cast<int>(std::min<int64_t>(stages, S::kStagesMax)),
           .shared_bytes = fixed + std::min<int64_t>(stages, S::kStagesMax) * S::kStageBytes,
           .split_bytes = shape.dim * (S::kColumns * 2)};
  return kQueries == 8 || plan->workspace_bytes() <= kWorkspaceBytesMax;
}

// True when `variant` can compute the shape; then `plan` says how.
inline bool PlanVariant(Variant variant, const Shape& shape, const Machine& machine, Plan* plan) {
  if (variant != Variant::kSimple &&
      (shape.dtype != DType::kBf16 || shape.dim % 8 != 0 || !shape.aligned)) {
    return false;
  }
  switch (variant) {
    case Variant::kMma8:
      return TryMma<8>(shape, machine, variant, plan);
    case Variant::kMma32:
      return TryMma<32>(shape, machine, variant, plan);
    case Variant::kWgmma8:
      return TryWgmma<8>(shape, machine, variant, plan);
    case Variant::kWgmma16:
      return TryWgmma<16>(shape, machine, variant, plan);
    case Variant::kWgmma32:
      return TryWgmma<32>(shape, machine, variant, plan);
    case Variant::kWgmma64:
      return TryWgmma<64>(shape, machine, variant, plan);
    case Variant::kWgmma128:
      return TryWgmma<128>(shape, machine, variant, plan);
    case Variant::kSimple:
      break;
  }
  const int capacity = shape.k + kSlack;
  const int64_t warp_bytes = ListBytes(kSimpleQueries, capacity, shape.k);
  *plan = {.variant = Variant::kSimple,
           .pass_queries = kSimpleQueries,
           .tile_rows = kSimpleTileRows,
           .blocks = machine.multiprocessors,
           .threads = kSimpleWarps * kWarp,
           .lists = machine.multiprocessors * kSimpleWarps,
           .list_keys = shape.k,
           .capacity = capacity,
           .stages = 0,
           .shared_bytes = kSimpleWarps * warp_bytes};
  return true;
}

// How to scan for the first of `shape.n_queries` queries: with the least work a row in the fewest
// passes. Which kind of variant, and so the tiles and how scores are summed, does not depend on the
// number of queries.
inline Plan PlanScan(const Shape& shape, const Machine& machine) {
  struct Choice {
    Variant variant;
    int64_t at_least;  // queries from which on it pays
  };
  constexpr Choice kChoices[] = {{Variant::kWgmma128, 65}, {Variant::kWgmma64, 33},
                                 {Variant::kWgmma32, 17},  {Variant::kWgmma16, 9},
                                 {Variant::kWgmma8, 1},    {Variant::kMma32, 9},
                                 {Variant::kMma8, 1}};
  Plan plan;
  for (const Choice& choice : kChoices) {
    if (shape.n_queries >= choice.at_least && PlanVariant(choice.variant, shape, machine, &plan)) {
      return plan;
    }
  }
  PlanVariant(Variant::kSimple, shape, machine, &plan);
  return plan;
}

// One pass: scan and merge. `indices` and `scores` [n_queries, k] are device memory.
inline cudaError_t LaunchScan(const Plan& plan, Args args, int64_t* indices, float* scores,
                              cudaStream_t stream) {
  args.capacity = plan.capacity;
  args.stages = plan.stages;
  args.pass_queries = plan.pass_queries;
  args.lists = args.tile_count > 0 ? plan.lists : 0;
  args.list_keys = plan.list_keys;
  args.keys = static_cast<uint64_t*>(args.workspace);
  args.split = reinterpret_cast<unsigned char*>(args.keys + int64_t{plan.lists} *
                                                                plan.pass_queries * plan.list_keys);
  args.counts = reinterpret_cast<int*>(args.split + plan.split_bytes);
  args.bests = reinterpret_cast<uint32_t*>(args.counts + int64_t{plan.lists} * plan.pass_queries);
  args.arrived = args.bests + int64_t{plan.pass_queries} * kBestPlaces;
  const auto merge = [&](auto launch) {
    return launch(MergeListsKernel, dim3(args.n_queries), dim3(kMergeThreads), 0, stream, args,
                  indices, scores);
  };
  const auto plain = [](auto... values) { return Launch(values...); };
  if (args.tile_count == 0) return merge(plain);
  const auto scan = [&](void (*kernel)(Args)) {
    return Launch(kernel, dim3(plan.blocks), dim3(plan.threads), plan.shared_bytes, stream, args);
  };
  const auto wgmma = [&](void (*kernel)(Args)) {
    const int64_t items = int64_t{plan.pass_queries} * args.dim / 8;
    const cudaError_t error = Launch(
        PrepareKernel, dim3(static_cast<unsigned>((items + kPrepareThreads - 1) / kPrepareThreads)),
        dim3(kPrepareThreads), 0, stream, args);
    if (error != cudaSuccess) return error;
    return LaunchEarly(kernel, dim3(plan.blocks), dim3(plan.threads), plan.shared_bytes, stream,
                       args);
  };
  cudaError_t error = cudaSuccess;
  switch (plan.variant) {
    case Variant::kSimple:
      error = scan(args.dtype == DType::kBf16 ? ScanSimpleKernel<__nv_bfloat16>
                                              : ScanSimpleKernel<float>);
      break;
    case Variant::kMma8:
      error = scan(ScanMmaKernel<MmaShape<8>>);
      break;
    case Variant::kMma32:
      error = scan(ScanMmaKernel<MmaShape<32>>);
      break;
    case Variant::kWgmma8:
      error = wgmma(ScanWgmmaKernel<WgmmaShape<8>>);
      break;
    case Variant::kWgmma16:
      error = wgmma(ScanWgmmaKernel<WgmmaShape<16>>);
      break;
    case Variant::kWgmma32:
      error = wgmma(ScanWgmmaKernel<WgmmaShape<32>>);
      break;
    case Variant::kWgmma64:
      error = wgmma(ScanWgmmaKernel<WgmmaShape<64>>);
      break;
    case Variant::kWgmma128:
      error = wgmma(ScanWgmmaKernel<WgmmaShape<128>>);
      break;
  }
  if (error != cudaSuccess) return error;
  if (plan.stages == 0) return merge(plain);
  return merge([](auto... values) { return LaunchEarly(values...); });
}

}  // namespace mneme::landmark_scan

#endif  // MNEME_KERNELS_CUDA_LANDMARK_TOPK_KERNELS_CUH_
