// The state space recurrence over many tokens by Hopper's warpgroup products (sm_90a): states of 64
// and 128, rows that may be read 16 bytes at a time. The formulas are in ssd_kernels.cuh.
//
// A warpgroup walks through a run of tokens for one unit (64 columns of a head's width), 64 tokens
// (a tile) at a time, with the state in registers and, as bf16, in shared memory. The warpgroups of
// a thread block have neighbouring units of one sequence, so B and C come once for all of them; a
// warpgroup more brings tiles into a ring of stages and computes the decays. Of C B^T, decays and
// the product with x nothing leaves the registers.
//
// The states before later runs of a sequence are computed first, by StatesKernel, so that all runs
// go side by side. A state is the same chain of additions, tile by tile, wherever it is computed:
// neither how a sequence is cut into runs nor into calls, at a multiple of kTile rows, changes a
// bit.

#ifndef MNEME_KERNELS_CUDA_SSD_WALK_KERNELS_CUH_
#define MNEME_KERNELS_CUDA_SSD_WALK_KERNELS_CUH_

#include <cstdint>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/ring_place.cuh"
#include "kernels/cuda/ssd_decays.cuh"
#include "kernels/cuda/ssd_kernels.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/ops.h"

namespace mneme::ssd {

constexpr int kTile = 64;
constexpr int kWarpgroup = 128;  // threads

// Rows of one sequence that one warpgroup goes through for a unit, and the states [H, N, P] of the
// sequence before and after them.
struct Run {
  const float* before;
  float* after;  // may be `before`; null: not wanted
  int64_t first_row;
  int32_t rows;
};

// The tiles of one sequence of which StatesKernel computes the states: before tile 0, `run_tiles`,
// 2 run_tiles .., one after the other from `states` on.
struct StateChain {
  const float* before;  // [H, N, P]
  float* states;        // [run_count, H, N, P]
  int64_t first_row;
  int32_t run_tiles;
  int32_t run_count;  // at least 1; all but the last are whole
};

__device__ __forceinline__ const __nv_bfloat16* Rows(const void* matrix, int64_t row,
                                                     int64_t stride) {
  return static_cast<const __nv_bfloat16*>(matrix) + row * stride;
}

// A matrix of bf16 in shared memory, 64 rows of 64 columns (128 bytes), the groups of eight columns
// exchanged among eight rows as Hopper's products want it. Places are bytes from the beginning of
// the block's shared memory, of a panel a multiple of 1024.
constexpr uint32_t kPanelBytes = kTile * 128;

// `column`: a multiple of 8.
__device__ __forceinline__ uint32_t PanelPlace(uint32_t panel, int row, int column) {
  return panel + static_cast<uint32_t>(row * 128 + ((column * 2) ^ (row % 8 * 16)));
}
// Starts to copy a panel of a matrix, zeros from `rows` on, with a warp.
__device__ __forceinline__ void CopyPanel(uint32_t panel, const __nv_bfloat16* from, int64_t stride,
                                          int rows) {
  const int lane = static_cast<int>(threadIdx.x) % 32, column = lane % 8 * 8, first = lane / 8;
  if (rows == kTile) {
    const __nv_bfloat16* const lane_from = from + first * stride + column;
    // Rows 4 apart take turns at two places of their eight.
    const uint32_t even = PanelPlace(panel, first, column);
    const uint32_t odd = PanelPlace(panel, first + 4, column);
#pragma unroll 8
    for (int step = 0; step < kTile / 4; ++step) {
      const uint32_t place = (step % 2 == 0 ? even : odd) + step / 2 * 8 * 128;
      CopyAsync16(SharedAt<void>(place), lane_from + step * 4 * stride);
    }
    return;
  }
  for (int row = first; row < kTile; row += 4) {
    const bool valid = row < rows;
    CopyAsync16(SharedAt<void>(PanelPlace(panel, row, column)),
                from + (valid ? row : 0) * stride + column, valid);
  }
}

// Before a warp that has copied ends: its copies must not outlive it.
__device__ __forceinline__ void AwaitCopies() {
  CopyAsyncCommit();
  CopyAsyncWait<0>();
}

// What a stage of the ring has, kPanels panels and the decays of kUnits units, behind it the
// barriers: `full` and `empty` of each stage.
template <int kStages, int kPanels, int kUnits>
struct Ring {
  static constexpr uint32_t kDecayBytes = 4 * (kDecayArrays - 1) * kTile;  // all but `out`
  static constexpr uint32_t kDecaysAt = kStages * kPanels * kPanelBytes;
  static constexpr uint32_t kBarriersAt = kDecaysAt + kStages * kUnits * kDecayBytes;
  static constexpr uint32_t kBytes = kBarriersAt + kStages * 2 * 8;

