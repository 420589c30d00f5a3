// A fixed set of threads with a bounded queue. RPC callbacks only hand work over to one; a full
// queue refuses it.

#ifndef MNEME_SERVER_WORKER_POOL_H_
#define MNEME_SERVER_WORKER_POOL_H_

#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "common/supervisor.h"

namespace mneme {

// Thread-safe. Metrics carry the label pool=`name`.
class WorkerPool {
 public:
  using Task = absl::AnyInvocable<void()>;

  // `supervisor` watches its threads, as one: "NAME_calls"; a task may take as long as it likes.
  WorkerPool(std::string name, int threads, int queue_max, Supervisor& supervisor);
  // Runs what is queued, then ends the threads.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // RESOURCE_EXHAUSTED, with RetryInfo, when queue_max tasks wait; the task is dropped then.
  absl::Status Submit(Task task);

 private:
  struct Waiting {
    Task task;
    absl::Time since;
  };

  void Work();
  // Until the end; an exception of a task ends the thread.
  void Serve();

  const std::string name_;
  const size_t queue_max_;
  Gauge& depth_gauge_;
  Gauge& busy_gauge_;
  Counter& rejected_counter_;
  Histogram& wait_histogram_;
  WatchedThread watched_;
  absl::Mutex mutex_;
  std::deque<Waiting> queue_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace mneme

#endif  // MNEME_SERVER_WORKER_POOL_H_
