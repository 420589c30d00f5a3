#include "engine/admission.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/log.h"
#include "common/status_facts.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

constexpr Quota kQuotas[kQuotaCount] = {Quota::kTextBytes, Quota::kDocuments, Quota::kIngestRate,
                                        Quota::kReaders, Quota::kIngestStreams};
// What a metric calls all tenants together: no id of a tenant.
constexpr char kAll[] = "(all)";
// When one who was refused may try again.
constexpr absl::Duration kRetryBusy = absl::Seconds(1);
constexpr absl::Duration kRetryWatermark = absl::Seconds(10);
// Near the high watermark ingest goes on with this share of the rate that it has at the low one.
constexpr double kSlowestShare = 0.02;
constexpr double kSlowBurstBytes = 64 << 10;
// A rate is told as of about so many seconds.
constexpr double kRateSeconds = 5;
// The clock may not be the machine's: it is looked at this often while somebody waits for it.
constexpr absl::Duration kLookMin = absl::Milliseconds(1);
constexpr absl::Duration kLookMax = absl::Milliseconds(50);

bool WaitingHelps(Quota quota) { return quota != Quota::kTextBytes && quota != Quota::kDocuments; }

double LimitValue(int64_t limit) {
  return limit > 0 ? static_cast<double>(limit) : std::numeric_limits<double>::infinity();
}

absl::Status Exceeded(QuotaFact fact) {
  absl::Status status = absl::ResourceExhaustedError(
      absl::StrCat("quota ", fact.quota, " of ", fact.scope, ": ", fact.used, " in use and ",
                   fact.asked, " more asked; limit ", fact.limit));
  return WithQuota(std::move(status), fact);
}

std::string Bytes(int64_t bytes) {
  constexpr int64_t kMebibyte = 1 << 20;
  return bytes < 10 * kMebibyte ? absl::StrCat(bytes, " bytes")
                                : absl::StrCat(bytes / kMebibyte, " MiB");
}

// Why a watermark refuses, and when it will not any more.
std::string WhatIsLeft(const Watermark& mark) {
  const ResourceUse& use = mark.use();
  if (mark.free_needed_bytes() >= 0) {
    return absl::StrCat(Bytes(use.free_bytes), " are free; text is taken again when more than ",
                        Bytes(mark.free_needed_bytes()),
                        " are (store.free_high_bytes and a margin)");
  }
  return absl::StrCat(Bytes(use.used_bytes), " of ", Bytes(use.limit_bytes),
                      " are used; text is taken again when less than ",
                      Bytes(mark.used_allowed_bytes()),
                      " are (store.watermark_high_percent and a margin)");
}

WatermarkOptions OptionsOf(const WatermarkOptions& options, const ResourceUse& use) {
  if (use.resource == "disk") return options;
  return {.low = options.low, .high = options.high};
}

}  // namespace

Admission::Ticket::~Ticket() {
  if (admission_ != nullptr) admission_->Leave(tenant_, quota_);
}

Admission::Admission(const AdmissionOptions& options, MemoryStore& store, Resources resources,
                     Supervisor& supervisor, std::function<void()> room)
    : options_(options),
      sample_every_(absl::Seconds(options.sample_every_seconds)),
      store_(store),
      resources_(std::move(resources)),
      clock_(supervisor.clock()),
      metrics_(supervisor.metrics()),
      room_(std::move(room)),
      watermark_refused_(metrics_.AddCounter(
          "watermark_refused_total",
          "Pieces of text and new documents refused because a resource runs out.")),
      held_gauge_(metrics_.AddGauge(
          "ingest_held",
          "1 while streams wait for their quota of a rate, or are slowed because a "
          "resource runs out.")),
      all_("all", options.quotas.all),
      slow_bucket_(0, kSlowBurstBytes) {
  {
    absl::MutexLock lock(&mutex_);
    all_.accepted_bytes = store_.totals().appended_bytes;
    AddMetrics(kAll, all_);
    for (const auto& [tenant, limits] : options_.quotas.tenants) {
      Account& account =
          tenants_.try_emplace(tenant, absl::StrCat("tenant ", tenant), limits).first->second;
      account.accepted_bytes = store_.tenant_totals(tenant).appended_bytes;
      AddMetrics(tenant, account);
    }
  }
  Sample();
  ObserveUse();
  thread_ = std::make_unique<BackgroundThread>(
      "admission", supervisor, [this](BackgroundThread& thread) { return Loop(thread); });
}

