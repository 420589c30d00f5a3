// One ReadDocument call: pieces of a document's text, each read on a worker thread once the client
// has taken the one before. A client that takes nothing for client_stall_max loses the call.

#ifndef MNEME_SERVER_READ_DOCUMENT_CALL_H_
#define MNEME_SERVER_READ_DOCUMENT_CALL_H_

#include <string>

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "engine/engine.h"
#include "server/call.h"
#include "server/resource_check.h"
#include "server/stall_watch.h"
#include "server/worker_pool.h"

namespace mneme {

// Owned by gRPC: deletes itself when the call is done. Runs on one thread at a time.
class ReadDocumentCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  static ReadDocumentCall* Start(const CallEnvironment& environment, Engine& engine,
                                 const ResourceCheck& check, WorkerPool& pool,
                                 grpc::CallbackServerContext* context,
                                 const grpc::ByteBuffer* request);

  void OnWriteDone(bool ok) override;
  void OnDone() override { delete this; }

 private:
  ReadDocumentCall(const CallEnvironment& environment, Engine& engine, const ResourceCheck& check,
                   WorkerPool& pool, grpc::CallbackServerContext& context);

  // Checks the request and fills name_, next_ and end_.
  absl::Status Open(const grpc::ByteBuffer& request);
  // Hands `step` over to the pool, or ends the call when it is full.
  void Submit(WorkerPool::Task step);
  // Reads and sends the next piece, or ends the call.
  void SendNext();
  void End(const absl::Status& status);

  const CallEnvironment& environment_;
  Engine& engine_;
  const ResourceCheck& check_;
  WorkerPool& pool_;
  RequestRecord record_;
  const CallContext context_;
  StallWatch stall_watch_;
  std::string name_;
  int64_t next_ = 0;
  int64_t end_ = 0;
  grpc::ByteBuffer piece_;
};

}  // namespace mneme

#endif  // MNEME_SERVER_READ_DOCUMENT_CALL_H_
