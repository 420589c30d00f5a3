// The state space recurrence over many tokens, in blocks (arXiv 2405.21060, section 6), by tensor
// cores. Within a block, with d_i the decay from the block's beginning up to and with token i, and
// S the state before it:
//   y_i = d_i C_i S + sum_{j <= i} (d_i / d_j) (C_i B_j) dt_j x_j + D x_i
//   S'  = d_last S + sum_j (d_last / d_j) dt_j B_j (outer) x_j
//
// A thread block does 128 tokens of a sequence for a few units (64 columns of a head's width). B
// and C lie in shared memory as bf16 for all of them. All blocks of tokens run side by side; what
// one after the other do is only the last step of S': a warp that has its part of the sum waits for
// the state before its tokens, adds, and hands the state after them to the same warp of the next
// block of tokens, in the sequence's state memory itself. Who must be waited for has begun before:
// thread blocks take their work in the order in which they start. The sum over j <= i is two
// products with the 128 x 128 matrix between them in registers.
//
// Blocks begin at whole multiples from the sequence's first row, and nothing depends on other
// sequences, so a sequence cut at a multiple of kTokens rows gives the same bits.

#ifndef MNEME_KERNELS_CUDA_SSD_KERNELS_CUH_
#define MNEME_KERNELS_CUDA_SSD_KERNELS_CUH_

#include <cstdint>

#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/ssd_decays.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/ops.h"

namespace mneme::ssd {

constexpr int kTokens = 128;
constexpr int kWidth = 64;  // columns of a unit
constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kUnitsMax = kWarps;  // of a thread block: a warp computes the decays of one

// A block of tokens of one sequence, the work of as many thread blocks as there are groups of
// units. In the list of all of them each one follows the one before in its sequence.
struct TokenBlock {
  float* state;  // of the sequence
  int64_t first_row;
  int32_t rows;      // 1 .. kTokens
  int32_t previous;  // the block before in the sequence, as a place in the list; -1: none
};

// Whole numbers that the kernel wants zeroed: the next piece of work, then for each block of
// tokens, unit and warp whether its part of the state holds the block.
constexpr int64_t CounterCount(int64_t blocks, int64_t units) {
  return 1 + blocks * units * kWarps;
}

// A matrix of bf16 in shared memory, kColumns a row in groups of eight, whose places in the row are
// exchanged such that eight rows' same group lies in eight different groups of banks. Places are
// bytes from the beginning of the block's shared memory.
template <int kColumns>
struct Tile {
  static constexpr uint32_t kRowBytes = kColumns * 2;
  static constexpr uint32_t kBytes = kTokens * kRowBytes;  // of kTokens rows
  // Bits of a place that the exchange may change.
  static constexpr uint32_t kMask = (kRowBytes < 128 ? kRowBytes : 128) - 1;

  uint32_t first;  // a multiple of 128

