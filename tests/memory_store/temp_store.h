// For tests: a store in a directory of its own, gone with the object. Reopen() closes and opens it
// as a restart does.

#ifndef MNEME_TESTS_MEMORY_STORE_TEMP_STORE_H_
#define MNEME_TESTS_MEMORY_STORE_TEMP_STORE_H_

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>

#include "absl/time/time.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "memory_store/chunk_store.h"
#include "memory_store/memory_store.h"
#include "memory_store/rocksdb/rocksdb_chunk_store.h"

namespace mneme {

// A new empty directory, removed with its contents in the end.
class TempDir {
 public:
  TempDir() {
    std::string path = std::filesystem::temp_directory_path() / "mneme_test_XXXXXX";
    MNEME_CHECK(mkdtemp(path.data()) != nullptr);
    path_ = path;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Thread-compatible; the stores it gives are thread-safe.
class TempStore {
 public:
  // page_bytes, landmark_bytes and derivation_fingerprint as a test likes; small ones when left at
  // 0.
  explicit TempStore(MemoryStoreOptions options = {}) : options_(std::move(options)) {
    if (options_.page_bytes == 0) options_.page_bytes = 64;
    if (options_.landmark_bytes == 0) options_.landmark_bytes = 16;
    if (options_.derivation_fingerprint == 0) options_.derivation_fingerprint = 0x5eed;
    rocksdb_options_.data_dir = dir_.path() + "/data";
    rocksdb_options_.block_cache_bytes = 8 << 20;
    rocksdb_options_.reserve_bytes = 0;
    Open();
  }

  MemoryStore& store() { return *memory_store_; }
  ChunkStore& chunk_store() { return *chunk_store_; }
  Metrics& metrics() { return metrics_; }
  SimulatedClock& clock() { return clock_; }
  const std::string& data_dir() const { return rocksdb_options_.data_dir; }
  // For the next Open.
  MemoryStoreOptions& options() { return options_; }
  RocksDbOptions& rocksdb_options() { return rocksdb_options_; }

  void Close() {
    memory_store_.reset();
    chunk_store_.reset();
  }
  void Open() {
    auto chunk_store = OpenRocksDbChunkStore(rocksdb_options_, metrics_);
    MNEME_CHECK(chunk_store.ok());
    chunk_store_ = *std::move(chunk_store);
    auto memory_store = MemoryStore::Open(options_, *chunk_store_, metrics_, clock_);
    MNEME_CHECK(memory_store.ok());
    memory_store_ = *std::move(memory_store);
  }
  void Reopen() {
    Close();
    Open();
  }

 private:
  TempDir dir_;
  MemoryStoreOptions options_;
  RocksDbOptions rocksdb_options_;
  Metrics metrics_;
  SimulatedClock clock_{absl::FromUnixSeconds(1'700'000'000)};
  std::unique_ptr<ChunkStore> chunk_store_;
  std::unique_ptr<MemoryStore> memory_store_;
};

}  // namespace mneme

#endif  // MNEME_TESTS_MEMORY_STORE_TEMP_STORE_H_
