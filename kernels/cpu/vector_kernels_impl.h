// Bodies of the leaf loops (vector_kernels.h), compiled once per instruction set: the including
// file defines MNEME_VECTOR_KERNELS, the name of the function that returns its table.
//
// The order of every sum is fixed by the shape alone, so a row's result depends neither on the rows
// beside it nor on the number of threads.

#ifndef MNEME_KERNELS_CPU_VECTOR_KERNELS_IMPL_H_
#define MNEME_KERNELS_CPU_VECTOR_KERNELS_IMPL_H_

#include "kernels/cpu/simd.h"
#include "kernels/cpu/vector_kernels.h"

namespace mneme {
namespace {

// Tokens of one SSD block.
constexpr int64_t kSsdBlock = 64;

MNEME_INLINE float* Floats(void* p, int64_t offset) { return static_cast<float*>(p) + offset; }

#include "kernels/cpu/vector_norms.inc"

#include "kernels/cpu/vector_elementwise.inc"

#include "kernels/cpu/vector_small_matmul.inc"

#include "kernels/cpu/vector_ssd.inc"

#include "kernels/cpu/vector_chunk_encoder.inc"

#include "kernels/cpu/vector_hsa.inc"

#include "kernels/cpu/vector_look.inc"

#include "kernels/cpu/vector_lane_matmul.inc"

}  // namespace

const VectorKernels& MNEME_VECTOR_KERNELS() {
  static constexpr VectorKernels kTable = {
    .rms_norm = RmsNorm,
    .gate_norm = GateNorm,
    .head_norm = HeadNorm,
    .swiglu = SwiGlu,
    .conv_silu = ConvSilu,
    .ssd = Ssd,
    .ssd_scratch_bytes = SsdScratchBytes,
    .ssm_step = SsmStep,
    .chunk_input = ChunkInput,
    .chunk_attention = ChunkAttention,
    .chunk_attention_scratch_bytes = ChunkAttentionScratchBytes,
    .write_pages = WritePages,
    .hsa_attend = HsaAttend,
    .hsa_scratch_bytes = HsaScratchBytes,
    .chunk_look = ChunkLook,
    .chunk_look_scratch_bytes = ChunkLookScratchBytes,
    .lane_matmul = LaneMatmul,
#if defined(__AVX512VNNI__)
    .lane_matmul_bytes = LaneMatmulBytes,
    .to_bytes = ToBytes,
#else
    .lane_matmul_bytes = nullptr,
    .to_bytes = nullptr,
#endif
  };
  return kTable;
}

}  // namespace mneme

#endif  // MNEME_KERNELS_CPU_VECTOR_KERNELS_IMPL_H_
