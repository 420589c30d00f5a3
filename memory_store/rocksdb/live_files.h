// The live files of a database: their list for checks and backups, and the mending of a damaged
// one.

#ifndef MNEME_MEMORY_STORE_ROCKSDB_LIVE_FILES_H_
#define MNEME_MEMORY_STORE_ROCKSDB_LIVE_FILES_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "memory_store/chunk_store.h"
#include "memory_store/rocksdb/database.h"
#include "memory_store/store_files.h"

namespace mneme {

// ChunkStore::Files. The result must not outlive `database`. Thread-safe.
absl::StatusOr<StoreFiles> LiveFiles(Database& database, ChunkStore::FilesFor purpose);

// ChunkStore::MendFile, of a database that is not read_only. Thread-safe.
absl::Status MendLiveFile(Database& database, const StoreFile& file, bool may_drop);

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_ROCKSDB_LIVE_FILES_H_
