// Weight matrices of the CUDA backend.
//
// Kept in up to two forms on the device, both row-major with rows padded to 16 elements: as stored
// (int8 with a scale a row, bf16 or f32), for Embed and products of few rows; and in the compute
// dtype for many rows. int8 values are exact in bf16 and in f32, so the second form holds the
// integers and the scales multiply the f32 sums: no form rounds an int8 weight. Where the stored
// dtype is the compute dtype, there is one form. Gates and ups (PackOptions::swiglu) are laid in
// turn, eight rows each, in every form.

#ifndef MNEME_KERNELS_CUDA_CUDA_WEIGHT_H_
#define MNEME_KERNELS_CUDA_CUDA_WEIGHT_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/ops.h"
#include "kernels/packed_weight.h"

namespace mneme {

// Thread-safe.
class CudaWeight : public PackedWeight {
 public:
  // `cublas_lt` may be null; it and `memory` must outlive the weight. Parts are checked already.
  // RESOURCE_EXHAUSTED without memory. The sources have been read when this returns.
  static absl::StatusOr<std::unique_ptr<CudaWeight>> Pack(absl::Span<const WeightSource> parts,
                                                          const PackOptions& options,
                                                          const CublasLt* cublas_lt,
                                                          MemoryPool& memory, CudaStream& stream);
  ~CudaWeight() override;

  absl::Status EmbedRows(const EmbedParams& params, CudaStream& stream) const;
  absl::Status Matmul(const MatmulParams& params, CudaStream& stream) const;

  // Whether Matmul per row norms its operand on the way; else it must come without a norm.
  bool takes_norm() const { return int8_products_; }
  // Whether products of many rows go through cuBLASLt.
  bool uses_cublas_lt() const { return plan_ != nullptr; }

 private:
  CudaWeight(int64_t rows, int64_t cols, DType stored_dtype, const PackOptions& options,
             const CublasLt* cublas_lt, MemoryPool& memory, const DeviceInfo& device);
  absl::Status Fill(absl::Span<const WeightSource> parts, CudaStream& stream);
  absl::Status ManyRows(const MatmulParams& params, CudaStream& stream) const;
  // Terms of a product of many rows: columns, with zeros up to whole 16-byte vectors of bf16.
  int64_t product_k() const {
    return compute_dtype() == DType::kBf16 ? RoundUpTo(cols(), 8) : cols();
  }

  const DType stored_dtype_;
  const int64_t stride_;  // of both forms, in elements
  const bool int8_products_;  // products per row are those of int8_row_product.cu
  const CublasLt* const cublas_lt_;
  MemoryPool& memory_;
  void* stored_ = nullptr;  // [out_columns, stride]
  void* dense_ = nullptr;   // [out_columns, stride]; may be stored_
  float* scale_ = nullptr;  // [out_columns], kI8 only
  std::unique_ptr<CublasLtPlan> plan_;
};

}  // namespace mneme

#endif  // MNEME_KERNELS_CUDA_CUDA_WEIGHT_H_
