#include "kernels/chunk_weights.h"

#include <cmath>

#include <gtest/gtest.h>

namespace mneme {
namespace {

TEST(StickBreakingTest, WeightsMatchTheProductForm) {
  const float scores[] = {0.5f, -3.0f, 20.0f, -40.0f, 100.0f, 1.0f};
  float weights[6];
  StickBreakingWeights(scores, absl::MakeSpan(weights));
  double remaining = 1;
  for (int i = 0; i < 6; ++i) {
    const double gate = 1 / (1 + std::exp(-double{scores[i]}));
    EXPECT_NEAR(weights[i], gate * remaining, 1e-6) << i;
    remaining *= 1 / (1 + std::exp(double{scores[i]}));
  }
}

TEST(StickBreakingTest, AnAbsentChunkWeighsNothing) {
  const float scores[] = {-HUGE_VALF, 0.0f};
  float weights[2];
  StickBreakingWeights(scores, absl::MakeSpan(weights));
  EXPECT_EQ(weights[0], 0.0f);
  EXPECT_FLOAT_EQ(weights[1], 0.5f);
  StickBreakingWeights({}, {});
}

}  // namespace
}  // namespace mneme
