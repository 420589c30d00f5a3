// From a failed RPC to absl::Status and back to its parts: code, message, google.rpc.ErrorInfo and
// RetryInfo.
//
// A Status made here carries each detail of the server's google.rpc.Status as a payload under its
// type URL. An error without ErrorInfo did not come from a Mneme server but from gRPC itself: no
// connection, a broken stream, a message too large.

#ifndef MNEME_CLIENT_RPC_ERROR_H_
#define MNEME_CLIENT_RPC_ERROR_H_

#include <grpcpp/support/status.h>

#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "google/rpc/error_details.pb.h"

namespace mneme {

absl::Status StatusFromRpc(const grpc::Status& status);

// What the server said about the error; nullopt when it said nothing.
std::optional<google::rpc::ErrorInfo> ErrorInfoOf(const absl::Status& status);

// How long the server asked to wait before another attempt; nullopt when it asked nothing.
std::optional<absl::Duration> RetryDelayOf(const absl::Status& status);

// True when another attempt of an idempotent call may succeed: UNAVAILABLE; ABORTED (the first
// attempt still runs); RESOURCE_EXHAUSTED with a RetryInfo (a limit of the moment, not of a size);
// CANCELLED by gRPC itself: by a server that stops as the call arrives, or by the caller, for whom
// a Retrier does not wait.
bool IsRetryable(const absl::Status& status);

// True when a stream or connection broke under the call, whatever code gRPC gave it, rather than
// the server answering.
bool IsBrokenConnection(const absl::Status& status);

// True when no connection came to be, so that the server has heard nothing of the call.
bool NeverConnected(const absl::Status& status);

// Marks the error of a call that changes something and may have been done all the same: its answer
// was lost, or nobody waited for it.
absl::Status WithOutcomeUnknown(absl::Status status);
bool IsOutcomeUnknown(const absl::Status& status);

}  // namespace mneme

#endif  // MNEME_CLIENT_RPC_ERROR_H_
