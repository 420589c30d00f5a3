// MemoryStore: what is stored, in numbers: by tier, by memory, by tenant. See memory_store_impl.h
// for the locks.

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "common/status_macros.h"
#include "memory_store/memory_store.h"
#include "memory_store/memory_store_impl.h"

namespace mneme {
namespace {

void AddTo(const DocumentInfo& info, MemoryStore::Totals* sum) {
  sum->documents += 1;
  sum->durable_bytes += info.durable_bytes;
  sum->visible_bytes += info.visible_bytes;
  sum->tokens += info.token_count;
  sum->chunks += info.chunk_count;
  sum->damaged_documents += info.damaged ? 1 : 0;
}

// All that is stored of a memory: also what it has dropped and forks of it hold.
void AddTo(const MemoryEntry& memory, MemoryStore::Totals* sum) {
  if (!memory.deleted_before.has_value()) sum->memories += 1;
  for (const MemoryStore::Totals* of : {&memory.totals, &memory.dropped_totals}) {
    sum->documents += of->documents;
    sum->durable_bytes += of->durable_bytes;
    sum->visible_bytes += of->visible_bytes;
    sum->tokens += of->tokens;
    sum->chunks += of->chunks;
    sum->damaged_documents += of->damaged_documents;
  }
}

}  // namespace

std::vector<TierUse> MemoryStore::tiers() const {
  const int64_t disk_used = impl_->store.used_bytes();
  std::vector<TierUse> tiers;
  if (impl_->device_pool != nullptr) {
    tiers.push_back(
        {"device", impl_->device_pool->used_bytes(), impl_->device_pool->limit_bytes()});
    tiers.push_back({"device_landmarks", impl_->device_landmarks->used_bytes(),
                     impl_->device_landmarks->limit_bytes()});
  }
  tiers.push_back({"host", impl_->pool.used_bytes(), impl_->pool.limit_bytes()});
  int64_t disk_limit = disk_used + std::max<int64_t>(0, impl_->store.free_bytes());
  if (impl_->options.disk_bytes_max > 0) {
    disk_limit = std::min(disk_limit, impl_->options.disk_bytes_max);
  }
  tiers.push_back({"disk", disk_used, disk_limit});
  tiers.push_back({"host_landmarks", landmark_bytes(), impl_->options.host_landmark_bytes_max});
  return tiers;
}

int64_t MemoryStore::disk_used_bytes() const { return impl_->store.used_bytes(); }
int64_t MemoryStore::disk_free_bytes() const { return impl_->store.free_bytes(); }
int64_t MemoryStore::landmark_bytes() const {
  return totals().chunks * impl_->options.landmark_bytes;
}

MemoryStore::Totals MemoryStore::totals() const {
  absl::ReaderMutexLock lock(&impl_->mutex_);
  Totals sum;
  for (const auto& [uid, memory] : impl_->catalog.memories()) AddTo(*memory, &sum);
  sum.appended_bytes = impl_->catalog.appended_bytes();
  return sum;
}

int64_t MemoryStore::tail_bytes() const {
  absl::ReaderMutexLock lock(&impl_->mutex_);
  return impl_->tails.bytes();
}

MemoryStore::Totals MemoryStore::tenant_totals(const std::string& tenant) const {
  absl::ReaderMutexLock lock(&impl_->mutex_);
  Totals sum;
  for (const auto& [uid, memory] : impl_->catalog.memories()) {
    if (memory->info.tenant == tenant) AddTo(*memory, &sum);
  }
  sum.appended_bytes = impl_->catalog.appended_bytes(tenant);
  return sum;
}

absl::StatusOr<int64_t> MemoryStore::quota_bytes(MemoryId memory) const {
  absl::ReaderMutexLock lock(&impl_->mutex_);
  const MemoryEntry* entry = impl_->catalog.FindMemory(memory);
  if (entry == nullptr) return NoMemory(memory);
  return entry->info.policy.quota_bytes;
}

absl::StatusOr<MemoryStore::Totals> MemoryStore::totals(MemoryId memory) const {
  ASSIGN_OR_RETURN(Totals sum, own_totals(memory));
  std::vector<std::pair<DocumentInfo, absl::Time>> shared;
  {
    absl::ReaderMutexLock lock(&impl_->mutex_);
    const MemoryEntry* entry = impl_->catalog.FindLiveMemory(memory);
    if (entry == nullptr) return NoMemory(memory);
    for (const MemoryEntry* m = entry->base; m != nullptr; m = m->base) {
      for (const auto& [uid, document] : m->documents) {
        const std::optional<absl::Time> until = SeenUntil(*entry, *document);
        if (!until.has_value()) continue;
        if (document->append_time <= *until) {
          AddTo(document->Info(), &sum);
        } else {
          shared.emplace_back(document->Info(), *until);
        }
      }
    }
  }
  for (auto& [info, until] : shared) {
    const absl::StatusOr<DocumentInfo> cut = impl_->CutInfo(std::move(info), until);
    if (absl::IsNotFound(cut.status())) continue;  // gone by now
    RETURN_IF_ERROR(cut.status());
    AddTo(*cut, &sum);
  }
  return sum;
}

absl::StatusOr<MemoryStore::Totals> MemoryStore::own_totals(MemoryId memory) const {
  absl::ReaderMutexLock lock(&impl_->mutex_);
  const MemoryEntry* entry = impl_->catalog.FindLiveMemory(memory);
  if (entry == nullptr) return NoMemory(memory);
  return entry->totals;
}

}  // namespace mneme
