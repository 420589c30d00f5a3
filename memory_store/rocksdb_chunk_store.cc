// ChunkStore on RocksDB, the only file that knows of it. One column family a table: text
// compressed, pages in blob files (written once at flush, not again at every compaction), bloom
// filters for point reads. Both durabilities go through the write-ahead log, so a killed process
// loses nothing written; kSynced waits for the disk too.
//
// A full disk: a write that would leave less than the reserve free is refused before it reaches
// RocksDB. When space runs out all the same (others write there too), RocksDB stops writes, and
// takes them up again by itself within seconds of there being space (its SstFileManager polls).
// Operating RocksDB:
// github.com/facebook/rocksdb/wiki, "Background Error Handling", "BlobDB", "WAL Recovery Modes".

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <limits>
#include <optional>
#include <set>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>

#include <rocksdb/cache.h>
#include <rocksdb/convenience.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/file_checksum.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/listener.h>
#include <rocksdb/options.h>
#include <rocksdb/statistics.h>
#include <rocksdb/table.h>
#include <rocksdb/write_buffer_manager.h>

#include "absl/base/dynamic_annotations.h"
#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/background_thread.h"
#include "common/crash_point.h"
#include "common/log.h"
#include "common/status_facts.h"
#include "common/status_macros.h"
#include "memory_store/blob_file.h"
#include "memory_store/chunk_store.h"
#include "memory_store/close_record.h"
#include "memory_store/data_directory.h"
#include "memory_store/log_salvage.h"

