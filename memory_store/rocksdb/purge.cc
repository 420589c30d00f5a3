#include "memory_store/rocksdb/purge.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include <rocksdb/db.h>
#include <rocksdb/metadata.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/crash_point.h"
#include "common/status_macros.h"
#include "memory_store/rocksdb/blob_file.h"
#include "memory_store/rocksdb/conversions.h"
#include "memory_store/rocksdb/mend_blobs.h"

namespace mneme {
namespace {

// A scan keeps the files that it reads; none of ours takes so long.
constexpr absl::Duration kFileDeletionPatience = absl::Seconds(10);
// A round of rewriting blob files leaves nothing, unless flushes or compactions meanwhile made new
// files of old values.
constexpr int kBlobRoundsMax = 4;

absl::Status Cancelled() { return absl::CancelledError("the purge was cancelled"); }

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

// Numbers of the files in RocksDB's folder that are not empty.
std::set<uint64_t> FilesOnDisk(const Database& database, const std::set<std::string>& extensions) {
  std::set<uint64_t> numbers;
  std::error_code error;
  for (std::filesystem::directory_iterator it(database.folder(), error), end; !error && it != end;
       it.increment(error)) {
    uint64_t number = 0;
    std::error_code gone;
    if (extensions.contains(it->path().extension().string()) &&
        absl::SimpleAtoi(it->path().stem().string(), &number) && it->file_size(gone) > 0 && !gone) {
      numbers.insert(number);
    }
  }
  return numbers;
}

// Tables and blobs.
std::set<uint64_t> DataFilesOnDisk(const Database& database) {
  return FilesOnDisk(database, {".sst", ".blob"});
}

std::set<uint64_t> LogsOnDisk(const Database& database) { return FilesOnDisk(database, {".log"}); }

// Numbers of the tables and blobs that it uses.
std::set<uint64_t> FilesInUse(Database& database) {
  std::set<uint64_t> numbers;
  for (rocksdb::ColumnFamilyHandle* table : database.handles()) {
    rocksdb::ColumnFamilyMetaData metadata;
    database.db().GetColumnFamilyMetaData(table, &metadata);
    for (const auto& level : metadata.levels) {
      for (const auto& file : level.files) numbers.insert(file.file_number);
    }
    for (const auto& file : metadata.blob_files) numbers.insert(file.blob_file_number);
  }
  return numbers;
}

// What a blob file holds of deleted keys, and of others.
struct BlobFileKeys {
  bool any_deleted = false;
  std::string first_other, last_other;  // empty: there is none
};

// `ranges`: what was deleted. Errors as ReadBlobFileKeys.
absl::StatusOr<BlobFileKeys> KeysOf(const std::string& path, absl::Span<const KeyRange> ranges) {
  const auto deleted = [ranges](absl::string_view key) {
    return std::any_of(ranges.begin(), ranges.end(), [key](const KeyRange& range) {
      return range.table == Table::kPages && key >= range.begin && key < range.end;
    });
  };
  BlobFileKeys keys;
  RETURN_IF_ERROR(ReadBlobFileKeys(path, [&](absl::string_view key) {
    if (deleted(key)) {
      keys.any_deleted = true;
      return;
    }
    if (keys.first_other.empty() || key < keys.first_other) keys.first_other = std::string(key);
    if (key > keys.last_other) keys.last_other = std::string(key);
  }));
  return keys;
}

// Rewrites the blob files that hold values of deleted keys of these ranges, until there is none.
absl::Status RewriteBlobFiles(Database& database, absl::Span<const KeyRange> ranges,
                              std::atomic<bool>& cancel) {
  for (int round = 0; round < kBlobRoundsMax; ++round) {
    rocksdb::ColumnFamilyMetaData metadata;
    database.db().GetColumnFamilyMetaData(database.Handle(Table::kPages), &metadata);
    std::vector<KeyRange> around;  // the other keys of these files
    bool any = false;
    for (const rocksdb::BlobMetaData& file : metadata.blob_files) {
      if (file.garbage_blob_count == 0) continue;
      const absl::StatusOr<BlobFileKeys> keys =
          KeysOf(absl::StrCat(database.folder(), "/", BlobFileName(file.blob_file_number)), ranges);
      if (absl::IsNotFound(keys.status())) continue;  // gone meanwhile
      RETURN_IF_ERROR(keys.status());
      any |= keys->any_deleted;
      if (keys->any_deleted && !keys->first_other.empty()) {
        around.push_back({Table::kPages, keys->first_other, keys->last_other});
      }
    }
    if (!any) return absl::OkStatus();
    // References that went with a damaged file RocksDB does not count: with all values moved, older
    // files go whatever it counts.
    if (round == kBlobRoundsMax - 1) around = {AllPages()};
    for (const KeyRange& range : Merged(std::move(around))) {
      RETURN_IF_ERROR(database.Rewrite(range, /*rewrite_blobs=*/true, cancel));
    }
  }
  return absl::UnavailableError("blob files still hold values of deleted pages");
}

// Waits until those of `files` that are not in use any more are gone.
absl::Status AwaitDeletion(Database& database, const std::set<uint64_t>& files,
                           std::atomic<bool>& cancel) {
  const absl::Time deadline = absl::Now() + kFileDeletionPatience;
  while (true) {
    RETURN_IF_ERROR(database.DeleteDueFiles());
    const std::set<uint64_t> in_use = FilesInUse(database);
    std::set<uint64_t> on_disk = DataFilesOnDisk(database);
    on_disk.merge(LogsOnDisk(database));
    std::vector<uint64_t> left;
    for (const uint64_t file : files) {
      if (on_disk.contains(file) && !in_use.contains(file)) left.push_back(file);
    }
    if (left.empty()) return absl::OkStatus();
    if (cancel) return Cancelled();
    if (absl::Now() > deadline) {
      return absl::UnavailableError(absl::StrCat(left.size(), " files with deleted data, such as ",
                                                 left.front(), ", are still being read"));
    }
    absl::SleepFor(absl::Milliseconds(10));
  }
}

}  // namespace

absl::Status PurgeRanges(Database& database, absl::Span<const KeyRange> ranges,
                         std::atomic<bool>& cancel) {
  if (ranges.empty()) return absl::OkStatus();
  if (cancel) return Cancelled();
  // What it wrote anew would only lie beside what cannot go, once more with every try.
  if (database.keeps_files()) {
    return absl::UnavailableError("files with deleted data are kept, by a backup perhaps");
  }
  // Logs hold what is not in tables yet; after the flush those before it are of no use.
  std::set<uint64_t> files = LogsOnDisk(database);
  RETURN_IF_ERROR(database.FlushTables());
  CrashPoint("purge flushed");
  files.merge(DataFilesOnDisk(database));
  for (const KeyRange& range : Merged({ranges.begin(), ranges.end()})) {
    RETURN_IF_ERROR(database.Rewrite(range, /*rewrite_blobs=*/false, cancel));
    CrashPoint("purge range compacted");
  }
  RETURN_IF_ERROR(RewriteBlobFiles(database, ranges, cancel));
  CrashPoint("purge blobs rewritten");
  return AwaitDeletion(database, files, cancel);
}

}  // namespace mneme
