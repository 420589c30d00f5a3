#include "memory_store/rocksdb/live_files.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <rocksdb/convenience.h>
#include <rocksdb/db.h>
#include <rocksdb/metadata.h>
#include <rocksdb/options.h>

#include "absl/functional/any_invocable.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "memory_store/rocksdb/blob_file.h"
#include "memory_store/rocksdb/conversions.h"
#include "memory_store/table_name.h"

namespace mneme {
namespace {

std::vector<rocksdb::LiveFileMetaData> TableFiles(Database& database) {
  std::vector<rocksdb::LiveFileMetaData> files;
  database.db().GetLiveFilesMetaData(&files);
  return files;
}

// As it is now; nothing when it is not part of the store any more.
std::optional<rocksdb::LiveFileMetaData> FindTableFile(Database& database,
                                                       const std::string& name) {
  for (rocksdb::LiveFileMetaData& file : TableFiles(database)) {
    if (file.relative_filename == name) return std::move(file);
  }
  return std::nullopt;
}

// Nothing when RocksDB recorded none.
std::optional<uint32_t> Crc32cOf(const rocksdb::LiveFileStorageInfo& info) {
  if (info.file_checksum_func_name != rocksdb::kStandardDbFileChecksumFuncName ||
      info.file_checksum.size() != 4) {
    return std::nullopt;
  }
  uint32_t crc = 0;  // big-endian
  for (const char byte : info.file_checksum) crc = crc << 8 | static_cast<uint8_t>(byte);
  return crc;
}

// Nothing of a table that nobody reads.
std::optional<Table> TableOf(const std::string& file_name,
                             const std::vector<rocksdb::LiveFileMetaData>& table_files) {
  for (const rocksdb::LiveFileMetaData& file : table_files) {
    if (file.relative_filename != file_name) continue;
    for (int i = 0; i < kTableCount; ++i) {
      if (file.column_family_name == kTableNames[i]) return static_cast<Table>(i);
    }
  }
  return std::nullopt;
}

// Makes RocksDB forget a table file, and with it whatever else lies wholly within its keys, or is
// older and on level 0. A file that is being compacted stays.
absl::Status DropTableFile(Database& database, Table table, const rocksdb::LiveFileMetaData& file) {
  rocksdb::DB& db = database.db();
  rocksdb::ColumnFamilyHandle* const handle = database.Handle(table);
  if (file.level > 0) {
    const rocksdb::Slice begin(file.smallestkey), end(file.largestkey);
    return ToStatus(rocksdb::DeleteFilesInRange(&db, handle, &begin, &end),
                    absl::StrCat("drop of ", file.name));
  }
  // Of level 0 RocksDB gives up the oldest file alone.
  while (true) {
    rocksdb::ColumnFamilyMetaData family;
    db.GetColumnFamilyMetaData(handle, &family);
    const std::vector<rocksdb::SstFileMetaData>& newest_first = family.levels[0].files;
    const auto is_it = [&](const rocksdb::SstFileMetaData& other) {
      return other.relative_filename == file.relative_filename;
    };
    if (std::none_of(newest_first.begin(), newest_first.end(), is_it)) return absl::OkStatus();
    const std::string oldest = newest_first.back().relative_filename;
    const size_t count = newest_first.size();
    RETURN_IF_ERROR(ToStatus(db.DeleteFile(oldest), absl::StrCat("drop of ", oldest)));
    db.GetColumnFamilyMetaData(handle, &family);
    // One that is just being compacted stays.
    if (family.levels[0].files.size() >= count) return absl::OkStatus();
  }
}

absl::Status MendTableFile(Database& database, const StoreFile& file, bool may_drop) {
  std::optional<rocksdb::LiveFileMetaData> live = FindTableFile(database, file.name);
  if (!live.has_value()) return absl::NotFoundError(file.name);
  rocksdb::CompactRangeOptions rewrite;
  rewrite.exclusive_manual_compaction = false;
  rewrite.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForceOptimized;
  rocksdb::Status status;
  {
    const rocksdb::Slice begin(live->smallestkey), end(live->largestkey);
    status = database.db().CompactRange(rewrite, database.Handle(*file.table), &begin, &end);
  }
  live = FindTableFile(database, file.name);
  if (!live.has_value()) return absl::OkStatus();
  if (!may_drop) {
    return absl::DataLossError(
        absl::StrCat(file.name, " cannot be written anew: ", status.ToString()));
  }
  RETURN_IF_ERROR(DropTableFile(database, *file.table, *live));
  if (!FindTableFile(database, file.name).has_value()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(file.name, " is in use and cannot be dropped now"));
}

// Writes the values of a damaged blob file anew, those that could not be read having been put
// again: then RocksDB has no use for it.
absl::Status MoveOutOfBlobFile(Database& database, const StoreFile& file) {
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
    RETURN_IF_ERROR(database.Rewrite(range, /*rewrite_blobs=*/true, cancel));
    rocksdb::ColumnFamilyMetaData metadata;
    database.db().GetColumnFamilyMetaData(database.Handle(Table::kPages), &metadata);
    const auto is_it = [&file](const rocksdb::BlobMetaData& blobs) {
      return absl::EndsWith(file.name, BlobFileName(blobs.blob_file_number));
    };
    if (std::none_of(metadata.blob_files.begin(), metadata.blob_files.end(), is_it)) {
      return absl::OkStatus();
    }
  }
  return absl::DataLossError(absl::StrCat(file.name, " is still in use"));
}

void LetFilesGo(Database& database) {
  const rocksdb::Status status = database.db().EnableFileDeletions(/*force=*/false);
  if (!status.ok()) {
    LogWarning("memory_store", "obsolete files are kept until the next start",
               {{"status", status.ToString()}});
  }
}

}  // namespace

