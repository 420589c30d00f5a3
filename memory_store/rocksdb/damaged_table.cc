#include "memory_store/rocksdb/damaged_table.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include <rocksdb/options.h>
#include <rocksdb/sst_file_reader.h>
#include <rocksdb/table.h>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/crash_point.h"
#include "common/crc32c.h"
#include "common/status_macros.h"
#include "memory_store/key_after.h"
#include "memory_store/record_coding.h"
#include "memory_store/rocksdb/conversions.h"
#include "memory_store/store_files.h"

namespace mneme {
namespace {

constexpr char kCopy[] = "/table";
constexpr int64_t kBlockBytesMin = 26;  // of BlockWithoutRecords
// More than this many damaged blocks of a file are not mended one by one.
constexpr size_t kBlocksMax = 256;

uint32_t CrcOf(absl::string_view block_and_compression) {
  const uint32_t crc = Crc32c(block_and_compression);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;  // as RocksDB stores it
}

// A block of `bytes` without records, with its trailer. RocksDB's smallest one, a single restart
// point of nothing, is its content as ZSTD (the length it unfolds to, then RFC 8878: a frame of one
// raw block, and a frame to be skipped, which fills the rest). One without restart points, which
// could have any length, RocksDB 7.8 reads with a pointer that nobody has set.
std::string BlockWithoutRecords(int64_t bytes) {
  constexpr absl::string_view kContent("\0\0\0\0\1\0\0\0", 8);
  std::string block(1, static_cast<char>(kContent.size()));
  PutU32(&block, 0xfd2fb528);                           // a frame
  block.append("\x20", 1);                              // that tells its length in a byte
  block.push_back(static_cast<char>(kContent.size()));  // this
  block.append("\x41\0\0", 3);                          // the last block, raw, 8 bytes
  block.append(kContent.data(), kContent.size());
  PutU32(&block, 0x184d2a50);  // a frame to be skipped
  PutU32(&block, static_cast<uint32_t>(bytes - kBlockBytesMin));
  block.resize(static_cast<size_t>(bytes));
  block.push_back(rocksdb::kZSTD);
  PutU32(&block, CrcOf(block));
  return block;
}

rocksdb::Options ReaderOptions(rocksdb::Env* env) {
  rocksdb::Options options;
  options.env = env;
  rocksdb::BlockBasedTableOptions blocks;
  blocks.filter_policy = nullptr;  // a damaged filter loses nothing
  blocks.no_block_cache = true;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(blocks));
  return options;
}

rocksdb::ReadOptions Checked() {
  rocksdb::ReadOptions options;
  options.verify_checksums = true;
  options.fill_cache = false;
  return options;
}

}  // namespace

std::optional<TableBlock> DamagedBlockOf(const rocksdb::Status& status) {
  if (!status.IsCorruption()) return std::nullopt;
  const std::string text = status.ToString();
  const size_t offset_at = text.rfind(" offset ");
  const size_t size_at = text.rfind(" size ");
  if (text.find("block checksum mismatch") == std::string::npos || offset_at == std::string::npos ||
      size_at == std::string::npos || size_at < offset_at) {
    return std::nullopt;
  }
  TableBlock block;
  const size_t offset_begin = offset_at + 8, size_begin = size_at + 6;
  const size_t size_end = text.find_first_not_of("0123456789", size_begin);
  if (!absl::SimpleAtoi(text.substr(offset_begin, size_at - offset_begin), &block.offset) ||
      !absl::SimpleAtoi(text.substr(size_begin, size_end - size_begin), &block.bytes)) {
    return std::nullopt;
  }
  return block;
}

absl::Status EmptyBlock(TableBlock block, std::string* table) {
  const auto table_bytes = static_cast<int64_t>(table->size());
  if (block.offset < 0 || block.bytes < kBlockBytesMin || block.offset > table_bytes ||
      block.bytes > table_bytes - block.offset - kTableBlockTrailerBytes) {
    return absl::DataLossError(absl::StrCat("no block of ", block.bytes, " bytes at byte ",
                                            block.offset, " of ", table_bytes));
  }
  const absl::string_view now =
      absl::string_view(*table).substr(static_cast<size_t>(block.offset),
                                       static_cast<size_t>(block.bytes + kTableBlockTrailerBytes));
  RecordReader trailer(now.substr(static_cast<size_t>(block.bytes) + 1));
  uint32_t crc = 0;
  if (!trailer.ReadU32(&crc) || crc == CrcOf(now.substr(0, static_cast<size_t>(block.bytes) + 1))) {
    return absl::DataLossError(absl::StrCat("the block at byte ", block.offset, " is sound"));
  }
  const std::string empty = BlockWithoutRecords(block.bytes);
  table->replace(static_cast<size_t>(block.offset), empty.size(), empty);
  return absl::OkStatus();
}

