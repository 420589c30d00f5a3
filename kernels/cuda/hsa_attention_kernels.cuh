// Hierarchical sparse attention on a GPU (arXiv 2504.16795): kernels on plain pointers
// (hsa_attention.cu puts them behind the launcher, bench/gpu/hsa_topk_bench.cu times them).
//
// All heads of a token read the same pages, so one token is one tile of 16 heads for the tensor
// cores, and a page is read whole: scores of 64 keys fit in registers, softmax needs one step.
//
// Prefill. The bytes of the pages are the cost: 8 pages of 16 KiB a token, out of the L2 cache. A
// block takes 30 neighbouring tokens, sorts their (page, token) pairs by page, and a copying warp
// brings each page into a ring in shared memory once; fifteen warps of two tokens each, whose sums
// stay in registers, take from the ring what their tokens read. With 256 pages chosen at random
// that moves 1.5 times fewer bytes, and where neighbours read the same pages up to 30 times fewer.
//
// Decode. One block a token (and 16 heads), one warp a page, sums joined at the end in the order of
// the warps.
//
// The order in which a token adds its pages is that of their addresses (prefill) or of the table
// (decode): it does not depend on the other tokens of a call.

#ifndef MNEME_KERNELS_CUDA_HSA_ATTENTION_KERNELS_CUH_
#define MNEME_KERNELS_CUDA_HSA_ATTENTION_KERNELS_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "kernels/cuda/tensor_core.cuh"
#include "kernels/ops.h"

namespace mneme::hsa {

inline constexpr int kLanes = 32;
inline constexpr int kHeads = 16;       // rows of a tile
inline constexpr int kWidth = 64;       // D of the fast kernels
inline constexpr int kPageTokens = 64;  // S of the fast kernels
inline constexpr int kRowBytes = kWidth * 2;
inline constexpr int kTileBytes = kHeads * kRowBytes;           // q of one token
inline constexpr int kPageBytes = 2 * kPageTokens * kRowBytes;  // K, then V
inline constexpr float kLog2E = 1.44269504088896340736f;

// Where the 16-byte chunk `chunk` of row `row` lies in a matrix of 128-byte rows in shared memory:
// swapped so that eight rows at one chunk use all banks.
__device__ __forceinline__ int Swapped(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ (row & 7)) << 4);
}