  uint32_t first;  // a multiple of 1024

  __device__ __forceinline__ uint32_t Panel(int stage, int panel) const {
    return first + static_cast<uint32_t>(stage * kPanels + panel) * kPanelBytes;
  }
  __device__ __forceinline__ Decays DecaysOf(int stage, int unit) const {
    return Decays(SharedAt<float>(first + kDecaysAt +
                                  static_cast<uint32_t>(stage * kUnits + unit) * kDecayBytes),
                  kTile);
  }
  __device__ __forceinline__ uint64_t* Full(int stage) const {
    return SharedAt<uint64_t>(first + kBarriersAt) + stage;
  }
  __device__ __forceinline__ uint64_t* Empty(int stage) const { return Full(stage) + kStages; }
};

#ifdef MNEME_HAS_WGMMA
// Of a ring that `units` warpgroups read and `copying` warps fill, with decays one of each unit; by
// one thread, a barrier of the block afterwards.
template <int kStages, int kPanels, int kUnits>
__device__ __forceinline__ void InitPhases(const Ring<kStages, kPanels, kUnits>& ring, int units,
                                           int copying) {
  for (int stage = 0; stage < kStages; ++stage) {
    PhaseInit(ring.Full(stage), copying * 32 + units);
    PhaseInit(ring.Empty(stage), units * (kWarpgroup / 32));
  }
}

// The panel as an operand, from its first row and column on.
__device__ __forceinline__ uint64_t PanelOperand(uint32_t panel) {
  return WgmmaSwappedDescriptor(SharedAt<void>(panel));
}

// What the 64 tokens of a tile add to 64 rows of the state (16 a warp), by a warpgroup: B, weighted
// by the decay to the tile's end, times x. Commits; `added` and `weighted` belong to the product
// until it has been waited for.
struct StateProduct {
  uint32_t weighted[kTile / 16][4];

  __device__ __forceinline__ void Weigh(uint32_t b_panel, const Decays& decays) {
    const int lane = Opaque(static_cast<int>(threadIdx.x) % 32), t = lane % 4;
    const int warp = static_cast<int>(threadIdx.x) % kWarpgroup / 32;
    const uint32_t place =
        PanelPlace(b_panel, lane / 16 * 8 + lane % 8, warp * 16 + lane / 8 % 2 * 8);
    const TwoFloats last(decays.high[kTile - 1], decays.low[kTile - 1]);
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) {
      uint32_t b[4];  // (n, token): B transposed
      LoadMatrix4Transposed(b, SharedAt<void>(place + static_cast<uint32_t>(s) * 16 * 128));
      // The decay to the end of the 16 tokens, then that from there on.
      const TwoFloats end(decays.high[s * 16 + 15], decays.low[s * 16 + 15]);
      const float further = Exp(last.Minus(end));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 near =
            *reinterpret_cast<const float2*>(decays.near + s * 16 + half * 8 + t * 2);
        const float2 weight = {near.x * further, near.y * further};
#pragma unroll
        for (int r = half * 2; r < half * 2 + 2; ++r) {
          weighted[s][r] = PackBf16(__uint_as_float(b[r] << 16) * weight.x,
                                    __uint_as_float(b[r] & 0xffff0000u) * weight.y);
        }
      }
    }
  }
  // After WgmmaFence.
  __device__ __forceinline__ void Start(float (&added)[8][4], uint32_t x_panel) const {
    const uint64_t x = PanelOperand(x_panel);
    WgmmaRows<true>(added, weighted[0], x);
#pragma unroll
    for (int s = 1; s < kTile / 16; ++s) {
      WgmmaRows<false>(added, weighted[s], WgmmaAdvance(x, s * 16 * 128));
    }
    WgmmaCommit();
  }
  // Behind the wait for the product.
  __device__ __forceinline__ void Keep() const {
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) KeepRegisters(weighted[s]);
  }
};
#endif  // MNEME_HAS_WGMMA