Admission::~Admission() { Stop(); }

void Admission::Stop() {
  if (thread_ != nullptr) thread_->MayEnd();
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.SignalAll();
  }
  thread_.reset();
}

void Admission::AddMetrics(const std::string& label, Account& account) {
  for (const Quota quota : kQuotas) {
    const int i = static_cast<int>(quota);
    const MetricLabels labels = {{"tenant", label}, {"quota", QuotaName(quota)}};
    account.used_gauges[i] = &metrics_.AddGauge("quota_used", "Use of a quota.", labels);
    account.refused[i] =
        &metrics_.AddCounter("quota_refused_total", "What was refused by a quota.", labels);
    metrics_.AddGauge("quota_limit", "Limit of a quota; +Inf: none.", labels)
        .Set(LimitValue(account.limits.of(quota)));
  }
}

Admission::Account& Admission::Of(const std::string& tenant) {
  const auto it = tenants_.find(tenant);
  if (it != tenants_.end()) return it->second;
  Account& account =
      tenants_.try_emplace(tenant, absl::StrCat("tenant ", tenant), options_.quotas.tenant)
          .first->second;
  account.accepted_bytes = store_.tenant_totals(tenant).appended_bytes;
  return account;
}

MemoryStore::Totals Admission::Stored(const Account& account, const std::string& tenant) const {
  return &account == &all_ ? store_.totals() : store_.tenant_totals(tenant);
}

double Admission::RateOf(const Account& account, absl::Time now) {
  const double passed = absl::ToDoubleSeconds(now - account.rate_at);
  return account.rate * std::exp(-std::max(passed, 0.0) / kRateSeconds);
}

int64_t Admission::Used(const Account& account, Quota quota, const MemoryStore::Totals& stored,
                        absl::Time now) const {
  const int64_t entered = account.entered[static_cast<int>(quota)];
  switch (quota) {
    case Quota::kTextBytes:
      return stored.durable_bytes + account.accepted_bytes - stored.appended_bytes;
    case Quota::kDocuments:
      return stored.documents + entered;
    case Quota::kIngestRate:
      return std::llround(RateOf(account, now));
    case Quota::kReaders:
    case Quota::kIngestStreams:
      return entered;
  }
  return 0;
}

absl::Status Admission::Check(Account& account, Quota quota, const std::string& tenant,
                              int64_t asked) {
  const int64_t limit = account.limits.of(quota);
  if (limit <= 0) return absl::OkStatus();
  const bool of_store = quota == Quota::kTextBytes || quota == Quota::kDocuments;
  const int64_t used =
      Used(account, quota, of_store ? Stored(account, tenant) : MemoryStore::Totals(),
           absl::InfinitePast());
  if (asked <= limit - used) return absl::OkStatus();
  if (Counter* refused = account.refused[static_cast<int>(quota)]) refused->Increment();
  QuotaFact fact{QuotaName(quota), account.scope, limit, used, asked};
  if (WaitingHelps(quota)) fact.retry_after = kRetryBusy;
  return Exceeded(std::move(fact));
}

absl::Status Admission::CheckMemory(const IngestAccount& account, int64_t asked) {
  // A memory that is gone has no quota: the writer hears of it elsewhere.
  const absl::StatusOr<int64_t> limit = store_.quota_bytes(account.memory);
  if (!limit.ok() || *limit <= 0) return absl::OkStatus();
  // What it shares with its base counts there.
  const absl::StatusOr<MemoryStore::Totals> stored = store_.own_totals(account.memory);
  if (!stored.ok()) return absl::OkStatus();
  const auto pending = pending_of_memory_.find(account.memory);
  const int64_t used =
      stored->durable_bytes + (pending == pending_of_memory_.end()
                                   ? 0
                                   : pending->second.accepted_bytes - stored->appended_bytes);
  if (asked <= *limit - used) return absl::OkStatus();
  Account& tenant = Of(account.tenant);
  if (Counter* refused = tenant.refused[static_cast<int>(Quota::kTextBytes)]) refused->Increment();
  return Exceeded({QuotaName(Quota::kTextBytes), absl::StrCat("memory ", account.memory_name),
                   *limit, used, asked});
}

const Admission::Mark* Admission::Worst() const {
  const Mark* worst = nullptr;
  for (const auto& [resource, mark] : marks_) {
    if (worst == nullptr || std::pair(mark.watermark.state(), mark.watermark.pressure()) >
                                std::pair(worst->watermark.state(), worst->watermark.pressure())) {
      worst = &mark;
    }
  }
  return worst;
}

