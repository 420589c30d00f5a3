#include "kernels/chunk_weights.h"

#include <cmath>

#include "common/check.h"

namespace mneme {

void StickBreakingWeights(absl::Span<const float> scores, absl::Span<float> weights) {
  MNEME_CHECK(scores.size() == weights.size());
  // log w_i = s_i - sum_{j <= i} softplus(s_j), as log sigmoid(s) = s - softplus(s) and
  // log(1 - sigmoid(s)) = -softplus(s).
  double spent = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    const double score = scores[i];
    if (score == -HUGE_VAL) {
      weights[i] = 0;
      continue;
    }
    spent += score > 0 ? score + std::log1p(std::exp(-score)) : std::log1p(std::exp(score));
    weights[i] = static_cast<float>(std::exp(score - spent));
  }
}

}  // namespace mneme