// Where a lane's part of 64 rows of the state [H, N, P] begins: rows g and g + 8 of the warp's 16,
// columns 2t and 2t + 1 of each eight.
__device__ __forceinline__ int64_t StatePlace(const SsdParams& p, int unit, int slices, int row) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) % kWarpgroup / 32;
  const int64_t n = row + warp * 16 + lane / 4;
  return (unit / slices * p.state_size + n) * p.head_dim +
         static_cast<int64_t>(unit % slices) * kWidth + lane % 4 * 2;
}
__device__ __forceinline__ void LoadState(float (&state)[8][4], const float* from, int64_t P) {
#pragma unroll
  for (int q = 0; q < 8; ++q) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      state[q][e] = from[e * 4 * P + q * 8];
      state[q][e + 1] = from[e * 4 * P + q * 8 + 1];
    }
  }
}
__device__ __forceinline__ void StoreState(float* to, const float (&state)[8][4], int64_t P) {
#pragma unroll
  for (int q = 0; q < 8; ++q) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      to[e * 4 * P + q * 8] = state[q][e];
      to[e * 4 * P + q * 8 + 1] = state[q][e + 1];
    }
  }
}

// state = state * whole + added.
__device__ __forceinline__ void Advance(float (&state)[8][4], float whole,
                                        const float (&added)[8][4]) {
#pragma unroll
  for (int q = 0; q < 8; ++q) {
#pragma unroll
    for (int e = 0; e < 4; ++e) state[q][e] = fmaf(state[q][e], whole, added[q][e]);
  }
}

// Where a lane writes (reads) of a warp's 16 rows of a panel by StoreMatrix4 (LoadMatrix4): matrix
// m holds rows 8 (m % 2) .. and the eight columns m / 2 of a pair; pair q / 2 is at place ^ (q *
// 16).
__device__ __forceinline__ uint32_t PairPlace(uint32_t panel) {
  const int lane = Opaque(static_cast<int>(threadIdx.x) % 32);
  const int warp = static_cast<int>(threadIdx.x) % kWarpgroup / 32;
  return PanelPlace(panel, warp * 16 + lane / 8 % 2 * 8 + lane % 8, lane / 16 * 8);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// 64 rows of the state as bf16 into a panel.
__device__ __forceinline__ void HoldState(uint32_t panel, const float (&state)[8][4]) {
  const uint32_t place = PairPlace(panel);
#pragma unroll
  for (int q = 0; q < 8; q += 2) {
    const uint32_t pair[4] = {
        PackBf16(state[q][0], state[q][1]), PackBf16(state[q][2], state[q][3]),
        PackBf16(state[q + 1][0], state[q + 1][1]), PackBf16(state[q + 1][2], state[q + 1][3])};
    StoreMatrix4(SharedAt<void>(place ^ static_cast<uint32_t>(q * 16)), pair);
  }
}
#endif

// The operand of M x for 16 rows and the 16 tokens from `token` on, of their C B^T; rows i0 = g and
// i0 + 8 of them have the sums of logarithms given. The tokens lie before the rows or, `diagonal`,
// are the rows' own; then M has `skip` added on its diagonal, so that D x comes with M x.
__device__ __forceinline__ void Mix(uint32_t (&a)[4], const float (&left)[4],
                                    const float (&right)[4], const Decays& decays, int token,
                                    int i0, const TwoFloats& sum0, const TwoFloats& sum1,
                                    bool diagonal, float skip) {
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
      const auto kept = [&](float m, int column, int row) {
        return column < row ? m : column == row ? m + skip : 0.0f;
      };
      a[half * 2] = PackBf16(kept(m00, j, i0), kept(m01, j + 1, i0));
      a[half * 2 + 1] = PackBf16(kept(m10, j, i1), kept(m11, j + 1, i1));
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

// ---- the walk ----------------------------------------------------------------------------------

// kGated: with SsdParams::gate.
template <int kN, bool kGated>
struct Walk {
  static constexpr int kHalves = kN / 64;          // of the state's rows
  static constexpr int kUnits = kN == 64 ? 3 : 2;  // of a thread block: warpgroups
  static constexpr int kThreads = kWarpgroup * (kUnits + 1);
  static constexpr int kBcWarps = kWarpgroup / 32 - kUnits;  // that copy B and C
  static constexpr int kRegisters = kN == 64 ? 152 : 216;    // of a thread of theirs
  static constexpr int kRegistersElse = kN == 64 ? 56 : 72;
  static constexpr int kStages = kN == 128 && kGated ? 2 : 3;
  // Panels: B, C, of each unit x, and of each unit z.
  using Stages = Ring<kStages, 2 * kHalves + (kGated ? 2 : 1) * kUnits, kUnits>;
  static constexpr uint32_t kStatesBytes = kUnits * kHalves * kPanelBytes;  // as bf16
  // Panels where y waits to be stored: one of each unit, or that of z.
  static constexpr uint32_t kOutBytes = kGated ? 0 : kUnits * kPanelBytes;
  static constexpr uint32_t kWeightsAt = kStatesBytes + kOutBytes + Stages::kBytes;  // the gate's
  static constexpr int64_t kSharedBytes = kWeightsAt + (kGated ? kUnits * kWidth * 4 : 0);
};

#ifdef MNEME_HAS_WGMMA
// The loading warpgroup's part of WalkKernel. A warp for each unit copies its x and z and computes
// its decays; the others copy B and C.
template <int kN, bool kGated>
__device__ __forceinline__ void LoadTiles(const SsdParams& p, const Run& run, int first_unit,
                                          int unit_count, int slices,
                                          const typename Walk<kN, kGated>::Stages& ring) {
  using W = Walk<kN, kGated>;
  constexpr int kShared = 2 * W::kHalves / W::kBcWarps;  // panels of B and C that a warp copies
  const int warp = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) % kWarpgroup / 32, 0);
  const int u = warp - W::kBcWarps;
  if (u >= unit_count) return;
  const int unit = first_unit + max(u, 0), head = unit / slices;
  const int64_t column = static_cast<int64_t>(unit) * kWidth;  // heads' slices lie side by side
  const HeadDecay decay(p, head);
  const auto rows_from = [&](int row) { return min(max(run.rows - row, 0), kTile); };
  float dt[kTile / 32], dt_next[kTile / 32];
  if (u >= 0) LoadDt(dt, p, run.first_row, rows_from(0), head);
  RingPlace<W::kStages> step;
  for (int first = 0; first < run.rows; first += kTile, step.Next()) {
    const int rows = rows_from(first);
    const int64_t row = run.first_row + first;
    const __nv_bfloat16* const xbc = Rows(p.xbc, row, p.xbc_stride);
    PhaseWait(ring.Empty(step.stage), step.parity ^ 1);
    if (u < 0) {
#pragma unroll 1
      for (int panel = warp * kShared; panel < (warp + 1) * kShared;
           ++panel) {  // B, C side by side
        CopyPanel(ring.Panel(step.stage, panel), xbc + p.heads * p.head_dim + panel * 64,
                  p.xbc_stride, rows);
      }
      PhaseArriveAfterCopies(ring.Full(step.stage));
      continue;
    }
    const int panel = 2 * W::kHalves + u;
    CopyPanel(ring.Panel(step.stage, panel), xbc + column, p.xbc_stride, rows);
    if constexpr (kGated) {
      CopyPanel(ring.Panel(step.stage, panel + W::kUnits),
                Rows(p.gate.z, row, p.gate.z_stride) + column, p.gate.z_stride, rows);
    }
    PhaseArriveAfterCopies(ring.Full(step.stage));
    LoadDt(dt_next, p, row + kTile, rows_from(first + kTile), head);
    ComputeDecays<kTile / 32, false>(dt, decay, rows, kTile, ring.DecaysOf(step.stage, u));
    __syncwarp();
    if (threadIdx.x % 32 == 0) PhaseArrive(ring.Full(step.stage));
#pragma unroll
    for (int e = 0; e < kTile / 32; ++e) dt[e] = dt_next[e];
  }
  AwaitCopies();
}

