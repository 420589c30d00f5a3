// ChunkStore in a std::map: fast, and able to crash as a machine does. Every batch is kept in a
// log; Crash() forgets an unsynced end of it, as a machine that loses power does (a process that
// dies loses nothing: the log is the kernel's).

#ifndef MNEME_TESTS_MEMORY_STORE_MAP_CHUNK_STORE_H_
#define MNEME_TESTS_MEMORY_STORE_MAP_CHUNK_STORE_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/check.h"
#include "memory_store/chunk_store.h"

namespace mneme {

// Thread-safe.
class MapChunkStore : public ChunkStore {
 public:
  absl::Status Write(const WriteBatch& batch, Durability durability) override {
    absl::MutexLock lock(&mutex_);
    Apply(batch);
    log_.push_back(batch);
    if (durability == Durability::kSynced) synced_ = log_.size();
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> Get(Table table, absl::string_view key) override {
    absl::MutexLock lock(&mutex_);
    const Map& map = tables_[static_cast<size_t>(table)];
    const auto it = map.find(std::string(key));
    if (it == map.end()) return absl::NotFoundError("no such key");
    return it->second;
  }
  std::vector<absl::StatusOr<std::string>> MultiGet(Table table,
                                                    absl::Span<const std::string> keys) override {
    std::vector<absl::StatusOr<std::string>> values;
    for (const std::string& key : keys) values.push_back(Get(table, key));
    return values;
  }
  absl::Status Scan(
      Table table, absl::string_view begin, absl::string_view end,
      const std::function<bool(absl::string_view key, absl::string_view value)>& visit) override {
    Map range;
    {
      absl::MutexLock lock(&mutex_);
      const Map& map = tables_[static_cast<size_t>(table)];
      range.insert(map.lower_bound(std::string(begin)),
                   end.empty() ? map.end() : map.lower_bound(std::string(end)));
    }
    for (const auto& [key, value] : range) {
      if (!visit(key, value)) break;
    }
    return absl::OkStatus();
  }
  absl::Status Flush() override {
    absl::MutexLock lock(&mutex_);
    synced_ = log_.size();
    return absl::OkStatus();
  }
  // A map keeps nothing of what was deleted; its log is the tests'.
  absl::Status Purge(absl::Span<const KeyRange> ranges, std::atomic<bool>& cancel) override {
    absl::MutexLock lock(&mutex_);
    if (cancel) return absl::CancelledError("cancelled");
    purged_.insert(purged_.end(), ranges.begin(), ranges.end());
    return absl::OkStatus();
  }
  // Ranges of all purges.
  std::vector<KeyRange> purged() {
    absl::MutexLock lock(&mutex_);
    return purged_;
  }
  int64_t used_bytes() override {
    absl::MutexLock lock(&mutex_);
    int64_t bytes = 0;
    for (const Map& map : tables_) {
      for (const auto& [key, value] : map) bytes += static_cast<int64_t>(key.size() + value.size());
    }
    return bytes;
  }
  int64_t free_bytes() override { return int64_t{1} << 40; }

  // Batches written and not synced.
  int64_t unsynced() {
    absl::MutexLock lock(&mutex_);
    return static_cast<int64_t>(log_.size() - synced_);
  }
  // Loses the last `batches` of them.
  void Crash(int64_t batches) {
    absl::MutexLock lock(&mutex_);
    MNEME_CHECK(batches <= static_cast<int64_t>(log_.size() - synced_));
    log_.resize(log_.size() - static_cast<size_t>(batches));
    synced_ = log_.size();
    tables_ = {};
    for (const WriteBatch& batch : log_) Apply(batch);
  }
  int64_t key_count(Table table) {
    absl::MutexLock lock(&mutex_);
    return static_cast<int64_t>(tables_[static_cast<size_t>(table)].size());
  }

 private:
  using Map = std::map<std::string, std::string>;

  void Apply(const WriteBatch& batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    for (const WriteBatch::Op& op : batch.ops) {
      Map& map = tables_[static_cast<size_t>(op.table)];
      if (op.kind == WriteBatch::Kind::kPut) map[op.key] = op.value;
      if (op.kind == WriteBatch::Kind::kDelete) map.erase(op.key);
      if (op.kind == WriteBatch::Kind::kDeleteRange && op.key < op.value) {
        map.erase(map.lower_bound(op.key), map.lower_bound(op.value));
      }
    }
  }

  absl::Mutex mutex_;
  std::array<Map, kTableCount> tables_ ABSL_GUARDED_BY(mutex_);
  std::vector<WriteBatch> log_ ABSL_GUARDED_BY(mutex_);
  size_t synced_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<KeyRange> purged_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_TESTS_MEMORY_STORE_MAP_CHUNK_STORE_H_
