// Rows of stored weights and products with them, in double precision.

#ifndef MNEME_TESTS_REFERENCE_MATMUL_REFERENCE_H_
#define MNEME_TESTS_REFERENCE_MATMUL_REFERENCE_H_

#include <vector>

#include "kernels/packed_weight.h"

namespace mneme {

// A stored matrix as its values, [rows, cols].
inline std::vector<double> WeightReference(const WeightSource& w) {
  std::vector<double> values;
  for (int64_t i = 0; i < w.rows * w.cols; ++i) {
    switch (w.dtype) {
      case DType::kI8:
        values.push_back(double{static_cast<double>(static_cast<const int8_t*>(w.data)[i])} *
                         w.scale[i / w.cols]);
        break;
      case DType::kBf16:
        values.push_back(Bf16ToFloat(static_cast<const Bf16*>(w.data)[i]));
        break;
      default:
        values.push_back(static_cast<const float*>(w.data)[i]);
    }
  }
  return values;
}

// a [m, k] * b [n, k] transposed -> [m, n].
inline std::vector<double> MatmulReference(const std::vector<double>& a,
                                           const std::vector<double>& b, int64_t m, int64_t n,
                                           int64_t k) {
  std::vector<double> out(m * n, 0.0);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t l = 0; l < k; ++l) out[i * n + j] += a[i * k + l] * b[j * k + l];
    }
  }
  return out;
}

}  // namespace mneme

#endif  // MNEME_TESTS_REFERENCE_MATMUL_REFERENCE_H_