namespace mneme {
namespace {

constexpr std::array<const char*, kTableCount> kTableNames = {"catalog", "text", "segments",
                                                              "pages"};
constexpr int64_t kMemtableBytesMax = kRocksDbWriteBufferBytes;  // all tables together
constexpr int64_t kWalBytesMax = int64_t{128} << 20;             // bounds the replay at Open
constexpr int64_t kBlobFileBytes = int64_t{64} << 20;
constexpr int64_t kBlobValueBytesMin = 4096;
constexpr int kOpenFilesMax = 512;
// A scan keeps the files that it reads; none of ours takes so long.
constexpr absl::Duration kFileDeletionPatience = absl::Seconds(10);

rocksdb::Slice ToSlice(absl::string_view bytes) { return {bytes.data(), bytes.size()}; }
absl::string_view ToView(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

absl::Status ToStatus(const rocksdb::Status& status, absl::string_view what) {
  if (status.ok()) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", status.ToString());
  if (status.IsNoSpace() || status.subcode() == rocksdb::Status::kSpaceLimit)
    return WithStorageFull(absl::ResourceExhaustedError(message));
  if (status.IsNotFound()) return absl::NotFoundError(message);
  if (status.IsCorruption()) return absl::DataLossError(message);
  return absl::InternalError(message);
}

// RocksDB 7.8's recovery from a failed append to its log gives up that log only when a memtable
// holds something. With none it says that it recovered, and the next append to the old log ends the
// process (Debian builds RocksDB with assertions). So some memtable always holds something: a
// record of the default table, which nobody reads and which never goes to the log.
class MemtableGuard {
 public:
  // Makes a memtable hold something. Thread-safe.
  static rocksdb::Status Put(rocksdb::DB& db) {
    rocksdb::WriteOptions options;
    options.disableWAL = true;
    return db.Put(options, "memtable guard", "");
  }

  // The default table's memtable is empty now. Thread-safe.
  void Emptied() { needed_.store(true, std::memory_order_relaxed); }
  // Before a write. Thread-safe.
  void Restore(rocksdb::DB& db) {
    if (!needed_.load(std::memory_order_relaxed) || !needed_.exchange(false)) return;
    if (!Put(db).ok()) Emptied();
  }

 private:
  std::atomic<bool> needed_{true};
};

// Counts and logs what goes wrong in RocksDB's own threads, and tells the guard of flushes.
class BackgroundListener : public rocksdb::EventListener {
 public:
  BackgroundListener(Metrics& metrics, MemtableGuard& guard) : metrics_(metrics), guard_(guard) {
    for (const char* reason : {"flush", "compaction", "write", "other"}) Errors(reason);
  }

  void OnBackgroundError(rocksdb::BackgroundErrorReason reason, rocksdb::Status* error) override {
    const char* name = "other";
    if (reason == rocksdb::BackgroundErrorReason::kFlush) name = "flush";
    if (reason == rocksdb::BackgroundErrorReason::kCompaction) name = "compaction";
    if (reason == rocksdb::BackgroundErrorReason::kWriteCallback) name = "write";
    Errors(name).Increment();
    LogError("memory_store", "rocksdb background error",
             {{"reason", name}, {"status", error->ToString()}});
    // A damaged file must not stop the writes of all documents: its compaction is tried again
    // later, its damaged records are told apart by their own checksums.
    if (reason == rocksdb::BackgroundErrorReason::kCompaction && error->IsCorruption()) {
      *error = rocksdb::Status::OK();
    }
  }

  void OnFlushBegin(rocksdb::DB* /*db*/, const rocksdb::FlushJobInfo& info) override {
    if (info.cf_name == rocksdb::kDefaultColumnFamilyName) guard_.Emptied();
  }

  void OnErrorRecoveryEnd(const rocksdb::BackgroundErrorRecoveryInfo& info) override {
    LogInfo("memory_store", "rocksdb recovered from background error",
            {{"was", info.old_bg_error.ToString()}, {"now", info.new_bg_error.ToString()}});
  }

 private:
  Counter& Errors(const char* reason) {
    return metrics_.AddCounter("rocksdb_background_errors_total",
                               "Errors in RocksDB's flushes, compactions and writes.",
                               {{"reason", reason}});
  }

  Metrics& metrics_;
  MemtableGuard& guard_;
};

// RocksDB's own log, as lines of ours. Its usual log file would be one more file that grows, and a
// full disk under that file ends the process (Debian builds RocksDB with assertions, and RocksDB
// 7.8 asserts that nobody appends to a file after an error).
class ForwardingLogger : public rocksdb::Logger {
 public:
  using rocksdb::Logger::Logv;
  ForwardingLogger() : rocksdb::Logger(rocksdb::InfoLogLevel::WARN_LEVEL) {}

  void Logv(const char* format, va_list arguments) override {
    Logv(rocksdb::InfoLogLevel::INFO_LEVEL, format, arguments);
  }
  void Logv(rocksdb::InfoLogLevel level, const char* format, va_list arguments) override {
    if (level < GetInfoLogLevel()) return;
    char message[1024];
    std::vsnprintf(message, sizeof message, format, arguments);
    const bool error =
        level == rocksdb::InfoLogLevel::ERROR_LEVEL || level == rocksdb::InfoLogLevel::FATAL_LEVEL;
    Log(error ? LogLevel::kWarning : LogLevel::kDebug, "rocksdb",
        absl::StripTrailingAsciiWhitespace(message));
  }
};

struct TickerMetric {
  rocksdb::Tickers ticker;
  const char* name;
  double scale;  // metric units of one count
  const char* help;
};

constexpr TickerMetric kTickerMetrics[] = {
    {rocksdb::BLOCK_CACHE_HIT, "block_cache_hits_total", 1, "Blocks found in the block cache."},
    {rocksdb::BLOCK_CACHE_MISS, "block_cache_misses_total", 1,
     "Blocks not found in the block cache."},
    {rocksdb::BLOCK_CACHE_BYTES_READ, "block_cache_read_bytes_total", 1,
     "Bytes read from the block cache."},
    {rocksdb::BLOOM_FILTER_USEFUL, "bloom_filter_useful_total", 1,
     "Reads of a file that a bloom filter saved."},
    {rocksdb::MEMTABLE_HIT, "memtable_hits_total", 1, "Reads answered by a memtable."},
    {rocksdb::MEMTABLE_MISS, "memtable_misses_total", 1, "Reads not answered by a memtable."},
    {rocksdb::NUMBER_KEYS_WRITTEN, "written_keys_total", 1, "Keys written."},
    {rocksdb::NUMBER_KEYS_READ, "read_keys_total", 1, "Keys read by Get."},
    {rocksdb::BYTES_WRITTEN, "written_bytes_total", 1, "Bytes of keys and values written."},
    {rocksdb::BYTES_READ, "read_bytes_total", 1, "Bytes of values read by Get."},
    {rocksdb::NUMBER_MULTIGET_KEYS_READ, "multiget_keys_total", 1, "Keys read by MultiGet."},
    {rocksdb::NUMBER_MULTIGET_BYTES_READ, "multiget_bytes_total", 1,
     "Bytes of values read by MultiGet."},
    {rocksdb::NUMBER_DB_SEEK, "seeks_total", 1, "Scans begun."},
    {rocksdb::ITER_BYTES_READ, "scan_bytes_total", 1, "Bytes of keys and values read by scans."},
    {rocksdb::WAL_FILE_SYNCED, "wal_syncs_total", 1, "Syncs of the write-ahead log."},
    {rocksdb::WAL_FILE_BYTES, "wal_bytes_total", 1, "Bytes written to the write-ahead log."},
    {rocksdb::WRITE_DONE_BY_SELF, "writes_leading_total", 1,
     "Writes that led a group of writes to the log."},
    {rocksdb::WRITE_DONE_BY_OTHER, "writes_following_total", 1,
     "Writes carried by another write's group."},
    {rocksdb::STALL_MICROS, "stall_seconds_total", 1e-6,
     "Time writes waited for flushes and compactions."},
    {rocksdb::FLUSH_WRITE_BYTES, "flush_written_bytes_total", 1, "Bytes written by flushes."},
    {rocksdb::COMPACT_READ_BYTES, "compaction_read_bytes_total", 1, "Bytes read by compactions."},
    {rocksdb::COMPACT_WRITE_BYTES, "compaction_written_bytes_total", 1,
     "Bytes written by compactions."},
    {rocksdb::BLOB_DB_BLOB_FILE_BYTES_WRITTEN, "blob_written_bytes_total", 1,
     "Bytes written to blob files."},
    {rocksdb::BLOB_DB_BLOB_FILE_BYTES_READ, "blob_read_bytes_total", 1,
     "Bytes read from blob files."},
    {rocksdb::BLOB_DB_GC_BYTES_RELOCATED, "blob_gc_relocated_bytes_total", 1,
     "Bytes of live values that garbage collection moved to new blob files."},
    {rocksdb::NO_FILE_OPENS, "file_opens_total", 1, "Files opened."},
    {rocksdb::NO_FILE_ERRORS, "file_errors_total", 1, "Files that could not be opened."},
};

struct PropertyMetric {
  const char* property;
  const char* name;
  const char* help;
};

constexpr PropertyMetric kTablePropertyMetrics[] = {
    {"rocksdb.live-sst-files-size", "live_sst_bytes", "Bytes of live table files."},
    {"rocksdb.live-blob-file-size", "live_blob_bytes", "Bytes of live blob files."},
    {"rocksdb.live-blob-file-garbage-size", "garbage_blob_bytes",
     "Bytes of dead values in live blob files."},
    {"rocksdb.cur-size-all-mem-tables", "memtable_bytes", "Bytes not yet flushed."},
    {"rocksdb.estimate-num-keys", "keys", "Keys, estimated."},
    {"rocksdb.estimate-pending-compaction-bytes", "pending_compaction_bytes",
     "Bytes that compaction has yet to rewrite, estimated."},
    {"rocksdb.num-files-at-level0", "level0_files",
     "Files not yet merged; writes slow down at 20."},
};

constexpr PropertyMetric kDbPropertyMetrics[] = {
    {"rocksdb.background-errors", "background_errors", "Background errors since the start."},
    {"rocksdb.num-running-compactions", "running_compactions", "Compactions running."},
    {"rocksdb.num-running-flushes", "running_flushes", "Flushes running."},
    {"rocksdb.is-write-stopped", "write_stopped", "1 while writes wait for compactions."},
    {"rocksdb.actual-delayed-write-rate", "delayed_write_bytes_per_second",
     "Rate that writes are slowed down to; 0: not slowed."},
    {"rocksdb.block-cache-usage", "block_cache_bytes", "Bytes in the block cache."},
    {"rocksdb.block-cache-capacity", "block_cache_limit_bytes", "Limit of the block cache."},
};

// RocksDB's own statistics, read when Prometheus asks. Outlives the store inside Metrics; says
// nothing then. Thread-safe.
class StatisticsCollectable : public prometheus::Collectable {
 public:
  // Both live until Detach.
  void Attach(rocksdb::DB* db, const std::vector<rocksdb::ColumnFamilyHandle*>& tables,
              std::shared_ptr<rocksdb::Statistics> statistics) {
    absl::MutexLock lock(&mutex_);
    db_ = db;
    tables_ = tables;
    statistics_ = std::move(statistics);
  }

  void Detach() {
    absl::MutexLock lock(&mutex_);
    db_ = nullptr;
  }

  std::vector<prometheus::MetricFamily> Collect() const override {
    absl::MutexLock lock(&mutex_);
    std::vector<prometheus::MetricFamily> families;
    if (db_ == nullptr) return families;
    for (const TickerMetric& metric : kTickerMetrics) {
      prometheus::ClientMetric value;
      value.counter.value =
          static_cast<double>(statistics_->getTickerCount(metric.ticker)) * metric.scale;
      families.push_back(
          Family(metric.name, metric.help, prometheus::MetricType::Counter, {std::move(value)}));
    }
    for (const PropertyMetric& metric : kTablePropertyMetrics) {
      std::vector<prometheus::ClientMetric> values;
      for (int table = 0; table < kTableCount; ++table) {
        // By text: RocksDB gives the number of files at a level in no other form.
        std::string text;
        uint64_t number = 0;
        if (!db_->GetProperty(tables_[table], metric.property, &text) ||
            !absl::SimpleAtoi(text, &number)) {
          continue;
        }
        prometheus::ClientMetric value;
        value.gauge.value = static_cast<double>(number);
        value.label.push_back({"table", kTableNames[table]});
        values.push_back(std::move(value));
      }
      families.push_back(
          Family(metric.name, metric.help, prometheus::MetricType::Gauge, std::move(values)));
    }
    for (const PropertyMetric& metric : kDbPropertyMetrics) {
      uint64_t number = 0;
      if (!db_->GetIntProperty(metric.property, &number)) continue;
      prometheus::ClientMetric value;
      value.gauge.value = static_cast<double>(number);
      families.push_back(
          Family(metric.name, metric.help, prometheus::MetricType::Gauge, {std::move(value)}));
    }
    return families;
  }

 private:
  static prometheus::MetricFamily Family(const char* name, const char* help,
                                         prometheus::MetricType type,
                                         std::vector<prometheus::ClientMetric> values) {
    prometheus::MetricFamily family;
    family.name = absl::StrCat("mneme_rocksdb_", name);
    family.help = help;
    family.type = type;
    family.metric = std::move(values);
    return family;
  }

  mutable absl::Mutex mutex_;
  rocksdb::DB* db_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::vector<rocksdb::ColumnFamilyHandle*> tables_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<rocksdb::Statistics> statistics_ ABSL_GUARDED_BY(mutex_);  // shared with RocksDB
};

rocksdb::ColumnFamilyOptions TableOptions(Table table,
                                          const std::shared_ptr<rocksdb::Cache>& block_cache) {
  rocksdb::ColumnFamilyOptions options;
  rocksdb::BlockBasedTableOptions blocks;
  blocks.block_cache = block_cache;
  blocks.cache_index_and_filter_blocks = true;  // so that the block cache bounds them too
  blocks.pin_l0_filter_and_index_blocks_in_cache = true;
  blocks.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  blocks.format_version = 5;
  blocks.checksum = rocksdb::kCRC32c;
  options.level_compaction_dynamic_level_bytes = true;
  options.compression = rocksdb::kNoCompression;
  switch (table) {
    case Table::kCatalog:
      options.write_buffer_size = 4 << 20;
      break;
    case Table::kText:
      options.write_buffer_size = 16 << 20;
      options.compression = rocksdb::kLZ4Compression;
      options.bottommost_compression = rocksdb::kZSTD;
      blocks.block_size = 16 << 10;
      break;
    case Table::kSegments:
      options.write_buffer_size = 16 << 20;
      blocks.block_size = 16 << 10;
      break;
    case Table::kPages:
      options.write_buffer_size = 32 << 20;
      options.enable_blob_files = true;
      options.min_blob_size = kBlobValueBytesMin;
      options.blob_file_size = kBlobFileBytes;
      options.enable_blob_garbage_collection = true;
      options.blob_garbage_collection_force_threshold = 0.5;
      break;
  }
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(blocks));
  return options;
}

// The same ranges with those of a table that meet or overlap made one.
std::vector<KeyRange> Merged(std::vector<KeyRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const KeyRange& a, const KeyRange& b) {
    return std::tie(a.table, a.begin, a.end) < std::tie(b.table, b.begin, b.end);
  });
  std::vector<KeyRange> merged;
  for (KeyRange& range : ranges) {
    if (merged.empty() || merged.back().table != range.table || merged.back().end < range.begin) {
      merged.push_back(std::move(range));
    } else if (merged.back().end < range.end) {
      merged.back().end = std::move(range.end);
    }
  }
  return merged;
}

