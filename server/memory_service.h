// mneme.v1.MemoryService on gRPC's callback API. Every method takes raw bytes and hands the call to
// a worker pool: one for calls on the catalog, one for readers, one for Ingest streams, so that
// slow ones never hold up the others.

#ifndef MNEME_SERVER_MEMORY_SERVICE_H_
#define MNEME_SERVER_MEMORY_SERVICE_H_

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/metrics.h"
#include "common/supervisor.h"
#include "engine/engine.h"
#include "mneme/v1/mneme.grpc.pb.h"
#include "server/call.h"
#include "server/catalog_handlers.h"
#include "server/ingest_call.h"
#include "server/operations.h"
#include "server/query_handlers.h"
#include "server/request_cache.h"
#include "server/resource_check.h"
#include "server/worker_pool.h"

namespace mneme {

// Thread-safe. What it borrows must outlive it, and it must outlive the gRPC server it is
// registered with.
class MemoryService final : public v1::MemoryService::Service {
 public:
  MemoryService(const ServerOptions& options, const QueryLimits& limits, Engine& engine,
                ServerInfo info, std::string http_address, const Readiness& readiness,
                Supervisor& supervisor);
  ~MemoryService() override;

  // Ends running Ingest streams once their text is durable; their clients resume elsewhere or
  // later.
  void DrainIngest();

  // For the services beside this one.
  const CallEnvironment& environment() const { return environment_; }
  const ResourceCheck& check() const { return check_; }
  OperationRegistry& operations() { return operations_; }

 private:
  // Registers a unary method that `handler` answers from a thread of `pool`.
  template <typename Request, typename Response>
  void AddUnary(
      Method method, WorkerPool& pool,
      std::function<absl::StatusOr<Response>(const Request&, const CallContext&)> handler);
  void AddCatalogMethods();
  void AddReaderMethods();
  void AddIngest();
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* StartIngest(
      grpc::CallbackServerContext* context);

  const ServerOptions options_;
  Engine& engine_;
  const Readiness& readiness_;
  const ResourceCheck check_;
  RequestCache requests_;
  OperationRegistry operations_;
  RequestMetrics request_metrics_;
  CatalogHandlers catalog_;
  QueryHandlers queries_;
  const CallEnvironment environment_;
  Gauge& ingest_streams_gauge_;

  absl::Mutex mutex_;
  std::map<IngestCall*, std::weak_ptr<IngestCall>> ingest_calls_ ABSL_GUARDED_BY(mutex_);

  // Last: their threads use all of the above.
  WorkerPool catalog_pool_;
  WorkerPool reader_pool_;
  WorkerPool ingest_pool_;
};

}  // namespace mneme

#endif  // MNEME_SERVER_MEMORY_SERVICE_H_
