// The landmark scan on a GPU: the choice of its kernels and their launch, on plain pointers
// (landmark_topk.cu puts them behind the launcher, bench/gpu/hsa_topk_bench.cu times them).
//
// How it works. The landmarks are cut into tiles of a few rows (landmark_tiles.cuh), and every
// block (or warp) of a persistent grid goes through neighbouring tiles, newest first, with copies
// into a ring of shared memory running ahead. What reaches the bound of a query goes into a list of
// the warp, as one 64-bit key (landmark_keys.cuh); a second kernel merges the lists by a total
// order (landmark_merge_kernel.cuh). Scores are never written.
//
// Bounds only leave out rows that k others beat, so results do not depend on the order in which
// warps meet; and every variant of a machine sums a score in one order, so they do not depend on
// the other queries of a call.
//
// Variants:
//   scan_simple     any type, width and alignment; a row at a time (landmark_simple_kernel.cuh)
//   scan_mma<N>     bf16, N = 8 or 32 queries a pass, mma.sync (landmark_mma_kernel.cuh)
//   scan_wgmma<N>   bf16, N = 8 .. 128 queries a pass, dim a multiple of 64, sm_90a
//                   (landmark_wgmma_kernel.cuh)

#ifndef MNEME_KERNELS_CUDA_LANDMARK_TOPK_KERNELS_CUH_
#define MNEME_KERNELS_CUDA_LANDMARK_TOPK_KERNELS_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cuda/landmark_lists.cuh"
#include "kernels/cuda/landmark_merge_kernel.cuh"
#include "kernels/cuda/landmark_mma_kernel.cuh"
#include "kernels/cuda/landmark_shared_bytes.h"
#include "kernels/cuda/landmark_simple_kernel.cuh"
#include "kernels/cuda/landmark_tiles.cuh"
#include "kernels/cuda/landmark_wgmma_kernel.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/dtype.h"

namespace mneme::landmark_scan {

enum class Variant { kSimple, kMma8, kMma32, kWgmma8, kWgmma16, kWgmma32, kWgmma64, kWgmma128 };

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

// Landmarks that lie one after the other.
struct HostSlab {
  const void* rows;
  int64_t row_count;
};
// Cuts slabs into tiles; leaves empty ones out. Sets the number of tiles.
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
  const SimpleBlock block = PlanSimpleBlock(shape.k, machine.shared_bytes_max);
  *plan = {.variant = Variant::kSimple,
           .pass_queries = kSimpleQueries,
           .tile_rows = kSimpleTileRows,
           .blocks = machine.multiprocessors,
           .threads = block.warps * kWarp,
           .lists = machine.multiprocessors * block.warps,
           .list_keys = shape.k,
           .capacity = block.capacity,
           .stages = 0,
           .shared_bytes = block.shared_bytes};
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
  const auto merge = [&](bool overlaps) {
    return LaunchOverlapping(MergeListsKernel, dim3(args.n_queries), dim3(kMergeThreads), 0, stream,
                             overlaps, args, indices, scores);
  };
  if (args.tile_count == 0) return merge(false);
  const auto scan = [&](void (*kernel)(Args)) {
    return Launch(kernel, dim3(plan.blocks), dim3(plan.threads), plan.shared_bytes, stream, args);
  };
  const auto wgmma = [&](void (*kernel)(Args)) {
    const int64_t items = int64_t{plan.pass_queries} * args.dim / 8;
    const cudaError_t error = Launch(
        PrepareKernel, dim3(static_cast<unsigned>((items + kPrepareThreads - 1) / kPrepareThreads)),
        dim3(kPrepareThreads), 0, stream, args);
    if (error != cudaSuccess) return error;
    return LaunchOverlapping(kernel, dim3(plan.blocks), dim3(plan.threads), plan.shared_bytes,
                             stream, /*overlaps=*/true, args);
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
  return merge(plan.stages > 0);
}

}  // namespace mneme::landmark_scan

#endif  // MNEME_KERNELS_CUDA_LANDMARK_TOPK_KERNELS_CUH_