// Gives back the space of deleted ranges: a deletion is a note that compaction acts upon, which in
// a quiet store it may not do for weeks. Large ranges are compacted at once, one after another, on
// a thread of its own; small ones are left to RocksDB. Thread-safe.
class SpaceReclaimer {
 public:
  // `db` and `tables` outlive this, and so does `supervisor`, unless it is null.
  SpaceReclaimer(rocksdb::DB& db, const std::vector<rocksdb::ColumnFamilyHandle*>& tables,
                 Supervisor* supervisor)
      : db_(db), tables_(tables) {
    // A compaction takes as long as it takes.
    if (supervisor != nullptr) {
      watched_ = std::make_unique<WatchedThread>("reclaim", *supervisor, WatchedThread::kNoLimit);
    }
    thread_ = std::thread([this] { Run(); });
  }

  ~SpaceReclaimer() {
    cancel_ = true;
    db_.DisableManualCompaction();
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    thread_.join();
  }

  void RangesDeleted(const WriteBatch& batch) {
    absl::MutexLock lock(&mutex_);
    for (const WriteBatch::Op& op : batch.ops) {
      if (op.kind != WriteBatch::Kind::kDeleteRange) continue;
      if (pending_.size() == kPendingMax) return;
      pending_.push_back({op.table, op.key, op.value});
    }
  }

