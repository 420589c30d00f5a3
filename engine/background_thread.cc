#include "engine/background_thread.h"

#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace mneme {

BackgroundThread::BackgroundThread(std::string name, Metrics& metrics, Clock& clock,
                                   std::function<absl::Status(BackgroundThread&)> body)
    : name_(std::move(name)),
      clock_(clock),
      alive_(metrics.AddGauge("thread_alive", "1 while the background thread runs.",
                              {{"thread", name_}})),
      heartbeat_(metrics.AddGauge("thread_heartbeat_timestamp_seconds",
                                  "When the background thread last showed that it lives, seconds "
                                  "since the epoch.",
                                  {{"thread", name_}})),
      failures_(metrics.AddCounter("thread_failures_total",
                                   "Background threads that ended without being asked to.",
                                   {{"thread", name_}})) {
  alive_.Set(1);
  Beat();
  thread_ = std::thread([this, body = std::move(body)] { Run(body); });
}

BackgroundThread::~BackgroundThread() { thread_.join(); }

void BackgroundThread::Beat() {
  const absl::Time now = clock_.Now();
  beat_unix_nanos_.store(absl::ToUnixNanos(now), std::memory_order_relaxed);
  heartbeat_.Set(absl::ToDoubleSeconds(now - absl::UnixEpoch()));
}

absl::Status BackgroundThread::Health(absl::Duration stall_max) const {
  {
    absl::MutexLock lock(&mutex_);
    if (!failure_.ok()) {
      return absl::UnavailableError(
          absl::StrCat("background thread ", name_, " failed: ", failure_.ToString()));
    }
  }
  const absl::Duration silence =
      clock_.Now() - absl::FromUnixNanos(beat_unix_nanos_.load(std::memory_order_relaxed));
  if (silence > stall_max) {
    return absl::UnavailableError(
        absl::StrCat("background thread ", name_, " has shown no sign of life for ",
                     absl::FormatDuration(silence), "; limit ", absl::FormatDuration(stall_max)));
  }
  return absl::OkStatus();
}

void BackgroundThread::Run(const std::function<absl::Status(BackgroundThread&)>& body) {
  absl::Status status;
  // Our own code throws nothing; a library below (or an allocation that fails) may.
  try {
    status = body(*this);
  } catch (const std::exception& e) {
    status = absl::InternalError(absl::StrCat("exception: ", e.what()));
  } catch (...) {
    status = absl::InternalError("exception of unknown type");
  }
  alive_.Set(0);
  if (status.ok()) return;
  failures_.Increment();
  LogError("engine", "background thread failed",
           {{"thread", name_}, {"status", status.ToString()}});
  absl::MutexLock lock(&mutex_);
  failure_ = std::move(status);
}

}  // namespace mneme