// Starts C B^T and C S, of which the first commits first.
template <int kN>
__device__ __forceinline__ void StartProducts(float (&products)[8][4], float (&y)[8][4],
                                              uint32_t b_panel, uint32_t c_panel,
                                              uint32_t state_panel) {
  const uint64_t c = PanelOperand(c_panel), b = PanelOperand(b_panel);
  const uint64_t state = PanelOperand(state_panel);
  WgmmaFence();
  WgmmaSwapped<true, false>(products, c, b);
#pragma unroll
  for (int s = 1; s < kN / 16; ++s) {
    const int further = s / 4 * static_cast<int>(kPanelBytes) + s % 4 * 32;
    WgmmaSwapped<false, false>(products, WgmmaAdvance(c, further), WgmmaAdvance(b, further));
  }
  WgmmaCommit();
  WgmmaSwapped<true, true>(y, c, state);
#pragma unroll
  for (int s = 1; s < kN / 16; ++s) {
    const int further = s / 4 * static_cast<int>(kPanelBytes) + s % 4 * 32;
    WgmmaSwapped<false, true>(y, WgmmaAdvance(c, further), WgmmaAdvance(state, s * 16 * 128));
  }
  WgmmaCommit();
}

// y of a warp's 16 rows of a tile, and with kGated that gated, as bf16 into a panel, which may be
// z's. `weight`: of the gate, for the unit's columns, in shared memory; `squares`: of the unit and
// the tile's first row; rows from `rows` on have none.
template <bool kGated>
__device__ __forceinline__ void FinishTile(uint32_t out_panel, const float (&y)[8][4],
                                           uint32_t z_panel, const float* weight, float* squares,
                                           int64_t squares_stride, int rows) {
  const uint32_t place = PairPlace(0);
  const int t = static_cast<int>(threadIdx.x) % 4;
  float sums[2] = {0, 0};
#pragma unroll
  for (int q = 0; q < 8; q += 2) {
    uint32_t pair[4];  // as the matrices: rows of a half, then the next eight columns
    if constexpr (kGated) {
      LoadMatrix4(pair, SharedAt<void>(z_panel + (place ^ static_cast<uint32_t>(q * 16))));
    }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const int tile = q + m / 2, half = m % 2;
      float v0 = y[tile][half * 2], v1 = y[tile][half * 2 + 1];
      if constexpr (kGated) {
        const float z0 = __uint_as_float(pair[m] << 16),
                    z1 = __uint_as_float(pair[m] & 0xffff0000u);
        v0 *= z0 * Reciprocal(1 + Exp(-z0));
        v1 *= z1 * Reciprocal(1 + Exp(-z1));
        sums[half] = fmaf(v1, v1, fmaf(v0, v0, sums[half]));
        const float2 w = *reinterpret_cast<const float2*>(weight + tile * 8 + t * 2);
        v0 *= w.x;
        v1 *= w.y;
      }
      pair[m] = PackBf16(v0, v1);
    }
    StoreMatrix4(SharedAt<void>(out_panel + (place ^ static_cast<uint32_t>(q * 16))), pair);
  }
  if constexpr (kGated) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = sums[half];
      sum += __shfl_xor_sync(kFullWarp, sum, 1);
      sum += __shfl_xor_sync(kFullWarp, sum, 2);
      const int i = static_cast<int>(threadIdx.x) % kWarpgroup / 4;
      const int row = i / 8 * 16 + i % 8 + half * 8;
      if (t == 0 && row < rows) squares[row * squares_stride] = sum;
    }
  }
}

