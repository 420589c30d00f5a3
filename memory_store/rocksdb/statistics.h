// Statistics: RocksDB's own statistics, read when Prometheus asks: mneme_rocksdb_*.

#ifndef MNEME_MEMORY_STORE_ROCKSDB_STATISTICS_H_
#define MNEME_MEMORY_STORE_ROCKSDB_STATISTICS_H_

#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/metrics.h"
#include "memory_store/rocksdb/database.h"

namespace mneme {

// Outlives the store inside Metrics; says nothing then. Thread-safe.
class StatisticsCollectable : public prometheus::Collectable {
 public:
  // `database` lives until Detach.
  explicit StatisticsCollectable(Database& database) : database_(&database) {}
  void Detach();

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  mutable absl::Mutex mutex_;
  Database* database_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_ROCKSDB_STATISTICS_H_
