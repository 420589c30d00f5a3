#include "client/rpc_error.h"

#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "google/rpc/status.pb.h"

namespace mneme {
namespace {

constexpr char kErrorInfoUrl[] = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr char kOutcomeUnknownUrl[] = "mneme/outcome_unknown";
constexpr char kRetryInfoUrl[] = "type.googleapis.com/google.rpc.RetryInfo";

template <typename Message>
std::optional<Message> PayloadOf(const absl::Status& status, const char* url) {
  auto payload = status.GetPayload(url);
  Message message;
  if (!payload || !message.ParseFromString(std::string(*payload))) return std::nullopt;
  return message;
}

}  // namespace

absl::Status StatusFromRpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  google::rpc::Status details;
  if (details.ParseFromString(status.error_details())) {
    for (const auto& detail : details.details())
      result.SetPayload(detail.type_url(), absl::Cord(detail.value()));
  }
  return result;
}

std::optional<google::rpc::ErrorInfo> ErrorInfoOf(const absl::Status& status) {
  return PayloadOf<google::rpc::ErrorInfo>(status, kErrorInfoUrl);
}

std::optional<absl::Duration> RetryDelayOf(const absl::Status& status) {
  auto info = PayloadOf<google::rpc::RetryInfo>(status, kRetryInfoUrl);
  if (!info) return std::nullopt;
  return absl::Seconds(info->retry_delay().seconds()) +
         absl::Nanoseconds(info->retry_delay().nanos());
}

bool IsRetryable(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsAborted(status) ||
         (absl::IsResourceExhausted(status) && RetryDelayOf(status).has_value()) ||
         (absl::IsCancelled(status) && !ErrorInfoOf(status).has_value());
}

bool IsBrokenConnection(const absl::Status& status) {
  if (ErrorInfoOf(status).has_value()) return false;
  return absl::IsUnavailable(status) || absl::IsUnknown(status) || absl::IsInternal(status) ||
         absl::IsCancelled(status);
}

bool NeverConnected(const absl::Status& status) {
  // gRPC gives it no code of its own.
  return absl::IsUnavailable(status) && !ErrorInfoOf(status).has_value() &&
         (absl::StrContains(status.message(), "failed to connect") ||
          absl::StrContains(status.message(), "Connection refused") ||
          absl::StrContains(status.message(), "DNS resolution failed"));
}

absl::Status WithOutcomeUnknown(absl::Status status) {
  status.SetPayload(kOutcomeUnknownUrl, absl::Cord());
  return status;
}

bool IsOutcomeUnknown(const absl::Status& status) {
  return status.GetPayload(kOutcomeUnknownUrl).has_value();
}

}  // namespace mneme
