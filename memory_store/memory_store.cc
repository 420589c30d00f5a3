// MemoryStore: catalog and text. See memory_store_impl.h for the locks.

#include "memory_store/memory_store.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/crash_point.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "memory_store/keys.h"
#include "memory_store/memory_store_impl.h"
#include "memory_store/records.h"

namespace mneme {
namespace {

// A piece of the text log is at most this long, so that reading a passage reads little more.
constexpr size_t kTextPieceBytesMax = 64 << 10;
constexpr uint64_t kIdsReservedAtOnce = 1000;

std::string ToString(DocumentId document) {
  return absl::StrCat("document ", static_cast<uint64_t>(document));
}

absl::Status NoMemory(MemoryId memory) {
  return absl::NotFoundError(absl::StrCat("no memory ", static_cast<uint64_t>(memory)));
}

absl::Status NoDocument(DocumentId document) {
  return absl::NotFoundError(absl::StrCat("no ", ToString(document)));
}

void AddTo(const DocumentInfo& info, MemoryStore::Totals* sum) {
  sum->documents += 1;
  sum->durable_bytes += info.durable_bytes;
  sum->visible_bytes += info.visible_bytes;
  sum->tokens += info.token_count;
  sum->chunks += info.chunk_count;
}

}  // namespace

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

class TierCollectable : public prometheus::Collectable {
 public:
  explicit TierCollectable(const MemoryStore* store) : store_(store) {}

  void Detach() {
    absl::MutexLock lock(&mutex_);
    store_ = nullptr;
  }

  std::vector<prometheus::MetricFamily> Collect() const override {
    absl::MutexLock lock(&mutex_);
    if (store_ == nullptr) return {};
    prometheus::MetricFamily used{
        "mneme_tier_used_bytes", "Bytes that a tier holds.", prometheus::MetricType::Gauge, {}};
    prometheus::MetricFamily limit{"mneme_tier_limit_bytes",
                                   "Bytes that a tier may hold; +Inf: no limit.",
                                   prometheus::MetricType::Gauge,
                                   {}};
    for (const TierUse& tier : store_->tiers()) {
      prometheus::ClientMetric value;
      value.label.push_back({"tier", tier.name});
      value.gauge.value = static_cast<double>(tier.used_bytes);
      used.metric.push_back(value);
      value.gauge.value = tier.limit_bytes > 0 ? static_cast<double>(tier.limit_bytes)
                                               : std::numeric_limits<double>::infinity();
      limit.metric.push_back(std::move(value));
    }
    const MemoryStore::Totals totals = store_->totals();
    const auto total = [](const char* name, const char* help, int64_t value) {
      prometheus::ClientMetric metric;
      metric.gauge.value = static_cast<double>(value);
      return prometheus::MetricFamily{name, help, prometheus::MetricType::Gauge, {metric}};
    };
    return {
        std::move(used),
        std::move(limit),
        total("mneme_memories", "Memories stored.", totals.memories),
        total("mneme_documents", "Documents stored.", totals.documents),
        total("mneme_chunks", "Chunks that a query can find.", totals.chunks),
        total("mneme_durable_bytes", "Bytes of text that survive a crash.", totals.durable_bytes),
        total("mneme_visible_bytes", "Bytes of text that a query can find.", totals.visible_bytes)};
  }

