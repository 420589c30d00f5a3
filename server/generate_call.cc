#include "server/generate_call.h"

#include <utility>

#include "common/status_macros.h"
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
      record_(environment.metrics, Method::kGenerate),
      context_(MakeCallContext(context)),
      stall_watch_(environment.options.client_stall_max, context) {}

void GenerateCall::OnWriteDone(bool ok) {
  stall_watch_.WriteDone();
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
  stall_watch_.WriteBegins();
  StartWrite(&message_);
  return absl::OkStatus();
}

absl::Status GenerateCall::AwaitWritable() {
  const auto settled = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !writing_ || client_gone_;
  };
  absl::MutexLock lock(&mutex_);
  const bool is_settled = mutex_.AwaitWithDeadline(absl::Condition(&settled), context_.deadline);
  if (client_gone_) return stall_watch_.Gone();
  if (is_settled) return absl::OkStatus();
  return absl::DeadlineExceededError("the call's deadline has passed");
}

void GenerateCall::End(const absl::Status& status) {
  // A status must not overtake a message that is being written.
  const absl::Status written = AwaitWritable();
  Finish(EndCall(status.ok() ? written : status, Method::kGenerate, resource_, record_));
}

}  // namespace mneme