  // `column`: a multiple of 8.
  __device__ __forceinline__ uint32_t Place(int row, int column) const {
    const int exchange = kRowBytes < 128 ? row / 2 % (kColumns / 8) : row % 8;
    return first + static_cast<uint32_t>(row) * kRowBytes +
           (static_cast<uint32_t>(column * 2) ^ static_cast<uint32_t>(exchange * 16));
  }
  // From the place of a column to that of the column `further` right of it in the same row, a
  // multiple of 16 that shares no bit with the column's number.
  static __device__ __forceinline__ uint32_t Right(uint32_t place, int further) {
    const auto bytes = static_cast<uint32_t>(further * 2);
    return (place ^ (bytes & kMask)) + (bytes & ~kMask);
  }
  // 16 k rows further down.
  static __device__ __forceinline__ uint32_t Down(uint32_t place, int rows) {
    return place + static_cast<uint32_t>(rows) * kRowBytes;
  }
};

template <typename T>
__device__ __forceinline__ T* SharedAt(uint32_t place) {
  return reinterpret_cast<T*>(DynamicShared() + place);
}

// Where the decays lie behind the tiles.
constexpr uint32_t DecaysPlace(int state_padded) {
  const int weighted_or_state = state_padded > kTokens ? state_padded : kTokens;
  return static_cast<uint32_t>(
      2 * (kTokens * (2 * state_padded + kWidth) + weighted_or_state * kWidth));
}
constexpr int64_t Bf16SharedBytes(int state_padded, int units_each) {
  return int64_t{DecaysPlace(state_padded)} + 4 * kDecayArrays * kTokens * units_each + 16;
}

// Eight neighbouring elements of a row.
template <typename T>
struct Eight;
template <>
struct Eight<float> {
  float4 low, high;
  __device__ __forceinline__ void Load(const float* from) {
    low = *reinterpret_cast<const float4*>(from);
    high = *reinterpret_cast<const float4*>(from + 4);
  }
  __device__ __forceinline__ void Set(const float (&v)[8]) {
    low = {v[0], v[1], v[2], v[3]};
    high = {v[4], v[5], v[6], v[7]};
  }
  __device__ __forceinline__ void Get(float (&v)[8]) const {
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
  }
  __device__ __forceinline__ uint4 Packed() const {
    return {PackBf16(low.x, low.y), PackBf16(low.z, low.w), PackBf16(high.x, high.y),
            PackBf16(high.z, high.w)};
  }
};
template <>
struct Eight<__nv_bfloat16> {
  uint4 bits;
  __device__ __forceinline__ void Load(const __nv_bfloat16* from) {
    bits = *reinterpret_cast<const uint4*>(from);
  }
  __device__ __forceinline__ void Set(const float (&v)[8]) {
    bits = {PackBf16(v[0], v[1]), PackBf16(v[2], v[3]), PackBf16(v[4], v[5]), PackBf16(v[6], v[7])};
  }
  __device__ __forceinline__ void Get(float (&v)[8]) const {
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = __uint_as_float(words[i] << 16);
      v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
  __device__ __forceinline__ uint4 Packed() const { return bits; }
};

// Columns [column, column + 8) of a row of `count` elements, zeros beyond. `wide`: eight elements
// may be read at once wherever `column` is a multiple of 8.
template <typename T>
__device__ __forceinline__ Eight<T> LoadEight(const T* row, int column, int64_t count, bool wide) {
  Eight<T> eight;
  if (wide && column + 8 <= count) {
    eight.Load(row + column);
    return eight;
  }
  float v[8];
#pragma unroll
  for (int e = 0; e < 8; ++e) v[e] = column + e < count ? ToFloat(row[column + e]) : 0.0f;
  eight.Set(v);
  return eight;
}

// B and C, which lie side by side in rows [0, rows) from `from` on, into their tiles; zeros beyond.
// A piece at a time: Load, and later Store.
template <int kN, typename T>
struct StageBc {
  static constexpr int kGroups = kN / 8;
  static constexpr int kSteps = 2 * kTokens * kGroups / kThreads;  // the first half is B
  static constexpr int kMost = sizeof(T) == 4 ? 8 : 16;
  static constexpr int kAtOnce = kSteps < kMost ? kSteps : kMost;

  Eight<T> loaded[kAtOnce];

  static __device__ __forceinline__ int Index(int step) {
    return step % (kSteps / 2) * kThreads + static_cast<int>(threadIdx.x);
  }
  __device__ __forceinline__ void Load(int first, const T* from, int64_t stride, int rows,
                                       int64_t state_size, bool wide) {
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int row = Index(first + u) / kGroups, column = Index(first + u) % kGroups * 8;
      const T* const matrix = from + (first + u < kSteps / 2 ? 0 : state_size);
      loaded[u] = LoadEight(matrix + row * stride, column, row < rows ? state_size : 0, wide);
    }
  }
  __device__ __forceinline__ void Store(int first, const Tile<kN>& Bs, const Tile<kN>& Cs) const {
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int row = Index(first + u) / kGroups, column = Index(first + u) % kGroups * 8;
      const Tile<kN>& tile = first + u < kSteps / 2 ? Bs : Cs;
      *SharedAt<uint4>(tile.Place(row, column)) = loaded[u].Packed();
    }
  }
};

