// What the kernels of the state space recurrence for Hopper have in shared memory: panels, which
// are tiles of 64 rows of bf16 as warpgroup products want them, in a ring of stages that some warps
// fill and warpgroups read.

#ifndef MNEME_KERNELS_CUDA_SSD_PANELS_CUH_
#define MNEME_KERNELS_CUDA_SSD_PANELS_CUH_

#include <cstdint>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/ssd_decays.cuh"
#include "kernels/cuda/ssd_kernels.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace mneme::ssd {

constexpr int kTile = 64;
constexpr int kWarpgroup = 128;  // threads

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
    PhaseInit(ring.Full(stage), copying * 32 + units * kWarpArrivals);
    PhaseInit(ring.Empty(stage), units * (kWarpgroup / 32) * kWarpArrivals);
  }
}

// The panel as an operand, from its first row and column on.
__device__ __forceinline__ uint64_t PanelOperand(uint32_t panel) {
  return WgmmaSwappedDescriptor(SharedAt<void>(panel));
}
#endif  // MNEME_HAS_WGMMA

// Where a lane writes (reads) of a warp's 16 rows of a panel by StoreMatrix4 (LoadMatrix4): matrix
// m holds rows 8 (m % 2) .. and the eight columns m / 2 of a pair; pair q / 2 is at place ^ (q *
// 16).
__device__ __forceinline__ uint32_t PairPlace(uint32_t panel) {
  const int lane = Opaque(static_cast<int>(threadIdx.x) % 32);
  const int warp = static_cast<int>(threadIdx.x) % kWarpgroup / 32;
  return PanelPlace(panel, warp * 16 + lane / 8 % 2 * 8 + lane % 8, lane / 16 * 8);
}

}  // namespace mneme::ssd

#endif  // MNEME_KERNELS_CUDA_SSD_PANELS_CUH_
