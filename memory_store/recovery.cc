// MemoryStore::Open: brings the catalog, the ends of all texts and all landmarks into memory.
// Damage never stops it: a damaged text marks its document, a derived record that is damaged, of
// another model or beyond a hole is left out, and the engine derives again from there.

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "memory_store/key_after.h"
#include "memory_store/keys.h"
#include "memory_store/memory_store_impl.h"
#include "memory_store/records.h"

namespace mneme {
namespace {

// After a damaged counter record: this far beyond the identities in use, none was ever given.
constexpr uint64_t kIdsSkippedAfterDamage = 1'000'000;
constexpr int64_t kAllSegments = std::numeric_limits<int64_t>::max();
// A scan steps over this many records that nobody asked for before it seeks to the next document.
constexpr int kRecordsBeforeSeek = 8;

bool Before(const DocumentKey& a, const DocumentKey& b) {
  return std::tie(a.memory, a.document) < std::tie(b.memory, b.document);
}

// Where a document's records begin: no key is as short as the beginning of its range, which the
// index of a table file may count to the block before, damaged perhaps.
std::string RecordsBegin(const DocumentEntry& document) {
  return KeyAfter(RecordKeyRange(document.key).first);
}

// Reads a table's records of all documents, in few scans: `visit` gets each record of a known
// document and says whether it wants more of that document; `damage` is told which documents cannot
// be read to their end.
class DocumentScan {
 public:
  enum class Next { kContinue, kNextDocument };
  using Visit =
      std::function<Next(size_t document, absl::string_view key, absl::string_view value)>;
  using Damage = std::function<void(size_t document, const absl::Status&)>;

  // `documents`: in the order of their keys.
  DocumentScan(ChunkStore& store, Table table, absl::Span<DocumentEntry* const> documents)
      : store_(store), table_(table), documents_(documents) {}

  absl::Status Run(const Visit& visit, const Damage& damage) {
    for (size_t current = 0; current < documents_.size();) {
      std::string begin = RecordsBegin(*documents_[current]);
      bool wants_more = true;  // of `current`
      bool seek = false;
      int records_skipped = 0;
      const auto step = [&](absl::string_view key, absl::string_view value) {
        DocumentKey document;
        if (!ParseRecordKeyDocument(key, &document)) return true;
        while (current < documents_.size() && Before(documents_[current]->key, document)) {
          ++current;
          begin = current < documents_.size() ? RecordsBegin(*documents_[current]) : "";
          wants_more = true;
          records_skipped = 0;
        }
        if (current == documents_.size()) return false;
        if (wants_more && documents_[current]->key == document) {
          wants_more = visit(current, key, value) == Next::kContinue;
          begin = KeyAfter(key);
          return true;
        }
        // Nobody's, or more than was wanted: step over a few, then seek.
        seek = ++records_skipped > kRecordsBeforeSeek;
        return !seek;
      };
      absl::Status status = store_.Scan(table_, begin, {}, step);
      if (absl::IsDataLoss(status) && current < documents_.size()) {
        // Of this document, or of the next? Its records alone will tell.
        const std::string end = RecordKeyRange(documents_[current]->key).second;
        if (wants_more) status = store_.Scan(table_, begin, end, step);
        if (wants_more && absl::IsDataLoss(status)) damage(current, status);
        if (absl::IsDataLoss(status)) status = absl::OkStatus();
        ++current;
      } else if (seek) {
        if (!wants_more) ++current;
      } else {
        current = documents_.size();
      }
      RETURN_IF_ERROR(status);
    }
    return absl::OkStatus();
  }

 private:
  ChunkStore& store_;
  const Table table_;
  const absl::Span<DocumentEntry* const> documents_;
};

// The end of one document's text, from its newest two pieces.
struct TextEnd {
  int pieces_seen = 0;
  int64_t newest_offset = 0;
  int64_t durable_bytes = 0;
  std::optional<int64_t> time_us;  // of the newest piece, when it can be read; 0: it does not say
  bool sealed = false;
  absl::Status status;  // DATA_LOSS when a piece is damaged or the two do not meet

  DocumentScan::Next Take(absl::string_view key, absl::string_view value) {
    DocumentKey document;
    int64_t offset = 0;
    const absl::StatusOr<TextRecord> record = DecodeTextRecord(key, value);
    if (status.ok()) status = record.status();
    if (!ParseTextKey(key, &document, &offset) ||
        offset > std::numeric_limits<int64_t>::max() - TextBytesOfRecord(value)) {
      status = absl::DataLossError("text record under a key of another shape");
      return DocumentScan::Next::kNextDocument;
    }
    const int64_t piece_end = offset + TextBytesOfRecord(value);
    if (++pieces_seen == 1) {
      newest_offset = offset;
      durable_bytes = piece_end;
      sealed = record.ok() && record->seal;
      if (record.ok()) time_us = record->time_us;
      return offset == 0 ? DocumentScan::Next::kNextDocument : DocumentScan::Next::kContinue;
    }
    if (status.ok() && piece_end != newest_offset) {
      status = absl::DataLossError(absl::StrCat("text breaks off at byte ", piece_end,
                                                ", its last piece begins at ", newest_offset));
    }
    return DocumentScan::Next::kNextDocument;
  }

