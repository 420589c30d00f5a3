// Hopper's own units (sm_90a): barriers that copies arrive at, matrix products of a warpgroup. PTX
// ISA 9.0.

#ifndef MNEME_KERNELS_CUDA_HOPPER_CUH_
#define MNEME_KERNELS_CUDA_HOPPER_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/tensor_core.cuh"

namespace mneme {

// Makes ordinary stores to shared memory (and copies of CopyAsync16) visible to the matrix units:
// between the stores and the products, in the writing thread before a barrier or in the reading one
// behind it.
__device__ __forceinline__ void FenceAsyncProxy() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MNEME_HAS_WGMMA 1

// Gives registers of this thread away, down to a number, or waits for some to be free and takes
// them; a multiple of 8. All warps of a warpgroup, in a kernel with __launch_bounds__(threads, 1).
// Registers come out of those that the block started with (the compiler's report, for each thread):
// who wants more waits for ever.
template <int kRegisters>
__device__ __forceinline__ void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- barriers in shared memory -----------------------------------------------------------------

// A phase ends with its `arrivals`-th arrival. One thread; a barrier of the block afterwards.
__device__ __forceinline__ void PhaseInit(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
}
__device__ __forceinline__ void PhaseArrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}
// One arrival for a warp, whose lanes have all come that far (__syncwarp); PhaseInit counts
// kWarpArrivals of it. racecheck follows neither a lane that speaks for its warp nor copies that
// arrive by themselves; with MNEME_RACECHECK defined every lane arrives, after its copies.
#ifdef MNEME_RACECHECK
constexpr int kWarpArrivals = 32;
#else
constexpr int kWarpArrivals = 1;
#endif
__device__ __forceinline__ void PhaseArriveOfWarp(uint64_t* barrier, int lane) {
  if (kWarpArrivals == 32 || lane == 0) PhaseArrive(barrier);
}
// Makes the phase wait for `bytes` of CopyBulk too. The thread is yet to arrive.
__device__ __forceinline__ void PhaseExpect(uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}
// Starts copying `bytes` that lie one after the other, which the barrier's phase waits for; all
// multiples of 16. What is copied is read like what other threads wrote.
__device__ __forceinline__ void CopyBulk(void* shared, const void* global, int bytes,
                                         uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(SharedAddress(shared)),
      "l"(global), "r"(bytes), "r"(SharedAddress(barrier))
      : "memory");
}
// Arrives when all copies that this thread has started are done.
__device__ __forceinline__ void PhaseArriveAfterCopies(uint64_t* barrier) {
#ifdef MNEME_RACECHECK
  asm volatile("cp.async.wait_all;" ::: "memory");
  PhaseArrive(barrier);
#else
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(SharedAddress(barrier))
               : "memory");
#endif
}
// Waits for the end of a phase: parity 0 of the first, 1 of the second, 0 of the third .. (parity 1
// of a new barrier has ended). With MNEME_SPINS_MAX defined (to find faults) a wait of more rounds
// than that fails the launch.
__device__ __forceinline__ void PhaseWait(const uint64_t* barrier, uint32_t parity) {
#ifdef MNEME_SPINS_MAX
  uint32_t ended = 0;
  for (int64_t spins = 0; ended == 0; ++spins) {
    asm volatile(
        "{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        " selp.u32 %0, 1, 0, p;\n}"
        : "=r"(ended)
        : "r"(SharedAddress(barrier)), "r"(parity)
        : "memory");
    if (spins > MNEME_SPINS_MAX) asm volatile("trap;");
  }
#else
  asm volatile(
      "{\n .reg .pred p;\n"
      "again:\n mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n @!p bra again;\n}" ::"r"(
          SharedAddress(barrier)),
      "r"(parity)
      : "memory");
#endif
}

// ---- products of a warpgroup -------------------------------------------------------------------

// B operand in shared memory without swizzle: cores of 8 columns (of B) x 8 k, 128 contiguous bytes
// (16 a column); `leading` bytes from a core to the next along k, `stride` to the next 8 columns.
__device__ __forceinline__ uint64_t WgmmaDescriptor(const void* shared, uint32_t leading,
                                                    uint32_t stride) {
  return static_cast<uint64_t>((SharedAddress(shared) & 0x3ffff) >> 4) |
         static_cast<uint64_t>(leading >> 4) << 16 | static_cast<uint64_t>(stride >> 4) << 32;
}
// A or B operand of 64 k: rows (columns of B) of 128 bytes, one after the other from a multiple of
// 1024 bytes on, 16-byte chunks of a row swapped by chunk ^ (row % 8). 16 k further: 32 bytes.
__device__ __forceinline__ uint64_t WgmmaSwappedDescriptor(const void* shared) {
  return WgmmaDescriptor(shared, 16, 1024) | uint64_t{1} << 62;
}
// The same operand `bytes` further on.
__device__ __forceinline__ uint64_t WgmmaAdvance(uint64_t descriptor, int bytes) {
  return descriptor + static_cast<uint64_t>(bytes >> 4);
}

