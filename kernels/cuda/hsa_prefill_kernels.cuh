// Hierarchical sparse attention of many tokens (arXiv 2504.16795) on Hopper's matrix units.
//
// A page (64 K rows, 64 V rows) is read from memory once for many tokens, and its products have
// 64 rows of (token, head), any heads of any tokens. Two ways to get there:
//
// Runs. Neighbours that read the same pages in the same order (a model that retrieves once a chunk)
// stay together: a block takes up to 256 rows of such a run through its pages, sums in registers.
//
// Pages. All other (token, entry) pairs of some hundred tokens are sorted by page with a hash table
// in shared memory (HsaInvertKernel), which lists for each page who reads it. A block takes a page
// through its list; a pair's result goes to memory as bf16, at the pair's own place, and
// HsaReduceKernel adds a token's results. For that rows go in slices, and q is made ready once
// (HsaQueryKernel): scaled, bf16, in the order in which the lanes of a matrix fragment read it.
//
// A token adds its pages' results, rounded to bf16, in f32 in the order of the table, both ways:
// the bits do not depend on which way it goes, nor on the other tokens of the call.
//
// A "piece" is 16 bytes of a row of 64 bf16 numbers in the order of fragments: piece 4 h + t, h <
// 2, t < 4, holds columns 8 j + 2 t and the next for j = 4 h .. 4 h + 3, what lane t of a row's
// four has of an accumulator and, as steps 2 h and 2 h + 1, of an A operand.

#ifndef MNEME_KERNELS_CUDA_HSA_PREFILL_KERNELS_CUH_
#define MNEME_KERNELS_CUDA_HSA_PREFILL_KERNELS_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/hsa_tiles.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/ops.h"

namespace mneme::hsa {

inline constexpr int kGroups = 4;  // warpgroups of a block
inline constexpr int kPrefillThreads = kGroups * 128;
inline constexpr int kPrefillWarps = kPrefillThreads / kLanes;
inline constexpr int kTileRows = 64;  // of a warpgroup's products
inline constexpr int kStepRows = kGroups * kTileRows;
inline constexpr int kPagesMax = 32;  // of one token
inline constexpr int kItemRows = 2048;

inline constexpr int kInvertThreads = 1024;  // at least the rows of a group
inline constexpr int kGroupPairs = 8192;     // that a group of rows has at most
inline constexpr int kTableSlots = 2 * kGroupPairs;
inline constexpr int64_t kInvertSharedBytes = kTableSlots * (8 + 4) + (3 * 32 + 1) * 4;

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

// ---- who reads which page ----------------------------------------------------------------------

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

// ---- q -----------------------------------------------------------------------------------------

// One row of q, 64 floats, as lane t of its four has it in an A operand: piece h's words are [h].
__device__ __forceinline__ void LoadPieces(const float* row, int t, bool vectors,
                                           uint4 (&pieces)[2]) {
  const float scale = kLog2E / sqrtf(static_cast<float>(kWidth));
  uint32_t words[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float* from = row + j * 8 + t * 2;
    const float2 v =
        vectors ? *reinterpret_cast<const float2*>(from) : make_float2(from[0], from[1]);
    words[j] = PackBf16(v.x * scale, v.y * scale);
  }
  pieces[0] = make_uint4(words[0], words[1], words[2], words[3]);
  pieces[1] = make_uint4(words[4], words[5], words[6], words[7]);
}

// The A operand of rows lane / 4 and lane / 4 + 8 from their pieces.
__device__ __forceinline__ void PlacePieces(const uint4 (&pieces)[2], int half,
                                            uint32_t (&a)[kWidth / 16][4]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    a[2 * h][half] = pieces[h].x;
    a[2 * h][half + 2] = pieces[h].y;
    a[2 * h + 1][half] = pieces[h].z;
    a[2 * h + 1][half + 2] = pieces[h].w;
  }
}

inline constexpr int kPointwiseThreads = 256;