  absl::Status Finish() const {
    if (!status.ok() || pieces_seen != 1 || newest_offset == 0) return status;
    return absl::DataLossError(absl::StrCat("all text before byte ", newest_offset, " is missing"));
  }

  // See DocumentEntry::append_time.
  absl::Time AppendTime(absl::Time create_time) const {
    if (time_us.has_value()) return *time_us == 0 ? create_time : absl::FromUnixMicros(*time_us);
    return status.ok() ? create_time : absl::InfiniteFuture();
  }
};

}  // namespace

absl::Status MemoryStore::Impl::Load() {
  const absl::Time begin = absl::Now();
  absl::MutexLock ids_lock(&ids_mutex_);
  // Nobody else is here yet: the lock is held for its annotations, not against anyone.
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(LoadCatalog());
  RETURN_IF_ERROR(LoadPurges());
  std::vector<DocumentEntry*> documents;
  documents.reserve(catalog.documents().size());
  for (const auto& [uid, document] : catalog.documents()) documents.push_back(document.get());
  std::sort(documents.begin(), documents.end(),
            [](const DocumentEntry* a, const DocumentEntry* b) { return Before(a->key, b->key); });
  for (DocumentEntry* document : documents) CountDocument(*document, -1);
  RETURN_IF_ERROR(LoadTextEnds(documents));
  RETURN_IF_ERROR(LoadSegments(documents));
  for (DocumentEntry* document : documents) CountDocument(*document, 1);
  for (const auto& [uid, memory] : catalog.memories()) {
    absl::erase_if(memory->dropped, [this](const auto& drop) ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return catalog.FindDocument(drop.first) == nullptr;
    });
  }
  LogInfo("memory_store", "opened",
          {{"memories", absl::StrCat(catalog.memories().size())},
           {"documents", absl::StrCat(documents.size())},
           {"seconds", absl::StrCat(absl::ToDoubleSeconds(absl::Now() - begin))}});
  return absl::OkStatus();
}

absl::Status MemoryStore::Impl::LoadCatalog() {
  uint64_t memory_max = 0, document_max = 0;
  auto [memories_begin, memories_end] = MemoryKeyRange();
  RETURN_IF_ERROR(store.Scan(
      Table::kCatalog, memories_begin, memories_end,
      [&](absl::string_view key, absl::string_view value) ABSL_NO_THREAD_SAFETY_ANALYSIS {
        MemoryId uid;
        if (!ParseMemoryKey(key, &uid)) return true;
        memory_max = std::max(memory_max, static_cast<uint64_t>(uid));
        const absl::StatusOr<MemoryRecord> record = DecodeMemoryRecord(key, value);
        if (!record.ok()) {
          ReportDamage(RecordKind::kMemory, record.status());
          return true;
        }
        MemoryInfo info{uid,
                        record->tenant,
                        record->id,
                        record->display_name,
                        absl::FromUnixMicros(record->create_time_us),
                        PolicyOf(*record)};
        if (record->base_memory != 0) {
          info.base = MemoryBase{.memory = static_cast<MemoryId>(record->base_memory),
                                 .as_of = absl::FromUnixMicros(record->base_as_of_us)};
          last_fixed = std::max(last_fixed, info.base->as_of);
        }
        std::optional<MemoryId> deleted_before;
        if (record->deleted_before != 0) {
          deleted_before = static_cast<MemoryId>(record->deleted_before);
        }
        catalog.AddMemory(std::move(info), options.landmark_bytes, deleted_before);
        return true;
      }));
  for (const MemoryId fork : catalog.LinkForks()) {
    ReportDamage(RecordKind::kMemory,
                 absl::DataLossError(absl::StrCat("memory ", static_cast<uint64_t>(fork),
                                                  " is a fork of one that is not there")));
  }
  RETURN_IF_ERROR(LoadDrops());
  RETURN_IF_ERROR(LoadSnapshots());
  auto [documents_begin, documents_end] = DocumentRecordKeyRange();
  RETURN_IF_ERROR(store.Scan(
      Table::kCatalog, documents_begin, documents_end,
      [&](absl::string_view key, absl::string_view value) ABSL_NO_THREAD_SAFETY_ANALYSIS {
        DocumentKey document;
        if (!ParseDocumentRecordKey(key, &document)) return true;
        document_max = std::max(document_max, static_cast<uint64_t>(document.document));
        absl::StatusOr<DocumentRecord> record = DecodeDocumentRecord(key, value);
        MemoryEntry* memory = catalog.FindMemory(document.memory);
        if (record.ok() && memory == nullptr) {
          record = absl::DataLossError(
              absl::StrCat("document ", static_cast<uint64_t>(document.document), " is of memory ",
                           static_cast<uint64_t>(document.memory), ", which is not there"));
        }
        if (!record.ok()) {
          ReportDamage(RecordKind::kDocument, record.status());
          return true;
        }
        catalog.AddDocument(*memory, document.document, record->id,
                            absl::FromUnixMicros(record->create_time_us), ExpireTimeOf(*record));
        return true;
      }));

  const std::string key = CounterKey();
  const absl::StatusOr<std::string> value = store.Get(Table::kCatalog, key);
  absl::StatusOr<CounterRecord> counter = CounterRecord{};
  if (value.ok()) counter = DecodeCounterRecord(key, *value);
  if (!value.ok() && !absl::IsNotFound(value.status())) counter = value.status();
  if (absl::IsDataLoss(counter.status())) {
    ReportDamage(RecordKind::kCounter, counter.status());
    counter =
        CounterRecord{memory_max + kIdsSkippedAfterDamage, document_max + kIdsSkippedAfterDamage};
  }
  RETURN_IF_ERROR(counter.status());
  // What was reserved may have been given: begin after it. The first creation reserves anew.
  next_ids.next_memory = std::max(counter->next_memory, memory_max + 1);
  next_ids.next_document = std::max(counter->next_document, document_max + 1);
  reserved_ids = next_ids;
  return absl::OkStatus();
}

