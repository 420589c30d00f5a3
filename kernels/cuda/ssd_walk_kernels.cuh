// The state space recurrence over many tokens by Hopper's warpgroup products (sm_90a): states of 64
// and 128, rows that may be read 16 bytes at a time. The formulas are in ssd_kernels.cuh.
//
// A warpgroup walks through a run of tokens for one unit (64 columns of a head's width), 64 tokens
// (a tile) at a time, with the state in registers and, as bf16, in shared memory. The warpgroups of
// a thread block have neighbouring units of one sequence, so B and C come once for all of them; a
// warpgroup more brings tiles into a ring of stages and computes the decays. Of C B^T, decays and
// the product with x nothing leaves the registers.
//
// The states before later runs of a sequence are computed first, by StatesKernel
// (ssd_states_kernel.cuh), so that all runs go side by side. A state is the same chain of
// additions, tile by tile, wherever it is computed: neither how a sequence is cut into runs nor
// into calls, at a multiple of kTile rows, changes a bit.

#ifndef MNEME_KERNELS_CUDA_SSD_WALK_KERNELS_CUH_
#define MNEME_KERNELS_CUDA_SSD_WALK_KERNELS_CUH_

#include <cstdint>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/ring_place.cuh"
#include "kernels/cuda/ssd_decays.cuh"
#include "kernels/cuda/ssd_kernels.cuh"
#include "kernels/cuda/ssd_panels.cuh"
#include "kernels/cuda/ssd_state_tile.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/ops.h"

namespace mneme::ssd {

// Rows of one sequence that one warpgroup goes through for a unit, and the states [H, N, P] of the
// sequence before and after them.
struct Run {
  const float* before;
  float* after;  // may be `before`; null: not wanted
  int64_t first_row;
  int32_t rows;
};

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
    PhaseArriveOfWarp(ring.Full(step.stage), threadIdx.x % 32);
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
    PhaseArriveOfWarp(ring.Empty(stage), lane);
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

}  // namespace mneme::ssd

#endif  // MNEME_KERNELS_CUDA_SSD_WALK_KERNELS_CUH_