// x as it is and times the row's decay to the block's end.
template <typename T>
__device__ __forceinline__ void StageX(const Tile<kWidth>& plain, const Tile<kWidth>& weighted,
                                       const float* weights, const T* from, int64_t stride,
                                       int rows, int64_t count, bool wide) {
  constexpr int kGroups = kWidth / 8, kSteps = kTokens * kGroups / kThreads;
  const int tid = static_cast<int>(threadIdx.x), column = tid % kGroups * 8;
  Eight<T> loaded[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int row = (step * kThreads + tid) / kGroups;
    loaded[step] = LoadEight(from + row * stride, column, row < rows ? count : 0, wide);
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int row = (step * kThreads + tid) / kGroups;
    *SharedAt<uint4>(plain.Place(row, column)) = loaded[step].Packed();
    float v[8];
    loaded[step].Get(v);
    const float weight = weights[row];
    *SharedAt<uint4>(weighted.Place(row, column)) = {
        PackBf16(v[0] * weight, v[1] * weight), PackBf16(v[2] * weight, v[3] * weight),
        PackBf16(v[4] * weight, v[5] * weight), PackBf16(v[6] * weight, v[7] * weight)};
  }
}

// How the warps share the state [kN, kWidth]: a warp has kTilesN x 2 tiles of 16 x 16.
template <int kN>
struct StateShare {
  static constexpr int kAcross = kN == 32 ? 4 : 2;  // warps side by side along the width
  static constexpr int kTilesN = kN / 16 / (kWarps / kAcross);
  static constexpr int kTilesP = kWidth / 16 / kAcross;
};

__device__ __forceinline__ float Exp(float x) { return Exp2(x * 1.44269504f); }

// One warp's 16 x 64 part of y: += mixed C B^T times x, for kTiles x 16 tokens from `token` on.
// `c`: the warp's rows of C; rows i0 = g and i0 + 8 of them have the sums of logarithms given.
// Tokens lie before the rows, but for the last 16 where kDiagonal: those are the rows' own.
// `b_place`, `x_place`: where this lane reads of the first 16 tokens of the block.
template <int kN, int kTiles, bool kDiagonal>
__device__ __forceinline__ void AddTokens(float (&y)[8][4], const uint32_t (&c)[kN / 16][4],
                                          uint32_t b_place, uint32_t x_place, const Decays& decays,
                                          int token, int i0, const TwoFloats& sum0,
                                          const TwoFloats& sum1) {
  const int lane = static_cast<int>(threadIdx.x) % 32, t = lane % 4, i1 = i0 + 8;
  float products[kTiles * 2][4] = {};
#pragma unroll
  for (int s = 0; s < kN / 16; ++s) {
#pragma unroll
    for (int k = 0; k < kTiles; ++k) {
      uint32_t b[4];
      LoadMatrix4(b,
                  SharedAt<void>(Tile<kN>::Right(Tile<kN>::Down(b_place, token + k * 16), s * 16)));
      MmaBf16(products[k * 2], c[s], b[0], b[1]);
      MmaBf16(products[k * 2 + 1], c[s], b[2], b[3]);
    }
  }
#pragma unroll
  for (int k = 0; k < kTiles; ++k) {
    uint32_t a[4];
    if (kDiagonal && k == kTiles - 1) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int j = token + k * 16 + half * 8 + t * 2;
        const float2 high = *reinterpret_cast<const float2*>(decays.high + j);
        const float2 low = *reinterpret_cast<const float2*>(decays.low + j);
        const float2 dt = *reinterpret_cast<const float2*>(decays.dt + j);
        const TwoFloats from0(high.x, low.x), from1(high.y, low.y);
        const float(&product)[4] = products[k * 2 + half];
        const float m00 = product[0] * Exp(sum0.Minus(from0)) * dt.x;
        const float m01 = product[1] * Exp(sum0.Minus(from1)) * dt.y;
        const float m10 = product[2] * Exp(sum1.Minus(from0)) * dt.x;
        const float m11 = product[3] * Exp(sum1.Minus(from1)) * dt.y;
        a[half * 2] = PackBf16(j <= i0 ? m00 : 0.0f, j + 1 <= i0 ? m01 : 0.0f);
        a[half * 2 + 1] = PackBf16(j <= i1 ? m10 : 0.0f, j + 1 <= i1 ? m11 : 0.0f);
      }
    } else {
      // The decay is that to the end of the 16 tokens times that from there on.
      const int last = token + k * 16 + 15;
      const TwoFloats end(decays.high[last], decays.low[last]);
      const float from0 = Exp(sum0.Minus(end)), from1 = Exp(sum1.Minus(end));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 near =
            *reinterpret_cast<const float2*>(decays.near + token + k * 16 + half * 8 + t * 2);
        const float(&product)[4] = products[k * 2 + half];
        a[half * 2] = PackBf16(product[0] * (from0 * near.x), product[1] * (from0 * near.y));
        a[half * 2 + 1] = PackBf16(product[2] * (from1 * near.x), product[3] * (from1 * near.y));
      }
    }
