// RMSNorm, alone, behind a gate and per head, in double precision and as slow as it is plain.

#ifndef MNEME_TESTS_REFERENCE_NORM_REFERENCE_H_
#define MNEME_TESTS_REFERENCE_NORM_REFERENCE_H_

#include <cmath>
#include <vector>

#include "kernels/ops.h"

namespace mneme {

// Element i of f32 or bf16 data.
inline double ElementReference(const void* data, DType dtype, int64_t i) {
  return dtype == DType::kBf16 ? Bf16ToFloat(static_cast<const Bf16*>(data)[i])
                               : static_cast<const float*>(data)[i];
}

inline double SiluReference(double x) { return x / (1 + std::exp(-x)); }

// x / sqrt(mean(x^2) + eps) * weight.
inline std::vector<double> NormRowReference(std::vector<double> x, const float* weight,
                                            double eps) {
  double squares = 0;
  for (double v : x) squares += v * v;
  const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  for (size_t i = 0; i < x.size(); ++i) x[i] *= scale * weight[i];
  return x;
}

// Each of these returns the rows one after the other, without gaps.
inline std::vector<double> RmsNormReference(const RmsNormParams& p) {
  std::vector<double> out;
  for (int64_t r = 0; r < p.rows; ++r) {
    const float* in = p.in + r * p.in_stride;
    for (double v : NormRowReference({in, in + p.width}, p.weight, p.eps)) out.push_back(v);
  }
  return out;
}

inline std::vector<double> GateNormReference(const GateNormParams& p) {
  std::vector<double> out;
  for (int64_t r = 0; r < p.rows; ++r) {
    std::vector<double> gated;
    for (int64_t i = 0; i < p.width; ++i) {
      gated.push_back(ElementReference(p.y, p.in_dtype, r * p.y_stride + i) *
                      SiluReference(ElementReference(p.z, p.in_dtype, r * p.z_stride + i)));
    }
    for (double v : NormRowReference(gated, p.weight, p.eps)) out.push_back(v);
  }
  return out;
}

// A head turned to its position, whose half rows of cosines and sines these are.
inline void RotateReference(const float* cosine, const float* sine, std::vector<double>* x) {
  const size_t half = x->size() / 2;
  for (size_t i = 0; i < half; ++i) {
    const double a = (*x)[i], b = (*x)[half + i];
    (*x)[i] = a * cosine[i] - b * sine[i];
    (*x)[half + i] = b * cosine[i] + a * sine[i];
  }
}

inline std::vector<double> HeadNormReference(const HeadNormParams& p) {
  std::vector<double> out;
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const float* in = p.data + r * p.stride + h * p.head_dim;
      std::vector<double> x = NormRowReference({in, in + p.head_dim}, p.weight, p.eps);
      if (p.cosine != nullptr) {
        const int64_t position = r % p.period * (p.head_dim / 2);
        RotateReference(p.cosine + position, p.sine + position, &x);
      }
      out.insert(out.end(), x.begin(), x.end());
    }
  }
  return out;
}

}  // namespace mneme

#endif  // MNEME_TESTS_REFERENCE_NORM_REFERENCE_H_
