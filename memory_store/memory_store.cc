// MemoryStore: opening, identities, memories and documents. See memory_store_impl.h for the locks.

#include "memory_store/memory_store.h"

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/crash_point.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "memory_store/keys.h"
#include "memory_store/memory_store_impl.h"
#include "memory_store/records.h"
#include "memory_store/tier_collectable.h"

namespace mneme {
namespace {

constexpr uint64_t kIdsReservedAtOnce = 1000;

}  // namespace

absl::Status NoMemory(MemoryId memory) {
  return absl::NotFoundError(absl::StrCat("no memory ", static_cast<uint64_t>(memory)));
}

absl::Status NoDocument(DocumentId document) {
  return absl::NotFoundError(absl::StrCat("no document ", static_cast<uint64_t>(document)));
}

MemoryPolicy PolicyOf(const MemoryRecord& record) {
  return {.retention = static_cast<Retention>(record.retention),
          .ttl = record.ttl_us == 0 ? absl::InfiniteDuration() : absl::Microseconds(record.ttl_us),
          .quota_bytes = record.quota_bytes};
}

absl::Time ExpireTimeOf(const DocumentRecord& record) {
  return record.expire_time_us == 0 ? absl::InfiniteFuture()
                                    : absl::FromUnixMicros(record.expire_time_us);
}

MemoryRecord RecordOf(const MemoryInfo& info) {
  return {.tenant = info.tenant,
          .id = info.id,
          .display_name = info.display_name,
          .create_time_us = absl::ToUnixMicros(info.create_time),
          .retention = static_cast<uint8_t>(info.policy.retention),
          .ttl_us = info.policy.ttl == absl::InfiniteDuration()
                        ? 0
                        : absl::ToInt64Microseconds(info.policy.ttl),
          .base_memory = info.base.has_value() ? static_cast<uint64_t>(info.base->memory) : 0,
          .base_as_of_us = info.base.has_value() ? absl::ToUnixMicros(info.base->as_of) : 0,
          .quota_bytes = info.policy.quota_bytes};
}

MemoryStore::Impl::Impl(const MemoryStoreOptions& options_in, ChunkStore& store_in,
                        Metrics& metrics_in, Clock& clock_in)
    : options(options_in),
      store(store_in),
      metrics(metrics_in),
      clock(clock_in),
      pool(options_in.page_bytes, options_in.host_page_bytes_max, metrics_in),
      documents_damaged(metrics_in.AddCounter("documents_damaged_total",
                                              "Documents whose text was found damaged.")),
      tail_bytes_gauge(metrics_in.AddGauge(
          "tail_bytes", "Landmarks of the ends of documents as they were at earlier moments.")),
      tails_counter(metrics_in.AddCounter(
          "tails_derived_total",
          "Ends of documents as they were at earlier moments, derived for who reads the past.")),
      views(options_in.past_views_max),
      views_made(metrics_in.AddCounter("past_views_total", "Views of forks and of the past.",
                                       {{"how", "made"}})),
      views_reused(metrics_in.AddCounter("past_views_total", "Views of forks and of the past.",
                                         {{"how", "reused"}})) {
  metrics.AddGauge("past_views_limit", "Views of forks and of the past kept in memory, at most.")
      .Set(static_cast<double>(options.past_views_max));
  metrics.AddGauge("tail_limit_bytes", "Landmarks of tails, at most.")
      .Set(static_cast<double>(options.tail_bytes_max));
  if (Backend* const device = options.device; device != nullptr) {
    device_pool = std::make_unique<PagePool>(
        options.page_bytes, options.device_page_bytes_max, metrics,
        PagePool::Tier{.name = "device",
                       .allocate = [device](int64_t bytes) { return device->Allocate(bytes); },
                       .wipe =
                           [device](uint8_t* page, int64_t bytes) {
                             // A device that fails here is lost, and what it holds with it.
                             device->Zero(page, bytes).IgnoreError();
                           },
                       .counts_loads = false});
    device_landmarks = std::make_unique<DeviceLandmarks>(
        *device, options.landmark_bytes, options.device_landmark_bytes_max, metrics);
  }
  // Counted from zero, so that the first one shows as an increase.
  for (int kind = static_cast<int>(RecordKind::kCounter); kind <= static_cast<int>(kLastRecordKind);
       ++kind) {
    CorruptRecords(static_cast<RecordKind>(kind));
  }
}

Counter& MemoryStore::Impl::CorruptRecords(RecordKind kind) const {
  return metrics.AddCounter("store_corrupt_records_total",
                            "Records that failed their checks when read.",
                            {{"kind", RecordKindName(kind)}});
}

MemoryStore::Impl::~Impl() {
  if (collectable) collectable->Detach();
}

void MemoryStore::Impl::ErasePages(absl::Span<const PageId> pages) {
  pool.Erase(pages);
  if (device_pool != nullptr) device_pool->Erase(pages);
}

void MemoryStore::Impl::EraseDocumentPages(const absl::flat_hash_set<DocumentId>& documents) {
  if (documents.empty()) return;  // it would walk all slots for nothing
  pool.EraseDocuments(documents);
  if (device_pool != nullptr) device_pool->EraseDocuments(documents);
}

absl::flat_hash_set<DocumentId> MemoryStore::Impl::PagesHeld(
    const absl::flat_hash_set<DocumentId>& documents) const {
  absl::flat_hash_set<DocumentId> held = pool.Held(documents);
  if (device_pool != nullptr) held.merge(device_pool->Held(documents));
  return held;
}

void MemoryStore::Impl::ReportDamage(RecordKind kind, const absl::Status& status) const {
  CorruptRecords(kind).Increment();
  LogWarning("memory_store", "damaged record",
             {{"kind", RecordKindName(kind)}, {"status", std::string(status.message())}});
}

MemoryStore::MemoryStore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MemoryStore::~MemoryStore() = default;

absl::StatusOr<std::unique_ptr<MemoryStore>> MemoryStore::Open(const MemoryStoreOptions& options,
                                                               ChunkStore& store, Metrics& metrics,
                                                               Clock& clock) {
  if (options.page_bytes <= 0 || options.landmark_bytes <= 0) {
    return absl::InvalidArgumentError(absl::StrCat("page_bytes ", options.page_bytes,
                                                   " and landmark_bytes ", options.landmark_bytes,
                                                   " must be positive"));
  }
  auto impl = std::make_unique<Impl>(options, store, metrics, clock);
  RETURN_IF_ERROR(impl->Load());
  std::unique_ptr<MemoryStore> memory_store(new MemoryStore(std::move(impl)));
  memory_store->impl_->collectable = std::make_shared<TierCollectable>(memory_store.get());
  metrics.AddCollectable(memory_store->impl_->collectable);
  return memory_store;
}

// Identities are given in order and reserved on disk a thousand at a time, so that one that a
// deleted document had is never given again, whatever happens in between.
absl::Status MemoryStore::Impl::ReserveIds() {
  const CounterRecord reserve{next_ids.next_memory + kIdsReservedAtOnce,
                              next_ids.next_document + kIdsReservedAtOnce};
  WriteBatch batch;
  batch.Put(Table::kCatalog, CounterKey(), EncodeRecord(CounterKey(), reserve));
  RETURN_IF_ERROR(store.Write(batch, Durability::kSynced));
  CrashPoint("identities reserved");
  reserved_ids = reserve;
  return absl::OkStatus();
}

absl::StatusOr<MemoryId> MemoryStore::Impl::NewMemoryId() {
  absl::MutexLock lock(&ids_mutex_);
  if (next_ids.next_memory >= reserved_ids.next_memory) RETURN_IF_ERROR(ReserveIds());
  return static_cast<MemoryId>(next_ids.next_memory++);
}

MemoryId MemoryStore::Impl::NextMemoryId() {
  absl::MutexLock lock(&ids_mutex_);
  return static_cast<MemoryId>(next_ids.next_memory);
}

absl::StatusOr<DocumentId> MemoryStore::Impl::NewDocumentId() {
  absl::MutexLock lock(&ids_mutex_);
  if (next_ids.next_document >= reserved_ids.next_document) RETURN_IF_ERROR(ReserveIds());
  return static_cast<DocumentId>(next_ids.next_document++);
}

absl::StatusOr<MemoryInfo> MemoryStore::CreateMemory(const std::string& tenant,
                                                     const std::string& id,
                                                     const std::string& display_name,
                                                     const MemoryPolicy& policy) {
  Impl& impl = *impl_;
  absl::ReaderMutexLock gate(&impl.write_gate_);
  const std::pair<std::string, std::string> name(tenant, id);
  {
    absl::MutexLock lock(&impl.mutex_);
    const auto nobody_creates = [&impl, &name]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return !impl.creating_memories.contains(name);
    };
    impl.mutex_.Await(absl::Condition(&nobody_creates));
    if (impl.catalog.FindMemory(tenant, id) != nullptr) {
      return absl::AlreadyExistsError(
          absl::StrCat("memory \"", id, "\" of tenant \"", tenant, "\" exists"));
    }
    const auto& tenants = impl.catalog.tenants();
    if (!tenants.contains(tenant) &&
        static_cast<int64_t>(tenants.size()) >= impl.options.tenants_max) {
      return absl::ResourceExhaustedError(absl::StrCat("tenant \"", tenant,
                                                       "\" would exceed the limit of ",
                                                       impl.options.tenants_max, " tenants"));
    }
    impl.creating_memories.insert(name);
  }
  const absl::Cleanup done = [&impl, &name] {
    absl::MutexLock lock(&impl.mutex_);
    impl.creating_memories.erase(name);
  };

