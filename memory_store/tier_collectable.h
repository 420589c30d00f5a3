// TierCollectable: use of the tiers and totals of a store, as metrics.

#ifndef MNEME_MEMORY_STORE_TIER_COLLECTABLE_H_
#define MNEME_MEMORY_STORE_TIER_COLLECTABLE_H_

#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/metrics.h"
#include "memory_store/memory_store.h"

namespace mneme {

// Asks the store when Prometheus asks. Outlives it inside Metrics; says nothing then. Thread-safe.
class TierCollectable : public prometheus::Collectable {
 public:
  // `store` lives until Detach.
  explicit TierCollectable(const MemoryStore* store) : store_(store) {}
  void Detach();

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  mutable absl::Mutex mutex_;
  const MemoryStore* store_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_TIER_COLLECTABLE_H_
