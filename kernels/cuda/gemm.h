// Products of rows with a weight matrix, by kernels of our own.

#ifndef MNEME_KERNELS_CUDA_GEMM_H_
#define MNEME_KERNELS_CUDA_GEMM_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/dtype.h"
#include "kernels/ops.h"

namespace mneme {

// ConvSilu of outputs of a product with bf16 results: of outputs begin .. begin + channels - 1,
// into an output of their own.
inline constexpr int kConvTaps = 4;
inline constexpr int kConvTileRows = 64;
struct ConvTile {
  const float* before;  // [kConvTaps - 1, channels], where a sequence begins, else null
  float* after;         // the same of the rows behind it, where it ends, else null
  int64_t rows;         // of the tile's kConvTileRows, that there are
};
struct GemmConv {
  int begin = 0, channels = 0;      // multiples of 8; no channels: no convolution
  const float* weight = nullptr;    // [kConvTaps, channels]
  const float* bias = nullptr;      // [channels]
  void* out = nullptr;              // [rows, channels] bf16, aligned to 16 bytes
  int64_t out_stride = 0;           // a multiple of 8
  const ConvTile* tiles = nullptr;  // one for each kConvTileRows rows, on the device
};

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
  // Factors of rows: 1 / rms of what `a` was made of, whose squares these are (OperandNorm).
  // Null: 1.
  const float* squares = nullptr;  // [rows, square_parts]
  int64_t square_parts = 0;
  int64_t squares_stride = 0;
  int64_t norm_width = 0;
  float eps = 0;
  NextNorm next = {};  // of out; with `accumulate` only
  GemmConv conv = {};  // where WgmmaConvolves
};

// Many rows: tensor cores for bf16, plain f32 arithmetic for f32.
absl::Status LaunchGemm(const GemmParams& params, CudaStream& stream);

// The same on Hopper, for bf16 and aligned outputs.
bool CanWgmmaGemm(const GemmParams& params, const DeviceInfo& device);
absl::Status LaunchWgmmaGemm(const GemmParams& params, CudaStream& stream);
// Whether it can convolve results of such a product.
bool WgmmaConvolves(const GemmParams& params);
// Whether it serves params.next.
bool WgmmaStoresNext(const GemmParams& params);

// The product, outputs from conv_begin on through ConvSilu (`in` of which is not looked at), and
// the states of its sequences after it; where CanConvolve.
bool CanConvolve(const GemmParams& product, const ConvSiluParams& conv, int64_t conv_begin,
                 const DeviceInfo& device);
absl::Status LaunchGemmConvSilu(const GemmParams& product, const ConvSiluParams& conv,
                                int64_t conv_begin, CudaStream& stream);

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

// NextNorm of rows that are there.
absl::Status LaunchNextNorm(const float* in, int64_t stride, int64_t rows, int64_t width,
                            const NextNorm& next, CudaStream& stream);

// Rows of `width` elements into rows of `to_stride`, the rest zeros. Elements of `bytes`: 2 or 4.
absl::Status LaunchCopyRows(const void* from, int64_t from_stride, int64_t width, void* to,
                            int64_t to_stride, int64_t rows, int bytes, CudaStream& stream);

}  // namespace mneme

#endif  // MNEME_KERNELS_CUDA_GEMM_H_
