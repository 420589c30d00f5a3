// Database: an open RocksDB database with our tables, as the other files of this folder use it.
//
// Opening asks for all that was written; what is damaged is given up only where that fails, and
// nothing else with it: first records of the log, then whole files (docs/storage_format.md,
// "Damage"). See github.com/facebook/rocksdb/wiki, "WAL Recovery Modes", "BlobDB".

#ifndef MNEME_MEMORY_STORE_ROCKSDB_DATABASE_H_
#define MNEME_MEMORY_STORE_ROCKSDB_DATABASE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <rocksdb/db.h>
#include <rocksdb/options.h>
#include <rocksdb/statistics.h>
#include <rocksdb/write_batch.h>
#include <rocksdb/write_buffer_manager.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/metrics.h"
#include "memory_store/chunk_store.h"
#include "memory_store/rocksdb/memtable_guard.h"
#include "memory_store/rocksdb/rocksdb_chunk_store.h"

namespace mneme {

// Thread-safe, but for Close.
class Database {
 public:
  // Opens the database in `folder`, or creates it there; its parent is there.
  // FAILED_PRECONDITION: it is of another kind; DATA_LOSS: too damaged to open; RESOURCE_EXHAUSTED,
  // INTERNAL as ChunkStore::Write. `metrics` outlives it.
  static absl::StatusOr<std::unique_ptr<Database>> Open(const RocksDbOptions& options,
                                                        const std::string& folder,
                                                        Metrics& metrics);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  // Closes it: nothing but the destructor may be called after that. Whatever it says, no file is in
  // use any more.
  absl::Status Close();

  // The folder of its files.
  const std::string& folder() const { return folder_; }
  bool read_only() const { return read_only_; }
  // Opened without RocksDB's paranoid_checks, because whole files are damaged.
  bool lenient() const { return lenient_; }
  // Records of the log were left out: what RocksDB says of them.
  const std::optional<std::string>& log_damage() const { return log_damage_; }
  rocksdb::DB& db() { return *db_; }
  rocksdb::ColumnFamilyHandle* Handle(Table table) const {
    return handles_[static_cast<size_t>(table)];
  }
  // Of all tables: ours in order, then the default one, which RocksDB demands; it is the guard's.
  const std::vector<rocksdb::ColumnFamilyHandle*>& handles() const { return handles_; }
  const rocksdb::Statistics& statistics() const { return *statistics_; }
  // What is in memtables, and will be written once more.
  int64_t memtable_bytes() const { return static_cast<int64_t>(memtables_->memory_usage()); }

  // Every write goes this way. `batch` may be changed.
  rocksdb::Status Write(const rocksdb::WriteOptions& write_options, rocksdb::WriteBatch* batch);
  // Makes tables of all that is in memory; after it the logs that stood before are of no use.
  absl::Status FlushTables();
  // Writes the records of a range anew, without those that were deleted; with `rewrite_blobs` the
  // values in blob files too. Long; CANCELLED once `cancel` is true.
  absl::Status Rewrite(const KeyRange& range, bool rewrite_blobs, std::atomic<bool>& cancel);

  // From here until LetFilesGo, called as often, no file that is live goes away. No change:
  // read_only.
  absl::Status KeepFiles();
  void LetFilesGo();
  // Between the two, by whomever.
  bool keeps_files() const { return keepers_ > 0; }
  // Deletes, in this thread, the files that nobody uses any more.
  absl::Status DeleteDueFiles();

  // Held while a damaged file is mended. Taken before any lock of the memory store.
  absl::Mutex& mend_mutex() { return mend_mutex_; }

 private:
  Database(const RocksDbOptions& options, std::string folder);
  rocksdb::DBOptions DbOptions(const RocksDbOptions& options, Metrics& metrics);
  // As far as `db_options` let it; they are relaxed where that fails.
  rocksdb::Status OpenLeniently(rocksdb::DBOptions db_options,
                                const std::vector<rocksdb::ColumnFamilyDescriptor>& families);

  const std::string folder_;
  const bool read_only_;
  bool lenient_ = false;
  std::optional<std::string> log_damage_;
  // Shared with RocksDB.
  std::shared_ptr<rocksdb::WriteBufferManager> memtables_;
  std::shared_ptr<rocksdb::Statistics> statistics_;
  MemtableGuard guard_;  // used by RocksDB's threads until db_ is closed
  std::unique_ptr<rocksdb::DB> db_;
  std::vector<rocksdb::ColumnFamilyHandle*> handles_;  // [kTableCount + 1]
  std::atomic<int> keepers_{0};                        // of files
  absl::Mutex mend_mutex_;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_ROCKSDB_DATABASE_H_
