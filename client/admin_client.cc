#include "client/admin_client.h"

#include <utility>

#include "absl/time/clock.h"
#include "client/rpc_error.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

// One wait for an operation; its progress is told in between.
constexpr int kWaitNanos = 250'000'000;
// What an operation gets to end in after it was cancelled.
constexpr absl::Duration kCancelPatience = absl::Seconds(5);

struct Attempt {
  explicit Attempt(const CallOptions& call) : watch(call.cancellation, &context) {
    if (call.deadline != absl::InfiniteFuture()) {
      context.set_deadline(absl::ToChronoTime(call.deadline));
    }
  }
  grpc::ClientContext context;
  Cancellation::Watch watch;
};

template <typename Message>
void Tell(const google::longrunning::Operation& operation,
          const std::function<void(const Message&)>& progress) {
  Message message;
  if (progress && operation.metadata().UnpackTo(&message)) progress(message);
}

}  // namespace

AdminClient::AdminClient(const std::shared_ptr<grpc::Channel>& channel)
    : admin_(v1::AdminService::NewStub(channel)),
      operations_(google::longrunning::Operations::NewStub(channel)) {}

absl::StatusOr<google::longrunning::Operation> AdminClient::Await(
    Operation operation, const std::function<void(const Operation&)>& told,
    const CallOptions& call) {
  google::longrunning::WaitOperationRequest request;
  request.set_name(operation.name());
  request.mutable_timeout()->set_nanos(kWaitNanos);
  told(operation);
  while (!operation.done()) {
    absl::Status status;
    {
      Attempt attempt(call);
      status = StatusFromRpc(operations_->WaitOperation(&attempt.context, request, &operation));
    }
    if (!status.ok()) {
      // Nobody waits for it any more.
      google::longrunning::CancelOperationRequest cancel;
      cancel.set_name(request.name());
      google::protobuf::Empty empty;
      Attempt attempt({.deadline = absl::Now() + kCancelPatience});
      operations_->CancelOperation(&attempt.context, cancel, &empty);
      return status;
    }
    told(operation);
  }
  if (!operation.has_error()) return operation;
  return absl::Status(static_cast<absl::StatusCode>(operation.error().code()),
                      operation.error().message());
}

absl::StatusOr<v1::CheckReport> AdminClient::Check(
    const std::string& memory, bool heal,
    const std::function<void(const v1::CheckProgress&)>& progress, const CallOptions& call) {
  Operation operation;
  {
    Attempt attempt(call);
    v1::VerifyRequest verify;
    v1::RepairRequest repair;
    verify.set_memory(memory);
    repair.set_memory(memory);
    RETURN_IF_ERROR(StatusFromRpc(heal ? admin_->Repair(&attempt.context, repair, &operation)
                                       : admin_->Verify(&attempt.context, verify, &operation)));
  }
  ASSIGN_OR_RETURN(operation, Await(
                                  std::move(operation),
                                  [&](const Operation& now) { Tell(now, progress); }, call));
  v1::CheckReport report;
  if (operation.response().UnpackTo(&report)) return report;
  return absl::InternalError("the operation's response is no CheckReport");
}

absl::StatusOr<v1::Backup> AdminClient::CreateBackup(
    const std::function<void(const v1::BackupProgress&)>& progress, const CallOptions& call) {
  Operation operation;
  {
    Attempt attempt(call);
    RETURN_IF_ERROR(StatusFromRpc(
        admin_->CreateBackup(&attempt.context, v1::CreateBackupRequest(), &operation)));
  }
  ASSIGN_OR_RETURN(operation, Await(
                                  std::move(operation),
                                  [&](const Operation& now) { Tell(now, progress); }, call));
  v1::Backup backup;
  if (operation.response().UnpackTo(&backup)) return backup;
  return absl::InternalError("the operation's response is no Backup");
}

absl::StatusOr<v1::ListBackupsResponse> AdminClient::ListBackups(const CallOptions& call) {
  Attempt attempt(call);
  v1::ListBackupsResponse response;
  RETURN_IF_ERROR(
      StatusFromRpc(admin_->ListBackups(&attempt.context, v1::ListBackupsRequest(), &response)));
  return response;
}

absl::StatusOr<v1::VerifyBackupsResponse> AdminClient::VerifyBackups(
    int64_t id, const std::function<void(const v1::BackupProgress&)>& progress,
    const CallOptions& call) {
  Operation operation;
  {
    Attempt attempt(call);
    v1::VerifyBackupsRequest request;
    request.set_id(id);
    RETURN_IF_ERROR(StatusFromRpc(admin_->VerifyBackups(&attempt.context, request, &operation)));
  }
  ASSIGN_OR_RETURN(operation, Await(
                                  std::move(operation),
                                  [&](const Operation& now) { Tell(now, progress); }, call));
  v1::VerifyBackupsResponse response;
  if (operation.response().UnpackTo(&response)) return response;
  return absl::InternalError("the operation's response is no VerifyBackupsResponse");
}

absl::Status AdminClient::DeleteBackup(int64_t id, const CallOptions& call) {
  Attempt attempt(call);
  v1::DeleteBackupRequest request;
  request.set_id(id);
  google::protobuf::Empty response;
  return StatusFromRpc(admin_->DeleteBackup(&attempt.context, request, &response));
}

absl::StatusOr<v1::Activity> AdminClient::GetActivity(int slow_requests_max,
                                                      const CallOptions& call) {
  Attempt attempt(call);
  v1::GetActivityRequest request;
  request.set_slow_requests_max(slow_requests_max);
  v1::Activity response;
  RETURN_IF_ERROR(StatusFromRpc(admin_->GetActivity(&attempt.context, request, &response)));
  return response;
}

}  // namespace mneme
