// The state space recurrence over many tokens, in blocks (arXiv 2405.21060, section 6). Within a
// block, with d_i the decay from the block's beginning up to and with token i, and S the state
// before it:
//   y_i = d_i C_i S + sum_{j <= i} (d_i / d_j) (C_i B_j) dt_j x_j + D x_i
//   S'  = d_last S + sum_j (d_last / d_j) dt_j B_j (outer) x_j
// Decays are differences of sums of logarithms that are kept in two floats each: where tokens
// forget fast the sums are large, and nothing of the difference of neighbours may be lost.
//
// bf16: a thread block does 128 tokens of a sequence for a few heads (units: 64 columns of a head's
// width). B and C lie in shared memory as bf16 for all of them. All blocks of tokens run side by
// side; what one after the other do is only the last step of S': a warp that has its part of the
// sum waits for the state before its tokens, adds, and hands the state after them to the same warp
// of the next block of tokens, in the sequence's state memory itself. Who must be waited for has
// begun before: thread blocks take their work in the order in which they start. The sum over j
// <= i is two tensor core products with the 128 x 128 matrix between them in registers.
//
// f32: a thread block walks through a sequence for 32 columns of a head, blocks of up to 32 tokens
// in shared memory as f32.
//
// Blocks begin at whole multiples from the sequence's first row, and nothing depends on other
// sequences, so a sequence cut at a multiple of kTokens rows gives the same bits.

#ifndef MNEME_KERNELS_CUDA_SSD_KERNELS_CUH_
#define MNEME_KERNELS_CUDA_SSD_KERNELS_CUH_

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/ops.h"

namespace mneme::ssd {

// A double in two floats.
struct TwoFloats {
  float high, low;
  __device__ __forceinline__ TwoFloats(float upper, float lower) : high(upper), low(lower) {}
  __device__ __forceinline__ explicit TwoFloats(double v)
      : high(static_cast<float>(v)), low(static_cast<float>(v - static_cast<double>(high))) {}
  __device__ __forceinline__ float Minus(const TwoFloats& other) const {
    return (high - other.high) + (low - other.low);
  }
};

// What the rows of a block of tokens need of their decays.
struct Decays {
  float* dt;    // softplus; 0 beyond the rows
  float* high;  // sum of logarithms up to and with the row, upper part
  float* low;   // lower part
  float* near;  // decay to the end of the row's 16 tokens, times dt
  float* out;   // decay to the block's end, times dt

  // Of floats for `tokens` tokens.
  __device__ __forceinline__ Decays(float* memory, int tokens)
      : dt(memory), high(dt + tokens), low(high + tokens), near(low + tokens), out(near + tokens) {}
};
constexpr int kDecayArrays = 5;

// Fills them with one warp; a lane does kEach neighbouring tokens of 32 * kEach. Call with a whole
// warp, and synchronize after.
template <int kEach>
__device__ __forceinline__ void ComputeDecays(const SsdParams& p, int64_t first_row, int rows,
                                              int tokens, int64_t head, const Decays& to) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float dt[kEach];
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int i = lane * kEach + e;
    dt[e] = i < rows ? p.dt[(first_row + i) * p.dt_stride + head] : 0.0f;
  }
  const double a = -static_cast<double>(expf(p.a_log[head]));
  const float bias = p.dt_bias[head];
  double sums[kEach], sum = 0;
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    dt[e] = lane * kEach + e < rows ? Softplus(dt[e] + bias) : 0.0f;
    sum += a * dt[e];
    sums[e] = sum;
  }
  // Sum of the lanes before.
  double upto = sum;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const double other = __shfl_up_sync(kFullWarp, upto, step);
    if (lane >= step) upto += other;
  }
  double before = __shfl_up_sync(kFullWarp, upto, 1);
  if (lane == 0) before = 0;
  const TwoFloats last(__shfl_sync(kFullWarp, upto, 31));
  const TwoFloats near(__shfl_sync(kFullWarp, upto, lane | (16 / kEach - 1)));
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int i = lane * kEach + e;
    if (i >= tokens) break;
    const TwoFloats total(before + sums[e]);
    to.dt[i] = dt[e];
    to.high[i] = total.high;
    to.low[i] = total.low;
    to.near[i] = expf(near.Minus(total)) * dt[e];
    to.out[i] = expf(last.Minus(total)) * dt[e];
  }
}