absl::StatusOr<DamagedTable> DamagedTable::Read(const std::string& path, std::string begin,
                                                std::string end) {
  DamagedTable table(path, std::move(begin), std::move(end));
  RETURN_IF_ERROR(table.ReadFile());
  table.env_.reset(rocksdb::NewMemEnv(rocksdb::Env::Default()));
  RETURN_IF_ERROR(table.Mend());
  return table;
}

absl::Status DamagedTable::ReadFile() {
  std::error_code error;
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(path_, error));
  if (error) return FileError(error.value(), "cannot read", path_);
  table_.reserve(static_cast<size_t>(bytes));
  return ReadFilePieces(path_, bytes, [&](absl::string_view piece) {
    table_.append(piece.data(), piece.size());
    return absl::OkStatus();
  });
}

absl::Status DamagedTable::EmptyInFile(const std::string& path, TableBlock block) {
  DamagedTable table(path, "", "");
  RETURN_IF_ERROR(table.ReadFile());
  rocksdb::SstFileReader reader(ReaderOptions(rocksdb::Env::Default()));
  RETURN_IF_ERROR(ToStatus(reader.Open(path), absl::StrCat("cannot open ", path)));
  RETURN_IF_ERROR(EmptyBlock(block, &table.table_));
  table.changed_.push_back({block.offset, block.bytes + kTableBlockTrailerBytes});
  return table.Apply();
}

absl::Status DamagedTable::Mend() {
  std::optional<std::string> last;  // key read
  bool in_gap = false;
  while (true) {
    RETURN_IF_ERROR(ToStatus(rocksdb::WriteStringToFile(env_.get(), table_, kCopy), "copy"));
    std::optional<std::string> first;  // key read now
    rocksdb::SstFileReader reader(ReaderOptions(env_.get()));
    // A table that opens has sound properties, tombstones and index: what is damaged are records.
    RETURN_IF_ERROR(ToStatus(reader.Open(kCopy), absl::StrCat("cannot open ", path_)));
    const rocksdb::Status status = ReadOn(reader, &first, &last);
    if (in_gap && first.has_value()) {
      gaps_.back().end = *first;
      in_gap = false;
    }
    if (status.ok()) break;
    if (!in_gap) {
      gaps_.push_back({last.has_value() ? KeyAfter(*last) : begin_, end_});
      in_gap = true;
    }
    RETURN_IF_ERROR(MendAfter(status));
  }
  return absl::OkStatus();
}

rocksdb::Status DamagedTable::ReadOn(rocksdb::SstFileReader& reader,
                                     std::optional<std::string>* first,
                                     std::optional<std::string>* last) {
  const std::unique_ptr<rocksdb::Iterator> it(reader.NewIterator(Checked()));
  if (last->has_value()) {
    it->Seek(KeyAfter(**last));
  } else {
    it->SeekToFirst();
  }
  for (; it->Valid(); it->Next()) {
    *last = it->key().ToString();
    if (!first->has_value()) *first = *last;
  }
  return it->status();
}

absl::Status DamagedTable::MendAfter(const rocksdb::Status& status) {
  const absl::Status damage = ToStatus(status, absl::StrCat("read of ", path_));
  const std::optional<TableBlock> block = DamagedBlockOf(status);
  if (!block.has_value() || changed_.size() >= kBlocksMax) return damage;
  RETURN_IF_ERROR(EmptyBlock(*block, &table_));
  changed_.push_back({block->offset, block->bytes + kTableBlockTrailerBytes});
  return absl::OkStatus();
}

absl::Status DamagedTable::Scan(
    absl::string_view begin, absl::string_view end,
    const std::function<void(absl::string_view key, absl::string_view value)>& visit) const {
  rocksdb::SstFileReader reader(ReaderOptions(env_.get()));
  RETURN_IF_ERROR(ToStatus(reader.Open(kCopy), absl::StrCat("read of ", path_)));
  const std::unique_ptr<rocksdb::Iterator> it(reader.NewIterator(Checked()));
  for (it->Seek(ToSlice(begin)); it->Valid(); it->Next()) {
    if (!end.empty() && ToView(it->key()) >= end) break;
    visit(ToView(it->key()), ToView(it->value()));
  }
  return ToStatus(it->status(), absl::StrCat("read of ", path_));
}

absl::Status DamagedTable::Apply() const {
  const int fd = open(path_.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return FileError(errno, "cannot write", path_);
  const absl::Cleanup close_file = [fd] { close(fd); };
  for (const TableBlock& block : changed_) {
    errno = ENOSPC;  // what a short write means
    if (pwrite(fd, table_.data() + block.offset, static_cast<size_t>(block.bytes), block.offset) !=
        block.bytes) {
      return FileError(errno, "cannot write", path_);
    }
    CrashPoint("damaged block emptied");
  }
  return fsync(fd) == 0 ? absl::OkStatus() : FileError(errno, "cannot sync", path_);
}

}  // namespace mneme
