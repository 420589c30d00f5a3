#include "server/worker_pool.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/error.h"

namespace mneme {

WorkerPool::WorkerPool(std::string name, int threads, int queue_max, Metrics& metrics)
    : name_(std::move(name)),
      queue_max_(queue_max),
      depth_gauge_(metrics.AddGauge("worker_queue_depth", "Calls that wait for a worker thread.",
                                    {{"pool", name_}})),
      busy_gauge_(
          metrics.AddGauge("worker_busy_threads", "Worker threads at work.", {{"pool", name_}})),
      rejected_counter_(metrics.AddCounter(
          "worker_rejected_total", "Calls refused because the queue was full.", {{"pool", name_}})),
      wait_histogram_(metrics.AddHistogram("worker_wait_seconds",
                                           "Time that calls waited for a worker thread.",
                                           Metrics::LatencyBounds(), {{"pool", name_}})) {
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
  const auto has_work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !queue_.empty();
  };
  while (true) {
    Waiting next;
    {
      absl::MutexLock lock(&mutex_, absl::Condition(&has_work));
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
