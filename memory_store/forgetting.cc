// MemoryStore: deletions, and the way of what was deleted off the disk. A deletion is one synced
// batch: the records of the document or memory go, and a purge record comes, which stands until no
// file and no memory holds a byte of what went. So a crash in between forgets nothing of the
// forgetting. Documents that other memories hold are dropped instead (deletion_plan.h), and only
// what nobody holds of them goes. See memory_store_impl.h for the locks.

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
namespace {

std::pair<std::string, std::string> RangeOf(PurgeId id) {
  if (id.document == kPagesOfMemory) return RecordKeyRange(id.memory);
  if (id.document == DocumentId{}) return RecordKeyRange(id.memory);
  return RecordKeyRange(DocumentKey{id.memory, id.document});
}

void AppendRanges(std::pair<std::string, std::string> range, std::vector<KeyRange>* ranges) {
  for (const Table table : {Table::kText, Table::kSegments, Table::kPages}) {
    ranges->push_back({table, range.first, range.second});
  }
}

void AppendCatalogRange(std::pair<std::string, std::string> range, std::vector<KeyRange>* ranges) {
  ranges->push_back({Table::kCatalog, std::move(range.first), std::move(range.second)});
}

std::pair<std::string, std::string> OneKey(std::string key) {
  std::string end = absl::StrCat(key, "\xff");
  return {std::move(key), std::move(end)};
}

// What the records of a memory or document lie in, its own record included.
void AppendRanges(PurgeId id, const PurgeRecord& record, std::vector<KeyRange>* ranges) {
  if (id.document == kPagesOfMemory) {
    auto [begin, end] = RangeOf(id);
    ranges->push_back({Table::kPages, std::move(begin), std::move(end)});
    return;
  }
  AppendRanges(RangeOf(id), ranges);
  if (id.document == DocumentId{}) {
    AppendCatalogRange(OneKey(MemoryKey(id.memory)), ranges);
    AppendCatalogRange(DocumentRecordKeyRange(id.memory), ranges);
    AppendCatalogRange(SnapshotKeyRange(id.memory), ranges);
  } else {
    AppendCatalogRange(OneKey(DocumentRecordKey({id.memory, id.document})), ranges);
  }
  for (const auto& [memory, document] : record.also) {
    const DocumentKey key{static_cast<MemoryId>(memory), static_cast<DocumentId>(document)};
    AppendRanges(RecordKeyRange(key), ranges);
    AppendCatalogRange(OneKey(DocumentRecordKey(key)), ranges);
  }
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
    const MemoryEntry* entry = impl.catalog.FindLiveMemory(memory);
    if (entry == nullptr) return NoMemory(memory);
    info = entry->info;
    record.pages = entry->totals.chunks + entry->dropped_totals.chunks;
  }
  const bool kept_pages = info.policy.retention == Retention::kKeep;
  info.display_name = update.display_name.value_or(info.display_name);
  info.policy.retention = update.retention.value_or(info.policy.retention);
  info.policy.ttl = update.ttl.value_or(info.policy.ttl);
  info.policy.quota_bytes = update.quota_bytes.value_or(info.policy.quota_bytes);
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
  CrashPoint("memory updated");
  absl::MutexLock lock(&impl.mutex_);
  MemoryEntry& entry = *impl.catalog.FindMemory(memory);
  entry.info = info;
  Catalog::UpdateExpiry(entry);
  impl.views.Clear();
  if (drops_pages) impl.AddPurge(id, record, {});
  return entry.Info();
}

Deletion MemoryStore::Impl::DeletionOf(PurgeId id, const PurgeRecord& record) const {
  Deletion deletion{.id = id, .tenant = record.tenant};
  DeletionReceipt& receipt = deletion.receipt;
  receipt.documents = record.documents;
  receipt.text_bytes = record.text_bytes;
  receipt.tokens = record.tokens;
  receipt.chunks = record.chunks;
  receipt.pages = record.pages;
  receipt.delete_time = absl::FromUnixMicros(record.delete_time_us);
  receipt.held_documents = record.held_documents;
  receipt.held_text_bytes = record.held_text_bytes;
  for (const uint64_t memory : record.held_by) {
    const MemoryEntry* entry = catalog.FindLiveMemory(static_cast<MemoryId>(memory));
    if (entry != nullptr) receipt.held_by.push_back(entry->info.id);
  }
  return deletion;
}

absl::StatusOr<Deletion> MemoryStore::DeleteMemory(MemoryId memory, bool everywhere) {
  absl::WriterMutexLock gate(&impl_->write_gate_);
  ASSIGN_OR_RETURN(DeletionPlan plan, impl_->PlanMemory(memory, everywhere));
  return impl_->Delete(std::move(plan));
}

