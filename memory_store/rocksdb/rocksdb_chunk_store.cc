// ChunkStore on RocksDB. Both durabilities go through the write-ahead log, so a killed process
// loses nothing written; kSynced waits for the disk too.
//
// A full disk: a write that would leave less than the reserve free is refused before it reaches
// RocksDB. When space runs out all the same (others write there too), RocksDB stops writes, and
// takes them up again by itself within seconds of there being space (its SstFileManager polls):
// github.com/facebook/rocksdb/wiki, "Background Error Handling".

#include "memory_store/rocksdb/rocksdb_chunk_store.h"

#include <algorithm>
#include <filesystem>
#include <utility>
#include <vector>

#include <rocksdb/db.h>
#include <rocksdb/options.h>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/crash_point.h"
#include "common/log.h"
#include "common/status_facts.h"
#include "common/status_macros.h"
#include "memory_store/data_directory.h"
#include "memory_store/rocksdb/close_record.h"
#include "memory_store/rocksdb/conversions.h"
#include "memory_store/rocksdb/database.h"
#include "memory_store/rocksdb/live_files.h"
#include "memory_store/rocksdb/log_salvage.h"
#include "memory_store/rocksdb/mend.h"
#include "memory_store/rocksdb/purge.h"
#include "memory_store/rocksdb/space_reclaimer.h"
#include "memory_store/rocksdb/statistics.h"
#include "memory_store/table_name.h"

namespace mneme {
namespace {

absl::Status ReadError(const rocksdb::Status& status, Table table) {
  return ToStatus(status, absl::StrCat("read of table ", TableName(table)));
}

// Thread-safe.
class RocksDbChunkStore : public ChunkStore {
 public:
  static absl::StatusOr<std::unique_ptr<ChunkStore>> Open(const RocksDbOptions& options,
                                                          Metrics& metrics);
  ~RocksDbChunkStore() override;

  absl::Status Write(const WriteBatch& batch, Durability durability) override;
  absl::StatusOr<std::string> Get(Table table, absl::string_view key) override;
  std::vector<absl::StatusOr<std::string>> MultiGet(Table table,
                                                    absl::Span<const std::string> keys) override;
  absl::Status Scan(
      Table table, absl::string_view begin, absl::string_view end,
      const std::function<bool(absl::string_view key, absl::string_view value)>& visit) override;
  absl::Status Flush() override;
  absl::Status Purge(absl::Span<const KeyRange> ranges, std::atomic<bool>& cancel) override;
  int64_t used_bytes() override { return directory_->used_bytes(); }
  int64_t free_bytes() override { return directory_->free_bytes(); }
  absl::StatusOr<StoreFiles> Files(FilesFor purpose) override;
  absl::Status MendFile(const StoreFile& file, const GiveUp& give_up) override;
  absl::Status MendForPurge(absl::Span<const KeyRange> ranges, const GiveUp& give_up,
                            std::atomic<bool>& cancel) override;

 private:
  RocksDbChunkStore(const RocksDbOptions& options, Metrics& metrics)
      : options_(options),
        synced_write_seconds_(metrics.AddHistogram("store_synced_write_seconds",
                                                   "Time of a write until it is on stable storage.",
                                                   Metrics::LatencyBounds())),
        refused_writes_(metrics.AddCounter("store_writes_refused_total",
                                           "Writes refused because the disk is full.")) {}

  // Of RocksDB's files.
  std::string folder() const { return absl::StrCat(directory_->path(), "/rocksdb"); }
  // Compares with the last close, and, unless nothing is to be written, salvages damaged logs.
  absl::Status CheckBeforeOpen(Metrics& metrics);
  // Takes what is in memory out of logs that RocksDB cannot list any more.
  absl::Status LeaveDamagedLogs();
  void AddDamagedFile(std::string name, std::string damage);
  // OK when writing `bytes` leaves the reserve free.
  absl::Status CheckSpace(int64_t bytes);
  // A lenient database would go on after a write that failed half way: stop here instead, until a
  // restart.
  absl::Status WriteLenient(const rocksdb::WriteOptions& write_options, rocksdb::WriteBatch* batch)
      ABSL_LOCKS_EXCLUDED(lenient_mutex_);