// Writes args.queries for the rows of a slice that are in no run. Grid: any; block:
// kPointwiseThreads; four threads a row of q.
__global__ void __launch_bounds__(kPointwiseThreads)
    HsaQueryKernel(const HsaAttendParams p, const PrefillArgs args, const int64_t first_row,
                   const bool vectors) {
  if (*args.rows_of(first_row / args.slice_rows) == 0) return;
  if (*args.rows_of(first_row / args.slice_rows) == 0) return;
  const int64_t rows = min(args.slice_rows, p.rows - first_row);
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kPointwiseThreads;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kPointwiseThreads + threadIdx.x;
       at < rows * p.heads * 4; at += threads) {
    const int t = static_cast<int>(at % 4);
    const int64_t row = at / 4 / p.heads, head = at / 4 % p.heads;
    if (args.in_run[first_row + row] != 0) continue;
    uint4 pieces[2];
    LoadPieces(p.q + (first_row + row) * p.q_stride + head * kWidth, t, vectors, pieces);
    uint4* to = reinterpret_cast<uint4*>(args.queries) + at / 4 * 8;
    to[t] = pieces[0];
    to[4 + t] = pieces[1];
  }
}

// ---- products ----------------------------------------------------------------------------------

// weights * softmax(q K^T) V of 64 rows and one page, as RoundResult leaves it, 16 rows a warp. A
// warpgroup.
__device__ __forceinline__ void AttendTile(const uint32_t (&q)[kWidth / 16][4], uint64_t keys,
                                           uint64_t values, const float (&weights)[2],
                                           uint32_t (&words)[kWidth / 8][2]) {
#ifdef MNEME_HAS_WGMMA
  uint32_t a[kPageTokens / 16][4];
  float scales[2];
  {
    float scores[kPageTokens / 8][4];
    WgmmaFence();
    WgmmaRows<true, false>(scores, q[0], keys);
#pragma unroll
    for (int step = 1; step < kWidth / 16; ++step) {
      WgmmaRows<false, false>(scores, q[step], WgmmaAdvance(keys, step * 32));
    }
    WgmmaCommit();
    WgmmaWait<0>();
    Softmax(scores, a, scales);
  }
  float product[kWidth / 8][4];
  WgmmaFence();
  WgmmaRows<true>(product, a[0], values);
#pragma unroll
  for (int step = 1; step < kPageTokens / 16; ++step) {
    WgmmaRows<false>(product, a[step], WgmmaAdvance(values, step * 16 * kRowBytes));
  }
  WgmmaCommit();
  FinishSoftmax(weights, scales);
  WgmmaWait<0>();
  RoundResult(product, scales, words);
#endif
}

// Among the four lanes of a row: lane t has words [j], and gets word t of lanes 0 .. 3.
__device__ __forceinline__ void TransposeQuad(uint32_t (&words)[4]) {
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool upper = (t & step) != 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int low = step == 1 ? 2 * i : i, high = low + step;
      const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? words[low] : words[high], step);
      (upper ? words[low] : words[high]) = got;
    }
  }
}

// Writes piece 4 h + t of a row of `out`, as floats. All lanes of the warp; `valid` ones write.
template <typename Out>
__device__ __forceinline__ void StorePiece(Out* row, int h, const float (&v)[4][2], bool vectors,
                                           bool valid) {
  const int t = static_cast<int>(threadIdx.x) % 4;
  if constexpr (sizeof(Out) == 2) {
    if (vectors) {
      uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) words[j] = PackBf16(v[j][0], v[j][1]);
      TransposeQuad(words);
      if (valid) {
        *reinterpret_cast<uint4*>(row + (4 * h + t) * 8) =
            make_uint4(words[0], words[1], words[2], words[3]);
      }
      return;
    }
  }
  if (!valid) return;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    Out* to = row + (4 * h + j) * 8 + t * 2;
    to[0] = static_cast<Out>(v[j][0]);
    to[1] = static_cast<Out>(v[j][1]);
  }
}

// ---- a ring of copies --------------------------------------------------------------------------

// Slots in shared memory that all threads of a block fill, each its part, and all its warps use in
// the same order. Step u lies in slot u % kSlots; copies run kAhead steps ahead of use.
template <int kSlots>
struct CopyRing {
  uint64_t* loaded;    // [kSlots]
  uint64_t* consumed;  // [kSlots]

