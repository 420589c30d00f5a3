// A ChunkStore that fails when told: wraps another one and lets its n-th operation of a kind fail,
// or damages what it reads.

#ifndef MNEME_TESTS_MEMORY_STORE_FAULTY_CHUNK_STORE_H_
#define MNEME_TESTS_MEMORY_STORE_FAULTY_CHUNK_STORE_H_

#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "memory_store/chunk_store.h"

namespace mneme {

// Thread-safe. Borrows the store it wraps.
class FaultyChunkStore : public ChunkStore {
 public:
  enum class Op : uint8_t { kWrite, kGet, kMultiGet, kScan, kFlush, kPurge };
  static constexpr int64_t kForever = std::numeric_limits<int64_t>::max();

  explicit FaultyChunkStore(ChunkStore& store) : store_(store) {}

  // Lets `skip` operations of this kind pass and fails the `count` after them with `status`.
  void Fail(Op op, absl::Status status, int64_t skip = 0, int64_t count = 1) {
    absl::MutexLock lock(&mutex_);
    faults_[static_cast<size_t>(op)] = {skip, count, std::move(status)};
  }
  // Scans of a table end with `status` when they come to the n-th record of all scans of it from
  // now (counted from 0), and at the `count` - 1 after it.
  void FailScanAtRecord(Table table, int64_t record, absl::Status status, int64_t count = 1) {
    absl::MutexLock lock(&mutex_);
    scan_faults_[static_cast<size_t>(table)] = {record, count, std::move(status)};
  }
  // Flips one bit of the value of the n-th record read from a table from now (counted from 0), by
  // whatever operation.
  void FlipBitOfRecord(Table table, int64_t record, int64_t bit) {
    absl::MutexLock lock(&mutex_);
    flips_[static_cast<size_t>(table)] = {record, bit};
  }
  // Called before every write, outside the lock: to run something else at that moment, or to make
  // it wait.
  void OnWrite(std::function<void(const WriteBatch&)> hook) {
    absl::MutexLock lock(&mutex_);
    on_write_ = std::move(hook);
  }
  // Called after every MultiGet has read, before it returns.
  void OnMultiGet(std::function<void()> hook) {
    absl::MutexLock lock(&mutex_);
    on_multi_get_ = std::move(hook);
  }
  // Called before every scan, outside the lock.
  void OnScan(std::function<void()> hook) {
    absl::MutexLock lock(&mutex_);
    on_scan_ = std::move(hook);
  }
  void Heal() {
    absl::MutexLock lock(&mutex_);
    faults_ = {};
    scan_faults_ = {};
    flips_ = {};
    on_write_ = nullptr;
    on_multi_get_ = nullptr;
    on_scan_ = nullptr;
  }
  int64_t operations(Op op) {
    absl::MutexLock lock(&mutex_);
    return operations_[static_cast<size_t>(op)];
  }

  absl::Status Write(const WriteBatch& batch, Durability durability) override {
    std::function<void(const WriteBatch&)> hook;
    {
      absl::MutexLock lock(&mutex_);
      hook = on_write_;
    }
    if (hook) hook(batch);
    if (absl::Status status = Next(Op::kWrite); !status.ok()) return status;
    return store_.Write(batch, durability);
  }
  absl::StatusOr<std::string> Get(Table table, absl::string_view key) override {
    if (absl::Status status = Next(Op::kGet); !status.ok()) return status;
    absl::StatusOr<std::string> value = store_.Get(table, key);
    if (value.ok()) MaybeFlip(table, &*value);
    return value;
  }
  std::vector<absl::StatusOr<std::string>> MultiGet(Table table,
                                                    absl::Span<const std::string> keys) override {
    if (absl::Status status = Next(Op::kMultiGet); !status.ok()) {
      return std::vector<absl::StatusOr<std::string>>(keys.size(), status);
    }
    std::vector<absl::StatusOr<std::string>> values = store_.MultiGet(table, keys);
    for (auto& value : values) {
      if (value.ok()) MaybeFlip(table, &*value);
    }
    std::function<void()> hook;
    {
      absl::MutexLock lock(&mutex_);
      hook = on_multi_get_;
    }
    if (hook) hook();
    return values;
  }
  absl::Status Scan(
      Table table, absl::string_view begin, absl::string_view end,
      const std::function<bool(absl::string_view key, absl::string_view value)>& visit) override {
    std::function<void()> hook;
    {
      absl::MutexLock lock(&mutex_);
      hook = on_scan_;
    }
    if (hook) hook();
    if (absl::Status status = Next(Op::kScan); !status.ok()) return status;
    absl::Status fault;
    const absl::Status status =
        store_.Scan(table, begin, end, [&](absl::string_view key, absl::string_view value) {
          {
            absl::MutexLock lock(&mutex_);
            fault = Count(&scan_faults_[static_cast<size_t>(table)]);
          }
          if (!fault.ok()) return false;
          std::string read(value);
          MaybeFlip(table, &read);
          return visit(key, read);
        });
    return fault.ok() ? status : fault;
  }
  absl::Status Flush() override {
    if (absl::Status status = Next(Op::kFlush); !status.ok()) return status;
    return store_.Flush();
  }
  absl::Status Purge(absl::Span<const KeyRange> ranges, std::atomic<bool>& cancel) override {
    if (absl::Status status = Next(Op::kPurge); !status.ok()) return status;
    return store_.Purge(ranges, cancel);
  }
  int64_t used_bytes() override { return store_.used_bytes(); }
  int64_t free_bytes() override { return store_.free_bytes(); }

 private:
  struct Fault {
    int64_t skip = 0;
    int64_t count = 0;
    absl::Status status;
  };
  struct Flip {
    int64_t record = -1;
    int64_t bit = 0;
  };

  absl::Status Count(Fault* fault) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (fault->count <= 0) return absl::OkStatus();
    if (fault->skip > 0) {
      --fault->skip;
      return absl::OkStatus();
    }
    if (fault->count != kForever) --fault->count;
    return fault->status;
  }
  absl::Status Next(Op op) {
    absl::MutexLock lock(&mutex_);
    ++operations_[static_cast<size_t>(op)];
    return Count(&faults_[static_cast<size_t>(op)]);
  }
  void MaybeFlip(Table table, std::string* value) {
    absl::MutexLock lock(&mutex_);
    Flip& flip = flips_[static_cast<size_t>(table)];
    if (flip.record < 0 || flip.record-- > 0 || value->empty()) return;
    const size_t bit = static_cast<size_t>(flip.bit) % (value->size() * 8);
    (*value)[bit / 8] = static_cast<char>((*value)[bit / 8] ^ (1 << (bit % 8)));
  }

  ChunkStore& store_;
  absl::Mutex mutex_;
  std::array<Fault, 6> faults_ ABSL_GUARDED_BY(mutex_);
  std::array<Fault, kTableCount> scan_faults_ ABSL_GUARDED_BY(mutex_);
  std::array<Flip, kTableCount> flips_ ABSL_GUARDED_BY(mutex_);
  std::array<int64_t, 6> operations_ ABSL_GUARDED_BY(mutex_) = {};
  std::function<void(const WriteBatch&)> on_write_ ABSL_GUARDED_BY(mutex_);
  std::function<void()> on_multi_get_ ABSL_GUARDED_BY(mutex_);
  std::function<void()> on_scan_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_TESTS_MEMORY_STORE_FAULTY_CHUNK_STORE_H_
