// FaultChunkStore: a ChunkStore whose writes and reads fail when a test says so.

#ifndef MNEME_TESTS_ENGINE_FAULT_CHUNK_STORE_H_
#define MNEME_TESTS_ENGINE_FAULT_CHUNK_STORE_H_

#include <atomic>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "memory_store/chunk_store.h"

namespace mneme {

// Thread-safe. Borrows the store behind it.
class FaultChunkStore : public ChunkStore {
 public:
  explicit FaultChunkStore(ChunkStore& store) : store_(store) {}

  // Writes that touch `table` answer `status` from now on; OK: they work again.
  void FailWrites(Table table, absl::Status status) {
    absl::MutexLock lock(&mutex_);
    write_faults_[table] = std::move(status);
  }
  // Reads of `table` answer `status` from now on.
  void FailReads(Table table, absl::Status status) {
    absl::MutexLock lock(&mutex_);
    read_faults_[table] = std::move(status);
  }
  // Runs before every write that touches `table`; may block.
  void OnWrite(std::function<void(const WriteBatch&)> hook) {
    absl::MutexLock lock(&mutex_);
    on_write_ = std::move(hook);
  }
  int synced_writes() const { return synced_writes_.load(); }
  // How often text was read.
  int text_scans() const { return text_scans_.load(); }

  absl::Status Write(const WriteBatch& batch, Durability durability) override {
    std::function<void(const WriteBatch&)> hook;
    {
      absl::MutexLock lock(&mutex_);
      hook = on_write_;
    }
    if (hook) hook(batch);
    for (const WriteBatch::Op& op : batch.ops) {
      const absl::Status fault = FaultOf(write_faults_, op.table);
      if (!fault.ok()) return fault;
    }
    if (durability == Durability::kSynced) synced_writes_.fetch_add(1);
    return store_.Write(batch, durability);
  }
  absl::StatusOr<std::string> Get(Table table, absl::string_view key) override {
    const absl::Status fault = FaultOf(read_faults_, table);
    if (!fault.ok()) return fault;
    return store_.Get(table, key);
  }
  std::vector<absl::StatusOr<std::string>> MultiGet(Table table,
                                                    absl::Span<const std::string> keys) override {
    const absl::Status fault = FaultOf(read_faults_, table);
    if (!fault.ok()) return std::vector<absl::StatusOr<std::string>>(keys.size(), fault);
    return store_.MultiGet(table, keys);
  }
  absl::Status Scan(
      Table table, absl::string_view begin, absl::string_view end,
      const std::function<bool(absl::string_view, absl::string_view)>& visit) override {
    if (table == Table::kText) text_scans_.fetch_add(1);
    const absl::Status fault = FaultOf(read_faults_, table);
    if (!fault.ok()) return fault;
    return store_.Scan(table, begin, end, visit);
  }
  absl::Status Flush() override { return store_.Flush(); }
  // Purges answer `status` from now on; OK: they work again.
  void FailPurges(absl::Status status) {
    absl::MutexLock lock(&mutex_);
    purge_fault_ = std::move(status);
  }
  int purges() const { return purges_.load(); }
  absl::Status Purge(absl::Span<const KeyRange> ranges, std::atomic<bool>& cancel) override {
    {
      absl::MutexLock lock(&mutex_);
      if (!purge_fault_.ok()) return purge_fault_;
    }
    if (!ranges.empty()) purges_.fetch_add(1);
    return store_.Purge(ranges, cancel);
  }
  int64_t used_bytes() override {
    const int64_t used_bytes = used_bytes_;
    return used_bytes >= 0 ? used_bytes : store_.used_bytes();
  }
  // What is free on the disk from now on, and what the store uses of it; negative: as it is.
  void SetDisk(int64_t free_bytes, int64_t used_bytes = -1) {
    free_bytes_ = free_bytes;
    used_bytes_ = used_bytes;
  }
  int64_t free_bytes() override {
    const int64_t free_bytes = free_bytes_;
    return free_bytes >= 0 ? free_bytes : store_.free_bytes();
  }

 private:
  using Faults = std::map<Table, absl::Status>;

  absl::Status FaultOf(const Faults& faults, Table table) {
    absl::MutexLock lock(&mutex_);
    const auto it = faults.find(table);
    return it == faults.end() ? absl::OkStatus() : it->second;
  }

  ChunkStore& store_;
  absl::Mutex mutex_;
  Faults write_faults_;  // guarded by mutex_, by way of FaultOf
  Faults read_faults_;   // guarded by mutex_, by way of FaultOf
  std::function<void(const WriteBatch&)> on_write_ ABSL_GUARDED_BY(mutex_);
  absl::Status purge_fault_ ABSL_GUARDED_BY(mutex_);
  std::atomic<int> purges_{0};
  std::atomic<int64_t> free_bytes_{-1};
  std::atomic<int64_t> used_bytes_{-1};
  std::atomic<int> synced_writes_{0};
  std::atomic<int> text_scans_{0};
};

}  // namespace mneme

#endif  // MNEME_TESTS_ENGINE_FAULT_CHUNK_STORE_H_
