#include "model/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

namespace mneme {
namespace {

TEST(SamplerTest, TemperatureZeroTakesTheLargest) {
  Sampler sampler({.temperature = 0, .seed = 1});
  const std::vector<float> logits = {-1, 3, 2, 3};
  for (int i = 0; i < 5; ++i) EXPECT_EQ(sampler.Next(logits), 1);
}

TEST(SamplerTest, DrawsFollowTheSoftmax) {
  constexpr int kDraws = 20000;
  Sampler sampler({.temperature = 2, .seed = 3});
  const std::vector<float> logits = {0, 2, 4, -100};
  std::map<TokenId, int> counts;
  for (int i = 0; i < kDraws; ++i) ++counts[sampler.Next(logits)];
  const double total = 1 + std::exp(1.0) + std::exp(2.0);
  EXPECT_NEAR(counts[0], kDraws / total, 300);
  EXPECT_NEAR(counts[1], kDraws * std::exp(1.0) / total, 300);
  EXPECT_NEAR(counts[2], kDraws * std::exp(2.0) / total, 300);
  EXPECT_EQ(counts[3], 0);
}

TEST(SamplerTest, NucleusLeavesOutTheTail) {
  // Probabilities 0.5, 0.3, 0.15, 0.05.
  const std::vector<float> logits = {std::log(0.05f), std::log(0.5f), std::log(0.15f),
                                     std::log(0.3f)};
  Sampler sampler({.temperature = 1, .top_p = 0.75, .seed = 5});
  for (int i = 0; i < 2000; ++i) {
    const TokenId id = sampler.Next(logits);
    EXPECT_TRUE(id == 1 || id == 3) << id;
  }
  Sampler narrow({.temperature = 1, .top_p = 1e-9, .seed = 5});
  for (int i = 0; i < 100; ++i) EXPECT_EQ(narrow.Next(logits), 1);
}

TEST(SamplerTest, SeedDecides) {
  const std::vector<float> logits(100, 0.0f);
  const auto draws = [&](uint64_t seed) {
    Sampler sampler({.temperature = 1, .seed = seed});
    std::vector<TokenId> ids;
    for (int i = 0; i < 20; ++i) ids.push_back(sampler.Next(logits));
    return ids;
  };
  EXPECT_EQ(draws(1), draws(1));
  EXPECT_NE(draws(1), draws(2));
}

}  // namespace
}  // namespace mneme