// sums += weight * softmax(q K^T) V for 16 heads and one page. q: 16 swapped rows, scaled so that
// the exponential is one of base two; page: 128 swapped rows. Fragments as in tensor_core.cuh.
__device__ __forceinline__ void AttendPage(const unsigned char* q, const unsigned char* page,
                                           float weight, float (&sums)[kWidth / 8][4]) {
  const int lane = threadIdx.x % kLanes;
  const int low_row = lane % 8, matrix = lane / 8;
  float scores[kPageTokens / 8][4] = {};
#pragma unroll
  for (int step = 0; step < kWidth / 16; ++step) {
    uint32_t a[4];
    LoadMatrix4(a, q + Swapped(lane % 16, step * 2 + lane / 16));
#pragma unroll
    for (int pair = 0; pair < kPageTokens / 16; ++pair) {
      uint32_t b[4];
      LoadMatrix4(b, page + Swapped(pair * 16 + matrix / 2 * 8 + low_row, step * 2 + matrix % 2));
      MmaBf16(scores[pair * 2], a, b[0], b[1]);
      MmaBf16(scores[pair * 2 + 1], a, b[2], b[3]);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {  // rows lane / 4 and lane / 4 + 8
    float top = scores[0][half * 2];
#pragma unroll
    for (int j = 0; j < kPageTokens / 8; ++j) {
      top = fmaxf(top, fmaxf(scores[j][half * 2], scores[j][half * 2 + 1]));
    }
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kPageTokens / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        scores[j][half * 2 + c] = Exp2(scores[j][half * 2 + c] - top);
        sum += scores[j][half * 2 + c];
      }
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const float scale = weight / sum;
#pragma unroll
    for (int j = 0; j < kPageTokens / 8; ++j) {
      scores[j][half * 2] *= scale;
      scores[j][half * 2 + 1] *= scale;
    }
  }
  const unsigned char* values = page + kPageTokens * kRowBytes;
#pragma unroll
  for (int step = 0; step < kPageTokens / 16; ++step) {
    const uint32_t a[4] = {PackBf16(scores[step * 2][0], scores[step * 2][1]),
                           PackBf16(scores[step * 2][2], scores[step * 2][3]),
                           PackBf16(scores[step * 2 + 1][0], scores[step * 2 + 1][1]),
                           PackBf16(scores[step * 2 + 1][2], scores[step * 2 + 1][3])};
#pragma unroll
    for (int pair = 0; pair < kWidth / 16; ++pair) {
      uint32_t b[4];
      LoadMatrix4Transposed(
          b, values + Swapped(step * 16 + matrix % 2 * 8 + low_row, pair * 2 + matrix / 2));
      MmaBf16(sums[pair * 2], a, b[0], b[1]);
      MmaBf16(sums[pair * 2 + 1], a, b[2], b[3]);
    }
  }
}

// Starts copying a page into swapped rows; a whole warp. A page that is not aligned to 16 bytes is
// copied at once, through registers.
__device__ __forceinline__ void CopyPage(unsigned char* to, const void* page) {
  const int lane = threadIdx.x % kLanes;
  const unsigned char* from = static_cast<const unsigned char*>(page) + lane * 16;
  if (reinterpret_cast<uintptr_t>(page) % 16 == 0) {
    const int row = lane / 8, chunk = lane % 8;  // rows row + 4 i
    unsigned char* even = to + Swapped(row, chunk);
    unsigned char* odd = to + Swapped(row + 4, chunk);
#pragma unroll
    for (int i = 0; i < kPageBytes / 512; i += 2) {
      CopyAsync16(even + i * 512, from + i * 512);
      CopyAsync16(odd + i * 512, from + (i + 1) * 512);
    }
  } else {
    const uint16_t* elements = static_cast<const uint16_t*>(page);
    for (int i = lane; i < kPageBytes / 2; i += kLanes) {
      const int row = i / kWidth, column = i % kWidth;
      *reinterpret_cast<uint16_t*>(to + Swapped(row, column / 8) + column % 8 * 2) = elements[i];
    }
  }
}

// Four floats of a row of q, zero outside.
__device__ __forceinline__ float4 LoadQ(const HsaAttendParams& p, int64_t row, int64_t column,
                                        bool inside, bool vectors) {
  if (!inside) return make_float4(0, 0, 0, 0);
  const float* from = p.q + row * p.q_stride + column;
  if (vectors) return *reinterpret_cast<const float4*>(from);
  return make_float4(from[0], from[1], from[2], from[3]);
}

__device__ __forceinline__ void StoreQ(unsigned char* tile, int head, int column, float4 v,
                                       float scale) {
  *reinterpret_cast<uint2*>(tile + Swapped(head, column / 8) + column % 8 * 2) =
      make_uint2(PackBf16(v.x * scale, v.y * scale), PackBf16(v.z * scale, v.w * scale));
}

// Whether rows may be read and written 16 bytes at a time.
struct Alignment {
  bool q;
  bool out;
};
inline Alignment AlignmentOf(const HsaAttendParams& p) {
  const auto aligned = [](const void* data, int64_t row_bytes) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && row_bytes % 16 == 0;
  };
  return {aligned(p.q, p.q_stride * 4), aligned(p.out, p.out_stride * DTypeBytes(p.out_dtype))};
}

// ---- prefill -----------------------------------------------------------------------------------

