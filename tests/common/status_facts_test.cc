#include "common/status_facts.h"

#include "gtest/gtest.h"

namespace mneme {
namespace {

TEST(StatusFactsTest, AStatusCarriesTheOffsetItWasGiven) {
  EXPECT_EQ(ByteOffsetOf(WithByteOffset(absl::InvalidArgumentError("bad"), 24)), 24);
  EXPECT_EQ(ByteOffsetOf(absl::InvalidArgumentError("bad at byte 24")), std::nullopt);
  EXPECT_EQ(ByteOffsetOf(absl::OkStatus()), std::nullopt);
}

TEST(StatusFactsTest, AFullDiskIsToldFromALimit) {
  const absl::Status limit = absl::ResourceExhaustedError("limit 3");
  EXPECT_FALSE(IsStorageFull(limit));
  EXPECT_TRUE(IsStorageFull(WithStorageFull(limit)));
  EXPECT_EQ(WithStorageFull(limit).message(), limit.message());
}

TEST(StatusFactsTest, AQuotaComesBackAsItWas) {
  QuotaFact fact{"text_bytes", "tenant default", 100, 90, 20};
  const absl::Status refused = absl::ResourceExhaustedError("why");
  EXPECT_EQ(QuotaOf(WithQuota(refused, fact)), fact);
  fact.retry_after = absl::Milliseconds(1500);
  fact.is_watermark = true;
  EXPECT_EQ(QuotaOf(WithQuota(refused, fact)), fact);
  fact.free = 7;
  fact.free_needed = 9;
  EXPECT_EQ(QuotaOf(WithQuota(refused, fact)), fact);
  EXPECT_FALSE(QuotaOf(refused).has_value());
}

}  // namespace
}  // namespace mneme