// The warp's 16 rows of a panel to memory; rows from `rows` on are left out.
__device__ __forceinline__ void StoreRows(__nv_bfloat16* to, int64_t stride, uint32_t panel,
                                          int rows) {
  const int lane = Opaque(static_cast<int>(threadIdx.x) % 32), column = lane % 8 * 8;
  const int first = static_cast<int>(threadIdx.x) % kWarpgroup / 32 * 16 + lane / 8;
  uint4 v[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) v[k] = *SharedAt<uint4>(PanelPlace(panel, first + k * 4, column));
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int row = first + k * 4;
    if (row < rows) *reinterpret_cast<uint4*>(to + row * stride + column) = v[k];
  }
}

// One warpgroup's part: the unit that is `u`-th of the thread block.
template <int kN, bool kGated>
__device__ __forceinline__ void WalkUnit(const SsdParams& p, const Run& run, int unit, int u,
                                         int slices,
                                         const typename Walk<kN, kGated>::Stages& ring) {
  using W = Walk<kN, kGated>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Seen to be the same in all lanes.
  const int warp = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) % kWarpgroup / 32, 0);
  const int i0 = warp * 16 + lane / 4;  // the lane's rows of a tile: i0 and i0 + 8
  const int64_t column = static_cast<int64_t>(unit) * kWidth;
  const int64_t units = p.heads * slices;
  const float skip = p.d_skip[unit / slices];
  const uint32_t held = static_cast<uint32_t>(u * W::kHalves) * kPanelBytes;  // the state as bf16

  float state[W::kHalves][8][4];
