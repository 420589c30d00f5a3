#include "server/worker_pool.h"

#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/background_thread.h"
#include "server/error.h"

namespace mneme {

WorkerPool::WorkerPool(std::string name, int threads, int queue_max, Supervisor& supervisor)
    : name_(std::move(name)),
      queue_max_(queue_max),
      depth_gauge_(supervisor.metrics().AddGauge(
          "worker_queue_depth", "Calls that wait for a worker thread.", {{"pool", name_}})),
      busy_gauge_(supervisor.metrics().AddGauge("worker_busy_threads", "Worker threads at work.",
                                                {{"pool", name_}})),
      rejected_counter_(supervisor.metrics().AddCounter(
          "worker_rejected_total", "Calls refused because the queue was full.", {{"pool", name_}})),
      wait_histogram_(supervisor.metrics().AddHistogram(
          "worker_wait_seconds", "Time that calls waited for a worker thread.",
          Metrics::LatencyBounds(), {{"pool", name_}})),
      watched_(absl::StrCat(name_, "_calls"), supervisor, WatchedThread::kNoLimit) {
  Metrics& metrics = supervisor.metrics();
  metrics
      .AddGauge("worker_queue_limit", "Calls that may wait for a worker thread.", {{"pool", name_}})
      .Set(queue_max);
  metrics.AddGauge("worker_threads", "Worker threads.", {{"pool", name_}}).Set(threads);
  threads_.reserve(threads);
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
}

WorkerPool::~WorkerPool() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

absl::Status WorkerPool::Submit(Task task) {
  {
    absl::MutexLock lock(&mutex_);
    if (queue_.size() < queue_max_) {
      queue_.push_back({std::move(task), absl::Now()});
      depth_gauge_.Set(static_cast<double>(queue_.size()));
      return absl::OkStatus();
    }
  }
  rejected_counter_.Increment();
  return WithRetryAfter(
      WithReason(absl::ResourceExhaustedError(
                     absl::StrCat("queue of ", name_, " calls is full: ", queue_max_, " wait")),
                 "QUEUE_FULL", {{"pool", name_}, {"limit", absl::StrCat(queue_max_)}}),
      absl::Seconds(1));
}

void WorkerPool::Work() {
  // As in BackgroundThread: what throws is a library below, or an allocation that fails.
  try {
    Serve();
  } catch (const std::exception& e) {
    watched_.Ended(absl::InternalError(absl::StrCat("exception: ", e.what())));
  } catch (...) {
    watched_.Ended(absl::InternalError("exception of unknown type"));
  }
}

void WorkerPool::Serve() {
  const auto has_work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !queue_.empty();
  };
  while (true) {
    Waiting next;
    {
      absl::MutexLock lock(&mutex_);
      while (!mutex_.AwaitWithTimeout(absl::Condition(&has_work), BackgroundThread::kBeatEvery)) {
        watched_.Beat();
      }
      watched_.Beat();
      if (queue_.empty()) return;
      next = std::move(queue_.front());
      queue_.pop_front();
      depth_gauge_.Set(static_cast<double>(queue_.size()));
    }
    wait_histogram_.Observe(absl::ToDoubleSeconds(absl::Now() - next.since));
    busy_gauge_.Increment();
    next.task();
    next.task = nullptr;
    busy_gauge_.Decrement();
  }
}

}  // namespace mneme
