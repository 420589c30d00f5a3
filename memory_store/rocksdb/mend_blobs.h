// Mending of damaged blob files, and of what refers to blobs. Their values are derived: those that
// cannot be read are deleted, the others are written anew, after which RocksDB has no use for a
// file.

#ifndef MNEME_MEMORY_STORE_ROCKSDB_MEND_BLOBS_H_
#define MNEME_MEMORY_STORE_ROCKSDB_MEND_BLOBS_H_

#include <atomic>
#include <string>

#include "absl/status/status.h"
#include "memory_store/chunk_store.h"
#include "memory_store/rocksdb/database.h"
#include "memory_store/store_files.h"

namespace mneme {

// All keys of the table with blobs.
inline KeyRange AllPages() { return {Table::kPages, "", std::string(64, '\xff')}; }

// Writes the values of a damaged blob file anew, those that cannot be read having been put again or
// deleted. DATA_LOSS: it is still in use; others as Database::Rewrite.
absl::Status MoveOutOfBlobFile(Database& database, const StoreFile& file);

// Deletes what cannot be read of it first. CANCELLED once `cancel` is true.
absl::Status GiveUpUnreadableBlobs(Database& database, const StoreFile& file,
                                   std::atomic<bool>& cancel);

// To be called after references to blobs were given up, which RocksDB does not count as garbage: it
// would keep their files for ever, and a purge pass over them. Writes every value anew.
absl::Status MoveAllBlobs(Database& database);

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_ROCKSDB_MEND_BLOBS_H_
