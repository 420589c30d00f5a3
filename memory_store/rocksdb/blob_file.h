// The keys in a blob file of RocksDB, live ones and dead ones: what tells which blob files still
// hold the values of records that were deleted. Format: RocksDB 7.8, db/blob/blob_log_format.h.

#ifndef MNEME_MEMORY_STORE_ROCKSDB_BLOB_FILE_H_
#define MNEME_MEMORY_STORE_ROCKSDB_BLOB_FILE_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace mneme {

// In RocksDB's folder.
std::string BlobFileName(uint64_t number);

// Calls `visit` with the key of each value, in the order in which they were written. Reads the
// heads of the records alone. NOT_FOUND: no such file; DATA_LOSS: it is no finished blob file of
// version 1, or a record runs beyond its end; INTERNAL: the disk failed.
absl::Status ReadBlobFileKeys(const std::string& path,
                              const std::function<void(absl::string_view key)>& visit);

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_ROCKSDB_BLOB_FILE_H_
