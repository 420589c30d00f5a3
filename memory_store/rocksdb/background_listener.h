// BackgroundListener: what goes on in RocksDB's own threads, as metrics and log lines of ours.

#ifndef MNEME_MEMORY_STORE_ROCKSDB_BACKGROUND_LISTENER_H_
#define MNEME_MEMORY_STORE_ROCKSDB_BACKGROUND_LISTENER_H_

#include <rocksdb/listener.h>

#include "common/metrics.h"
#include "memory_store/rocksdb/memtable_guard.h"

namespace mneme {

// Counts and logs the errors of flushes, compactions and writes, lets a damaged file stop no
// writes, and tells the guard of flushes. Called by RocksDB, from any of its threads. Both
// references outlive the database.
class BackgroundListener : public rocksdb::EventListener {
 public:
  BackgroundListener(Metrics& metrics, MemtableGuard& guard);

  void OnBackgroundError(rocksdb::BackgroundErrorReason reason, rocksdb::Status* error) override;
  void OnFlushBegin(rocksdb::DB* db, const rocksdb::FlushJobInfo& info) override;
  void OnErrorRecoveryEnd(const rocksdb::BackgroundErrorRecoveryInfo& info) override;

 private:
  Counter& Errors(const char* reason);

  Metrics& metrics_;
  MemtableGuard& guard_;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_ROCKSDB_BACKGROUND_LISTENER_H_
