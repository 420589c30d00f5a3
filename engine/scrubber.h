// Scrubber: reads the whole store again and again, slowly, and heals what can be healed, so that
// damage is found while there is still something to heal it from. The same check runs on demand.

#ifndef MNEME_ENGINE_SCRUBBER_H_
#define MNEME_ENGINE_SCRUBBER_H_

#include <array>
#include <cstdint>
#include <functional>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/background_thread.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "memory_store/memory_store.h"
#include "memory_store/store_checker.h"

namespace mneme {

struct ScrubberOptions {
  // Read by the passes of the background, at most; 0: there are none.
  int64_t bytes_per_second = 0;
  // From the beginning of one pass to that of the next, at least.
  absl::Duration interval = absl::Hours(24);
  absl::Duration first_after = absl::Minutes(1);
};

// Thread-safe. What it borrows must outlive it.
class Scrubber {
 public:
  using Derive = std::function<absl::Status(DocumentId, int64_t segment_index, bool with_pages)>;

  // `healed`: called at the end of a check that healed something, not under a lock.
  Scrubber(const ScrubberOptions& options, MemoryStore& store, Derive derive,
           std::function<void()> healed, Supervisor& supervisor);
  ~Scrubber();

  // A check at once and at full speed, of one memory or of everything; with `heal` all that can
  // be mended is, and what cannot be read is given up, which the background does not do with text.
  // `step`: see StoreCheckOptions. ABORTED while another one runs, or when the scrubber is going.
  // Errors as StoreChecker::Run.
  absl::StatusOr<StoreCheckReport> CheckNow(
      std::optional<MemoryId> memory, bool heal,
      const std::function<absl::Status(const StoreCheckReport&)>& step);
  // Lets a check that runs end soon.
  void StopSoon();

 private:
  absl::Status Loop(BackgroundThread& thread);
  // A pass of the background; OK also when it failed, which is counted.
  void Pass(BackgroundThread& thread);
  // Waits until `time` (of the clock) or until the end; false at the end.
  bool WaitUntil(absl::Time time, BackgroundThread& thread);
  bool stopping() const;
  // All but `derive` and `step` of the options is the caller's.
  absl::StatusOr<StoreCheckReport> Check(
      StoreCheckOptions options, const std::function<absl::Status(const StoreCheckReport&)>& step);

  const ScrubberOptions options_;
  MemoryStore& store_;
  const Derive derive_;
  const std::function<void()> healed_;
  Clock& clock_;
  Counter& read_bytes_;
  Counter& passes_;
  Counter& failed_passes_;
  Gauge& last_pass_;
  std::array<Counter*, StoreFinding::kKindCount> found_;
  std::array<Counter*, StoreFinding::kKindCount> healed_counts_;
  std::array<Gauge*, StoreFinding::kKindCount> left_;  // found and not healed, by the last check
  mutable absl::Mutex mutex_;
  absl::CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool checking_now_ ABSL_GUARDED_BY(mutex_) = false;
  BackgroundThread thread_;  // last: it uses all of the above
};

}  // namespace mneme

#endif  // MNEME_ENGINE_SCRUBBER_H_
