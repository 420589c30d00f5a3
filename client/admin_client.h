// AdminClient: an operator's calls, mneme.v1.AdminService, and the operations that they begin. One
// attempt each: an operator sees what is wrong, and asks again.

#ifndef MNEME_CLIENT_ADMIN_CLIENT_H_
#define MNEME_CLIENT_ADMIN_CLIENT_H_

#include <functional>
#include <memory>
#include <string>

#include <grpcpp/channel.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/client.h"
#include "google/longrunning/operations.grpc.pb.h"
#include "mneme/v1/admin.grpc.pb.h"

namespace mneme {

// Thread-safe. Calls block.
class AdminClient {
 public:
  explicit AdminClient(const std::shared_ptr<grpc::Channel>& channel);

  // Of one memory (its full name), or of everything (empty). `progress` may be empty. Cancelling
  // the call cancels the operation. Errors are those of the call or of the operation.
  absl::StatusOr<v1::CheckReport> Check(
      const std::string& memory, bool heal,
      const std::function<void(const v1::CheckProgress&)>& progress, const CallOptions& call = {});
  absl::StatusOr<v1::Backup> CreateBackup(
      const std::function<void(const v1::BackupProgress&)>& progress, const CallOptions& call = {});
  absl::StatusOr<v1::ListBackupsResponse> ListBackups(const CallOptions& call = {});
  // Of one backup, or of all (id 0). As CreateBackup.
  absl::StatusOr<v1::VerifyBackupsResponse> VerifyBackups(
      int64_t id, const std::function<void(const v1::BackupProgress&)>& progress,
      const CallOptions& call = {});
  absl::Status DeleteBackup(int64_t id, const CallOptions& call = {});
  absl::StatusOr<v1::Activity> GetActivity(int slow_requests_max, const CallOptions& call = {});

 private:
  using Operation = google::longrunning::Operation;

  // Asks until the operation has ended; `told` gets each state.
  absl::StatusOr<Operation> Await(Operation operation,
                                  const std::function<void(const Operation&)>& told,
                                  const CallOptions& call);

  const std::unique_ptr<v1::AdminService::StubInterface> admin_;
  const std::unique_ptr<google::longrunning::Operations::StubInterface> operations_;
};

}  // namespace mneme

#endif  // MNEME_CLIENT_ADMIN_CLIENT_H_
