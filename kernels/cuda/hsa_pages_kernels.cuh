// Attention by page, of the rows that are in no run (hsa_prefill_kernels.cuh), a slice of rows at a
// time, in three kernels: HsaQueryKernel makes q ready (scaled, bf16, pieces), HsaPagesKernel takes
// each page through its list of readers, 64 rows of (token, head) at a time, and leaves each pair's
// result as bf16 at the pair's own place, HsaReduceKernel adds a row's results in the order of its
// table.

#ifndef MNEME_KERNELS_CUDA_HSA_PAGES_KERNELS_CUH_
#define MNEME_KERNELS_CUDA_HSA_PAGES_KERNELS_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/hsa_attend_tile.cuh"
#include "kernels/cuda/hsa_pieces.cuh"
#include "kernels/cuda/hsa_prefill_plan.cuh"
#include "kernels/cuda/hsa_ring.cuh"
#include "kernels/cuda/hsa_tiles.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/ops.h"

namespace mneme::hsa {

// ---- q -----------------------------------------------------------------------------------------

inline constexpr int kPointwiseThreads = 256;

// Writes args.queries for the rows of a slice that are in no run, with halves exchanged in the rows
// of odd heads: then two neighbours in shared memory are read at once. Grid: any; block:
// kPointwiseThreads; four threads a row of q.
__global__ void __launch_bounds__(kPointwiseThreads)
    HsaQueryKernel(const HsaAttendParams p, const PrefillArgs args, const int64_t first_row,
                   const bool vectors) {
  WaitForKernelBefore();
  if (*args.rows_of(first_row / args.slice_rows) == 0) return;
  const int heads = static_cast<int>(p.heads), threads = gridDim.x * kPointwiseThreads;
  const int count = static_cast<int>(min(args.slice_rows, p.rows - first_row)) * heads * 4;
  for (int at = blockIdx.x * kPointwiseThreads + threadIdx.x; at < count; at += threads) {
    const int t = at % 4, row = at / 4 / heads, head = at / 4 - row * heads;
    if (args.in_run[first_row + row] != 0) continue;
    uint4 pieces[2];
    LoadPieces(p.q + (first_row + row) * p.q_stride + head * kWidth, t, vectors, pieces);
    uint4* to = reinterpret_cast<uint4*>(args.queries) + at / 4 * int64_t{8};
    const int exchanged = head % 2 * 4;
    to[t ^ exchanged] = pieces[0];
    to[(4 + t) ^ exchanged] = pieces[1];
  }
}

// ---- results of pairs --------------------------------------------------------------------------

inline constexpr int kPagesWarps = 4;  // a warpgroup computes, so that none waits for another
inline constexpr int kPagesThreads = (kPagesWarps + 1) * kLanes;  // the last warp copies
inline constexpr int kPagesBlocks = 4;                            // of a multiprocessor
inline constexpr int kTileQueryBytes = kTileRows * kRowBytes;
inline constexpr int kPageSlots = 2, kTileSlots = 2;
using PageRing = Ring<kPageSlots, kPagesWarps>;
using TileRing = Ring<kTileSlots, kPagesWarps>;

// What the computing warps learn of a tile's rows.
struct TileRow {
  int place;     // of the result, times two, and 1 where q's halves are exchanged; -1: no such row
  float weight;  // of the pair
};
// And of the tile.
enum TileKind : int { kTileOfPage = 0, kFirstOfPage = 1, kLastOfPage = 2, kNoTile = 4 };
inline constexpr int kTileRowsBytes = kTileRows * static_cast<int>(sizeof(TileRow));
inline constexpr int64_t kPagesSharedBytes = kPageSlots * kPageBytes +
                                             kTileSlots * (kTileQueryBytes + kTileRowsBytes + 8) +
                                             PageRing::kBytes + TileRing::kBytes;

// Where they lie.
struct PagesShared {
  unsigned char* pages = DynamicShared();
  unsigned char* queries = pages + kPageSlots * kPageBytes;
  TileRow* rows = reinterpret_cast<TileRow*>(queries + kTileSlots * kTileQueryBytes);
  PageRing page_ring{reinterpret_cast<unsigned char*>(rows + kTileSlots * kTileRows)};
  TileRing tile_ring{reinterpret_cast<unsigned char*>(rows + kTileSlots * kTileRows) +
                     PageRing::kBytes};
  int* kinds =
      reinterpret_cast<int*>(reinterpret_cast<unsigned char*>(tile_ring.loaded) + TileRing::kBytes);

  __device__ __forceinline__ PagesShared() {}
};

// This block's tiles of a slice: 64 rows (of the pairs of an item, heads rows each) and a page.
struct TileCursor {
  const PageItem* items;
  int count, at, heads;
  int row = 0;  // first of the tile among the item's
  PageItem item, next;