// ---- bf16 --------------------------------------------------------------------------------------

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

// A matrix of bf16 in shared memory, kTokens rows (or more, where it has 64 columns), in panels of
// 64 columns, 128 bytes a row; the groups of eight columns of a row are exchanged such that eight
// rows' same group lies in eight different groups of banks. That is also the form with 128 bytes of
// swizzle that Hopper's warpgroup products read. Places are bytes from the beginning of the block's
// shared memory.
template <int kColumns>
struct Tile {
  static constexpr int kPanelColumns = kColumns < 64 ? kColumns : 64;
  static constexpr uint32_t kRowBytes = kPanelColumns * 2;
  static constexpr uint32_t kPanelBytes = kTokens * kRowBytes;
  static constexpr uint32_t kBytes = kColumns / kPanelColumns * kPanelBytes;  // of kTokens rows

  uint32_t first;  // a multiple of 1024

  // `column`: a multiple of 8.
  __device__ __forceinline__ uint32_t Place(int row, int column) const {
    const int exchange = kRowBytes < 128 ? row / 2 % (kColumns / 8) : row % 8;
    return first + static_cast<uint32_t>(column / kPanelColumns) * kPanelBytes +
           static_cast<uint32_t>(row) * kRowBytes +
           (static_cast<uint32_t>(column % kPanelColumns * 2) ^
            static_cast<uint32_t>(exchange * 16));
  }
  // From the place of a column to that of the column `further` right of it in the same row, a
  // multiple of 16 that shares no bit with the column's number.
  static __device__ __forceinline__ uint32_t Right(uint32_t place, int further) {
    return (place ^ static_cast<uint32_t>(further % kPanelColumns * 2)) +
           static_cast<uint32_t>(further / kPanelColumns) * kPanelBytes;
  }
  // A multiple of 8 rows further down.
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

// Columns [column, column + 8) of a row of `count` elements, zeros beyond and when not `valid`.
// `whole`: they are all there, and may be read at once.
template <typename T>
__device__ __forceinline__ Eight<T> LoadEight(const T* row, int column, int64_t count, bool valid,
                                              bool whole) {
  Eight<T> eight;
  const float zeros[8] = {};
  eight.Set(zeros);
  if (whole) {
    if (valid) eight.Load(row + column);
    return eight;
  }
  float v[8];
#pragma unroll
  for (int e = 0; e < 8; ++e) v[e] = valid && column + e < count ? ToFloat(row[column + e]) : 0.0f;
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
    const auto load = [&](bool whole) {
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int row = Index(first + u) / kGroups, column = Index(first + u) % kGroups * 8;
        const T* const matrix = from + (first + u < kSteps / 2 ? 0 : state_size);
        loaded[u] = LoadEight(matrix + row * stride, column, state_size, row < rows, whole);
      }
    };
    if (wide && state_size == kN) {
      load(true);
    } else {
      load(false);
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
  const auto load = [&](bool whole) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int row = (step * kThreads + tid) / kGroups;
      loaded[step] = LoadEight(from + row * stride, column, count, row < rows, whole);
    }
  };
  if (wide && count >= kWidth) {
    load(true);
  } else {
    load(false);
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

// How the warps share the state [kN, kWidth]: a warp has kTilesN x kTilesP tiles of 16 x 16 from
// the row and the column given on.
template <int kN, bool kWarpgroups>
struct StateShare {
  static constexpr int kAcross = kN == 32 ? 4 : 2;  // warps side by side along the width
  static constexpr int kTilesN = kN / 16 / (kWarps / kAcross);
  static constexpr int kTilesP = kWidth / 16 / kAcross;
  static __device__ __forceinline__ int Row(int warp) { return warp / kAcross * kTilesN * 16; }
  static __device__ __forceinline__ int Column(int warp) { return warp % kAcross * kTilesP * 16; }
};
// A warp of a warpgroup has 16 of 64 rows.
template <int kN>
struct StateShare<kN, true> {
  static constexpr int kDown = kN / 16;  // warps one below the other
  static constexpr int kTilesN = 1;
  static constexpr int kTilesP = kWidth / 16 * kDown / kWarps;
  static __device__ __forceinline__ int Row(int warp) { return warp % kDown * 16; }
  static __device__ __forceinline__ int Column(int warp) { return warp / kDown * kTilesP * 16; }
};

__device__ __forceinline__ float Exp(float x) { return Exp2(x * 1.44269504f); }

// The operand of M x for 16 rows and the 16 tokens from `token` on, of their C B^T; rows i0 = g and
// i0 + 8 of them have the sums of logarithms given. The tokens lie before the rows or, `diagonal`,
// are the rows' own.
__device__ __forceinline__ void Mix(uint32_t (&a)[4], const float (&left)[4],
                                    const float (&right)[4], const Decays& decays, int token,
                                    int i0, const TwoFloats& sum0, const TwoFloats& sum1,
                                    bool diagonal) {
  const int t = static_cast<int>(threadIdx.x) % 4, i1 = i0 + 8;
  if (diagonal) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int j = token + half * 8 + t * 2;
      const float2 high = *reinterpret_cast<const float2*>(decays.high + j);
      const float2 low = *reinterpret_cast<const float2*>(decays.low + j);
      const float2 dt = *reinterpret_cast<const float2*>(decays.dt + j);
      const TwoFloats from0(high.x, low.x), from1(high.y, low.y);
      const float(&product)[4] = half == 0 ? left : right;
      const float m00 = product[0] * Exp(sum0.Minus(from0)) * dt.x;
      const float m01 = product[1] * Exp(sum0.Minus(from1)) * dt.y;
      const float m10 = product[2] * Exp(sum1.Minus(from0)) * dt.x;
      const float m11 = product[3] * Exp(sum1.Minus(from1)) * dt.y;
      a[half * 2] = PackBf16(j <= i0 ? m00 : 0.0f, j + 1 <= i0 ? m01 : 0.0f);
      a[half * 2 + 1] = PackBf16(j <= i1 ? m10 : 0.0f, j + 1 <= i1 ? m11 : 0.0f);
    }
    return;
  }
  // The decay is that to the end of the 16 tokens times that from there on.
  const TwoFloats end(decays.high[token + 15], decays.low[token + 15]);
  const float from0 = Exp(sum0.Minus(end)), from1 = Exp(sum1.Minus(end));
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float2 near = *reinterpret_cast<const float2*>(decays.near + token + half * 8 + t * 2);
    const float(&product)[4] = half == 0 ? left : right;
    a[half * 2] = PackBf16(product[0] * (from0 * near.x), product[1] * (from0 * near.y));
    a[half * 2 + 1] = PackBf16(product[2] * (from1 * near.x), product[3] * (from1 * near.y));
  }
}

