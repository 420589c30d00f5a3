// Whether the server serves: starting, ready, not ready (the engine or the supervisor says why) or
// draining. One
// source for grpc.health.v1, /readyz and the log.

#ifndef MNEME_SERVER_READINESS_H_
#define MNEME_SERVER_READINESS_H_

#include <functional>
#include <map>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "common/background_thread.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "engine/engine.h"

namespace mneme {

// Thread-safe. A thread of its own asks the engine ten times a second and tells the watchers of a
// change.
class Readiness {
 public:
  using Watcher = std::function<void(bool serving)>;

  explicit Readiness(Supervisor& supervisor);
  ~Readiness();
  Readiness(const Readiness&) = delete;
  Readiness& operator=(const Readiness&) = delete;

  // From now on the engine is asked; it must live until Detach or the end of this object.
  void Attach(const Engine& engine);
  // The engine is about to go.
  void Detach();

  // OK, or UNAVAILABLE with the reason. Asks the engine, then the supervisor.
  absl::Status status() const;

  // Never ready again.
  void Drain();
  bool draining() const;

  // Calls `watcher` on every change, from the thread of this object or of Drain, one at a time; not
  // for the state at the time of the call, which is returned through `serving`. After RemoveWatcher
  // no call runs or comes. A watcher must not block nor call back.
  int AddWatcher(Watcher watcher, bool* serving);
  void RemoveWatcher(int id);

 private:
  absl::Status Watch(BackgroundThread& thread);
  // Tells the watchers and the log if `status` is a change.
  void Publish(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_, watchers_mutex_);

  Supervisor& supervisor_;
  Gauge& ready_gauge_;
  Gauge& draining_gauge_;
  mutable absl::Mutex mutex_;
  const Engine* engine_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  // Held while watchers are called, so that their order is the order of the changes.
  absl::Mutex watchers_mutex_ ABSL_ACQUIRED_BEFORE(mutex_);
  bool serving_ ABSL_GUARDED_BY(watchers_mutex_) = false;
  int next_id_ ABSL_GUARDED_BY(watchers_mutex_) = 1;
  std::map<int, Watcher> watchers_ ABSL_GUARDED_BY(watchers_mutex_);
  BackgroundThread thread_;  // last: it uses all of the above
};

}  // namespace mneme

#endif  // MNEME_SERVER_READINESS_H_