// With the copying warp 16 warps, which may then use 128 registers each.
inline constexpr int kBlockTokens = 30;
inline constexpr int kTokenWarps = kBlockTokens / 2;
inline constexpr int kPrefillThreads = (kTokenWarps + 1) * kLanes;
inline constexpr int kPagesMax = 16;   // of one token
inline constexpr int kPairsMax = 512;  // a power of two
static_assert(kBlockTokens * kPagesMax <= kPairsMax && kPairsMax <= kPrefillThreads);
inline constexpr int kSlots = 9;     // pages in the ring
inline constexpr int kUnderWay = 5;  // copies that may be under way while one more starts
inline constexpr int64_t kPrefillSharedBytes = kBlockTokens * kTileBytes + kSlots * kPageBytes +
                                               kPairsMax * (8 + 8 + 2) + (kTokenWarps + 2) * 4 +
                                               (kPairsMax / kLanes) * 4;

// Sorts keys[0 .. size), a power of two; the first kPairsMax threads of the block help.
__device__ __forceinline__ void SortKeys(uint64_t* keys, int size) {
  const int i = threadIdx.x;
  for (int width = 2; width <= size; width *= 2) {
    for (int step = width / 2; step > 0; step /= 2) {
      const int other = i ^ step;
      if (i < size && other > i) {
        const uint64_t a = keys[i], b = keys[other];
        if ((a > b) == ((i & width) == 0)) {
          keys[i] = b;
          keys[other] = a;
        }
      }
      __syncthreads();
    }
  }
}

// The pages' copying warp. Page u lies in slot u % kSlots from the time `loaded` exceeds u until
// every warp's entry of `needed` exceeds u.
__device__ __forceinline__ void CopyPages(unsigned char* ring, const uint64_t* pages, int count,
                                          const int* needed, int* loaded) {
  const int lane = threadIdx.x % kLanes;
  const auto publish = [&](int value) {
    __syncwarp();
    if (lane == 0) StoreRelease(loaded, value);
  };
  const auto free_until = [&] {
    const int mine = LoadAcquire(needed + lane % kTokenWarps);
    return static_cast<int>(__reduce_min_sync(0xffffffffu, static_cast<unsigned>(mine))) + kSlots;
  };
  int until = kSlots;  // pages below may be written
  for (int u = 0; u < count; ++u) {
    if (u >= until) until = free_until();
    if (u >= until) {  // the token warps need what is under way
      CopyAsyncWait<0>();
      publish(u);
      while (u >= until) {
        __nanosleep(40);
        until = free_until();
      }
    }
    CopyPage(ring + u % kSlots * kPageBytes, reinterpret_cast<const void*>(pages[u]));
    CopyAsyncCommit();
    CopyAsyncWait<kUnderWay>();
    if (u >= kUnderWay) publish(u - kUnderWay + 1);
  }
  CopyAsyncWait<0>();
  publish(count);
}

// Writes 16 heads of one token. `tile` [16 swapped rows] is this warp's to use.
template <typename Out>
__device__ __forceinline__ void WriteToken(const HsaAttendParams& p, int64_t row, int first_head,
                                           unsigned char* tile, bool vectors,
                                           const float (&sums)[kWidth / 8][4]) {
  const int lane = threadIdx.x % kLanes;
  Out* out =
      static_cast<Out*>(p.out) + row * p.out_stride + static_cast<int64_t>(first_head) * kWidth;
  const int heads = static_cast<int>(p.heads) - first_head;
  if constexpr (sizeof(Out) == 2) {
    if (vectors) {  // through shared memory, as a lane's own pieces are 4 bytes
      __syncwarp();
#pragma unroll
      for (int j = 0; j < kWidth / 8; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          *reinterpret_cast<uint32_t*>(tile + Swapped(lane / 4 + half * 8, j) + lane % 4 * 4) =
              PackBf16(sums[j][half * 2], sums[j][half * 2 + 1]);
        }
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kHeads / 4; ++i) {
        const int head = i * 4 + lane / 8;
        if (head < heads) {
          *reinterpret_cast<uint4*>(out + head * kWidth + lane % 8 * 8) =
              *reinterpret_cast<const uint4*>(tile + Swapped(head, lane % 8));
        }
      }
      return;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int head = lane / 4 + half * 8;
    if (head < heads) {
#pragma unroll
      for (int j = 0; j < kWidth / 8; ++j) {
        Out* to = out + head * kWidth + j * 8 + lane % 4 * 2;
        if constexpr (sizeof(Out) == 4) {
          if (vectors) {
            *reinterpret_cast<float2*>(to) = make_float2(sums[j][half * 2], sums[j][half * 2 + 1]);
            continue;
          }
        }
        to[0] = static_cast<Out>(sums[j][half * 2]);
        to[1] = static_cast<Out>(sums[j][half * 2 + 1]);
      }
    }
  }
}