absl::Status MemoryStore::Impl::LoadDrops() {
  auto [begin, end] = DropKeyRange();
  return store.Scan(
      Table::kCatalog, begin, end,
      [&](absl::string_view key, absl::string_view value) ABSL_NO_THREAD_SAFETY_ANALYSIS {
        MemoryId memory;
        DocumentId document;
        if (!ParseDropKey(key, &memory, &document)) return true;
        const absl::StatusOr<DropRecord> record = DecodeDropRecord(key, value);
        // The key says what was dropped: of a damaged record is lost which forks hold it, so all
        // do.
        if (!record.ok()) ReportDamage(RecordKind::kDrop, record.status());
        if (MemoryEntry* entry = catalog.FindMemory(memory); entry != nullptr) {
          entry->dropped[document] =
              static_cast<MemoryId>(record.ok() ? record->before_memory : ~uint64_t{0});
        }
        return true;
      });
}

absl::Status MemoryStore::Impl::LoadSnapshots() {
  auto [begin, end] = SnapshotKeyRange();
  return store.Scan(
      Table::kCatalog, begin, end,
      [&](absl::string_view key, absl::string_view value) ABSL_NO_THREAD_SAFETY_ANALYSIS {
        MemoryId memory;
        std::string id;
        if (!ParseSnapshotKey(key, &memory, &id)) return true;
        const absl::StatusOr<SnapshotRecord> record = DecodeSnapshotRecord(key, value);
        if (!record.ok()) {
          ReportDamage(RecordKind::kSnapshot, record.status());
          return true;
        }
        MemoryEntry* entry = catalog.FindLiveMemory(memory);
        if (entry == nullptr) return true;
        const absl::Time as_of = absl::FromUnixMicros(record->time_us);
        entry->snapshots[id] = {id, as_of, absl::FromUnixMicros(record->create_time_us)};
        last_fixed = std::max(last_fixed, as_of);
        return true;
      });
}

absl::Status MemoryStore::Impl::LoadPurges() {
  auto [begin, end] = PurgeKeyRange();
  return store.Scan(Table::kCatalog, begin, end,
                    [&](absl::string_view key, absl::string_view value)
                        ABSL_NO_THREAD_SAFETY_ANALYSIS {
                          PurgeId id;
                          if (!ParsePurgeKey(key, &id)) return true;
                          absl::StatusOr<PurgeRecord> record = DecodePurgeRecord(key, value);
                          // The key says what to purge: of a damaged record is lost the receipt,
                          // and which documents of other memories went with it. Those stay deleted,
                          // but their bytes go when RocksDB happens to compact.
                          if (!record.ok()) ReportDamage(RecordKind::kPurge, record.status());
                          AddPurge(id, record.ok() ? *std::move(record) : PurgeRecord(), {});
                          return true;
                        });
}

