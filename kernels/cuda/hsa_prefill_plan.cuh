// How a call of hierarchical sparse attention of many tokens is cut (hsa_prefill_kernels.cuh), and
// the workspace in which its kernels leave what the next ones read.
//
// Rows are inverted in groups, whose pairs of (row, entry) fit one block's hash table. Slices, of
// whole groups, share the memory of q and of results. A page with many readers is several items.

#ifndef MNEME_KERNELS_CUDA_HSA_PREFILL_PLAN_CUH_
#define MNEME_KERNELS_CUDA_HSA_PREFILL_PLAN_CUH_

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/hsa_tiles.cuh"
#include "kernels/ops.h"

namespace mneme::hsa {

inline constexpr int kGroups = 4;     // warpgroups that compute, of a block of runs
inline constexpr int kTileRows = 64;  // of a warpgroup's products
inline constexpr int kStepRows = kGroups * kTileRows;
inline constexpr int kPagesMax = 32;    // of one token
inline constexpr int kItemRows = 2048;  // of (pair, head) of an item at most

inline constexpr int kInvertThreads = 1024;  // at least the rows of a group
inline constexpr int kGroupPairs = 8192;     // that a group of rows has at most
// Rows of a slice: larger ones are faster (fewer launches), and their results are the workspace.
inline constexpr int64_t kSliceRows = 32768;
inline constexpr int64_t kPartialsBytesMax = int64_t{512} << 20;

// A page and its readers: pairs[first .. first + count).
struct alignas(16) PageItem {
  uint64_t page;
  int first;
  int count;
};
// Neighbouring rows with the same table.
struct RowRun {
  int row;
  int count;
};

// How a call is cut, and its workspace.
struct PrefillArgs {
  int64_t slice_rows = 0;  // a multiple of group_rows
  int group_rows = 0;      // that are inverted together
  int run_rows = 0;        // of a run at most
  int run_rows_min = 0;
  int item_pairs = 0;          // of an item at most
  unsigned heads_inverse = 0;  // 2^20 / heads, rounded up

  // Device memory. A pair is (row of its slice) * kPagesMax + entry.
  int* counts = nullptr;      // [1 + 2 slices]: runs; items, rows that are in no run, of each slice
  RowRun* runs = nullptr;     // [rows / run_rows_min]
  PageItem* items = nullptr;  // [rows * pages_max], a slice's from its first pair on
  int* pairs = nullptr;       // [rows * pages_max]
  unsigned char* in_run = nullptr;    // [rows]
  unsigned char* queries = nullptr;   // [slice_rows, heads] rows of pieces
  unsigned char* partials = nullptr;  // [slice_rows, pages_max, heads] rows of pieces

  __device__ __forceinline__ int* items_of(int64_t slice) const { return counts + 1 + 2 * slice; }
  __device__ __forceinline__ int* rows_of(int64_t slice) const { return counts + 2 + 2 * slice; }
};

// row / heads, for rows below kItemRows.
__device__ __forceinline__ int DivideByHeads(const PrefillArgs& args, int row) {
  return static_cast<int>(static_cast<unsigned>(row) * args.heads_inverse >> 20);
}

// Cuts a call of `p.rows` rows into slices of at most `slice_rows`, a multiple of kInvertThreads;
// workspace pointers are set when `workspace` is not null. Returns the bytes of the workspace,
// which is aligned to 256 bytes.
inline int64_t PlanPrefill(const HsaAttendParams& p, int64_t slice_rows, void* workspace,
                           PrefillArgs* args) {
  const int heads = static_cast<int>(p.heads);
  args->group_rows = kInvertThreads;
  while (args->group_rows * p.pages_max > kGroupPairs) args->group_rows /= 2;
  const int64_t row_bytes = p.pages_max * heads * kRowBytes;
  slice_rows =
      std::min(slice_rows, std::max<int64_t>(1, kPartialsBytesMax / row_bytes / kInvertThreads) *
                               kInvertThreads);
  args->slice_rows = slice_rows;
  args->item_pairs = kItemRows / heads;
  args->heads_inverse =
      ((1u << 20) + static_cast<unsigned>(heads) - 1) / static_cast<unsigned>(heads);
  args->run_rows = kStepRows / heads;
  args->run_rows_min = std::max(1, (args->run_rows + 1) / 2);
  const int64_t slices = (p.rows + slice_rows - 1) / slice_rows;
  const int64_t rows_at_once = std::min(p.rows, slice_rows);
  int64_t bytes = 0;
  const auto place = [&](auto*& pointer, int64_t count) {
    if (workspace != nullptr) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(
          static_cast<unsigned char*>(workspace) + bytes);
    }
    bytes += (count * static_cast<int64_t>(sizeof(*pointer)) + 255) / 256 * 256;
  };
  place(args->counts, 1 + 2 * slices);
  place(args->runs, p.rows / args->run_rows_min + 1);
  place(args->items, p.rows * p.pages_max);
  place(args->pairs, p.rows * p.pages_max);
  place(args->in_run, p.rows);
  place(args->queries, rows_at_once * heads * kRowBytes);
  place(args->partials, rows_at_once * row_bytes);
  return bytes;
}

}  // namespace mneme::hsa

#endif  // MNEME_KERNELS_CUDA_HSA_PREFILL_PLAN_CUH_