// Grid: (blocks of kBlockTokens rows, groups of 16 heads); block: kPrefillThreads; shared:
// kPrefillSharedBytes: q [tokens][16 heads][64], ring [kSlots][2 * 64][64], keys, pages.
// bf16 pages, D = S = 64, pages_max <= kPagesMax.
template <typename Out>
__global__ void __launch_bounds__(kPrefillThreads, 1)
    HsaPrefillKernel(const HsaAttendParams p, const Alignment aligned, const int sort_size) {
  unsigned char* tiles = DynamicShared();
  unsigned char* ring = tiles + kBlockTokens * kTileBytes;
  uint64_t* keys = reinterpret_cast<uint64_t*>(ring + kSlots * kPageBytes);
  uint64_t* pages = keys + kPairsMax;
  uint16_t* page_of_pair = reinterpret_cast<uint16_t*>(pages + kPairsMax);
  int* needed = reinterpret_cast<int*>(page_of_pair + kPairsMax);
  int* loaded = needed + kTokenWarps;
  int* page_count = loaded + 1;
  int* warp_pages = page_count + 1;

  const int thread = threadIdx.x, warp = thread / kLanes, lane = thread % kLanes;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kBlockTokens;
  const int first_head = static_cast<int>(blockIdx.y) * kHeads;
  const int pages_max = static_cast<int>(p.pages_max);

  // Reads of q go out first and are used after the sort.
  constexpr int kVectors = kBlockTokens * kHeads * kWidth / 4 / (kTokenWarps * kLanes);
  float4 q[kVectors];
  if (warp < kTokenWarps) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int at = i * kTokenWarps * kLanes + thread;  // token, head, four columns
      const int64_t row = first_row + at / (kHeads * kWidth / 4);
      const int head = first_head + at / (kWidth / 4) % kHeads;
      q[i] = LoadQ(p, row, static_cast<int64_t>(head) * kWidth + at % (kWidth / 4) * 4,
                   row < p.rows && head < p.heads, aligned.q);
    }
  }

  // Key: half the page's address (pages hold 2-byte elements), then the pair token * pages_max + i.
  if (thread < sort_size) {
    uint64_t key = ~uint64_t{0};
    const int64_t row = first_row + thread / pages_max;
    const int i = thread % pages_max;
    if (thread < kBlockTokens * pages_max && row < p.rows && i < p.page_counts[row]) {
      key = reinterpret_cast<uint64_t>(p.pages[row * pages_max + i]) >> 1 << 9 |
            static_cast<uint64_t>(thread);
    }
    keys[thread] = key;
  }
  __syncthreads();
  SortKeys(keys, sort_size);

  // Numbers the different pages in the order of the sort.
  uint64_t key = ~uint64_t{0};
  bool first = false;
  if (thread < sort_size) {
    key = keys[thread];
    first = key != ~uint64_t{0} && (thread == 0 || keys[thread - 1] >> 9 != key >> 9);
  }
  const unsigned firsts = __ballot_sync(0xffffffffu, first);
  if (lane == 0 && warp < kPairsMax / kLanes) warp_pages[warp] = __popc(firsts);
  if (thread < kTokenWarps) needed[thread] = 0;
  if (thread == 0) *loaded = 0;
  if (warp < kTokenWarps) {
    const float scale = kLog2E / sqrtf(static_cast<float>(kWidth));
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int at = i * kTokenWarps * kLanes + thread;
      StoreQ(tiles + at / (kHeads * kWidth / 4) * kTileBytes, at / (kWidth / 4) % kHeads,
             at % (kWidth / 4) * 4, q[i], scale);
    }
  }
  __syncthreads();
  if (thread < sort_size) {
    int before = 0;
    for (int w = 0; w < warp; ++w) before += warp_pages[w];
    const int number = before + __popc(firsts & (0xffffffffu >> (31 - lane))) - 1;
    if (key != ~uint64_t{0}) page_of_pair[key & (kPairsMax - 1)] = static_cast<uint16_t>(number);
    if (first) pages[number] = key >> 9 << 1;
    if (thread == sort_size - 1) *page_count = number + 1;
  }
  __syncthreads();

  if (warp == kTokenWarps) {
    CopyPages(ring, pages, *page_count, needed, loaded);
    return;
  }

  // Lane l holds pair l of the warp's two tokens: token l / pages_max, entry l % pages_max.
  const int64_t row = first_row + warp * 2;
  unsigned mine = ~0u;  // page, then lane
  float weight = 0;
  if (lane < 2 * pages_max) {
    const int64_t pair_row = row + lane / pages_max;
    const int i = lane % pages_max;
    if (pair_row < p.rows && i < p.page_counts[pair_row]) {
      mine = static_cast<unsigned>(page_of_pair[warp * 2 * pages_max + lane]) << 8 |
             static_cast<unsigned>(lane);
      weight = p.weights[pair_row * pages_max + i];
    }
  }
  float sums[2][kWidth / 8][4] = {};
  const unsigned char* q_tiles = tiles + warp * 2 * kTileBytes;
  int available = 0;
  for (;;) {
    const unsigned next = __reduce_min_sync(0xffffffffu, mine);
    const int page = next == ~0u ? 0x7fffffff - kSlots : static_cast<int>(next >> 8);
    __syncwarp();  // all lanes have read the page before
    if (lane == 0) StoreRelease(needed + warp, page);
    if (next == ~0u) break;
    const int from_lane = static_cast<int>(next & 255u);
    if (lane == from_lane) mine = ~0u;
    const float page_weight = __shfl_sync(0xffffffffu, weight, from_lane);
    while (available <= page) {
      available = LoadAcquire(loaded);
      if (available <= page) __nanosleep(20);
    }
    __syncwarp();
    const unsigned char* at = ring + page % kSlots * kPageBytes;
    if (from_lane < pages_max) {
      AttendPage(q_tiles, at, page_weight, sums[0]);
    } else {
      AttendPage(q_tiles + kTileBytes, at, page_weight, sums[1]);
    }
  }
  unsigned char* own = tiles + warp * 2 * kTileBytes;
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    if (row + t < p.rows)
      WriteToken<Out>(p, row + t, first_head, own + t * kTileBytes, aligned.out, sums[t]);
  }
}

