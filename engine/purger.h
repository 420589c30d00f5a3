// Purger: takes what was deleted out of every file and tier, in the background, and tells who asked
// when it is done. Deletions that came together, or while it was at work, are purged together. What
// a stop or a failure broke off is taken up again: the store remembers it.

#ifndef MNEME_ENGINE_PURGER_H_
#define MNEME_ENGINE_PURGER_H_

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "engine/background_thread.h"
#include "engine/engine.h"
#include "engine/engine_metrics.h"
#include "memory_store/memory_store.h"

namespace mneme {

// Thread-safe. What it borrows must outlive it.
class Purger {
 public:
  // `sweep` is called every second or so: to delete what has expired.
  Purger(MemoryStore& store, EngineMetrics& metrics, Clock& clock, std::function<void()> sweep);
  ~Purger();

  // Something was deleted.
  void Notify();
  // Calls `purged` once, from a thread of this object or from this call, when the deletion is
  // purged; never, if that was too long ago or is not before the end of this object.
  void WhenPurged(PurgeId id, PurgedCallback purged);
  // Ends the purge that runs, soon; it is taken up again after the next start.
  void Stop();
  // UNAVAILABLE when its thread failed.
  absl::Status Health(absl::Duration stall_max) const { return thread_.Health(stall_max); }

 private:
  // Receipts kept for who asks a little late, at most.
  static constexpr size_t kReceiptsMax = 20'000;

  absl::Status Loop(BackgroundThread& thread);
  // One purge of all that is pending, in a thread of its own while `thread` beats: it may be long.
  void PurgeOnce(BackgroundThread& thread);
  // Tells who waits for these, and sets the gauges of what is left.
  void Done(const std::vector<Deletion>& deletions);
  void ObservePending();

  MemoryStore& store_;
  EngineMetrics& metrics_;
  Clock& clock_;
  const std::function<void()> sweep_;
  std::atomic<bool> cancel_{false};
  absl::Mutex mutex_;
  absl::CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool notified_ ABSL_GUARDED_BY(mutex_) = false;
  std::multimap<PurgeId, PurgedCallback> waiting_ ABSL_GUARDED_BY(mutex_);
  std::map<PurgeId, DeletionReceipt> receipts_ ABSL_GUARDED_BY(mutex_);
  std::deque<PurgeId> receipts_by_age_ ABSL_GUARDED_BY(mutex_);
  absl::Duration retry_after_;  // the thread's; zero after a success
  BackgroundThread thread_;     // last: it uses all of the above
};

}  // namespace mneme

#endif  // MNEME_ENGINE_PURGER_H_
