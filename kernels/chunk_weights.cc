#include "kernels/chunk_weights.h"

#include <algorithm>
#include <cmath>

#include "absl/container/inlined_vector.h"
#include "common/check.h"

namespace mneme {
namespace {

// log(1 + e^x).
double Softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }

void BreakStick(absl::Span<const float> scores, absl::Span<float> weights) {
  // log w_i = s_i - sum_{j <= i} softplus(s_j), as log sigmoid(s) = s - softplus(s) and
  // log(1 - sigmoid(s)) = -softplus(s).
  double spent = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    const double score = scores[i];
    if (score == -HUGE_VAL) {
      weights[i] = 0;
      continue;
    }
    spent += Softplus(score);
    weights[i] = static_cast<float>(std::exp(score - spent));
  }
}

void PreferNewest(absl::Span<const float> scores, double margin, absl::Span<float> weights) {
  // Scores and u are less the best score, and the null option's 0 is: u of the best is then a sum
  // of softplus alone, and no margin is lost beside a large score.
  double best = 0;
  for (const float score : scores) best = std::max<double>(best, score);
  absl::InlinedVector<double, 64> u(scores.size());
  double top = -best;
  for (size_t i = 0; i < u.size(); ++i) {
    const double score = scores[i];
    u[i] = score - best;
    if (score == -HUGE_VAL) continue;
    for (size_t j = 0; j < i; ++j) u[i] -= Softplus(scores[j] - score + margin);
    top = std::max(top, u[i]);
  }
  double sum = std::exp(-best - top);
  for (double& value : u) sum += value = std::exp(value - top);
  for (size_t i = 0; i < u.size(); ++i) weights[i] = static_cast<float>(u[i] / sum);
}

}  // namespace

void ChunkWeights(absl::Span<const float> scores, int newest_margin, absl::Span<float> weights) {
  MNEME_CHECK(scores.size() == weights.size());
  if (newest_margin == 0) {
    BreakStick(scores, weights);
  } else {
    PreferNewest(scores, newest_margin, weights);
  }
}

}  // namespace mneme