absl::Status Admission::CheckWatermarks(int64_t asked) {
  const Mark* worst = Worst();
  if (worst == nullptr || worst->watermark.state() != Watermark::State::kRefuse) {
    return absl::OkStatus();
  }
  watermark_refused_.Increment();
  const ResourceUse& use = worst->watermark.use();
  const int64_t free_needed = worst->watermark.free_needed_bytes();
  absl::Status status = absl::ResourceExhaustedError(
      absl::StrCat("the ", use.resource, " runs out: ", WhatIsLeft(worst->watermark)));
  return WithQuota(std::move(status), {.quota = use.resource,
                                       .scope = "all",
                                       .limit = use.limit_bytes,
                                       .used = use.used_bytes,
                                       .asked = asked,
                                       .retry_after = kRetryWatermark,
                                       .is_watermark = true,
                                       .free = free_needed >= 0 ? use.free_bytes : -1,
                                       .free_needed = free_needed});
}

absl::StatusOr<Admission::Ticket> Admission::Enter(Quota quota, const std::string& tenant) {
  absl::MutexLock lock(&mutex_);
  if (quota == Quota::kDocuments) RETURN_IF_ERROR(CheckWatermarks(0));
  RETURN_IF_ERROR(Check(all_, quota, tenant, 1));
  Account* account = nullptr;
  if (!tenant.empty()) {
    account = &Of(tenant);
    RETURN_IF_ERROR(Check(*account, quota, tenant, 1));
    ++account->entered[static_cast<int>(quota)];
  }
  ++all_.entered[static_cast<int>(quota)];
  return Ticket(this, account, quota);
}

void Admission::Leave(Account* tenant, Quota quota) {
  absl::MutexLock lock(&mutex_);
  --all_.entered[static_cast<int>(quota)];
  if (tenant != nullptr) --tenant->entered[static_cast<int>(quota)];
}

absl::Status Admission::Accept(const IngestAccount& account, int64_t bytes) {
  const absl::Time now = clock_.Now();
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckWatermarks(bytes));
  RETURN_IF_ERROR(CheckMemory(account, bytes));
  Account& tenant = Of(account.tenant);
  RETURN_IF_ERROR(Check(tenant, Quota::kTextBytes, account.tenant, bytes));
  RETURN_IF_ERROR(Check(all_, Quota::kTextBytes, account.tenant, bytes));
  const auto [pending, added] = pending_of_memory_.try_emplace(account.memory);
  if (added) {
    const absl::StatusOr<MemoryStore::Totals> stored = store_.own_totals(account.memory);
    if (stored.ok()) pending->second.accepted_bytes = stored->appended_bytes;
  }
  pending->second.accepted_bytes += bytes;
  pending->second.unsettled_bytes += bytes;
  slow_bucket_.Take(static_cast<double>(bytes), now);
  for (Account* one : {&tenant, &all_}) {
    one->accepted_bytes += bytes;
    one->bucket.Take(static_cast<double>(bytes), now);
    one->rate = RateOf(*one, now) + static_cast<double>(bytes) / kRateSeconds;
    one->rate_at = now;
  }
  return absl::OkStatus();
}

void Admission::Settle(const IngestAccount& account, int64_t bytes, bool durable) {
  absl::MutexLock lock(&mutex_);
  const auto pending = pending_of_memory_.find(account.memory);
  if (!durable) {
    all_.accepted_bytes -= bytes;
    Of(account.tenant).accepted_bytes -= bytes;
    pending->second.accepted_bytes -= bytes;
  }
  if ((pending->second.unsettled_bytes -= bytes) == 0) pending_of_memory_.erase(pending);
}

bool Admission::MayTake(const std::string& tenant) {
  const absl::Time now = clock_.Now();
  absl::MutexLock lock(&mutex_);
  if (TakeWait(tenant, now) <= absl::ZeroDuration()) return true;
  if (held_.insert(tenant).second) {
    held_gauge_.Set(1);
    changed_.SignalAll();
  }
  return false;
}

