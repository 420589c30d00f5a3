// StatesKernel: the states of a sequence before its later runs, so that the walk's runs
// (ssd_walk_kernels.cuh) go side by side. One warpgroup holds 64 rows of the state of a unit and
// goes from tile to tile; the other one brings B and x and computes the decays.

#ifndef MNEME_KERNELS_CUDA_SSD_STATES_KERNEL_CUH_
#define MNEME_KERNELS_CUDA_SSD_STATES_KERNEL_CUH_

#include <cstdint>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/ring_place.cuh"
#include "kernels/cuda/ssd_decays.cuh"
#include "kernels/cuda/ssd_kernels.cuh"
#include "kernels/cuda/ssd_panels.cuh"
#include "kernels/cuda/ssd_state_tile.cuh"
#include "kernels/ops.h"

namespace mneme::ssd {

// The tiles of one sequence of which StatesKernel computes the states: before tile 0, `run_tiles`,
// 2 run_tiles .., one after the other from `states` on.
struct StateChain {
  const float* before;  // [H, N, P]
  float* states;        // [run_count, H, N, P]
  int64_t first_row;
  int32_t run_tiles;
  int32_t run_count;  // at least 1; all but the last are whole
};

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
    PhaseArriveOfWarp(ring.Full(step.stage), threadIdx.x % 32);
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
    PhaseArriveOfWarp(ring.Empty(stage), threadIdx.x % 32);
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

inline cudaError_t LaunchStates(const SsdParams& p, const StateChain* chains, int64_t chain_count,
                                cudaStream_t stream) {
  const int64_t slices = p.head_dim / kWidth;
  const int64_t grid = chain_count * p.heads * slices * (p.state_size / 64);
  return Launch(StatesKernel, dim3(static_cast<unsigned>(grid)), dim3(StatesWalk::kThreads),
                StatesWalk::kSharedBytes, stream, p, chains, static_cast<int>(slices));
}

}  // namespace mneme::ssd

#endif  // MNEME_KERNELS_CUDA_SSD_STATES_KERNEL_CUH_
