#include "memory_store/rocksdb/database.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include <rocksdb/cache.h>
#include <rocksdb/file_checksum.h>

#include "absl/base/dynamic_annotations.h"
#include "absl/strings/str_cat.h"
#include "common/crash_point.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "memory_store/rocksdb/background_listener.h"
#include "memory_store/rocksdb/conversions.h"
#include "memory_store/rocksdb/forwarding_logger.h"
#include "memory_store/rocksdb/table_options.h"
#include "memory_store/rocksdb/unopenable_table.h"
#include "memory_store/table_name.h"

namespace mneme {
namespace {

constexpr int64_t kWalBytesMax = int64_t{128} << 20;  // bounds the replay at Open
constexpr int kOpenFilesMax = 512;

// As Database::handles().
std::vector<rocksdb::ColumnFamilyDescriptor> Families(int64_t block_cache_bytes) {
  const auto block_cache =
      rocksdb::NewLRUCache(static_cast<size_t>(std::max<int64_t>(0, block_cache_bytes)));
  std::vector<rocksdb::ColumnFamilyDescriptor> families;
  for (int table = 0; table < kTableCount; ++table) {
    families.emplace_back(kTableNames[table], TableOptions(static_cast<Table>(table), block_cache));
  }
  // Empty but for the guard's record; RocksDB tells of the block cache through it.
  families.emplace_back(rocksdb::kDefaultColumnFamilyName,
                        TableOptions(Table::kCatalog, block_cache));
  return families;
}

// RocksDB takes a folder without CURRENT for one without a database, makes a new one there, and
// deletes what that has no use for: all there is. DATA_LOSS: this would.
absl::Status CheckCurrent(const std::string& folder) {
  std::error_code ignored;
  if (std::filesystem::exists(absl::StrCat(folder, "/CURRENT"), ignored)) return absl::OkStatus();
  std::filesystem::directory_iterator it(folder, ignored), end;
  for (; !ignored && it != end; it.increment(ignored)) {
    const std::string extension = it->path().extension();
    // What is not there before CURRENT.
    if (extension != ".sst" && extension != ".blob" && extension != ".log") continue;
    return absl::DataLossError(
        absl::StrCat(folder, "/CURRENT is missing, which names the MANIFEST"));
  }
  return absl::OkStatus();
}

// Of the status of an open: names the table file that the MANIFEST names and that is missing.
// Opened without it, by a MANIFEST that lost its end perhaps, RocksDB would delete the files that
// the MANIFEST does not name.
std::optional<rocksdb::Status> MissingTableFile(const rocksdb::Status& status) {
  const std::string text = status.ToString();
  const size_t missing = text.find("No such file or directory");
  if (!status.IsCorruption() || missing == std::string::npos) return std::nullopt;
  for (const char* extension : {".sst", ".ldb"}) {  // the name that RocksDB tried last
    const size_t end = text.find(extension);
    if (end == std::string::npos) continue;
    const size_t begin = text.find_last_not_of("0123456789", end - 1) + 1;
    return rocksdb::Status::Corruption(
        absl::StrCat(text.substr(begin, end - begin), ".sst is missing, which the MANIFEST names"));
  }
  return std::nullopt;
}

}  // namespace

Database::Database(const RocksDbOptions& options, std::string folder)
    : folder_(std::move(folder)),
      read_only_(options.read_only),
      memtables_(std::make_shared<rocksdb::WriteBufferManager>(kRocksDbWriteBufferBytes)),
      statistics_(rocksdb::CreateDBStatistics()) {}

absl::StatusOr<std::unique_ptr<Database>> Database::Open(const RocksDbOptions& options,
                                                         const std::string& folder,
                                                         Metrics& metrics) {
  std::unique_ptr<Database> database(new Database(options, folder));
  std::error_code ignored;  // without the folder RocksDB complains of it, then makes it itself
  if (!options.read_only) std::filesystem::create_directory(folder, ignored);
  RETURN_IF_ERROR(CheckCurrent(folder));
  const rocksdb::Status status = database->OpenLeniently(database->DbOptions(options, metrics),
                                                         Families(options.block_cache_bytes));
  if (status.IsInvalidArgument()) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot open ", folder, ": ", status.ToString()));
  }
  RETURN_IF_ERROR(ToStatus(status, absl::StrCat("cannot open ", folder)));
  RETURN_IF_ERROR(MakeTablesOpen(*database));
  CrashPoint("store opened");
  return database;
}

rocksdb::DBOptions Database::DbOptions(const RocksDbOptions& options, Metrics& metrics) {
  rocksdb::DBOptions db_options;
  db_options.create_if_missing = true;
  db_options.create_missing_column_families = true;
  db_options.max_background_jobs = std::max(2, options.background_threads);
  db_options.max_open_files = kOpenFilesMax;
  db_options.max_total_wal_size = kWalBytesMax;
  db_options.write_buffer_manager = memtables_;
  // What is in memory is in the log too, but for the guard's record.
  db_options.avoid_flush_during_shutdown = true;
  db_options.bytes_per_sync = 1 << 20;
  db_options.wal_bytes_per_sync = 1 << 20;
  db_options.info_log = std::make_shared<ForwardingLogger>();
  // Of all bytes of each table and blob file: what the checksums of blocks and records leave out.
  db_options.file_checksum_gen_factory = rocksdb::GetFileChecksumGenCrc32cFactory();
  // Those say more, and a file that MakeTableOpen made can be opened.
  db_options.verify_sst_unique_id_in_manifest = false;
  if (options.env != nullptr) db_options.env = options.env;
  db_options.statistics = statistics_;
  db_options.listeners.push_back(std::make_shared<BackgroundListener>(metrics, guard_));
  return db_options;
}

