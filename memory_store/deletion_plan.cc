#include "memory_store/deletion_plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "memory_store/memory_store_impl.h"

namespace mneme {
namespace {

// Deletes records [range) of text and of what is derived from it.
void DeleteRecords(const std::pair<std::string, std::string>& range, WriteBatch* batch) {
  for (const Table table : {Table::kText, Table::kSegments, Table::kPages}) {
    batch->DeleteRange(table, range.first, range.second);
  }
}

void DeleteCatalogRange(std::pair<std::string, std::string> range, WriteBatch* batch) {
  batch->DeleteRange(Table::kCatalog, std::move(range.first), std::move(range.second));
}

int64_t PagesOnDisk(const DocumentEntry& document, int64_t chunks) {
  return document.memory->info.policy.retention == Retention::kKeep ? chunks : 0;
}

// Counts what goes of a document: its text from byte `keep_bytes` on, and the chunks that begin
// there or behind. One that begins before is held, if only in part.
void CountGone(const DocumentEntry& document, int64_t keep_bytes, int64_t chunk_tokens,
               PurgeRecord* record) {
  record->text_bytes += document.durable_bytes - keep_bytes;
  for (size_t i = 0; i < document.segments.size(); ++i) {
    const SegmentEntry& segment = document.segments[i];
    if (segment.byte_end <= keep_bytes) continue;
    int64_t held_chunks = 0;
    if (segment.byte_begin < keep_bytes) {
      const absl::Span<const int64_t> begins =
          document.memory->landmarks.ByteBegin(document.key.document, static_cast<int64_t>(i));
      held_chunks = std::lower_bound(begins.begin(), begins.end(), keep_bytes) - begins.begin();
    }
    const int64_t chunks = segment.chunk_count - held_chunks;
    record->tokens += std::max<int64_t>(segment.token_count - held_chunks * chunk_tokens, 0);
    record->chunks += chunks;
    record->pages += PagesOnDisk(document, chunks);
  }
}

}  // namespace

void DeleteEnd(const DeletionPlan::CutOff& cut, Table table, WriteBatch* batch) {
  auto [begin, end] = RecordKeyRange(cut.key);
  if (table == Table::kText) {
    end = absl::StrCat(TextKey(cut.key, cut.keep_bytes), "\xff");  // the newest text comes first
  } else if (table == Table::kSegments) {
    begin = SegmentKey(cut.key, cut.keep_segments);
  } else {
    begin = PageKey(cut.key, cut.keep_segments, 0);
  }
  batch->DeleteRange(table, std::move(begin), std::move(end));
}

// What becomes of one document when some memories drop it; `held_by` gets who holds it then.
struct MemoryStore::Impl::Dropping {
  DocumentKey key;
  bool held = false;
  absl::Time until;  // the latest moment that is held
};

std::vector<MemoryStore::Impl::Dropping> MemoryStore::Impl::Droppings(
    absl::Span<const DocumentId> documents, const absl::flat_hash_set<MemoryId>& by,
    DeletionPlan* plan) const {
  std::vector<Dropping> droppings;
  absl::flat_hash_set<uint64_t> held_by;
  for (const DocumentId uid : documents) {
    const DocumentEntry& document = *catalog.FindDocument(uid);
    Dropping dropping{.key = document.key};
    for (const MemoryEntry* holder : Holders(document, by)) {
      const absl::Time until = *SeenUntil(*holder, document);
      dropping.until = dropping.held ? std::max(dropping.until, until) : until;
      dropping.held = true;
      if (held_by.size() < DeletionReceipt::kHeldByMax) {
        held_by.insert(static_cast<uint64_t>(holder->info.uid));
      }
    }
    droppings.push_back(dropping);
    if (!dropping.held) continue;
    for (const MemoryId memory : by) {
      const MemoryEntry& entry = *catalog.FindMemory(memory);
      const bool goes = plan->deletes_memory() && memory == plan->id.memory;
      if (!goes && SeenUntil(entry, document)) plan->drops.emplace_back(memory, uid);
    }
  }
  plan->record.held_by.assign(held_by.begin(), held_by.end());
  std::sort(plan->record.held_by.begin(), plan->record.held_by.end());
  std::sort(plan->drops.begin(), plan->drops.end());
  return droppings;
}

absl::Status MemoryStore::Impl::FinishPlan(absl::Span<const Dropping> droppings,
                                           DeletionPlan* plan) {
  for (const Dropping& dropping : droppings) {
    int64_t keep_bytes = std::numeric_limits<int64_t>::max();
    if (dropping.held && dropping.until != absl::InfiniteFuture()) {
      const absl::StatusOr<int64_t> cut = CutAt(dropping.key.document, dropping.until);
      // Nobody can say where damaged text ended then: all of it stays until the last drops it.
      if (!cut.ok() && !absl::IsDataLoss(cut.status())) return cut.status();
      if (cut.ok()) keep_bytes = *cut;
    }
    absl::ReaderMutexLock lock(&mutex_);
    const DocumentEntry& document = *catalog.FindDocument(dropping.key.document);
    const bool foreign = dropping.key.memory != plan->id.memory;
    const std::pair<uint64_t, uint64_t> also(static_cast<uint64_t>(dropping.key.memory),
                                             static_cast<uint64_t>(dropping.key.document));
    if (!dropping.held) {
      plan->deleted.push_back(dropping.key);
      plan->record.documents += 1;
      CountGone(document, 0, options.chunk_tokens, &plan->record);
      if (foreign) plan->record.also.push_back(also);
      continue;
    }
    plan->record.held_documents += 1;
    plan->record.held_text_bytes += std::min(keep_bytes, document.durable_bytes);
    if (keep_bytes >= document.durable_bytes) continue;
    DeletionPlan::CutOff cut{
        .key = dropping.key, .until = dropping.until, .keep_bytes = keep_bytes};
    while (cut.keep_segments < static_cast<int64_t>(document.segments.size()) &&
           document.segments[cut.keep_segments].byte_end <= keep_bytes) {
      ++cut.keep_segments;
    }
    cut.keep_segments = std::max<int64_t>(cut.keep_segments - 1, 0);
    CountGone(document, keep_bytes, options.chunk_tokens, &plan->record);
    plan->cut_off.push_back(cut);
    if (foreign) plan->record.also.push_back(also);
  }
  return absl::OkStatus();
}

absl::StatusOr<DeletionPlan> MemoryStore::Impl::PlanDocument(MemoryId memory, DocumentId document,
                                                             bool everywhere) {
  DeletionPlan plan;
  plan.id = {memory, document};
  plan.before = NextMemoryId();
  std::vector<Dropping> droppings;
  {
    absl::ReaderMutexLock lock(&mutex_);
    MemoryEntry* entry = catalog.FindMemory(memory);
    const DocumentEntry* found = catalog.FindDocument(document);
    // What has expired goes from every memory, also when its own has dropped it.
    const bool is_own = found != nullptr && found->memory == entry && everywhere;
    if (entry == nullptr || found == nullptr || (!is_own && !SeenUntil(*entry, *found)))
      return NoDocument(document);
    plan.record.tenant = entry->info.tenant;
    absl::flat_hash_set<MemoryId> by = {memory};
    if (everywhere) {
      for (const MemoryEntry* fork : WithForks(*entry)) by.insert(fork->info.uid);
    }
    droppings = Droppings({document}, by, &plan);
  }
  RETURN_IF_ERROR(FinishPlan(droppings, &plan));
  return plan;
}

absl::StatusOr<DeletionPlan> MemoryStore::Impl::PlanMemory(MemoryId memory, bool everywhere) {
  DeletionPlan plan;
  plan.id = {memory, DocumentId{}};
  plan.before = NextMemoryId();
  std::vector<Dropping> droppings;
  {
    absl::ReaderMutexLock lock(&mutex_);
    MemoryEntry* entry = catalog.FindLiveMemory(memory);
    if (entry == nullptr) return NoMemory(memory);
    plan.record.tenant = entry->info.tenant;
    absl::flat_hash_set<MemoryId> by = {memory};
    if (everywhere) {
      for (const MemoryEntry* fork : WithForks(*entry)) by.insert(fork->info.uid);
    }
    std::vector<DocumentId> documents;
    for (const MemoryEntry* m = entry; m != nullptr; m = m->base) {
      for (const auto& [uid, document] : m->documents) {
        if (SeenUntil(*entry, *document)) documents.push_back(uid);
      }
    }
    droppings = Droppings(documents, by, &plan);
    plan.keeps_memory = !entry->forks.empty();
    for (const MemoryEntry* m = entry; !plan.keeps_memory && m != nullptr; m = m->base) {
      const bool stays = m != entry && (!m->deleted_before.has_value() || m->forks.size() > 1);
      if (stays) break;
      plan.removed_memories.push_back(m->info.uid);
    }
  }
  RETURN_IF_ERROR(FinishPlan(droppings, &plan));
  return plan;
}

WriteBatch MemoryStore::Impl::BatchOf(const DeletionPlan& plan) const {
  WriteBatch batch;
  batch.frees_space = true;
  const absl::flat_hash_set<MemoryId> removed(plan.removed_memories.begin(),
                                              plan.removed_memories.end());
  for (const MemoryId memory : plan.removed_memories) {
    batch.Delete(Table::kCatalog, MemoryKey(memory));
    DeleteCatalogRange(DocumentRecordKeyRange(memory), &batch);
    DeleteCatalogRange(DropKeyRange(memory), &batch);
    DeleteCatalogRange(SnapshotKeyRange(memory), &batch);
    DeleteRecords(RecordKeyRange(memory), &batch);
  }
  if (plan.keeps_memory) {
    MemoryRecord record = RecordOf(catalog.FindMemory(plan.id.memory)->info);
    record.id.clear();
    record.display_name.clear();
    record.deleted_before = static_cast<uint64_t>(plan.before);
    const std::string key = MemoryKey(plan.id.memory);
    batch.Put(Table::kCatalog, key, EncodeRecord(key, record));
    DeleteCatalogRange(SnapshotKeyRange(plan.id.memory), &batch);
  }
  for (const DocumentKey& key : plan.deleted) {
    if (removed.contains(key.memory)) continue;
    batch.Delete(Table::kCatalog, DocumentRecordKey(key));
    DeleteRecords(RecordKeyRange(key), &batch);
    // Nobody needs to be told any more that somebody has dropped it.
    std::vector<const MemoryEntry*> related = {catalog.FindMemory(key.memory)};
    for (size_t i = 0; i < related.size(); ++i) {
      if (related[i]->dropped.contains(key.document)) {
        batch.Delete(Table::kCatalog, DropKey(related[i]->info.uid, key.document));
      }
      for (const auto& [uid, fork] : related[i]->forks) related.push_back(fork);
    }
  }
  for (const DeletionPlan::CutOff& cut : plan.cut_off) {
    for (const Table table : {Table::kText, Table::kSegments, Table::kPages}) {
      DeleteEnd(cut, table, &batch);
    }
  }
  for (const auto& [memory, document] : plan.drops) {
    const std::string key = DropKey(memory, document);
    batch.Put(Table::kCatalog, key,
              EncodeRecord(key, DropRecord{static_cast<uint64_t>(plan.before)}));
  }
  if (plan.purges()) {
    const std::string key = PurgeKey(plan.id);
    batch.Put(Table::kCatalog, key, EncodeRecord(key, plan.record));
  }
  return batch;
}

}  // namespace mneme