#pragma unroll
  for (int half = 0; half < W::kHalves; ++half) {
    LoadState(state[half], run.before + StatePlace(p, unit, slices, half * 64), p.head_dim);
    HoldState(held + half * kPanelBytes, state[half]);
  }
  if (kGated && threadIdx.x % kWarpgroup < kWidth) {
    const int i = static_cast<int>(threadIdx.x) % kWarpgroup;
    SharedAt<float>(W::kWeightsAt)[u * kWidth + i] = p.gate.weight[column + i];
  }
  FenceAsyncProxy();
  Barrier(1 + u, kWarpgroup);

  // Where y of a stage waits to be stored, and its way from there.
  const auto out_panel = [&](int stage) {
    return kGated ? ring.Panel(stage, 2 * W::kHalves + W::kUnits + u)
                  : W::kStatesBytes + static_cast<uint32_t>(u) * kPanelBytes;
  };
  const auto store = [&](int stage, int first, int rows) {
    __syncwarp();
    StoreRows(static_cast<__nv_bfloat16*>(static_cast<void*>(p.y)) +
                  (run.first_row + first) * p.y_stride + column,
              p.y_stride, out_panel(stage), rows);
    __syncwarp();
    if (lane == 0) PhaseArrive(ring.Empty(stage));
  };

  RingPlace<W::kStages> step;
  for (int first = 0; first < run.rows; first += kTile, step.Next()) {
    const uint32_t b_panel = ring.Panel(step.stage, 0);
    const uint32_t x_panel = ring.Panel(step.stage, 2 * W::kHalves + u);
    const Decays decays = ring.DecaysOf(step.stage, u);
    PhaseWait(ring.Full(step.stage), step.parity);
    FenceAsyncProxy();
    float products[8][4];  // C B^T
    float y[8][4];         // C S, then y
    StartProducts<kN>(products, y, b_panel, ring.Panel(step.stage, W::kHalves), held);
    // While the products are under way.
    if (first > 0) store(step.stage == 0 ? W::kStages - 1 : step.stage - 1, first - kTile, kTile);
    StateProduct product;
    product.Weigh(b_panel, decays);
    const TwoFloats sum0(decays.high[i0], decays.low[i0]);
    const TwoFloats sum1(decays.high[i0 + 8], decays.low[i0 + 8]);
    WgmmaWait<1>();
    uint32_t mixed[kTile / 16][4];
#pragma unroll
    for (int k = 0; k < kTile / 16; ++k) {
      if (k <= warp) {
        Mix(mixed[k], products[k * 2], products[k * 2 + 1], decays, k * 16, i0, sum0, sum1,
            k == warp, skip);
      } else {
        mixed[k][0] = mixed[k][1] = mixed[k][2] = mixed[k][3] = 0;
      }
    }
    WgmmaWait<0>();
    const float in0 = Exp(sum0.high), in1 = Exp(sum1.high);
#pragma unroll
    for (int q = 0; q < 8; ++q) {
      y[q][0] *= in0;
      y[q][1] *= in0;
      y[q][2] *= in1;
      y[q][3] *= in1;
    }
    float added[8][4];
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < kTile / 16; ++k) {
      WgmmaRows<false>(y, mixed[k], WgmmaAdvance(PanelOperand(x_panel), k * 16 * 128));
    }
    WgmmaCommit();
    product.Start(added, x_panel);
    WgmmaWait<1>();
#pragma unroll
    for (int k = 0; k < kTile / 16; ++k) KeepRegisters(mixed[k]);
    FinishTile<kGated>(out_panel(step.stage), y, x_panel + W::kUnits * kPanelBytes,
                       SharedAt<float>(W::kWeightsAt) + u * kWidth,
                       kGated ? p.gate.squares + (run.first_row + first) * units + unit : nullptr,
                       units, min(run.rows - first, kTile));
    const float whole = Exp(decays.high[kTile - 1]);
    WgmmaWait<0>();
    product.Keep();
    Barrier(1 + u, kWarpgroup);  // all have read the state that was held
    Advance(state[0], whole, added);
    HoldState(held, state[0]);
    if constexpr (W::kHalves == 2) {
      product.Weigh(b_panel + kPanelBytes, decays);
      WgmmaFence();
      product.Start(added, x_panel);
      WgmmaWait<0>();
      product.Keep();
      Advance(state[1], whole, added);
      HoldState(held + kPanelBytes, state[1]);
    }
    FenceAsyncProxy();
    Barrier(1 + u, kWarpgroup);  // the new one is held
  }
  const int last = (run.rows - 1) / kTile * kTile;
  store(last / kTile % W::kStages, last, run.rows - last);
  if (run.after == nullptr) return;
#pragma unroll
  for (int half = 0; half < W::kHalves; ++half) {
    StoreState(run.after + StatePlace(p, unit, slices, half * 64), state[half], p.head_dim);
  }
}
#endif  // MNEME_HAS_WGMMA

