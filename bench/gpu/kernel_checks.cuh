// What the parts of hsa_topk_bench share: a count of failed checks, rows compared with a reference
// in double precision, random numbers in device memory.

#ifndef MNEME_BENCH_GPU_KERNEL_CHECKS_CUH_
#define MNEME_BENCH_GPU_KERNEL_CHECKS_CUH_

#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "bench/gpu/gpu_measure.h"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/dtype.h"
#include "tests/reference/norm_reference.h"

namespace mneme::bench {

// Says which checks fail, and counts them.
class Checks {
 public:
  void Expect(bool ok, const std::string& what) {
    if (ok) return;
    ++failures_;
    std::printf("FAILED: %s\n", what.c_str());
  }
  int failures() const { return failures_; }

 private:
  int failures_ = 0;
};

// ||got - wanted|| / ||wanted||; a NaN or a missing write gives NaN, which passes no comparison.
class RelativeError {
 public:
  void Add(double got, double wanted) {
    error_ += (got - wanted) * (got - wanted);
    norm_ += wanted * wanted;
  }
  double value() const { return error_ == 0 ? 0 : std::sqrt(error_ / std::max(norm_, 1e-30)); }

 private:
  double error_ = 0, norm_ = 0;
};

// Rows of an output, [rows, stride] of `dtype`, of which the first `width` numbers were to be
// written.
struct RowsCompared {
  RelativeError error;
  int64_t outside = 0;  // numbers behind them that are no longer what DeviceArray::Poison left
};
inline RowsCompared CompareRows(const std::vector<unsigned char>& out, DType dtype, int64_t width,
                                int64_t stride, const std::vector<double>& wanted) {
  RowsCompared compared;
  const int64_t rows = static_cast<int64_t>(wanted.size()) / width, bytes = DTypeBytes(dtype);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < width; ++i) {
      compared.error.Add(ElementReference(out.data(), dtype, r * stride + i),
                         wanted[static_cast<size_t>(r * width + i)]);
    }
    const unsigned char* const row = out.data() + r * stride * bytes;
    for (int64_t i = width; i < stride; ++i) {
      compared.outside += std::any_of(row + i * bytes, row + (i + 1) * bytes,
                                      [](unsigned char byte) { return byte != 0xff; });
    }
  }
  return compared;
}

// Grid and block: any.
__global__ void FillNormalKernel(__nv_bfloat16* halves, float* floats, int64_t count,
                                 uint64_t seed) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const float v = Normal(seed, static_cast<uint64_t>(i));
    if (halves != nullptr) halves[i] = __float2bfloat16_rn(v);
    if (floats != nullptr) floats[i] = v;
  }
}

// Fills what is not null with numbers that are about normal, the same for the same seed.
inline void FillNormal(uint16_t* halves, float* floats, int64_t count, uint64_t seed) {
  MNEME_CUDA(Launch(FillNormalKernel, dim3(2048), dim3(256), 0, nullptr,
                    reinterpret_cast<__nv_bfloat16*>(halves), floats, count, seed));
  MNEME_CUDA(cudaDeviceSynchronize());
}

}  // namespace mneme::bench

#endif  // MNEME_BENCH_GPU_KERNEL_CHECKS_CUH_
