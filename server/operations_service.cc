#include "server/operations_service.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include <grpcpp/alarm.h>

#include "absl/base/thread_annotations.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "server/error.h"
#include "server/page_token.h"

namespace mneme {
namespace {

using google::longrunning::Operation;
using google::longrunning::WaitOperationRequest;

// A longer wait ends here too; the client asks again.
constexpr absl::Duration kWaitMax = absl::Hours(24);

absl::StatusOr<absl::Duration> WaitTime(const WaitOperationRequest& request) {
  if (!request.has_timeout()) return kWaitMax;
  const absl::Duration timeout =
      absl::Seconds(request.timeout().seconds()) + absl::Nanoseconds(request.timeout().nanos());
  if (timeout < absl::ZeroDuration()) {
    return FieldError("timeout", absl::FormatDuration(timeout),
                      absl::StrCat(absl::FormatDuration(timeout), " is negative"));
  }
  return std::min(timeout, kWaitMax);
}

// Answers a call that needs no waiting.
template <typename Work>
grpc::ServerUnaryReactor* AnswerNow(const CallEnvironment& environment, Method method,
                                    const std::string& resource,
                                    grpc::CallbackServerContext* context, const Work& work) {
  RequestRecord record(environment.metrics, method);
  absl::Status status = CheckBegin(environment, MakeCallContext(*context));
  if (status.ok()) status = work();
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(EndCall(status, method, resource, record));
  return reactor;
}

// One wait. It ends when the operation does, its time is up, the server drains or the client is
// gone, whichever comes first; the others then find the door closed. Owned by gRPC: deletes itself
// when the call is done.
class WaitCall final : public grpc::ServerUnaryReactor {
 public:
  static WaitCall* Start(const CallEnvironment& environment, OperationRegistry& operations,
                         grpc::CallbackServerContext* context, const WaitOperationRequest& request,
                         Operation* response) {
    auto* call = new WaitCall(environment, operations, *context, request, response);
    const absl::Status begun = call->Begin(request);
    if (!begun.ok()) Door::Ring(call->door_, begun);
    return call;
  }

  void OnCancel() override { Door::Ring(door_, absl::CancelledError("the client is gone")); }
  void OnDone() override {
    if (watch_ > 0) operations_.Unwatch(name_, watch_);
    delete this;
  }

 private:
  // What those who may end the call hold: it outlives the call.
  struct Door {
    absl::Mutex mutex;
    WaitCall* call ABSL_GUARDED_BY(mutex) = nullptr;  // null: the call has ended

    static void Ring(std::shared_ptr<Door> door, const absl::Status& status) {
      // Held to the end, so that a call whose Begin is under way is not ended in its middle.
      absl::MutexLock lock(&door->mutex);
      if (WaitCall* call = std::exchange(door->call, nullptr)) call->End(status);
    }
  };

  WaitCall(const CallEnvironment& environment, OperationRegistry& operations,
           const grpc::CallbackServerContext& context, const WaitOperationRequest& request,
           Operation* response)
      : environment_(environment),
        operations_(operations),
        name_(request.name()),
        response_(response),
        record_(environment.metrics, Method::kWaitOperation),
        context_(MakeCallContext(context)),
        door_(std::make_shared<Door>()) {
    absl::MutexLock lock(&door_->mutex);
    door_->call = this;
  }

  absl::Status Begin(const WaitOperationRequest& request) {
    RETURN_IF_ERROR(CheckBegin(environment_, context_));
    ASSIGN_OR_RETURN(const absl::Duration wait, WaitTime(request));
    const std::shared_ptr<Door> door = door_;
    // Once it is watched or the alarm is set the call may end, and go, at any moment: but for the
    // door, which this thread holds until both are.
    absl::MutexLock lock(&door->mutex);
    ASSIGN_OR_RETURN(watch_,
                     operations_.Watch(name_, [door] { Door::Ring(door, absl::OkStatus()); }));
    if (watch_ == 0) {
      door->call = nullptr;
      End(absl::OkStatus());
      return absl::OkStatus();
    }
    alarm_.Set(absl::ToChronoTime(absl::Now() + wait), [door](bool expired) {
      if (expired) Door::Ring(door, absl::OkStatus());
    });
    return absl::OkStatus();
  }

  void End(absl::Status status) {
    if (status.ok()) {
      absl::StatusOr<Operation> operation = operations_.Get(name_);
      status = operation.status();
      if (operation.ok()) {
        if (!operation->done() && environment_.readiness.draining()) status = DrainingError();
        *response_ = *std::move(operation);
      }
    }
    Finish(EndCall(status, Method::kWaitOperation, name_, record_));
  }

  const CallEnvironment& environment_;
  OperationRegistry& operations_;
  const std::string name_;
  Operation* const response_;
  RequestRecord record_;
  const CallContext context_;
  const std::shared_ptr<Door> door_;  // with the operation's watch and the alarm
  grpc::Alarm alarm_;
  int64_t watch_ = 0;
};

}  // namespace

absl::Status OperationsService::List(const google::longrunning::ListOperationsRequest& request,
                                     google::longrunning::ListOperationsResponse* response) const {
  std::string tenant;
  if (!request.name().empty()) {
    ASSIGN_OR_RETURN(const ResourceName name, check_.Tenant("name", request.name()));
    tenant = name.tenant;
  }
  if (!request.filter().empty()) {
    return FieldError("filter", request.filter(), "is not supported: leave it empty");
  }
  ASSIGN_OR_RETURN(const int page_size, PageSize(request.page_size()));
  int64_t after = 0;
  if (!request.page_token().empty()) {
    ASSIGN_OR_RETURN(const std::string position,
                     ParsePageToken("ListOperations", request.name(), request.page_token()));
    if (!absl::SimpleAtoi(position, &after)) {
      return FieldError("page_token", request.page_token(),
                        absl::StrCat(Quoted(request.page_token()), " is damaged"));
    }
  }
  // One more than the page tells whether there is another page.
  for (auto& listed : operations_.List(tenant, after, page_size + 1)) {
    if (response->operations_size() == page_size) {
      response->set_next_page_token(
          MakePageToken("ListOperations", request.name(), absl::StrCat(after)));
      break;
    }
    *response->add_operations() = std::move(listed.operation);
    after = listed.sequence;
  }
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* OperationsService::ListOperations(
    grpc::CallbackServerContext* context, const google::longrunning::ListOperationsRequest* request,
    google::longrunning::ListOperationsResponse* response) {
  return AnswerNow(environment_, Method::kListOperations, request->name(), context,
                   [&] { return List(*request, response); });
}

grpc::ServerUnaryReactor* OperationsService::GetOperation(
    grpc::CallbackServerContext* context, const google::longrunning::GetOperationRequest* request,
    Operation* response) {
  return AnswerNow(environment_, Method::kGetOperation, request->name(), context,
                   [&]() -> absl::Status {
                     ASSIGN_OR_RETURN(*response, operations_.Get(request->name()));
                     return absl::OkStatus();
                   });
}

grpc::ServerUnaryReactor* OperationsService::CancelOperation(
    grpc::CallbackServerContext* context,
    const google::longrunning::CancelOperationRequest* request, google::protobuf::Empty*) {
  return AnswerNow(environment_, Method::kCancelOperation, request->name(), context,
                   [&] { return operations_.Cancel(request->name()); });
}

grpc::ServerUnaryReactor* OperationsService::WaitOperation(grpc::CallbackServerContext* context,
                                                           const WaitOperationRequest* request,
                                                           Operation* response) {
  return WaitCall::Start(environment_, operations_, context, *request, response);
}

}  // namespace mneme