// ---- decode ------------------------------------------------------------------------------------

inline constexpr int kDecodeWarps = 8;
inline constexpr int64_t kDecodeSharedBytes = kTileBytes + kDecodeWarps * kPageBytes;

// Grid: (rows, groups of 16 heads); block: kDecodeWarps warps; shared: kDecodeSharedBytes: q
// [16 heads][64], a page a warp, which afterwards holds its sums [16][64] in f32. bf16 pages,
// D = S = 64.
template <typename Out>
__global__ void __launch_bounds__(kDecodeWarps* kLanes)
    HsaDecodeKernel(const HsaAttendParams p, const Alignment aligned) {
  LetNextKernelStart();
  const int thread = threadIdx.x, warp = thread / kLanes, lane = thread % kLanes;
  const int64_t row = blockIdx.x;
  const int first_head = static_cast<int>(blockIdx.y) * kHeads;
  unsigned char* tile = DynamicShared();
  unsigned char* page = tile + kTileBytes + warp * kPageBytes;
  const int count = p.page_counts[row];
  const auto copy = [&](int i) {
    if (i < count) CopyPage(page, p.pages[row * p.pages_max + i]);
    CopyAsyncCommit();
  };
  copy(warp);
  {
    const int head = thread / (kWidth / 4), column = thread % (kWidth / 4) * 4;
    StoreQ(tile, head, column,
           LoadQ(p, row, static_cast<int64_t>(first_head + head) * kWidth + column,
                 first_head + head < p.heads, aligned.q),
           kLog2E / sqrtf(static_cast<float>(kWidth)));
  }
  __syncthreads();
  float sums[kWidth / 8][4] = {};
  for (int i = warp; i < count; i += kDecodeWarps) {
    CopyAsyncWait<0>();
    __syncwarp();
    AttendPage(tile, page, p.weights[row * p.pages_max + i], sums);
    __syncwarp();
    copy(i + kDecodeWarps);
  }
  CopyAsyncWait<0>();
  __syncwarp();
  float* partial = reinterpret_cast<float*>(page);
#pragma unroll
  for (int j = 0; j < kWidth / 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      *reinterpret_cast<float2*>(partial + (lane / 4 + half * 8) * kWidth + j * 8 + lane % 4 * 2) =
          make_float2(sums[j][half * 2], sums[j][half * 2 + 1]);
    }
  }
  __syncthreads();
  const float* first = reinterpret_cast<const float*>(tile + kTileBytes);
  const int warps = min(count, kDecodeWarps);
  for (int i = thread; i < kHeads * kWidth; i += kDecodeWarps * kLanes) {
    if (first_head + i / kWidth < p.heads) {
      float sum = 0;
      for (int w = 0; w < warps; ++w) sum += first[w * (kPageBytes / 4) + i];
      static_cast<Out*>(p.out)[row * p.out_stride + static_cast<int64_t>(first_head) * kWidth + i] =
          static_cast<Out>(sum);
    }
  }
}