 private:
  struct DeletedRange {
    Table table;
    std::string begin;
    std::string end;
  };
  // More than this many wait for RocksDB's own compactions.
  static constexpr size_t kPendingMax = 1024;
  // Bytes in table files from which a range is worth a compaction. Of pages these hold the keys
  // alone.
  static constexpr std::array<uint64_t, kTableCount> kBytesMin = {1 << 20, 1 << 20, 1 << 20,
                                                                  16 << 10};

  void Run() {
    while (true) {
      DeletedRange range;
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

  void Reclaim(const DeletedRange& range) {
    const size_t table = static_cast<size_t>(range.table);
    const rocksdb::Slice begin(range.begin), end(range.end);
    const rocksdb::Range sized(begin, end);
    uint64_t bytes = 0;
    db_.GetApproximateSizes(tables_[table], &sized, 1, &bytes);
    if (bytes < kBytesMin[table]) return;
    rocksdb::CompactRangeOptions options;
    options.exclusive_manual_compaction = false;
    options.canceled = &cancel_;
    const rocksdb::Status status = db_.CompactRange(options, tables_[table], &begin, &end);
    if (!status.ok() && !cancel_) {
      LogWarning("memory_store", "space of deleted records not reclaimed yet",
                 {{"table", kTableNames[table]}, {"status", status.ToString()}});
    }
  }

  rocksdb::DB& db_;
  const std::vector<rocksdb::ColumnFamilyHandle*> tables_;
  std::atomic<bool> cancel_{false};  // read by RocksDB while it compacts
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<DeletedRange> pending_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<WatchedThread> watched_;
  std::thread thread_;
};

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
  absl::Status MendFile(const StoreFile& file, bool may_drop) override;

 private:
  RocksDbChunkStore(const RocksDbOptions& options, Metrics& metrics)
      : options_(options),
        memtables_(std::make_shared<rocksdb::WriteBufferManager>(kMemtableBytesMax)),
        statistics_(rocksdb::CreateDBStatistics()),
        synced_write_seconds_(metrics.AddHistogram("store_synced_write_seconds",
                                                   "Time of a write until it is on stable storage.",
                                                   Metrics::LatencyBounds())),
        refused_writes_(metrics.AddCounter("store_writes_refused_total",
                                           "Writes refused because the disk is full.")) {}

  // Compares with the last close, and salvages damaged logs.
  absl::Status CheckBeforeOpen(Metrics& metrics);
  absl::Status OpenDb(Metrics& metrics);
  rocksdb::ColumnFamilyHandle* Handle(Table table) const {
    return tables_[static_cast<size_t>(table)];
  }
  // As it is now; nothing when it is not part of the store any more.
  std::optional<rocksdb::LiveFileMetaData> FindTableFile(const std::string& name) const;
  // Makes RocksDB forget a table file, and with it whatever else lies wholly within its keys, or is
  // older and on level 0. A file that is being compacted stays.
  absl::Status DropFile(rocksdb::ColumnFamilyHandle* handle, const rocksdb::LiveFileMetaData& file);
  // Writes the values of a damaged blob file anew, those that could not be read having been put
  // again: then RocksDB has no use for it.
  absl::Status MoveOutOfBlobFile(const StoreFile& file);
  // OK when writing `bytes` leaves the reserve free.
  absl::Status CheckSpace(int64_t bytes);

  // The parts of Purge.
  absl::Status FlushTables();
  absl::Status Compact(const KeyRange& range, bool rewrite_blobs, std::atomic<bool>& cancel);
  // Rewrites the blob files that hold values of deleted keys of these ranges, until there is none.
  absl::Status RewriteBlobFiles(absl::Span<const KeyRange> ranges, std::atomic<bool>& cancel);
  // Numbers of the files in RocksDB's folder that are not empty: tables and blobs, or logs.
  std::set<uint64_t> DataFilesOnDisk() const { return FilesOnDisk({".sst", ".blob"}); }
  std::set<uint64_t> LogsOnDisk() const { return FilesOnDisk({".log"}); }
  std::set<uint64_t> FilesOnDisk(const std::set<std::string>& extensions) const;
  // Numbers of the tables and blobs that it uses.
  std::set<uint64_t> FilesInUse() const;
  // Waits until those of `files` that are not in use any more are gone.
  absl::Status AwaitDeletion(const std::set<uint64_t>& files, std::atomic<bool>& cancel);

  rocksdb::Status WriteToDb(const rocksdb::WriteOptions& write_options, rocksdb::WriteBatch* batch);
  // Without its own checks RocksDB would go on after a write that failed half way: stop here
  // instead, until a restart.
  absl::Status WriteLenient(const rocksdb::WriteOptions& write_options, rocksdb::WriteBatch* batch)
      ABSL_LOCKS_EXCLUDED(lenient_mutex_);

  const RocksDbOptions options_;
  std::unique_ptr<DataDirectory> directory_;
  // Shared with RocksDB.
  std::shared_ptr<rocksdb::WriteBufferManager> memtables_;
  std::shared_ptr<rocksdb::Statistics> statistics_;
  std::shared_ptr<StatisticsCollectable> collectable_;  // with Metrics
  MemtableGuard guard_;  // used by RocksDB's threads until db_ is closed
  std::unique_ptr<rocksdb::DB> db_;
  rocksdb::ColumnFamilyHandle* default_table_ = nullptr;  // RocksDB demands it; the guard's
  std::vector<rocksdb::ColumnFamilyHandle*> tables_;      // [kTableCount]
  std::unique_ptr<SpaceReclaimer> reclaimer_;
  bool lenient_ = false;  // opened without RocksDB's paranoid_checks
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
  if (!options.read_only) RETURN_IF_ERROR(store->CheckBeforeOpen(metrics));
  RETURN_IF_ERROR(store->OpenDb(metrics));
  if (!options.read_only) RETURN_IF_ERROR(store->directory_->TakeOver());
  store->collectable_ = std::make_shared<StatisticsCollectable>();
  store->collectable_->Attach(store->db_.get(), store->tables_, store->statistics_);
  metrics.AddCollectable(store->collectable_);
  return std::unique_ptr<ChunkStore>(std::move(store));
}

absl::Status RocksDbChunkStore::CheckBeforeOpen(Metrics& metrics) {
  Counter& mismatches = metrics.AddCounter(
      "store_close_mismatches_total",
      "Files that were not at Open what they were at the last close: text may have lost its end.");
  ASSIGN_OR_RETURN(const std::vector<std::string> damaged, TakeCloseRecord(directory_->path()));
  CrashPoint("close record taken");
  for (const std::string& name : damaged) {
    mismatches.Increment();
    LogError("memory_store", "stored data is damaged: a file is not what it was at the last close",
             {{"path", directory_->path()}, {"file", name}});
  }
  Counter& damaged_bytes = metrics.AddCounter(
      "store_damaged_log_bytes_total", "Bytes of the log that were damaged and left out at Open.");
  const std::string folder = absl::StrCat(directory_->path(), "/rocksdb");
  if (!std::filesystem::exists(folder)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const int64_t left_out, SalvageLogs(folder));
  damaged_bytes.Increment(static_cast<double>(left_out));
  return absl::OkStatus();
}

absl::Status RocksDbChunkStore::OpenDb(Metrics& metrics) {
  rocksdb::DBOptions db_options;
  db_options.create_if_missing = true;
  db_options.create_missing_column_families = true;
  db_options.max_background_jobs = std::max(2, options_.background_threads);
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
  if (options_.env != nullptr) db_options.env = options_.env;
  db_options.statistics = statistics_;
  db_options.listeners.push_back(std::make_shared<BackgroundListener>(metrics, guard_));

  const auto block_cache =
      rocksdb::NewLRUCache(static_cast<size_t>(std::max<int64_t>(0, options_.block_cache_bytes)));
  std::vector<rocksdb::ColumnFamilyDescriptor> families;
  // Empty, but RocksDB tells of the block cache through it.
  families.emplace_back(rocksdb::kDefaultColumnFamilyName,
                        TableOptions(Table::kCatalog, block_cache));
  for (int table = 0; table < kTableCount; ++table) {
    families.emplace_back(kTableNames[table], TableOptions(static_cast<Table>(table), block_cache));
  }
  const std::string path = absl::StrCat(directory_->path(), "/rocksdb");
  std::error_code ignored;  // without the folder RocksDB complains of it, then makes it itself
  if (!options_.read_only) std::filesystem::create_directory(path, ignored);
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* db = nullptr;
  // A record cut off at the log's end was never acked; damage in its middle may hit what was. So
  // ask for all of the log first. Where that fails, give up what is damaged and nothing else, and
  // say so: records of the log, then whole files.
  db_options.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  rocksdb::Status status =
      options_.read_only ? rocksdb::DB::OpenForReadOnly(db_options, path, families, &handles, &db)
                         : rocksdb::DB::Open(db_options, path, families, &handles, &db);
  if (status.IsCorruption() && !options_.read_only) {
    LogError("memory_store", "stored data is damaged: opening without damaged records of the log",
             {{"path", path}, {"status", status.ToString()}});
    db_options.wal_recovery_mode = rocksdb::WALRecoveryMode::kSkipAnyCorruptedRecords;
    status = rocksdb::DB::Open(db_options, path, families, &handles, &db);
  }
  if (status.IsCorruption() && !options_.read_only) {
    LogError("memory_store", "stored data is damaged: opening without damaged files",
             {{"path", path}, {"status", status.ToString()}});
    db_options.paranoid_checks = false;
    lenient_ = true;
    status = rocksdb::DB::Open(db_options, path, families, &handles, &db);
  }
  if (status.IsInvalidArgument()) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot open ", path, ": ", status.ToString()));
  }
  RETURN_IF_ERROR(ToStatus(status, absl::StrCat("cannot open ", path)));
  CrashPoint("store opened");
  db_.reset(db);
  default_table_ = handles[0];
  tables_.assign(handles.begin() + 1, handles.end());
  if (!options_.read_only)
    reclaimer_ = std::make_unique<SpaceReclaimer>(*db_, tables_, options_.supervisor);
  return absl::OkStatus();
}

