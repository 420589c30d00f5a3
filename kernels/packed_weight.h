// A weight matrix in the form that a backend computes with.

#ifndef MNEME_KERNELS_PACKED_WEIGHT_H_
#define MNEME_KERNELS_PACKED_WEIGHT_H_

#include <cstdint>

#include "kernels/dtype.h"

namespace mneme {

// A matrix as a bundle stores it, row-major in host memory: I8 with one scale a row, BF16 or F32.
struct WeightSource {
  DType dtype = DType::kF32;
  int64_t rows = 0;  // outputs
  int64_t cols = 0;  // inputs
  const void* data = nullptr;
  const float* scale = nullptr;  // [rows], for kI8 only; need not be aligned
};

// What a matrix is packed for. More forms take more memory.
struct PackOptions {
  // Operands of Matmul on many rows: kF32 or kBf16.
  DType compute_dtype = DType::kF32;
  // Embed will read rows of it.
  bool embed = false;
  // The one part's first half are gates and the second are ups, for MatmulParams::swiglu and
  // nothing else. Where Backend::activation_dtype is kBf16, and halves are multiples of 8.
  bool swiglu = false;
};

// Immutable; thread-safe. Must not outlive the backend that made it.
class PackedWeight {
 public:
  virtual ~PackedWeight() = default;

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  // Distance of two rows of a product: rows() rounded up as the backend likes it.
  int64_t out_columns() const { return out_columns_; }
  // Element type of the other operand when many rows are multiplied.
  DType compute_dtype() const { return compute_dtype_; }
  // Gates and ups, for MatmulParams::swiglu.
  bool swiglu() const { return swiglu_; }

 protected:
  PackedWeight(int64_t rows, int64_t cols, int64_t out_columns, DType compute_dtype,
               bool swiglu = false)
      : rows_(rows),
        cols_(cols),
        out_columns_(out_columns),
        compute_dtype_(compute_dtype),
        swiglu_(swiglu) {}

 private:
  int64_t rows_;
  int64_t cols_;
  int64_t out_columns_;
  DType compute_dtype_;
  bool swiglu_;
};

}  // namespace mneme

#endif  // MNEME_KERNELS_PACKED_WEIGHT_H_
