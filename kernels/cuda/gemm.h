// Products of rows with a weight matrix, by kernels of our own.

#ifndef MNEME_KERNELS_CUDA_GEMM_H_
#define MNEME_KERNELS_CUDA_GEMM_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/dtype.h"
#include "kernels/ops.h"

namespace mneme {

// out[r, n] (+)= factor[r] * scale[n] * sum_k a[r, k] * weight[n, k], sums in f32 in an order that
// the shape of the weight alone decides. Results in bf16, `tail` and `swiglu` need operands in
// bf16.
struct GemmParams {
  DType dtype = DType::kF32;  // of a and weight: kF32 or kBf16
  const void* a = nullptr;    // [rows, k], aligned to 16 bytes
  int64_t a_stride = 0;       // a multiple of 16 bytes
  int64_t rows = 0;
  const void* weight = nullptr;  // [n, k], aligned to 16 bytes; zeros in the gaps of rows
  int64_t weight_stride = 0;     // a multiple of 16 bytes
  int64_t n = 0;                 // a multiple of 8
  int64_t k = 0;                 // a multiple of 8 for kBf16
  const float* scale = nullptr;  // [n], or null: 1
  void* out = nullptr;           // [rows, n], no gaps
  DType out_dtype = DType::kF32;
  bool accumulate = false;  // kF32 only
  // With bf16 results: `tail_outputs` outputs from tail_begin on go here as f32; what `out` has of
  // them then means nothing.
  float* tail = nullptr;
  int64_t tail_begin = 0;
  int64_t tail_outputs = 0;
  int64_t tail_stride = 0;
  // Outputs are eight gates and eight ups in turn; out [rows, n / 2] bf16 = silu(gate) * up.
  bool swiglu = false;
  const float* factor = nullptr;  // [rows], or null: 1
  NextNorm next = {};             // of out; with `accumulate` only; its unscale: out may be null
};

// Many rows: tensor cores for bf16, plain f32 arithmetic for f32.
absl::Status LaunchGemm(const GemmParams& params, CudaStream& stream);

// The same on Hopper, for bf16 and aligned outputs.
bool CanWgmmaGemm(const GemmParams& params, const DeviceInfo& device);
absl::Status LaunchWgmmaGemm(const GemmParams& params, CudaStream& stream);
// Whether it serves params.next.
bool WgmmaStoresNext(const GemmParams& params);

// Few rows of f32 times a weight as stored, bound by reading the weight. What a row gives does not
// depend on how many rows there are.
struct RowProductParams {
  const float* a = nullptr;  // [rows, k]
  int64_t a_stride = 0;
  int64_t rows = 0;
  DType weight_dtype = DType::kF32;  // kI8, kBf16 or kF32
  const void* weight = nullptr;      // [n, k], aligned to 16 bytes
  int64_t weight_stride = 0;         // a multiple of 16 elements
  int64_t n = 0;
  int64_t k = 0;
  const float* scale = nullptr;  // [n], or null: 1
  float* out = nullptr;          // [rows, n]
  int64_t out_stride = 0;
  bool accumulate = false;
  // RMSNorm of the rows first, of a * silu(gate) if there is a gate; int8 weights only.
  const float* norm_weight = nullptr;  // [k], or null: none
  float norm_eps = 0;
  const float* gate = nullptr;  // [rows, k], or null
  int64_t gate_stride = 0;
};
absl::Status LaunchRowProduct(const RowProductParams& params, CudaStream& stream);

// int8 weights, on tensor cores; `Int8RowProductFits` says whether the device can (k decides).
bool Int8RowProductFits(int64_t k, const DeviceInfo& device);
absl::Status LaunchInt8RowProduct(const RowProductParams& params, CudaStream& stream);

// out[r] = row ids[r] of a stored matrix; ids outside [0, n) give zeros.
struct GatherParams {
  const int32_t* ids = nullptr;  // [rows]
  int64_t rows = 0;
  DType weight_dtype = DType::kF32;
  const void* weight = nullptr;
  int64_t weight_stride = 0;
  int64_t n = 0;
  int64_t k = 0;
  const float* scale = nullptr;  // [n], or null: 1
  float* out = nullptr;          // [rows, k]
  int64_t out_stride = 0;
  NextNorm next = {};
};
absl::Status LaunchGather(const GatherParams& params, CudaStream& stream);

// factors[r] = 1 / rms of a row of norm_width values, of which these are squares (OperandNorm).
struct RowFactorsParams {
  const float* squares = nullptr;  // [rows, parts]
  int64_t parts = 0;
  int64_t stride = 0;
  int64_t rows = 0;
  int64_t norm_width = 0;
  float eps = 0;
  float* factors = nullptr;  // [rows]
};
absl::Status LaunchRowFactors(const RowFactorsParams& params, CudaStream& stream);

// NextNorm of rows that are there.
absl::Status LaunchNextNorm(const float* in, int64_t stride, int64_t rows, int64_t width,
                            const NextNorm& next, CudaStream& stream);

// out[r, i] = scaled[r, i] * unscale[i], no gaps: rows that NextNorm left.
absl::Status LaunchUnscale(const void* scaled, const float* unscale, int64_t rows, int64_t width,
                           float* out, CudaStream& stream);

// Rows of `width` elements into rows of `to_stride`, the rest zeros. Elements of `bytes`: 2 or 4.
absl::Status LaunchCopyRows(const void* from, int64_t from_stride, int64_t width, void* to,
                            int64_t to_stride, int64_t rows, int bytes, CudaStream& stream);

}  // namespace mneme

#endif  // MNEME_KERNELS_CUDA_GEMM_H_
