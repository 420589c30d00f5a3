// Warp-level building blocks of the attention and landmark kernels: matrix fragments, bf16 matrix
// products, asynchronous copies into shared memory. PTX ISA 9.0.
//
// Fragments of m16n8k16, g = lane / 4, t = lane % 4 (a register holds two neighbours, low half
// first):
//   A 16 x 16: a[0] (g, 2t), a[1] (g + 8, 2t), a[2] (g, 2t + 8), a[3] (g + 8, 2t + 8)
//   B 16 x 8:  b0 (2t, g), b1 (2t + 8, g)
//   C 16 x 8:  c[0], c[1] (g, 2t), (g, 2t + 1); c[2], c[3] the same of row g + 8
// m16n8k32 of int8 has the same with 4t for 2t and + 16 for + 8 along k (a register holds four
// neighbours).

#ifndef MNEME_KERNELS_CUDA_TENSOR_CORE_CUH_
#define MNEME_KERNELS_CUDA_TENSOR_CORE_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace mneme {

// The block's dynamic shared memory.
__device__ __forceinline__ unsigned char* DynamicShared() {
  extern __shared__ __align__(1024) unsigned char mneme_shared[];
  return mneme_shared;
}

__device__ __forceinline__ uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Two floats as bf16, `low` in the lower half.
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x, to about 23 bits.
__device__ __forceinline__ float Reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Silu for results that are rounded to bf16: half the instructions, as what is below 2^-119 may
// become 0.
__device__ __forceinline__ float SiluToBf16(float x) {
  constexpr float kLog2E = 1.44269504088896f;
  return x * Reciprocal(1.0f + Exp2(-kLog2E * x));
}

// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8
// (16 bytes, aligned). r[m] holds elements (g, 2t) and (g, 2t + 1) of matrix m; transposed: (2t, g)
// and (2t + 1, g).
__device__ __forceinline__ void LoadMatrix4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}
__device__ __forceinline__ void LoadMatrix4Transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// The way back of LoadMatrix4: rows of shared memory from fragments.
__device__ __forceinline__ void StoreMatrix4(void* row, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
               :
               : "r"(SharedAddress(row)), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
#endif

// d += a b.
__device__ __forceinline__ void MmaBf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d += a b in integers, exactly.
__device__ __forceinline__ void MmaInt8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Copies 16 bytes (both sides aligned to them) past the registers; writes zeros when not `valid`
// (`global` is not read then, but must be an address of global memory).
__device__ __forceinline__ void CopyAsync16(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(SharedAddress(shared)), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
// The same of 8 bytes, always.
__device__ __forceinline__ void CopyAsync8(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(SharedAddress(shared)), "l"(global)
               : "memory");
}
__device__ __forceinline__ void CopyAsyncCommit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most `kPending` of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Brings the line of device memory at `global` nearer.
__device__ __forceinline__ void PrefetchL2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

// Ordered stores and loads of words in shared memory, among the threads of a block.
__device__ __forceinline__ void StoreRelease(int* word, int value) {
  asm volatile("st.release.cta.shared.b32 [%0], %1;" ::"r"(SharedAddress(word)), "r"(value)
               : "memory");
}
__device__ __forceinline__ int LoadAcquire(const int* word) {
  int value;
  asm volatile("ld.acquire.cta.shared.b32 %0, [%1];"
               : "=r"(value)
               : "r"(SharedAddress(word))
               : "memory");
  return value;
}

// The same of words in device memory, among all threads of the device; what other lanes of the warp
// wrote before a __syncwarp is ordered with it.
__device__ __forceinline__ void StoreReleaseDevice(int* word, int value) {
  asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}
__device__ __forceinline__ int LoadAcquireDevice(const int* word) {
  int value;
  asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}

// A barrier of `threads` threads (whole warps) under the number `id`, 1 .. 15; true when `flag` is
// set in one of them.
__device__ __forceinline__ bool BarrierOr(int id, int threads, bool flag) {
  int any;
  __syncwarp();
  asm volatile(
      "{\n .reg .pred p, q;\n setp.ne.s32 p, %1, 0;\n"
      " barrier.cta.red.or.aligned.pred q, %2, %3, p;\n selp.s32 %0, 1, 0, q;\n}"
      : "=r"(any)
      : "r"(flag ? 1 : 0), "r"(id), "r"(threads)
      : "memory");
  return any != 0;
}

// The same without a flag.
__device__ __forceinline__ void Barrier(int id, int threads) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- kernels that overlap the one before (sm_90) ------------------------------------------------

// In a kernel of LaunchOverlapping: returns when the kernel before it on the stream is done and
// what it wrote can be read. Before that only memory that never changes may be read, and none
// written.
__device__ __forceinline__ void WaitForKernelBefore() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next kernel, if it is one of LaunchOverlapping, take the room that this one leaves, as
// soon as all blocks have come here or ended; behind WaitForKernelBefore (a kernel of Launch has
// none to wait for), so that no kernel runs into one two before it.
__device__ __forceinline__ void LetNextKernelStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- on the host -------------------------------------------------------------------------------

// Queues kernel(args...) with `shared_bytes` of dynamic shared memory.
template <typename... Params, typename... Values>
cudaError_t Launch(void (*kernel)(Params...), dim3 grid, dim3 block, int64_t shared_bytes,
                   cudaStream_t stream, Values... values) {
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, block, static_cast<size_t>(shared_bytes), stream>>>(values...);
  return cudaGetLastError();
}

// The same for a kernel that calls WaitForKernelBefore; it may start before the one before it is
// done if the device (sm_90) `overlaps` kernels.
template <typename... Params, typename... Values>
cudaError_t LaunchOverlapping(void (*kernel)(Params...), dim3 grid, dim3 block,
                              int64_t shared_bytes, cudaStream_t stream, bool overlaps,
                              Values... values) {
  if (!overlaps) return Launch(kernel, grid, block, shared_bytes, stream, values...);
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Params>(values)...);
  if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
  return error;
}

}  // namespace mneme

#endif  // MNEME_KERNELS_CUDA_TENSOR_CORE_CUH_
