#include "server/error.h"

#include <optional>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_facts.h"
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
// Space on a full disk does not come back within a second.
constexpr absl::Duration kStorageRetryDelay = absl::Seconds(5);
// Longer texts are cut. gRPC's peers take 8 KiB of metadata, into which the message goes three
// times: escaped (a byte beyond ASCII takes three), in the details, and as a field's description
// (base64, four bytes for three). Two names of documents fit into one message.
constexpr size_t kMessageBytesMax = 900;
constexpr size_t kValueBytesMax = 256;

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

// ValidText, of at most `bytes_max` bytes: what is longer is cut between two characters and ends in
// an ellipsis.
std::string Shown(absl::string_view value, size_t bytes_max) {
  constexpr absl::string_view kEllipsis = "...";
  // Text only grows when it is made valid: what lies beyond bytes_max is not shown.
  std::string shown = ValidText(value.substr(0, bytes_max + 1));
  if (shown.size() <= bytes_max) return shown;
  shown.resize(Utf8CutBytes(shown, bytes_max - kEllipsis.size()));
  absl::StrAppend(&shown, kEllipsis);
  return shown;
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

// Which quota or watermark stands against the call.
void AddQuota(const QuotaFact& fact, google::rpc::ErrorInfo* info) {
  info->set_reason(fact.is_watermark ? "RESOURCE_LOW" : "QUOTA_EXCEEDED");
  auto& metadata = *info->mutable_metadata();
  metadata[fact.is_watermark ? "watermark" : "quota"] = fact.quota;
  metadata["scope"] = Shown(fact.scope, kValueBytesMax);
  metadata["used"] = absl::StrCat(fact.used);
  // What is not there has no number: a watermark of free space no limit, a new document no bytes.
  if (!fact.is_watermark || fact.limit > 0) metadata["limit"] = absl::StrCat(fact.limit);
  if (!fact.is_watermark || fact.asked > 0) metadata["value"] = absl::StrCat(fact.asked);
  if (fact.free_needed >= 0) {
    metadata["free"] = absl::StrCat(fact.free);
    metadata["free_needed"] = absl::StrCat(fact.free_needed);
  }
}

}  // namespace

std::string Quoted(absl::string_view value) {
  return absl::StrCat("\"", Shown(value, kValueBytesMax), "\"");
}

absl::Status WithReason(absl::Status status, absl::string_view reason,
                        const ErrorMetadata& metadata) {
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain(kDomain);
  for (const auto& [key, value] : metadata) {
    (*info.mutable_metadata())[key] = Shown(value, kValueBytesMax);
  }
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
  violation->set_description(Shown(status.message(), kMessageBytesMax));
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

google::rpc::Status ToRpcStatus(const absl::Status& status, absl::string_view method,
                                absl::string_view resource) {
  if (status.ok()) return google::rpc::Status();
  absl::Status full = status;
  google::rpc::ErrorInfo info;
  if (!GetDetail(full, kErrorInfoUrl, &info)) {
    const bool is_storage_full = IsStorageFull(status);
    const std::optional<QuotaFact> quota = QuotaOf(status);
    info.set_reason(std::string(is_storage_full ? "STORAGE_FULL" : UsualReason(status.code())));
    info.set_domain(kDomain);
    if (quota.has_value()) AddQuota(*quota, &info);
    const bool may_retry = status.code() == absl::StatusCode::kResourceExhausted ||
                           status.code() == absl::StatusCode::kUnavailable;
    if (quota.has_value()) {
      if (quota->retry_after) full = WithRetryAfter(std::move(full), *quota->retry_after);
    } else if (may_retry && !full.GetPayload(kRetryInfoUrl).has_value()) {
      full =
          WithRetryAfter(std::move(full), is_storage_full ? kStorageRetryDelay : kUsualRetryDelay);
    }
  }
  auto& metadata = *info.mutable_metadata();
  if (!method.empty()) metadata["method"] = std::string(method);
  if (!resource.empty() && !metadata.contains("resource")) {
    metadata["resource"] = Shown(resource, kValueBytesMax);
  }
  SetDetail(kErrorInfoUrl, info, &full);

  google::rpc::Status wire;
  wire.set_code(static_cast<int>(full.code()));
  // A message may quote what a client sent.
  const std::string message = Shown(full.message(), kMessageBytesMax);
  wire.set_message(message);
  for (const char* url : {kErrorInfoUrl, kBadRequestUrl, kRetryInfoUrl}) {
    const auto payload = full.GetPayload(url);
    if (!payload.has_value()) continue;
    auto* detail = wire.add_details();
    detail->set_type_url(url);
    detail->set_value(std::string(*payload));
  }
  return wire;
}

grpc::Status ToGrpcStatus(const absl::Status& status, absl::string_view method,
                          absl::string_view resource) {
  if (status.ok()) return grpc::Status::OK;
  const google::rpc::Status wire = ToRpcStatus(status, method, resource);
  return grpc::Status(static_cast<grpc::StatusCode>(wire.code()), wire.message(),
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