absl::StatusOr<StoreFiles> LiveFiles(Database& database, ChunkStore::FilesFor purpose) {
  absl::AnyInvocable<void()> release;  // nothing to let go of when nothing is written
  if (!database.read_only()) {
    RETURN_IF_ERROR(ToStatus(database.db().DisableFileDeletions(), "keep files"));
    release = [&database] { LetFilesGo(database); };
  }
  rocksdb::LiveFilesStorageInfoOptions info_options;
  info_options.include_checksum_info = true;
  info_options.wal_size_for_flush =
      purpose == ChunkStore::FilesFor::kBackup ? 0 : std::numeric_limits<uint64_t>::max();
  std::vector<rocksdb::LiveFileStorageInfo> infos;
  const rocksdb::Status status = database.db().GetLiveFilesStorageInfo(info_options, &infos);
  if (!status.ok()) {
    if (release) release();
    return ToStatus(status, "list files");
  }
  const std::vector<rocksdb::LiveFileMetaData> table_files = TableFiles(database);
  std::vector<StoreFile> files;
  for (rocksdb::LiveFileStorageInfo& info : infos) {
    StoreFile file;
    file.name = info.relative_filename;
    file.path = absl::StrCat(info.directory, "/", info.relative_filename);
    file.bytes = static_cast<int64_t>(info.size);
    file.contents = std::move(info.replacement_contents);
    file.crc32c = Crc32cOf(info);
    if (info.file_type == rocksdb::FileType::kTableFile) {
      file.kind = StoreFile::Kind::kTable;
      file.table = TableOf(file.name, table_files);
    }
    if (info.file_type == rocksdb::FileType::kBlobFile) {
      file.kind = StoreFile::Kind::kBlobs;
      file.table = Table::kPages;  // the only one with blobs
    }
    files.push_back(std::move(file));
  }
  return StoreFiles(std::move(files), std::move(release));
}

absl::Status MendLiveFile(Database& database, const StoreFile& file, bool may_drop) {
  if (!file.table.has_value()) return absl::NotFoundError(file.name);
  if (file.kind == StoreFile::Kind::kBlobs) return MoveOutOfBlobFile(database, file);
  return MendTableFile(database, file, may_drop);
}

}  // namespace mneme
