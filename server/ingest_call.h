// One Ingest stream: messages go to the engine's Writer, its progress comes back as acks.
//
// gRPC's and the engine's threads only note what happened and wake the stream; one worker thread at
// a time then takes the next step. At most one message is read ahead: while the writer is not ready
// it is held and no other read is started, so the client is held back by gRPC's flow control; the
// end of the stream is seen all the same. Acks carry the latest
// progress; one is being written at a time. A client that takes none for client_stall_max loses the
// stream.

#ifndef MNEME_SERVER_INGEST_CALL_H_
#define MNEME_SERVER_INGEST_CALL_H_

#include <functional>
#include <memory>
#include <string>

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "engine/engine.h"
#include "mneme/v1/mneme.pb.h"
#include "server/call.h"
#include "server/resource_check.h"
#include "server/stall_watch.h"
#include "server/worker_pool.h"

namespace mneme {

// Thread-safe. Lives until gRPC is done with the call and the last step has returned: owners are
// the call itself (until OnDone), queued steps, and for moments whoever drains it.
class IngestCall final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                         public std::enable_shared_from_this<IngestCall> {
 public:
  // `pool` must have room for one task of each stream. `done` is called at the very end.
  static std::shared_ptr<IngestCall> Start(const CallEnvironment& environment, Engine& engine,
                                           const ResourceCheck& check, WorkerPool& pool,
                                           grpc::CallbackServerContext* context,
                                           std::function<void(IngestCall*)> done);
  ~IngestCall() override;

  // Takes no more text, makes durable what was accepted, then ends the stream with UNAVAILABLE.
  void Drain();

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  // What has happened since the last step.
  struct Events {
    bool message = false;  // one lies in read_buffer_
    bool half_closed = false;
    bool cancelled = false;
    bool draining = false;
    absl::Status broken;
  };

  IngestCall(const CallEnvironment& environment, Engine& engine, const ResourceCheck& check,
             WorkerPool& pool, grpc::CallbackServerContext& context,
             std::function<void(IngestCall*)> done);

  // Has a worker thread take a step soon. `note` runs under the lock.
  void Wake(absl::FunctionRef<void()> note) ABSL_LOCKS_EXCLUDED(mutex_);
  // Steps until nothing more has happened.
  void Run() ABSL_LOCKS_EXCLUDED(mutex_);
  void Step(const Events& events);
  // Takes what the client sent. An error ends the stream.
  absl::Status TakeMessage();
  absl::Status Open(const v1::IngestRequest& request);
  absl::Status HalfClose();
  void Read();
  // From here on the stream ends with `outcome` once what was accepted is durable (and visible, if
  // asked and OK).
  void BeginEnd(absl::Status outcome);
  bool ReadyToEnd() ABSL_LOCKS_EXCLUDED(mutex_);
  // Sends the latest progress, if it is news and nothing is being written.
  void SendAck() ABSL_LOCKS_EXCLUDED(mutex_);
  // Drops the writer and finishes the call.
  void End(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  void NoteProgress(const IngestProgress& progress) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const CallEnvironment& environment_;
  Engine& engine_;
  const ResourceCheck& check_;
  WorkerPool& pool_;
  const std::function<void(IngestCall*)> done_;
  const CallContext context_;
  StallWatch stall_watch_;
  std::shared_ptr<IngestCall> self_;  // until OnDone

  // Touched by steps only, which follow one another.
  RequestRecord record_;
  std::unique_ptr<Writer> writer_;
  std::string document_;
  bool wait_visible_ = false;
  bool sealed_ = false;
  bool reading_ = true;  // a read is outstanding
  bool held_ = false;    // a message lies in read_buffer_ until the writer is ready
  bool ending_ = false;
  absl::Status outcome_;
  int64_t settled_bytes_ = 0;      // becomes durable before the end, when ending
  grpc::ByteBuffer read_buffer_;   // gRPC's while reading_
  grpc::ByteBuffer write_buffer_;  // gRPC's while writing_

  absl::Mutex mutex_;
  bool stepping_ ABSL_GUARDED_BY(mutex_) = false;  // a step is queued or running
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;     // something happened since it began
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  Events events_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool progress_is_news_ ABSL_GUARDED_BY(mutex_) = false;
  IngestProgress progress_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_SERVER_INGEST_CALL_H_
