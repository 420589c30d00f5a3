// A ring of slots in shared memory, with a pair of barriers each, between the one warp that fills
// it and the warps that use it (sm_90a).

#ifndef MNEME_KERNELS_CUDA_HSA_RING_CUH_
#define MNEME_KERNELS_CUDA_HSA_RING_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/hsa_tiles.cuh"

namespace mneme::hsa {

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

}  // namespace mneme::hsa

#endif  // MNEME_KERNELS_CUDA_HSA_RING_CUH_