  __device__ __forceinline__ TileCursor(const PageItem* list, int item_count, int heads_of_a_pair)
      : items(list),
        count(item_count),
        at(static_cast<int>(blockIdx.x)),
        heads(heads_of_a_pair),
        item(Load(at)),
        next(Load(at + static_cast<int>(gridDim.x))) {}
  __device__ __forceinline__ PageItem Load(int index) const {
    return index < count ? items[index] : PageItem{0, 0, 0};
  }
  __device__ __forceinline__ bool valid() const { return at < count; }
  __device__ __forceinline__ int rows_left() const { return item.count * heads - row; }
  __device__ __forceinline__ void Advance() {
    row += kTileRows;
    if (rows_left() > 0) return;
    row = 0;
    at += static_cast<int>(gridDim.x);
    item = next;
    next = Load(at + static_cast<int>(gridDim.x));
  }
};

// Fills both rings with this block's tiles of a slice; a warp, which looks up two rows a lane.
__device__ __forceinline__ void CopyTiles(const HsaAttendParams& p, const PrefillArgs& args,
                                          int64_t first_row, const PagesShared& shared) {
#ifdef MNEME_HAS_WGMMA
  constexpr int kRows = kTileRows / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int heads = static_cast<int>(p.heads), pages_max = static_cast<int>(p.pages_max);
  const float* pair_weights = p.weights + first_row * p.pages_max;
  TileCursor cursor(args.items + first_row * p.pages_max,
                    *args.items_of(first_row / args.slice_rows), heads);
  int pairs[kRows] = {}, head[kRows] = {};
  const auto load_pairs = [&] {
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      if (!cursor.valid() || lane + k * kLanes >= cursor.rows_left()) continue;
      const int row = cursor.row + lane + k * kLanes, of_item = DivideByHeads(args, row);
      head[k] = row - of_item * heads;
      pairs[k] = args.pairs[cursor.item.first + of_item];
    }
  };
  load_pairs();
  unsigned page_number = 0, tile = 0;
  for (; cursor.valid(); ++tile) {
    int kind = kTileOfPage;
    if (cursor.row == 0) {
      kind |= kFirstOfPage;
      shared.page_ring.WaitFree(page_number);
      CopyRows<2 * kPageTokens>(shared.pages + page_number % kPageSlots * kPageBytes,
                                reinterpret_cast<const void*>(cursor.item.page), 0);
      if (cursor.item.page % 16 == 0) {
        PhaseArriveAfterCopies(shared.page_ring.LoadedOf(page_number));
      } else {
        PhaseArrive(shared.page_ring.LoadedOf(page_number));
      }
      ++page_number;
    }
    const int rows = min(cursor.rows_left(), kTileRows);
    if (cursor.rows_left() <= kTileRows) kind |= kLastOfPage;
    int places[kRows];
    float weights[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int row = pairs[k] / kPagesMax, entry = row * pages_max + pairs[k] % kPagesMax;
      const bool valid = lane + k * kLanes < rows;
      places[k] = valid ? (entry * heads + head[k]) * 2 + head[k] % 2 : -1;
      weights[k] = valid ? pair_weights[entry] : 0.0f;
    }
    shared.tile_ring.WaitFree(tile);
    uint64_t* loaded = shared.tile_ring.LoadedOf(tile);
    if (lane == 0) {
      shared.kinds[tile % kTileSlots] = kind;
      PhaseExpect(loaded, rows * kRowBytes);
    }
    unsigned char* queries = shared.queries + tile % kTileSlots * kTileQueryBytes;
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int r = lane + k * kLanes;
      if (r >= rows || (head[k] != 0 && r != 0)) continue;  // the first of its pair's in the tile
      const int source = pairs[k] / kPagesMax * heads + head[k];
      CopyBulk(queries + r * kRowBytes, args.queries + int64_t{source} * kRowBytes,
               min(heads - head[k], rows - r) * kRowBytes, loaded);
    }
    cursor.Advance();
    load_pairs();
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      shared.rows[tile % kTileSlots * kTileRows + lane + k * kLanes] = {places[k], weights[k]};
    }
    PhaseArrive(loaded);
  }
  shared.tile_ring.WaitFree(tile);
  if (lane == 0) shared.kinds[tile % kTileSlots] = kNoTile;
  PhaseArrive(shared.tile_ring.LoadedOf(tile));
#endif
}

