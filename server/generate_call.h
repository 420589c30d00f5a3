// One Generate call: the engine runs on a worker thread, which waits when the client takes the text
// more slowly than it comes.

#ifndef MNEME_SERVER_GENERATE_CALL_H_
#define MNEME_SERVER_GENERATE_CALL_H_

#include <string>

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "engine/engine.h"
#include "mneme/v1/mneme.pb.h"
#include "server/call.h"
#include "server/query_handlers.h"
#include "server/stall_watch.h"
#include "server/worker_pool.h"

namespace mneme {

// Owned by gRPC: deletes itself when the call is done.
class GenerateCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  static GenerateCall* Start(const CallEnvironment& environment, Engine& engine,
                             const QueryHandlers& queries, WorkerPool& pool,
                             grpc::CallbackServerContext* context, const grpc::ByteBuffer* request);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override { delete this; }

 private:
  GenerateCall(const CallEnvironment& environment, grpc::CallbackServerContext& context);

  absl::Status Run(Engine& engine, const QueryHandlers& queries, const grpc::ByteBuffer& request);
  // Sends a message once the one before it is taken. CANCELLED when the client is gone or takes
  // nothing for client_stall_max, DEADLINE_EXCEEDED.
  absl::Status Send(const v1::GenerateResponse& message) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status AwaitWritable() ABSL_LOCKS_EXCLUDED(mutex_);
  // The call may be gone when this returns.
  void End(const absl::Status& status);

  const CallEnvironment& environment_;
  RequestRecord record_;
  const CallContext context_;
  StallWatch stall_watch_;
  std::string resource_;
  grpc::ByteBuffer message_;  // being written while writing_

  absl::Mutex mutex_;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool client_gone_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace mneme

#endif  // MNEME_SERVER_GENERATE_CALL_H_
