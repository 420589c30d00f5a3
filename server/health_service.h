// grpc.health.v1 with the server's true readiness, for "" and "mneme.v1.MemoryService".

#ifndef MNEME_SERVER_HEALTH_SERVICE_H_
#define MNEME_SERVER_HEALTH_SERVICE_H_

#include <set>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/readiness.h"

namespace mneme {

class HealthWatch;

// Thread-safe. `readiness` must outlive it, and it must outlive the gRPC server it is registered
// with.
class HealthService final : public grpc::health::v1::Health::CallbackService {
 public:
  explicit HealthService(Readiness& readiness) : readiness_(readiness) {}

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context,
                                  const grpc::health::v1::HealthCheckRequest* request,
                                  grpc::health::v1::HealthCheckResponse* response) override;
  grpc::ServerWriteReactor<grpc::health::v1::HealthCheckResponse>* Watch(
      grpc::CallbackServerContext* context,
      const grpc::health::v1::HealthCheckRequest* request) override;

  // Ends all Watch streams after a last NOT_SERVING, so that the gRPC server can shut down; for
  // when draining has begun.
  void EndWatches();

 private:
  friend class HealthWatch;

  Readiness& readiness_;
  absl::Mutex mutex_;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<HealthWatch*> watches_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_SERVER_HEALTH_SERVICE_H_
