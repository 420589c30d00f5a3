// What a client sees of an error: code, message and the google.rpc details of
// grpc-status-details-bin.

#ifndef MNEME_TESTS_SERVER_RPC_MATCHERS_H_
#define MNEME_TESTS_SERVER_RPC_MATCHERS_H_

#include <map>
#include <optional>
#include <string>

#include <grpcpp/support/status.h>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "gtest/gtest.h"

namespace mneme {

struct ErrorDetails {
  std::optional<google::rpc::ErrorInfo> info;
  std::optional<google::rpc::RetryInfo> retry;
  std::optional<google::rpc::BadRequest> bad_request;
};

inline ErrorDetails DetailsOf(const grpc::Status& status) {
  ErrorDetails details;
  google::rpc::Status wire;
  if (!wire.ParseFromString(status.error_details())) return details;
  EXPECT_EQ(wire.code(), static_cast<int>(status.error_code()));
  EXPECT_EQ(wire.message(), status.error_message());
  for (const auto& detail : wire.details()) {
    if (detail.Is<google::rpc::ErrorInfo>()) detail.UnpackTo(&details.info.emplace());
    if (detail.Is<google::rpc::RetryInfo>()) detail.UnpackTo(&details.retry.emplace());
    if (detail.Is<google::rpc::BadRequest>()) detail.UnpackTo(&details.bad_request.emplace());
  }
  return details;
}

// The code, a part of the message, and an ErrorInfo with this reason.
inline void ExpectError(const grpc::Status& status, grpc::StatusCode code,
                        const std::string& message_part, const std::string& reason) {
  EXPECT_EQ(status.error_code(), code) << status.error_message();
  EXPECT_NE(status.error_message().find(message_part), std::string::npos)
      << status.error_message() << "\ndoes not say: " << message_part;
  const ErrorDetails details = DetailsOf(status);
  ASSERT_TRUE(details.info.has_value()) << "no ErrorInfo: " << status.error_message();
  EXPECT_EQ(details.info->reason(), reason);
  EXPECT_EQ(details.info->domain(), "mneme");
}

// INVALID_ARGUMENT with a BadRequest that names the field.
inline void ExpectFieldError(const grpc::Status& status, const std::string& field,
                             const std::string& message_part) {
  ExpectError(status, grpc::StatusCode::INVALID_ARGUMENT, message_part, "INVALID_FIELD");
  const ErrorDetails details = DetailsOf(status);
  ASSERT_TRUE(details.bad_request.has_value());
  ASSERT_EQ(details.bad_request->field_violations_size(), 1);
  EXPECT_EQ(details.bad_request->field_violations(0).field(), field);
  ASSERT_TRUE(details.info.has_value());
  EXPECT_EQ(details.info->metadata().at("field"), field);
}

}  // namespace mneme

#endif  // MNEME_TESTS_SERVER_RPC_MATCHERS_H_
