// Admission: who may do how much. Keeps the quotas of memories, of tenants and of all together, and
// holds ingest back while the disk or a memory runs out (watermark.h).
//
// What is stored is counted by the store; what is on its way there (text accepted but not durable,
// documents being created) is counted here until the store counts it, so a limit holds at all
// times. Text counts once: what is on its way is what was accepted less what the store has
// appended, which it tells in one breath with what it holds. Text that comes faster than it may is
// not refused: writers are not ready until it may. A thread of its own looks at the resources and
// tells writers when they may go on.

#ifndef MNEME_ENGINE_ADMISSION_H_
#define MNEME_ENGINE_ADMISSION_H_

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/background_thread.h"
#include "common/metrics.h"
#include "common/supervisor.h"
#include "engine/quota.h"
#include "engine/token_bucket.h"
#include "engine/watermark.h"
#include "memory_store/memory_store.h"

namespace mneme {

// Whom text is for.
struct IngestAccount {
  std::string tenant;
  MemoryId memory{};
  std::string memory_name;  // full, for messages
};

// Thread-safe. What it borrows must outlive it, and it must outlive its tickets.
//
// Errors are RESOURCE_EXHAUSTED with a QuotaFact (status_facts.h), which says how long to wait
// where waiting helps.
class Admission {
 private:
  struct Account;

 public:
  // Looked at every so often, on the thread of this object.
  using Resources = std::function<std::vector<ResourceUse>()>;

  // One more of what has a limit, until it goes. Move-only.
  class Ticket {
   public:
    ~Ticket();
    Ticket(Ticket&& other) noexcept
        : admission_(std::exchange(other.admission_, nullptr)),
          tenant_(other.tenant_),
          quota_(other.quota_) {}
    Ticket& operator=(Ticket&&) = delete;

   private:
    friend class Admission;
    Ticket(Admission* admission, Account* tenant, Quota quota)
        : admission_(admission), tenant_(tenant), quota_(quota) {}

    Admission* admission_;
    Account* tenant_;  // null: nobody's
    Quota quota_;
  };

  // `room`: called, not under a lock, when writers that were told to wait may look again.
  Admission(const AdmissionOptions& options, MemoryStore& store, Resources resources,
            Supervisor& supervisor, std::function<void()> room);
  ~Admission();
  // Ends the thread. Idempotent.
  void Stop();

  // A question, an Ingest stream, or a document while it is created. An empty `tenant`: nobody's in
  // particular. Documents are refused above a high watermark too.
  absl::StatusOr<Ticket> Enter(Quota quota, const std::string& tenant);

  // Takes text in: counts it as on its way until the store has it. All or nothing.
  absl::Status Accept(const IngestAccount& account, int64_t bytes);
  // Text that was accepted is durable, or never will be.
  void Settle(const IngestAccount& account, int64_t bytes, bool durable);
  // Whether more text may be taken now. After false `room` is called. True also while text is
  // refused: whoever sends it is to hear of it.
  bool MayTake(const std::string& tenant);

  AdmissionStatus status() const;

 private:
  // What all, or a tenant, have under way.
  struct Account {
    Account(std::string scope_in, const QuotaLimits& limits_in)
        : scope(std::move(scope_in)),
          limits(limits_in),
          bucket(static_cast<double>(limits_in.ingest_bytes_per_second),
                 static_cast<double>(limits_in.ingest_burst_bytes)) {}

    const std::string scope;
    const QuotaLimits limits;
    TokenBucket bucket;
    // On the scale of the store's appended_bytes; never less than that.
    int64_t accepted_bytes = 0;
    std::array<int64_t, kQuotaCount> entered{};
    double rate = 0;  // bytes a second, of the last seconds
    absl::Time rate_at = absl::InfinitePast();
    // Of those that have metrics.
    std::array<Gauge*, kQuotaCount> used_gauges{};
    std::array<Counter*, kQuotaCount> refused{};
  };
  // The text of a memory, as long as some of it has not been settled.
  struct PendingText {
    int64_t accepted_bytes = 0;  // as of an Account
    int64_t unsettled_bytes = 0;
  };
  struct Mark {
    Watermark watermark;
    Gauge& state;
    Gauge& pressure;
  };

  Account& Of(const std::string& tenant) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddMetrics(const std::string& label, Account& account) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Leave(Account* tenant, Quota quota) ABSL_LOCKS_EXCLUDED(mutex_);
  MemoryStore::Totals Stored(const Account& account, const std::string& tenant) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What counts against a quota now. `stored`: of the account.
  int64_t Used(const Account& account, Quota quota, const MemoryStore::Totals& stored,
               absl::Time now) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Check(Account& account, Quota quota, const std::string& tenant, int64_t asked)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckMemory(const IngestAccount& account, int64_t asked)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // RESOURCE_EXHAUSTED above a high watermark. `asked`: bytes of text; 0: none yet.
  absl::Status CheckWatermarks(int64_t asked) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The worst of the watermarks; null: there are none.
  const Mark* Worst() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static double RateOf(const Account& account, absl::Time now);

  absl::Status Loop(BackgroundThread& thread);
  // Looks at the resources.
  void Sample() ABSL_LOCKS_EXCLUDED(mutex_);
  void ObserveUse() ABSL_LOCKS_EXCLUDED(mutex_);
  // Until a tenant may take text; until the first of those that wait may.
  absl::Duration TakeWait(const std::string& tenant, absl::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Duration HeldWait(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const AdmissionOptions options_;
  const absl::Duration sample_every_;
  MemoryStore& store_;
  const Resources resources_;
  Clock& clock_;
  Metrics& metrics_;
  const std::function<void()> room_;
  Counter& watermark_refused_;
  Gauge& held_gauge_;

  mutable absl::Mutex mutex_;
  absl::CondVar changed_;
  Account all_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Account> tenants_ ABSL_GUARDED_BY(mutex_);  // never erased
  absl::flat_hash_map<MemoryId, PendingText> pending_of_memory_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Mark> marks_ ABSL_GUARDED_BY(mutex_);
  TokenBucket slow_bucket_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<std::string> held_ ABSL_GUARDED_BY(mutex_);  // tenants that wait for MayTake
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::unique_ptr<BackgroundThread> thread_;  // last: it uses all of the above
};

}  // namespace mneme

#endif  // MNEME_ENGINE_ADMISSION_H_
