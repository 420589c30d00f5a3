#include "engine/token_bucket.h"

#include <gtest/gtest.h>

namespace mneme {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1000);

TEST(TokenBucketTest, BurstGoesThroughAtOnceAndThenTheRateHolds) {
  TokenBucket bucket(/*rate=*/100, /*burst=*/50);
  EXPECT_TRUE(bucket.Open(kStart));
  bucket.Take(50, kStart);
  EXPECT_FALSE(bucket.Open(kStart));
  EXPECT_EQ(bucket.Wait(kStart), absl::Milliseconds(10));
  EXPECT_TRUE(bucket.Open(kStart + absl::Milliseconds(10)));
}

TEST(TokenBucketTest, WhatIsLargerThanTheBurstIsPaidForAfterwards) {
  TokenBucket bucket(100, 50);
  bucket.Take(250, kStart);
  EXPECT_FALSE(bucket.Open(kStart + absl::Milliseconds(1999)));
  EXPECT_TRUE(bucket.Open(kStart + absl::Milliseconds(2010)));
}

TEST(TokenBucketTest, InTheLongRunNoMoreGoesThroughThanTheRateAndTheBurst) {
  TokenBucket bucket(1000, 300);
  double taken = 0;
  absl::Time now = kStart;
  for (int i = 0; i < 10'000; ++i, now += absl::Milliseconds(1)) {
    if (!bucket.Open(now)) continue;
    bucket.Take(7, now);
    taken += 7;
  }
  // 10 s of the rate, the burst, and at most one piece beyond.
  EXPECT_LE(taken, 10'000 + 300 + 7);
  EXPECT_GE(taken, 10'000);
}

TEST(TokenBucketTest, WithoutARateItIsAlwaysOpen) {
  TokenBucket bucket(0, 1);
  bucket.Take(1e12, kStart);
  EXPECT_TRUE(bucket.Open(kStart));
  EXPECT_EQ(bucket.Wait(kStart), absl::ZeroDuration());
}

TEST(TokenBucketTest, ANewRateHoldsFromThenOn) {
  TokenBucket bucket(0, 10);
  bucket.SetRate(1, kStart);
  bucket.Take(20, kStart);
  EXPECT_FALSE(bucket.Open(kStart + absl::Seconds(9)));
  bucket.SetRate(100, kStart + absl::Seconds(9));
  EXPECT_TRUE(bucket.Open(kStart + absl::Seconds(9) + absl::Milliseconds(20)));
}

TEST(TokenBucketTest, TimeThatGoesBackIsNoTime) {
  TokenBucket bucket(100, 50);
  bucket.Take(60, kStart);
  EXPECT_FALSE(bucket.Open(kStart - absl::Hours(1)));
  EXPECT_TRUE(bucket.Open(kStart + absl::Seconds(1)));
}

}  // namespace
}  // namespace mneme
