// BackgroundThread: a supervised thread of the engine. It shows that it lives through a heartbeat,
// and an end that nobody asked for is logged, counted, and found by Health.

#ifndef MNEME_ENGINE_BACKGROUND_THREAD_H_
#define MNEME_ENGINE_BACKGROUND_THREAD_H_

#include <atomic>
#include <functional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/metrics.h"

namespace mneme {

// Thread-safe. `metrics` and `clock` must outlive it.
//
// Metrics, by {thread}: thread_alive (1 while it runs, 0 before, after, and when it failed),
// thread_heartbeat_timestamp_seconds, thread_failures_total.
class BackgroundThread {
 public:
  // Time within which a waiting body comes round to Beat again.
  static constexpr absl::Duration kBeatEvery = absl::Seconds(1);

  // Runs `body` at once; it calls Beat at least every kBeatEvery while it waits, and returns OK
  // when its owner asked it to stop. An error or an exception is a failure.
  BackgroundThread(std::string name, Metrics& metrics, Clock& clock,
                   std::function<absl::Status(BackgroundThread&)> body);
  // Joins: the owner must have made the body return.
  ~BackgroundThread();
  BackgroundThread(const BackgroundThread&) = delete;
  BackgroundThread& operator=(const BackgroundThread&) = delete;

  void Beat();
  // UNAVAILABLE when it failed, or when its last beat is older than `stall_max`.
  absl::Status Health(absl::Duration stall_max) const;

 private:
  void Run(const std::function<absl::Status(BackgroundThread&)>& body);

  const std::string name_;
  Clock& clock_;
  Gauge& alive_;
  Gauge& heartbeat_;
  Counter& failures_;
  std::atomic<int64_t> beat_unix_nanos_{0};
  mutable absl::Mutex mutex_;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace mneme

#endif  // MNEME_ENGINE_BACKGROUND_THREAD_H_