  // The block; a barrier afterwards.
  __device__ __forceinline__ void Init() const {
#ifdef MNEME_HAS_WGMMA
    if (threadIdx.x < kSlots) {
      PhaseInit(loaded + threadIdx.x, kPrefillThreads);
      PhaseInit(consumed + threadIdx.x, kPrefillWarps);
    }
#endif
  }
  // Waits until the slot of step `u` may be written.
  __device__ __forceinline__ void WaitFree(int u) const {
#ifdef MNEME_HAS_WGMMA
    PhaseWait(consumed + u % kSlots, static_cast<uint32_t>(u / kSlots & 1) ^ 1);
#endif
  }
  // This thread's copies for step `u` are started (or, not `async`, done).
  __device__ __forceinline__ void Started(int u, bool async) const {
#ifdef MNEME_HAS_WGMMA
    if (async) {
      PhaseArriveAfterCopies(loaded + u % kSlots);
    } else {
      CopyAsyncCommit();
      CopyAsyncWait<0>();
      PhaseArrive(loaded + u % kSlots);
    }
#endif
  }
  __device__ __forceinline__ void WaitLoaded(int u) const {
#ifdef MNEME_HAS_WGMMA
    PhaseWait(loaded + u % kSlots, static_cast<uint32_t>(u / kSlots & 1));
    FenceAsyncProxy();
#endif
  }
  // This warp needs step `u` no more.
  __device__ __forceinline__ void Release(int u) const {
#ifdef MNEME_HAS_WGMMA
    __syncwarp();
    if (threadIdx.x % kLanes == 0) PhaseArrive(consumed + u % kSlots);
#endif
  }
};

// Starts this thread's part, of kThreads, of copying a page into 128 swapped rows; false: it is
// done, as the page is not aligned to 16 bytes.
template <int kThreads>
__device__ __forceinline__ bool CopyPage(unsigned char* to, const void* page) {
  static_assert(kThreads % 64 == 0, "eight rows further, chunks are swapped alike");
  const int thread = static_cast<int>(threadIdx.x);
  if (reinterpret_cast<uintptr_t>(page) % 16 == 0) {
    const unsigned char* from = static_cast<const unsigned char*>(page) + thread * 16;
    unsigned char* at = to + Swapped(thread / 8, thread % 8);
#pragma unroll
    for (int i = 0; i < kPageBytes / 16; i += kThreads) {
      CopyAsync16(at + i * 16, from + i * 16);
    }
    return true;
  }
  const uint16_t* elements = static_cast<const uint16_t*>(page);
  for (int i = thread; i < kPageBytes / 2; i += kThreads) {
    const int row = i / kWidth, column = i % kWidth;
    *reinterpret_cast<uint16_t*>(to + Swapped(row, column / 8) + column % 8 * 2) = elements[i];
  }
  return false;
}

// ---- runs --------------------------------------------------------------------------------------

inline constexpr int kRunSlots = 8, kRunAhead = 5;
inline constexpr int64_t kRunSharedBytes = kRunSlots * (kPageBytes + 2 * 8);

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
    Enter();
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