// Grid: groups of Walk::kUnits units * runs; Walk::kThreads threads, kSharedBytes of shared memory.
// Unit: head * slices + slice of 64 columns. kN: the state's size. Rows of x, B, C, y and z are
// bf16 and begin at 16 bytes.
template <int kN, bool kGated>
__global__ void __launch_bounds__(Walk<kN, kGated>::kThreads, 1)
    WalkKernel(SsdParams p, const Run* __restrict__ runs, int slices) {
#ifdef MNEME_HAS_WGMMA
  using W = Walk<kN, kGated>;
  const int units = static_cast<int>(p.heads) * slices;
  const int groups = (units + W::kUnits - 1) / W::kUnits;
  const Run run = runs[static_cast<int>(blockIdx.x) / groups];
  const int first_unit = static_cast<int>(blockIdx.x) % groups * W::kUnits;
  const int unit_count = min(W::kUnits, units - first_unit);
  constexpr typename W::Stages ring{W::kStatesBytes + W::kOutBytes};
  if (threadIdx.x == 0) InitPhases(ring, unit_count, W::kBcWarps + unit_count);
  __syncthreads();
  const int warpgroup = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
  if (warpgroup == W::kUnits) {
    GiveRegisters<W::kRegistersElse>();
    LoadTiles<kN, kGated>(p, run, first_unit, unit_count, slices, ring);
  } else {
    TakeRegisters<W::kRegisters>();
    if (warpgroup < unit_count) {
      WalkUnit<kN, kGated>(p, run, first_unit + warpgroup, warpgroup, slices, ring);
    }
  }
#else
  __trap();
#endif
}

// ---- states before runs ------------------------------------------------------------------------

struct StatesWalk {
  static constexpr int kThreads = 2 * kWarpgroup;
  static constexpr int kStages = 4;
  using Stages = Ring<kStages, 2, 1>;  // panels: B, x
  static constexpr int64_t kSharedBytes = Stages::kBytes;
};

#ifdef MNEME_HAS_WGMMA
// The loading warpgroup's part of StatesKernel: its first warp copies B, the others, in turn, copy
// x and compute the decays of a tile.
__device__ __forceinline__ void LoadStateTiles(const SsdParams& p, const StateChain& chain,
                                               int tiles, int unit, int slices, int first_n,
                                               const StatesWalk::Stages& ring) {
  const int warp = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) % kWarpgroup / 32, 0);
  constexpr int kTurns = kWarpgroup / 32 - 1;
  const int head = unit / slices;
  const HeadDecay decay(p, head);
  RingPlace<StatesWalk::kStages> step;
  for (int tile = 0; tile < tiles; ++tile, step.Next()) {
    if (warp > 0 && tile % kTurns != warp - 1) continue;
    const int64_t row = chain.first_row + int64_t{tile} * kTile;
    const __nv_bfloat16* const xbc = Rows(p.xbc, row, p.xbc_stride);
    if (warp == 0) {
      PhaseWait(ring.Empty(step.stage), step.parity ^ 1);
      CopyPanel(ring.Panel(step.stage, 0), xbc + p.heads * p.head_dim + first_n, p.xbc_stride,
                kTile);
      PhaseArriveAfterCopies(ring.Full(step.stage));
      continue;
    }
    float dt[kTile / 32];
    LoadDt(dt, p, row, kTile, head);
    PhaseWait(ring.Empty(step.stage), step.parity ^ 1);
    CopyPanel(ring.Panel(step.stage, 1), xbc + static_cast<int64_t>(unit) * kWidth, p.xbc_stride,
              kTile);
    PhaseArriveAfterCopies(ring.Full(step.stage));
    ComputeDecays<kTile / 32, false>(dt, decay, kTile, kTile, ring.DecaysOf(step.stage, 0));
    __syncwarp();
    if (threadIdx.x % 32 == 0) PhaseArrive(ring.Full(step.stage));
  }
  AwaitCopies();
}

// The other one's: 64 rows of the state of a unit, from `first_n` on.
__device__ __forceinline__ void WalkStates(const SsdParams& p, const StateChain& chain, int tiles,
                                           int unit, int slices, int first_n,
                                           const StatesWalk::Stages& ring) {
  const int64_t place = StatePlace(p, unit, slices, first_n);
  float* to = chain.states + place;
  float state[8][4], added[8][4];
  LoadState(state, chain.before + place, p.head_dim);
  StoreState(to, state, p.head_dim);
  RingPlace<StatesWalk::kStages> step;
  StateProduct product;
  const auto prepare = [&] {
    PhaseWait(ring.Full(step.stage), step.parity);
    FenceAsyncProxy();
    product.Weigh(ring.Panel(step.stage, 0), ring.DecaysOf(step.stage, 0));
  };
  prepare();
  for (int tile = 0, of_run = 0; tile < tiles; ++tile) {
    const int stage = step.stage;
    WgmmaFence();
    product.Start(added, ring.Panel(stage, 1));
    const float whole = Exp(ring.DecaysOf(stage, 0).high[kTile - 1]);
    step.Next();
    // The product reads `weighted` from registers until it is done: the next tile's must not be
    // computed before, or the compiler may give them the same registers.
    WgmmaWait<0>();
    product.Keep();
    __syncwarp();
    if (threadIdx.x % 32 == 0) PhaseArrive(ring.Empty(stage));
    if (tile + 1 < tiles) prepare();
    Advance(state, whole, added);
    if (++of_run == chain.run_tiles) {
      of_run = 0;
      to += p.heads * p.state_size * p.head_dim;
      StoreState(to, state, p.head_dim);
    }
  }
}
#endif  // MNEME_HAS_WGMMA

