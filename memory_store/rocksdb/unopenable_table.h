// Table files that RocksDB cannot open: their footer, index, properties or tombstones are damaged.
//
// RocksDB 7.8 must not meet one on level 0: an iterator over files of which the one before has
// tombstones frees those twice (Version::AddIteratorsForLevel hands them on to the next file).
// So the end of such a file is written over: it comes to be a table of one block, which fails its
// checksum and in which all its keys would be. What is damaged so is mended as any other block
// (damaged_table.h); the bytes of its records stay where they are until then.

#ifndef MNEME_MEMORY_STORE_ROCKSDB_UNOPENABLE_TABLE_H_
#define MNEME_MEMORY_STORE_ROCKSDB_UNOPENABLE_TABLE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "memory_store/rocksdb/database.h"

namespace mneme {

// DATA_LOSS: the table file cannot be opened. NOT_FOUND, INTERNAL: it cannot be read.
absl::Status CheckTableOpens(const std::string& path);

// Makes a table file that can be opened of one that cannot, durably, as long as
// RocksDB recorded it, `bytes`, for keys in [smallest, largest]. DATA_LOSS: it is too short for
// that; others as FileError.
absl::Status MakeTableOpen(const std::string& path, int64_t bytes, absl::string_view smallest,
                           absl::string_view largest);

// Of a database just opened: does so to the files of level 0 that cannot be opened, but those of
// the catalog. DATA_LOSS: one of those cannot, or any when the database is read_only.
absl::Status MakeTablesOpen(Database& database);

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_ROCKSDB_UNOPENABLE_TABLE_H_
