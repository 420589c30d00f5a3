// Mending of damaged files of a database that serves. What RocksDB can read it writes anew, by a
// compaction; where that fails, the damaged blocks are put out of the way first (damaged_table.h).
// Blob files: mend_blobs.h.

#ifndef MNEME_MEMORY_STORE_ROCKSDB_MEND_H_
#define MNEME_MEMORY_STORE_ROCKSDB_MEND_H_

#include <atomic>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "memory_store/chunk_store.h"
#include "memory_store/rocksdb/database.h"
#include "memory_store/store_files.h"

namespace mneme {

// ChunkStore::MendFile, of a database that is not read_only. Thread-safe; one at a time.
absl::Status MendLiveFile(Database& database, const StoreFile& file, const GiveUp& give_up);

// ChunkStore::MendForPurge. Thread-safe; one at a time.
absl::Status MendRanges(Database& database, absl::Span<const KeyRange> ranges,
                        const GiveUp& give_up, std::atomic<bool>& cancel);

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_ROCKSDB_MEND_H_