  const RocksDbOptions options_;
  std::unique_ptr<DataDirectory> directory_;
  std::unique_ptr<Database> database_;
  std::shared_ptr<StatisticsCollectable> statistics_;  // with Metrics
  std::unique_ptr<SpaceReclaimer> reclaimer_;          // null when nothing is written
  std::vector<StoreFile> damaged_files_;               // logs, found at Open
  absl::Mutex lenient_mutex_;
  absl::Status lenient_status_ ABSL_GUARDED_BY(lenient_mutex_);  // of the write that failed
  Histogram& synced_write_seconds_;
  Counter& refused_writes_;
};

absl::StatusOr<std::unique_ptr<ChunkStore>> RocksDbChunkStore::Open(const RocksDbOptions& options,
                                                                    Metrics& metrics) {
  std::unique_ptr<RocksDbChunkStore> store(new RocksDbChunkStore(options, metrics));
  if (options.read_only) RETURN_IF_ERROR(DataDirectory::CheckExists(options.data_dir));
  ASSIGN_OR_RETURN(store->directory_, DataDirectory::Open(options.data_dir));
  RETURN_IF_ERROR(store->CheckBeforeOpen(metrics));
  ASSIGN_OR_RETURN(store->database_, Database::Open(options, store->folder(), metrics));
  if (store->database_->log_damage().has_value() && store->damaged_files_.empty()) {
    // Which, RocksDB does not say.
    store->AddDamagedFile(options.read_only ? "" : "*.log", *store->database_->log_damage());
  }
  if (!options.read_only) {
    RETURN_IF_ERROR(store->LeaveDamagedLogs());
    store->reclaimer_ = std::make_unique<SpaceReclaimer>(*store->database_, options.supervisor);
    RETURN_IF_ERROR(store->directory_->TakeOver());
  }
  store->statistics_ = std::make_shared<StatisticsCollectable>(*store->database_);
  metrics.AddCollectable(store->statistics_);
  return std::unique_ptr<ChunkStore>(std::move(store));
}

absl::Status RocksDbChunkStore::CheckBeforeOpen(Metrics& metrics) {
  Counter& mismatches = metrics.AddCounter(
      "store_close_mismatches_total",
      "Files that were not at Open what they were at the last close: text may have lost its end.");
  ASSIGN_OR_RETURN(const std::vector<std::string> damaged,
                   options_.read_only ? CheckCloseRecord(directory_->path())
                                      : TakeCloseRecord(directory_->path()));
  CrashPoint("close record taken");
  for (const std::string& name : damaged) {
    mismatches.Increment();
    LogError("memory_store", "stored data is damaged: a file is not what it was at the last close",
             {{"path", directory_->path()}, {"file", name}});
    AddDamagedFile(name, "is not what it was at the last close; what was written last may be lost");
  }
  Counter& damaged_bytes = metrics.AddCounter(
      "store_damaged_log_bytes_total", "Bytes of the log that were damaged and left out at Open.");
  if (!std::filesystem::exists(folder())) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<SalvagedLog> salvaged,
                   SalvageLogs(folder(), /*write=*/!options_.read_only));
  for (const SalvagedLog& log : salvaged) {
    damaged_bytes.Increment(static_cast<double>(log.damaged_bytes));
    AddDamagedFile(log.name, absl::StrCat(log.damaged_bytes, " damaged bytes are left out"));
  }
  return absl::OkStatus();
}

void RocksDbChunkStore::AddDamagedFile(std::string name, std::string damage) {
  const auto is_it = [&name](const StoreFile& file) { return file.name == name; };
  if (std::any_of(damaged_files_.begin(), damaged_files_.end(), is_it)) return;
  StoreFile file;
  file.path = absl::StrCat(folder(), "/", name);
  file.name = std::move(name);
  file.damage = std::move(damage);
  damaged_files_.push_back(std::move(file));
}

absl::Status RocksDbChunkStore::LeaveDamagedLogs() {
  rocksdb::VectorLogPtr logs;
  const rocksdb::Status listed = database_->db().GetSortedWalFiles(logs);
  if (damaged_files_.empty() && listed.ok()) return absl::OkStatus();
  RETURN_IF_ERROR(database_->FlushTables());
  return database_->DeleteDueFiles();
}

RocksDbChunkStore::~RocksDbChunkStore() {
  if (statistics_) statistics_->Detach();
  if (!database_) return;
  reclaimer_.reset();
  absl::Status status = database_->Close();
  database_.reset();
  if (!options_.read_only) CrashPoint("store closed");
  if (status.ok() && !options_.read_only) status = WriteCloseRecord(directory_->path());
  if (!status.ok()) {
    LogWarning("memory_store", "rocksdb did not close cleanly", {{"status", status.ToString()}});
  }
}

absl::Status RocksDbChunkStore::CheckSpace(int64_t bytes) {
  if (options_.reserve_bytes <= 0) return absl::OkStatus();
  const int64_t free = directory_->free_bytes();
  if (free < 0) return absl::OkStatus();
  // What is in memtables will be written once more.
  const int64_t needed = bytes + database_->memtable_bytes();
  if (free - needed >= options_.reserve_bytes) return absl::OkStatus();
  refused_writes_.Increment();
  return WithStorageFull(absl::ResourceExhaustedError(absl::StrCat(
      "disk full: ", directory_->path(), " has ", free, " bytes free; this write needs ", needed,
      " and ", options_.reserve_bytes, " are kept in reserve")));
}

absl::Status RocksDbChunkStore::Write(const WriteBatch& batch, Durability durability) {
  if (options_.read_only) {
    return absl::FailedPreconditionError(
        absl::StrCat(directory_->path(), " is open for reading alone"));
  }
  rocksdb::WriteBatch rocksdb_batch;
  bool frees_only = true;
  for (const WriteBatch::Op& op : batch.ops) {
    rocksdb::Status status;
    switch (op.kind) {
      case WriteBatch::Kind::kPut:
        status = rocksdb_batch.Put(database_->Handle(op.table), op.key, op.value);
        frees_only = false;
        break;
      case WriteBatch::Kind::kDelete:
        status = rocksdb_batch.Delete(database_->Handle(op.table), op.key);
        break;
      case WriteBatch::Kind::kDeleteRange:
        status = rocksdb_batch.DeleteRange(database_->Handle(op.table), op.key, op.value);
        break;
    }
    RETURN_IF_ERROR(ToStatus(status, "write batch"));
  }
  // The reserve is what lets a full store still forget.
  if (!frees_only && !batch.frees_space)
    RETURN_IF_ERROR(CheckSpace(static_cast<int64_t>(rocksdb_batch.GetDataSize())));

  rocksdb::WriteOptions write_options;
  write_options.sync = durability == Durability::kSynced;
  const absl::Time begin = absl::Now();
  if (database_->lenient()) return WriteLenient(write_options, &rocksdb_batch);
  const rocksdb::Status status = database_->Write(write_options, &rocksdb_batch);
  if (status.ok() && write_options.sync) {
    synced_write_seconds_.Observe(absl::ToDoubleSeconds(absl::Now() - begin));
  }
  if (status.IsNoSpace()) refused_writes_.Increment();
  if (status.ok()) reclaimer_->RangesDeleted(batch);
  return ToStatus(status, absl::StrCat("write to ", directory_->path()));
}

absl::Status RocksDbChunkStore::WriteLenient(const rocksdb::WriteOptions& write_options,
                                             rocksdb::WriteBatch* batch) {
  absl::MutexLock lock(&lenient_mutex_);
  if (lenient_status_.ok()) {
    lenient_status_ = ToStatus(database_->Write(write_options, batch),
                               absl::StrCat("write to the damaged store ", directory_->path()));
  }
  return lenient_status_;
}

absl::StatusOr<std::string> RocksDbChunkStore::Get(Table table, absl::string_view key) {
  std::string value;
  const rocksdb::Status status =
      database_->db().Get(rocksdb::ReadOptions(), database_->Handle(table), ToSlice(key), &value);
  if (!status.ok()) return ReadError(status, table);
  return value;
}

std::vector<absl::StatusOr<std::string>> RocksDbChunkStore::MultiGet(
    Table table, absl::Span<const std::string> keys) {
  std::vector<rocksdb::Slice> slices(keys.begin(), keys.end());
  std::vector<rocksdb::PinnableSlice> values(keys.size());
  std::vector<rocksdb::Status> statuses(keys.size());
  database_->db().MultiGet(rocksdb::ReadOptions(), database_->Handle(table), keys.size(),
                           slices.data(), values.data(), statuses.data());
  std::vector<absl::StatusOr<std::string>> results;
  results.reserve(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    if (statuses[i].ok()) {
      results.emplace_back(values[i].ToString());
    } else {
      results.emplace_back(ReadError(statuses[i], table));
    }
  }
  return results;
}

absl::Status RocksDbChunkStore::Scan(
    Table table, absl::string_view begin, absl::string_view end,
    const std::function<bool(absl::string_view key, absl::string_view value)>& visit) {
  rocksdb::ReadOptions read_options;
  const rocksdb::Slice upper_bound = ToSlice(end);
  if (!end.empty()) read_options.iterate_upper_bound = &upper_bound;
  std::unique_ptr<rocksdb::Iterator> it(
      database_->db().NewIterator(read_options, database_->Handle(table)));
  for (it->Seek(ToSlice(begin)); it->Valid(); it->Next()) {
    if (!visit(ToView(it->key()), ToView(it->value()))) return absl::OkStatus();
  }
  return ToStatus(it->status(), absl::StrCat("scan of table ", TableName(table)));
}

absl::Status RocksDbChunkStore::Flush() {
  if (options_.read_only) return absl::OkStatus();
  // A synced write of nothing syncs what was written before. (FlushWAL would do without the write,
  // but does not look whether the log had an error, and then ends the process.)
  rocksdb::WriteBatch nothing;
  nothing.PutLogData("sync");
  rocksdb::WriteOptions write_options;
  write_options.sync = true;
  if (database_->lenient()) return WriteLenient(write_options, &nothing);
  return ToStatus(database_->Write(write_options, &nothing),
                  absl::StrCat("sync of ", directory_->path()));
}

absl::Status RocksDbChunkStore::Purge(absl::Span<const KeyRange> ranges,
                                      std::atomic<bool>& cancel) {
  return PurgeRanges(*database_, ranges, cancel);
}

absl::StatusOr<StoreFiles> RocksDbChunkStore::Files(FilesFor purpose) {
  return LiveFiles(*database_, purpose, damaged_files_);
}

absl::Status RocksDbChunkStore::MendFile(const StoreFile& file, const GiveUp& give_up) {
  if (options_.read_only) return absl::NotFoundError(file.name);
  return MendLiveFile(*database_, file, give_up);
}

absl::Status RocksDbChunkStore::MendForPurge(absl::Span<const KeyRange> ranges,
                                             const GiveUp& give_up, std::atomic<bool>& cancel) {
  return MendRanges(*database_, ranges, give_up, cancel);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChunkStore>> OpenRocksDbChunkStore(const RocksDbOptions& options,
                                                                  Metrics& metrics) {
  return RocksDbChunkStore::Open(options, metrics);
}

}  // namespace mneme
