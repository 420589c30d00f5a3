// BackgroundThread: a thread with a body of its own, watched by the supervisor. It shows that it
// lives through a heartbeat, and an end that nobody asked for is logged, counted, and found by the
// supervisor's Health.

#ifndef MNEME_COMMON_BACKGROUND_THREAD_H_
#define MNEME_COMMON_BACKGROUND_THREAD_H_

#include <atomic>
#include <functional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/supervisor.h"

namespace mneme {

// Thread-safe. `supervisor` must outlive it.
class BackgroundThread {
 public:
  // Time within which a waiting body comes round to Beat again.
  static constexpr absl::Duration kBeatEvery = absl::Seconds(1);

  // Runs `body` at once; it calls Beat at least every kBeatEvery while it waits, and returns OK
  // when its owner asked it to stop. An error, an exception, or a return before MayEnd is a
  // failure. Silent for longer than the supervisor's limit, it hangs.
  BackgroundThread(std::string name, Supervisor& supervisor,
                   std::function<absl::Status(BackgroundThread&)> body);
  // Joins: the owner must have made the body return.
  ~BackgroundThread();
  BackgroundThread(const BackgroundThread&) = delete;
  BackgroundThread& operator=(const BackgroundThread&) = delete;

  void Beat() { watched_.Beat(); }
  // From now on a return of the body is no failure: called by the owner before it asks for it.
  void MayEnd() { may_end_.store(true, std::memory_order_relaxed); }
  // UNAVAILABLE when it failed.
  absl::Status failure() const { return watched_.failure(); }

 private:
  void Run(const std::function<absl::Status(BackgroundThread&)>& body);

  WatchedThread watched_;
  std::atomic<bool> may_end_{false};
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace mneme

#endif  // MNEME_COMMON_BACKGROUND_THREAD_H_
