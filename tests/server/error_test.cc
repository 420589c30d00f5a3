#include "server/error.h"

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
