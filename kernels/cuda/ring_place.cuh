// Where somebody who fills or uses a ring of stages in shared memory stands.

#ifndef MNEME_KERNELS_CUDA_RING_PLACE_CUH_
#define MNEME_KERNELS_CUDA_RING_PLACE_CUH_

#include <cuda_runtime.h>

#include <cstdint>

namespace mneme {

// `parity` is that of the phase of the stage's barrier in which this round ends (PhaseWait).
template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void Next() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace mneme

#endif  // MNEME_KERNELS_CUDA_RING_PLACE_CUH_
