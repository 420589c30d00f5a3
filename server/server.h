// The gRPC front: MemoryService, google.longrunning.Operations, grpc.health.v1 and reflection on
// one port, with drain.

#ifndef MNEME_SERVER_SERVER_H_
#define MNEME_SERVER_SERVER_H_

#include <memory>
#include <string>

#include <grpcpp/server.h>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/supervisor.h"
#include "engine/engine.h"
#include "server/admin_service.h"
#include "server/catalog_handlers.h"
#include "server/health_service.h"
#include "server/listen_address.h"
#include "server/memory_service.h"
#include "server/operations_service.h"
#include "server/query_handlers.h"
#include "server/readiness.h"
#include "server/server_options.h"

namespace mneme {

// Thread-compatible. What it borrows must outlive it.
class Server {
 public:
  struct Parts {
    Engine& engine;
    // Attached to the engine by the caller once this serves.
    Readiness& readiness;
    // Watches the threads of the server.
    Supervisor& supervisor;
    QueryLimits limits;
    ServerInfo info;
    std::string http_address;  // for GetStatus; empty: none
  };

  // Serves at once. INVALID_ARGUMENT: options.listen is no address; UNAVAILABLE: it cannot be bound
  // (it is named).
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options, Parts parts);
  // Cancels what still runs.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // As bound: never port 0.
  const ListenAddress& address() const { return address_; }
  // For work that no call of this server began.
  OperationRegistry& operations() { return memory_service_->operations(); }

  // Takes no new calls (health says NOT_SERVING), ends Ingest streams once their text is durable,
  // lets other calls finish until `deadline` and cancels them then. Returns when no call runs.
  void Drain(absl::Time deadline);

 private:
  explicit Server(Readiness& readiness) : readiness_(readiness) {}

  Readiness& readiness_;
  ListenAddress address_;
  std::unique_ptr<MemoryService> memory_service_;
  std::unique_ptr<OperationsService> operations_service_;
  std::unique_ptr<AdminService> admin_service_;
  std::unique_ptr<HealthService> health_service_;
  std::unique_ptr<grpc::Server> grpc_;  // last: its calls use the services
  bool drained_ = false;
};

}  // namespace mneme

#endif  // MNEME_SERVER_SERVER_H_
