#include "memory_store/catalog.h"

#include <algorithm>
#include <utility>

namespace mneme {
namespace {

void SetExpiry(DocumentEntry& document) {
  MemoryEntry& memory = *document.memory;
  memory.expiring.erase({document.expire_time, document.key.document});
  document.expire_time = document.own_expire_time != absl::InfiniteFuture()
                             ? document.own_expire_time
                             : document.create_time + memory.info.policy.ttl;
  if (document.expire_time != absl::InfiniteFuture()) {
    memory.expiring.emplace(document.expire_time, document.key.document);
  }
}

void SetDropped(DocumentEntry& document) {
  CountDocument(document, -1);
  document.dropped = true;
  CountDocument(document, 1);
  document.memory->dropped_by_id[document.id].push_back(&document);
}

}  // namespace

MemoryInfo MemoryEntry::Info() const {
  MemoryInfo now = info;
  if (now.base.has_value()) now.base->memory_id = base->info.id;
  return now;
}

std::optional<absl::Time> SeenUntil(const MemoryEntry& memory, const DocumentEntry& document) {
  absl::Time until = absl::InfiniteFuture();
  // What was dropped before the memory with this identity was made is not seen by it.
  MemoryId maker{~uint64_t{0}};
  for (const MemoryEntry* m = &memory; m != nullptr; m = m->base) {
    if (m->deleted_before.has_value() && *m->deleted_before <= maker) return std::nullopt;
    const auto dropped = m->dropped.find(document.key.document);
    if (dropped != m->dropped.end() && dropped->second <= maker) return std::nullopt;
    if (document.memory == m) {
      if (document.create_time > until) return std::nullopt;
      return until;
    }
    if (m->base == nullptr) break;
    until = std::min(until, m->info.base->as_of);
    maker = m->info.uid;
  }
  return std::nullopt;
}

std::vector<MemoryEntry*> WithForks(MemoryEntry& memory) {
  std::vector<MemoryEntry*> all = {&memory};
  for (size_t i = 0; i < all.size(); ++i) {
    for (const auto& [uid, fork] : all[i]->forks) all.push_back(fork);
  }
  std::erase_if(all, [](const MemoryEntry* m) { return m->deleted_before.has_value(); });
  return all;
}

std::vector<const MemoryEntry*> Holders(const DocumentEntry& document,
                                        const absl::flat_hash_set<MemoryId>& without) {
  std::vector<const MemoryEntry*> holders;
  for (const MemoryEntry* memory : WithForks(*document.memory)) {
    if (without.contains(memory->info.uid) || !SeenUntil(*memory, document).has_value()) continue;
    holders.push_back(memory);
  }
  return holders;
}

SegmentEntry EntryOf(const SegmentDerived& segment) {
  SegmentEntry entry;
  entry.encode_from_byte = segment.encode_from_byte;
  entry.byte_begin = segment.byte_begin;
  entry.byte_end = segment.byte_end;
  entry.skip_tokens = segment.skip_tokens;
  entry.token_count = segment.token_count;
  entry.chunk_count = static_cast<int64_t>(segment.chunk_byte_begin.size());
  return entry;
}

DocumentInfo DocumentEntry::Info() const {
  DocumentInfo info;
  info.uid = key.document;
  info.memory = key.memory;
  info.id = id;
  info.create_time = create_time;
  info.expire_time = expire_time;
  info.sealed = sealed;
  info.damaged = damaged;
  info.durable_bytes = durable_bytes;
  info.visible_bytes = visible_bytes();
  info.token_count = token_count;
  info.chunk_count = chunk_count();
  return info;
}

void CountDocument(const DocumentEntry& document, int sign) {
  MemoryStore::Totals& totals =
      document.dropped ? document.memory->dropped_totals : document.memory->totals;
  totals.documents += sign;
  totals.durable_bytes += sign * document.durable_bytes;
  totals.visible_bytes += sign * document.visible_bytes();
  totals.tokens += sign * document.token_count;
  totals.chunks += sign * document.chunk_count();
  totals.damaged_documents += document.damaged ? sign : 0;
}

void Catalog::CountAppended(MemoryEntry& memory, int64_t bytes) {
  memory.totals.appended_bytes += bytes;
  appended_bytes_of_[memory.info.tenant] += bytes;
  appended_bytes_ += bytes;
}

int64_t Catalog::appended_bytes(const std::string& tenant) const {
  const auto it = appended_bytes_of_.find(tenant);
  return it == appended_bytes_of_.end() ? 0 : it->second;
}

MemoryEntry* Catalog::AddMemory(MemoryInfo info, int64_t landmark_bytes,
                                std::optional<MemoryId> deleted_before) {
  auto entry = std::make_unique<MemoryEntry>(landmark_bytes, &landmark_blocks_);
  MemoryEntry* memory = entry.get();
  memory->info = std::move(info);
  memory->deleted_before = deleted_before;
  if (!deleted_before.has_value()) tenants_[memory->info.tenant][memory->info.id] = memory;
  memories_[memory->info.uid] = std::move(entry);
  return memory;
}

std::vector<MemoryId> Catalog::LinkForks() {
  std::vector<MemoryId> lost;
  for (const auto& [uid, memory] : memories_) {
    if (memory->info.base.has_value() && !LinkFork(*memory)) lost.push_back(uid);
  }
  return lost;
}

bool Catalog::LinkFork(MemoryEntry& fork) {
  MemoryEntry* base = FindMemory(fork.info.base->memory);
  // A base is older than its fork, so that there is no circle.
  if (base == nullptr || base->info.uid >= fork.info.uid) return false;
  fork.base = base;
  base->forks[fork.info.uid] = &fork;
  return true;
}

void Catalog::Drop(MemoryEntry& memory, DocumentEntry& document, MemoryId before) {
  memory.dropped.try_emplace(document.key.document, before);
  if (document.memory != &memory || document.dropped) return;
  memory.documents_by_id.erase(document.id);
  SetDropped(document);
}

void Catalog::DropMemory(MemoryEntry& memory, MemoryId before) {
  memory.documents_by_id.clear();
  for (const auto& [uid, document] : memory.documents) {
    if (!document->dropped) SetDropped(*document);
  }
  memory.snapshots.clear();
  const auto tenant = tenants_.find(memory.info.tenant);
  tenant->second.erase(memory.info.id);
  if (tenant->second.empty()) tenants_.erase(tenant);
  memory.info.id.clear();
  memory.info.display_name.clear();
  memory.deleted_before = before;
}

DocumentEntry* Catalog::AddDocument(MemoryEntry& memory, DocumentId uid, std::string id,
                                    absl::Time create_time, absl::Time own_expire_time) {
  auto entry = std::make_unique<DocumentEntry>();
  DocumentEntry* document = entry.get();
  document->key = {memory.info.uid, uid};
  document->memory = &memory;
  document->id = std::move(id);
  document->create_time = create_time;
  document->append_time = create_time;
  document->own_expire_time = own_expire_time;
  memory.documents[uid] = document;
  documents_[uid] = std::move(entry);
  CountDocument(*document, 1);
  if (memory.deleted_before.has_value() || memory.dropped.contains(uid)) {
    SetDropped(*document);
  } else {
    memory.documents_by_id[document->id] = document;
  }
  SetExpiry(*document);
  memory.changes.Add(create_time);
  return document;
}

void Catalog::UpdateExpiry(MemoryEntry& memory) {
  for (const auto& [uid, document] : memory.documents) SetExpiry(*document);
}

void Catalog::RemoveMemory(MemoryId memory) {
  const auto it = memories_.find(memory);
  MemoryEntry& entry = *it->second;
  for (const auto& [uid, document] : entry.documents) documents_.erase(uid);
  if (!entry.deleted_before.has_value()) {
    const auto tenant = tenants_.find(entry.info.tenant);
    tenant->second.erase(entry.info.id);
    if (tenant->second.empty()) tenants_.erase(tenant);
  }
  if (entry.base != nullptr) entry.base->forks.erase(memory);
  memories_.erase(it);
}

void Catalog::RemoveDocument(DocumentId document) {
  const auto it = documents_.find(document);
  DocumentEntry& entry = *it->second;
  CountDocument(entry, -1);
  entry.memory->landmarks.Erase(document, 0);
  if (entry.dropped) {
    const auto namesakes = entry.memory->dropped_by_id.find(entry.id);
    std::erase(namesakes->second, &entry);
    if (namesakes->second.empty()) entry.memory->dropped_by_id.erase(namesakes);
  } else {
    entry.memory->documents_by_id.erase(entry.id);
  }
  // Nobody needs to be told any more that somebody has dropped it.
  std::vector<MemoryEntry*> related = {entry.memory};
  for (size_t i = 0; i < related.size(); ++i) {
    related[i]->dropped.erase(document);
    for (const auto& [uid, fork] : related[i]->forks) related.push_back(fork);
  }
  entry.memory->documents.erase(document);
  entry.memory->expiring.erase({entry.expire_time, document});
  documents_.erase(it);
}

MemoryEntry* Catalog::FindMemory(MemoryId memory) const {
  const auto it = memories_.find(memory);
  return it == memories_.end() ? nullptr : it->second.get();
}

MemoryEntry* Catalog::FindLiveMemory(MemoryId memory) const {
  MemoryEntry* entry = FindMemory(memory);
  return entry == nullptr || entry->deleted_before.has_value() ? nullptr : entry;
}

DocumentEntry* Catalog::FindDocument(const MemoryEntry& memory, const std::string& id) const {
  for (const MemoryEntry* m = &memory; m != nullptr; m = m->base) {
    const auto own = m->documents_by_id.find(id);
    if (own != m->documents_by_id.end() && SeenUntil(memory, *own->second)) return own->second;
    const auto dropped = m->dropped_by_id.find(id);
    if (dropped == m->dropped_by_id.end()) continue;
    for (DocumentEntry* document : dropped->second) {
      if (SeenUntil(memory, *document)) return document;
    }
  }
  return nullptr;
}

MemoryEntry* Catalog::FindMemory(const std::string& tenant, const std::string& id) const {
  const auto memories = tenants_.find(tenant);
  if (memories == tenants_.end()) return nullptr;
  const auto it = memories->second.find(id);
  return it == memories->second.end() ? nullptr : it->second;
}

DocumentEntry* Catalog::FindDocument(DocumentId document) const {
  const auto it = documents_.find(document);
  return it == documents_.end() ? nullptr : it->second.get();
}

DocumentEntry* Catalog::FindDocument(DocumentId document, absl::Time now) const {
  DocumentEntry* entry = FindDocument(document);
  return entry == nullptr || entry->expire_time <= now ? nullptr : entry;
}

}  // namespace mneme
