// Tiles of a matrix product on Hopper (sm_90a): tiles of operands come from device memory by the
// tensor copy engine, which tells a barrier in shared memory when the bytes have landed, and
// warpgroups multiply them where they lie (WgmmaBf16). PTX ISA 9.0.
//
// A tile is rows of 64 bf16 (128 bytes), in groups of eight, with the engine's 128-byte swizzle:
// what WgmmaSwappedDescriptor describes, columns of k side by side in memory.

#ifndef MNEME_KERNELS_CUDA_WGMMA_TILES_CUH_
#define MNEME_KERNELS_CUDA_WGMMA_TILES_CUH_

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/hopper.cuh"

#ifdef MNEME_HAS_WGMMA

namespace mneme {

// ---- barriers in shared memory -----------------------------------------------------------------

// Makes initialized barriers visible to the copy engine, before the block's first barrier.
__device__ __forceinline__ void BarrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Arrives, and makes the phase wait for `bytes` of copies too.
__device__ __forceinline__ void BarrierExpect(uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}
// Barrier `id` of `threads` threads in whole warps: waits for all, or arrives without waiting.
__device__ __forceinline__ void NamedSync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void NamedArrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- tiles -------------------------------------------------------------------------------------

// Copies the map's box at (column, row); zeros outside the matrix. One thread calls it.
__device__ __forceinline__ void LoadTile(void* shared, const CUtensorMap* map, uint64_t* barrier,
                                         int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(SharedAddress(shared)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(column), "r"(row)
      : "memory");
}

}  // namespace mneme

#endif  // MNEME_HAS_WGMMA

#endif  // MNEME_KERNELS_CUDA_WGMMA_TILES_CUH_
