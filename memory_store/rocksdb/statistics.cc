#include "memory_store/rocksdb/statistics.h"

#include <cstdint>
#include <string>
#include <utility>

#include <rocksdb/db.h>
#include <rocksdb/statistics.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "memory_store/table_name.h"

namespace mneme {
namespace {

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

prometheus::MetricFamily Family(const char* name, const char* help, prometheus::MetricType type,
                                std::vector<prometheus::ClientMetric> values) {
  return {absl::StrCat("mneme_rocksdb_", name), help, type, std::move(values)};
}

prometheus::MetricFamily TickerFamily(const rocksdb::Statistics& statistics,
                                      const TickerMetric& metric) {
  prometheus::ClientMetric value;
  value.counter.value =
      static_cast<double>(statistics.getTickerCount(metric.ticker)) * metric.scale;
  return Family(metric.name, metric.help, prometheus::MetricType::Counter, {std::move(value)});
}

prometheus::MetricFamily TableFamily(Database& database, const PropertyMetric& metric) {
  std::vector<prometheus::ClientMetric> values;
  for (int table = 0; table < kTableCount; ++table) {
    // By text: RocksDB gives the number of files at a level in no other form.
    std::string text;
    uint64_t number = 0;
    if (!database.db().GetProperty(database.Handle(static_cast<Table>(table)), metric.property,
                                   &text) ||
        !absl::SimpleAtoi(text, &number)) {
      continue;
    }
    prometheus::ClientMetric value;
    value.gauge.value = static_cast<double>(number);
    value.label.push_back({"table", kTableNames[table]});
    values.push_back(std::move(value));
  }
  return Family(metric.name, metric.help, prometheus::MetricType::Gauge, std::move(values));
}

}  // namespace

void StatisticsCollectable::Detach() {
  absl::MutexLock lock(&mutex_);
  database_ = nullptr;
}

std::vector<prometheus::MetricFamily> StatisticsCollectable::Collect() const {
  absl::MutexLock lock(&mutex_);
  std::vector<prometheus::MetricFamily> families;
  if (database_ == nullptr) return families;
  for (const TickerMetric& metric : kTickerMetrics) {
    families.push_back(TickerFamily(database_->statistics(), metric));
  }
  for (const PropertyMetric& metric : kTablePropertyMetrics) {
    families.push_back(TableFamily(*database_, metric));
  }
  for (const PropertyMetric& metric : kDbPropertyMetrics) {
    uint64_t number = 0;
    if (!database_->db().GetIntProperty(metric.property, &number)) continue;
    prometheus::ClientMetric value;
    value.gauge.value = static_cast<double>(number);
    families.push_back(
        Family(metric.name, metric.help, prometheus::MetricType::Gauge, {std::move(value)}));
  }
  return families;
}

}  // namespace mneme
