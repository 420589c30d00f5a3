#include "server/error.h"

#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/utf8.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace mneme {
namespace {

constexpr char kDomain[] = "mneme";
constexpr char kErrorInfoUrl[] = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr char kRetryInfoUrl[] = "type.googleapis.com/google.rpc.RetryInfo";
constexpr char kBadRequestUrl[] = "type.googleapis.com/google.rpc.BadRequest";

constexpr absl::Duration kUsualRetryDelay = absl::Seconds(1);
// Values shown in metadata and messages, at most; longer ones are cut.
constexpr size_t kShownBytesMax = 256;

// Text that may quote a client, fit for a protobuf string: bytes that are not UTF-8 become \xNN.
std::string ValidText(absl::string_view text) {
  std::string valid;
  while (true) {
    const size_t prefix = ValidUtf8Prefix(text).valid_bytes;
    absl::StrAppend(&valid, text.substr(0, prefix));
    if (prefix == text.size()) return valid;
    absl::StrAppend(&valid, absl::StrFormat("\\x%02x", static_cast<uint8_t>(text[prefix])));
    text.remove_prefix(prefix + 1);
  }
}

std::string Shown(absl::string_view value) {
  return absl::StrCat(ValidText(value.substr(0, kShownBytesMax)),
                      value.size() > kShownBytesMax ? "..." : "");
}

template <typename Message>
bool GetDetail(const absl::Status& status, absl::string_view url, Message* message) {
  const auto payload = status.GetPayload(url);
  return payload.has_value() && message->ParseFromString(std::string(*payload));
}

template <typename Message>
void SetDetail(absl::string_view url, const Message& message, absl::Status* status) {
  status->SetPayload(url, absl::Cord(message.SerializeAsString()));
}

absl::string_view UsualReason(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kNotFound:
      return "RESOURCE_NOT_FOUND";
    case absl::StatusCode::kAlreadyExists:
      return "RESOURCE_EXISTS";
    case absl::StatusCode::kOutOfRange:
      return "OFFSET_OUT_OF_RANGE";
    case absl::StatusCode::kFailedPrecondition:
      return "STATE_NOT_FIT";
    case absl::StatusCode::kAborted:
      return "RESOURCE_BUSY";
    case absl::StatusCode::kResourceExhausted:
      return "LIMIT_REACHED";
    case absl::StatusCode::kUnavailable:
      return "NOT_READY";
    case absl::StatusCode::kDataLoss:
      return "DATA_DAMAGED";
    default:
      return CodeName(code);
  }
}

}  // namespace

absl::Status WithReason(absl::Status status, absl::string_view reason,
                        const ErrorMetadata& metadata) {
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain(kDomain);
  for (const auto& [key, value] : metadata) (*info.mutable_metadata())[key] = Shown(value);
  SetDetail(kErrorInfoUrl, info, &status);
  return status;
}

absl::Status WithRetryAfter(absl::Status status, absl::Duration delay) {
  google::rpc::RetryInfo retry;
  const int64_t nanos = absl::ToInt64Nanoseconds(delay);
  retry.mutable_retry_delay()->set_seconds(nanos / 1'000'000'000);
  retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
  SetDetail(kRetryInfoUrl, retry, &status);
  return status;
}

absl::Status WithField(absl::Status status, absl::string_view field, absl::string_view value,
                       absl::string_view reason) {
  google::rpc::BadRequest bad;
  auto* violation = bad.add_field_violations();
  violation->set_field(std::string(field));
  violation->set_description(ValidText(status.message()));
  SetDetail(kBadRequestUrl, bad, &status);
  return WithReason(std::move(status), reason,
                    {{"field", std::string(field)}, {"value", std::string(value)}});
}

absl::Status FieldError(absl::string_view field, absl::string_view value,
                        absl::string_view description) {
  return WithField(absl::InvalidArgumentError(absl::StrCat(field, ": ", description)), field, value,
                   "INVALID_FIELD");
}

absl::Status DrainingError() {
  return WithRetryAfter(
      WithReason(absl::UnavailableError("the server is stopping"), "SERVER_DRAINING"),
      kUsualRetryDelay);
}

grpc::Status ToGrpcStatus(const absl::Status& status, absl::string_view method,
                          absl::string_view resource) {
  if (status.ok()) return grpc::Status::OK;
  absl::Status full = status;
  google::rpc::ErrorInfo info;
  if (!GetDetail(full, kErrorInfoUrl, &info)) {
    info.set_reason(std::string(UsualReason(status.code())));
    info.set_domain(kDomain);
    const bool may_retry = status.code() == absl::StatusCode::kResourceExhausted ||
                           status.code() == absl::StatusCode::kUnavailable;
    if (may_retry && !full.GetPayload(kRetryInfoUrl).has_value()) {
      full = WithRetryAfter(std::move(full), kUsualRetryDelay);
    }
  }
  auto& metadata = *info.mutable_metadata();
  if (!method.empty()) metadata["method"] = std::string(method);
  if (!resource.empty() && !metadata.contains("resource")) metadata["resource"] = Shown(resource);
  SetDetail(kErrorInfoUrl, info, &full);

  google::rpc::Status wire;
  wire.set_code(static_cast<int>(full.code()));
  // A message may quote a name that a client sent: keep it valid UTF-8.
  const std::string message = ValidText(full.message());
  wire.set_message(message);
  for (const char* url : {kErrorInfoUrl, kBadRequestUrl, kRetryInfoUrl}) {
    const auto payload = full.GetPayload(url);
    if (!payload.has_value()) continue;
    auto* detail = wire.add_details();
    detail->set_type_url(url);
    detail->set_value(std::string(*payload));
  }
  return grpc::Status(static_cast<grpc::StatusCode>(full.code()), message,
                      wire.SerializeAsString());
}

absl::string_view CodeName(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return "OK";
    case absl::StatusCode::kCancelled:
      return "CANCELLED";
    case absl::StatusCode::kInvalidArgument:
      return "INVALID_ARGUMENT";
    case absl::StatusCode::kDeadlineExceeded:
      return "DEADLINE_EXCEEDED";
    case absl::StatusCode::kNotFound:
      return "NOT_FOUND";
    case absl::StatusCode::kAlreadyExists:
      return "ALREADY_EXISTS";
    case absl::StatusCode::kPermissionDenied:
      return "PERMISSION_DENIED";
    case absl::StatusCode::kUnauthenticated:
      return "UNAUTHENTICATED";
    case absl::StatusCode::kResourceExhausted:
      return "RESOURCE_EXHAUSTED";
    case absl::StatusCode::kFailedPrecondition:
      return "FAILED_PRECONDITION";
    case absl::StatusCode::kAborted:
      return "ABORTED";
    case absl::StatusCode::kOutOfRange:
      return "OUT_OF_RANGE";
    case absl::StatusCode::kUnimplemented:
      return "UNIMPLEMENTED";
    case absl::StatusCode::kInternal:
      return "INTERNAL";
    case absl::StatusCode::kUnavailable:
      return "UNAVAILABLE";
    case absl::StatusCode::kDataLoss:
      return "DATA_LOSS";
    default:
      return "UNKNOWN";
  }
}

}  // namespace mneme
