// Hierarchical sparse attention of many tokens (arXiv 2504.16795) on Hopper's matrix units.
//
// A page (64 K rows, 64 V rows) is read from memory once for many tokens, and its products have
// 64 rows of (token, head), any heads of any tokens. Two ways to get there:
//
// Runs. Neighbours that read the same pages in the same order (a model that retrieves once a chunk)
// stay together: a block takes up to 256 rows of such a run through its pages, sums in registers;
// one warp does nothing but copy pages.
//
// Pages. All other (token, entry) pairs of some hundred tokens are sorted by page with a hash table
// in shared memory (HsaInvertKernel), which lists for each page who reads it. A block takes a page
// through its list, 64 rows at a time, which one warp looks up and copies for the four that
// compute; a pair's result goes to memory as bf16, at the pair's own place, and HsaReduceKernel
// adds a token's results. For that rows go in slices, and q is made ready once (HsaQueryKernel):
// scaled, bf16, in the order in which the lanes of a matrix fragment read it.
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

inline constexpr int kGroups = 4;     // warpgroups that compute, of a block of runs
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
// value(j): columns 8 j + 2 t and the next, a float2.
template <typename Value>
__device__ __forceinline__ void MakePieces(const Value& value, uint4 (&pieces)[2]) {
  const float scale = kLog2E / sqrtf(static_cast<float>(kWidth));
  uint32_t words[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float2 v = value(j);
    words[j] = PackBf16(v.x * scale, v.y * scale);
  }
  pieces[0] = make_uint4(words[0], words[1], words[2], words[3]);
  pieces[1] = make_uint4(words[4], words[5], words[6], words[7]);
}
__device__ __forceinline__ void LoadPieces(const float* row, int t, bool vectors,
                                           uint4 (&pieces)[2]) {
  MakePieces(
      [&](int j) {
        const float* from = row + j * 8 + t * 2;
        return vectors ? *reinterpret_cast<const float2*>(from) : make_float2(from[0], from[1]);
      },
      pieces);
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

// Writes args.queries for the rows of a slice that are in no run, with halves exchanged in the rows
// of odd heads: then two neighbours in shared memory are read at once. Grid: any; block:
// kPointwiseThreads; four threads a row of q.
__global__ void __launch_bounds__(kPointwiseThreads)
    HsaQueryKernel(const HsaAttendParams p, const PrefillArgs args, const int64_t first_row,
                   const bool vectors) {
  WaitForKernelsBefore();
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

// ---- products ----------------------------------------------------------------------------------

// softmax(q K^T) V of 64 rows and one page, 16 rows a warp, as RoundResult takes it: a row's
// product, still to be scaled. A warpgroup.
__device__ __forceinline__ void AttendTile(const uint32_t (&q)[kWidth / 16][4], uint64_t keys,
                                           uint64_t values, const float (&weights)[2],
                                           float (&product)[kWidth / 8][4], float (&scales)[2]) {
#ifdef MNEME_HAS_WGMMA
  uint32_t a[kPageTokens / 16][4];
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
#pragma unroll
    for (int step = 0; step < kWidth / 16; ++step) KeepRegisters(q[step]);
    Softmax(scores, a, scales);
  }
  WgmmaFence();
  WgmmaRows<true>(product, a[0], values);
#pragma unroll
  for (int step = 1; step < kPageTokens / 16; ++step) {
    WgmmaRows<false>(product, a[step], WgmmaAdvance(values, step * 16 * kRowBytes));
  }
  WgmmaCommit();
  FinishSoftmax(weights, scales);
  WgmmaWait<0>();
#pragma unroll
  for (int step = 0; step < kPageTokens / 16; ++step) KeepRegisters(a[step]);
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

// ---- a ring in shared memory -------------------------------------------------------------------

// Slots that one warp fills and kReaders warps use, in the same order. Step u lies in slot u %
// kSlots. Every lane says for itself that it has loaded or consumed: one that speaks for its warp
// is no slower to wait for, but racecheck does not follow it.
template <int kSlots, int kReaders>
struct Ring {
  static_assert((kSlots & (kSlots - 1)) == 0, "steps are counted modulo 2^32");
  uint64_t* loaded;    // [kSlots]
  uint64_t* consumed;  // [kSlots]

  static constexpr int kBytes = 2 * kSlots * 8;
  __device__ __forceinline__ explicit Ring(unsigned char* barriers)
      : loaded(reinterpret_cast<uint64_t*>(barriers)), consumed(loaded + kSlots) {}
  // The block; a barrier afterwards.
  __device__ __forceinline__ void Init() const {
#ifdef MNEME_HAS_WGMMA
    if (threadIdx.x < kSlots) {
      PhaseInit(loaded + threadIdx.x, kLanes);
      PhaseInit(consumed + threadIdx.x, kReaders * kLanes);
    }
#endif
  }
  __device__ __forceinline__ uint64_t* LoadedOf(unsigned u) const { return loaded + u % kSlots; }
  // Waits until the slot of step `u` may be written.
  __device__ __forceinline__ void WaitFree(unsigned u) const {
#ifdef MNEME_HAS_WGMMA
    PhaseWait(consumed + u % kSlots, (u / kSlots & 1) ^ 1);
#endif
  }
  // What this lane has copied for step `u`, and waited for, may be used, by the matrix units too.
  __device__ __forceinline__ void Loaded(unsigned u) const {
#ifdef MNEME_HAS_WGMMA
    FenceAsyncProxy();
    PhaseArrive(LoadedOf(u));
#endif
  }
  __device__ __forceinline__ void WaitLoaded(unsigned u) const {
#ifdef MNEME_HAS_WGMMA
    PhaseWait(LoadedOf(u), u / kSlots & 1);
#endif
  }
  // This lane needs step `u` no more.
  __device__ __forceinline__ void Release(unsigned u) const {
#ifdef MNEME_HAS_WGMMA
    PhaseArrive(consumed + u % kSlots);
#endif
  }
};

// ---- runs --------------------------------------------------------------------------------------

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
  WaitForKernelsBefore();
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

// ---- pages -------------------------------------------------------------------------------------

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
  WaitForKernelsBefore();
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

// Adds the results of each row's pages, those first that were written last: some are still in the
// L2 cache. Grid: any; block: kPointwiseThreads; eight threads a row of out.
template <typename Out>
__global__ void __launch_bounds__(kPointwiseThreads)
    HsaReduceKernel(const HsaAttendParams p, const PrefillArgs args, const int64_t first_row,
                    const bool vectors) {
  WaitForKernelsBefore();
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

// ---- on the host -------------------------------------------------------------------------------

// Of a slice: larger ones are faster (fewer launches), and their results are the workspace.
inline constexpr int64_t kSliceRows = 32768;
inline constexpr int64_t kPartialsBytesMax = int64_t{512} << 20;

// Cuts a call of `p.rows` rows into slices of at most `slice_rows`, a multiple of kInvertThreads;
// workspace pointers are set when `workspace` is not null. Returns
// the bytes of the workspace, which is aligned to 256 bytes.
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
  error = LaunchEarly(HsaRunKernel<Out>, blocks(multiprocessors), dim3(kRunThreads),
                      kRunSharedBytes, stream, p, args, aligned);
  for (int64_t slice = 0; slice < slices && error == cudaSuccess; ++slice) {
    const int64_t first_row = slice * args.slice_rows;
    const int64_t rows = std::min(args.slice_rows, p.rows - first_row);
    const int64_t most = int64_t{multiprocessors} * 8;
    const auto pointwise = [&](int64_t threads) {
      return blocks(std::min(most, (threads + kPointwiseThreads - 1) / kPointwiseThreads));
    };
    error = LaunchEarly(HsaQueryKernel, pointwise(rows * p.heads * 4), dim3(kPointwiseThreads), 0,
                        stream, p, args, first_row, aligned.q);
    if (error != cudaSuccess) break;
    error = LaunchEarly(HsaPagesKernel, blocks(kPagesBlocks * multiprocessors), dim3(kPagesThreads),
                        kPagesSharedBytes, stream, p, args, first_row);
    if (error != cudaSuccess) break;
    error = LaunchEarly(HsaReduceKernel<Out>, pointwise(rows * p.heads * 8),
                        dim3(kPointwiseThreads), 0, stream, p, args, first_row, aligned.out);
  }
  return error;
}

}  // namespace mneme::hsa

#endif  // MNEME_KERNELS_CUDA_HSA_PREFILL_KERNELS_CUH_
