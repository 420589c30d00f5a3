// Who reads which page: the first step of hierarchical sparse attention of many tokens
// (hsa_prefill_kernels.cuh). A block takes a group of rows. Neighbours with the same table become
// runs; all other (row, entry) pairs go into a hash table in shared memory, keyed by page, which
// gives each page's list of readers.

#ifndef MNEME_KERNELS_CUDA_HSA_INVERT_KERNEL_CUH_
#define MNEME_KERNELS_CUDA_HSA_INVERT_KERNEL_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/hsa_prefill_plan.cuh"
#include "kernels/cuda/hsa_tiles.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/ops.h"

namespace mneme::hsa {

inline constexpr int kTableSlots = 2 * kGroupPairs;
inline constexpr int64_t kInvertSharedBytes = kTableSlots * (8 + 4) + (3 * 32 + 1) * 4;

// The first row of the run of rows that `row` is in, and the row behind its last: `starts` has a
// bit for each row of the group that does not continue the row before.
__device__ __forceinline__ int RunBegin(const unsigned* starts, int row) {
  int word = row / 32;
  unsigned bits = starts[word] & (0xffffffffu >> (31 - row % 32));
  while (bits == 0) bits = starts[--word];  // row 0 starts
  return word * 32 + 31 - __clz(static_cast<int>(bits));
}
__device__ __forceinline__ int RunEnd(const unsigned* starts, int row) {
  int word = row / 32;
  unsigned bits = starts[word] & ~(0xffffffffu >> (31 - row % 32));
  while (bits == 0) {
    if (++word == kInvertThreads / 32) return kInvertThreads;
    bits = starts[word];
  }
  return word * 32 + __ffs(static_cast<int>(bits)) - 1;
}

// The place of a page in the table; takes an empty one for a page that is new.
__device__ __forceinline__ int FindPage(unsigned long long* table, uint64_t page) {
  unsigned slot = static_cast<unsigned>((page >> 4) * 0x9e3779b97f4a7c15u >> 40) % kTableSlots;
  for (;; slot = (slot + 1) % kTableSlots) {
    // Pages hold 2-byte elements, so page + 1 is no other page, nor 0.
    const unsigned long long before = atomicCAS(table + slot, 0ull, page + 1);
    if (before == 0 || before == page + 1) return static_cast<int>(slot);
  }
}

// Exclusive sums over the block's threads; `totals` [32] is shared memory.
__device__ __forceinline__ unsigned SumBefore(unsigned mine, unsigned* totals) {
  const int warp = static_cast<int>(threadIdx.x) / kLanes,
            lane = static_cast<int>(threadIdx.x) % kLanes;
  unsigned sum = mine;
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const unsigned other = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == kLanes - 1) totals[warp] = sum;
  __syncthreads();
  unsigned before = sum - mine;
  for (int w = 0; w < warp; ++w) before += totals[w];
  return before;
}

