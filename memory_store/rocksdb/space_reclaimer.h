// SpaceReclaimer: gives back the space of deleted ranges. A deletion is a note that compaction acts
// upon, which in a quiet store it may not do for weeks. Large ranges are compacted at once, one
// after another, on a thread of its own; small ones are left to RocksDB.

#ifndef MNEME_MEMORY_STORE_ROCKSDB_SPACE_RECLAIMER_H_
#define MNEME_MEMORY_STORE_ROCKSDB_SPACE_RECLAIMER_H_

#include <atomic>
#include <deque>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/background_thread.h"
#include "common/supervisor.h"
#include "memory_store/chunk_store.h"
#include "memory_store/rocksdb/database.h"

namespace mneme {

// Thread-safe.
class SpaceReclaimer {
 public:
  // `database` outlives this, and so does `supervisor`, which watches the thread; null: nobody
  // does.
  SpaceReclaimer(Database& database, Supervisor* supervisor);
  // Ends a compaction under way. After it the database does no manual compactions any more.
  ~SpaceReclaimer();

  // The ranges that `batch`, which was written, deletes. Of more than 1024 that wait, the rest is
  // left to RocksDB.
  void RangesDeleted(const WriteBatch& batch);

 private:
  void Run();
  void Reclaim(const KeyRange& range);

  Database& database_;
  std::atomic<bool> cancel_{false};  // read by RocksDB while it compacts
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<KeyRange> pending_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<WatchedThread> watched_;
  std::thread thread_;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_ROCKSDB_SPACE_RECLAIMER_H_
