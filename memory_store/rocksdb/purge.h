// Purge: takes deleted records off the disk. Logs are given up by a flush, tables are compacted
// over the deleted ranges, blob files that hold a deleted value are written anew; then the files
// that stood before must go. Steps: docs/storage_format.md, "Forgetting".

#ifndef MNEME_MEMORY_STORE_ROCKSDB_PURGE_H_
#define MNEME_MEMORY_STORE_ROCKSDB_PURGE_H_

#include <atomic>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "memory_store/chunk_store.h"
#include "memory_store/rocksdb/database.h"

namespace mneme {

// ChunkStore::Purge. Thread-safe.
absl::Status PurgeRanges(Database& database, absl::Span<const KeyRange> ranges,
                         std::atomic<bool>& cancel);

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_ROCKSDB_PURGE_H_