RocksDbChunkStore::~RocksDbChunkStore() {
  if (collectable_) collectable_->Detach();
  if (!db_) return;
  reclaimer_.reset();
  for (rocksdb::ColumnFamilyHandle* table : tables_) db_->DestroyColumnFamilyHandle(table);
  db_->DestroyColumnFamilyHandle(default_table_);
  absl::Status status = ToStatus(db_->Close(), "close");
  db_.reset();  // writes what Close leaves, and lets go of the files
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
  const int64_t needed = bytes + static_cast<int64_t>(memtables_->memory_usage());
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
        status = rocksdb_batch.Put(Handle(op.table), op.key, op.value);
        frees_only = false;
        break;
      case WriteBatch::Kind::kDelete:
        status = rocksdb_batch.Delete(Handle(op.table), op.key);
        break;
      case WriteBatch::Kind::kDeleteRange:
        status = rocksdb_batch.DeleteRange(Handle(op.table), op.key, op.value);
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
  if (lenient_) return WriteLenient(write_options, &rocksdb_batch);
  const rocksdb::Status status = WriteToDb(write_options, &rocksdb_batch);
  if (status.ok() && write_options.sync) {
    synced_write_seconds_.Observe(absl::ToDoubleSeconds(absl::Now() - begin));
  }
  if (status.IsNoSpace()) refused_writes_.Increment();
  if (status.ok()) reclaimer_->RangesDeleted(batch);
  return ToStatus(status, absl::StrCat("write to ", directory_->path()));
}