#pragma unroll
    for (int q = 0; q < kWidth / 16; ++q) {
      uint32_t b[4];
      LoadMatrix4Transposed(b, SharedAt<void>(Tile<kWidth>::Right(
                                   Tile<kWidth>::Down(x_place, token + k * 16), q * 16)));
      MmaBf16(y[q * 2], a, b[0], b[1]);
      MmaBf16(y[q * 2 + 1], a, b[2], b[3]);
    }
  }
}

// The value, of which the compiler knows nothing: keeps it from preparing, and holding in
// registers, all that it could compute of it before a loop.
__device__ __forceinline__ int Opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// Two neighbouring columns of each tile of a row of y, from a lane of a whole warp; columns from
// `columns` on are left out, and all when not `valid`. `wide`: rows are aligned to 8 elements.
__device__ __forceinline__ void StoreRow(float* row, const float (&v)[8][2], int64_t columns,
                                         bool valid, bool wide) {
  const int t = static_cast<int>(threadIdx.x) % 4;
  if (!valid) return;
#pragma unroll
  for (int q = 0; q < 8; ++q) {
    const int column = q * 8 + t * 2;
    if (wide && column + 2 <= columns) {
      *reinterpret_cast<float2*>(row + column) = {v[q][0], v[q][1]};
    } else {
      if (column < columns) row[column] = v[q][0];
      if (column + 1 < columns) row[column + 1] = v[q][1];
    }
  }
}
__device__ __forceinline__ void StoreRow(__nv_bfloat16* row, const float (&v)[8][2],
                                         int64_t columns, bool valid, bool wide) {
  const int t = static_cast<int>(threadIdx.x) % 4;
  if (wide && columns >= kWidth) {
    // Neighbouring lanes exchange halves, so that each one has four columns of one tile.
#pragma unroll
    for (int q = 0; q < 8; q += 2) {
      const uint32_t first = PackBf16(v[q][0], v[q][1]);
      const uint32_t second = PackBf16(v[q + 1][0], v[q + 1][1]);
      const bool odd = t % 2 == 1;
      const uint32_t other = __shfl_xor_sync(kFullWarp, odd ? first : second, 1);
      if (!valid) continue;
      *reinterpret_cast<uint2*>(row + (q + t % 2) * 8 + t / 2 * 4) =
          odd ? uint2{other, second} : uint2{first, other};
    }
    return;
  }
  if (!valid) return;
#pragma unroll
  for (int q = 0; q < 8; ++q) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int column = q * 8 + t * 2 + e;
      if (column < columns) row[column] = FromFloat<__nv_bfloat16>(v[q][e]);
    }
  }
}

