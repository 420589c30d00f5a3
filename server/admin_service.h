// mneme.v1.AdminService: checks, backups and what goes on, for operators. Long work runs as
// operations on threads of its own, one check and one backup at a time.

#ifndef MNEME_SERVER_ADMIN_SERVICE_H_
#define MNEME_SERVER_ADMIN_SERVICE_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/metrics.h"
#include "common/supervisor.h"
#include "engine/engine.h"
#include "mneme/v1/admin.grpc.pb.h"
#include "server/call.h"
#include "server/operations.h"
#include "server/resource_check.h"
#include "server/worker_pool.h"

namespace mneme {

// Thread-safe. What it borrows must outlive it, and it must outlive the gRPC server it is
// registered with.
class AdminService final : public v1::AdminService::Service {
 public:
  // `tiers`: see ServerInfo; may be empty.
  AdminService(const CallEnvironment& environment, const ResourceCheck& check,
               OperationRegistry& operations, Engine& engine,
               std::function<std::vector<TierUse>()> tiers, Supervisor& supervisor);
  ~AdminService() override;

 private:
  template <typename Request, typename Response>
  void AddUnary(
      Method method,
      std::function<absl::StatusOr<Response>(const Request&, const CallContext&)> handler);

  absl::StatusOr<google::longrunning::Operation> BeginCheck(const std::string& memory, bool heal);
  absl::StatusOr<google::longrunning::Operation> BeginBackup();
  // The work of a backup's operation.
  absl::StatusOr<google::protobuf::Any> Backup(RunningOperation& operation);
  absl::StatusOr<v1::ListBackupsResponse> KnownBackups() const;
  absl::StatusOr<google::longrunning::Operation> BeginVerifyBackups(int64_t id);
  // The work of its operation.
  absl::StatusOr<google::protobuf::Any> VerifyCopies(int64_t id, RunningOperation& operation);
  absl::Status RemoveBackup(int64_t id) const;
  absl::StatusOr<v1::Activity> ActivityNow(int slow_requests_max) const;
  // FAILED_PRECONDITION without a backup directory.
  absl::Status CheckBackupDir() const;

  const CallEnvironment& environment_;
  const ResourceCheck& check_;
  OperationRegistry& operations_;
  Engine& engine_;
  const std::function<std::vector<TierUse>()> tiers_;
  const Metrics& metrics_;
  Counter& backups_;
  Counter& failed_backups_;
  Counter& copied_bytes_;
  Counter& damaged_files_;
  Gauge& last_backup_;

  // Last: their threads use all of the above.
  WorkerPool call_pool_;
  WorkerPool operation_pool_;
};

}  // namespace mneme

#endif  // MNEME_SERVER_ADMIN_SERVICE_H_