  MemoryInfo info;
  ASSIGN_OR_RETURN(info.uid, impl.NewMemoryId());
  info.tenant = tenant;
  info.id = id;
  info.display_name = display_name;
  info.create_time = absl::FromUnixMicros(absl::ToUnixMicros(impl.clock.Now()));
  info.policy = policy;
  const std::string key = MemoryKey(info.uid);
  WriteBatch batch;
  batch.Put(Table::kCatalog, key, EncodeRecord(key, RecordOf(info)));
  RETURN_IF_ERROR(impl.store.Write(batch, Durability::kSynced));
  CrashPoint("memory created");
  absl::MutexLock lock(&impl.mutex_);
  return impl.catalog.AddMemory(info, impl.options.landmark_bytes)->info;
}

absl::StatusOr<MemoryInfo> MemoryStore::GetMemory(const std::string& tenant,
                                                  const std::string& id) const {
  absl::ReaderMutexLock lock(&impl_->mutex_);
  const MemoryEntry* memory = impl_->catalog.FindMemory(tenant, id);
  if (memory == nullptr) {
    return absl::NotFoundError(absl::StrCat("no memory \"", id, "\" of tenant \"", tenant, "\""));
  }
  return memory->Info();
}

std::vector<MemoryInfo> MemoryStore::ListMemories(const std::string& tenant,
                                                  const std::string& after_id, int limit) const {
  absl::ReaderMutexLock lock(&impl_->mutex_);
  std::vector<MemoryInfo> list;
  const auto memories = impl_->catalog.tenants().find(tenant);
  if (memories == impl_->catalog.tenants().end()) return list;
  for (auto it = memories->second.upper_bound(after_id);
       it != memories->second.end() && static_cast<int>(list.size()) < limit; ++it) {
    list.push_back(it->second->Info());
  }
  return list;
}

