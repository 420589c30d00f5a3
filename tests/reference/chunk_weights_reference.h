// The weights of selected chunks in the form of products, whose exponentials the range of long
// doubles holds for scores up to 1e4; what kernels/chunk_weights.h computes from logarithms.

#ifndef MNEME_TESTS_REFERENCE_CHUNK_WEIGHTS_REFERENCE_H_
#define MNEME_TESTS_REFERENCE_CHUNK_WEIGHTS_REFERENCE_H_

#include <cmath>
#include <vector>

namespace mneme {

// Of scores, most recent first. newest_margin 0: w_i = sigmoid(s_i) prod_{j<i} (1 - sigmoid(s_j)).
// Above: w_i = a_i / (1 + sum_j a_j), a_i = e^s_i prod_{j<i} 1 / (1 + e^(s_j - s_i +
// newest_margin)).
inline std::vector<double> ChunkWeightsReference(const std::vector<double>& scores,
                                                 int newest_margin) {
  const auto e = [](long double x) { return std::exp(x); };
  std::vector<double> weights;
  if (newest_margin == 0) {
    long double left = 1;
    for (const long double s : scores) {
      weights.push_back(static_cast<double>(left / (1 + e(-s))));
      left /= 1 + e(s);
    }
    return weights;
  }
  std::vector<long double> parts;
  long double whole = 1;
  for (size_t i = 0; i < scores.size(); ++i) {
    long double part = e(scores[i]);
    for (size_t j = 0; j < i && part > 0; ++j) {
      part /= 1 + e(static_cast<long double>(scores[j]) - scores[i] + newest_margin);
    }
    parts.push_back(part);
    whole += part;
  }
  for (const long double part : parts) weights.push_back(static_cast<double>(part / whole));
  return weights;
}

}  // namespace mneme

#endif  // MNEME_TESTS_REFERENCE_CHUNK_WEIGHTS_REFERENCE_H_