rocksdb::Status RocksDbChunkStore::WriteToDb(const rocksdb::WriteOptions& write_options,
                                             rocksdb::WriteBatch* batch) {
  // One thread writes the batches of several that came together. ThreadSanitizer does not see how
  // RocksDB, which is not built with it, hands them over.
  ABSL_ANNOTATE_IGNORE_READS_AND_WRITES_BEGIN();
  guard_.Restore(*db_);
  const rocksdb::Status status = db_->Write(write_options, batch);
  ABSL_ANNOTATE_IGNORE_READS_AND_WRITES_END();
  return status;
}

absl::Status RocksDbChunkStore::WriteLenient(const rocksdb::WriteOptions& write_options,
                                             rocksdb::WriteBatch* batch) {
  absl::MutexLock lock(&lenient_mutex_);
  if (lenient_status_.ok()) {
    lenient_status_ = ToStatus(WriteToDb(write_options, batch),
                               absl::StrCat("write to the damaged store ", directory_->path()));
  }
  return lenient_status_;
}

absl::StatusOr<std::string> RocksDbChunkStore::Get(Table table, absl::string_view key) {
  std::string value;
  RETURN_IF_ERROR(
      ToStatus(db_->Get(rocksdb::ReadOptions(), Handle(table), ToSlice(key), &value), "read"));
  return value;
}