absl::StatusOr<DocumentInfo> MemoryStore::CreateDocument(MemoryId memory, const std::string& id,
                                                         absl::Time expire_time) {
  Impl& impl = *impl_;
  absl::ReaderMutexLock gate(&impl.write_gate_);
  const std::pair<MemoryId, std::string> name(memory, id);
  {
    absl::MutexLock lock(&impl.mutex_);
    const auto nobody_creates = [&impl, &name]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return !impl.creating_documents.contains(name);
    };
    impl.mutex_.Await(absl::Condition(&nobody_creates));
    const MemoryEntry* entry = impl.catalog.FindLiveMemory(memory);
    if (entry == nullptr) return NoMemory(memory);
    if (impl.catalog.FindDocument(*entry, id) != nullptr) {
      return absl::AlreadyExistsError(
          absl::StrCat("document \"", id, "\" of memory \"", entry->info.id, "\" exists"));
    }
    impl.creating_documents.insert(name);
  }
  const absl::Cleanup done = [&impl, &name] {
    absl::MutexLock lock(&impl.mutex_);
    impl.creating_documents.erase(name);
  };

  ASSIGN_OR_RETURN(const DocumentId uid, impl.NewDocumentId());
  absl::Time create_time;
  {
    absl::MutexLock lock(&impl.mutex_);
    create_time = impl.BeginWrite();
  }
  const std::string key = DocumentRecordKey({memory, uid});
  WriteBatch batch;
  batch.Put(Table::kCatalog, key,
            EncodeRecord(key, DocumentRecord{id, absl::ToUnixMicros(create_time),
                                             expire_time == absl::InfiniteFuture()
                                                 ? 0
                                                 : absl::ToUnixMicros(expire_time)}));
  const absl::Status status = impl.store.Write(batch, Durability::kSynced);
  CrashPoint("document created");
  // The memory is still there: its deletion waits at the gate.
  absl::MutexLock lock(&impl.mutex_);
  impl.EndWrite(create_time);
  RETURN_IF_ERROR(status);
  return impl.catalog
      .AddDocument(*impl.catalog.FindMemory(memory), uid, id, create_time, expire_time)
      ->Info();
}