AdmissionStatus Admission::status() const {
  const absl::Time now = clock_.Now();
  AdmissionStatus status;
  absl::MutexLock lock(&mutex_);
  const auto add = [&](const std::string& tenant, const Account& account)
                       ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
                         const MemoryStore::Totals stored = Stored(account, tenant);
                         for (const Quota quota : kQuotas) {
                           status.quotas.push_back({.tenant = tenant,
                                                    .quota = quota,
                                                    .used = Used(account, quota, stored, now),
                                                    .limit = account.limits.of(quota)});
                         }
                       };
  add("", all_);
  for (const auto& [tenant, limits] : options_.quotas.tenants) add(tenant, tenants_.at(tenant));
  for (const auto& [resource, mark] : marks_) {
    status.watermarks.push_back(
        {mark.watermark.use(), mark.watermark.state(), mark.watermark.free_needed_bytes()});
  }
  return status;
}

void Admission::ObserveUse() {
  const AdmissionStatus now = status();
  absl::MutexLock lock(&mutex_);
  for (const QuotaUse& use : now.quotas) {
    Account& account = use.tenant.empty() ? all_ : Of(use.tenant);
    account.used_gauges[static_cast<int>(use.quota)]->Set(static_cast<double>(use.used));
  }
}

void Admission::Sample() {
  const std::vector<ResourceUse> uses = resources_();
  const absl::Time now = clock_.Now();
  absl::MutexLock lock(&mutex_);
  for (const ResourceUse& use : uses) {
    auto it = marks_.find(use.resource);
    if (it == marks_.end()) {
      const MetricLabels labels = {{"resource", use.resource}};
      it = marks_
               .try_emplace(
                   use.resource,
                   Mark{Watermark(OptionsOf(options_.watermarks, use)),
                        metrics_.AddGauge("watermark_state",
                                          "Ingest, for the sake of a resource: 0 normal, 1 "
                                          "slowed, 2 refused.",
                                          labels),
                        metrics_.AddGauge("watermark_pressure_ratio",
                                          "Place of a resource's use between its watermarks: 0 at "
                                          "the low one, 1 at the high one.",
                                          labels)})
               .first;
    }
    Mark& mark = it->second;
    if (mark.watermark.Observe(use)) {
      const bool normal = mark.watermark.state() == Watermark::State::kNormal;
      Log(normal ? LogLevel::kInfo : LogLevel::kWarning, "engine", "watermark",
          {{"resource", use.resource},
           {"state", WatermarkStateName(mark.watermark.state())},
           {"used_bytes", absl::StrCat(use.used_bytes)},
           {"limit_bytes", absl::StrCat(use.limit_bytes)},
           {"free_bytes", absl::StrCat(use.free_bytes)}});
    }
    mark.state.Set(static_cast<int>(mark.watermark.state()));
    // A resource without a limit has no place.
    mark.pressure.Set(std::max(mark.watermark.pressure(), -1.0));
  }
  const Mark* worst = Worst();
  const bool slow = worst != nullptr && worst->watermark.state() == Watermark::State::kSlow;
  slow_bucket_.SetRate(slow ? static_cast<double>(options_.slow_bytes_per_second) *
                                  std::clamp(1 - worst->watermark.pressure(), kSlowestShare, 1.0)
                            : 0,
                       now);
  changed_.SignalAll();
}

absl::Duration Admission::TakeWait(const std::string& tenant, absl::Time now) {
  const Mark* worst = Worst();
  if (worst != nullptr && worst->watermark.state() == Watermark::State::kRefuse) {
    return absl::ZeroDuration();
  }
  return std::max({all_.bucket.Wait(now), Of(tenant).bucket.Wait(now), slow_bucket_.Wait(now)});
}

absl::Duration Admission::HeldWait(absl::Time now) {
  absl::Duration wait = absl::InfiniteDuration();
  for (const std::string& tenant : held_) wait = std::min(wait, TakeWait(tenant, now));
  return wait;
}

absl::Status Admission::Loop(BackgroundThread& thread) {
  absl::Time sampled = clock_.Now();
  for (;;) {
    thread.Beat();
    if (const absl::Time now = clock_.Now(); now - sampled >= sample_every_) {
      sampled = now;
      Sample();
      ObserveUse();
    }
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) return absl::OkStatus();
      if (HeldWait(clock_.Now()) > absl::ZeroDuration()) {
        const absl::Duration idle = std::min(BackgroundThread::kBeatEvery, sample_every_);
        const absl::Duration wait =
            held_.empty() ? idle : std::clamp(HeldWait(clock_.Now()), kLookMin, kLookMax);
        changed_.WaitWithTimeout(&mutex_, wait);
        continue;
      }
      // Whoever still may not take text says so again.
      held_.clear();
      held_gauge_.Set(0);
    }
    room_();
  }
}

}  // namespace mneme