std::vector<absl::StatusOr<std::string>> RocksDbChunkStore::MultiGet(
    Table table, absl::Span<const std::string> keys) {
  std::vector<rocksdb::Slice> slices(keys.begin(), keys.end());
  std::vector<rocksdb::PinnableSlice> values(keys.size());
  std::vector<rocksdb::Status> statuses(keys.size());
  db_->MultiGet(rocksdb::ReadOptions(), Handle(table), keys.size(), slices.data(), values.data(),
                statuses.data());
  std::vector<absl::StatusOr<std::string>> results;
  results.reserve(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    if (statuses[i].ok()) {
      results.emplace_back(values[i].ToString());
    } else {
      results.emplace_back(ToStatus(statuses[i], "read"));
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
  std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(read_options, Handle(table)));
  for (it->Seek(ToSlice(begin)); it->Valid(); it->Next()) {
    if (!visit(ToView(it->key()), ToView(it->value()))) return absl::OkStatus();
  }
  return ToStatus(it->status(),
                  absl::StrCat("scan of table ", kTableNames[static_cast<size_t>(table)]));
}

absl::Status RocksDbChunkStore::Flush() {
  if (options_.read_only) return absl::OkStatus();
  // A synced write of nothing syncs what was written before. (FlushWAL would do without the write,
  // but does not look whether the log had an error, and then ends the process.)
  rocksdb::WriteBatch nothing;
  nothing.PutLogData("sync");
  rocksdb::WriteOptions write_options;
  write_options.sync = true;
  if (lenient_) return WriteLenient(write_options, &nothing);
  return ToStatus(WriteToDb(write_options, &nothing), absl::StrCat("sync of ", directory_->path()));
}

absl::StatusOr<StoreFiles> RocksDbChunkStore::Files(FilesFor purpose) {
  rocksdb::LiveFilesStorageInfoOptions info_options;
  info_options.include_checksum_info = true;
  info_options.wal_size_for_flush =
      purpose == FilesFor::kBackup ? 0 : std::numeric_limits<uint64_t>::max();
  if (!options_.read_only) {
    RETURN_IF_ERROR(ToStatus(db_->DisableFileDeletions(), "keep files"));
  }
  const auto release = [this] {
    if (options_.read_only) return;
    const rocksdb::Status status = db_->EnableFileDeletions(/*force=*/false);
    if (!status.ok()) {
      LogWarning("memory_store", "obsolete files are kept until the next start",
                 {{"status", status.ToString()}});
    }
  };
  std::vector<rocksdb::LiveFileStorageInfo> infos;
  const rocksdb::Status status = db_->GetLiveFilesStorageInfo(info_options, &infos);
  if (!status.ok()) {
    release();
    return ToStatus(status, "list files");
  }
  std::vector<rocksdb::LiveFileMetaData> tables;
  db_->GetLiveFilesMetaData(&tables);

  std::vector<StoreFile> files;
  for (rocksdb::LiveFileStorageInfo& info : infos) {
    StoreFile file;
    file.name = info.relative_filename;
    file.path = absl::StrCat(info.directory, "/", info.relative_filename);
    file.bytes = static_cast<int64_t>(info.size);
    file.contents = std::move(info.replacement_contents);
    if (info.file_type == rocksdb::FileType::kTableFile) file.kind = StoreFile::Kind::kTable;
    if (info.file_type == rocksdb::FileType::kBlobFile) {
      file.kind = StoreFile::Kind::kBlobs;
      file.table = Table::kPages;  // the only one with blobs
    }
    for (const rocksdb::LiveFileMetaData& table : tables) {
      if (table.relative_filename != file.name) continue;
      for (int i = 0; i < kTableCount; ++i) {
        if (table.column_family_name == kTableNames[i]) file.table = static_cast<Table>(i);
      }
    }
    if (info.file_checksum_func_name == rocksdb::kStandardDbFileChecksumFuncName &&
        info.file_checksum.size() == 4) {
      uint32_t crc = 0;  // big-endian
      for (const char byte : info.file_checksum) crc = crc << 8 | static_cast<uint8_t>(byte);
      file.crc32c = crc;
    }
    files.push_back(std::move(file));
  }
  return StoreFiles(std::move(files), release);
}

absl::Status RocksDbChunkStore::MendFile(const StoreFile& file, bool may_drop) {
  if (!file.table.has_value() || options_.read_only) return absl::NotFoundError(file.name);
  rocksdb::ColumnFamilyHandle* handle = Handle(*file.table);
  if (file.kind == StoreFile::Kind::kBlobs) return MoveOutOfBlobFile(file);
  rocksdb::CompactRangeOptions rewrite;
  rewrite.exclusive_manual_compaction = false;
  rewrite.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForceOptimized;
  std::optional<rocksdb::LiveFileMetaData> live = FindTableFile(file.name);
  if (!live.has_value()) return absl::NotFoundError(file.name);
  {
    const rocksdb::Slice begin(live->smallestkey), end(live->largestkey);
    const rocksdb::Status status = db_->CompactRange(rewrite, handle, &begin, &end);
    live = FindTableFile(file.name);
    if (!live.has_value()) return absl::OkStatus();
    if (!may_drop) {
      return absl::DataLossError(
          absl::StrCat(file.name, " cannot be written anew: ", status.ToString()));
    }
  }
  RETURN_IF_ERROR(DropFile(handle, *live));
  if (!FindTableFile(file.name).has_value()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(file.name, " is in use and cannot be dropped now"));
}

std::optional<rocksdb::LiveFileMetaData> RocksDbChunkStore::FindTableFile(
    const std::string& name) const {
  std::vector<rocksdb::LiveFileMetaData> tables;
  db_->GetLiveFilesMetaData(&tables);
  for (rocksdb::LiveFileMetaData& table : tables) {
    if (table.relative_filename == name) return std::move(table);
  }
  return std::nullopt;
}

absl::Status RocksDbChunkStore::DropFile(rocksdb::ColumnFamilyHandle* handle,
                                         const rocksdb::LiveFileMetaData& file) {
  if (file.level > 0) {
    const rocksdb::Slice begin(file.smallestkey), end(file.largestkey);
    return ToStatus(rocksdb::DeleteFilesInRange(db_.get(), handle, &begin, &end),
                    absl::StrCat("drop of ", file.name));
  }
  // Of level 0 RocksDB gives up the oldest file alone.
  while (true) {
    rocksdb::ColumnFamilyMetaData family;
    db_->GetColumnFamilyMetaData(handle, &family);
    const std::vector<rocksdb::SstFileMetaData>& newest_first = family.levels[0].files;
    const auto is_it = [&](const rocksdb::SstFileMetaData& other) {
      return other.relative_filename == file.relative_filename;
    };
    if (std::none_of(newest_first.begin(), newest_first.end(), is_it)) return absl::OkStatus();
    const std::string oldest = newest_first.back().relative_filename;
    const size_t count = newest_first.size();
    RETURN_IF_ERROR(ToStatus(db_->DeleteFile(oldest), absl::StrCat("drop of ", oldest)));
    db_->GetColumnFamilyMetaData(handle, &family);
    // One that is just being compacted stays.
    if (family.levels[0].files.size() >= count) return absl::OkStatus();
  }
}

absl::Status RocksDbChunkStore::MoveOutOfBlobFile(const StoreFile& file) {
  const std::string last_key(64, '\xff');
  std::vector<KeyRange> ranges = {{Table::kPages, last_key, ""}};
  const absl::Status read = ReadBlobFileKeys(file.path, [&](absl::string_view key) {
    if (key < ranges[0].begin) ranges[0].begin = std::string(key);
    if (key > ranges[0].end) ranges[0].end = std::string(key);
  });
  if (absl::IsNotFound(read)) return absl::OkStatus();
  if (!read.ok()) ranges.clear();
  // Its keys may be damaged as well.
  ranges.push_back({Table::kPages, "", last_key});
  for (const KeyRange& range : ranges) {
    std::atomic<bool> cancel{false};
    RETURN_IF_ERROR(Compact(range, /*rewrite_blobs=*/true, cancel));
    rocksdb::ColumnFamilyMetaData metadata;
    db_->GetColumnFamilyMetaData(Handle(Table::kPages), &metadata);
    const auto is_it = [&file](const rocksdb::BlobMetaData& blobs) {
      return absl::EndsWith(
          file.name, absl::StrCat(absl::Dec(blobs.blob_file_number, absl::kZeroPad6), ".blob"));
    };
    if (std::none_of(metadata.blob_files.begin(), metadata.blob_files.end(), is_it)) {
      return absl::OkStatus();
    }
  }
  return absl::DataLossError(absl::StrCat(file.name, " is still in use"));
}

absl::Status RocksDbChunkStore::FlushTables() {
  std::vector<rocksdb::ColumnFamilyHandle*> all = tables_;
  all.push_back(default_table_);
  // With something to flush, also the log that has been written to so far is given up.
  rocksdb::Status status = MemtableGuard::Put(*db_);
  if (status.ok()) status = db_->Flush(rocksdb::FlushOptions(), all);
  return ToStatus(status, absl::StrCat("flush of ", directory_->path()));
}

absl::Status RocksDbChunkStore::Compact(const KeyRange& range, bool rewrite_blobs,
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
  if (cancel || status.IsManualCompactionPaused()) {
    return absl::CancelledError("the purge was cancelled");
  }
  return ToStatus(status,
                  absl::StrCat("rewrite of table ", kTableNames[static_cast<size_t>(range.table)]));
}

absl::Status RocksDbChunkStore::RewriteBlobFiles(absl::Span<const KeyRange> ranges,
                                                 std::atomic<bool>& cancel) {
  const auto deleted = [ranges](absl::string_view key) {
    return std::any_of(ranges.begin(), ranges.end(), [key](const KeyRange& range) {
      return range.table == Table::kPages && key >= range.begin && key < range.end;
    });
  };
  // A round leaves nothing, unless flushes or compactions meanwhile made new files of old values.
  for (int round = 0; round < 3; ++round) {
    rocksdb::ColumnFamilyMetaData metadata;
    db_->GetColumnFamilyMetaData(Handle(Table::kPages), &metadata);
    std::vector<KeyRange> around;  // the other keys of these files
    bool any = false;
    for (const rocksdb::BlobMetaData& file : metadata.blob_files) {
      if (file.garbage_blob_count == 0) continue;
      bool holds_deleted = false;
      std::string first, last;
      const absl::Status read =
          ReadBlobFileKeys(absl::StrCat(directory_->path(), "/rocksdb/",
                                        absl::Dec(file.blob_file_number, absl::kZeroPad6), ".blob"),
                           [&](absl::string_view key) {
                             if (deleted(key)) {
                               holds_deleted = true;
                               return;
                             }
                             if (first.empty() || key < first) first = std::string(key);
                             if (key > last) last = std::string(key);
                           });
      if (absl::IsNotFound(read)) continue;  // gone meanwhile
      RETURN_IF_ERROR(read);
      any |= holds_deleted;
      if (holds_deleted && !first.empty()) around.push_back({Table::kPages, first, last});
    }
    if (!any) return absl::OkStatus();
    for (const KeyRange& range : Merged(std::move(around))) {
      RETURN_IF_ERROR(Compact(range, /*rewrite_blobs=*/true, cancel));
    }
  }
  return absl::UnavailableError("blob files still hold values of deleted pages");
}

std::set<uint64_t> RocksDbChunkStore::FilesOnDisk(const std::set<std::string>& extensions) const {
  std::set<uint64_t> numbers;
  std::error_code error;
  for (std::filesystem::directory_iterator it(absl::StrCat(directory_->path(), "/rocksdb"), error),
       end;
       !error && it != end; it.increment(error)) {
    uint64_t number = 0;
    std::error_code gone;
    if (extensions.contains(it->path().extension().string()) &&
        absl::SimpleAtoi(it->path().stem().string(), &number) && it->file_size(gone) > 0 && !gone) {
      numbers.insert(number);
    }
  }
  return numbers;
}

std::set<uint64_t> RocksDbChunkStore::FilesInUse() const {
  std::set<uint64_t> numbers;
  std::vector<rocksdb::ColumnFamilyHandle*> all = tables_;
  all.push_back(default_table_);
  for (rocksdb::ColumnFamilyHandle* table : all) {
    rocksdb::ColumnFamilyMetaData metadata;
    db_->GetColumnFamilyMetaData(table, &metadata);
    for (const auto& level : metadata.levels) {
      for (const auto& file : level.files) numbers.insert(file.file_number);
    }
    for (const auto& file : metadata.blob_files) numbers.insert(file.blob_file_number);
  }
  return numbers;
}

absl::Status RocksDbChunkStore::AwaitDeletion(const std::set<uint64_t>& files,
                                              std::atomic<bool>& cancel) {
  const absl::Time deadline = absl::Now() + kFileDeletionPatience;
  while (true) {
    // The end of a pause of deletions deletes what is due, in this thread.
    rocksdb::Status status = db_->DisableFileDeletions();
    if (status.ok()) status = db_->EnableFileDeletions(/*force=*/false);
    RETURN_IF_ERROR(ToStatus(status, "deletion of files"));
    const std::set<uint64_t> in_use = FilesInUse();
    std::set<uint64_t> on_disk = DataFilesOnDisk();
    on_disk.merge(LogsOnDisk());
    std::vector<uint64_t> left;
    for (const uint64_t file : files) {
      if (on_disk.contains(file) && !in_use.contains(file)) left.push_back(file);
    }
    if (left.empty()) return absl::OkStatus();
    if (cancel) return absl::CancelledError("the purge was cancelled");
    if (absl::Now() > deadline) {
      return absl::UnavailableError(absl::StrCat(left.size(), " files with deleted data, such as ",
                                                 left.front(), ", are still being read"));
    }
    absl::SleepFor(absl::Milliseconds(10));
  }
}

absl::Status RocksDbChunkStore::Purge(absl::Span<const KeyRange> ranges,
                                      std::atomic<bool>& cancel) {
  if (ranges.empty()) return absl::OkStatus();
  if (cancel) return absl::CancelledError("the purge was cancelled");
  // Logs hold what is not in tables yet; after the flush those before it are of no use.
  std::set<uint64_t> files = LogsOnDisk();
  RETURN_IF_ERROR(FlushTables());
  CrashPoint("purge flushed");
  files.merge(DataFilesOnDisk());
  for (const KeyRange& range : Merged({ranges.begin(), ranges.end()})) {
    RETURN_IF_ERROR(Compact(range, /*rewrite_blobs=*/false, cancel));
    CrashPoint("purge range compacted");
  }
  RETURN_IF_ERROR(RewriteBlobFiles(ranges, cancel));
  CrashPoint("purge blobs rewritten");
  return AwaitDeletion(files, cancel);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChunkStore>> OpenRocksDbChunkStore(const RocksDbOptions& options,
                                                                  Metrics& metrics) {
  return RocksDbChunkStore::Open(options, metrics);
}

}  // namespace mneme