// Grid: one block a multiprocessor; block: kPrefillThreads; shared: kRunSharedBytes, a ring of
// pages in swapped rows.
template <typename Out>
__global__ void __launch_bounds__(kPrefillThreads, 1)
    HsaRunKernel(const HsaAttendParams p, const PrefillArgs args, const Alignment aligned) {
#ifdef MNEME_HAS_WGMMA
  unsigned char* pages = DynamicShared();
  CopyRing<kRunSlots> ring;
  ring.loaded = reinterpret_cast<uint64_t*>(pages + kRunSlots * kPageBytes);
  ring.consumed = ring.loaded + kRunSlots;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes;
  const int tile = thread / 128, t = lane % 4, heads = static_cast<int>(p.heads);
  const int pages_max = static_cast<int>(p.pages_max);
  ring.Init();
  __syncthreads();

  RunCursor copied(p, args);
  if (!copied.valid()) return;
  int started = 0, used = 0;
  const auto copy_next = [&] {
    if (copied.valid()) {
      ring.WaitFree(started);
      const bool async =
          CopyPage<kPrefillThreads>(pages + started % kRunSlots * kPageBytes, copied.page);
      ring.Started(started, async);
      ++started;
      copied.Advance();
    }
  };
  for (int i = 0; i < kRunAhead; ++i) copy_next();

  for (int at = static_cast<int>(blockIdx.x); at < copied.runs; at += static_cast<int>(gridDim.x)) {
    const RowRun run = args.runs[at];
    const int rows = run.count * heads;
    if (at + static_cast<int>(gridDim.x) < copied.runs) {  // q of the next run, half a row a thread
      const RowRun next = args.runs[at + gridDim.x];
      const int token = DivideByHeads(args, thread / 2), head = thread / 2 - token * heads;
      if (token < next.count) {
        PrefetchL2(p.q + (next.row + token) * p.q_stride + head * kWidth + thread % 2 * 32);
      }
    }
    // This lane's two rows; of those behind the last, row 0 takes the place.
    int token[2], head[2];
    bool valid[2];
    uint32_t q[kWidth / 16][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int r = tile * kTileRows + thread % 128 / kLanes * 16 + half * 8 + lane / 4;
      valid[half] = r < rows;
      if (!valid[half]) r = 0;
      token[half] = DivideByHeads(args, r);
      head[half] = r - token[half] * heads;
      token[half] += run.row;
      uint4 pieces[2];
      LoadPieces(p.q + token[half] * p.q_stride + head[half] * kWidth, t, aligned.q, pieces);
      PlacePieces(pieces, half, q);
    }
    const int entries = p.page_counts[run.row];
    float sums[kWidth / 8][4] = {};
    for (int i = 0; i < entries; ++i, ++used) {
      copy_next();
      const float weights[2] = {p.weights[token[0] * pages_max + i],
                                p.weights[token[1] * pages_max + i]};
      ring.WaitLoaded(used);
      if (tile * kTileRows < rows) {
        const unsigned char* page = pages + used % kRunSlots * kPageBytes;
        const uint64_t keys = WgmmaSwappedDescriptor(page);
        uint32_t words[kWidth / 8][2];
        AttendTile(q, keys, WgmmaAdvance(keys, kPageBytes / 2), weights, words);
#pragma unroll
        for (int j = 0; j < kWidth / 8; ++j) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            sums[j][half * 2] += LowHalf(words[j][half]);
            sums[j][half * 2 + 1] += HighHalf(words[j][half]);
          }
        }
      }
      ring.Release(used);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Out* out = static_cast<Out*>(p.out) + token[half] * p.out_stride + head[half] * kWidth;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float v[4][2];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          v[j][0] = sums[4 * h + j][half * 2];
          v[j][1] = sums[4 * h + j][half * 2 + 1];
        }
        StorePiece(out, h, v, aligned.out, valid[half]);
      }
    }
  }
  CopyAsyncCommit();
  CopyAsyncWait<0>();
#endif
}

// ---- pages -------------------------------------------------------------------------------------

inline constexpr int kPagesThreads = 128;  // a warpgroup, so that none waits for another
inline constexpr int kPagesBlocks = 4;     // of a multiprocessor
inline constexpr int kTileQueryBytes = kTileRows * kRowBytes;
inline constexpr int kRowSlots = 4;
inline constexpr int64_t kPagesSharedBytes =
    2 * (kPageBytes + kTileQueryBytes) + kRowSlots * kTileRows * (4 + 4 + 4);

// This block's tiles of a slice: 64 rows (of the pairs of an item, heads rows each) and a page.
struct TileCursor {
  const PageItem* items;
  int count, at, heads;
  int row = 0;          // first of the tile among the item's
  int item_number = 0;  // of this block
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
    ++item_number;
    at += static_cast<int>(gridDim.x);
    item = next;
    next = Load(at + static_cast<int>(gridDim.x));
  }
};

