// Hierarchical sparse attention of many tokens (arXiv 2504.16795) on Hopper's matrix units.
//
// A page (64 K rows, 64 V rows) is read from memory once for many tokens, and its products have
// 64 rows of (token, head), any heads of any tokens. Two ways to get there:
//
// Runs. Neighbours that read the same pages in the same order (a model that retrieves once a chunk)
// stay together: hsa_run_kernel.cuh.
//
// Pages. All other (token, entry) pairs of some hundred tokens are sorted by page
// (hsa_invert_kernel.cuh), which lists for each page who reads it. A block takes a page through its
// list, 64 rows at a time, which one warp looks up and copies for the four that compute; a pair's
// result goes to memory as bf16, at the pair's own place, and a last kernel adds a token's results
// (hsa_pages_kernels.cuh). For that rows go in slices (hsa_prefill_plan.cuh), and q is made ready
// once: scaled, bf16, in the order in which the lanes of a matrix fragment read it
// (hsa_pieces.cuh).
//
// A token adds its pages' results, rounded to bf16, in f32 in the order of the table, both ways:
// the bits do not depend on which way it goes, nor on the other tokens of the call.

#ifndef MNEME_KERNELS_CUDA_HSA_PREFILL_KERNELS_CUH_
#define MNEME_KERNELS_CUDA_HSA_PREFILL_KERNELS_CUH_

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/hsa_invert_kernel.cuh"
#include "kernels/cuda/hsa_pages_kernels.cuh"
#include "kernels/cuda/hsa_prefill_plan.cuh"
#include "kernels/cuda/hsa_run_kernel.cuh"
#include "kernels/cuda/hsa_tiles.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/ops.h"

namespace mneme::hsa {

// Queues the kernels of a call that PlanPrefill has cut, with workspace, on a machine of
// `multiprocessors`.
template <typename Out>
cudaError_t LaunchPrefill(const HsaAttendParams& p, const PrefillArgs& args, int multiprocessors,
                          cudaStream_t stream) {
  const Alignment aligned = AlignmentOf(p);
  const int64_t slices = (p.rows + args.slice_rows - 1) / args.slice_rows;
  const auto blocks = [](int64_t count) { return dim3(static_cast<unsigned>(count)); };
  cudaError_t error =
      cudaMemsetAsync(args.counts, 0, static_cast<size_t>(1 + 2 * slices) * 4, stream);
  if (error != cudaSuccess) return error;
  error = Launch(HsaInvertKernel, blocks((p.rows + args.group_rows - 1) / args.group_rows),
                 dim3(kInvertThreads), kInvertSharedBytes, stream, p, args);
  if (error != cudaSuccess) return error;
  error = LaunchOverlapping(HsaRunKernel<Out>, blocks(multiprocessors), dim3(kRunThreads),
                            kRunSharedBytes, stream, true, p, args, aligned);
  for (int64_t slice = 0; slice < slices && error == cudaSuccess; ++slice) {
    const int64_t first_row = slice * args.slice_rows;
    const int64_t rows = std::min(args.slice_rows, p.rows - first_row);
    const int64_t most = int64_t{multiprocessors} * 8;
    const auto pointwise = [&](int64_t threads) {
      return blocks(std::min(most, (threads + kPointwiseThreads - 1) / kPointwiseThreads));
    };
    error =
        LaunchOverlapping(HsaQueryKernel, pointwise(rows * p.heads * 4), dim3(kPointwiseThreads), 0,
                          stream, true, p, args, first_row, aligned.q);
    if (error != cudaSuccess) break;
    error =
        LaunchOverlapping(HsaPagesKernel, blocks(kPagesBlocks * multiprocessors),
                          dim3(kPagesThreads), kPagesSharedBytes, stream, true, p, args, first_row);
    if (error != cudaSuccess) break;
    error = LaunchOverlapping(HsaReduceKernel<Out>, pointwise(rows * p.heads * 8),
                              dim3(kPointwiseThreads), 0, stream, true, p, args, first_row,
                              aligned.out);
  }
  return error;
}

}  // namespace mneme::hsa

#endif  // MNEME_KERNELS_CUDA_HSA_PREFILL_KERNELS_CUH_