// One warp's 16 x 64 part of y: += mixed C B^T times x, for kTiles x 16 tokens from `token` on.
// `c`: the warp's rows of C; the rest as for Mix, the last 16 tokens the rows' own where kDiagonal.
// `b_place`, `x_place`: where this lane reads of the first 16 tokens of the block.
template <int kN, int kTiles, bool kDiagonal>
__device__ __forceinline__ void AddTokens(float (&y)[8][4], const uint32_t (&c)[kN / 16][4],
                                          uint32_t b_place, uint32_t x_place, const Decays& decays,
                                          int token, int i0, const TwoFloats& sum0,
                                          const TwoFloats& sum1) {
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
    Mix(a, products[k * 2], products[k * 2 + 1], decays, token + k * 16, i0, sum0, sum1,
        kDiagonal && k == kTiles - 1);
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

#ifdef MNEME_HAS_WGMMA
// Describes what begins at a place of a tile as an operand of a warpgroup product.
__device__ __forceinline__ uint64_t Swizzled(uint32_t place) {
  return WgmmaSwizzled(SharedAt<void>(place));
}
#endif

// Grid: blocks of tokens * groups of `units_each` units; 256 threads. Shared:
// Bf16SharedBytes(kN, units_each). kN: N rounded up to 32, 64, 128 or 256. Unit: head * slices +
// slice. `wide`: B, C and x of every row begin at 16 bytes; `wide_out`: so does y of every row.
// kWarpgroups: by Hopper's products of four warps, whose operands come from shared memory: for N of
// 64 and 128, on sm_90a; otherwise by products of one warp.
template <int kN, bool kWarpgroups, typename T>
__global__ void __launch_bounds__(kThreads, kN <= 128 ? 2 : 1)
    ChainedKernel(SsdParams p, const TokenBlock* __restrict__ blocks, int* counters, int slices,
                  int units_each, bool wide, bool wide_out) {
  using Share = StateShare<kN, kWarpgroups>;
  constexpr Tile<kN> Bs{0};                         // [tokens, N]
  constexpr Tile<kN> Cs{Tile<kN>::kBytes};          // [tokens, N]
  constexpr Tile<kWidth> Xs{2 * Tile<kN>::kBytes};  // [tokens, width]
  // The same times the decay to the end; then the state before the block, [N, width].
  constexpr Tile<kWidth> Xout{Xs.first + Tile<kWidth>::kBytes}, Ss = Xout;
  float* const decay_memory = SharedAt<float>(DecaysPlace(kN));
  int* const ticket = reinterpret_cast<int*>(decay_memory + kDecayArrays * kTokens * units_each);

  const int tid = static_cast<int>(threadIdx.x);
  const int warp = __shfl_sync(kFullWarp, tid / 32, 0);  // seen to be the same in all lanes
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
  const int m = kWarpgroups || warp < kWarps / 2 ? warp : kWarps + kWarps / 2 - 1 - warp;
  // Part of the state: 16 x 16 tiles from here on.
  const int n_first = Share::Row(warp), p_first = Share::Column(warp);
  if constexpr (kWarpgroups) FenceAsyncProxy();

  for (int u = 0; u < unit_count; ++u) {
    const int unit = first_unit + u, head = unit / slices;
    const int lane = Opaque(tid % 32), g = lane / 4, t = lane % 4;
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
    if constexpr (kWarpgroups) FenceAsyncProxy();
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
      if (lane == 0) {
        while (!ready) ready = LoadAcquireDevice(given);
      }
      __syncwarp();
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
    if constexpr (kWarpgroups) {
#ifdef MNEME_HAS_WGMMA
      load_state();  // takes longer than the product
      WgmmaFence();
#pragma unroll
      for (int s = 0; s < kTokens / 16; ++s) {
        WgmmaShared<Share::kTilesP * 16, true, true>(
            state[0], Swizzled(Bs.Place(s * 16, 0) + n_first / 64 * Tile<kN>::kPanelBytes),
            Swizzled(Xout.Place(s * 16, 0) + p_first * 2));
      }
      WgmmaCommit();
      WgmmaWait<0>();
#else
      __trap();
#endif
    } else {
      const uint32_t b_transposed = Bs.Place(lane / 16 * 8 + lane % 8, n_first + lane / 8 % 2 * 8);
      const uint32_t weighted_place = Xout.Place(lane % 16, p_first + lane / 16 * 8);
#pragma unroll
      for (int s = 0; s < kTokens / 16; ++s) {
        if (s == kTokens / 32) {
          // What is asked for now is there when the sum is.
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
    if constexpr (kWarpgroups) FenceAsyncProxy();
    __syncthreads();  // the state

    // y of 16 rows: first d C S, then M x.
    float y[kWidth / 8][4] = {};
    const int i0 = m * 16 + g;
    const TwoFloats sum0(decays.high[i0], decays.low[i0]);
    const TwoFloats sum1(decays.high[i0 + 8], decays.low[i0 + 8]);
    const float in0 = Exp(sum0.high), in1 = Exp(sum1.high);
    const auto scale_y = [&] {
#pragma unroll
      for (int q = 0; q < kWidth / 8; ++q) {
        y[q][0] *= in0;
        y[q][1] *= in0;
        y[q][2] *= in1;
        y[q][3] *= in1;
      }
    };
    if constexpr (kWarpgroups) {
#ifdef MNEME_HAS_WGMMA
      const int group = warp / 4;  // its rows: 64 from 64 group on
      WgmmaFence();
#pragma unroll
      for (int s = 0; s < kN / 16; ++s) {
        WgmmaShared<kWidth, false, true>(y,
                                         Swizzled(Tile<kN>::Right(Cs.Place(group * 64, 0), s * 16)),
                                         Swizzled(Ss.Place(s * 16, 0)));
      }
      WgmmaCommit();
      WgmmaWait<0>();
      scale_y();
      for (int first = 0; first <= group * 64; first += 64) {  // of 64 tokens
        float products[8][4] = {};
        WgmmaFence();
#pragma unroll
        for (int s = 0; s < kN / 16; ++s) {
          WgmmaShared<64, false, false>(products,
                                        Swizzled(Tile<kN>::Right(Cs.Place(group * 64, 0), s * 16)),
                                        Swizzled(Tile<kN>::Right(Bs.Place(first, 0), s * 16)));
        }
        WgmmaCommit();
        WgmmaWait<0>();
        uint32_t a[4][4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int token = first + k * 16;
          if (token <= m * 16) {
            Mix(a[k], products[k * 2], products[k * 2 + 1], decays, token, i0, sum0, sum1,
                token == m * 16);
          } else {
            a[k][0] = a[k][1] = a[k][2] = a[k][3] = 0;
          }
        }
        WgmmaFence();
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          WgmmaRows<kWidth>(y, a[k], Swizzled(Xs.Place(first + k * 16, 0)));
        }
        WgmmaCommit();
        WgmmaWait<0>();
      }
#endif
    } else {
      const uint32_t b_place = Bs.Place(lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8);
      const uint32_t c_place = Cs.Place(m * 16 + lane % 16, lane / 16 * 8);
      const uint32_t x_place = Xs.Place(lane % 16, lane / 16 * 8);
      const uint32_t s_place = Ss.Place(lane % 16, lane / 16 * 8);
      uint32_t c[kN / 16][4];
#pragma unroll
      for (int s = 0; s < kN / 16; ++s) {
        LoadMatrix4(c[s], SharedAt<void>(Tile<kN>::Right(c_place, s * 16)));
      }
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
      scale_y();
      int tile = 0;
      for (; tile + 2 <= m; tile += 2) {
        AddTokens<kN, 2, false>(y, c, b_place, x_place, decays, tile * 16, i0, sum0, sum1);
      }
      if (tile < m) {
        AddTokens<kN, 2, true>(y, c, b_place, x_place, decays, tile * 16, i0, sum0, sum1);
      } else {
        AddTokens<kN, 1, true>(y, c, b_place, x_place, decays, tile * 16, i0, sum0, sum1);
      }
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

// ---- f32 ---------------------------------------------------------------------------------------

constexpr int kF32Width = 32;
constexpr int kF32Threads = 256, kF32Warps = kF32Threads / 32;
constexpr int kF32TokensMax = 32;

constexpr int64_t F32SharedBytes(int64_t tokens, int64_t state_size) {
  return 4 * (tokens * state_size + tokens * (state_size + 1) + state_size * kF32Width +
              2 * tokens * kF32Width + tokens * (tokens + 1) + kDecayArrays * tokens);
}

// Grid: (heads * slices of 32 columns, sequences). A lane does one column; shared: F32SharedBytes.
// `tokens`: of a block, at most 32, dividing 64.
template <typename T>
__global__ void __launch_bounds__(kF32Threads)
    F32Kernel(SsdParams p, const SequenceRows* __restrict__ sequences, int slices, int tokens) {
  const int N = static_cast<int>(p.state_size);
  float* const Cs = reinterpret_cast<float*>(DynamicShared());  // [tokens, N]
  float* const Bs = Cs + tokens * N;                            // [tokens, N + 1]
  float* const state = Bs + tokens * (N + 1);                   // [N, width]
  float* const Xs = state + N * kF32Width;                      // [tokens, width]
  float* const Xout = Xs + tokens * kF32Width;                  // the same times decay to the end
  float* const Ms = Xout + tokens * kF32Width;                  // [tokens, tokens + 1]
  const Decays decays(Ms + tokens * (tokens + 1), tokens);

  const SequenceRows sequence = sequences[blockIdx.y];
  if (sequence.row_count == 0) return;
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32;
  const int64_t P = p.head_dim, head = blockIdx.x / slices;
  const int64_t column = static_cast<int64_t>(blockIdx.x % slices) * kF32Width + lane;
  const bool inside = column < P;
  float* const memory = sequence.state + p.state_offset + head * p.state_size * P + column;
  for (int n = warp; n < N; n += kF32Warps) {
    state[n * kF32Width + lane] = inside ? memory[n * P] : 0.0f;
  }

  for (int64_t r = 0; r < sequence.row_count; r += tokens) {
    const int rows =
        sequence.row_count - r < tokens ? static_cast<int>(sequence.row_count - r) : tokens;
    const int64_t first_row = sequence.row_begin + r;
    const T* const xbc =
        static_cast<const T*>(static_cast<const void*>(p.xbc)) + first_row * p.xbc_stride;
    __syncthreads();  // the block before has been read
    if (warp == 0) ComputeDecays<1>(p, first_row, rows, tokens, head, decays);
    for (int i = tid; i < tokens * N; i += kF32Threads) {
      const int row = i / N, n = i % N;
      const T* from = xbc + row * p.xbc_stride + p.heads * P + n;
      Bs[row * (N + 1) + n] = row < rows ? ToFloat(from[0]) : 0.0f;
      Cs[row * N + n] = row < rows ? ToFloat(from[N]) : 0.0f;
    }
    __syncthreads();
    for (int i = warp; i < tokens; i += kF32Warps) {
      const float v =
          i < rows && inside ? ToFloat(xbc[i * p.xbc_stride + head * P + column]) : 0.0f;
      Xs[i * kF32Width + lane] = v;
      Xout[i * kF32Width + lane] = v * decays.out[i];
      if (lane > i) continue;
      const int j = lane;
      float sum = 0;
      for (int n = 0; n < N; ++n) sum = fmaf(Cs[i * N + n], Bs[j * (N + 1) + n], sum);
      Ms[i * (tokens + 1) + j] =
          sum * expf((decays.high[i] - decays.high[j]) + (decays.low[i] - decays.low[j])) *
          decays.dt[j];
    }
    __syncthreads();
    for (int i = warp; i < rows; i += kF32Warps) {
      float sum = 0;
      for (int n = 0; n < N; ++n) sum = fmaf(Cs[i * N + n], state[n * kF32Width + lane], sum);
      sum *= expf(decays.high[i]);
      for (int j = 0; j <= i; ++j) {
        sum = fmaf(Ms[i * (tokens + 1) + j], Xs[j * kF32Width + lane], sum);
      }
      if (inside) {
        static_cast<T*>(static_cast<void*>(p.y))[(first_row + i) * p.y_stride + head * P + column] =
            FromFloat<T>(fmaf(p.d_skip[head], Xs[i * kF32Width + lane], sum));
      }
    }
    __syncthreads();  // the state has been read
    const float whole = expf(decays.high[tokens - 1]);
    for (int n = warp; n < N; n += kF32Warps) {
      float sum = state[n * kF32Width + lane] * whole;
      for (int j = 0; j < tokens; ++j) {
        sum = fmaf(Bs[j * (N + 1) + n], Xout[j * kF32Width + lane], sum);
      }
      state[n * kF32Width + lane] = sum;
    }
  }
  // Each warp writes what it alone has updated.
  for (int n = warp; n < N && inside; n += kF32Warps) {
    memory[n * P] = state[n * kF32Width + lane];
  }
}

// ---- on the host -------------------------------------------------------------------------------

template <int kN, bool kWarpgroups, typename T>
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
  return Launch(ChainedKernel<kN, kWarpgroups, T>, dim3(static_cast<unsigned>(grid)),
                dim3(kThreads), Bf16SharedBytes(kN, units_each), stream, p, blocks, counters,
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

// `counters`: CounterCount zeros. `warpgroups`: the device has Hopper's products.
template <typename T>
cudaError_t LaunchChained(const SsdParams& p, const TokenBlock* blocks, int64_t block_count,
                          int units_each, bool warpgroups, int* counters, cudaStream_t stream) {
  const auto launch = [&](auto kernel) {
    return kernel(p, blocks, block_count, units_each, counters, stream);
  };
  switch (PaddedState(p.state_size)) {
    case 32:
      return launch(LaunchChainedOf<32, false, T>);
    case 64:
      return launch(warpgroups ? LaunchChainedOf<64, true, T> : LaunchChainedOf<64, false, T>);
    case 128:
      return launch(warpgroups ? LaunchChainedOf<128, true, T> : LaunchChainedOf<128, false, T>);
    case 256:
      return launch(LaunchChainedOf<256, false, T>);
    default:
      return cudaErrorInvalidValue;
  }
}

// `tokens`: of a block, as for the kernel.
template <typename T>
cudaError_t LaunchF32(const SsdParams& p, const SequenceRows* sequences, int64_t count, int tokens,
                      cudaStream_t stream) {
  const int64_t slices = (p.head_dim + kF32Width - 1) / kF32Width;
  const dim3 grid(static_cast<unsigned>(p.heads * slices), static_cast<unsigned>(count));
  return Launch(F32Kernel<T>, grid, dim3(kF32Threads), F32SharedBytes(tokens, p.state_size), stream,
                p, sequences, static_cast<int>(slices), tokens);
}

}  // namespace mneme::ssd

#endif  // MNEME_KERNELS_CUDA_SSD_KERNELS_CUH_