absl::StatusOr<Deletion> MemoryStore::DeleteDocument(MemoryId memory, DocumentId document,
                                                     bool everywhere) {
  absl::WriterMutexLock gate(&impl_->write_gate_);
  ASSIGN_OR_RETURN(DeletionPlan plan, impl_->PlanDocument(memory, document, everywhere));
  return impl_->Delete(std::move(plan));
}

absl::StatusOr<Deletion> MemoryStore::DeleteDocument(DocumentId document, bool everywhere) {
  absl::WriterMutexLock gate(&impl_->write_gate_);
  MemoryId memory;
  {
    absl::ReaderMutexLock lock(&impl_->mutex_);
    const DocumentEntry* entry = impl_->catalog.FindDocument(document);
    if (entry == nullptr) return NoDocument(document);
    memory = entry->key.memory;
  }
  ASSIGN_OR_RETURN(DeletionPlan plan, impl_->PlanDocument(memory, document, everywhere));
  return impl_->Delete(std::move(plan));
}

absl::StatusOr<Deletion> MemoryStore::Impl::Delete(DeletionPlan plan) {
  plan.record.delete_time_us = absl::ToUnixMicros(clock.Now());
  WriteBatch batch;
  {
    absl::ReaderMutexLock lock(&mutex_);
    batch = BatchOf(plan);
  }
  RETURN_IF_ERROR(store.Write(batch, Durability::kSynced));
  CrashPoint(plan.deletes_memory() ? "memory deleted" : "document deleted");
  if (!plan.drops.empty()) CrashPoint("document dropped");
  if (!plan.cut_off.empty()) CrashPoint("document cut off");
  if (plan.keeps_memory) CrashPoint("memory kept for forks");

  absl::flat_hash_set<DocumentId> gone, changed;
  std::vector<PageId> pages;  // of the ends that documents lost
  Deletion deletion;
  {
    absl::MutexLock lock(&mutex_);
    // They show what goes, and hold its landmarks.
    views.Clear();
    deletion = DeletionOf(plan.id, plan.record);
    deletion.pending = plan.purges();
    for (const DeletionPlan::CutOff& cut : plan.cut_off) {
      deletion.dropped_documents.push_back(cut.key.document);
      const std::vector<DocumentId> erased = tails.Erase(cut.key.document, cut.keep_bytes);
      gone.insert(erased.begin(), erased.end());
      CutOffEnd(cut, &pages);
      changed.insert(cut.key.document);
    }
    for (const auto& [memory, document] : plan.drops) {
      DocumentEntry& entry = *catalog.FindDocument(document);
      if (entry.key.memory == memory) deletion.dropped_documents.push_back(document);
      catalog.Drop(*catalog.FindMemory(memory), entry, plan.before);
    }
    const absl::flat_hash_set<MemoryId> removed(plan.removed_memories.begin(),
                                                plan.removed_memories.end());
    for (const DocumentKey& key : plan.deleted) {
      gone.insert(key.document);
      const std::vector<DocumentId> erased = tails.Erase(key.document, -1);
      gone.insert(erased.begin(), erased.end());
      deletion.deleted_documents.push_back(key.document);
      if (!removed.contains(key.memory)) catalog.RemoveDocument(key.document);
    }
    if (plan.keeps_memory) {
      for (const auto& [uid, document] : catalog.FindMemory(plan.id.memory)->documents) {
        if (!document->dropped) deletion.dropped_documents.push_back(uid);
      }
      catalog.DropMemory(*catalog.FindMemory(plan.id.memory), plan.before);
    }
    for (const MemoryId memory : plan.removed_memories) catalog.RemoveMemory(memory);
    if (plan.purges()) AddPurge(plan.id, plan.record, gone);
    changed.insert(gone.begin(), gone.end());
    page_changes.Add(changed);
    tail_bytes_gauge.Set(static_cast<double>(tails.bytes()));
  }
  ErasePages(pages);
  EraseDocumentPages(gone);
  return deletion;
}

void MemoryStore::Impl::CutOffEnd(const DeletionPlan::CutOff& cut, std::vector<PageId>* pages) {
  DocumentEntry& entry = *catalog.FindDocument(cut.key.document);
  for (size_t i = cut.keep_segments; i < entry.segments.size(); ++i) {
    const std::vector<PageId> ids =
        PageIds(cut.key.document, static_cast<int64_t>(i), entry.segments[i].byte_end,
                entry.segments[i].chunk_count);
    pages->insert(pages->end(), ids.begin(), ids.end());
  }
  CountDocument(entry, -1);
  TruncateSegments(entry, cut.keep_segments);
  entry.stored_segments_end = cut.keep_segments;
  entry.durable_bytes = cut.keep_bytes;
  entry.sealed = false;
  entry.append_time = std::min(entry.append_time, cut.until);
  entry.text_end_unknown = false;
  CountDocument(entry, 1);
}

