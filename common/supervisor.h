// Supervisor: knows every thread that works in the background, whether it lives, and when it last
// showed that it does. One for the whole process, so that readiness, metrics and log agree.
//
// A thread beats while it works and while it waits (waits are bounded). One that ended without
// being asked to is dead, one whose last beat is older than its limit hangs: either makes Health an
// error that names it.

#ifndef MNEME_COMMON_SUPERVISOR_H_
#define MNEME_COMMON_SUPERVISOR_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/metrics.h"

namespace mneme {

class WatchedThread;

// Thread-safe. Must outlive what it watches; `metrics` and `clock` must outlive it.
//
// Metrics, by {thread}: thread_alive (1 while it runs, 0 when it ended), thread_last_beat_seconds
// (since its last beat), thread_beat_limit_seconds, thread_failures_total.
class Supervisor {
 public:
  // `beat_limit`: of threads that state none of their own.
  Supervisor(Metrics& metrics, Clock& clock, absl::Duration beat_limit = absl::Minutes(2));
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  // UNAVAILABLE names the first thread, by name, that is dead or hangs, and why.
  absl::Status Health() const;

  Metrics& metrics() { return metrics_; }
  Clock& clock() { return clock_; }
  absl::Duration beat_limit() const { return beat_limit_; }

 private:
  friend class WatchedThread;
  // Read when Prometheus asks; outlives the supervisor inside Metrics, and is empty then.
  class Members;

  Metrics& metrics_;
  Clock& clock_;
  const absl::Duration beat_limit_;
  const std::shared_ptr<Members> members_;  // shared with Metrics
};

// A thread, or a pool of threads, that is watched as long as this lives. Thread-safe.
class WatchedThread {
 public:
  // For pools whose work may take as long as their callers like: only their end is noticed.
  static constexpr absl::Duration kNoLimit = absl::InfiniteDuration();

  WatchedThread(std::string name, Supervisor& supervisor, absl::Duration beat_limit);
  ~WatchedThread();
  WatchedThread(const WatchedThread&) = delete;
  WatchedThread& operator=(const WatchedThread&) = delete;

  const std::string& name() const { return name_; }
  // Shows life: one relaxed store.
  void Beat() {
    beat_unix_nanos_.store(absl::ToUnixNanos(clock_.Now()), std::memory_order_relaxed);
  }
  // It ended: OK as it was asked to, otherwise as a failure, which is counted and logged.
  void Ended(const absl::Status& status);
  bool alive() const { return alive_.load(std::memory_order_relaxed); }
  absl::Duration silence() const;
  absl::Duration beat_limit() const { return beat_limit_; }
  // What it ended with, UNAVAILABLE; OK while it lives, and when it was asked to end.
  absl::Status failure() const;
  // failure(), or UNAVAILABLE when it has been silent for longer than its limit.
  absl::Status Health() const;

 private:
  const std::string name_;
  Supervisor& supervisor_;
  Clock& clock_;
  const absl::Duration beat_limit_;
  Counter& failures_;
  std::atomic<int64_t> beat_unix_nanos_{0};
  std::atomic<bool> alive_{true};
  mutable absl::Mutex mutex_;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_COMMON_SUPERVISOR_H_
