// google.longrunning.Operations over the registry of this server's operations. No method blocks a
// thread: WaitOperation is woken by the operation's end or an alarm.

#ifndef MNEME_SERVER_OPERATIONS_SERVICE_H_
#define MNEME_SERVER_OPERATIONS_SERVICE_H_

#include "google/longrunning/operations.grpc.pb.h"
#include "server/call.h"
#include "server/operations.h"
#include "server/resource_check.h"

namespace mneme {

// Thread-safe. What it borrows must outlive it, and it must outlive the gRPC server it is
// registered with.
class OperationsService final : public google::longrunning::Operations::CallbackService {
 public:
  OperationsService(const CallEnvironment& environment, const ResourceCheck& check,
                    OperationRegistry& operations)
      : environment_(environment), check_(check), operations_(operations) {}

  grpc::ServerUnaryReactor* ListOperations(
      grpc::CallbackServerContext* context,
      const google::longrunning::ListOperationsRequest* request,
      google::longrunning::ListOperationsResponse* response) override;
  grpc::ServerUnaryReactor* GetOperation(grpc::CallbackServerContext* context,
                                         const google::longrunning::GetOperationRequest* request,
                                         google::longrunning::Operation* response) override;
  grpc::ServerUnaryReactor* CancelOperation(
      grpc::CallbackServerContext* context,
      const google::longrunning::CancelOperationRequest* request,
      google::protobuf::Empty* response) override;
  grpc::ServerUnaryReactor* WaitOperation(grpc::CallbackServerContext* context,
                                          const google::longrunning::WaitOperationRequest* request,
                                          google::longrunning::Operation* response) override;

 private:
  absl::Status List(const google::longrunning::ListOperationsRequest& request,
                    google::longrunning::ListOperationsResponse* response) const;

  const CallEnvironment& environment_;
  const ResourceCheck& check_;
  OperationRegistry& operations_;
};

}  // namespace mneme

#endif  // MNEME_SERVER_OPERATIONS_SERVICE_H_
