// What a landmark scan reads, and how its kernels go through it: slabs of rows cut into tiles, a
// cursor over neighbouring tiles, queries as matrix units take them.
//
// A block (or warp) of a persistent grid takes one part of all tiles, newest first, so that its
// place is found by counting. Queries are two bf16 numbers, q = hi + lo: a query loses nothing
// above 2^-17 of its value (as in the CPU's scan).

#ifndef MNEME_KERNELS_CUDA_LANDMARK_TILES_CUH_
#define MNEME_KERNELS_CUDA_LANDMARK_TILES_CUH_

#include <cuda_runtime.h>

#include <cstdint>

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

inline constexpr int kWarp = 32;
inline constexpr int kBestPlaces = 32;  // shared best scores of a query

// One pass of a scan: a kernel of some variant, then MergeListsKernel.
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

}  // namespace mneme::landmark_scan

#endif  // MNEME_KERNELS_CUDA_LANDMARK_TILES_CUH_
