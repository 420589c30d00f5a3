#include "server/error.h"

#include "absl/strings/match.h"
#include "common/status_facts.h"
#include "common/utf8.h"
#include "gtest/gtest.h"
#include "tests/server/rpc_matchers.h"

namespace mneme {
namespace {

TEST(ErrorTest, OkHasNoDetails) {
  const grpc::Status status = ToGrpcStatus(absl::OkStatus(), "GetMemory", "x");
  EXPECT_TRUE(status.ok());
  EXPECT_TRUE(status.error_details().empty());
}

TEST(ErrorTest, EveryCodeGetsAnErrorInfoWithMethodAndResource) {
  for (int code = 1; code <= 16; ++code) {
    const grpc::Status status =
        ToGrpcStatus(absl::Status(static_cast<absl::StatusCode>(code), "why"), "GetMemory", "res");
    EXPECT_EQ(static_cast<int>(status.error_code()), code);
    EXPECT_EQ(status.error_message(), "why");
    const ErrorDetails details = DetailsOf(status);
    ASSERT_TRUE(details.info.has_value()) << code;
    EXPECT_FALSE(details.info->reason().empty()) << code;
    EXPECT_EQ(details.info->domain(), "mneme");
    EXPECT_EQ(details.info->metadata().at("method"), "GetMemory");
    EXPECT_EQ(details.info->metadata().at("resource"), "res");
    const bool may_retry = code == grpc::RESOURCE_EXHAUSTED || code == grpc::UNAVAILABLE;
    EXPECT_EQ(details.retry.has_value(), may_retry) << code;
  }
}

TEST(ErrorTest, AQuotaIsNamedAndOnlyWhereWaitingHelpsThereIsARetryInfo) {
  QuotaFact fact{"text_bytes", "memory tenants/a/memories/b", 100, 90, 20};
  const absl::Status refused = absl::ResourceExhaustedError("too much");
  ErrorDetails details = DetailsOf(ToGrpcStatus(WithQuota(refused, fact), "Ingest", "x"));
  EXPECT_EQ(details.info->reason(), "QUOTA_EXCEEDED");
  const auto metadata = details.info->metadata();
  EXPECT_EQ(metadata.at("quota"), "text_bytes");
  EXPECT_EQ(metadata.at("scope"), "memory tenants/a/memories/b");
  EXPECT_EQ(metadata.at("limit"), "100");
  EXPECT_EQ(metadata.at("used"), "90");
  EXPECT_EQ(metadata.at("value"), "20");
  EXPECT_FALSE(details.retry.has_value());

  fact.retry_after = absl::Milliseconds(1500);
  details = DetailsOf(ToGrpcStatus(WithQuota(refused, fact), "Retrieve", "x"));
  ASSERT_TRUE(details.retry.has_value());
  EXPECT_EQ(details.retry->retry_delay().seconds(), 1);
  EXPECT_EQ(details.retry->retry_delay().nanos(), 500'000'000);

  fact.quota = "disk";
  fact.is_watermark = true;
  details = DetailsOf(ToGrpcStatus(WithQuota(refused, fact), "Ingest", "x"));
  EXPECT_EQ(details.info->reason(), "RESOURCE_LOW");
  EXPECT_EQ(details.info->metadata().at("watermark"), "disk");
  EXPECT_EQ(details.info->metadata().at("limit"), "100");
  EXPECT_FALSE(details.info->metadata().contains("free"));

  fact.limit = fact.asked = 0;
  fact.free = 7;
  fact.free_needed = 9;
  details = DetailsOf(ToGrpcStatus(WithQuota(refused, fact), "Ingest", "x"));
  EXPECT_EQ(details.info->metadata().at("free"), "7");
  EXPECT_EQ(details.info->metadata().at("free_needed"), "9");
  EXPECT_EQ(details.info->metadata().at("used"), "90");
  EXPECT_FALSE(details.info->metadata().contains("limit"));
  EXPECT_FALSE(details.info->metadata().contains("value"));
}

TEST(ErrorTest, AFieldErrorNamesFieldAndValue) {
  const grpc::Status status = ToGrpcStatus(FieldError("k", "-3", "-3 is not allowed"), "M", "");
  ExpectFieldError(status, "k", "-3 is not allowed");
  EXPECT_EQ(DetailsOf(status).info->metadata().at("value"), "-3");
}

TEST(ErrorTest, BytesThatAreNotUtf8AreEscaped) {
  const grpc::Status status =
      ToGrpcStatus(FieldError("name", "a\xff", "\"a\xff\" is bad"), "M", "a\xff");
  ExpectFieldError(status, "name", "\"a\\xff\" is bad");
}

TEST(ErrorTest, LongValuesAreCut) {
  const grpc::Status status =
      ToGrpcStatus(FieldError("name", std::string(100'000, 'x'), "too long"), "M", "");
  EXPECT_LT(status.error_details().size(), 2000u);
}

TEST(ErrorTest, AnErrorFitsTheMetadataThatGrpcTakesWhateverAClientSent) {
  for (const char* unit : {"x", "\xff", "\xe2\x82\xac", "\xe2\x82\xac\xff"}) {
    std::string value;
    while (value.size() < 8000) value += unit;
    const grpc::Status status =
        ToGrpcStatus(FieldError("memories[63]", value, value), "CreateMemory", value);
    // gRPC writes a byte beyond ASCII as %NN, and the details in base64.
    const size_t metadata_bytes =
        3 * status.error_message().size() + status.error_details().size() * 4 / 3;
    EXPECT_LT(metadata_bytes, 7500u) << unit;
    EXPECT_EQ(ValidUtf8Prefix(status.error_message()).valid_bytes, status.error_message().size());
    EXPECT_TRUE(absl::EndsWith(status.error_message(), "..."));
    const ErrorDetails details = DetailsOf(status);
    ASSERT_TRUE(details.info.has_value()) << unit;
    EXPECT_EQ(details.info->reason(), "INVALID_FIELD");
    for (const char* key : {"value", "resource"}) {
      const std::string& shown = details.info->metadata().at(key);
      EXPECT_LE(shown.size(), 256u);
      EXPECT_TRUE(absl::EndsWith(shown, "...")) << shown;
    }
  }
}

TEST(ErrorTest, AQuotedValueIsCutBetweenCharacters) {
  EXPECT_EQ(Quoted("abc"), "\"abc\"");
  EXPECT_EQ(Quoted("a\xff"), "\"a\\xff\"");
  EXPECT_EQ(Quoted(std::string(256, 'x')), "\"" + std::string(256, 'x') + "\"");
  EXPECT_EQ(Quoted(std::string(257, 'x')), "\"" + std::string(253, 'x') + "...\"");
  std::string euros;
  while (euros.size() < 300) euros += "\xe2\x82\xac";
  EXPECT_EQ(Quoted(euros), "\"" + euros.substr(0, 252) + "...\"");
}

TEST(ErrorTest, AFullDiskIsToldFromALimit) {
  const absl::Status limit = absl::ResourceExhaustedError("why");
  EXPECT_EQ(DetailsOf(ToGrpcStatus(limit, "M", "")).info->reason(), "LIMIT_REACHED");
  const ErrorDetails full = DetailsOf(ToGrpcStatus(WithStorageFull(limit), "M", ""));
  EXPECT_EQ(full.info->reason(), "STORAGE_FULL");
  ASSERT_TRUE(full.retry.has_value());
  EXPECT_EQ(full.retry->retry_delay().seconds(), 5);
}

TEST(ErrorTest, RetryDelayKeepsFractions) {
  const grpc::Status status = ToGrpcStatus(
      WithRetryAfter(absl::UnavailableError("later"), absl::Milliseconds(2250)), "M", "");
  const ErrorDetails details = DetailsOf(status);
  ASSERT_TRUE(details.retry.has_value());
  EXPECT_EQ(details.retry->retry_delay().seconds(), 2);
  EXPECT_EQ(details.retry->retry_delay().nanos(), 250'000'000);
}

}  // namespace
}  // namespace mneme