// Results of the pairs of a slice, from its items. Grid: kPagesBlocks a multiprocessor; block:
// kPagesThreads; shared: kPagesSharedBytes: two pages in swapped rows; q of two tiles, [64 rows][8
// pieces], pieces of odd rows with halves exchanged; of the rows of kRowSlots tiles, where q is,
// where the result goes (-1: no such row), the weight. While a tile is computed, what the next one
// needs is copied, and the pairs of the one behind it come.
__global__ void __launch_bounds__(kPagesThreads, kPagesBlocks)
    HsaPagesKernel(const HsaAttendParams p, const PrefillArgs args, const int64_t first_row) {
#ifdef MNEME_HAS_WGMMA
  unsigned char* pages = DynamicShared();
  unsigned char* queries = pages + 2 * kPageBytes;
  int* sources = reinterpret_cast<int*>(queries + 2 * kTileQueryBytes);
  int* places = sources + kRowSlots * kTileRows;
  float* weights = reinterpret_cast<float*>(places + kRowSlots * kTileRows);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes, t = lane % 4;
  const int heads = static_cast<int>(p.heads), pages_max = static_cast<int>(p.pages_max);
  const float* pair_weights = p.weights + first_row * p.pages_max;
  const unsigned char* query_chunk = args.queries + thread % 8 * 16;
  unsigned char* copy_to =
      queries + thread / 8 * kRowBytes + (thread % 8 ^ (thread / 8 % 2) << 2) * 16;

  TileCursor cursor(args.items + first_row * p.pages_max,
                    *args.items_of(first_row / args.slice_rows), heads);
  if (!cursor.valid()) return;

  // Of the threads that have one: their row of the tile at the cursor, and the weight of their row
  // of the tile before.
  int pair = -1, head = 0;
  float weight = 0;
  const auto load_pair = [&] {
    pair = -1;
    if (thread >= kTileRows || !cursor.valid() || thread >= cursor.rows_left()) return;
    const int row = cursor.row + thread, of_item = DivideByHeads(args, row);
    head = row - of_item * heads;
    pair = args.pairs[cursor.item.first + of_item];
  };
  // A barrier afterwards.
  const auto publish_row = [&](int tile) {
    if (thread >= kTileRows) return;
    const int slot = tile % kRowSlots * kTileRows + thread;
    const int row = pair / kPagesMax, entry = row * pages_max + pair % kPagesMax;
    sources[slot] = pair < 0 ? -1 : row * heads + head;
    places[slot] = pair < 0 ? -1 : entry * heads + head;
    weight = pair < 0 ? 0.0f : pair_weights[entry];
  };
  const auto copy_tile = [&](int tile) {
    if (cursor.row == 0) {
      CopyPage<kPagesThreads>(pages + cursor.item_number % 2 * kPageBytes,
                              reinterpret_cast<const void*>(cursor.item.page));
    }
#pragma unroll
    for (int k = 0; k < kTileRows; k += kPagesThreads / 8) {
      const int source = sources[tile % kRowSlots * kTileRows + thread / 8 + k];
      if (source >= 0) {
        CopyAsync16(copy_to + tile % 2 * kTileQueryBytes + k * kRowBytes,
                    query_chunk + int64_t{source} * kRowBytes);
      }
    }
    CopyAsyncCommit();
    cursor.Advance();
    load_pair();
  };
  load_pair();
  publish_row(0);
  __syncthreads();
  int page_slot = 0;
  copy_tile(0);

  for (int tile = 0;; ++tile) {
    if (thread < kTileRows) weights[tile % kRowSlots * kTileRows + thread] = weight;
    publish_row(tile + 1);
    CopyAsyncWait<0>();
    FenceAsyncProxy();
    __syncthreads();
    const bool more = cursor.valid();
    const int next_page_slot = cursor.item_number % 2;
    if (more) copy_tile(tile + 1);

    int place[2];
    float row_weights[2];
    uint32_t q[kWidth / 16][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = thread / kLanes * 16 + half * 8 + lane / 4;
      place[half] = places[tile % kRowSlots * kTileRows + r];
      row_weights[half] = weights[tile % kRowSlots * kTileRows + r];
      const uint4* row =
          reinterpret_cast<const uint4*>(queries + tile % 2 * kTileQueryBytes + r * kRowBytes);
      const uint4 pieces[2] = {row[t ^ (r & 1) << 2], row[4 + t ^ (r & 1) << 2]};
      PlacePieces(pieces, half, q);
    }
    const uint64_t keys = WgmmaSwappedDescriptor(pages + page_slot * kPageBytes);
    uint32_t words[kWidth / 8][2];
    AttendTile(q, keys, WgmmaAdvance(keys, kPageBytes / 2), row_weights, words);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (place[half] < 0) continue;
      uint4* to = reinterpret_cast<uint4*>(args.partials + int64_t{place[half]} * kRowBytes);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        to[4 * h + t] = make_uint4(words[4 * h][half], words[4 * h + 1][half],
                                   words[4 * h + 2][half], words[4 * h + 3][half]);
      }
    }
    if (!more) break;
    page_slot = next_page_slot;
  }
