// IngestStream: one document on its way to the server, over as many gRPC streams as it takes.
//
// A stream begins with the server's first ack, which says what is durable already. Text goes from
// there in pieces; acks come on a second thread. When the stream breaks, the next one begins after
// a backoff, at the server's durable_bytes. What was stored before the first stream began is sent
// again from the start, and the server compares it: so the same ingest twice changes nothing, and
// another text under the same name is an error.

#ifndef MNEME_CLIENT_INGEST_STREAM_H_
#define MNEME_CLIENT_INGEST_STREAM_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/cancellation.h"
#include "client/retry.h"
#include "client/text_source.h"
#include "mneme/v1/mneme.grpc.pb.h"

namespace mneme {

// Where an ingest stands. All sizes in bytes of the document.
struct IngestState {
  // As in the server's latest ack; never decreasing.
  int64_t durable_bytes = 0;
  int64_t visible_bytes = 0;
  int64_t token_count = 0;
  // Stored before this ingest began.
  int64_t durable_bytes_before = 0;
  int64_t token_count_before = 0;
  // End of what was sent, over all streams.
  int64_t sent_bytes = 0;
  // Streams that broke and were, or are being, replaced; and why the latest one broke while none
  // has replaced it yet.
  int breaks = 0;
  absl::Status waiting_for;
};

struct IngestPlan {
  // tenants/{t}/memories/{m}/documents/{d}.
  std::string document;
  // A document that this creates expires after so long; infinite: when its memory says.
  absl::Duration ttl = absl::InfiniteDuration();
  // No more text, ever, after this source.
  bool seal = false;
  // Done when all text is visible; otherwise when it is durable.
  bool wait_visible = true;
  // The source's first byte goes after what the document holds, instead of being its first byte.
  bool append = false;
  // Bytes sent but not known to be durable, at most; and bytes a message (at most 1 MiB).
  int64_t window_bytes = int64_t{8} << 20;
  int64_t piece_bytes = int64_t{256} << 10;
  // How long ABORTED (another stream writes the document) is waited out: at the start, and after a
  // stream of our own broke that the server may still take for alive.
  absl::Duration aborted_start_max = absl::Seconds(1);
  absl::Duration aborted_resume_max = absl::Seconds(30);
  // Called at every ack and every break, one call at a time, from a thread of the client; must not
  // block for long.
  std::function<void(const IngestState&)> on_progress;
};

struct IngestOutcome {
  // OK: everything is durable, and visible where that was asked. Otherwise the bytes before
  // state.durable_bytes are safe, and the same Ingest goes on from there.
  absl::Status status;
  IngestState state;
};

// Thread-compatible: one Run(). Used by Client::Ingest; not for use by itself.
class IngestStream {
 public:
  // All but `plan` are borrowed until Run() returns; `cancellation` may be null.
  IngestStream(v1::MemoryService::StubInterface& stub, IngestPlan plan, TextSource& source,
               Cancellation* cancellation, absl::Time deadline);

  // `connect` governs the attempts until the first ack, `resume` those after it.
  IngestOutcome Run(Retrier connect, Retrier resume);

 private:
  using Stream = grpc::ClientReaderWriterInterface<v1::IngestRequest, v1::IngestResponse>;

  // One stream from open to Finish.
  absl::Status RunOneStream();
  // Everything from the resume offset to the end of the source. OK also when the stream closed
  // under it.
  absl::Status Send(Stream& stream);
  // Where this stream begins to send, from its first ack. FAILED_PRECONDITION when acked bytes have
  // gone.
  absl::StatusOr<int64_t> ResumeOffset();
  void TakeAck(const v1::IngestResponse& ack);
  // Waits until bytes up to `offset` may be sent; false when the stream has closed.
  bool AwaitWindow(int64_t offset);
  void ReportProgress();

  v1::MemoryService::StubInterface& stub_;
  const IngestPlan plan_;
  TextSource& source_;
  Cancellation* const cancellation_;
  const absl::Time deadline_;

  absl::Mutex mutex_;
  IngestState state_ ABSL_GUARDED_BY(mutex_);
  // Ever; and of the present stream.
  bool connected_ ABSL_GUARDED_BY(mutex_) = false;
  bool acked_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  // durable_bytes of the present stream's first ack.
  int64_t stream_durable_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  // Grew since the last look: durable, visible or tokens.
  bool progressed_ ABSL_GUARDED_BY(mutex_) = false;
  // Document offset of the source's first byte.
  int64_t base_ = 0;
  // The present stream sent the source's last byte and half-closed.
  bool sent_all_ = false;
};

}  // namespace mneme

#endif  // MNEME_CLIENT_INGEST_STREAM_H_
