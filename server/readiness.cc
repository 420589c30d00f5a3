#include "server/readiness.h"

#include <string>
#include <utility>

#include "common/log.h"
#include "common/status_macros.h"
#include "server/error.h"

namespace mneme {
namespace {

constexpr absl::Duration kPollInterval = absl::Milliseconds(100);

}  // namespace

Readiness::Readiness(Supervisor& supervisor)
    : supervisor_(supervisor),
      ready_gauge_(
          supervisor.metrics().AddGauge("ready", "1 while the server serves, otherwise 0.")),
      draining_gauge_(
          supervisor.metrics().AddGauge("draining", "1 once the server stops, otherwise 0.")),
      thread_("readiness", supervisor, [this](BackgroundThread& thread) { return Watch(thread); }) {
}

Readiness::~Readiness() {
  thread_.MayEnd();
  absl::MutexLock lock(&mutex_);
  stopping_ = true;
}

void Readiness::Attach(const Engine& engine) {
  {
    absl::MutexLock lock(&mutex_);
    engine_ = &engine;
  }
  Publish(status());
}

void Readiness::Detach() {
  absl::MutexLock lock(&mutex_);
  engine_ = nullptr;
}

absl::Status Readiness::status() const {
  // Under the lock, so that the engine stays while it is asked; Ready() only reads flags.
  absl::MutexLock lock(&mutex_);
  if (draining_) return DrainingError();
  if (engine_ == nullptr) return absl::UnavailableError("starting");
  RETURN_IF_ERROR(engine_->Ready());
  return supervisor_.Health();
}

void Readiness::Drain() {
  {
    absl::MutexLock lock(&mutex_);
    draining_ = true;
  }
  draining_gauge_.Set(1);
  Publish(status());
}

bool Readiness::draining() const {
  absl::MutexLock lock(&mutex_);
  return draining_;
}

int Readiness::AddWatcher(Watcher watcher, bool* serving) {
  absl::MutexLock lock(&watchers_mutex_);
  *serving = serving_;
  watchers_.emplace(next_id_, std::move(watcher));
  return next_id_++;
}

void Readiness::RemoveWatcher(int id) {
  absl::MutexLock lock(&watchers_mutex_);
  watchers_.erase(id);
}

absl::Status Readiness::Watch(BackgroundThread& thread) {
  while (true) {
    thread.Beat();
    {
      absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), kPollInterval)) {
        return absl::OkStatus();
      }
    }
    Publish(status());
  }
}

void Readiness::Publish(const absl::Status& status) {
  absl::MutexLock lock(&watchers_mutex_);
  // Asked again under this lock when draining: a "ready" read before Drain must not come after it.
  const bool serving = status.ok() && !draining();
  if (serving == serving_) return;
  serving_ = serving;
  ready_gauge_.Set(serving ? 1 : 0);
  if (serving) {
    LogInfo("server", "ready");
  } else {
    LogWarning("server", "not ready", {{"reason", std::string(status.message())}});
  }
  for (const auto& [id, watcher] : watchers_) watcher(serving);
}

}  // namespace mneme
