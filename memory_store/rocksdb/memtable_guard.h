// MemtableGuard: what keeps RocksDB 7.8 from ending the process after a failed append to its log.
//
// Its recovery gives up that log only when a memtable holds something. With none it says that it
// recovered, and the next append to the old log ends the process (Debian builds RocksDB with
// assertions). So some memtable always holds something: a record of the default table, which nobody
// reads and which never goes to the log.

#ifndef MNEME_MEMORY_STORE_ROCKSDB_MEMTABLE_GUARD_H_
#define MNEME_MEMORY_STORE_ROCKSDB_MEMTABLE_GUARD_H_

#include <atomic>

#include <rocksdb/db.h>
#include <rocksdb/options.h>
#include <rocksdb/status.h>

namespace mneme {

// Thread-safe.
class MemtableGuard {
 public:
  // Makes a memtable hold something.
  static rocksdb::Status Put(rocksdb::DB& db) {
    rocksdb::WriteOptions options;
    options.disableWAL = true;
    return db.Put(options, "memtable guard", "");
  }

  // The default table's memtable is empty now.
  void Emptied() { needed_.store(true, std::memory_order_relaxed); }
  // Before a write.
  void Restore(rocksdb::DB& db) {
    if (!needed_.load(std::memory_order_relaxed) || !needed_.exchange(false)) return;
    if (!Put(db).ok()) Emptied();
  }

 private:
  std::atomic<bool> needed_{true};
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_ROCKSDB_MEMTABLE_GUARD_H_
