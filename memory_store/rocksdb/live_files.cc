#include "memory_store/rocksdb/live_files.h"

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <rocksdb/db.h>
#include <rocksdb/metadata.h>
#include <rocksdb/options.h>

#include "absl/strings/str_cat.h"
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

// Nothing when RocksDB recorded none.
std::optional<uint32_t> Crc32cOf(const std::string& function, const std::string& checksum) {
  if (function != rocksdb::kStandardDbFileChecksumFuncName || checksum.size() != 4) {
    return std::nullopt;
  }
  uint32_t crc = 0;  // big-endian
  for (const char byte : checksum) crc = crc << 8 | static_cast<uint8_t>(byte);
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

// Those that have checksums.
void AddDataFiles(Database& database, std::vector<StoreFile>* files) {
  const std::vector<rocksdb::LiveFileMetaData> table_files = TableFiles(database);
  for (const rocksdb::LiveFileMetaData& info : table_files) {
    StoreFile file;
    file.kind = StoreFile::Kind::kTable;
    file.name = info.relative_filename;
    file.path = absl::StrCat(database.folder(), "/", info.relative_filename);
    file.bytes = static_cast<int64_t>(info.size);
    file.crc32c = Crc32cOf(info.file_checksum_func_name, info.file_checksum);
    file.table = TableOf(file.name, table_files);
    files->push_back(std::move(file));
  }
  rocksdb::ColumnFamilyMetaData pages;  // the only table with blobs
  database.db().GetColumnFamilyMetaData(database.Handle(Table::kPages), &pages);
  for (const rocksdb::BlobMetaData& info : pages.blob_files) {
    StoreFile file;
    file.kind = StoreFile::Kind::kBlobs;
    file.name = BlobFileName(info.blob_file_number);
    file.path = absl::StrCat(database.folder(), "/", file.name);
    file.bytes = static_cast<int64_t>(info.blob_file_size);
    file.crc32c = Crc32cOf(info.checksum_method, info.checksum_value);
    file.table = Table::kPages;
    files->push_back(std::move(file));
  }
}

// As a whole that opens anywhere.
absl::Status AddAllFiles(Database& database, std::vector<StoreFile>* files) {
  rocksdb::LiveFilesStorageInfoOptions info_options;
  info_options.include_checksum_info = true;
  info_options.wal_size_for_flush = 0;
  std::vector<rocksdb::LiveFileStorageInfo> infos;
  RETURN_IF_ERROR(
      ToStatus(database.db().GetLiveFilesStorageInfo(info_options, &infos), "list files"));
  const std::vector<rocksdb::LiveFileMetaData> table_files = TableFiles(database);
  for (rocksdb::LiveFileStorageInfo& info : infos) {
    StoreFile file;
    file.name = info.relative_filename;
    file.path = absl::StrCat(info.directory, "/", info.relative_filename);
    file.bytes = static_cast<int64_t>(info.size);
    file.contents = std::move(info.replacement_contents);
    file.crc32c = Crc32cOf(info.file_checksum_func_name, info.file_checksum);
    if (info.file_type == rocksdb::FileType::kTableFile) {
      file.kind = StoreFile::Kind::kTable;
      file.table = TableOf(file.name, table_files);
    }
    if (info.file_type == rocksdb::FileType::kBlobFile) {
      file.kind = StoreFile::Kind::kBlobs;
      file.table = Table::kPages;
    }
    files->push_back(std::move(file));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<StoreFiles> LiveFiles(Database& database, ChunkStore::FilesFor purpose,
                                     absl::Span<const StoreFile> damaged_before) {
  RETURN_IF_ERROR(database.KeepFiles());
  std::vector<StoreFile> files;
  absl::Status status;
  if (purpose == ChunkStore::FilesFor::kBackup) {
    status = AddAllFiles(database, &files);
  } else {
    // Without the log, which may be damaged: what has no checksum is not checked.
    AddDataFiles(database, &files);
    files.insert(files.end(), damaged_before.begin(), damaged_before.end());
  }
  if (!status.ok()) {
    database.LetFilesGo();
    return status;
  }
  return StoreFiles(std::move(files), [&database] { database.LetFilesGo(); });
}

}  // namespace mneme
