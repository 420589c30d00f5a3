// MemoryStore: deletions, and the way of what was deleted off the disk. A deletion is one synced
// batch: the records of the document or memory go, and a purge record comes, which stands until no
// file and no memory holds a byte of what went. So a crash in between forgets nothing of the
// forgetting. See memory_store_impl.h for the locks.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "memory_store/keys.h"
#include "memory_store/memory_store.h"
#include "memory_store/memory_store_impl.h"
#include "memory_store/records.h"

namespace mneme {
namespace {

DeletionReceipt ReceiptOf(const PurgeRecord& record) {
  DeletionReceipt receipt;
  receipt.documents = record.documents;
  receipt.text_bytes = record.text_bytes;
  receipt.tokens = record.tokens;
  receipt.chunks = record.chunks;
  receipt.pages = record.pages;
  receipt.delete_time = absl::FromUnixMicros(record.delete_time_us);
  return receipt;
}

int64_t PagesOnDisk(const MemoryPolicy& policy, int64_t chunks) {
  return policy.retention == Retention::kKeep ? chunks : 0;
}

Deletion DeletionOf(PurgeId id, const PurgeRecord& record) {
  return {.id = id, .tenant = record.tenant, .receipt = ReceiptOf(record)};
}

std::pair<std::string, std::string> RangeOf(PurgeId id) {
  if (id.document == kPagesOfMemory) return RecordKeyRange(id.memory);
  if (id.document == DocumentId{}) return RecordKeyRange(id.memory);
  return RecordKeyRange(DocumentKey{id.memory, id.document});
}

// What the records of a memory or document lie in, its own record included.
void AppendRanges(PurgeId id, std::vector<KeyRange>* ranges) {
  if (id.document == kPagesOfMemory) {
    auto [begin, end] = RangeOf(id);
    ranges->push_back({Table::kPages, std::move(begin), std::move(end)});
    return;
  }
  for (const Table table : {Table::kText, Table::kSegments, Table::kPages}) {
    auto [begin, end] = RangeOf(id);
    ranges->push_back({table, std::move(begin), std::move(end)});
  }
  if (id.document == DocumentId{}) {
    ranges->push_back(
        {Table::kCatalog, MemoryKey(id.memory), absl::StrCat(MemoryKey(id.memory), "\xff")});
    auto [begin, end] = DocumentRecordKeyRange(id.memory);
    ranges->push_back({Table::kCatalog, std::move(begin), std::move(end)});
  } else {
    const std::string key = DocumentRecordKey({id.memory, id.document});
    ranges->push_back({Table::kCatalog, key, absl::StrCat(key, "\xff")});
  }
}

// Deletes every record of a memory or document, and notes that it is to be purged.
WriteBatch DeletionBatch(PurgeId id, const PurgeRecord& record) {
  WriteBatch batch;
  batch.frees_space = true;
  if (id.document == DocumentId{}) {
    batch.Delete(Table::kCatalog, MemoryKey(id.memory));
    auto [begin, end] = DocumentRecordKeyRange(id.memory);
    batch.DeleteRange(Table::kCatalog, std::move(begin), std::move(end));
  } else {
    batch.Delete(Table::kCatalog, DocumentRecordKey({id.memory, id.document}));
  }
  for (const Table table : {Table::kText, Table::kSegments, Table::kPages}) {
    auto [begin, end] = RangeOf(id);
    batch.DeleteRange(table, std::move(begin), std::move(end));
  }
  const std::string key = PurgeKey(id);
  batch.Put(Table::kCatalog, key, EncodeRecord(key, record));
  return batch;
}

}  // namespace

void MemoryStore::Impl::AddPurge(PurgeId id, PurgeRecord record,
                                 absl::flat_hash_set<DocumentId> documents) {
  purges[id] = {.record = std::move(record),
                .number = ++last_purge_number,
                .documents = std::move(documents)};
}

absl::StatusOr<MemoryInfo> MemoryStore::UpdateMemory(MemoryId memory, const MemoryUpdate& update) {
  Impl& impl = *impl_;
  // Exclusive: no page may be on its way to the disk.
  absl::WriterMutexLock gate(&impl.write_gate_);
  MemoryInfo info;
  PurgeRecord record;
  {
    absl::ReaderMutexLock lock(&impl.mutex_);
    const MemoryEntry* entry = impl.catalog.FindMemory(memory);
    if (entry == nullptr) {
      return absl::NotFoundError(absl::StrCat("no memory ", static_cast<uint64_t>(memory)));
    }
    info = entry->info;
    record.pages = entry->totals.chunks;
  }
  const bool kept_pages = info.policy.retention == Retention::kKeep;
  info.display_name = update.display_name.value_or(info.display_name);
  info.policy.retention = update.retention.value_or(info.policy.retention);
  info.policy.ttl = update.ttl.value_or(info.policy.ttl);
  const bool drops_pages = kept_pages && info.policy.retention == Retention::kText;
  const std::string key = MemoryKey(memory);
  WriteBatch batch;
  batch.Put(Table::kCatalog, key, EncodeRecord(key, RecordOf(info)));
  const PurgeId id{memory, kPagesOfMemory};
  if (drops_pages) {
    record.tenant = info.tenant;
    record.delete_time_us = absl::ToUnixMicros(impl.clock.Now());
    auto [begin, end] = RangeOf(id);
    batch.DeleteRange(Table::kPages, std::move(begin), std::move(end));
    batch.Put(Table::kCatalog, PurgeKey(id), EncodeRecord(PurgeKey(id), record));
    batch.frees_space = true;
  }
  RETURN_IF_ERROR(impl.store.Write(batch, Durability::kSynced));
  absl::MutexLock lock(&impl.mutex_);
  MemoryEntry& entry = *impl.catalog.FindMemory(memory);
  entry.info = info;
  Catalog::UpdateExpiry(entry);
  if (drops_pages) impl.AddPurge(id, record, {});
  return info;
}

absl::StatusOr<Deletion> MemoryStore::DeleteMemory(MemoryId memory) {
  Impl& impl = *impl_;
  absl::WriterMutexLock gate(&impl.write_gate_);
  const PurgeId id{memory, DocumentId{}};
  PurgeRecord record;
  {
    absl::ReaderMutexLock lock(&impl.mutex_);
    const MemoryEntry* entry = impl.catalog.FindMemory(memory);
    if (entry == nullptr) {
      return absl::NotFoundError(absl::StrCat("no memory ", static_cast<uint64_t>(memory)));
    }
    record.tenant = entry->info.tenant;
    record.documents = entry->totals.documents;
    record.text_bytes = entry->totals.durable_bytes;
    record.tokens = entry->totals.tokens;
    record.chunks = entry->totals.chunks;
    record.pages = PagesOnDisk(entry->info.policy, record.chunks);
  }
  record.delete_time_us = absl::ToUnixMicros(impl.clock.Now());
  RETURN_IF_ERROR(impl.store.Write(DeletionBatch(id, record), Durability::kSynced));

  absl::flat_hash_set<DocumentId> gone;
  {
    absl::MutexLock lock(&impl.mutex_);
    for (const auto& [uid, document] : impl.catalog.FindMemory(memory)->documents) gone.insert(uid);
    impl.catalog.RemoveMemory(memory);
    impl.AddPurge(id, record, gone);
  }
  impl.ErasePages(gone);
  return DeletionOf(id, record);
}

absl::StatusOr<Deletion> MemoryStore::DeleteDocument(DocumentId document) {
  Impl& impl = *impl_;
  absl::WriterMutexLock gate(&impl.write_gate_);
  PurgeId id;
  PurgeRecord record;
  {
    absl::ReaderMutexLock lock(&impl.mutex_);
    const DocumentEntry* entry = impl.catalog.FindDocument(document);
    if (entry == nullptr) {
      return absl::NotFoundError(absl::StrCat("no document ", static_cast<uint64_t>(document)));
    }
    id = {entry->key.memory, entry->key.document};
    record.tenant = entry->memory->info.tenant;
    record.documents = 1;
    record.text_bytes = entry->durable_bytes;
    record.tokens = entry->token_count;
    record.chunks = entry->chunk_count();
    record.pages = PagesOnDisk(entry->memory->info.policy, record.chunks);
  }
  record.delete_time_us = absl::ToUnixMicros(impl.clock.Now());
  RETURN_IF_ERROR(impl.store.Write(DeletionBatch(id, record), Durability::kSynced));
  {
    absl::MutexLock lock(&impl.mutex_);
    impl.catalog.RemoveDocument(document);
    impl.AddPurge(id, record, {document});
  }
  impl.ErasePages({document});
  return DeletionOf(id, record);
}

std::vector<Deletion> MemoryStore::PendingDeletions() const {
  absl::ReaderMutexLock lock(&impl_->mutex_);
  std::vector<Deletion> pending;
  for (const auto& [id, purge] : impl_->purges) pending.push_back(DeletionOf(id, purge.record));
  return pending;
}

absl::StatusOr<std::vector<Deletion>> MemoryStore::Purge(std::atomic<bool>& cancel) {
  Impl& impl = *impl_;
  std::map<PurgeId, uint64_t> numbers;
  std::vector<KeyRange> ranges;
  {
    absl::ReaderMutexLock lock(&impl.mutex_);
    for (const auto& [id, purge] : impl.purges) {
      if (purge.off_disk) continue;
      numbers[id] = purge.number;
      AppendRanges(id, &ranges);
    }
  }
  RETURN_IF_ERROR(impl.store.Purge(ranges, cancel));

  // Nothing of the same id is deleted anew from here on.
  absl::ReaderMutexLock gate(&impl.write_gate_);
  // Off the disk nobody gets them into memory again; but who was reading may still be.
  std::vector<std::pair<PurgeId, PendingPurge>> off_disk;
  absl::flat_hash_set<DocumentId> documents, held;
  {
    absl::MutexLock lock(&impl.mutex_);
    for (auto& [id, purge] : impl.purges) {
      const auto it = numbers.find(id);
      purge.off_disk |= it != numbers.end() && it->second == purge.number;
      if (!purge.off_disk) continue;
      off_disk.emplace_back(id, purge);
      documents.insert(purge.documents.begin(), purge.documents.end());
    }
    held = impl.catalog.landmark_blocks().Held(documents);
  }
  held.merge(impl.pool.Held(documents));
  if (impl.device_pool != nullptr) held.merge(impl.device_pool->Held(documents));
  std::erase_if(off_disk, [&held](const auto& item) {
    return std::any_of(held.begin(), held.end(), [&item](DocumentId document) {
      return item.second.documents.contains(document);
    });
  });
  if (off_disk.empty()) return std::vector<Deletion>();

  WriteBatch batch;
  batch.frees_space = true;
  std::vector<Deletion> done;
  const absl::Time now = impl.clock.Now();
  for (const auto& [id, purge] : off_disk) {
    batch.Delete(Table::kCatalog, PurgeKey(id));
    done.push_back(DeletionOf(id, purge.record));
    done.back().receipt.purge_time = now;
  }
  RETURN_IF_ERROR(impl.store.Write(batch, Durability::kSynced));
  absl::MutexLock lock(&impl.mutex_);
  for (const Deletion& deletion : done) impl.purges.erase(deletion.id);
  return done;
}

}  // namespace mneme
