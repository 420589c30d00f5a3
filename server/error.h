// Errors on the wire: a canonical code, a message with the offending value, and google.rpc details
// (ErrorInfo always, BadRequest where a field is at fault, RetryInfo where trying again later
// helps) in grpc-status-details-bin.
//
// Inside the server an error is an absl::Status; details ride on it as payloads until ToGrpcStatus
// packs them.

#ifndef MNEME_SERVER_ERROR_H_
#define MNEME_SERVER_ERROR_H_

#include <map>
#include <string>

#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "google/rpc/status.pb.h"

namespace mneme {

using ErrorMetadata = std::map<std::string, std::string>;

// A value for a message: in quotes, valid UTF-8, and in part ("begins so...") if long. What a
// client sent goes into a message only so: an error must fit the 8 KiB of metadata that gRPC takes.
std::string Quoted(absl::string_view value);

// `status` with an ErrorInfo of this reason (UPPER_SNAKE_CASE) and metadata; replaces an earlier
// one.
absl::Status WithReason(absl::Status status, absl::string_view reason,
                        const ErrorMetadata& metadata = {});
// `status` with a RetryInfo.
absl::Status WithRetryAfter(absl::Status status, absl::Duration delay);
// `status` with a BadRequest violation of `field`, described by its message, and ErrorInfo metadata
// field and value.
absl::Status WithField(absl::Status status, absl::string_view field, absl::string_view value,
                       absl::string_view reason);
// INVALID_ARGUMENT "field: description" with WithField's details. `value` is shown in part if long.
absl::Status FieldError(absl::string_view field, absl::string_view value,
                        absl::string_view description);

// The server takes no new calls, or breaks this one off, because it stops.
absl::Status DrainingError();

// A status as google.rpc.Status. An error without ErrorInfo gets one with the code's usual reason
// (STORAGE_FULL for a full disk); RESOURCE_EXHAUSTED and UNAVAILABLE without any details of their
// own get a RetryInfo. `method` and `resource` become metadata unless empty. Message and metadata
// are cut where they are too long for gRPC's metadata.
google::rpc::Status ToRpcStatus(const absl::Status& status, absl::string_view method,
                                absl::string_view resource);
// The same, packed for the end of a call.
grpc::Status ToGrpcStatus(const absl::Status& status, absl::string_view method,
                          absl::string_view resource);

// "OK", "NOT_FOUND", ...
absl::string_view CodeName(absl::StatusCode code);

}  // namespace mneme

#endif  // MNEME_SERVER_ERROR_H_
