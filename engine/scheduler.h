// Scheduler: durable text -> visible chunks. It knows which documents have text that is not
// derived, cuts it into segments (encode threads, one document each at a time), runs batches of
// segments of any documents through the lower half (derive thread), and stores what came out (put
// thread) while the next batch runs. Text waits on disk, not here: the queue holds at most
// queue_segments_max segments, and what has been accepted beyond it is counted, so that writers
// stop.
//
// All serve documents in turn, so a short text does not wait for a long one to end.

#ifndef MNEME_ENGINE_SCHEDULER_H_
#define MNEME_ENGINE_SCHEDULER_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/background_thread.h"
#include "common/clock.h"
#include "engine/document_source.h"
#include "engine/engine_metrics.h"
#include "engine/segmenter.h"
#include "kernels/cpu/thread_pool.h"
#include "memory_store/memory_store.h"
#include "model/model.h"

namespace mneme {

struct SchedulerOptions {
  int encode_threads = 1;
  int put_threads = 1;
  int batch_segments_max = 0;
  int batch_tokens_max = 0;
  int queue_segments_max = 0;
  absl::Duration idle_flush;
  // Pages of memories that do not keep them on disk are not made: otherwise they begin in the host
  // tier.
  bool skip_pages_not_kept = false;
  // First and longest wait before a step that failed is tried again.
  absl::Duration retry_wait_min = absl::Milliseconds(50);
  absl::Duration retry_wait_max = absl::Seconds(5);
};

// Called from the scheduler's threads, not under its lock; must not block.
struct SchedulerHooks {
  // More of a document is visible.
  std::function<void(const DocumentInfo&)> visible;
  // A document cannot be derived further: DATA_LOSS or NOT_FOUND. The scheduler has forgotten it.
  std::function<void(DocumentId, const absl::Status&)> failed;
  // The queue may have room again.
  std::function<void()> room;
};

// Thread-safe. What it borrows must outlive it.
class Scheduler {
 public:
  Scheduler(const SchedulerOptions& options, const Model& model, const SegmentShape& shape,
            MemoryStore& store, EngineMetrics& metrics, Supervisor& supervisor,
            SchedulerHooks hooks);
  ~Scheduler();
  // Lets the threads end after the step they are at, and returns at once: what is left to derive is
  // left for the next start.
  void StopSoon();
  bool stopping() const;
  // Ends the threads. Idempotent; nothing is derived any more.
  void Stop();

  // Text of a document is durable up to durable_bytes. Sealed: no more will come, so the open
  // segment need not wait.
  void TextDurable(DocumentId document, int64_t durable_bytes, bool sealed);
  // Derives the text up to byte_end, once durable, without waiting for the document to be idle.
  // Nothing for a document without text to derive.
  void Flush(DocumentId document, int64_t byte_end);
  // Derives what is stored of a document now and not visible, without waiting; nothing for one that
  // is damaged or gone.
  void DeriveStored(DocumentId document);
  // Between Hold and Release the place in the text is kept in memory even when all is visible.
  void Hold(DocumentId document);
  void Release(DocumentId document);
  // The document was deleted.
  void Forget(DocumentId document);

  // Bytes accepted by writers that are not durable yet; they count as queued.
  void AddAccepted(int64_t bytes) { accepted_bytes_.fetch_add(bytes, std::memory_order_relaxed); }
  // Accepted bytes were given up: whoever waits for room looks again.
  void TellRoom() { hooks_.room(); }
  // Segments that wait, with accepted and durable text counted as the segments it will be, are at
  // queue_segments_max or beyond.
  bool full() const;

  // True when all text of the document that is durable has become visible, or never will.
  bool Done(DocumentId document) const;

 private:
  struct Document;
  // A document's next step for the encode thread.
  struct Step {
    std::shared_ptr<Document> document;
    int64_t durable_bytes = 0;
    bool take_open = false;
  };

  // Groups of segments that went through the network together.
  struct DerivedBatch {
    std::vector<SegmentGroup> groups;
    std::vector<SegmentDerived> derived;
    absl::Time start;  // of deriving them
  };

  absl::Status EncodeLoop(BackgroundThread& thread);
  absl::Status DeriveLoop(BackgroundThread& thread);
  absl::Status PutLoop(BackgroundThread& thread);
  // The next document in turn that the encode thread can do something for; sets *due to the
  // earliest time at which one may come without a signal.
  std::optional<Step> NextStep(absl::Time now, absl::Time* due)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FinishStep(DocumentId id, const Step& step,
                  absl::StatusOr<std::optional<SegmentGroup>> group);
  // Where the document ends now, if a step failed because it has lost its end.
  std::optional<int64_t> EndLeft(DocumentId id, const absl::Status& status) const;
  std::vector<SegmentGroup> TakeBatch(absl::Time now, absl::Time* due)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What could be derived of a batch; the rest waits to be tried again.
  DerivedBatch DeriveBatch(std::vector<SegmentGroup> batch, BackgroundThread& thread);
  void PutBatch(const DerivedBatch& batch, BackgroundThread& thread);
  absl::Status Forward(const std::vector<SegmentGroup>& groups,
                       std::vector<SegmentDerived>* derived);
  // Stores until it succeeds or the scheduler stops; documents side by side.
  absl::Status Put(absl::Span<const SegmentDerived> derived, BackgroundThread& thread);
  absl::Status PutWithRetries(absl::Span<const SegmentDerived> derived, BackgroundThread& thread);
  void FinishGroups(const std::vector<SegmentGroup>& groups,
                    const std::map<DocumentId, DocumentInfo>& before, absl::Duration took);
  // Puts groups of one document back in front of its queue, to be tried again after a while.
  void Requeue(DocumentId id, std::vector<SegmentGroup> groups);
  void DropIfDone(DocumentId document) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Erase(DocumentId document) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Full() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CountQueue() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HasWork(const Document& document) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Duration RetryWait(int failures) const;
  Document& At(DocumentId document) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const SchedulerOptions options_;
  const Model& model_;
  const SegmentShape& shape_;
  MemoryStore& store_;
  EngineMetrics& metrics_;
  Clock& clock_;
  const SchedulerHooks hooks_;
  ThreadPool put_pool_;
  std::atomic<int64_t> accepted_bytes_{0};

  mutable absl::Mutex mutex_;
  absl::CondVar changed_;
  // Shared with the step that the encode thread runs outside the lock.
  std::map<DocumentId, std::shared_ptr<Document>> documents_ ABSL_GUARDED_BY(mutex_);
  int64_t queued_segments_ ABSL_GUARDED_BY(mutex_) = 0;
  // Sum of unread_bytes() of all documents: durable, not yet encoded.
  int64_t unread_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  DocumentId last_encoded_ ABSL_GUARDED_BY(mutex_){};
  DocumentId last_derived_ ABSL_GUARDED_BY(mutex_){};
  std::deque<DerivedBatch> derived_ ABSL_GUARDED_BY(mutex_);  // to be stored, in this order
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  // Last: they use all of the above.
  std::vector<std::unique_ptr<BackgroundThread>> encode_threads_;
  std::unique_ptr<BackgroundThread> derive_thread_;
  std::unique_ptr<BackgroundThread> put_thread_;
};

}  // namespace mneme

#endif  // MNEME_ENGINE_SCHEDULER_H_
