// Attention of runs, neighbouring rows that read the same pages in the same order
// (hsa_prefill_kernels.cuh): a block takes up to 256 rows of (token, head) of a run through its
// pages, four warpgroups of 64 rows each, sums in registers; one warp does nothing but copy pages.

#ifndef MNEME_KERNELS_CUDA_HSA_RUN_KERNEL_CUH_
#define MNEME_KERNELS_CUDA_HSA_RUN_KERNEL_CUH_

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

inline constexpr int kRunWarps = kGroups * 4;  // that compute; one more copies pages
inline constexpr int kRunComputing = kRunWarps * kLanes;
inline constexpr int kRunThreads = kRunComputing + 4 * kLanes;
// With five warps to a scheduler a thread starts with 96 registers: too few for those that compute.
inline constexpr int kRunRegisters = 112, kCopyRegisters = 32;
inline constexpr int kRunSlots = 8, kRunAhead = 4;
inline constexpr int kRunQueryBytes = kGroups * kTileRows * kWidth * 4;
using RunRing = Ring<kRunSlots, kRunWarps>;
inline constexpr int64_t kRunSharedBytes =
    kRunSlots * kPageBytes + kRunQueryBytes + RunRing::kBytes;

// This block's pages, run by run.
struct RunCursor {
  const HsaAttendParams& p;
  const PrefillArgs& args;
  int runs, at;
  RowRun run = {}, next = {};
  int entry = 0, entries = 0;
  const void* page = nullptr;

  __device__ __forceinline__ RunCursor(const HsaAttendParams& params, const PrefillArgs& arguments)
      : p(params), args(arguments), runs(*arguments.counts), at(static_cast<int>(blockIdx.x)) {
    run = Load(at);
    if (valid()) Enter();
  }
  __device__ __forceinline__ bool valid() const { return at < runs; }
  __device__ __forceinline__ RowRun Load(int index) const {
    return index < runs ? args.runs[index] : RowRun{0, 0};
  }
  __device__ __forceinline__ const void* PageOf(int i) const {
    return p.pages[run.row * static_cast<int>(p.pages_max) + i];
  }
  __device__ __forceinline__ void Enter() {
    next = Load(at + static_cast<int>(gridDim.x));
    entry = 0;
    entries = p.page_counts[run.row];
    page = PageOf(0);
  }
  __device__ __forceinline__ void Advance() {
    if (++entry < entries) {
      page = PageOf(entry);
      return;
    }
    at += static_cast<int>(gridDim.x);
    run = next;
    if (valid()) Enter();
  }
};

// Fills the ring with this block's pages; a warp.
__device__ __forceinline__ void CopyRunPages(const HsaAttendParams& p, const PrefillArgs& args,
                                             unsigned char* pages, const RunRing& ring) {
  unsigned started = 0;
  for (RunCursor cursor(p, args); cursor.valid(); ++started) {
    ring.WaitFree(started);
    CopyRows<2 * kPageTokens>(pages + started % kRunSlots * kPageBytes, cursor.page, 0);
    CopyAsyncCommit();
    cursor.Advance();
    if (started >= kRunAhead) {
      CopyAsyncWait<kRunAhead>();
      ring.Loaded(started - kRunAhead);
    }
  }
  CopyAsyncWait<0>();
  for (unsigned u = started - min(started, unsigned{kRunAhead}); u < started; ++u) ring.Loaded(u);
}

// This lane's two rows of a run; of those behind the last, row 0 takes the place.
struct RunRows {
  int token[2], head[2];
  bool valid[2];

  __device__ __forceinline__ RunRows(const PrefillArgs& args, const RowRun& run, int heads) {
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int r = thread / kLanes * 16 + half * 8 + thread % kLanes / 4;
      valid[half] = r < run.count * heads;
      if (!valid[half]) r = 0;
      const int of_run = DivideByHeads(args, r);
      token[half] = run.row + of_run;
      head[half] = r - of_run * heads;
    }
  }
};

// q of a run on its way into shared memory, each thread's for itself: [8][2 rows][threads] pairs of
// floats.
struct RunQueries {
  const HsaAttendParams& p;
  float2* staged;  // + the thread
  bool vectors;