rocksdb::Status Database::OpenLeniently(
    rocksdb::DBOptions db_options, const std::vector<rocksdb::ColumnFamilyDescriptor>& families) {
  rocksdb::DB* db = nullptr;
  // A record cut off at the log's end was never acked; damage in its middle may hit what was. So
  // ask for all of the log first. Where that fails, give up what is damaged and nothing else, and
  // say so: records of the log, then whole files.
  db_options.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  const auto open = [&] {
    return read_only_ ? rocksdb::DB::OpenForReadOnly(db_options, folder_, families, &handles_, &db)
                      : rocksdb::DB::Open(db_options, folder_, families, &handles_, &db);
  };
  rocksdb::Status status = open();
  if (const auto missing = MissingTableFile(status)) return *missing;
  if (status.IsCorruption()) {
    LogError("memory_store", "stored data is damaged: opening without damaged records of the log",
             {{"path", folder_}, {"status", status.ToString()}});
    const std::string damage = status.ToString();
    db_options.wal_recovery_mode = rocksdb::WALRecoveryMode::kSkipAnyCorruptedRecords;
    status = open();
    if (status.ok()) log_damage_ = damage;
  }
  if (status.IsCorruption()) {
    LogError("memory_store", "stored data is damaged: opening without damaged files",
             {{"path", folder_}, {"status", status.ToString()}});
    db_options.paranoid_checks = false;
    lenient_ = true;
    status = open();
  }
  db_.reset(db);
  return status;
}

Database::~Database() {
  if (db_ != nullptr) Close().IgnoreError();
}

absl::Status Database::Close() {
  for (rocksdb::ColumnFamilyHandle* handle : handles_) db_->DestroyColumnFamilyHandle(handle);
  const absl::Status status = ToStatus(db_->Close(), "close");
  db_.reset();  // writes what Close leaves, and lets go of the files
  return status;
}

rocksdb::Status Database::Write(const rocksdb::WriteOptions& write_options,
                                rocksdb::WriteBatch* batch) {
  // One thread writes the batches of several that came together. ThreadSanitizer does not see how
  // RocksDB, which is not built with it, hands them over.
  ABSL_ANNOTATE_IGNORE_READS_AND_WRITES_BEGIN();
  guard_.Restore(*db_);
  const rocksdb::Status status = db_->Write(write_options, batch);
  ABSL_ANNOTATE_IGNORE_READS_AND_WRITES_END();
  return status;
}

absl::Status Database::FlushTables() {
  // With something to flush, also the log that has been written to so far is given up.
  rocksdb::Status status = MemtableGuard::Put(*db_);
  if (status.ok()) status = db_->Flush(rocksdb::FlushOptions(), handles_);
  return ToStatus(status, absl::StrCat("flush of ", folder_));
}

absl::Status Database::KeepFiles() {
  if (read_only_) return absl::OkStatus();
  RETURN_IF_ERROR(ToStatus(db_->DisableFileDeletions(), "keep files"));
  ++keepers_;
  return absl::OkStatus();
}

void Database::LetFilesGo() {
  if (read_only_) return;
  --keepers_;
  const rocksdb::Status status = db_->EnableFileDeletions(/*force=*/false);
  if (status.ok()) return;
  LogWarning("memory_store", "obsolete files are kept until the next start",
             {{"status", status.ToString()}});
}

absl::Status Database::DeleteDueFiles() {
  // The end of a pause of deletions deletes what is due, in this thread.
  rocksdb::Status status = db_->DisableFileDeletions();
  if (status.ok()) status = db_->EnableFileDeletions(/*force=*/false);
  return ToStatus(status, "deletion of files");
}

absl::Status Database::Rewrite(const KeyRange& range, bool rewrite_blobs,
                               std::atomic<bool>& cancel) {
  rocksdb::CompactRangeOptions options;
  options.exclusive_manual_compaction = false;
  options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForceOptimized;
  options.blob_garbage_collection_policy = rewrite_blobs
                                               ? rocksdb::BlobGarbageCollectionPolicy::kForce
                                               : rocksdb::BlobGarbageCollectionPolicy::kDisable;
  options.blob_garbage_collection_age_cutoff = 1;
  options.canceled = &cancel;
  const rocksdb::Slice begin(range.begin), end(range.end);
  const rocksdb::Status status = db_->CompactRange(options, Handle(range.table), &begin, &end);
  const std::string what = absl::StrCat("rewrite of table ", TableName(range.table));
  if (cancel || status.IsManualCompactionPaused()) {
    return absl::CancelledError(absl::StrCat(what, " was cancelled"));
  }
  return ToStatus(status, what);
}

}  // namespace mneme
