#include "engine/scrubber.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace mneme {
namespace {

template <typename Instrument, typename Make>
std::array<Instrument*, StoreFinding::kKindCount> OfKinds(const Make& make) {
  std::array<Instrument*, StoreFinding::kKindCount> instruments;
  for (int kind = 0; kind < StoreFinding::kKindCount; ++kind) {
    instruments[kind] =
        &make(MetricLabels{{"kind", StoreFindingKindName(static_cast<StoreFinding::Kind>(kind))}});
  }
  return instruments;
}

}  // namespace

Scrubber::Scrubber(const ScrubberOptions& options, MemoryStore& store, Derive derive,
                   std::function<void()> healed, Supervisor& supervisor)
    : options_(options),
      store_(store),
      derive_(std::move(derive)),
      healed_(std::move(healed)),
      clock_(supervisor.clock()),
      read_bytes_(supervisor.metrics().AddCounter(
          "scrub_read_bytes_total", "Bytes of files and records read by checks of the store.")),
      passes_(supervisor.metrics().AddCounter("scrub_passes_total",
                                              "Checks of the whole store that ended.")),
      failed_passes_(supervisor.metrics().AddCounter(
          "scrub_pass_failures_total", "Checks of the whole store that could not be ended.")),
      last_pass_(supervisor.metrics().AddGauge(
          "scrub_last_pass_timestamp_seconds",
          "When the last check of the whole store ended, seconds since "
          "the epoch; 0: none since the start.")),
      found_(OfKinds<Counter>([&](const MetricLabels& labels) -> Counter& {
        return supervisor.metrics().AddCounter("scrub_found_total",
                                               "Damage found by checks of the store.", labels);
      })),
      healed_counts_(OfKinds<Counter>([&](const MetricLabels& labels) -> Counter& {
        return supervisor.metrics().AddCounter("scrub_healed_total",
                                               "Damage healed by checks of the store.", labels);
      })),
      left_(OfKinds<Gauge>([&](const MetricLabels& labels) -> Gauge& {
        return supervisor.metrics().AddGauge(
            "scrub_damage_left",
            "Damage that the last check of the whole store found and did not "
            "heal.",
            labels);
      })),
      thread_("scrubber", supervisor, [this](BackgroundThread& thread) { return Loop(thread); }) {}

Scrubber::~Scrubber() { StopSoon(); }

void Scrubber::StopSoon() {
  thread_.MayEnd();
  absl::MutexLock lock(&mutex_);
  stopping_ = true;
  changed_.SignalAll();
}

bool Scrubber::stopping() const {
  absl::MutexLock lock(&mutex_);
  return stopping_;
}

absl::StatusOr<StoreCheckReport> Scrubber::CheckNow(
    std::optional<MemoryId> memory, bool heal,
    const std::function<absl::Status(const StoreCheckReport&)>& step) {
  {
    absl::MutexLock lock(&mutex_);
    if (checking_now_) return absl::AbortedError("another check of the store runs");
    checking_now_ = true;
  }
  const absl::Cleanup done = [this] {
    absl::MutexLock lock(&mutex_);
    checking_now_ = false;
  };
  StoreCheckOptions options;
  options.memory = memory;
  options.heal = heal;
  options.give_up_text = heal;
  return Check(std::move(options), step);
}

absl::StatusOr<StoreCheckReport> Scrubber::Check(
    StoreCheckOptions options, const std::function<absl::Status(const StoreCheckReport&)>& step) {
  const bool is_whole = !options.memory.has_value();
  int64_t bytes_told = 0;
  options.derive = derive_;
  options.step = [&](const StoreCheckReport& so_far) -> absl::Status {
    const int64_t bytes = so_far.bytes_read();
    read_bytes_.Increment(static_cast<double>(bytes - std::exchange(bytes_told, bytes)));
    if (stopping()) return absl::AbortedError("the server stops");
    return step(so_far);
  };
  absl::StatusOr<StoreCheckReport> report = StoreChecker(store_, std::move(options)).Run();
  if (!report.ok()) return report;
  for (int kind = 0; kind < StoreFinding::kKindCount; ++kind) {
    found_[kind]->Increment(static_cast<double>(report->found[kind]));
    healed_counts_[kind]->Increment(static_cast<double>(report->healed[kind]));
    if (!is_whole) continue;
    left_[kind]->Set(static_cast<double>(report->found[kind] - report->healed[kind]));
  }
  if (is_whole) {
    passes_.Increment();
    last_pass_.Set(absl::ToDoubleSeconds(clock_.Now() - absl::UnixEpoch()));
  }
  if (report->healed_count() > 0) healed_();
  LogInfo("engine", "store checked",
          {{"bytes", absl::StrCat(report->bytes_read())},
           {"documents", absl::StrCat(report->documents)},
           {"found", absl::StrCat(report->found_count())},
           {"healed", absl::StrCat(report->healed_count())}});
  return report;
}

bool Scrubber::WaitUntil(absl::Time time, BackgroundThread& thread) {
  while (true) {
    thread.Beat();
    const absl::Duration left = time - clock_.Now();
    absl::MutexLock lock(&mutex_);
    if (stopping_) return false;
    if (left <= absl::ZeroDuration()) return true;
    changed_.WaitWithTimeout(&mutex_, std::min(left, BackgroundThread::kBeatEvery));
  }
}

void Scrubber::Pass(BackgroundThread& thread) {
  const absl::Time begin = clock_.Now();
  StoreCheckOptions options;
  options.heal = true;
  const absl::StatusOr<StoreCheckReport> report =
      Check(std::move(options), [&](const StoreCheckReport& so_far) {
        const double seconds = static_cast<double>(so_far.bytes_read()) /
                               static_cast<double>(options_.bytes_per_second);
        if (WaitUntil(begin + absl::Seconds(seconds), thread)) return absl::OkStatus();
        return absl::AbortedError("the server stops");
      });
  if (report.ok() || stopping()) return;
  failed_passes_.Increment();
  LogWarning("engine", "check of the store failed", {{"status", report.status().ToString()}});
}

absl::Status Scrubber::Loop(BackgroundThread& thread) {
  absl::Time next =
      options_.bytes_per_second > 0 ? clock_.Now() + options_.first_after : absl::InfiniteFuture();
  while (WaitUntil(next, thread)) {
    next = clock_.Now() + options_.interval;
    Pass(thread);
  }
  return absl::OkStatus();
}

}  // namespace mneme