  __device__ __forceinline__ const float* Row(const RunRows& rows, int half) const {
    return p.q + rows.token[half] * p.q_stride + rows.head[half] * kWidth;
  }
  __device__ __forceinline__ void Start(const RunRows& rows) const {
    if (!vectors) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* from = Row(rows, half) + threadIdx.x % 4 * 2;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        CopyAsync8(staged + (j * 2 + half) * kRunComputing, from + j * 8);
      }
    }
    CopyAsyncCommit();
  }
  // The A operand of the rows that were started last.
  __device__ __forceinline__ void Finish(const RunRows& rows, uint32_t (&q)[kWidth / 16][4]) const {
    if (vectors) CopyAsyncWait<0>();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint4 pieces[2];
      if (vectors) {
        MakePieces([&](int j) { return staged[(j * 2 + half) * kRunComputing]; }, pieces);
      } else {
        LoadPieces(Row(rows, half), static_cast<int>(threadIdx.x) % 4, false, pieces);
      }
      PlacePieces(pieces, half, q);
    }
  }
};

// Grid: one block a multiprocessor; block: kRunThreads, of which the last warp copies pages;
// shared: kRunSharedBytes: a ring of pages in swapped rows, q of the next run.
template <typename Out>
__global__ void __launch_bounds__(kRunThreads, 1)
    HsaRunKernel(const HsaAttendParams p, const PrefillArgs args, const Alignment aligned) {
#ifdef MNEME_HAS_WGMMA
  WaitForKernelBefore();
  unsigned char* pages = DynamicShared();
  unsigned char* queries = pages + kRunSlots * kPageBytes;
  const RunRing ring(queries + kRunQueryBytes);
  const int thread = static_cast<int>(threadIdx.x);
  const int heads = static_cast<int>(p.heads), pages_max = static_cast<int>(p.pages_max);
  const int runs = *args.counts, blocks = static_cast<int>(gridDim.x);
  int at = static_cast<int>(blockIdx.x);
  if (at >= runs) return;
  ring.Init();
  __syncthreads();
  if (thread >= kRunComputing) {
    GiveRegisters<kCopyRegisters>();
    if (thread < kRunComputing + kLanes) CopyRunPages(p, args, pages, ring);
    return;
  }
  TakeRegisters<kRunRegisters>();

  const RunQueries staged = {p, reinterpret_cast<float2*>(queries) + thread, aligned.q};
  RowRun run = args.runs[at];
  staged.Start(RunRows(args, run, heads));
  for (unsigned used = 0;;) {
    const bool any = thread / 128 * kTileRows < run.count * heads;
    uint32_t q[kWidth / 16][4];
    int weight_at[2];
    {
      const RunRows rows(args, run, heads);
      staged.Finish(rows, q);
      weight_at[0] = rows.token[0] * pages_max;
      weight_at[1] = rows.token[1] * pages_max;
    }
    const RowRun next = at + blocks < runs ? args.runs[at + blocks] : run;
    staged.Start(RunRows(args, next, heads));
    const unsigned end = used + static_cast<unsigned>(p.page_counts[run.row]);
    float sums[kWidth / 8][4] = {};
    for (; used != end; ++used, ++weight_at[0], ++weight_at[1]) {
      const float weights[2] = {p.weights[weight_at[0]], p.weights[weight_at[1]]};
      ring.WaitLoaded(used);
      if (!any) {
        ring.Release(used);
        continue;
      }
      const uint64_t keys = WgmmaSwappedDescriptor(pages + used % kRunSlots * kPageBytes);
      float product[kWidth / 8][4], scales[2];
      AttendTile(q, keys, WgmmaAdvance(keys, kPageBytes / 2), weights, product, scales);
      ring.Release(used);
      uint32_t words[kWidth / 8][2];
      RoundResult(product, scales, words);
#pragma unroll
      for (int j = 0; j < kWidth / 8; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          sums[j][half * 2] += LowHalf(words[j][half]);
          sums[j][half * 2 + 1] += HighHalf(words[j][half]);
        }
      }
    }
    const RunRows rows(args, run, heads);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Out* out =
          static_cast<Out*>(p.out) + rows.token[half] * p.out_stride + rows.head[half] * kWidth;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float v[4][2];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          v[j][0] = sums[4 * h + j][half * 2];
          v[j][1] = sums[4 * h + j][half * 2 + 1];
        }
        StorePiece(out, h, v, aligned.out, rows.valid[half]);
      }
    }
    at += blocks;
    if (at >= runs) break;
    run = next;
  }
  CopyAsyncWait<0>();
#endif
}

}  // namespace mneme::hsa

#endif  // MNEME_KERNELS_CUDA_HSA_RUN_KERNEL_CUH_
