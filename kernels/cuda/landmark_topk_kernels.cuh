// The landmark scan on a GPU: kernels and their choice, on plain pointers (landmark_topk.cu puts
// them behind the launcher, bench/gpu/hsa_topk_bench.cu times them).
//
// How it works. The landmarks are cut into tiles of a few rows; each warp of a persistent grid goes
// through its own tiles, newest first, with copies into a ring of shared memory running ahead, and
// keeps the best of each query in a list of its own; a second kernel merges the lists by a total
// order. Scores are never written. Queries lie in shared memory as two bf16 numbers, q = hi + lo,
// and both products go into one float32 sum, so a query loses nothing above 2^-17 of its value (as
// in the CPU's scan).
//
// A candidate is one 64-bit key: the score's bits in an order that integers keep, then the row's
// index, so of two equal scores the newer row has the larger key. Key 0 means none. A row enters a
// list when its score reaches the list's bound; a NaN reaches nothing. As a warp meets rows newest
// first, a full list needs only scores above its worst one: equal ones would be older.
//
// Variants:
//   scan_simple     any type, width and alignment; a row at a time
//   scan_mma<N>     bf16, N = 8 .. 64 queries a pass, mma.sync; bound by memory up to 32
//   scan_wgmma      bf16, 128 queries a pass, dim <= 256, k <= 16, sm_90a

#ifndef MNEME_KERNELS_CUDA_LANDMARK_TOPK_KERNELS_CUH_
#define MNEME_KERNELS_CUDA_LANDMARK_TOPK_KERNELS_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

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

enum class Variant { kSimple, kMma8, kMma16, kMma32, kMma64, kWgmma128 };

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

// One pass handles `pass_queries` queries; `lists` lists of k keys each come out for every query.
struct Plan {
  Variant variant = Variant::kSimple;
  int pass_queries = 0;
  int tile_rows = 0;
  int blocks = 0;
  int threads = 0;
  int lists = 0;
  int capacity = 0;
  int64_t shared_bytes = 0;
  int64_t partial_keys(int k) const { return int64_t{lists} * pass_queries * k; }
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
  int capacity;       // keys that a list has room for while scanning
  uint64_t* partial;  // [lists, n_queries, k], best first
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

// The tiles of one warp, newest first: first, first - stride, ..
struct TileCursor {
  int64_t tile;  // negative: past the end
  int slab;
  const unsigned char* rows;  // of the tile
  uint32_t first_row;         // global index of its first row
  int row_count;

