#include "client/cli/policy.h"

#include <cstdint>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

TEST(PolicyTest, QuotasTakeSuffixes) {
  EXPECT_EQ(*ParseQuota("1000"), 1000);
  EXPECT_EQ(*ParseQuota("64KiB"), 64 << 10);
  EXPECT_EQ(*ParseQuota("10GiB"), int64_t{10} << 30);
  EXPECT_EQ(*ParseQuota("2TiB"), int64_t{2} << 40);
  EXPECT_EQ(*ParseQuota("none"), 0);
}

TEST(PolicyTest, WhatIsNoQuotaIsNamed) {
  for (const char* text : {"", "0", "-1", "1GB", "GiB", "1.5GiB", "99999999999TiB", "many"}) {
    EXPECT_THAT(std::string(ParseQuota(text).status().message()), HasSubstr("is no size")) << text;
  }
}

}  // namespace
}  // namespace mneme