 private:
  mutable absl::Mutex mutex_;
  const MemoryStore* store_ ABSL_GUARDED_BY(mutex_);
};

MemoryStore::Impl::Impl(const MemoryStoreOptions& options_in, ChunkStore& store_in,
                        Metrics& metrics_in, Clock& clock_in)
    : options(options_in),
      store(store_in),
      metrics(metrics_in),
      clock(clock_in),
      pool(options_in.page_bytes, options_in.host_page_bytes_max, metrics_in),
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

void MemoryStore::Impl::ErasePages(const absl::flat_hash_set<DocumentId>& documents) {
  pool.EraseDocuments(documents);
  if (device_pool != nullptr) device_pool->EraseDocuments(documents);
}

void MemoryStore::Impl::ReportDamage(RecordKind kind, const absl::Status& status) const {
  CorruptRecords(kind).Increment();
  LogWarning("memory_store", "damaged record",
             {{"kind", RecordKindName(kind)}, {"status", std::string(status.message())}});
}

absl::Status MemoryStore::Impl::MarkTextDamaged(DocumentId document, const absl::Status& damage) {
  {
    // A deletion under way looks like damage: let it finish.
    absl::ReaderMutexLock gate(&write_gate_);
    absl::MutexLock lock(&mutex_);
    DocumentEntry* entry = catalog.FindDocument(document);
    if (entry == nullptr) return NoDocument(document);
    if (!entry->damaged) views.Clear();
    entry->damaged = true;
  }
  ReportDamage(RecordKind::kText, damage);
  return damage;
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

std::vector<DocumentInfo> MemoryStore::ListDocuments(MemoryId memory, DocumentId after,
                                                     int limit) const {
  const absl::Time now = impl_->clock.Now();
  std::vector<std::pair<DocumentInfo, absl::Time>> seen;
  {
    absl::ReaderMutexLock lock(&impl_->mutex_);
    const MemoryEntry* entry = impl_->catalog.FindLiveMemory(memory);
    if (entry == nullptr) return {};
    // Its own documents and those of its bases, side by side.
    using Documents = absl::btree_map<DocumentId, DocumentEntry*>;
    std::vector<std::pair<Documents::const_iterator, Documents::const_iterator>> cursors;
    for (const MemoryEntry* m = entry; m != nullptr; m = m->base) {
      cursors.emplace_back(m->documents.upper_bound(after), m->documents.end());
    }
    while (static_cast<int>(seen.size()) < limit) {
      std::erase_if(cursors, [](const auto& cursor) { return cursor.first == cursor.second; });
      if (cursors.empty()) break;
      auto& next = *std::min_element(
          cursors.begin(), cursors.end(),
          [](const auto& a, const auto& b) { return a.first->first < b.first->first; });
      const DocumentEntry& document = *(next.first++)->second;
      const std::optional<absl::Time> until = SeenUntil(*entry, document);
      if (document.expire_time <= now || !until.has_value()) continue;
      seen.emplace_back(impl_->SharedInfo(document, *entry), *until);
    }
  }
  std::vector<DocumentInfo> list;
  for (auto& [info, until] : seen) {
    absl::StatusOr<DocumentInfo> cut = impl_->CutInfo(std::move(info), until);
    if (cut.ok()) list.push_back(*std::move(cut));  // else it is gone by now, or cannot be read
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

absl::Status MemoryStore::AppendText(absl::Span<const TextAppend> appends) {
  Impl& impl = *impl_;
  absl::ReaderMutexLock gate(&impl.write_gate_);
  struct Growth {
    DocumentKey key;
    int64_t end = 0;
    bool sealed = false;
  };
  absl::flat_hash_map<DocumentId, Growth> growths;
  absl::Time moment;
  {
    absl::MutexLock lock(&impl.mutex_);
    const auto nobody_appends = [&impl, appends]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return std::none_of(appends.begin(), appends.end(),
                          [&impl](const TextAppend& append) ABSL_NO_THREAD_SAFETY_ANALYSIS {
                            const DocumentEntry* document =
                                impl.catalog.FindDocument(append.document);
                            return document != nullptr && document->append_in_flight;
                          });
    };
    impl.mutex_.Await(absl::Condition(&nobody_appends));
    for (const TextAppend& append : appends) {
      const DocumentEntry* document = impl.catalog.FindDocument(append.document);
      if (document == nullptr || document->dropped) return NoDocument(append.document);
      if (document->damaged) {
        return absl::DataLossError(
            absl::StrCat(ToString(append.document), " is damaged: it takes no more text"));
      }
      const auto [it, first] = growths.try_emplace(
          append.document, Growth{document->key, document->durable_bytes, document->sealed});
      Growth& growth = it->second;
      if (growth.sealed) {
        return absl::FailedPreconditionError(
            absl::StrCat(ToString(append.document), " is sealed at byte ", growth.end));
      }
      if (append.byte_offset != growth.end) {
        return absl::FailedPreconditionError(
            absl::StrCat(ToString(append.document), " has ", growth.end,
                         " durable bytes; the text is for byte ", append.byte_offset));
      }
      growth.end += static_cast<int64_t>(append.text.size());
      growth.sealed = append.seal;
    }
    for (const auto& [uid, growth] : growths) {
      impl.catalog.FindDocument(uid)->append_in_flight = true;
    }
    moment = impl.BeginWrite();
  }

  WriteBatch batch;
  for (const TextAppend& append : appends) {
    if (append.text.empty() && !append.seal) continue;
    size_t position = 0;
    do {
      const absl::string_view piece = append.text.substr(position, kTextPieceBytesMax);
      const std::string key = TextKey(growths[append.document].key,
                                      append.byte_offset + static_cast<int64_t>(position));
      position += piece.size();
      const bool seal = append.seal && position == append.text.size();
      batch.Put(Table::kText, key,
                EncodeRecord(key, TextRecord{seal, piece, absl::ToUnixMicros(moment)}));
    } while (position < append.text.size());
  }
  const absl::Status status =
      batch.ops.empty() ? absl::OkStatus() : impl.store.Write(batch, Durability::kSynced);
  CrashPoint("text written");

  absl::MutexLock lock(&impl.mutex_);
  impl.EndWrite(moment);
  for (const auto& [uid, growth] : growths) {
    // Still there: its deletion waits at the gate.
    DocumentEntry& document = *impl.catalog.FindDocument(uid);
    document.append_in_flight = false;
    if (!status.ok()) continue;
    document.memory->totals.durable_bytes += growth.end - document.durable_bytes;
    const bool written = growth.end != document.durable_bytes || growth.sealed;
    if (written) {
      // Who sees it up to an earlier moment sees what it did.
      document.memory->changes.Add(document.append_time);
      document.append_time = moment;
    }
    document.durable_bytes = growth.end;
    document.sealed = growth.sealed;
  }
  return status;
}

absl::StatusOr<std::string> MemoryStore::ReadText(DocumentId document, int64_t byte_begin,
                                                  int64_t byte_end) const {
  DocumentKey document_key;
  const absl::Time now = impl_->clock.Now();
  {
    absl::ReaderMutexLock lock(&impl_->mutex_);
    const std::shared_ptr<const Tail> tail = impl_->tails.Find(document);
    if (tail != nullptr) document = tail->document.document;
    const DocumentEntry* entry = impl_->catalog.FindDocument(document, now);
    if (entry == nullptr) return NoDocument(document);
    const int64_t text_end = tail == nullptr ? entry->durable_bytes : tail->cut_bytes;
    if (byte_begin < 0 || byte_begin > byte_end || byte_end > text_end) {
      return absl::OutOfRangeError(absl::StrCat("bytes [", byte_begin, ", ", byte_end, ") of ",
                                                ToString(document), ", which has ", text_end));
    }
    document_key = entry->key;
  }
  if (byte_begin == byte_end) return std::string();

  // Pieces come newest first; each must end where the one before it began.
  std::string text(static_cast<size_t>(byte_end - byte_begin), '\0');
  int64_t wanted_end = byte_end;
  absl::Status damage;
  const absl::Status status = impl_->store.Scan(
      Table::kText, TextKey(document_key, byte_end - 1), RecordKeyRange(document_key).second,
      [&](absl::string_view key, absl::string_view value) {
        DocumentKey piece_document;
        int64_t offset = 0;
        if (!ParseTextKey(key, &piece_document, &offset)) {
          damage = absl::DataLossError("text key of another shape");
          return false;
        }
        const absl::StatusOr<TextRecord> record = DecodeTextRecord(key, value);
        if (!record.ok()) {
          damage = record.status();
          return false;
        }
        const int64_t piece_end = offset + static_cast<int64_t>(record->text.size());
        if (offset >= wanted_end || piece_end < wanted_end ||
            (wanted_end != byte_end && piece_end != wanted_end)) {
          damage = absl::DataLossError(absl::StrCat("text of ", ToString(document), " at byte ",
                                                    wanted_end, ": the piece before it is [",
                                                    offset, ", ", piece_end, ")"));
          return false;
        }
        const int64_t from = std::max(offset, byte_begin);
        record->text.copy(text.data() + (from - byte_begin), wanted_end - from, from - offset);
        wanted_end = from;
        return wanted_end > byte_begin;
      });
  if (status.ok() && damage.ok() && wanted_end > byte_begin) {
    damage = absl::DataLossError(absl::StrCat("text of ", ToString(document), ": bytes [",
                                              byte_begin, ", ", wanted_end, ") are missing"));
  }
  if (absl::IsDataLoss(status)) damage = status;
  if (damage.ok()) {
    RETURN_IF_ERROR(status);
    return text;
  }
  return impl_->MarkTextDamaged(document, damage);
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

namespace {

// All that is stored of a memory: also what it has dropped and forks of it hold.
void AddTo(const MemoryEntry& memory, MemoryStore::Totals* sum) {
  if (!memory.deleted_before.has_value()) sum->memories += 1;
  for (const MemoryStore::Totals* of : {&memory.totals, &memory.dropped_totals}) {
    sum->documents += of->documents;
    sum->durable_bytes += of->durable_bytes;
    sum->visible_bytes += of->visible_bytes;
    sum->tokens += of->tokens;
    sum->chunks += of->chunks;
  }
}

}  // namespace

MemoryStore::Totals MemoryStore::totals() const {
  absl::ReaderMutexLock lock(&impl_->mutex_);
  Totals sum;
  for (const auto& [uid, memory] : impl_->catalog.memories()) AddTo(*memory, &sum);
  return sum;
}

const PageChanges& MemoryStore::page_changes() const { return impl_->page_changes; }

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
    if (cut.ok()) AddTo(*cut, &sum);  // else it is gone by now, or cannot be read
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
