// MemoryStore: forks and snapshots. Both are one record that names a moment of a memory; what was
// there at that moment follows from the documents' own records (past_views.cc).

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/crash_point.h"
#include "common/status_macros.h"
#include "memory_store/keys.h"
#include "memory_store/memory_store.h"
#include "memory_store/memory_store_impl.h"
#include "memory_store/records.h"

namespace mneme {

absl::StatusOr<absl::Time> MemoryStore::Impl::FixMomentOf(const ReadSource& source) {
  ASSIGN_OR_RETURN(const absl::Time as_of, FixMoment(source.as_of));
  absl::ReaderMutexLock lock(&mutex_);
  const MemoryEntry* memory = catalog.FindLiveMemory(source.memory);
  if (memory == nullptr) return NoMemory(source.memory);
  const std::string id = memory->info.id;
  // What a fork holds was there before it.
  while (memory->base != nullptr) memory = memory->base;
  if (as_of < memory->info.create_time) {
    return absl::InvalidArgumentError(absl::StrCat(
        "as_of ", absl::FormatTime(as_of, absl::UTCTimeZone()), " is before memory \"", id,
        "\" began: ", absl::FormatTime(memory->info.create_time, absl::UTCTimeZone())));
  }
  return as_of;
}

absl::StatusOr<MemoryInfo> MemoryStore::ForkMemory(const ReadSource& source, const std::string& id,
                                                   const std::string& display_name) {
  Impl& impl = *impl_;
  // Exclusive: what was dropped was dropped before the fork or after it.
  absl::WriterMutexLock gate(&impl.write_gate_);
  ASSIGN_OR_RETURN(const absl::Time as_of, impl.FixMomentOf(source));
  MemoryInfo info;
  {
    absl::ReaderMutexLock lock(&impl.mutex_);
    const MemoryEntry* base = impl.catalog.FindLiveMemory(source.memory);
    if (base == nullptr) return NoMemory(source.memory);
    info.tenant = base->info.tenant;
    info.policy = base->info.policy;
    info.base = MemoryBase{.memory = source.memory, .memory_id = base->info.id, .as_of = as_of};
    if (impl.catalog.FindMemory(info.tenant, id) != nullptr) {
      return absl::AlreadyExistsError(
          absl::StrCat("memory \"", id, "\" of tenant \"", info.tenant, "\" exists"));
    }
    int depth = 1;
    for (const MemoryEntry* m = base; m->base != nullptr; m = m->base) ++depth;
    if (depth > impl.options.fork_depth_max) {
      return absl::FailedPreconditionError(
          absl::StrCat("memory \"", base->info.id, "\" is a fork at depth ", depth - 1,
                       " (a fork of a fork is at depth 2); limit ", impl.options.fork_depth_max));
    }
  }
  ASSIGN_OR_RETURN(info.uid, impl.NewMemoryId());
  info.id = id;
  info.display_name = display_name;
  info.create_time = absl::FromUnixMicros(absl::ToUnixMicros(impl.clock.Now()));
  const std::string key = MemoryKey(info.uid);
  WriteBatch batch;
  batch.Put(Table::kCatalog, key, EncodeRecord(key, RecordOf(info)));
  RETURN_IF_ERROR(impl.store.Write(batch, Durability::kSynced));
  CrashPoint("memory forked");
  absl::MutexLock lock(&impl.mutex_);
  MemoryEntry* fork = impl.catalog.AddMemory(info, impl.options.landmark_bytes);
  impl.catalog.LinkFork(*fork);
  return fork->Info();
}

absl::StatusOr<SnapshotInfo> MemoryStore::CreateSnapshot(const ReadSource& source,
                                                         const std::string& id) {
  Impl& impl = *impl_;
  absl::WriterMutexLock gate(&impl.write_gate_);
  ASSIGN_OR_RETURN(const absl::Time as_of, impl.FixMomentOf(source));
  const SnapshotInfo info{id, as_of, absl::FromUnixMicros(absl::ToUnixMicros(impl.clock.Now()))};
  {
    absl::ReaderMutexLock lock(&impl.mutex_);
    const MemoryEntry* memory = impl.catalog.FindLiveMemory(source.memory);
    if (memory == nullptr) return NoMemory(source.memory);
    if (memory->snapshots.contains(id)) {
      return absl::AlreadyExistsError(
          absl::StrCat("snapshot \"", id, "\" of memory \"", memory->info.id, "\" exists"));
    }
    if (static_cast<int64_t>(memory->snapshots.size()) >= impl.options.snapshots_per_memory_max) {
      return absl::ResourceExhaustedError(
          absl::StrCat("memory \"", memory->info.id, "\" has ", memory->snapshots.size(),
                       " snapshots; limit ", impl.options.snapshots_per_memory_max));
    }
  }
  const std::string key = SnapshotKey(source.memory, id);
  WriteBatch batch;
  batch.Put(Table::kCatalog, key,
            EncodeRecord(key, SnapshotRecord{absl::ToUnixMicros(info.as_of),
                                             absl::ToUnixMicros(info.create_time)}));
  RETURN_IF_ERROR(impl.store.Write(batch, Durability::kSynced));
  CrashPoint("snapshot created");
  absl::MutexLock lock(&impl.mutex_);
  impl.catalog.FindMemory(source.memory)->snapshots[id] = info;
  return info;
}

absl::StatusOr<SnapshotInfo> MemoryStore::GetSnapshot(MemoryId memory,
                                                      const std::string& id) const {
  absl::ReaderMutexLock lock(&impl_->mutex_);
  const MemoryEntry* entry = impl_->catalog.FindLiveMemory(memory);
  if (entry == nullptr) return NoMemory(memory);
  const auto it = entry->snapshots.find(id);
  if (it == entry->snapshots.end()) {
    return absl::NotFoundError(
        absl::StrCat("no snapshot \"", id, "\" of memory \"", entry->info.id, "\""));
  }
  return it->second;
}

std::vector<SnapshotInfo> MemoryStore::ListSnapshots(MemoryId memory, const std::string& after_id,
                                                     int limit) const {
  absl::ReaderMutexLock lock(&impl_->mutex_);
  std::vector<SnapshotInfo> list;
  const MemoryEntry* entry = impl_->catalog.FindLiveMemory(memory);
  if (entry == nullptr) return list;
  for (auto it = entry->snapshots.upper_bound(after_id);
       it != entry->snapshots.end() && static_cast<int>(list.size()) < limit; ++it) {
    list.push_back(it->second);
  }
  return list;
}

absl::Status MemoryStore::DeleteSnapshot(MemoryId memory, const std::string& id) {
  Impl& impl = *impl_;
  absl::WriterMutexLock gate(&impl.write_gate_);
  RETURN_IF_ERROR(GetSnapshot(memory, id).status());
  WriteBatch batch;
  batch.frees_space = true;
  batch.Delete(Table::kCatalog, SnapshotKey(memory, id));
  RETURN_IF_ERROR(impl.store.Write(batch, Durability::kSynced));
  CrashPoint("snapshot deleted");
  absl::MutexLock lock(&impl.mutex_);
  impl.catalog.FindMemory(memory)->snapshots.erase(id);
  return absl::OkStatus();
}

}  // namespace mneme
