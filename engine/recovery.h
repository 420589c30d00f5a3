// Recovery: at the start, every document whose text is durable beyond what is visible is derived
// again, a bounded number at a time, while the engine already serves. Replay of the text is all the
// recovery there is.

#ifndef MNEME_ENGINE_RECOVERY_H_
#define MNEME_ENGINE_RECOVERY_H_

#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/background_thread.h"
#include "common/clock.h"
#include "engine/engine_metrics.h"
#include "engine/scheduler.h"
#include "memory_store/memory_store.h"

namespace mneme {

// Thread-safe. What it borrows must outlive it. While it works the engine serves: what is left to
// derive has not been visible to anybody.
class Recovery {
 public:
  Recovery(const MemoryStore& store, Scheduler& scheduler, EngineMetrics& metrics,
           Supervisor& supervisor);
  ~Recovery();

 private:
  absl::Status Loop(BackgroundThread& thread);

  Scheduler& scheduler_;
  EngineMetrics& metrics_;
  Clock& clock_;
  mutable absl::Mutex mutex_;
  absl::CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<DocumentId> waiting_;  // newest last; the thread's, once it runs
  BackgroundThread thread_;          // last: it uses all of the above
};

}  // namespace mneme

#endif  // MNEME_ENGINE_RECOVERY_H_