// Grid: blocks of tokens * groups of `units_each` units; 256 threads. Shared:
// Bf16SharedBytes(kN, units_each). kN: N rounded up to 32, 64, 128 or 256. Unit: head * slices +
// slice. `wide`: B, C and x of every row begin at 16 bytes; `wide_out`: so does y of every row.
template <int kN, typename T>
__global__ void __launch_bounds__(kThreads, kN <= 128 ? 2 : 1)
    ChainedKernel(SsdParams p, const TokenBlock* __restrict__ blocks, int* counters, int slices,
                  int units_each, bool wide, bool wide_out) {
  using Share = StateShare<kN>;
  constexpr Tile<kN> Bs{0};                         // [tokens, N]
  constexpr Tile<kN> Cs{Tile<kN>::kBytes};          // [tokens, N]
  constexpr Tile<kWidth> Xs{2 * Tile<kN>::kBytes};  // [tokens, width]
  // The same times the decay to the end; then the state before the block, [N, width].
  constexpr Tile<kWidth> Xout{Xs.first + Tile<kWidth>::kBytes}, Ss = Xout;
  float* const decay_memory = SharedAt<float>(DecaysPlace(kN));
  int* const ticket = reinterpret_cast<int*>(decay_memory + kDecayArrays * kTokens * units_each);

  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32;
  const int64_t P = p.head_dim, N = p.state_size;
  const int units = static_cast<int>(p.heads) * slices;
  const int groups = (units + units_each - 1) / units_each;
  if (tid == 0) *ticket = atomicAdd(counters, 1);
  __syncthreads();
  const int block_index = *ticket / groups;
  const TokenBlock block = blocks[block_index];
  const int first_unit = *ticket % groups * units_each;
  const int unit_count = min(units_each, units - first_unit);
  const T* const xbc =
      static_cast<const T*>(static_cast<const void*>(p.xbc)) + block.first_row * p.xbc_stride;
  T* const y_rows = static_cast<T*>(static_cast<void*>(p.y)) + block.first_row * p.y_stride;

  {
    using Stage = StageBc<kN, T>;
    Stage stage;
    stage.Load(0, xbc + p.heads * P, p.xbc_stride, block.rows, N, wide);
    if (warp < unit_count) {
      ComputeDecays<kTokens / 32>(p, block.first_row, block.rows, kTokens,
                                  (first_unit + warp) / slices,
                                  Decays(decay_memory + warp * kDecayArrays * kTokens, kTokens));
    }
    stage.Store(0, Bs, Cs);
#pragma unroll
    for (int step = Stage::kAtOnce; step < Stage::kSteps; step += Stage::kAtOnce) {
      stage.Load(step, xbc + p.heads * P, p.xbc_stride, block.rows, N, wide);
      stage.Store(step, Bs, Cs);
    }
  }
  // Rows of y: 16 a warp; those with much to sum share a scheduler with those with little.
  const int m = warp < kWarps / 2 ? warp : kWarps + kWarps / 2 - 1 - warp;
  // Part of the state: 16 x 16 tiles from here on.
  const int n_first = warp / Share::kAcross * Share::kTilesN * 16;
  const int p_first = warp % Share::kAcross * Share::kTilesP * 16;

  for (int u = 0; u < unit_count; ++u) {
    const int unit = first_unit + u, head = unit / slices;
    const int lane = Opaque(tid % 32), g = lane / 4, t = lane % 4;
    // Where this lane reads fragments.
    const uint32_t b_place = Bs.Place(lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8);
    const uint32_t b_transposed = Bs.Place(lane / 16 * 8 + lane % 8, n_first + lane / 8 % 2 * 8);
    const uint32_t c_place = Cs.Place(m * 16 + lane % 16, lane / 16 * 8);
    const uint32_t x_place = Xs.Place(lane % 16, lane / 16 * 8);
    const uint32_t weighted_place = Xout.Place(lane % 16, p_first + lane / 16 * 8);
    const uint32_t s_place = Ss.Place(lane % 16, lane / 16 * 8);
    const int64_t first_column = static_cast<int64_t>(unit % slices) * kWidth;
    const int64_t columns = P - first_column;  // valid ones, or more
    const Decays decays(decay_memory + u * kDecayArrays * kTokens, kTokens);
    __syncthreads();  // decays; the unit before has been read

    // The state before the block comes from the same warp of the block before in the sequence; as a
    // rule that has been, and one look in advance is enough.
    const int64_t flag = unit * kWarps + warp;
    int* const mine = counters + 1 + static_cast<int64_t>(block_index) * units * kWarps + flag;
    const int* const given =
        counters + 1 + static_cast<int64_t>(block.previous) * units * kWarps + flag;
    int ready = 1;
    if (block.previous >= 0 && lane == 0) ready = LoadAcquireDevice(given);
    const int row = n_first + g, column = p_first + t * 2;
    float* const memory =
        block.state + p.state_offset + (head * N + row) * P + first_column + column;
    // Whole pairs of columns, no rows or columns too many.
    const bool simple =
        N == kN && columns >= kWidth && P % 2 == 0 && reinterpret_cast<uintptr_t>(memory) % 8 == 0;
    const auto inside = [&](int r, int q, int e, int further) {
      return row + r * 16 + e * 4 < N && column + q * 8 + further < columns;
    };

    StageX(Xs, Xout, decays.out, xbc + head * P + first_column, p.xbc_stride, block.rows, columns,
           wide);
    if (u + 1 < unit_count) {
      // The next unit's x comes nearer.
      constexpr int kLine = 128 / sizeof(T), kLines = kWidth / kLine;
      const int next = unit + 1, next_row = tid / kLines;
      const int64_t next_column =
          static_cast<int64_t>(next % slices) * kWidth + tid % kLines * kLine;
      if (next_row < block.rows && next_column < P) {
        PrefetchL2(xbc + next_row * p.xbc_stride + next / slices * P + next_column);
      }
    }
    __syncthreads();

    // What the block's tokens add to the state: rows n, columns p.
    float state[Share::kTilesN][Share::kTilesP * 2][4] = {};
    float before[Share::kTilesN][Share::kTilesP * 2][4];
    // Calls fn(r, q, e, address) for what the lane has of the state.
    const auto each_pair = [&](auto fn) {
#pragma unroll
      for (int r = 0; r < Share::kTilesN; ++r) {
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
          float* const address = memory + (r * 16 + e * 4) * P;
#pragma unroll
          for (int q = 0; q < Share::kTilesP * 2; ++q) fn(r, q, e, address + q * 8);
        }
      }
    };
    const auto load_state = [&] {
      if (simple) {
        each_pair([&](int r, int q, int e, const float* from) {
          const float2 v = __ldcg(reinterpret_cast<const float2*>(from));
          before[r][q][e] = v.x;
          before[r][q][e + 1] = v.y;
        });
      } else {
        each_pair([&](int r, int q, int e, const float* from) {
          before[r][q][e] = inside(r, q, e, 0) ? __ldcg(from) : 0.0f;
          before[r][q][e + 1] = inside(r, q, e, 1) ? __ldcg(from + 1) : 0.0f;
        });
      }
    };
#pragma unroll
    for (int s = 0; s < kTokens / 16; ++s) {
      if (s == kTokens / 32) {
        // What is asked for now is there when the sum is.
        if (lane == 0) {
          while (!ready) ready = LoadAcquireDevice(given);
        }
        __syncwarp();
        load_state();
      }
      uint32_t x[Share::kTilesP][4];
#pragma unroll
      for (int q = 0; q < Share::kTilesP; ++q) {
        LoadMatrix4Transposed(x[q], SharedAt<void>(Tile<kWidth>::Right(
                                        Tile<kWidth>::Down(weighted_place, s * 16), q * 16)));
      }
#pragma unroll
      for (int r = 0; r < Share::kTilesN; ++r) {
        uint32_t b[4];  // (n, token): B transposed
        LoadMatrix4Transposed(
            b, SharedAt<void>(Tile<kN>::Right(Tile<kN>::Down(b_transposed, s * 16), r * 16)));
#pragma unroll
        for (int q = 0; q < Share::kTilesP; ++q) {
          MmaBf16(state[r][q * 2], b, x[q][0], x[q][1]);
          MmaBf16(state[r][q * 2 + 1], b, x[q][2], x[q][3]);
        }
      }
    }
    __syncthreads();  // Xout has been read: the state takes its place

    const float whole = Exp(decays.high[kTokens - 1]);
    each_pair([&](int r, int q, int e, const float*) {
      state[r][q][e] = fmaf(before[r][q][e], whole, state[r][q][e]);
      state[r][q][e + 1] = fmaf(before[r][q][e + 1], whole, state[r][q][e + 1]);
    });
    if (simple) {
      each_pair([&](int r, int q, int e, float* to) {
        __stcg(reinterpret_cast<float2*>(to), float2{state[r][q][e], state[r][q][e + 1]});
      });
    } else {
      each_pair([&](int r, int q, int e, float* to) {
        if (inside(r, q, e, 0)) __stcg(to, state[r][q][e]);
        if (inside(r, q, e, 1)) __stcg(to + 1, state[r][q][e + 1]);
      });
    }
    const uint32_t held_place = Ss.Place(row, p_first) + t * 4;
    __syncwarp();
    if (lane == 0) StoreReleaseDevice(mine, 1);
    each_pair([&](int r, int q, int e, const float*) {
      *SharedAt<uint32_t>(Tile<kWidth>::Down(held_place ^ (q * 16), r * 16 + e * 4)) =
          PackBf16(before[r][q][e], before[r][q][e + 1]);
    });
    __syncthreads();  // the state

    // y of 16 rows: first d C S.
    uint32_t c[kN / 16][4];
#pragma unroll
    for (int s = 0; s < kN / 16; ++s) {
      LoadMatrix4(c[s], SharedAt<void>(Tile<kN>::Right(c_place, s * 16)));
    }
    float y[kWidth / 8][4] = {};
#pragma unroll
    for (int s = 0; s < kN / 16; ++s) {
#pragma unroll
      for (int q = 0; q < kWidth / 16; ++q) {
        uint32_t b[4];
        LoadMatrix4Transposed(
            b, SharedAt<void>(Tile<kWidth>::Right(Tile<kWidth>::Down(s_place, s * 16), q * 16)));
        MmaBf16(y[q * 2], c[s], b[0], b[1]);
        MmaBf16(y[q * 2 + 1], c[s], b[2], b[3]);
      }
    }
    const int i0 = m * 16 + g;
    const TwoFloats sum0(decays.high[i0], decays.low[i0]);
    const TwoFloats sum1(decays.high[i0 + 8], decays.low[i0 + 8]);
    const float in0 = Exp(sum0.high), in1 = Exp(sum1.high);
#pragma unroll
    for (int q = 0; q < kWidth / 8; ++q) {
      y[q][0] *= in0;
      y[q][1] *= in0;
      y[q][2] *= in1;
      y[q][3] *= in1;
    }
    int tile = 0;
    for (; tile + 2 <= m; tile += 2) {
      AddTokens<kN, 2, false>(y, c, b_place, x_place, decays, tile * 16, i0, sum0, sum1);
    }
    if (tile < m) {
      AddTokens<kN, 2, true>(y, c, b_place, x_place, decays, tile * 16, i0, sum0, sum1);
    } else {
      AddTokens<kN, 1, true>(y, c, b_place, x_place, decays, tile * 16, i0, sum0, sum1);
    }

    const float skip = p.d_skip[head];
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int i = i0 + part * 8;
      float v[kWidth / 8][2];
#pragma unroll
      for (int q = 0; q < kWidth / 8; ++q) {
        const uint32_t x = *SharedAt<uint32_t>((Xs.Place(i, 0) + t * 4) ^ (q * 16));
        v[q][0] = fmaf(skip, __uint_as_float(x << 16), y[q][part * 2]);
        v[q][1] = fmaf(skip, __uint_as_float(x & 0xffff0000u), y[q][part * 2 + 1]);
      }
      StoreRow(y_rows + i * p.y_stride + head * P + first_column, v, columns, i < block.rows,
               wide_out);
    }
  }
}