// Grid: groups of group_rows rows; block: kInvertThreads; shared: kInvertSharedBytes: the table,
// how many read each of its pages, bits of rows. Writes runs, in_run, items and pairs; the order of
// the items of a slice and of the pairs of an item is any. args.counts are zeros before.
__global__ void __launch_bounds__(kInvertThreads)
    HsaInvertKernel(const HsaAttendParams p, const PrefillArgs args) {
  unsigned long long* table = reinterpret_cast<unsigned long long*>(DynamicShared());
  unsigned* readers = reinterpret_cast<unsigned*>(table + kTableSlots);
  unsigned* starts = readers + kTableSlots;
  unsigned* taken = starts + 32;  // rows that are in runs
  unsigned* totals = taken + 32;
  int* first_item = reinterpret_cast<int*>(totals + 32);

  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * args.group_rows;
  const int rows = static_cast<int>(min(int64_t{args.group_rows}, p.rows - first_row));
  const int64_t slice = first_row / args.slice_rows;
  const int pages_max = static_cast<int>(p.pages_max);
  for (int i = thread; i < kTableSlots; i += kInvertThreads) {
    table[i] = 0;
    readers[i] = 0;
  }

  const int64_t row = first_row + thread;
  bool continues = false;
  if (thread > 0 && thread < rows && p.page_counts[row] == p.page_counts[row - 1]) {
    continues = true;
    for (int i = 0; i < p.page_counts[row] && continues; ++i) {
      continues = p.pages[row * pages_max + i] == p.pages[(row - 1) * pages_max + i];
    }
  }
  const unsigned start_bits = __ballot_sync(0xffffffffu, !continues);
  if (lane == 0) starts[thread / kLanes] = start_bits;
  __syncthreads();
  bool runs = false;
  if (thread < rows) {
    const int begin = RunBegin(starts, thread), end = min(RunEnd(starts, thread), rows);
    const int part = begin + (thread - begin) / args.run_rows * args.run_rows;
    const int count = min(args.run_rows, end - part);
    runs = count >= args.run_rows_min && p.page_counts[row] > 0;
    args.in_run[row] = runs ? 1 : 0;
    if (runs && part == thread) {
      args.runs[atomicAdd(args.counts, 1)] = {static_cast<int>(row), count};
    }
  }
  const unsigned taken_bits = __ballot_sync(0xffffffffu, runs);
  const int others = __popc(__ballot_sync(0xffffffffu, thread < rows && !runs));
  if (lane == 0) taken[thread / kLanes] = taken_bits;
  if (lane == 0 && others > 0) atomicAdd(args.rows_of(slice), others);
  __syncthreads();

  constexpr int kPairsAThread = kGroupPairs / kInvertThreads;
  int slots[kPairsAThread];
  unsigned ranks[kPairsAThread];
#pragma unroll
  for (int j = 0; j < kPairsAThread; ++j) {
    const int pair = j * kInvertThreads + thread, r = pair / pages_max, i = pair % pages_max;
    slots[j] = -1;
    if (r < rows && (taken[r / 32] >> (r % 32) & 1) == 0 && i < p.page_counts[first_row + r]) {
      slots[j] = FindPage(table, reinterpret_cast<uint64_t>(p.pages[first_row * pages_max + pair]));
      ranks[j] = atomicAdd(readers + slots[j], 1u);
    }
  }
  __syncthreads();

  // Pairs in the low half, items in the high one.
  const auto items_of = [&](unsigned pairs) {
    return (pairs + args.item_pairs - 1) / static_cast<unsigned>(args.item_pairs);
  };
  unsigned mine = 0;
  for (int i = thread; i < kTableSlots; i += kInvertThreads) {
    mine += readers[i] | items_of(readers[i]) << 16;
  }
  unsigned before = SumBefore(mine, totals);
  if (thread == kInvertThreads - 1) {
    *first_item = atomicAdd(args.items_of(slice), static_cast<int>((before + mine) >> 16));
  }
  __syncthreads();
  const int64_t first_pair = first_row * pages_max;
  PageItem* items = args.items + slice * args.slice_rows * pages_max + *first_item;
  for (int i = thread; i < kTableSlots; i += kInvertThreads) {
    const unsigned count = readers[i];
    if (count == 0) continue;
    const int first = static_cast<int>(before & 0xffffu);
    PageItem* item = items + (before >> 16);
    for (int done = 0; done < static_cast<int>(count); done += args.item_pairs) {
      *item++ = {table[i] - 1, static_cast<int>(first_pair) + first + done,
                 min(args.item_pairs, static_cast<int>(count) - done)};
    }
    readers[i] = static_cast<unsigned>(first);
    before += count | items_of(count) << 16;
  }
  __syncthreads();
  const int slice_row = static_cast<int>(first_row - slice * args.slice_rows);
#pragma unroll
  for (int j = 0; j < kPairsAThread; ++j) {
    if (slots[j] < 0) continue;
    const int pair = j * kInvertThreads + thread;
    args.pairs[first_pair + readers[slots[j]] + ranks[j]] =
        (slice_row + pair / pages_max) * kPagesMax + pair % pages_max;
  }
}

}  // namespace mneme::hsa

#endif  // MNEME_KERNELS_CUDA_HSA_INVERT_KERNEL_CUH_
