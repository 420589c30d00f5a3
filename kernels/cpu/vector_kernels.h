// The leaf loops of the CPU backend, one table of functions for each instruction set.
//
// Each function does one thread's share of an operation; cutting the work is the caller's business
// (cpu_backend.cc). Plain data and functions without inline code: this header is also compiled for
// single instruction sets.

#ifndef MNEME_KERNELS_CPU_VECTOR_KERNELS_H_
#define MNEME_KERNELS_CPU_VECTOR_KERNELS_H_

#include <stdint.h>

#include "kernels/ops.h"

namespace mneme {

// A weight matrix laid out for few rows: outputs in blocks of 16 lanes (the last one padded with
// zeros).
//   kI8:   [rows / 16, cols / 4, 16, 4], with scale and the sum of each row's integers
//   kBf16: [rows / 16, cols, 16]
//   kF32:  [rows / 16, cols, 16]
struct LaneWeight {
  DType dtype;
  int64_t rows;
  int64_t cols;
  const void* data;
  const float* scale;      // [rows rounded up to 16], kI8 only
  const int32_t* row_sum;  // [rows rounded up to 16], kI8 only
};

struct LaneMatmulParams {
  const LaneWeight* weight;
  const float* a;  // [rows, cols]
  int64_t a_stride;
  int64_t rows;
  float* out;  // [rows, weight rows]
  int64_t out_stride;
  bool accumulate;
};

// Activations as two planes of bytes, for products with int8 weights in integer arithmetic:
// a = scale * (256 * (hi - 128) + lo), to 16 bits of the row's largest magnitude.
struct ByteRows {
  const uint8_t* hi;     // [rows, plane_stride]
  const uint8_t* lo;     // [rows, plane_stride]
  const float* scale;    // [rows]
  int64_t plane_stride;  // bytes, a multiple of 4; columns beyond cols hold 128 (hi) and 0 (lo)
};

struct VectorKernels {
  void (*rms_norm)(const RmsNormParams&, int64_t row_begin, int64_t row_end);
  void (*gate_norm)(const GateNormParams&, int64_t row_begin, int64_t row_end);
  void (*head_norm)(const HeadNormParams&, int64_t row_begin, int64_t row_end);
  void (*swiglu)(const SwiGluParams&, int64_t row_begin, int64_t row_end);
  // Rows of one sequence, counted from its first; reads its state, does not change it.
  void (*conv_silu)(const ConvSiluParams&, const SequenceRows&, int64_t row_begin, int64_t row_end);
  // All rows of one sequence for heads [head_begin, head_end). `scratch`: ssd_scratch_bytes().
  void (*ssd)(const SsdParams&, const SequenceRows&, int64_t head_begin, int64_t head_end,
              void* scratch);
  int64_t (*ssd_scratch_bytes)(const SsdParams&);
  // One row of one sequence for heads [head_begin, head_end).
  void (*ssm_step)(const SsdParams&, const SequenceRows&, int64_t head_begin, int64_t head_end);
  void (*chunk_input)(const ChunkInputParams&, int64_t chunk_begin, int64_t chunk_end);
  // One group and one head. `scratch`: chunk_attention_scratch_bytes().
  void (*chunk_attention)(const ChunkAttentionParams&, int64_t group, int64_t head, void* scratch);
  int64_t (*chunk_attention_scratch_bytes)(const ChunkAttentionParams&);
  void (*write_pages)(const WritePagesParams&, int64_t chunk_begin, int64_t chunk_end);
  // `scratch`: hsa_scratch_bytes().
  void (*hsa_attend)(const HsaAttendParams&, int64_t row_begin, int64_t row_end, void* scratch);
  int64_t (*hsa_scratch_bytes)(const HsaAttendParams&);
  // The corrected scores alone. `scratch`: chunk_look_scratch_bytes().
  void (*chunk_look)(const ChunkLookParams&, int64_t row_begin, int64_t row_end, void* scratch);
  int64_t (*chunk_look_scratch_bytes)(const ChunkLookParams&);
  // Blocks of 16 outputs [block_begin, block_end), exact products with f32 activations.
  void (*lane_matmul)(const LaneMatmulParams&, int64_t block_begin, int64_t block_end);
  // The same with activations in ByteRows and a kI8 weight; null where the instruction set has no
  // byte products.
  void (*lane_matmul_bytes)(const LaneMatmulParams&, const ByteRows&, int64_t block_begin,
                            int64_t block_end);
  // Fills one row of ByteRows; null with lane_matmul_bytes.
  void (*to_bytes)(const float* a, int64_t cols, int64_t plane_stride, uint8_t* hi, uint8_t* lo,
                   float* scale);
};

const VectorKernels& PortableVectorKernels();
#if defined(__x86_64__)
const VectorKernels& Avx2VectorKernels();
const VectorKernels& Avx512VectorKernels();
const VectorKernels& AmxVectorKernels();
#endif

}  // namespace mneme

#endif  // MNEME_KERNELS_CPU_VECTOR_KERNELS_H_
