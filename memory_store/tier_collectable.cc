#include "memory_store/tier_collectable.h"

#include <cstdint>
#include <limits>
#include <utility>

namespace mneme {

void TierCollectable::Detach() {
  absl::MutexLock lock(&mutex_);
  store_ = nullptr;
}

std::vector<prometheus::MetricFamily> TierCollectable::Collect() const {
  absl::MutexLock lock(&mutex_);
  if (store_ == nullptr) return {};
  prometheus::MetricFamily used{
      "mneme_tier_used_bytes", "Bytes that a tier holds.", prometheus::MetricType::Gauge, {}};
  prometheus::MetricFamily limit{"mneme_tier_limit_bytes",
                                 "Bytes that a tier may hold; +Inf: no limit.",
                                 prometheus::MetricType::Gauge,
                                 {}};
  for (const TierUse& tier : store_->tiers()) {
    prometheus::ClientMetric value;
    value.label.push_back({"tier", tier.name});
    value.gauge.value = static_cast<double>(tier.used_bytes);
    used.metric.push_back(value);
    value.gauge.value = tier.limit_bytes > 0 ? static_cast<double>(tier.limit_bytes)
                                             : std::numeric_limits<double>::infinity();
    limit.metric.push_back(std::move(value));
  }
  const MemoryStore::Totals totals = store_->totals();
  const auto total = [](const char* name, const char* help, int64_t value) {
    prometheus::ClientMetric metric;
    metric.gauge.value = static_cast<double>(value);
    return prometheus::MetricFamily{name, help, prometheus::MetricType::Gauge, {metric}};
  };
  return {
      std::move(used),
      std::move(limit),
      total("mneme_memories", "Memories stored.", totals.memories),
      total("mneme_documents", "Documents stored.", totals.documents),
      total("mneme_damaged_documents", "Documents stored whose text is damaged.",
            totals.damaged_documents),
      total("mneme_chunks", "Chunks that a query can find.", totals.chunks),
      total("mneme_durable_bytes", "Bytes of text that survive a crash.", totals.durable_bytes),
      total("mneme_visible_bytes", "Bytes of text that a query can find.", totals.visible_bytes)};
}

}  // namespace mneme