// ---- any shape ---------------------------------------------------------------------------------

inline constexpr int kSimpleThreads = 128;

__device__ __forceinline__ float BlockReduce(float v, bool maximum, float* partial) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, v, step);
    v = maximum ? fmaxf(v, other) : v + other;
  }
  if (threadIdx.x % kLanes == 0) partial[threadIdx.x / kLanes] = v;
  __syncthreads();
  v = partial[0];
  for (int w = 1; w < kSimpleThreads / kLanes; ++w)
    v = maximum ? fmaxf(v, partial[w]) : v + partial[w];
  __syncthreads();
  return v;
}

// Grid: (rows, heads); block: kSimpleThreads; shared, all in f32: a word a warp, q [D], sums [D],
// scores [S], and room behind them, as loops over the scores are compiled to read in pairs and ahead.
// (None of it static: behind static memory DynamicShared() skips to its alignment.)
__host__ __device__ constexpr int64_t SimpleSharedBytes(int64_t head_dim, int64_t chunk_tokens) {
  return (kSimpleThreads / kLanes + 2 * head_dim + chunk_tokens + 8) * 4;
}
template <typename T, typename Out>
__global__ void __launch_bounds__(kSimpleThreads) HsaSimpleKernel(const HsaAttendParams p) {
  float* partial = reinterpret_cast<float*>(DynamicShared());
  float* q = partial + kSimpleThreads / kLanes;
  float* sums = q + p.head_dim;
  float* scores = sums + p.head_dim;
  const int64_t row = blockIdx.x, head = blockIdx.y;
  const int width = static_cast<int>(p.head_dim), tokens = static_cast<int>(p.chunk_tokens);
  const float scale = 1.0f / sqrtf(static_cast<float>(width));
  for (int d = threadIdx.x; d < width; d += kSimpleThreads) {
    q[d] = p.q[row * p.q_stride + head * width + d] * scale;
    sums[d] = 0;
  }
  __syncthreads();
  for (int i = 0; i < p.page_counts[row]; ++i) {
    const T* keys = static_cast<const T*>(p.pages[row * p.pages_max + i]);
    const T* values = keys + static_cast<int64_t>(tokens) * width;
    float top = -HUGE_VALF;
    for (int s = threadIdx.x; s < tokens; s += kSimpleThreads) {
      float score = 0;
      for (int d = 0; d < width; ++d) {
        score += q[d] * static_cast<float>(keys[static_cast<int64_t>(s) * width + d]);
      }
      scores[s] = score;
      top = fmaxf(top, score);
    }
    top = BlockReduce(top, true, partial);
    float sum = 0;
    for (int s = threadIdx.x; s < tokens; s += kSimpleThreads) {
      scores[s] = expf(scores[s] - top);
      sum += scores[s];
    }
    sum = BlockReduce(sum, false, partial);
    const float weight = p.weights[row * p.pages_max + i] / sum;
    for (int d = threadIdx.x; d < width; d += kSimpleThreads) {
      float value = 0;
      for (int s = 0; s < tokens; ++s) {
        value += scores[s] * static_cast<float>(values[static_cast<int64_t>(s) * width + d]);
      }
      sums[d] += weight * value;
    }
    __syncthreads();
  }
  for (int d = threadIdx.x; d < width; d += kSimpleThreads) {
    static_cast<Out*>(p.out)[row * p.out_stride + head * width + d] = static_cast<Out>(sums[d]);
  }
}

