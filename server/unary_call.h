// One unary call: handed to a worker pool, parsed, run, answered. Nothing but the hand-over happens
// in gRPC's threads.

#ifndef MNEME_SERVER_UNARY_CALL_H_
#define MNEME_SERVER_UNARY_CALL_H_

#include <functional>
#include <string>
#include <utility>

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/call.h"
#include "server/wire_message.h"
#include "server/worker_pool.h"

namespace mneme {

// Owned by gRPC: deletes itself when the call is done.
template <typename Request, typename Response>
class UnaryCall final : public grpc::ServerUnaryReactor {
 public:
  // Blocks; runs on a worker thread. Thread-safe; outlives the call.
  using Handler = std::function<absl::StatusOr<Response>(const Request&, const CallContext&)>;

  static UnaryCall* Start(const CallEnvironment& environment, Method method, WorkerPool& pool,
                          const Handler& handler, grpc::CallbackServerContext* context,
                          const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
    auto* call = new UnaryCall(environment, method, *context);
    absl::Status status = CheckBegin(environment, call->context_);
    if (status.ok()) {
      status = pool.Submit([call, &handler, request, response] {
        call->End(call->Run(handler, *request, response));
      });
    }
    // The call ends itself exactly once: here, or on the worker thread if it got there.
    if (!status.ok()) call->End(status);
    return call;
  }

  void OnDone() override { delete this; }

 private:
  UnaryCall(const CallEnvironment& environment, Method method,
            const grpc::CallbackServerContext& context)
      : environment_(environment),
        method_(method),
        record_(environment.metrics, method),
        context_(MakeCallContext(context)) {}

  absl::Status Run(const Handler& handler, const grpc::ByteBuffer& bytes,
                   grpc::ByteBuffer* response) {
    // It may have waited long for this thread.
    absl::Status status = context_.Check();
    if (!status.ok()) return status;
    Request request;
    status = ParseMessage(bytes, environment_.options.message_bytes_max, &request);
    if (!status.ok()) return status;
    resource_ = RequestResource(request);
    absl::StatusOr<Response> result = handler(request, context_);
    if (!result.ok()) return result.status();
    *response = SerializeMessage(*result);
    return absl::OkStatus();
  }

  // The call may be gone when this returns.
  void End(const absl::Status& status) { Finish(EndCall(status, method_, resource_, record_)); }

  const CallEnvironment& environment_;
  const Method method_;
  RequestRecord record_;
  const CallContext context_;
  std::string resource_;
};

}  // namespace mneme

#endif  // MNEME_SERVER_UNARY_CALL_H_
