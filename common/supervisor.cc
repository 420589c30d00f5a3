#include "common/supervisor.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace mneme {

class Supervisor::Members : public prometheus::Collectable {
 public:
  void Add(const WatchedThread* thread) {
    absl::MutexLock lock(&mutex_);
    threads_.push_back(thread);
    std::sort(threads_.begin(), threads_.end(),
              [](const auto* a, const auto* b) { return a->name() < b->name(); });
  }
  void Remove(const WatchedThread* thread) {
    absl::MutexLock lock(&mutex_);
    std::erase(threads_, thread);
  }
  absl::Status Health() const {
    absl::MutexLock lock(&mutex_);
    for (const WatchedThread* thread : threads_) {
      if (absl::Status health = thread->Health(); !health.ok()) return health;
    }
    return absl::OkStatus();
  }

  std::vector<prometheus::MetricFamily> Collect() const override {
    using prometheus::MetricType;
    prometheus::MetricFamily alive{
        "mneme_thread_alive", "1 while the background thread runs.", MetricType::Gauge, {}};
    prometheus::MetricFamily silence{"mneme_thread_last_beat_seconds",
                                     "Time since the background thread last showed that it lives.",
                                     MetricType::Gauge,
                                     {}};
    prometheus::MetricFamily limit{
        "mneme_thread_beat_limit_seconds",
        "Silence of the background thread after which the server is not ready.",
        MetricType::Gauge,
        {}};
    absl::MutexLock lock(&mutex_);
    for (const WatchedThread* thread : threads_) {
      const auto add = [&](prometheus::MetricFamily& family, double value) {
        prometheus::ClientMetric metric;
        metric.label.push_back({"thread", thread->name()});
        metric.gauge.value = value;
        family.metric.push_back(std::move(metric));
      };
      add(alive, thread->alive() ? 1 : 0);
      add(silence, absl::ToDoubleSeconds(thread->silence()));
      add(limit, absl::ToDoubleSeconds(thread->beat_limit()));
    }
    if (threads_.empty()) return {};
    return {std::move(alive), std::move(silence), std::move(limit)};
  }

 private:
  mutable absl::Mutex mutex_;
  std::vector<const WatchedThread*> threads_ ABSL_GUARDED_BY(mutex_);  // by name
};

Supervisor::Supervisor(Metrics& metrics, Clock& clock, absl::Duration beat_limit)
    : metrics_(metrics),
      clock_(clock),
      beat_limit_(beat_limit),
      members_(std::make_shared<Members>()) {
  metrics_.AddCollectable(members_);
}

Supervisor::~Supervisor() = default;

absl::Status Supervisor::Health() const { return members_->Health(); }

WatchedThread::WatchedThread(std::string name, Supervisor& supervisor, absl::Duration beat_limit)
    : name_(std::move(name)),
      supervisor_(supervisor),
      clock_(supervisor.clock()),
      beat_limit_(beat_limit),
      failures_(supervisor.metrics().AddCounter(
          "thread_failures_total", "Background threads that ended without being asked to.",
          {{"thread", name_}})) {
  Beat();
  supervisor_.members_->Add(this);
}

WatchedThread::~WatchedThread() { supervisor_.members_->Remove(this); }

void WatchedThread::Ended(const absl::Status& status) {
  alive_.store(false, std::memory_order_relaxed);
  if (status.ok()) return;
  failures_.Increment();
  LogError("supervisor", "background thread failed",
           {{"thread", name_}, {"status", status.ToString()}});
  absl::MutexLock lock(&mutex_);
  if (failure_.ok()) failure_ = status;
}

absl::Duration WatchedThread::silence() const {
  const absl::Time beat = absl::FromUnixNanos(beat_unix_nanos_.load(std::memory_order_relaxed));
  return std::max(clock_.Now() - beat, absl::ZeroDuration());
}

absl::Status WatchedThread::failure() const {
  absl::MutexLock lock(&mutex_);
  if (failure_.ok()) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("background thread ", name_, " failed: ", failure_.ToString()));
}

absl::Status WatchedThread::Health() const {
  if (absl::Status status = failure(); !status.ok()) return status;
  if (!alive() || silence() <= beat_limit_) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("background thread ", name_, " has shown no sign of life for ",
                   absl::FormatDuration(silence()), "; limit ", absl::FormatDuration(beat_limit_)));
}

}  // namespace mneme