absl::StatusOr<DocumentInfo> MemoryStore::GetDocument(MemoryId memory,
                                                      const std::string& id) const {
  const absl::Time now = impl_->clock.Now();
  DocumentInfo info;
  absl::Time until;
  {
    absl::ReaderMutexLock lock(&impl_->mutex_);
    const MemoryEntry* entry = impl_->catalog.FindLiveMemory(memory);
    if (entry == nullptr) return NoMemory(memory);
    const DocumentEntry* document = impl_->catalog.FindDocument(*entry, id);
    if (document == nullptr || document->expire_time <= now) {
      return absl::NotFoundError(
          absl::StrCat("no document \"", id, "\" in memory \"", entry->info.id, "\""));
    }
    info = impl_->SharedInfo(*document, *entry);
    until = *SeenUntil(*entry, *document);
  }
  return impl_->CutInfo(std::move(info), until);
}

absl::StatusOr<DocumentInfo> MemoryStore::GetDocument(const ReadSource& source,
                                                      DocumentId document) const {
  const absl::Time now = impl_->clock.Now();
  DocumentInfo info;
  absl::Time until;
  {
    absl::ReaderMutexLock lock(&impl_->mutex_);
    const MemoryEntry* entry = impl_->catalog.FindLiveMemory(source.memory);
    if (entry == nullptr) return NoMemory(source.memory);
    const DocumentEntry* found = impl_->catalog.FindDocument(document, now);
    const std::optional<absl::Time> seen =
        found == nullptr ? std::nullopt : SeenUntil(*entry, *found);
    if (!seen.has_value() || found->create_time > source.as_of) return NoDocument(document);
    info = impl_->SharedInfo(*found, *entry);
    until = std::min(*seen, source.as_of);
  }
  return impl_->CutInfo(std::move(info), until);
}

absl::StatusOr<DocumentInfo> MemoryStore::GetDocument(DocumentId document) const {
  const absl::Time now = impl_->clock.Now();
  absl::ReaderMutexLock lock(&impl_->mutex_);
  const std::shared_ptr<const Tail> tail = impl_->tails.Find(document);
  const DocumentEntry* entry =
      impl_->catalog.FindDocument(tail == nullptr ? document : tail->document.document, now);
  if (entry == nullptr) return NoDocument(document);
  DocumentInfo info = entry->Info();
  if (tail == nullptr) return info;
  info.uid = document;
  info.durable_bytes = tail->cut_bytes;
  info.visible_bytes = tail->cut_bytes;
  return info;
}

