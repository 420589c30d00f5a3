#include "server/generate_call.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "server/error.h"
#include "server/wire_message.h"

namespace mneme {

GenerateCall* GenerateCall::Start(const CallEnvironment& environment, Engine& engine,
                                  const QueryHandlers& queries, WorkerPool& pool,
                                  grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request) {
  auto* call = new GenerateCall(environment, *context);
  absl::Status status = CheckBegin(environment, call->context_);
  if (status.ok()) {
    status = pool.Submit(
        [call, &engine, &queries, request] { call->End(call->Run(engine, queries, *request)); });
  }
  if (!status.ok()) call->End(status);
  return call;
}

GenerateCall::GenerateCall(const CallEnvironment& environment, grpc::CallbackServerContext& context)
    : environment_(environment),
      grpc_context_(context),
      record_(environment.metrics, Method::kGenerate),
      context_(MakeCallContext(context)) {}

void GenerateCall::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mutex_);
  writing_ = false;
  if (!ok) client_gone_ = true;
}

void GenerateCall::OnCancel() {
  absl::MutexLock lock(&mutex_);
  client_gone_ = true;
}

absl::Status GenerateCall::Run(Engine& engine, const QueryHandlers& queries,
                               const grpc::ByteBuffer& bytes) {
  RETURN_IF_ERROR(context_.Check());
  v1::GenerateRequest request;
  RETURN_IF_ERROR(ParseMessage(bytes, environment_.options.message_bytes_max, &request));
  resource_ = RequestResource(request);
  ASSIGN_OR_RETURN(const GenerateOptions options, queries.ParseGenerate(request));
  absl::Status sent;
  absl::StatusOr<GenerateResult> result =
      engine.Generate(options, context_, [this, &sent](GeneratePiece piece) {
        sent = Send(ToMessage(piece));
        return sent.ok();
      });
  // What stopped the sending is the cause of whatever the engine makes of it.
  RETURN_IF_ERROR(sent);
  RETURN_IF_ERROR(result.status());
  return Send(ToMessage(*result));
}

absl::Status GenerateCall::Send(const v1::GenerateResponse& message) {
  RETURN_IF_ERROR(AwaitWritable());
  message_ = SerializeMessage(message);
  {
    absl::MutexLock lock(&mutex_);
    writing_ = true;
  }
  StartWrite(&message_);
  return absl::OkStatus();
}

absl::Status GenerateCall::AwaitWritable() {
  const auto settled = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !writing_ || client_gone_;
  };
  const absl::Time stall_end = absl::Now() + environment_.options.client_stall_max;
  absl::MutexLock lock(&mutex_);
  const bool is_settled =
      mutex_.AwaitWithDeadline(absl::Condition(&settled), std::min(stall_end, context_.deadline));
  if (client_gone_) return absl::CancelledError("the client is gone");
  if (is_settled) return absl::OkStatus();
  if (context_.deadline < stall_end) {
    return absl::DeadlineExceededError("the call's deadline has passed");
  }
  // The write that is stuck would hold up the status for ever.
  grpc_context_.TryCancel();
  return WithReason(absl::CancelledError(
                        absl::StrCat("the client took nothing for ",
                                     absl::FormatDuration(environment_.options.client_stall_max))),
                    "CLIENT_STALLED");
}

void GenerateCall::End(const absl::Status& status) {
  // A status must not overtake a message that is being written.
  const absl::Status written = AwaitWritable();
  Finish(EndCall(status.ok() ? written : status, Method::kGenerate, resource_, record_));
}

}  // namespace mneme
