// TextCommitter: group commit. One thread gathers the pending text of all writers into one synced
// write of the store, so that many writers share one sync of the disk.

#ifndef MNEME_ENGINE_TEXT_COMMITTER_H_
#define MNEME_ENGINE_TEXT_COMMITTER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/background_thread.h"
#include "engine/engine_metrics.h"
#include "memory_store/memory_store.h"

namespace mneme {

// One piece of text, on its way to the log.
struct TextPiece {
  DocumentId document{};
  int64_t byte_offset = 0;
  // Shared with the writer, which compares bytes that are sent again while the piece waits.
  std::shared_ptr<const std::string> text;
  bool seal = false;
  // Called once, on the committer's thread: OK when the piece is durable.
  absl::AnyInvocable<void(const absl::Status&)> done;
};

struct TextCommitterOptions {
  int64_t batch_bytes_max = 0;
  int64_t queue_bytes_max = 0;
  absl::Duration wait_max;
  // Called on the committer's thread when the queue is no longer full.
  std::function<void()> room;
};

// Thread-safe. What it borrows must outlive it.
class TextCommitter {
 public:
  TextCommitter(const TextCommitterOptions& options, MemoryStore& store, EngineMetrics& metrics,
                Supervisor& supervisor);
  // Pieces still waiting are told UNAVAILABLE.
  ~TextCommitter();
  // Ends the thread. Idempotent; Submit must not be called any more.
  void Stop();

  // Pieces of one document become durable in the order in which they are submitted; after one that
  // fails, those behind it fail too.
  void Submit(TextPiece piece);
  // More bytes wait than queue_bytes_max.
  bool full() const;
  // Waits until nothing waits and all `done` have returned; false at the deadline (real time).
  bool WaitIdle(absl::Time deadline);

 private:
  absl::Status Loop(BackgroundThread& thread);
  void Commit(std::vector<TextPiece> pieces);

  const TextCommitterOptions options_;
  MemoryStore& store_;
  EngineMetrics& metrics_;
  mutable absl::Mutex mutex_;
  absl::CondVar changed_;
  std::deque<TextPiece> queue_ ABSL_GUARDED_BY(mutex_);
  int64_t queue_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool committing_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::unique_ptr<BackgroundThread> thread_;  // last: it uses all of the above
};

}  // namespace mneme

#endif  // MNEME_ENGINE_TEXT_COMMITTER_H_
