#include "server/storage_full_marker.h"

#include "common/status_facts.h"

namespace mneme {
namespace {

// To a chunk store the code means one thing (chunk_store.h): no space.
absl::Status Marked(absl::Status status) {
  return absl::IsResourceExhausted(status) ? WithStorageFull(std::move(status)) : status;
}

}  // namespace

absl::Status StorageFullMarker::Write(const WriteBatch& batch, Durability durability) {
  return Marked(store_->Write(batch, durability));
}

absl::Status StorageFullMarker::Flush() { return Marked(store_->Flush()); }

}  // namespace mneme
