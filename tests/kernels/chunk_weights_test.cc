#include "kernels/chunk_weights.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "tests/reference/chunk_weights_reference.h"

namespace mneme {
namespace {

constexpr int kMargins[] = {0, 1, 2, 7, 64};
constexpr size_t kCounts[] = {1, 8, 33, 100};
constexpr float kAbsent = -std::numeric_limits<float>::infinity();

std::vector<float> WeightsOf(const std::vector<float>& scores, int newest_margin) {
  std::vector<float> weights(scores.size(), -1280.0f);
  ChunkWeights(scores, newest_margin, absl::MakeSpan(weights));
  return weights;
}

double SumOf(const std::vector<float>& weights) {
  return std::accumulate(weights.begin(), weights.end(), 0.0);
}

void ExpectMatchesTheReference(const std::vector<float>& scores, int newest_margin) {
  SCOPED_TRACE(testing::Message() << scores.size() << " scores, margin " << newest_margin);
  const std::vector<float> weights = WeightsOf(scores, newest_margin);
  const std::vector<double> want =
      ChunkWeightsReference({scores.begin(), scores.end()}, newest_margin);
  for (size_t i = 0; i < scores.size(); ++i) {
    // A rounding to float; logarithms of 1e4 in double lose 1e-12 beside it.
    ASSERT_NEAR(weights[i], want[i], 1e-7) << i;
    ASSERT_GE(weights[i], 0.0f) << i;
    if (scores[i] == kAbsent) {
      ASSERT_EQ(weights[i], 0.0f) << i;
    }
  }
  EXPECT_LE(SumOf(weights), 1 + 1e-6);
}

class ChunkWeightsTest : public testing::Test {
 protected:
  std::vector<float> Normal(size_t count, double deviation) {
    std::normal_distribution<float> normal(0, static_cast<float>(deviation));
    std::vector<float> scores(count);
    for (float& score : scores) score = normal(random_);
    return scores;
  }

  std::mt19937 random_{1};
};

TEST_F(ChunkWeightsTest, MatchTheProductForm) {
  for (const int margin : kMargins) {
    ExpectMatchesTheReference({0.5f, -3.0f, 20.0f, -40.0f, 100.0f, 1.0f}, margin);
    for (const size_t count : kCounts) {
      for (const double deviation : {0.1, 2.0, 10.0, 100.0}) {
        ExpectMatchesTheReference(Normal(count, deviation), margin);
      }
    }
  }
}

TEST_F(ChunkWeightsTest, ExtremeScoresMatchTheProductForm) {
  for (const int margin : kMargins) {
    for (const size_t count : kCounts) {
      for (const float all : {-1e4f, -50.0f, 0.0f, 50.0f, 1e4f}) {
        ExpectMatchesTheReference(std::vector<float>(count, all), margin);
      }
      std::vector<float> scores = Normal(count, 3);
      for (float& score : scores) score = std::copysign(1e4f, score) + score;
      ExpectMatchesTheReference(scores, margin);
    }
  }
}

TEST_F(ChunkWeightsTest, AnyFiniteScoresGiveWeights) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  for (const int margin : kMargins) {
    // Between equals the margin alone decides, however large they are.
    const double older = margin == 0 ? 0 : 1 / (1 + std::exp(margin));
    const std::vector<float> weights =
        WeightsOf({-kLargest, kLargest, -kLargest, kLargest}, margin);
    EXPECT_EQ(weights[0], 0.0f);
    EXPECT_NEAR(weights[1], 1 / (1 + older), 1e-7);
    EXPECT_EQ(weights[2], 0.0f);
    EXPECT_NEAR(weights[3], older / (1 + older), 1e-7);
    EXPECT_EQ(WeightsOf({-kLargest, -kLargest}, margin), std::vector<float>({0, 0}));
  }
}

TEST_F(ChunkWeightsTest, AnAbsentChunkTakesPartInNothing) {
  for (const int margin : kMargins) {
    for (const size_t count : kCounts) {
      const std::vector<float> scores = Normal(count, 3);
      std::vector<float> with_absent, present;
      for (const float score : scores) {
        with_absent.insert(with_absent.end(), random_() % 3, kAbsent);
        with_absent.push_back(score);
      }
      with_absent.push_back(kAbsent);
      ExpectMatchesTheReference(with_absent, margin);
      const std::vector<float> weights = WeightsOf(with_absent, margin);
      for (size_t i = 0; i < weights.size(); ++i) {
        if (with_absent[i] != kAbsent) present.push_back(weights[i]);
      }
      EXPECT_EQ(present, WeightsOf(scores, margin));
    }
    EXPECT_EQ(WeightsOf({kAbsent, kAbsent, kAbsent}, margin), std::vector<float>(3, 0.0f));
    EXPECT_TRUE(WeightsOf({}, margin).empty());
  }
}

TEST_F(ChunkWeightsTest, OneChunkIsReadByItsScore) {
  for (const int margin : kMargins) {
    EXPECT_FLOAT_EQ(WeightsOf({0.0f}, margin)[0], 0.5f);
    EXPECT_FLOAT_EQ(WeightsOf({kAbsent, 0.0f}, margin)[1], 0.5f);
    EXPECT_NEAR(WeightsOf({3.0f}, margin)[0], 1 / (1 + std::exp(-3.0)), 1e-7);
  }
}

TEST_F(ChunkWeightsTest, OfEqualScoresTheNewerIsPreferred) {
  for (const int margin : kMargins) {
    for (const size_t count : kCounts) {
      for (const float all : {-3.0f, 0.0f, 3.0f}) {
        const std::vector<float> weights = WeightsOf(std::vector<float>(count, all), margin);
        for (size_t i = 1; i < count; ++i) {
          // Until floats end.
          if (weights[i - 1] > 1e-30f) {
            EXPECT_LT(weights[i], weights[i - 1]) << i;
          }
        }
      }
    }
  }
}

TEST_F(ChunkWeightsTest, AnOlderChunkThatIsBetterByTheMarginIsPreferred) {
  for (const int margin : {1, 2, 7, 64}) {
    for (const size_t count : {2, 8, 33, 100}) {
      std::vector<float> scores = Normal(count, 2);
      const float newer = *std::max_element(scores.begin(), scores.end() - 1);
      scores.back() = newer + 2.0f * static_cast<float>(margin) + 4.01f;
      const std::vector<float> weights = WeightsOf(scores, margin);
      for (size_t i = 0; i + 1 < count; ++i) EXPECT_LT(weights[i], weights.back()) << i;
    }
  }
  // Where the stick is gone to the newer one.
  EXPECT_GT(WeightsOf({5.0f, 15.0f}, 0)[0], 0.99f);
  EXPECT_GT(WeightsOf({5.0f, 15.0f}, 2)[1], 0.99f);
}

TEST_F(ChunkWeightsTest, SumsStayBelowOne) {
  for (const int margin : {1, 2, 7, 64}) {
    for (const size_t count : kCounts) EXPECT_LT(SumOf(WeightsOf(Normal(count, 2), margin)), 1);
  }
  EXPECT_LT(SumOf(WeightsOf(Normal(8, 1), 0)), 1);
}

}  // namespace
}  // namespace mneme