// ---- on the host -------------------------------------------------------------------------------

enum class Variant { kSimple, kDecode, kPrefill };

struct Machine {
  int multiprocessors = 0;
  int64_t shared_bytes_max = 0;
};

inline bool CanCompute(Variant variant, const HsaAttendParams& p, const Machine& machine) {
  if (variant == Variant::kSimple) {
    return SimpleSharedBytes(p.head_dim, p.chunk_tokens) <= 48 * 1024;
  }
  if (p.page_dtype != DType::kBf16 || p.head_dim != kWidth || p.chunk_tokens != kPageTokens) {
    return false;
  }
  if (variant == Variant::kDecode) return kDecodeSharedBytes <= machine.shared_bytes_max;
  return p.pages_max >= 1 && p.pages_max <= kPagesMax &&
         kPrefillSharedBytes <= machine.shared_bytes_max;
}

// Prefill's blocks of rows pay when there are enough of them to occupy most of the machine.
inline Variant Choose(const HsaAttendParams& p, const Machine& machine) {
  if (p.rows >= int64_t{kBlockTokens} * machine.multiprocessors / 2 &&
      CanCompute(Variant::kPrefill, p, machine)) {
    return Variant::kPrefill;
  }
  return CanCompute(Variant::kDecode, p, machine) ? Variant::kDecode : Variant::kSimple;
}

template <typename Out>
cudaError_t LaunchAs(Variant variant, const HsaAttendParams& p, cudaStream_t stream) {
  const auto blocks = [](int64_t count) { return static_cast<unsigned>(count); };
  const unsigned head_groups = blocks((p.heads + kHeads - 1) / kHeads);
  switch (variant) {
    case Variant::kPrefill: {
      int sort_size = 2;
      while (sort_size < kBlockTokens * p.pages_max) sort_size *= 2;
      return Launch(HsaPrefillKernel<Out>,
                    dim3(blocks((p.rows + kBlockTokens - 1) / kBlockTokens), head_groups),
                    dim3(kPrefillThreads), kPrefillSharedBytes, stream, p, AlignmentOf(p),
                    sort_size);
    }
    case Variant::kDecode:
      return Launch(HsaDecodeKernel<Out>, dim3(blocks(p.rows), head_groups),
                    dim3(kDecodeWarps * kLanes), kDecodeSharedBytes, stream, p, AlignmentOf(p));
    case Variant::kSimple:
      break;
  }
  return Launch(p.page_dtype == DType::kBf16 ? HsaSimpleKernel<__nv_bfloat16, Out>
                                             : HsaSimpleKernel<float, Out>,
                dim3(blocks(p.rows), blocks(p.heads)), dim3(kSimpleThreads),
                SimpleSharedBytes(p.head_dim, p.chunk_tokens), stream, p);
}

inline cudaError_t LaunchHsa(Variant variant, const HsaAttendParams& p, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  return p.out_dtype == DType::kBf16 ? LaunchAs<__nv_bfloat16>(variant, p, stream)
                                     : LaunchAs<float>(variant, p, stream);
}

}  // namespace mneme::hsa

#endif  // MNEME_KERNELS_CUDA_HSA_ATTENTION_KERNELS_CUH_
