// VisibilityBoard: waits until a document is visible far enough.

#ifndef MNEME_ENGINE_VISIBILITY_H_
#define MNEME_ENGINE_VISIBILITY_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "engine/engine.h"
#include "engine/scheduler.h"
#include "memory_store/memory_store.h"

namespace mneme {

// What to do about text that is not there (any more).
enum class MissingText { kAwait, kRefuse };

// Thread-safe. What it borrows must outlive it.
class VisibilityBoard {
 public:
  explicit VisibilityBoard(const MemoryStore& store) : store_(store) {}

  // Something became visible, or never will.
  void Notify();
  // Waits until `visible_bytes` of the document are visible, hastening what is durable. Text beyond
  // that may yet come, and is waited for, or has been cut off since: kRefuse, ABORTED. NOT_FOUND
  // when the document (named `name` in messages) is gone; DATA_LOSS when it is damaged;
  // FAILED_PRECONDITION when it is sealed and ends before; UNAVAILABLE when the scheduler stops;
  // CANCELLED, DEADLINE_EXCEEDED.
  absl::Status Wait(DocumentId document, absl::string_view name, int64_t visible_bytes,
                    MissingText missing, Scheduler& scheduler, const CallContext& context);

 private:
  const MemoryStore& store_;
  absl::Mutex mutex_;
  absl::CondVar notified_;
  int64_t notices_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace mneme

#endif  // MNEME_ENGINE_VISIBILITY_H_