absl::Status MemoryStore::Impl::LoadTextEnds(absl::Span<DocumentEntry* const> documents) {
  std::vector<TextEnd> ends(documents.size());
  RETURN_IF_ERROR(DocumentScan(store, Table::kText, documents)
                      .Run([&](size_t i, absl::string_view key,
                               absl::string_view value) { return ends[i].Take(key, value); },
                           [&](size_t i, const absl::Status& status) { ends[i].status = status; }));
  for (size_t i = 0; i < documents.size(); ++i) {
    documents[i]->durable_bytes = ends[i].durable_bytes;
    documents[i]->sealed = ends[i].sealed;
    documents[i]->append_time = ends[i].AppendTime(documents[i]->create_time);
    if (documents[i]->append_time != absl::InfiniteFuture()) {
      last_write = std::max(last_write, documents[i]->append_time);
    }
    if (const absl::Status status = ends[i].Finish(); !status.ok()) {
      documents[i]->damaged = true;
      documents[i]->text_end_unknown = ends[i].pieces_seen == 0;
      documents_damaged.Increment();
      ReportDamage(RecordKind::kText, status);
    }
  }
  return absl::OkStatus();
}

absl::Status MemoryStore::Impl::LoadSegments(absl::Span<DocumentEntry* const> documents) {
  const auto ignored = [this](const char* reason) -> Counter& {
    return metrics.AddCounter("store_ignored_segments_total",
                              "Derived segments left out at Open, to be derived again.",
                              {{"reason", reason}});
  };
  Counter& of_other_model = ignored("fingerprint");
  Counter& damaged = ignored("damaged");
  Counter& beyond_hole = ignored("hole");
  std::vector<bool> ended(documents.size());  // a segment was left out: so are those after it

  const auto take = [&](size_t i, absl::string_view key,
                        absl::string_view value) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    DocumentEntry& document = *documents[i];
    DocumentKey document_key;
    int64_t index = 0;
    if (!ParseSegmentKey(key, &document_key, &index)) return DocumentScan::Next::kContinue;
    document.stored_segments_end = index == kAllSegments ? index : index + 1;
    if (ended[i]) {
      beyond_hole.Increment();
      return DocumentScan::Next::kContinue;
    }
    ended[i] = true;  // unless all is well
    const absl::StatusOr<SegmentRecord> record = DecodeSegmentRecord(key, value);
    if (!record.ok()) {
      damaged.Increment();
      ReportDamage(RecordKind::kSegment, record.status());
      return DocumentScan::Next::kContinue;
    }
    // What was derived from was durable: text that ends before has lost its end.
    if (record->byte_end > document.durable_bytes) {
      if (!document.damaged) {
        document.damaged = true;
        documents_damaged.Increment();
        ReportDamage(
            RecordKind::kText,
            absl::DataLossError(absl::StrCat(
                "text of document ", static_cast<uint64_t>(document.key.document), " ends at byte ",
                document.durable_bytes, "; chunks were derived up to ", record->byte_end)));
      }
      document.durable_bytes = record->byte_end;
      document.append_time = absl::InfiniteFuture();
    }
    if (record->derivation_fingerprint != options.derivation_fingerprint) {
      of_other_model.Increment();
      return DocumentScan::Next::kContinue;
    }
    const int64_t chunk_count = static_cast<int64_t>(record->chunk_byte_begin.size());
    // Segments tile the text: where one begins behind the end of those before it, the last of them
    // is an older version.
    if (index != static_cast<int64_t>(document.segments.size()) ||
        record->byte_begin > document.visible_bytes() ||
        record->byte_end < document.visible_bytes() ||
        static_cast<int64_t>(record->landmarks.size()) != chunk_count * options.landmark_bytes) {
      beyond_hole.Increment();
      return DocumentScan::Next::kContinue;
    }
    ended[i] = false;
    SegmentEntry entry;
    entry.encode_from_byte = record->encode_from_byte;
    entry.skip_tokens = record->skip_tokens;
    entry.token_count = record->token_count;
    entry.byte_begin = record->byte_begin;
    entry.byte_end = record->byte_end;
    entry.chunk_count = chunk_count;
    AppendSegment(document, entry, record->chunk_byte_begin,
                  reinterpret_cast<const uint8_t*>(record->landmarks.data()));
    return DocumentScan::Next::kContinue;
  };
  return DocumentScan(store, Table::kSegments, documents)
      .Run(take, [&](size_t i, const absl::Status& status) {
        ended[i] = true;
        documents[i]->stored_segments_end = kAllSegments;
        damaged.Increment();
        ReportDamage(RecordKind::kSegment, status);
      });
}

}  // namespace mneme
