// cuBLASLt, found at run time: the library is too large to ship (half a gigabyte), so the backend
// uses the one of the machine where there is one, and its own kernel (gemm.cu) where there is none
// or where cuBLASLt cannot do exactly what is asked.

#ifndef MNEME_KERNELS_CUDA_CUBLAS_LT_H_
#define MNEME_KERNELS_CUDA_CUBLAS_LT_H_

#include <cublasLt.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/gemm.h"

namespace mneme {

// One way of multiplying by one weight, the same for every number of rows, without splitting sums:
// so a row's result does not depend on the rows beside it. Immutable.
struct CublasLtPlan {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatmulAlgo_t algorithm;
  bool scaled = false;
};

// Thread-safe.
class CublasLt {
 public:
  // Null when the library is not there.
  static std::unique_ptr<CublasLt> Open();
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  std::string version() const;

  // A plan for products like this (of which `rows`, `a`, `out` and `accumulate` do not matter);
  // null when cuBLASLt has none that is exact.
  std::unique_ptr<CublasLtPlan> Plan(const GemmParams& shape) const;
  // UNIMPLEMENTED when the plan does not fit this number of rows; otherwise as the launchers.
  absl::Status Multiply(const CublasLtPlan& plan, const GemmParams& params,
                        CudaStream& stream) const;

 private:
  struct Functions;
  struct Layouts;

  CublasLt();
  cublasStatus_t MakeLayouts(const GemmParams& params, int64_t rows, Layouts* layouts) const;

  std::unique_ptr<Functions> functions_;
  cublasLtHandle_t handle_ = nullptr;
};

}  // namespace mneme

#endif  // MNEME_KERNELS_CUDA_CUBLAS_LT_H_
