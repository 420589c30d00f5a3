// The ChunkStore of one machine: RocksDB, in a data directory (docs/storage_format.md,
// "Directory").

#ifndef MNEME_MEMORY_STORE_ROCKSDB_ROCKSDB_CHUNK_STORE_H_
#define MNEME_MEMORY_STORE_ROCKSDB_ROCKSDB_CHUNK_STORE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/metrics.h"
#include "common/supervisor.h"
#include "memory_store/chunk_store.h"

namespace rocksdb {
class Env;
}

namespace mneme {

// What RocksDB holds in memory of what is not in tables yet, of all tables together.
inline constexpr int64_t kRocksDbWriteBufferBytes = int64_t{64} << 20;

struct RocksDbOptions {
  std::string data_dir;
  int64_t block_cache_bytes = int64_t{256} << 20;
  int background_threads = 2;
  // Bytes that writes leave free on the file system: below it, Write answers RESOURCE_EXHAUSTED. 0:
  // none kept.
  int64_t reserve_bytes = int64_t{64} << 20;
  // Opens what is there and writes nothing, nor mends a damaged log: for a look at a directory.
  // Every Write answers FAILED_PRECONDITION.
  bool read_only = false;
  // Watches the thread of the store; must outlive it. Null: nobody does.
  Supervisor* supervisor = nullptr;
  // The file system below RocksDB; null: the machine's. For tests. Must outlive the store.
  rocksdb::Env* env = nullptr;
};

// Opens or creates. FAILED_PRECONDITION: the directory is locked by another server, was written by
// a newer format or is something else; PERMISSION_DENIED / NOT_FOUND: cannot be used (the message
// names the path).
absl::StatusOr<std::unique_ptr<ChunkStore>> OpenRocksDbChunkStore(const RocksDbOptions& options,
                                                                  Metrics& metrics);

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_ROCKSDB_ROCKSDB_CHUNK_STORE_H_
