// Recovery: at the start, every document whose text is durable beyond what is visible is derived
// again, a bounded number at a time, while the engine already serves. Replay of the text is all the
// recovery there is.

#ifndef MNEME_ENGINE_RECOVERY_H_
#define MNEME_ENGINE_RECOVERY_H_

#include <atomic>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "engine/background_thread.h"
#include "engine/engine_metrics.h"
#include "engine/scheduler.h"
#include "memory_store/memory_store.h"

namespace mneme {

// Thread-safe. What it borrows must outlive it.
class Recovery {
 public:
  Recovery(MemoryStore& store, Scheduler& scheduler, EngineMetrics& metrics, Clock& clock);
  ~Recovery();

  // OK when over; UNAVAILABLE with the documents that are left until then, or when its thread
  // failed.
  absl::Status Health(absl::Duration stall_max) const;

 private:
  absl::Status Loop(BackgroundThread& thread);

  MemoryStore& store_;
  Scheduler& scheduler_;
  EngineMetrics& metrics_;
  Clock& clock_;
  mutable absl::Mutex mutex_;
  absl::CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<bool> over_{false};
  std::atomic<int64_t> documents_left_{0};
  BackgroundThread thread_;  // last: it uses all of the above
};

}  // namespace mneme

#endif  // MNEME_ENGINE_RECOVERY_H_
