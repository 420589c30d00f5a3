#include "engine/purger.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/log.h"

namespace mneme {
namespace {

// What a running question holds up is looked at again after the shortest; a failure after longer
// and longer.
constexpr absl::Duration kRetryMin = absl::Milliseconds(50);
constexpr absl::Duration kRetryMax = absl::Seconds(30);

}  // namespace

Purger::Purger(MemoryStore& store, EngineMetrics& metrics, Supervisor& supervisor,
               std::function<void()> sweep)
    : store_(store),
      metrics_(metrics),
      clock_(supervisor.clock()),
      sweep_(std::move(sweep)),
      thread_("purge", supervisor, [this](BackgroundThread& thread) { return Loop(thread); }) {}

Purger::~Purger() { Stop(); }

void Purger::Stop() {
  thread_.MayEnd();
  cancel_ = true;
  absl::MutexLock lock(&mutex_);
  stopping_ = true;
  changed_.SignalAll();
}

void Purger::Notify() {
  absl::MutexLock lock(&mutex_);
  notified_ = true;
  changed_.SignalAll();
}

void Purger::WhenPurged(PurgeId id, PurgedCallback purged) {
  DeletionReceipt receipt;
  {
    absl::MutexLock lock(&mutex_);
    const auto it = receipts_.find(id);
    if (it == receipts_.end()) {
      waiting_.emplace(id, std::move(purged));
      return;
    }
    receipt = it->second;
  }
  purged(receipt);
}

absl::Status Purger::Loop(BackgroundThread& thread) {
  for (;;) {
    thread.Beat();
    sweep_();
    if (!store_.PendingDeletions().empty()) PurgeOnce(thread);
    ObservePending();
    const bool pending = !store_.PendingDeletions().empty();
    absl::MutexLock lock(&mutex_);
    const absl::Time next =
        absl::Now() + (pending ? std::max(retry_after_, kRetryMin) : BackgroundThread::kBeatEvery);
    // After a failure a new deletion does not hasten the next try.
    while (!stopping_ && !(notified_ && retry_after_ == absl::ZeroDuration()) &&
           absl::Now() < next) {
      thread.Beat();
      changed_.WaitWithDeadline(&mutex_,
                                std::min(next, absl::Now() + BackgroundThread::kBeatEvery));
    }
    notified_ = false;
    if (stopping_) return absl::OkStatus();
  }
}

void Purger::PurgeOnce(BackgroundThread& thread) {
  const absl::Time begin = absl::Now();
  absl::StatusOr<std::vector<Deletion>> done = std::vector<Deletion>();
  std::atomic<bool> over{false};
  std::thread worker([&] {
    done = store_.Purge(cancel_);
    over = true;
    absl::MutexLock lock(&mutex_);
    changed_.SignalAll();
  });
  {
    absl::MutexLock lock(&mutex_);
    while (!over) {
      thread.Beat();
      changed_.WaitWithTimeout(&mutex_, BackgroundThread::kBeatEvery);
    }
  }
  worker.join();
  absl::Status left = done.status();
  int64_t waiting = 0;
  for (const Deletion& deletion : store_.PendingDeletions()) {
    if (deletion.waits_for.empty()) continue;
    ++waiting;
    left.Update(absl::DataLossError(deletion.waits_for));
  }
  if (done.ok()) {
    if (!done->empty()) metrics_.purge_seconds.Observe(absl::ToDoubleSeconds(absl::Now() - begin));
    Done(*done);
  }
  if (left.ok()) {
    retry_after_ = absl::ZeroDuration();
    return;
  }
  retry_after_ = std::clamp(2 * retry_after_, kRetryMin, kRetryMax);
  if (cancel_) return;
  metrics_.purge_failures.Increment();
  LogWarning("engine", "deleted data could not be purged; trying again",
             {{"deletions", absl::StrCat(waiting)}, {"status", left.ToString()}});
}

void Purger::Done(const std::vector<Deletion>& deletions) {
  std::vector<std::pair<PurgedCallback, DeletionReceipt>> calls;
  {
    absl::MutexLock lock(&mutex_);
    for (const Deletion& deletion : deletions) {
      receipts_[deletion.id] = deletion.receipt;
      receipts_by_age_.push_back(deletion.id);
      const auto [first, last] = waiting_.equal_range(deletion.id);
      for (auto it = first; it != last; ++it) {
        calls.emplace_back(std::move(it->second), deletion.receipt);
      }
      waiting_.erase(first, last);
    }
    while (receipts_by_age_.size() > kReceiptsMax) {
      receipts_.erase(receipts_by_age_.front());
      receipts_by_age_.pop_front();
    }
  }
  metrics_.purges.Increment(static_cast<double>(deletions.size()));
  for (auto& [purged, receipt] : calls) purged(receipt);
}

void Purger::ObservePending() {
  const std::vector<Deletion> pending = store_.PendingDeletions();
  absl::Time oldest = clock_.Now();
  const absl::Time now = oldest;
  for (const Deletion& deletion : pending) oldest = std::min(oldest, deletion.receipt.delete_time);
  metrics_.purges_pending.Set(static_cast<double>(pending.size()));
  metrics_.purge_oldest_seconds.Set(absl::ToDoubleSeconds(now - oldest));
}

}  // namespace mneme
