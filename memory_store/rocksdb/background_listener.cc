#include "memory_store/rocksdb/background_listener.h"

#include <rocksdb/db.h>

#include "common/log.h"

namespace mneme {

BackgroundListener::BackgroundListener(Metrics& metrics, MemtableGuard& guard)
    : metrics_(metrics), guard_(guard) {
  // Counted from zero, so that the first one shows as an increase.
  for (const char* reason : {"flush", "compaction", "write", "other"}) Errors(reason);
}

void BackgroundListener::OnBackgroundError(rocksdb::BackgroundErrorReason reason,
                                           rocksdb::Status* error) {
  const char* name = "other";
  if (reason == rocksdb::BackgroundErrorReason::kFlush) name = "flush";
  if (reason == rocksdb::BackgroundErrorReason::kCompaction) name = "compaction";
  if (reason == rocksdb::BackgroundErrorReason::kWriteCallback) name = "write";
  Errors(name).Increment();
  LogError("memory_store", "rocksdb background error",
           {{"reason", name}, {"status", error->ToString()}});
  // A damaged file must not stop the writes of all documents: its compaction is tried again later,
  // its damaged records are told apart by their own checksums.
  if (reason == rocksdb::BackgroundErrorReason::kCompaction && error->IsCorruption()) {
    *error = rocksdb::Status::OK();
  }
}

void BackgroundListener::OnFlushBegin(rocksdb::DB* /*db*/, const rocksdb::FlushJobInfo& info) {
  if (info.cf_name == rocksdb::kDefaultColumnFamilyName) guard_.Emptied();
}

void BackgroundListener::OnErrorRecoveryEnd(const rocksdb::BackgroundErrorRecoveryInfo& info) {
  LogInfo("memory_store", "rocksdb recovered from background error",
          {{"was", info.old_bg_error.ToString()}, {"now", info.new_bg_error.ToString()}});
}

Counter& BackgroundListener::Errors(const char* reason) {
  return metrics_.AddCounter("rocksdb_background_errors_total",
                             "Errors in RocksDB's flushes, compactions and writes.",
                             {{"reason", reason}});
}

}  // namespace mneme
