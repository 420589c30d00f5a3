#include "memory_store/rocksdb/unopenable_table.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <vector>

#include <rocksdb/env.h>
#include <rocksdb/metadata.h>
#include <rocksdb/sst_file_reader.h>
#include <rocksdb/sst_file_writer.h>
#include <rocksdb/table.h>

#include "absl/cleanup/cleanup.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "memory_store/chunk_store.h"
#include "memory_store/rocksdb/conversions.h"
#include "memory_store/rocksdb/damaged_table.h"
#include "memory_store/store_files.h"
#include "memory_store/table_name.h"

namespace mneme {
namespace {

constexpr char kTable[] = "/table";
constexpr int kRounds = 16;
constexpr int64_t kFillerBytes = 8;

rocksdb::Options OneBlockOptions(rocksdb::Env* env, int64_t bytes, int64_t filler_bytes) {
  rocksdb::Options options;
  options.env = env;
  options.compression = rocksdb::kNoCompression;
  options.db_host_id = std::string(static_cast<size_t>(filler_bytes), 'x');
  rocksdb::BlockBasedTableOptions blocks;
  blocks.format_version = 5;
  blocks.checksum = rocksdb::kCRC32c;
  blocks.no_block_cache = true;
  blocks.block_size = static_cast<size_t>(2 * bytes);
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(blocks));
  return options;
}

struct OneBlockTable {
  std::string table;
  int64_t block_bytes = 0;  // without its trailer
};

absl::StatusOr<OneBlockTable> WriteTable(const rocksdb::Options& options, int64_t value_bytes,
                                         absl::string_view smallest, absl::string_view largest) {
  const std::string value(static_cast<size_t>(value_bytes), '\0');
  rocksdb::SstFileWriter writer(rocksdb::EnvOptions(), options);
  rocksdb::Status status = writer.Open(kTable);
  if (status.ok() && smallest != largest) status = writer.Put(ToSlice(smallest), "");
  if (status.ok()) status = writer.Put(ToSlice(largest), value);
  if (status.ok()) status = writer.Finish();
  OneBlockTable result;
  if (status.ok()) status = rocksdb::ReadFileToString(options.env, kTable, &result.table);
  rocksdb::SstFileReader reader(options);
  if (status.ok()) status = reader.Open(kTable);
  RETURN_IF_ERROR(ToStatus(status, "a table of one block"));
  const auto properties = reader.GetTableProperties();
  if (properties->num_data_blocks != 1) return absl::InternalError("a table of several blocks");
  result.block_bytes = static_cast<int64_t>(properties->data_size) - kTableBlockTrailerBytes;
  return result;
}

// Of exactly `bytes`.
absl::StatusOr<OneBlockTable> MakeOneBlockTable(int64_t bytes, absl::string_view smallest,
                                                absl::string_view largest) {
  const std::unique_ptr<rocksdb::Env> env(rocksdb::NewMemEnv(rocksdb::Env::Default()));
  int64_t value_bytes = 0, filler_bytes = 0;
  for (int round = 0; round < kRounds && value_bytes >= 0 && filler_bytes >= 0; ++round) {
    ASSIGN_OR_RETURN(OneBlockTable table,
                     WriteTable(OneBlockOptions(env.get(), bytes, filler_bytes), value_bytes,
                                smallest, largest));
    const int64_t missing = bytes - static_cast<int64_t>(table.table.size());
    if (missing == 0) return table;
    // Where lengths of lengths keep a value from meeting the size, the filler does.
    const int64_t moved = round < kRounds / 2 ? 0 : kFillerBytes;
    value_bytes += moved > 0 ? -moved : missing;
    filler_bytes += moved > 0 ? moved + missing : 0;
  }
  return absl::DataLossError(absl::StrCat("no table has ", bytes, " bytes and these keys"));
}

}  // namespace

absl::Status CheckTableOpens(const std::string& path) {
  rocksdb::Options options;
  rocksdb::BlockBasedTableOptions blocks;
  blocks.no_block_cache = true;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(blocks));
  rocksdb::SstFileReader reader(options);
  rocksdb::Status status = reader.Open(path);
  // The tombstones come with the first iterator.
  if (status.ok()) {
    const std::unique_ptr<rocksdb::Iterator> it(reader.NewIterator(rocksdb::ReadOptions()));
    status = it->status();
  }
  return ToStatus(status, absl::StrCat("cannot open ", path));
}

absl::Status MakeTableOpen(const std::string& path, int64_t bytes, absl::string_view smallest,
                           absl::string_view largest) {
  ASSIGN_OR_RETURN(const OneBlockTable made, MakeOneBlockTable(bytes, smallest, largest));
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return FileError(errno, "cannot write", path);
  const absl::Cleanup close_file = [fd] { close(fd); };
  // The block's trailer, which belongs to zeros, too: it fails, unless the file was of zeros.
  const int64_t begin = made.block_bytes;
  std::string end = made.table.substr(static_cast<size_t>(begin));
  end[kTableBlockTrailerBytes - 1] = static_cast<char>(~end[kTableBlockTrailerBytes - 1]);
  errno = ENOSPC;  // what a short write means
  if (ftruncate(fd, bytes) != 0 ||
      pwrite(fd, end.data(), end.size(), begin) != static_cast<ssize_t>(end.size())) {
    return FileError(errno, "cannot write", path);
  }
  return fsync(fd) == 0 ? absl::OkStatus() : FileError(errno, "cannot sync", path);
}

absl::Status MakeTablesOpen(Database& database) {
  // Of those that are live now none goes meanwhile.
  RETURN_IF_ERROR(database.KeepFiles());
  const absl::Cleanup let_files_go = [&database] { database.LetFilesGo(); };
  std::vector<rocksdb::LiveFileMetaData> files;
  database.db().GetLiveFilesMetaData(&files);
  for (const rocksdb::LiveFileMetaData& file : files) {
    if (file.level != 0) continue;
    const std::string path = absl::StrCat(database.folder(), file.name);
    const absl::Status opens = CheckTableOpens(path);
    if (opens.ok()) continue;
    if (!absl::IsDataLoss(opens) || database.read_only() ||
        file.column_family_name == TableName(Table::kCatalog)) {
      return opens;
    }
    LogError("memory_store", "a table file cannot be opened: all that is in it counts as damaged",
             {{"path", path}, {"status", opens.ToString()}});
    RETURN_IF_ERROR(
        MakeTableOpen(path, static_cast<int64_t>(file.size), file.smallestkey, file.largestkey));
  }
  return absl::OkStatus();
}

}  // namespace mneme
