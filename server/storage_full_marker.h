// StorageFullMarker: a ChunkStore whose RESOURCE_EXHAUSTED says of itself that the disk is full
// (IsStorageFull). Above the chunk store the same code also stands for limits that somebody set;
// a client is told which of the two it was.

#ifndef MNEME_SERVER_STORAGE_FULL_MARKER_H_
#define MNEME_SERVER_STORAGE_FULL_MARKER_H_

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "memory_store/chunk_store.h"

namespace mneme {

// Thread-safe as the store it owns.
class StorageFullMarker final : public ChunkStore {
 public:
  explicit StorageFullMarker(std::unique_ptr<ChunkStore> store) : store_(std::move(store)) {}

  absl::Status Write(const WriteBatch& batch, Durability durability) override;
  absl::Status Flush() override;
  absl::StatusOr<std::string> Get(Table table, absl::string_view key) override {
    return store_->Get(table, key);
  }
  std::vector<absl::StatusOr<std::string>> MultiGet(Table table,
                                                    absl::Span<const std::string> keys) override {
    return store_->MultiGet(table, keys);
  }
  absl::Status Scan(
      Table table, absl::string_view begin, absl::string_view end,
      const std::function<bool(absl::string_view key, absl::string_view value)>& visit) override {
    return store_->Scan(table, begin, end, visit);
  }
  int64_t used_bytes() override { return store_->used_bytes(); }
  int64_t free_bytes() override { return store_->free_bytes(); }

 private:
  const std::unique_ptr<ChunkStore> store_;
};

}  // namespace mneme

#endif  // MNEME_SERVER_STORAGE_FULL_MARKER_H_
