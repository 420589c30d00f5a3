// What every RPC handler shares: the environment it runs in, and the context of one call.

#ifndef MNEME_SERVER_CALL_H_
#define MNEME_SERVER_CALL_H_

#include <string>

#include <google/protobuf/message.h>
#include <grpcpp/server_context.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/engine.h"
#include "server/readiness.h"
#include "server/request_metrics.h"
#include "server/server_options.h"

namespace mneme {

// Outlives every call. Thread-safe.
struct CallEnvironment {
  const ServerOptions& options;
  RequestMetrics& metrics;
  const Readiness& readiness;
};

// Deadline and cancellation of a call; must not be used after the call's OnDone.
CallContext MakeCallContext(const grpc::CallbackServerContext& context);

// Whether a call may begin: UNAVAILABLE while draining, DEADLINE_EXCEEDED, CANCELLED.
absl::Status CheckBegin(const CallEnvironment& environment, const CallContext& context);

// The resource that a request names first (name, parent, document, memories), for error metadata;
// empty: none.
std::string RequestResource(const google::protobuf::Message& request);

// Packs `status` for the wire and counts it; server-side failures (INTERNAL, DATA_LOSS, UNKNOWN)
// are logged. `resource`, valid UTF-8, may be what a client made up: it is kept in part if long.
grpc::Status EndCall(const absl::Status& status, Method method, absl::string_view resource,
                     RequestRecord& record);

}  // namespace mneme

#endif  // MNEME_SERVER_CALL_H_
