#include "memory_store/rocksdb/mend.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <rocksdb/db.h>
#include <rocksdb/metadata.h>
#include <rocksdb/options.h>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/crash_point.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "memory_store/key_after.h"
#include "memory_store/rocksdb/conversions.h"
#include "memory_store/rocksdb/damaged_table.h"
#include "memory_store/rocksdb/live_files.h"
#include "memory_store/rocksdb/mend_blobs.h"
#include "memory_store/rocksdb/unopenable_table.h"
#include "memory_store/table_name.h"

namespace mneme {
namespace {

// Blocks of a file that are put out of the way one after another, a compaction each.
constexpr int kRoundsMax = 256;

bool IsDerived(std::optional<Table> table) {
  return table == Table::kSegments || table == Table::kPages;
}

// As it is now; nothing when it is not part of the store any more.
std::optional<rocksdb::LiveFileMetaData> FindTableFile(Database& database,
                                                       const std::string& name) {
  std::vector<rocksdb::LiveFileMetaData> files;
  database.db().GetLiveFilesMetaData(&files);
  for (rocksdb::LiveFileMetaData& file : files) {
    if (file.relative_filename == name) return std::move(file);
  }
  return std::nullopt;
}

rocksdb::ColumnFamilyHandle* HandleOf(Database& database, const rocksdb::LiveFileMetaData& file) {
  for (rocksdb::ColumnFamilyHandle* handle : database.handles()) {
    if (handle->GetName() == file.column_family_name) return handle;
  }
  return database.handles().back();
}

// Its records, by a compaction.
rocksdb::Status RewriteTableFile(Database& database, const rocksdb::LiveFileMetaData& file) {
  rocksdb::CompactRangeOptions rewrite;
  rewrite.exclusive_manual_compaction = false;
  rewrite.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForceOptimized;
  const rocksdb::Slice begin(file.smallestkey), end(file.largestkey);
  return database.db().CompactRange(rewrite, HandleOf(database, file), &begin, &end);
}

// The same where RewriteTableFile left it: it overlaps no range that has none of its records, and
// of a file whose every block was damaged no record is left.
rocksdb::Status RewriteTableFileAlone(Database& database, const rocksdb::LiveFileMetaData& file) {
  rocksdb::ColumnFamilyHandle* handle = HandleOf(database, file);
  const rocksdb::Options options = database.db().GetOptions(handle);
  rocksdb::CompactionOptions rewrite;
  rewrite.compression = rocksdb::kDisableCompressionOption;  // as the table's options say
  rewrite.output_file_size_limit = options.target_file_size_base;
  return database.db().CompactFiles(rewrite, handle, {file.relative_filename},
                                    options.num_levels - 1);
}

// Whether the file is not as it was written.
absl::StatusOr<bool> IsDamaged(const StoreFile& file) {
  if (!file.crc32c.has_value()) return false;
  const absl::StatusOr<uint32_t> crc =
      FileCrc32c(file.path, file.bytes, [](int64_t) { return absl::OkStatus(); });
  if (absl::IsNotFound(crc.status())) return false;
  if (absl::IsDataLoss(crc.status())) return true;
  RETURN_IF_ERROR(crc.status());
  return *crc != *file.crc32c;
}

// The records of a table in [begin, end) in table files other than `lost`.
absl::Status ScanOtherFiles(
    Database& database, const rocksdb::LiveFileMetaData& lost, absl::string_view begin,
    absl::string_view end,
    const std::function<void(absl::string_view, absl::string_view, bool)>& visit) {
  RETURN_IF_ERROR(database.FlushTables());  // what is in memory too
  RETURN_IF_ERROR(database.KeepFiles());
  const absl::Cleanup let_files_go = [&database] { database.LetFilesGo(); };
  std::vector<rocksdb::LiveFileMetaData> files;
  database.db().GetLiveFilesMetaData(&files);
  for (const rocksdb::LiveFileMetaData& file : files) {
    if (file.column_family_name != lost.column_family_name ||
        file.relative_filename == lost.relative_filename || file.largestkey < begin ||
        file.smallestkey >= end) {
      continue;
    }
    const bool newer = file.largest_seqno > lost.largest_seqno;
    // Another one that is damaged: as far as it can be read.
    const auto table = DamagedTable::Read(absl::StrCat(database.folder(), file.name),
                                          file.smallestkey, KeyAfter(file.largestkey));
    RETURN_IF_ERROR(table.status());
    RETURN_IF_ERROR(table->Scan(begin, end, [&](absl::string_view key, absl::string_view value) {
      visit(key, value, newer);
    }));
  }
  return absl::OkStatus();
}

// Of a table without blobs: gives up what cannot be read.
absl::Status GiveUpDamagedBlocks(Database& database, std::optional<Table> table,
                                 const rocksdb::LiveFileMetaData& file, const GiveUp& give_up) {
  const std::string path = absl::StrCat(database.folder(), file.name);
  ASSIGN_OR_RETURN(const DamagedTable damaged,
                   DamagedTable::Read(path, file.smallestkey, KeyAfter(file.largestkey)));
  for (const DamagedTable::Gap& gap : damaged.gaps()) {
    LogWarning("memory_store", "records of a damaged file are given up",
               {{"file", file.relative_filename}, {"table", file.column_family_name}});
    if (!table.has_value() || IsDerived(table)) continue;
    LostRecords lost;
    lost.file = file.relative_filename;
    lost.range = {*table, gap.begin, gap.end};
    lost.scan = [&](absl::string_view begin, absl::string_view end, const auto& visit) {
      RETURN_IF_ERROR(damaged.Scan(begin, end, [&](absl::string_view key, absl::string_view value) {
        visit(key, value, false);
      }));
      return ScanOtherFiles(database, file, begin, end, visit);
    };
    RETURN_IF_ERROR(give_up(lost));
  }
  CrashPoint("damaged records given up");
  return damaged.Apply();
}

// Of the table with blobs, derived all of it: puts the blocks out of the way that a compaction
// names, until it succeeds.
absl::Status DropDamagedBlocks(Database& database, const rocksdb::LiveFileMetaData& file,
                               rocksdb::Status status) {
  const std::string path = absl::StrCat(database.folder(), file.name);
  for (int round = 0; round < kRoundsMax; ++round) {
    const std::optional<TableBlock> block = DamagedBlockOf(status);
    // It may be of another file.
    if (!block.has_value() || !absl::StrContains(status.ToString(), file.relative_filename)) break;
    RETURN_IF_ERROR(DamagedTable::EmptyInFile(path, *block));
    if (!FindTableFile(database, file.relative_filename).has_value()) return absl::OkStatus();
    status = RewriteTableFile(database, file);
    if (status.ok()) break;
  }
  return ToStatus(status, absl::StrCat("rewrite of ", file.relative_filename));
}

// Whether it has been made one that can be opened. What is not derived from others nobody gives up.
absl::StatusOr<bool> MakeOpen(Database& database, const rocksdb::LiveFileMetaData& file) {
  const std::string path = absl::StrCat(database.folder(), file.name);
  const absl::Status opens = CheckTableOpens(path);
  if (opens.ok()) return false;
  if (!absl::IsDataLoss(opens) || file.column_family_name == TableName(Table::kCatalog)) {
    return opens;
  }
  RETURN_IF_ERROR(
      MakeTableOpen(path, static_cast<int64_t>(file.size), file.smallestkey, file.largestkey));
  return true;
}

absl::Status MendTableFile(Database& database, const StoreFile& file, const GiveUp& give_up) {
  const auto live = FindTableFile(database, file.name);
  if (!live.has_value()) return absl::NotFoundError(file.name);
  rocksdb::Status status = RewriteTableFile(database, *live);
  if (!FindTableFile(database, file.name).has_value()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const bool damaged, IsDamaged(file));
  if (!damaged) return ToStatus(status, absl::StrCat("rewrite of ", file.name));
  if (IsDerived(file.table)) {
    LostRecords lost;
    lost.file = file.name;
    lost.range = {*file.table, live->smallestkey, KeyAfter(live->largestkey)};
    RETURN_IF_ERROR(give_up(lost));
  }
  ASSIGN_OR_RETURN(const bool made_open, MakeOpen(database, *live));
  if (made_open) status = RewriteTableFile(database, *live);
  RETURN_IF_ERROR(file.table == Table::kPages
                      ? DropDamagedBlocks(database, *live, status)
                      : GiveUpDamagedBlocks(database, file.table, *live, give_up));
  const auto in_use = [&] { return FindTableFile(database, file.name).has_value(); };
  if (in_use()) status = RewriteTableFile(database, *live);
  if (in_use() && status.ok()) status = RewriteTableFileAlone(database, *live);
  if (in_use()) {
    return absl::DataLossError(
        absl::StrCat(file.name, " cannot be written anew: ", status.ToString()));
  }
  return file.table == Table::kPages ? MoveAllBlobs(database) : absl::OkStatus();
}

// The ranges that a purge of these reads: it takes files as they are, and with them all that lies
// among their keys; of the table with blobs anything, as blob files hold keys from everywhere.
std::vector<KeyRange> RangesRead(Database& database, absl::Span<const KeyRange> ranges) {
  std::vector<rocksdb::LiveFileMetaData> files;
  database.db().GetLiveFilesMetaData(&files);
  std::vector<KeyRange> read(ranges.begin(), ranges.end());
  for (KeyRange& range : read) {
    if (range.table == Table::kPages) range = AllPages();
    for (bool wider = true; wider;) {
      wider = false;
      for (const rocksdb::LiveFileMetaData& file : files) {
        if (file.column_family_name != TableName(range.table) || file.smallestkey > range.end ||
            file.largestkey < range.begin) {
          continue;
        }
        wider |= file.smallestkey < range.begin || file.largestkey >= range.end;
        range.begin = std::min(range.begin, file.smallestkey);
        range.end = std::max(range.end, KeyAfter(file.largestkey));
      }
    }
  }
  return read;
}

bool Overlaps(Database& database, const StoreFile& file, absl::Span<const KeyRange> ranges) {
  if (file.kind == StoreFile::Kind::kBlobs) {
    return std::any_of(ranges.begin(), ranges.end(),
                       [](const KeyRange& range) { return range.table == Table::kPages; });
  }
  const auto live = FindTableFile(database, file.name);
  if (!live.has_value()) return false;
  return std::any_of(ranges.begin(), ranges.end(), [&](const KeyRange& range) {
    return range.table == file.table && live->smallestkey < range.end &&
           live->largestkey >= range.begin;
  });
}

}  // namespace

absl::Status MendLiveFile(Database& database, const StoreFile& file, const GiveUp& give_up) {
  absl::MutexLock lock(&database.mend_mutex());
  switch (file.kind) {
    case StoreFile::Kind::kTable:
      return MendTableFile(database, file, give_up);
    case StoreFile::Kind::kBlobs:
      return MoveOutOfBlobFile(database, file);
    case StoreFile::Kind::kOther:
      break;
  }
  return absl::NotFoundError(file.name);
}

absl::Status MendRanges(Database& database, absl::Span<const KeyRange> ranges,
                        const GiveUp& give_up, std::atomic<bool>& cancel) {
  absl::MutexLock lock(&database.mend_mutex());
  std::vector<StoreFile> files;
  {
    ASSIGN_OR_RETURN(const StoreFiles now, LiveFiles(database, ChunkStore::FilesFor::kCheck));
    files = now.files();
  }
  const std::vector<KeyRange> read = RangesRead(database, ranges);
  absl::Status first;
  for (const StoreFile& file : files) {
    if (cancel) return absl::CancelledError("the mending was cancelled");
    if (file.kind == StoreFile::Kind::kOther || !Overlaps(database, file, read)) continue;
    ASSIGN_OR_RETURN(const bool damaged, IsDamaged(file));
    if (!damaged) continue;
    const absl::Status mended = file.kind == StoreFile::Kind::kTable
                                    ? MendTableFile(database, file, give_up)
                                    : GiveUpUnreadableBlobs(database, file, cancel);
    if (absl::IsNotFound(mended)) continue;
    LogWarning("memory_store", "a damaged file stood in the way of a deletion",
               {{"file", file.name},
                {"mended", mended.ok() ? "true" : "false"},
                {"status", mended.ToString()}});
    first.Update(mended);
  }
  return first;
}

}  // namespace mneme