  __device__ __forceinline__ void Start(const Args& args, int64_t first, int tile_rows) {
    slab = args.slab_count - 1;
    Move(args, first, tile_rows);
  }
  __device__ __forceinline__ void Move(const Args& args, int64_t to, int tile_rows) {
    tile = to;
    if (tile < 0) return;
    if (args.slabs[slab].first_tile > tile) {  // the last slab that begins at or before it
      int low = 0, high = slab;
      while (high - low > 1) {
        const int middle = (low + high) / 2;
        (args.slabs[middle].first_tile > tile ? high : low) = middle;
      }
      slab = low;
    }
    const Slab& s = args.slabs[slab];
    const uint32_t begin = static_cast<uint32_t>((tile - s.first_tile) * tile_rows);
    const int element_bytes = args.dtype == DType::kBf16 ? 2 : 4;
    rows = static_cast<const unsigned char*>(s.rows) +
           static_cast<int64_t>(begin) * args.dim * element_bytes;
    first_row = s.first_row + begin;
    row_count = static_cast<int>(min(s.row_count - begin, static_cast<uint32_t>(tile_rows)));
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

__device__ __forceinline__ void WriteLists(const Lists& lists, uint64_t* sorted, const Args& args,
                                           int64_t list) {
  const int lane = threadIdx.x % kWarp;
  for (int q = 0; q < args.n_queries; ++q) {
    lists.Settle(q, sorted);
    uint64_t* out = args.partial + (list * args.n_queries + q) * args.k;
    for (int i = lane; i < args.k; i += kWarp) {
      out[i] = i < lists.counts[q] ? lists.keys[q * lists.capacity + i] : 0;
    }
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
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kSimpleWarps;
  TileCursor cursor;
  for (cursor.Start(args, args.tile_count - 1 - list, kSimpleTileRows); cursor.tile >= 0;
       cursor.Move(args, cursor.tile - stride, kSimpleTileRows)) {
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
  static constexpr int kSlice = kQueries >= 64 ? 64 : 128;
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
  const int64_t stride = static_cast<int64_t>(gridDim.x) * S::kWarps;
  const int slices = (padded + S::kSlice - 1) / S::kSlice;

  TileCursor copy_cursor, cursor;
  copy_cursor.Start(args, args.tile_count - 1 - list, S::kRows);
  cursor = copy_cursor;
  int copy_slice = 0, copy_stage = 0;
  const int copy_row = lane / S::kRowChunks, copy_chunk = lane % S::kRowChunks;
  // Starts the copy of the next slice, if there is one; always closes a group.
  const auto copy_next = [&] {
    if (copy_cursor.tile >= 0) {
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
        copy_cursor.Move(args, copy_cursor.tile - stride, S::kRows);
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
  for (; cursor.tile >= 0; cursor.Move(args, cursor.tile - stride, S::kRows)) {
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

// 128 queries at once: a warpgroup owns tiles of 64 rows (16 a warp, each warp with a ring of its
// own), A fragments come through registers, the queries stay in shared memory.
struct WgmmaShape {
  static constexpr int kQueries = 128;
  static constexpr int kDim = 256;
  static constexpr int kWarps = 8;
  static constexpr int kGroups = kWarps / 4;
  static constexpr int kRows = 64;
  static constexpr int kSlice = 64;
  static constexpr int kSlices = kDim / kSlice;
  static constexpr int kStages = 3;
  static constexpr int kStageBytes = 16 * kSlice * 2;
  static constexpr int kQueryBytes = kQueries * kDim * 2;  // of hi, and of lo
  static constexpr int kCapacity = 24;
  static constexpr int kBestMax = 16;
  static constexpr int kCoreBytes = 128;                      // 8 queries x 8 dimensions
  static constexpr int kLeading = kQueries / 8 * kCoreBytes;  // to the next 8 dimensions
  static constexpr int64_t kSharedBytes = 2 * kQueryBytes + kWarps * kStages * kStageBytes +
                                          kGroups * kQueries * (kCapacity * 8 + 8) +
                                          kWarps * kBestMax * 8;
};

// Grid: one block a multiprocessor; block: 8 warps, two warpgroups; shared: kSharedBytes: queries
// in cores [hi, lo][dim / 8][query / 8][8 queries][8 dimensions]; rings [warp][stage][16 rows][64],
// 16-byte chunks of a row swapped by chunk ^ (row % 8); the groups' lists.
__global__ void __launch_bounds__(WgmmaShape::kWarps* kWarp, 1) ScanWgmmaKernel(const Args args) {
#ifdef MNEME_HAS_WGMMA
  using S = WgmmaShape;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int group = warp / 4, group_warp = warp % 4, group_thread = threadIdx.x % 128;
  unsigned char* query_hi = DynamicShared();
  unsigned char* query_lo = query_hi + S::kQueryBytes;
  unsigned char* rings = query_lo + S::kQueryBytes;
  unsigned char* ring = rings + warp * (S::kStages * S::kStageBytes);
  uint64_t* keys = reinterpret_cast<uint64_t*>(rings + S::kWarps * S::kStages * S::kStageBytes);
  uint64_t* sorted = keys + S::kGroups * S::kQueries * S::kCapacity + warp * S::kBestMax;
  int* counts = reinterpret_cast<int*>(keys + S::kGroups * S::kQueries * S::kCapacity +
                                       S::kWarps * S::kBestMax);
  Lists lists;
  lists.keys = keys + group * S::kQueries * S::kCapacity;
  lists.counts = counts + group * S::kQueries;
  lists.bounds = reinterpret_cast<float*>(counts + S::kGroups * S::kQueries) + group * S::kQueries;
  lists.capacity = S::kCapacity;
  lists.k = args.k;
  const int64_t list = static_cast<int64_t>(blockIdx.x) * S::kGroups + group;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * S::kGroups;
  const int slices = (args.dim + S::kSlice - 1) / S::kSlice;

  TileCursor copy_cursor, cursor;
  copy_cursor.Start(args, args.tile_count - 1 - list, S::kRows);
  cursor = copy_cursor;
  int copy_slice = 0, copy_stage = 0;
  const auto copy_next = [&] {
    if (copy_cursor.tile >= 0) {
      const int chunk = copy_slice * 8 + lane % 8;
      const bool inside = chunk * 8 < args.dim;
      const unsigned char* from = copy_cursor.rows + (inside ? chunk * 16 : 0);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = i * 4 + lane / 8;  // of the warp's 16
        const int tile_row = group_warp * 16 + row;
        const bool valid = inside && tile_row < copy_cursor.row_count;
        CopyAsync16(ring + copy_stage * S::kStageBytes + row * 128 + (lane % 8 ^ row % 8) * 16,
                    from + (valid ? static_cast<int64_t>(tile_row) * args.dim * 2 : 0), valid);
      }
      if (++copy_slice == slices) {
        copy_slice = 0;
        copy_cursor.Move(args, copy_cursor.tile - stride, S::kRows);
      }
    }
    copy_stage = copy_stage + 1 == S::kStages ? 0 : copy_stage + 1;
    CopyAsyncCommit();
  };
  for (int i = 0; i < S::kStages - 1; ++i) copy_next();

  for (int i = threadIdx.x; i < S::kQueries * (S::kDim / 8); i += S::kWarps * kWarp) {
    const int q = i % S::kQueries, chunk = i / S::kQueries;
    uint4 hi, lo;
    SplitQuery(args, q, chunk * 8, &hi, &lo);
    const int at = chunk * S::kLeading + q / 8 * S::kCoreBytes + q % 8 * 16;
    *reinterpret_cast<uint4*>(query_hi + at) = hi;
    *reinterpret_cast<uint4*>(query_lo + at) = lo;
  }
  ClearLists(lists, S::kQueries, args.n_queries, group_thread, 128);
  FenceAsyncProxy();
  __syncthreads();

  int stage = 0;
  const auto load_rows = [&](uint32_t(&a)[4][4]) {
    CopyAsyncWait<S::kStages - 2>();
    __syncwarp();
    copy_next();
    const unsigned char* rows = ring + stage * S::kStageBytes + lane % 16 * 128;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      LoadMatrix4(a[step], rows + ((step * 2 + lane / 16) ^ lane % 8) * 16);
    }
    __syncwarp();
    stage = stage + 1 == S::kStages ? 0 : stage + 1;
  };
  for (; cursor.tile >= 0; cursor.Move(args, cursor.tile - stride, S::kRows)) {
    float sums[S::kQueries / 8][4] = {};
    uint32_t a[2][4][4];
#pragma unroll
    for (int slice = 0; slice < S::kSlices; ++slice) {
      if (slice < slices) {
        load_rows(a[slice % 2]);
        WgmmaFence();
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          const int offset = (slice * 4 + step) * 2 * S::kLeading;
          WgmmaBf16<S::kQueries>(sums, a[slice % 2][step],
                                 WgmmaDescriptor(query_hi + offset, S::kLeading, S::kCoreBytes));
          WgmmaBf16<S::kQueries>(sums, a[slice % 2][step],
                                 WgmmaDescriptor(query_lo + offset, S::kLeading, S::kCoreBytes));
        }
        WgmmaCommit();
        if (slice + 1 < S::kSlices) WgmmaWait<1>();  // the rows of the slice before may go
      }
    }
    WgmmaWait<0>();
    // Appends what reaches the bounds; when a list has no room, settles and tries the rest again.
    const uint32_t row = static_cast<uint32_t>(group_warp * 16 + lane / 4);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (static_cast<int>(row) + h * 8 >= cursor.row_count) {
#pragma unroll
        for (int j = 0; j < S::kQueries / 8; ++j) {
          sums[j][h * 2] = sums[j][h * 2 + 1] = Unreachable();
        }
      }
    }
    bool again = true, any_entered = false, settled = false;
    while (again) {
      bool left = false, entered = false;
#pragma unroll
      for (int j = 0; j < S::kQueries / 8; ++j) {
        const int query = j * 8 + lane % 4 * 2;
        const float2 bound = *reinterpret_cast<const float2*>(lists.bounds + query);
        if (sums[j][0] >= bound.x || sums[j][2] >= bound.x || sums[j][1] >= bound.y ||
            sums[j][3] >= bound.y) {
          entered = true;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (sums[j][i] >= (i % 2 == 0 ? bound.x : bound.y)) {
              const int at = atomicAdd(lists.counts + query + i % 2, 1);
              if (at < S::kCapacity) {
                lists.keys[(query + i % 2) * S::kCapacity + at] =
                    MakeKey(sums[j][i], cursor.first_row + row + static_cast<uint32_t>(i / 2 * 8));
                sums[j][i] = Unreachable();  // done
              } else {
                left = true;
              }
            }
          }
        }
      }
      again = false;
      if (BarrierOr(1 + group, 128, entered)) {
        any_entered = true;
        // Each warp settles its own 32 queries. Within a tile an equal score may be newer than what
        // a list holds, so until the tile is done the bound is the worst score itself.
        const int q = group_warp * 32 + lane;
        const bool full = q < args.n_queries &&
                          (lists.counts[q] >= S::kCapacity ||
                           (lists.counts[q] >= args.k && lists.bounds[q] == MinusInfinity()));
        for (unsigned todo = __ballot_sync(0xffffffffu, full); todo != 0; todo &= todo - 1) {
          const int chosen = group_warp * 32 + __ffs(static_cast<int>(todo)) - 1;
          lists.Settle(chosen, sorted);
          if (lane == 0 && lists.counts[chosen] == args.k) {
            lists.bounds[chosen] = KeyScore(lists.keys[chosen * S::kCapacity + args.k - 1]);
          }
          settled = true;
          __syncwarp();
        }
        again = BarrierOr(1 + group, 128, left);
      }
    }
    // The tile is done: from here on equal scores are older.
    if (any_entered && BarrierOr(1 + group, 128, settled)) {
      const int q = group_warp * 32 + lane;
      if (q < args.n_queries && lists.counts[q] >= args.k) {
        const float worst = KeyScore(lists.keys[q * S::kCapacity + args.k - 1]);
        if (lists.bounds[q] == worst) lists.bounds[q] = NextAbove(worst);
      }
      BarrierOr(1 + group, 128, false);
    }
  }
  CopyAsyncWait<0>();
  BarrierOr(1 + group, 128, false);
  for (int q = group_warp; q < args.n_queries; q += 4) {
    lists.Settle(q, sorted);
    uint64_t* out = args.partial + (list * args.n_queries + q) * args.k;
    if (lane < args.k) out[lane] = lane < lists.counts[q] ? lists.keys[q * S::kCapacity + lane] : 0;
  }
#endif
}

// ---- merge -------------------------------------------------------------------------------------

inline constexpr int kMergeThreads = 256;
inline constexpr int kMergeLists = 8;  // of one thread, at most

// Merges the lists of one query. Grid: n_queries; block: kMergeThreads; each round takes the best
// head of all lists. `lists` is at most kMergeThreads * kMergeLists; 0 gives no candidates.
__global__ void __launch_bounds__(kMergeThreads)
    MergeListsKernel(const uint64_t* partial, int lists, int k, int64_t* indices, float* scores) {
  __shared__ uint64_t warp_best[2][kMergeThreads / kWarp];
  const int query = blockIdx.x, n_queries = gridDim.x;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  uint64_t heads[kMergeLists];
  int taken[kMergeLists];
  const auto entry = [&](int slot, int i) {
    const int64_t list = static_cast<int64_t>(slot) * kMergeThreads + threadIdx.x;
    return partial[(list * n_queries + query) * k + i];
  };
#pragma unroll
  for (int s = 0; s < kMergeLists; ++s) {
    taken[s] = 0;
    heads[s] = s * kMergeThreads + static_cast<int>(threadIdx.x) < lists ? entry(s, 0) : 0;
  }
  for (int i = 0; i < k; ++i) {
    uint64_t mine = 0;
#pragma unroll
    for (int s = 0; s < kMergeLists; ++s) mine = heads[s] > mine ? heads[s] : mine;
    uint64_t best = mine;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      const uint64_t other = __shfl_xor_sync(0xffffffffu, best, step);
      best = other > best ? other : best;
    }
    if (lane == 0) warp_best[i % 2][warp] = best;
    __syncthreads();  // two buffers: one barrier a round is enough
#pragma unroll
    for (int w = 0; w < kMergeThreads / kWarp; ++w) {
      best = warp_best[i % 2][w] > best ? warp_best[i % 2][w] : best;
    }
    if (best != 0 && mine == best) {  // keys of one query differ
#pragma unroll
      for (int s = 0; s < kMergeLists; ++s) {
        if (heads[s] == best) {
          ++taken[s];
          heads[s] = taken[s] < k ? entry(s, taken[s]) : 0;
        }
      }
    }
    if (threadIdx.x == 0) {
      indices[static_cast<int64_t>(query) * k + i] =
          best != 0 ? static_cast<int64_t>(best & 0xffffffffu) : -1;
      scores[static_cast<int64_t>(query) * k + i] = best != 0 ? KeyScore(best) : MinusInfinity();
    }
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
           .capacity = capacity,
           .shared_bytes = bytes};
  return true;
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
    case Variant::kMma16:
      return TryMma<16>(shape, machine, variant, plan);
    case Variant::kMma32:
      return TryMma<32>(shape, machine, variant, plan);
    case Variant::kMma64:
      return TryMma<64>(shape, machine, variant, plan);
    case Variant::kWgmma128:
      if (machine.major != 9 || shape.dim > WgmmaShape::kDim || shape.k > WgmmaShape::kBestMax ||
          WgmmaShape::kSharedBytes > machine.shared_bytes_max) {
        return false;
      }
      *plan = {.variant = variant,
               .pass_queries = WgmmaShape::kQueries,
               .tile_rows = WgmmaShape::kRows,
               .blocks = machine.multiprocessors,
               .threads = WgmmaShape::kWarps * kWarp,
               .lists = machine.multiprocessors * WgmmaShape::kGroups,
               .capacity = WgmmaShape::kCapacity,
               .shared_bytes = WgmmaShape::kSharedBytes};
      return true;
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
           .capacity = capacity,
           .shared_bytes = kSimpleWarps * warp_bytes};
  return true;
}

// The fastest variant for a shape: the fewest passes over the landmarks, then the least work a row.
inline Plan PlanScan(const Shape& shape, const Machine& machine) {
  Plan plan;
  // More than 64 queries would take the other variants two passes.
  if (shape.n_queries > 64 && PlanVariant(Variant::kWgmma128, shape, machine, &plan)) return plan;
  struct Choice {
    Variant variant;
    int64_t at_least;  // queries from which on it pays
  };
  constexpr Choice kChoices[] = {
      {Variant::kMma64, 33}, {Variant::kMma32, 17}, {Variant::kMma16, 9}, {Variant::kMma8, 1}};
  for (const Choice& choice : kChoices) {
    if (shape.n_queries >= choice.at_least && PlanVariant(choice.variant, shape, machine, &plan)) {
      return plan;
    }
  }
  PlanVariant(Variant::kSimple, shape, machine, &plan);
  return plan;
}

// One pass: scan and merge. `indices` and `scores` [n_queries, k] are device memory.
inline cudaError_t LaunchScan(const Plan& plan, const Args& args, int64_t* indices, float* scores,
                              cudaStream_t stream) {
  const auto scan = [&](void (*kernel)(Args)) {
    return Launch(kernel, dim3(plan.blocks), dim3(plan.threads), plan.shared_bytes, stream, args);
  };
  cudaError_t error = cudaSuccess;
  if (args.tile_count > 0) {
    switch (plan.variant) {
      case Variant::kSimple:
        error = scan(args.dtype == DType::kBf16 ? ScanSimpleKernel<__nv_bfloat16>
                                                : ScanSimpleKernel<float>);
        break;
      case Variant::kMma8:
        error = scan(ScanMmaKernel<MmaShape<8>>);
        break;
      case Variant::kMma16:
        error = scan(ScanMmaKernel<MmaShape<16>>);
        break;
      case Variant::kMma32:
        error = scan(ScanMmaKernel<MmaShape<32>>);
        break;
      case Variant::kMma64:
        error = scan(ScanMmaKernel<MmaShape<64>>);
        break;
      case Variant::kWgmma128:
        error = scan(ScanWgmmaKernel);
        break;
    }
  }
  if (error != cudaSuccess) return error;
  return Launch(MergeListsKernel, dim3(args.n_queries), dim3(kMergeThreads), 0, stream,
                static_cast<const uint64_t*>(args.partial), args.tile_count > 0 ? plan.lists : 0,
                args.k, indices, scores);
}

}  // namespace mneme::landmark_scan

#endif  // MNEME_KERNELS_CUDA_LANDMARK_TOPK_KERNELS_CUH_
