#include "memory_store/rocksdb/space_reclaimer.h"

#include <array>
#include <cstdint>
#include <utility>

#include <rocksdb/db.h>
#include <rocksdb/options.h>

#include "common/log.h"
#include "memory_store/table_name.h"

namespace mneme {
namespace {

// More than this many wait for RocksDB's own compactions.
constexpr size_t kPendingMax = 1024;
// Bytes in table files from which a range is worth a compaction. Of pages these hold the keys
// alone.
constexpr std::array<uint64_t, kTableCount> kBytesMin = {1 << 20, 1 << 20, 1 << 20, 16 << 10};

}  // namespace

SpaceReclaimer::SpaceReclaimer(Database& database, Supervisor* supervisor) : database_(database) {
  // A compaction takes as long as it takes.
  if (supervisor != nullptr) {
    watched_ = std::make_unique<WatchedThread>("reclaim", *supervisor, WatchedThread::kNoLimit);
  }
  thread_ = std::thread([this] { Run(); });
}

SpaceReclaimer::~SpaceReclaimer() {
  cancel_ = true;
  database_.db().DisableManualCompaction();
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

void SpaceReclaimer::RangesDeleted(const WriteBatch& batch) {
  absl::MutexLock lock(&mutex_);
  for (const WriteBatch::Op& op : batch.ops) {
    if (op.kind != WriteBatch::Kind::kDeleteRange) continue;
    if (pending_.size() == kPendingMax) return;
    pending_.push_back({op.table, op.key, op.value});
  }
}

void SpaceReclaimer::Run() {
  while (true) {
    KeyRange range;
    {
      absl::MutexLock lock(&mutex_);
      const auto work = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
        return stopping_ || !pending_.empty();
      };
      while (!mutex_.AwaitWithTimeout(absl::Condition(&work), BackgroundThread::kBeatEvery)) {
        if (watched_ != nullptr) watched_->Beat();
      }
      if (stopping_) return;
      range = std::move(pending_.front());
      pending_.pop_front();
    }
    Reclaim(range);
  }
}

void SpaceReclaimer::Reclaim(const KeyRange& range) {
  rocksdb::DB& db = database_.db();
  rocksdb::ColumnFamilyHandle* const table = database_.Handle(range.table);
  const rocksdb::Slice begin(range.begin), end(range.end);
  const rocksdb::Range sized(begin, end);
  uint64_t bytes = 0;
  db.GetApproximateSizes(table, &sized, 1, &bytes);
  if (bytes < kBytesMin[static_cast<size_t>(range.table)]) return;
  rocksdb::CompactRangeOptions options;
  options.exclusive_manual_compaction = false;
  options.canceled = &cancel_;
  const rocksdb::Status status = db.CompactRange(options, table, &begin, &end);
  if (!status.ok() && !cancel_) {
    LogWarning("memory_store", "space of deleted records not reclaimed yet",
               {{"table", TableName(range.table)}, {"status", status.ToString()}});
  }
}

}  // namespace mneme