// ---- on the host -------------------------------------------------------------------------------

template <int kN, typename T>
cudaError_t LaunchChainedOf(const SsdParams& p, const TokenBlock* blocks, int64_t block_count,
                            int units_each, int* counters, cudaStream_t stream) {
  constexpr int64_t kGroup = 16 / sizeof(T);  // elements of 16 bytes
  const int64_t slices = (p.head_dim + kWidth - 1) / kWidth, units = p.heads * slices;
  const auto aligned = [](const void* data, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % kGroup == 0;
  };
  const bool wide =
      aligned(p.xbc, p.xbc_stride) && p.head_dim % kGroup == 0 && p.state_size % kGroup == 0;
  const bool wide_out = aligned(p.y, p.y_stride) && p.head_dim % kGroup == 0;
  const int64_t grid = block_count * ((units + units_each - 1) / units_each);
  return Launch(ChainedKernel<kN, T>, dim3(static_cast<unsigned>(grid)), dim3(kThreads),
                Bf16SharedBytes(kN, units_each), stream, p, blocks, counters,
                static_cast<int>(slices), units_each, wide, wide_out);
}

// N rounded up to what a kernel was made for; 0: none.
constexpr int PaddedState(int64_t state_size) {
  return state_size <= 32    ? 32
         : state_size <= 64  ? 64
         : state_size <= 128 ? 128
         : state_size <= 256 ? 256
                             : 0;
}

// `counters`: CounterCount zeros.
template <typename T>
cudaError_t LaunchChained(const SsdParams& p, const TokenBlock* blocks, int64_t block_count,
                          int units_each, int* counters, cudaStream_t stream) {
  switch (PaddedState(p.state_size)) {
    case 32:
      return LaunchChainedOf<32, T>(p, blocks, block_count, units_each, counters, stream);
    case 64:
      return LaunchChainedOf<64, T>(p, blocks, block_count, units_each, counters, stream);
    case 128:
      return LaunchChainedOf<128, T>(p, blocks, block_count, units_each, counters, stream);
    case 256:
      return LaunchChainedOf<256, T>(p, blocks, block_count, units_each, counters, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace mneme::ssd

#endif  // MNEME_KERNELS_CUDA_SSD_KERNELS_CUH_