absl::StatusOr<std::vector<std::pair<DocumentInfo, absl::Time>>> MemoryStore::Impl::DocumentsAfter(
    MemoryId memory, DocumentId after, size_t limit) const {
  const absl::Time now = clock.Now();
  absl::ReaderMutexLock lock(&mutex_);
  const MemoryEntry* entry = catalog.FindLiveMemory(memory);
  if (entry == nullptr) return NoMemory(memory);
  // Its own documents and those of its bases, side by side.
  using Documents = absl::btree_map<DocumentId, DocumentEntry*>;
  std::vector<std::pair<Documents::const_iterator, Documents::const_iterator>> cursors;
  for (const MemoryEntry* m = entry; m != nullptr; m = m->base) {
    cursors.emplace_back(m->documents.upper_bound(after), m->documents.end());
  }
  std::vector<std::pair<DocumentInfo, absl::Time>> seen;
  while (seen.size() < limit) {
    std::erase_if(cursors, [](const auto& cursor) { return cursor.first == cursor.second; });
    if (cursors.empty()) break;
    auto& next = *std::min_element(
        cursors.begin(), cursors.end(),
        [](const auto& a, const auto& b) { return a.first->first < b.first->first; });
    const DocumentEntry& document = *(next.first++)->second;
    const std::optional<absl::Time> until = SeenUntil(*entry, document);
    if (document.expire_time <= now || !until.has_value()) continue;
    seen.emplace_back(SharedInfo(document, *entry), *until);
  }
  return seen;
}

absl::StatusOr<std::vector<DocumentInfo>> MemoryStore::ListDocuments(MemoryId memory,
                                                                     DocumentId after,
                                                                     int limit) const {
  std::vector<DocumentInfo> list;
  while (static_cast<int>(list.size()) < limit) {
    ASSIGN_OR_RETURN(auto seen, impl_->DocumentsAfter(memory, after, limit - list.size()));
    if (seen.empty()) break;
    after = seen.back().first.uid;
    for (auto& [info, until] : seen) {
      absl::StatusOr<DocumentInfo> cut = impl_->CutInfo(std::move(info), until);
      if (absl::IsNotFound(cut.status())) continue;  // gone by now: another takes its place
      RETURN_IF_ERROR(cut.status());
      list.push_back(*std::move(cut));
    }
  }
  return list;
}

std::vector<DocumentInfo> MemoryStore::ExpiredDocuments(int limit) const {
  const absl::Time now = impl_->clock.Now();
  absl::ReaderMutexLock lock(&impl_->mutex_);
  std::vector<DocumentInfo> list;
  for (const auto& [uid, memory] : impl_->catalog.memories()) {
    for (const auto& [time, document] : memory->expiring) {
      if (time > now || static_cast<int>(list.size()) == limit) break;
      list.push_back(memory->documents.at(document)->Info());
    }
  }
  return list;
}

std::optional<DocumentInfo> MemoryStore::ExpiredDocument(MemoryId memory,
                                                         const std::string& id) const {
  const absl::Time now = impl_->clock.Now();
  absl::ReaderMutexLock lock(&impl_->mutex_);
  const MemoryEntry* entry = impl_->catalog.FindLiveMemory(memory);
  if (entry == nullptr) return std::nullopt;
  const DocumentEntry* document = impl_->catalog.FindDocument(*entry, id);
  if (document == nullptr || document->expire_time > now) return std::nullopt;
  return document->Info();
}

std::vector<DocumentInfo> MemoryStore::AllDocuments() const {
  std::vector<DocumentInfo> list;
  {
    absl::ReaderMutexLock lock(&impl_->mutex_);
    list.reserve(impl_->catalog.documents().size());
    for (const auto& [uid, document] : impl_->catalog.documents()) list.push_back(document->Info());
  }
  std::sort(list.begin(), list.end(),
            [](const DocumentInfo& a, const DocumentInfo& b) { return a.uid < b.uid; });
  return list;
}

absl::StatusOr<BackupInfo> MemoryStore::Backup(BackupDirectory& directory,
                                               const std::string& version, const BackupStep& step) {
  BackupInfo info;
  info.create_time = impl_->clock.Now();
  info.version = version;
  info.fingerprint = impl_->options.derivation_fingerprint;
  const Totals now = totals();
  info.memories = now.memories;
  info.documents = now.documents;
  info.durable_bytes = now.durable_bytes;
  ASSIGN_OR_RETURN(const StoreFiles files, impl_->store.Files(ChunkStore::FilesFor::kBackup));
  return directory.Create(files, std::move(info), step);
}

absl::Status MemoryStore::Flush() { return impl_->store.Flush(); }

const PageChanges& MemoryStore::page_changes() const { return impl_->page_changes; }

}  // namespace mneme
