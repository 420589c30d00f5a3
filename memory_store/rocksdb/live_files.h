// The live files of a database: their list for checks and backups.

#ifndef MNEME_MEMORY_STORE_ROCKSDB_LIVE_FILES_H_
#define MNEME_MEMORY_STORE_ROCKSDB_LIVE_FILES_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "memory_store/chunk_store.h"
#include "memory_store/rocksdb/database.h"
#include "memory_store/store_files.h"

namespace mneme {

// ChunkStore::Files. The result must not outlive `database`. Thread-safe.
// `damaged_before`: listed for a check beside them.
absl::StatusOr<StoreFiles> LiveFiles(Database& database, ChunkStore::FilesFor purpose,
                                     absl::Span<const StoreFile> damaged_before = {});

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_ROCKSDB_LIVE_FILES_H_