// Grid: units * N / 64 * chains; StatesWalk::kThreads threads, kSharedBytes of shared memory.
__global__ void __launch_bounds__(StatesWalk::kThreads)
    StatesKernel(SsdParams p, const StateChain* __restrict__ chains, int slices) {
#ifdef MNEME_HAS_WGMMA
  const int halves = static_cast<int>(p.state_size) / 64;
  const int parts = static_cast<int>(p.heads) * slices * halves;
  const StateChain chain = chains[static_cast<int>(blockIdx.x) / parts];
  const int unit = static_cast<int>(blockIdx.x) % parts / halves;
  const int first_n = static_cast<int>(blockIdx.x) % halves * 64;
  const int tiles = chain.run_tiles * (chain.run_count - 1);
  constexpr StatesWalk::Stages ring{0};
  if (threadIdx.x == 0) InitPhases(ring, 1, 2);
  __syncthreads();
  if (__shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) / kWarpgroup, 0) == 0) {
    WalkStates(p, chain, tiles, unit, slices, first_n, ring);
  } else {
    LoadStateTiles(p, chain, tiles, unit, slices, first_n, ring);
  }
#else
  __trap();
#endif
}

// ---- on the host -------------------------------------------------------------------------------

// Whether the walk takes these operands.
inline bool Walks(const SsdParams& p) {
  const auto wide = [](const void* rows, int64_t stride) {
    return reinterpret_cast<uintptr_t>(rows) % 16 == 0 && stride % 8 == 0;
  };
  return p.io_dtype == DType::kBf16 && (p.state_size == 64 || p.state_size == 128) &&
         p.head_dim % kWidth == 0 && wide(p.xbc, p.xbc_stride) && wide(p.y, p.y_stride) &&
         (p.gate.z == nullptr || wide(p.gate.z, p.gate.z_stride));
}

// Units that one thread block of the walk has.
constexpr int WalkUnits(int64_t state_size) {
  return state_size == 64 ? Walk<64, false>::kUnits : Walk<128, false>::kUnits;
}

template <int kN, bool kGated>
cudaError_t LaunchWalkOf(const SsdParams& p, const Run* runs, int64_t run_count,
                         cudaStream_t stream) {
  using W = Walk<kN, kGated>;
  const int64_t slices = p.head_dim / kWidth, units = p.heads * slices;
  return Launch(WalkKernel<kN, kGated>,
                dim3(static_cast<unsigned>((units + W::kUnits - 1) / W::kUnits * run_count)),
                dim3(W::kThreads), W::kSharedBytes, stream, p, runs, static_cast<int>(slices));
}

// Runs may be of any sequences, in any order.
inline cudaError_t LaunchWalk(const SsdParams& p, const Run* runs, int64_t run_count,
                              cudaStream_t stream) {
  if (p.gate.z == nullptr) {
    return p.state_size == 64 ? LaunchWalkOf<64, false>(p, runs, run_count, stream)
                              : LaunchWalkOf<128, false>(p, runs, run_count, stream);
  }
  return p.state_size == 64 ? LaunchWalkOf<64, true>(p, runs, run_count, stream)
                            : LaunchWalkOf<128, true>(p, runs, run_count, stream);
}

inline cudaError_t LaunchStates(const SsdParams& p, const StateChain* chains, int64_t chain_count,
                                cudaStream_t stream) {
  const int64_t slices = p.head_dim / kWidth;
  const int64_t grid = chain_count * p.heads * slices * (p.state_size / 64);
  return Launch(StatesKernel, dim3(static_cast<unsigned>(grid)), dim3(StatesWalk::kThreads),
                StatesWalk::kSharedBytes, stream, p, chains, static_cast<int>(slices));
}

}  // namespace mneme::ssd

#endif  // MNEME_KERNELS_CUDA_SSD_WALK_KERNELS_CUH_
