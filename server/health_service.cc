#include "server/health_service.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "server/error.h"

namespace mneme {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

bool IsKnown(const std::string& service) {
  return service.empty() || service == "mneme.v1.MemoryService";
}

HealthCheckResponse::ServingStatus ToStatus(bool serving) {
  return serving ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
}

}  // namespace

// One Watch stream: sends the latest state, one write at a time. Owned by gRPC: deletes itself when
// the call is done.
class HealthWatch final : public grpc::ServerWriteReactor<HealthCheckResponse> {
 public:
  HealthWatch(HealthService& service, bool is_known) : service_(service) {
    {
      absl::MutexLock lock(&service_.mutex_);
      service_.watches_.insert(this);
      absl::MutexLock own_lock(&mutex_);
      ending_ = service_.ending_;
    }
    if (is_known) {
      bool serving = false;
      watcher_ = service_.readiness_.AddWatcher([this](bool now) { Set(ToStatus(now)); }, &serving);
      Begin(ToStatus(serving));
    } else {
      Begin(HealthCheckResponse::SERVICE_UNKNOWN);
    }
  }

  void EndSoon() {
    absl::MutexLock lock(&mutex_);
    ending_ = true;
    Advance();
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    if (!ok) gone_ = true;
    Advance();
  }

  void OnCancel() override {
    absl::MutexLock lock(&mutex_);
    gone_ = true;
    Advance();
  }

  void OnDone() override {
    if (watcher_ != 0) service_.readiness_.RemoveWatcher(watcher_);
    {
      absl::MutexLock lock(&service_.mutex_);
      service_.watches_.erase(this);
    }
    delete this;
  }

 private:
  void Set(HealthCheckResponse::ServingStatus status) {
    absl::MutexLock lock(&mutex_);
    wanted_ = status;
    Advance();
  }

  // A change that came since AddWatcher is newer than `status`.
  void Begin(HealthCheckResponse::ServingStatus status) {
    absl::MutexLock lock(&mutex_);
    if (wanted_ == HealthCheckResponse::UNKNOWN) wanted_ = status;
    Advance();
  }

  // Starts what is due: a write of a new state, or the end. gRPC calls back from its own threads,
  // so holding the lock is safe.
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (finished_ || writing_) return;
    if (gone_) {
      finished_ = true;
      Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the client is gone"));
    } else if (wanted_ != HealthCheckResponse::UNKNOWN && wanted_ != sent_) {
      writing_ = true;
      sent_ = wanted_;
      response_.set_status(wanted_);
      StartWrite(&response_);
    } else if (ending_ && wanted_ != HealthCheckResponse::UNKNOWN) {
      finished_ = true;
      Finish(ToGrpcStatus(DrainingError(), "Watch", ""));
    }
  }

  HealthService& service_;
  int watcher_ = 0;
  HealthCheckResponse response_;  // being written while writing_
  absl::Mutex mutex_;
  HealthCheckResponse::ServingStatus wanted_ ABSL_GUARDED_BY(mutex_) = HealthCheckResponse::UNKNOWN;
  HealthCheckResponse::ServingStatus sent_ ABSL_GUARDED_BY(mutex_) = HealthCheckResponse::UNKNOWN;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool gone_ ABSL_GUARDED_BY(mutex_) = false;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

grpc::ServerUnaryReactor* HealthService::Check(grpc::CallbackServerContext* context,
                                               const HealthCheckRequest* request,
                                               HealthCheckResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (!IsKnown(request->service())) {
    reactor->Finish(ToGrpcStatus(
        WithReason(absl::NotFoundError(absl::StrCat("no service ", Quoted(request->service()))),
                   "SERVICE_UNKNOWN", {{"service", request->service()}}),
        "Check", ""));
    return reactor;
  }
  response->set_status(ToStatus(readiness_.status().ok()));
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerWriteReactor<HealthCheckResponse>* HealthService::Watch(
    grpc::CallbackServerContext*, const HealthCheckRequest* request) {
  return new HealthWatch(*this, IsKnown(request->service()));
}

void HealthService::EndWatches() {
  absl::MutexLock lock(&mutex_);
  ending_ = true;
  for (HealthWatch* watch : watches_) watch->EndSoon();
}

}  // namespace mneme
