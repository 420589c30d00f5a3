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

}  // namespace

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
  MemoryStore::Totals& totals = document.memory->totals;
  totals.documents += sign;
  totals.durable_bytes += sign * document.durable_bytes;
  totals.visible_bytes += sign * document.visible_bytes();
  totals.tokens += sign * document.token_count;
  totals.chunks += sign * document.chunk_count();
}

MemoryEntry* Catalog::AddMemory(MemoryInfo info, int64_t landmark_bytes) {
  auto entry = std::make_unique<MemoryEntry>(landmark_bytes, &landmark_blocks_);
  MemoryEntry* memory = entry.get();
  memory->info = std::move(info);
  tenants_[memory->info.tenant][memory->info.id] = memory;
  memories_[memory->info.uid] = std::move(entry);
  return memory;
}

DocumentEntry* Catalog::AddDocument(MemoryEntry& memory, DocumentId uid, std::string id,
                                    absl::Time create_time, absl::Time own_expire_time) {
  auto entry = std::make_unique<DocumentEntry>();
  DocumentEntry* document = entry.get();
  document->key = {memory.info.uid, uid};
  document->memory = &memory;
  document->id = std::move(id);
  document->create_time = create_time;
  document->own_expire_time = own_expire_time;
  memory.documents[uid] = document;
  memory.documents_by_id[document->id] = document;
  documents_[uid] = std::move(entry);
  CountDocument(*document, 1);
  SetExpiry(*document);
  return document;
}

void Catalog::UpdateExpiry(MemoryEntry& memory) {
  for (const auto& [uid, document] : memory.documents) SetExpiry(*document);
}

void Catalog::RemoveMemory(MemoryId memory) {
  const auto it = memories_.find(memory);
  for (const auto& [uid, document] : it->second->documents) documents_.erase(uid);
  const auto tenant = tenants_.find(it->second->info.tenant);
  tenant->second.erase(it->second->info.id);
  if (tenant->second.empty()) tenants_.erase(tenant);
  memories_.erase(it);
}

void Catalog::RemoveDocument(DocumentId document) {
  const auto it = documents_.find(document);
  DocumentEntry& entry = *it->second;
  CountDocument(entry, -1);
  entry.memory->landmarks.Erase(document, 0);
  entry.memory->documents_by_id.erase(entry.id);
  entry.memory->documents.erase(document);
  entry.memory->expiring.erase({entry.expire_time, document});
  documents_.erase(it);
}

MemoryEntry* Catalog::FindMemory(MemoryId memory) const {
  const auto it = memories_.find(memory);
  return it == memories_.end() ? nullptr : it->second.get();
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