std::vector<Deletion> MemoryStore::PendingDeletions() const {
  absl::ReaderMutexLock lock(&impl_->mutex_);
  std::vector<Deletion> pending;
  for (const auto& [id, purge] : impl_->purges) {
    pending.push_back(impl_->DeletionOf(id, purge.record));
    pending.back().waits_for = purge.waits_for;
  }
  return pending;
}

absl::Status MemoryStore::Impl::PurgeFiles(const std::map<PurgeId, std::vector<KeyRange>>& ranges,
                                           std::atomic<bool>& cancel,
                                           std::map<PurgeId, std::string>* waiting) {
  std::vector<KeyRange> all;
  for (const auto& [id, of_one] : ranges) all.insert(all.end(), of_one.begin(), of_one.end());
  absl::Status status = store.Purge(all, cancel);
  if (!absl::IsDataLoss(status)) return status;
  const absl::Status mended = store.MendForPurge(
      all, [this](const LostRecords& lost) { return GiveUpRecords(lost); }, cancel);
  if (absl::IsCancelled(mended)) return mended;
  status = store.Purge(all, cancel);
  if (!absl::IsDataLoss(status)) return status;
  // Damage spoils what lies there alone.
  for (const auto& [id, of_one] : ranges) {
    const absl::Status purged = store.Purge(of_one, cancel);
    if (absl::IsDataLoss(purged)) {
      (*waiting)[id] = std::string((mended.ok() ? purged : mended).message());
    } else if (!purged.ok()) {
      return purged;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Deletion>> MemoryStore::Purge(std::atomic<bool>& cancel) {
  Impl& impl = *impl_;
  std::map<PurgeId, uint64_t> numbers;
  std::map<PurgeId, std::vector<KeyRange>> ranges;
  {
    absl::ReaderMutexLock lock(&impl.mutex_);
    for (const auto& [id, purge] : impl.purges) {
      if (purge.off_disk) continue;
      numbers[id] = purge.number;
      AppendRanges(id, purge.record, &ranges[id]);
    }
  }
  std::map<PurgeId, std::string> waiting;
  if (!ranges.empty()) {
    const absl::Status purged = impl.PurgeFiles(ranges, cancel, &waiting);
    if (!purged.ok()) {
      for (const auto& [id, number] : numbers) waiting[id] = std::string(purged.message());
    }
    {
      absl::MutexLock lock(&impl.mutex_);
      for (const auto& [id, number] : numbers) {
        const auto it = impl.purges.find(id);
        if (it != impl.purges.end()) it->second.waits_for = waiting[id];
      }
    }
    RETURN_IF_ERROR(purged);
    CrashPoint("purged from files");
  }

  // Nothing of the same id is deleted anew from here on.
  absl::ReaderMutexLock gate(&impl.write_gate_);
  // Off the disk nobody gets them into memory again; but who was reading may still be.
  std::vector<std::pair<PurgeId, PendingPurge>> off_disk;
  absl::flat_hash_set<DocumentId> documents, held;
  {
    absl::MutexLock lock(&impl.mutex_);
    for (auto& [id, purge] : impl.purges) {
      const auto it = numbers.find(id);
      purge.off_disk |=
          it != numbers.end() && it->second == purge.number && purge.waits_for.empty();
      if (!purge.off_disk) continue;
      off_disk.emplace_back(id, purge);
      documents.insert(purge.documents.begin(), purge.documents.end());
    }
    held = impl.catalog.landmark_blocks().Held(documents);
  }
  held.merge(impl.PagesHeld(documents));
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
  for (const auto& [id, purge] : off_disk) batch.Delete(Table::kCatalog, PurgeKey(id));
  RETURN_IF_ERROR(impl.store.Write(batch, Durability::kSynced));
  CrashPoint("purge recorded");
  absl::MutexLock lock(&impl.mutex_);
  for (const auto& [id, purge] : off_disk) {
    done.push_back(impl.DeletionOf(id, purge.record));
    done.back().pending = false;
    // What others hold has not gone.
    if (purge.record.held_documents == 0) done.back().receipt.purge_time = now;
  }
  for (const Deletion& deletion : done) impl.purges.erase(deletion.id);
  return done;
}

}  // namespace mneme