__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// d = a b, or d += a b: 64 rows (16 a warp, fragments as in tensor_core.cuh), kColumns columns, 16
// k. Asynchronous: d must not be touched before WgmmaWait.
template <int kColumns>
__device__ __forceinline__ void WgmmaBf16(float (&d)[kColumns / 8][4], uint64_t a, uint64_t b,
                                          bool add);

#define MNEME_SUMS_1(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define MNEME_SUMS_2(j) MNEME_SUMS_1(j), MNEME_SUMS_1(j + 1)
#define MNEME_SUMS_4(j) MNEME_SUMS_2(j), MNEME_SUMS_2(j + 2)
#define MNEME_SUMS_8(j) MNEME_SUMS_4(j), MNEME_SUMS_4(j + 4)
#define MNEME_SUMS_12(j) MNEME_SUMS_8(j), MNEME_SUMS_4(j + 8)
#define MNEME_SUMS_16(j) MNEME_SUMS_8(j), MNEME_SUMS_8(j + 8)
#define MNEME_SUMS_24(j) MNEME_SUMS_16(j), MNEME_SUMS_8(j + 16)
#define MNEME_SUMS_32(j) MNEME_SUMS_16(j), MNEME_SUMS_16(j + 16)
#define MNEME_WGMMA(columns, tiles, registers, a_place, b_place, add_place)                       \
  template <>                                                                                     \
  __device__ __forceinline__ void WgmmaBf16<columns>(float(&d)[tiles][4], uint64_t a, uint64_t b, \
                                                     bool add) {                                  \
    asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, " add_place                                  \
                 ", 0;\n wgmma.mma_async.sync.aligned.m64n" #columns                              \
                 "k16.f32.bf16.bf16 {" registers "}, " a_place ", " b_place ", p, 1, 1, 0, 0;\n}" \
                 : MNEME_SUMS_##tiles(0)                                                          \
                 : "l"(a), "l"(b), "r"(add ? 1 : 0));                                             \
  }

#define MNEME_REGISTERS_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define MNEME_REGISTERS_16 \
  MNEME_REGISTERS_8        \
  ", "                     \
  "%8, %9, %10, %11, %12, %13, %14, %15"
#define MNEME_REGISTERS_32 \
  MNEME_REGISTERS_16       \
  ", "                     \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MNEME_REGISTERS_48 \
  MNEME_REGISTERS_32       \
  ", "                     \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define MNEME_REGISTERS_64                                                           \
  MNEME_REGISTERS_32                                                                 \
  ", "                                                                               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MNEME_REGISTERS_96                                                           \
  MNEME_REGISTERS_64                                                                 \
  ", "                                                                               \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define MNEME_REGISTERS_128                                                          \
  MNEME_REGISTERS_64                                                                 \
  ", "                                                                               \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, " \
  "%110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, "   \
  "%123, %124, %125, %126, %127"
MNEME_WGMMA(16, 2, MNEME_REGISTERS_8, "%8", "%9", "%10")
MNEME_WGMMA(32, 4, MNEME_REGISTERS_16, "%16", "%17", "%18")
MNEME_WGMMA(64, 8, MNEME_REGISTERS_32, "%32", "%33", "%34")
MNEME_WGMMA(96, 12, MNEME_REGISTERS_48, "%48", "%49", "%50")
MNEME_WGMMA(128, 16, MNEME_REGISTERS_64, "%64", "%65", "%66")
MNEME_WGMMA(192, 24, MNEME_REGISTERS_96, "%96", "%97", "%98")
MNEME_WGMMA(256, 32, MNEME_REGISTERS_128, "%128", "%129", "%130")
#undef MNEME_WGMMA

// The same for 64 columns with operands that WgmmaSwappedDescriptor describes; of a transposed one
// a row of 128 bytes has 64 columns of one k. kFirst: d is overwritten.
template <bool kFirst, bool kTransposedB>
__device__ __forceinline__ void WgmmaSwapped(float (&d)[8][4], uint64_t a, uint64_t b) {
  asm volatile(
      "{\n .reg .pred p;\n setp.ne.b32 p, %34, 0;\n"
      " wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" MNEME_REGISTERS_32
      "}, %32, %33, p, 1, 1, 0, %35;\n}"
      : MNEME_SUMS_8(0)
      : "l"(a), "l"(b), "n"(kFirst ? 0 : 1), "n"(kTransposedB ? 1 : 0));
}
// The same with A in registers (fragments as in tensor_core.cuh, not to be touched before WgmmaWait
// either).
template <bool kFirst, bool kTransposedB = true>
__device__ __forceinline__ void WgmmaRows(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "{\n .reg .pred p;\n setp.ne.b32 p, %37, 0;\n"
      " wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" MNEME_REGISTERS_32
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}"
      : MNEME_SUMS_8(0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kFirst ? 0 : 1),
        "n"(kTransposedB ? 1 : 0));
}
// A product reads these registers until it has been waited for: called behind the wait, it keeps
// the compiler from giving them to other values before.
__device__ __forceinline__ void KeepRegisters(const uint32_t (&a)[4]) {
  asm volatile("" ::"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]));
}
#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace mneme

#endif  // MNEME_KERNELS_CUDA_HOPPER_CUH_