// Results of the pairs of a slice, from its items. Grid: kPagesBlocks a multiprocessor; block:
// kPagesThreads; shared: kPagesSharedBytes: pages in swapped rows; of tiles, q, [64 rows][8
// pieces], their TileRows and kinds; barriers.
__global__ void __launch_bounds__(kPagesThreads, kPagesBlocks)
    HsaPagesKernel(const HsaAttendParams p, const PrefillArgs args, const int64_t first_row) {
#ifdef MNEME_HAS_WGMMA
  WaitForKernelBefore();
  if (static_cast<int>(blockIdx.x) >= *args.items_of(first_row / args.slice_rows)) return;
  const PagesShared shared;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes, t = lane % 4;
  shared.page_ring.Init();
  shared.tile_ring.Init();
  __syncthreads();
  if (thread >= kPagesWarps * kLanes) {
    CopyTiles(p, args, first_row, shared);
    return;
  }

  unsigned page_number = 0;
  for (unsigned tile = 0;; ++tile) {
    shared.tile_ring.WaitLoaded(tile);
    const int kind = shared.kinds[tile % kTileSlots];
    if (kind == kNoTile) break;
    int place[2];
    float weights[2];
    uint32_t q[kWidth / 16][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = thread / kLanes * 16 + half * 8 + lane / 4;
      const TileRow info = shared.rows[tile % kTileSlots * kTileRows + r];
      place[half] = info.place;
      weights[half] = info.weight;
      const uint4* row = reinterpret_cast<const uint4*>(
          shared.queries + tile % kTileSlots * kTileQueryBytes + r * kRowBytes);
      const int exchanged = (info.place & 1) * 4;
      const uint4 pieces[2] = {row[t ^ exchanged], row[(4 + t) ^ exchanged]};
      PlacePieces(pieces, half, q);
    }
    shared.tile_ring.Release(tile);
    if (kind & kFirstOfPage) {
      shared.page_ring.WaitLoaded(page_number);
      FenceAsyncProxy();
    }
    const uint64_t keys =
        WgmmaSwappedDescriptor(shared.pages + page_number % kPageSlots * kPageBytes);
    float product[kWidth / 8][4], scales[2];
    AttendTile(q, keys, WgmmaAdvance(keys, kPageBytes / 2), weights, product, scales);
    if (kind & kLastOfPage) shared.page_ring.Release(page_number++);
    uint32_t words[kWidth / 8][2];
    RoundResult(product, scales, words);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (place[half] < 0) continue;
      uint4* to = reinterpret_cast<uint4*>(args.partials + int64_t{place[half] / 2} * kRowBytes);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        to[4 * h + t] = make_uint4(words[4 * h][half], words[4 * h + 1][half],
                                   words[4 * h + 2][half], words[4 * h + 3][half]);
      }
    }
  }
#endif
}

// ---- their sums --------------------------------------------------------------------------------

// Adds the results of each row's pages, those first that were written last: some are still in the
// L2 cache. Grid: any; block: kPointwiseThreads; eight threads a row of out.
template <typename Out>
__global__ void __launch_bounds__(kPointwiseThreads)
    HsaReduceKernel(const HsaAttendParams p, const PrefillArgs args, const int64_t first_row,
                    const bool vectors) {
  WaitForKernelBefore();
  if (*args.rows_of(first_row / args.slice_rows) == 0) return;
  const int heads = static_cast<int>(p.heads), threads = gridDim.x * kPointwiseThreads;
  const int count = static_cast<int>(min(args.slice_rows, p.rows - first_row)) * heads;
  const int begin = static_cast<int>(blockIdx.x * kPointwiseThreads + threadIdx.x) / 8;
  const int piece = static_cast<int>(threadIdx.x) % 8;
  const int rounds = (count * 8 + threads - 1) / threads;  // whole warps take part
  for (int round = 0; round < rounds; ++round) {
    const int at = count - 1 - (round * (threads / 8) + begin);
    const int row = max(at, 0) / heads, head = max(at, 0) - row * heads;
    const bool valid = at >= 0 && args.in_run[first_row + row] == 0;
    const int entries = valid ? p.page_counts[first_row + row] : 0;
    const uint4* from = reinterpret_cast<const uint4*>(args.partials) +
                        (row * p.pages_max * heads + head) * 8 + piece;
    float sums[4][2] = {};
    constexpr int kAtOnce = 8;
    for (int first = 0; first < entries; first += kAtOnce) {
      uint4 words[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i < entries) words[i] = from[(first + i) * heads * 8];
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i < entries) {
          const uint32_t word[4] = {words[i].x, words[i].y, words[i].z, words[i].w};
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            sums[j][0] += LowHalf(word[j]);
            sums[j][1] += HighHalf(word[j]);
          }
        }
      }
    }
    Out* out = static_cast<Out*>(p.out) + (first_row + row) * p.out_stride + head * kWidth;
    StorePiece(valid ? out : static_cast<Out*>(p.out), piece / 4, sums, vectors, valid);
  }
}

}  // namespace mneme::hsa

#endif  // MNEME_KERNELS_CUDA_HSA_PAGES_KERNELS_CUH_
