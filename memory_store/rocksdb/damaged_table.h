// DamagedTable: a table file of RocksDB some of whose blocks fail their checksums.
//
// RocksDB reads such a file up to the first of these blocks, and a compaction that meets one writes
// nothing. So the block is put out of the way: where it lies comes to lie a sound block of the same
// size without records. All else in the file, its tombstones and the order of its records, stays as
// it is, RocksDB has nothing to forget about the file, and its next compaction writes it anew. That
// is first done to a copy in memory, which tells between which keys records were lost and what can
// still be read; the file itself is changed by Apply alone. A table that cannot even be opened
// comes to be one that can first (unopenable_table.h).
//
// Format: RocksDB 7.8, table/format.cc, table/block_based/block.cc (blocks of format_version 5,
// crc32c); where a damaged block lies RocksDB says in its error.

#ifndef MNEME_MEMORY_STORE_ROCKSDB_DAMAGED_TABLE_H_
#define MNEME_MEMORY_STORE_ROCKSDB_DAMAGED_TABLE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <rocksdb/env.h>
#include <rocksdb/sst_file_reader.h>
#include <rocksdb/status.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mneme {

inline constexpr int64_t kTableBlockTrailerBytes = 5;  // compression u8, crc u32

// The contents of a block, without its trailer.
struct TableBlock {
  int64_t offset = 0;
  int64_t bytes = 0;
};

// Where the block lies that RocksDB says fails its checksum; nothing: it says something else.
std::optional<TableBlock> DamagedBlockOf(const rocksdb::Status& status);

// Puts a block without records where a damaged one lies. DATA_LOSS: there is none, or it is sound.
absl::Status EmptyBlock(TableBlock block, std::string* table);

// Of a table without large values in blob files. Thread-compatible.
class DamagedTable {
 public:
  // Keys [begin, end) hold the keys of lost records.
  struct Gap {
    std::string begin;
    std::string end;
  };

  // Reads a whole file, whose keys are in [begin, end), into memory. NOT_FOUND, INTERNAL: it
  // cannot be read; DATA_LOSS: it cannot be opened, or is damaged too often.
  static absl::StatusOr<DamagedTable> Read(const std::string& path, std::string begin,
                                           std::string end);

  // Puts one block of a file out of the way, durably. Errors as Read and Apply.
  static absl::Status EmptyInFile(const std::string& path, TableBlock block);

  // Ascending. None: nothing of it is damaged that holds records.
  const std::vector<Gap>& gaps() const { return gaps_; }
  // Calls `visit` for what can be read in [begin, end), ascending.
  absl::Status Scan(
      absl::string_view begin, absl::string_view end,
      const std::function<void(absl::string_view key, absl::string_view value)>& visit) const;
  // Puts the damaged blocks out of the way, durably; cut off in between it can be done
  // again. Errors as FileError.
  absl::Status Apply() const;

 private:
  DamagedTable(std::string path, std::string begin, std::string end)
      : path_(std::move(path)), begin_(std::move(begin)), end_(std::move(end)) {}

  absl::Status ReadFile();
  // Finds all that is damaged, and mends the copy.
  absl::Status Mend();
  // Puts the block out of the way that `status` tells of.
  absl::Status MendAfter(const rocksdb::Status& status);
  // Reads on behind `*last`, the last key read, until damage, whose status this is, or the end.
  // `first` gets the first key read.
  static rocksdb::Status ReadOn(rocksdb::SstFileReader& reader, std::optional<std::string>* first,
                                std::optional<std::string>* last);

  std::string path_, begin_, end_;
  std::unique_ptr<rocksdb::Env> env_;  // holds the copy
  std::string table_;                  // the copy once more
  std::vector<TableBlock> changed_;    // with their trailers
  std::vector<Gap> gaps_;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_ROCKSDB_DAMAGED_TABLE_H_