#endif
}

// Adds the results of each row's pages. Grid: any; block: kPointwiseThreads; eight threads a row of
// out.
template <typename Out>
__global__ void __launch_bounds__(kPointwiseThreads)
    HsaReduceKernel(const HsaAttendParams p, const PrefillArgs args, const int64_t first_row,
                    const bool vectors) {
  const int64_t rows = min(args.slice_rows, p.rows - first_row);
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kPointwiseThreads;
  const int64_t pieces = rows * p.heads * 8;
  const int64_t rounds = (pieces + threads - 1) / threads;  // whole warps take part
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t at =
        round * threads + static_cast<int64_t>(blockIdx.x) * kPointwiseThreads + threadIdx.x;
    const int64_t row = at / 8 / p.heads, head = at / 8 % p.heads;
    const bool valid = at < pieces && args.in_run[first_row + row] == 0;
    const int entries = valid ? p.page_counts[first_row + row] : 0;
    const uint4* from = reinterpret_cast<const uint4*>(args.partials) +
                        (row * p.pages_max * p.heads + head) * 8 + at % 8;
    float sums[4][2] = {};
    constexpr int kAtOnce = 8;
    for (int first = 0; first < entries; first += kAtOnce) {
      uint4 words[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i < entries) words[i] = from[(first + i) * p.heads * 8];
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
    StorePiece(valid ? out : static_cast<Out*>(p.out), static_cast<int>(at % 8 / 4), sums, vectors,
               valid);
  }
}

// ---- on the host -------------------------------------------------------------------------------

inline constexpr int64_t kSliceRows = 16384;

// Cuts a call of `p.rows` rows; workspace pointers are set when `workspace` is not null. Returns
// the bytes of the workspace, which is aligned to 256 bytes.
inline int64_t PlanPrefill(const HsaAttendParams& p, int64_t slice_rows, void* workspace,
                           PrefillArgs* args) {
  const int heads = static_cast<int>(p.heads);
  args->group_rows = kInvertThreads;
  while (args->group_rows * p.pages_max > kGroupPairs) args->group_rows /= 2;
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
  place(args->partials, rows_at_once * p.pages_max * heads * kRowBytes);
  return bytes;
}

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
  error = Launch(HsaRunKernel<Out>, blocks(multiprocessors), dim3(kPrefillThreads), kRunSharedBytes,
                 stream, p, args, aligned);
  for (int64_t slice = 0; slice < slices && error == cudaSuccess; ++slice) {
    const int64_t first_row = slice * args.slice_rows;
    const int64_t rows = std::min(args.slice_rows, p.rows - first_row);
    const int64_t most = int64_t{multiprocessors} * 8;
    const auto pointwise = [&](int64_t threads) {
      return blocks(std::min(most, (threads + kPointwiseThreads - 1) / kPointwiseThreads));
    };
    error = Launch(HsaQueryKernel, pointwise(rows * p.heads * 4), dim3(kPointwiseThreads), 0,
                   stream, p, args, first_row, aligned.q);
    if (error != cudaSuccess) break;
    error = Launch(HsaPagesKernel, blocks(kPagesBlocks * multiprocessors), dim3(kPagesThreads),
                   kPagesSharedBytes, stream, p, args, first_row);
    if (error != cudaSuccess) break;
    error = Launch(HsaReduceKernel<Out>, pointwise(rows * p.heads * 8), dim3(kPointwiseThreads), 0,
                   stream, p, args, first_row, aligned.out);
  }
  return error;
}

}  // namespace mneme::hsa

#endif  // MNEME_KERNELS_CUDA_HSA_PREFILL_KERNELS_CUH_
