#include "memory_store/store_checker.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <system_error>
#include <tuple>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "memory_store/key_after.h"
#include "memory_store/memory_store_impl.h"

namespace mneme {
namespace {

// Text read before the next step.
constexpr int64_t kSliceBytes = int64_t{1} << 20;

bool Before(const DocumentKey& a, const DocumentKey& b) {
  return std::tie(a.memory, a.document) < std::tie(b.memory, b.document);
}

size_t Index(StoreFinding::Kind kind) { return static_cast<size_t>(kind); }

}  // namespace

const char* StoreFindingKindName(StoreFinding::Kind kind) {
  switch (kind) {
    case StoreFinding::Kind::kFile:
      return "file";
    case StoreFinding::Kind::kCatalog:
      return "catalog";
    case StoreFinding::Kind::kText:
      return "text";
    case StoreFinding::Kind::kSegment:
      return "segment";
    case StoreFinding::Kind::kPage:
      return "page";
    case StoreFinding::Kind::kOrphan:
      return "orphan";
  }
  return "";
}

int64_t StoreCheckReport::bytes_read() const {
  int64_t bytes = files.bytes;
  for (const Read& table : records) bytes += table.bytes;
  return bytes;
}

int64_t StoreCheckReport::found_count() const {
  int64_t count = 0;
  for (const int64_t of_kind : found) count += of_kind;
  return count;
}

int64_t StoreCheckReport::healed_count() const {
  int64_t count = 0;
  for (const int64_t of_kind : healed) count += of_kind;
  return count;
}

struct StoreChecker::DocumentNow {
  DocumentKey key;
  int64_t durable_bytes = 0;
  bool damaged = false;
  bool newest_unread = false;  // see DocumentEntry::append_time
  // Of one segment.
  SegmentEntry segment;
  std::vector<int64_t> chunk_byte_begin;

  StoreFinding Finding(StoreFinding::Kind kind, int64_t byte_begin, int64_t byte_end,
                       std::string what) const {
    StoreFinding finding;
    finding.kind = kind;
    finding.memory = key.memory;
    finding.document = key.document;
    finding.byte_begin = byte_begin;
    finding.byte_end = byte_end;
    finding.what = std::move(what);
    return finding;
  }
};

// What was read of one segment.
struct StoreChecker::SegmentState {
  absl::Status record;  // DATA_LOSS: damaged, missing, or another than the visible one
  absl::Status page;    // of the first damaged page
  int64_t pages_good = 0;
  int64_t pages_missing = 0;  // or of another version: as good as none
  int64_t pages_damaged = 0;

  // A segment without any page is whole: its pages are not kept.
  bool pages_sound() const { return pages_damaged == 0 && (pages_missing == 0 || pages_good == 0); }
};

StoreChecker::StoreChecker(MemoryStore& store, StoreCheckOptions options)
    : store_(store), impl_(*store.impl_), options_(std::move(options)) {}

absl::Status StoreChecker::Step() {
  return options_.step ? options_.step(report_) : absl::OkStatus();
}

void StoreChecker::Count(Table table, int64_t bytes) {
  StoreCheckReport::Read& read = report_.records[static_cast<size_t>(table)];
  ++read.count;
  read.bytes += bytes;
}

void StoreChecker::Name(StoreFinding* finding) const {
  absl::ReaderMutexLock lock(&impl_.mutex_);
  const DocumentEntry* document = impl_.catalog.FindDocument(finding->document);
  if (document == nullptr) return;
  const MemoryEntry* holder = nullptr;
  if (options_.memory.has_value()) {
    holder = impl_.catalog.FindLiveMemory(*options_.memory);
  } else if (!document->dropped) {
    holder = document->memory;
  } else {
    // Its own memory has let go of it, or has gone.
    for (const MemoryEntry* other : Holders(*document, {})) {
      if (holder == nullptr || other->info.uid < holder->info.uid) holder = other;
    }
  }
  if (holder == nullptr) return;
  finding->tenant = holder->info.tenant;
  finding->memory_id = holder->info.id;
  finding->document_id = document->id;
}

void StoreChecker::Add(StoreFinding finding) {
  Name(&finding);
  ++report_.found[Index(finding.kind)];
  if (finding.healed) ++report_.healed[Index(finding.kind)];
  LogWarning("memory_store", "damage found",
             {{"kind", StoreFindingKindName(finding.kind)},
              {"document", absl::StrCat(static_cast<uint64_t>(finding.document))},
              {"file", finding.file},
              {"healed", finding.healed ? "true" : "false"},
              {"what", finding.what}});
  if (report_.findings.size() < StoreCheckReport::kFindingsMax) {
    report_.findings.push_back(std::move(finding));
  }
}

absl::StatusOr<StoreCheckReport> StoreChecker::Run() {
  if (!options_.memory.has_value()) {
    RETURN_IF_ERROR(CheckFiles());
    RETURN_IF_ERROR(CheckCatalog());
    for (const Table table : {Table::kText, Table::kSegments, Table::kPages}) {
      RETURN_IF_ERROR(CheckOrphans(table));
    }
  }
  for (const DocumentId document : Documents()) {
    RETURN_IF_ERROR(CheckDocument(document));
    ++report_.documents;
    RETURN_IF_ERROR(Step());
  }
  RETURN_IF_ERROR(MendBlobFiles());
  return std::move(report_);
}

std::vector<DocumentId> StoreChecker::Documents() const {
  std::vector<DocumentId> list;
  {
    absl::ReaderMutexLock lock(&impl_.mutex_);
    const auto add = [&list](const MemoryEntry& home, const MemoryEntry* seen_by) {
      for (const auto& [uid, document] : home.documents) {
        if (seen_by == nullptr || SeenUntil(*seen_by, *document)) list.push_back(uid);
      }
    };
    if (options_.memory.has_value()) {
      const MemoryEntry* memory = impl_.catalog.FindLiveMemory(*options_.memory);
      for (const MemoryEntry* m = memory; m != nullptr; m = m->base) add(*m, memory);
    } else {
      for (const auto& [uid, memory] : impl_.catalog.memories()) add(*memory, nullptr);
    }
  }
  std::sort(list.begin(), list.end());
  return list;
}

absl::Status StoreChecker::CheckFiles() {
  std::vector<StoreFile> files;
  {
    // Not held while they are read, which may take days: a file that goes away was replaced.
    ASSIGN_OR_RETURN(const StoreFiles now, impl_.store.Files(ChunkStore::FilesFor::kCheck));
    files = now.files();
  }
  for (const StoreFile& file : files) {
    if (!file.damage.empty()) {
      StoreFinding finding;
      finding.kind = StoreFinding::Kind::kFile;
      finding.file = file.name;
      finding.what = absl::StrCat("when the store was opened: ", file.damage);
      std::error_code unknown;
      finding.healed = !std::filesystem::exists(file.path, unknown);  // given up at Open
      Add(std::move(finding));
    }
    if (!file.crc32c.has_value()) continue;
    absl::Status stopped;
    const absl::StatusOr<uint32_t> crc = FileCrc32c(file.path, file.bytes, [&](int64_t bytes) {
      report_.files.bytes += bytes;
      stopped = Step();
      return stopped;
    });
    RETURN_IF_ERROR(stopped);
    if (absl::IsNotFound(crc.status())) continue;
    ++report_.files.count;
    if (crc.ok() && *crc == *file.crc32c) continue;
    StoreFinding finding;
    finding.kind = StoreFinding::Kind::kFile;
    finding.file = file.name;
    finding.what = crc.ok() ? absl::StrCat("crc ", *crc, ", recorded ", *file.crc32c)
                            : std::string(crc.status().message());
    if (options_.heal && file.kind == StoreFile::Kind::kBlobs) {
      blob_files_.push_back(file);
    } else if (options_.heal) {
      // The documents are checked after it: what is derived is derived again.
      const absl::Status mended =
          impl_.store.MendFile(file, [this](const LostRecords& lost) -> absl::Status {
            if (options_.give_up_text || lost.range.table != Table::kText) {
              return impl_.GiveUpRecords(lost);
            }
            return absl::DataLossError("it holds text that a repair would give up");
          });
      finding.healed = mended.ok();
      if (!mended.ok()) absl::StrAppend(&finding.what, "; ", mended.message());
    }
    Add(std::move(finding));
  }
  return absl::OkStatus();
}

absl::Status StoreChecker::MendBlobFiles() {
  for (const StoreFile& file : blob_files_) {
    const absl::Status mended = impl_.store.MendFile(file, {});
    if (!mended.ok()) {
      LogWarning("memory_store", "damaged file not mended",
                 {{"file", file.name}, {"status", mended.ToString()}});
    }
  }
  if (blob_files_.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const StoreFiles now, impl_.store.Files(ChunkStore::FilesFor::kCheck));
  for (StoreFinding& finding : report_.findings) {
    if (finding.kind != StoreFinding::Kind::kFile || finding.healed) continue;
    const auto is_it = [&](const StoreFile& file) { return file.name == finding.file; };
    if (std::any_of(now.files().begin(), now.files().end(), is_it)) continue;
    finding.healed = true;
    ++report_.healed[Index(finding.kind)];
  }
  return absl::OkStatus();
}

absl::Status StoreChecker::CheckCatalog() {
  const auto damaged = [this](const absl::Status& status, MemoryId memory, DocumentId document) {
    StoreFinding finding;
    finding.kind = StoreFinding::Kind::kCatalog;
    finding.memory = memory;
    finding.document = document;
    finding.what = std::string(status.message());
    Add(std::move(finding));
  };
  const absl::Status status = impl_.store.Scan(
      Table::kCatalog, "", "", [&](absl::string_view key, absl::string_view value) {
        Count(Table::kCatalog, static_cast<int64_t>(key.size() + value.size()));
        MemoryId memory{};
        DocumentKey document;
        std::string snapshot;
        absl::Status record;
        if (ParseMemoryKey(key, &memory)) {
          record = DecodeMemoryRecord(key, value).status();
        } else if (ParseDocumentRecordKey(key, &document)) {
          memory = document.memory;
          record = DecodeDocumentRecord(key, value).status();
        } else if (ParseDropKey(key, &memory, &document.document)) {
          record = DecodeDropRecord(key, value).status();
        } else if (ParseSnapshotKey(key, &memory, &snapshot)) {
          record = DecodeSnapshotRecord(key, value).status();
        } else if (key == CounterKey()) {
          record = DecodeCounterRecord(key, value).status();
        }
        if (!record.ok()) damaged(record, memory, document.document);
        return true;
      });
  if (absl::IsDataLoss(status)) {
    damaged(status, MemoryId{}, DocumentId{});
  } else if (!status.ok()) {
    return status;
  }
  return Step();
}

absl::Status StoreChecker::CheckOrphans(Table table) {
  std::vector<DocumentKey> known;
  {
    absl::ReaderMutexLock lock(&impl_.mutex_);
    for (const auto& [uid, entry] : impl_.catalog.documents()) known.push_back(entry->key);
  }
  std::sort(known.begin(), known.end(), Before);
  const auto is_known = [this](const DocumentKey& key) {
    absl::ReaderMutexLock lock(&impl_.mutex_);
    const DocumentEntry* entry = impl_.catalog.FindDocument(key.document);
    return entry != nullptr && entry->key == key;
  };
  std::string cursor;
  while (true) {
    std::optional<DocumentKey> met;  // whose record comes first from the cursor on
    const auto meet = [&](absl::string_view key, absl::string_view) {
      DocumentKey document;
      if (!ParseRecordKeyDocument(key, &document)) return true;
      met = document;
      return false;
    };
    const absl::Status status = impl_.store.Scan(table, cursor, "", meet);
    if (absl::IsDataLoss(status)) {
      // Whose that is, the check of the documents tells: go on behind the next of them.
      const auto next = std::find_if(known.begin(), known.end(), [&](const DocumentKey& key) {
        return RecordKeyRange(key).first >= cursor;
      });
      if (next == known.end()) return absl::OkStatus();
      cursor = RecordKeyRange(*next).second;
      continue;
    }
    RETURN_IF_ERROR(status);
    if (!met.has_value()) return absl::OkStatus();
    auto [begin, end] = RecordKeyRange(*met);
    cursor = end;
    RETURN_IF_ERROR(Step());
    if (is_known(*met)) continue;
    // A deletion that was just under way is over behind the gate.
    absl::WriterMutexLock gate(&impl_.write_gate_);
    met.reset();
    RETURN_IF_ERROR(impl_.store.Scan(table, begin, end, meet));
    if (!met.has_value() || is_known(*met)) continue;
    StoreFinding finding;
    finding.kind = StoreFinding::Kind::kOrphan;
    finding.memory = met->memory;
    finding.document = met->document;
    finding.what = table == Table::kText
                       ? "text of a document that the catalog does not know"
                       : "derived records of a document that the catalog does not know";
    if (options_.heal && table != Table::kText) {
      WriteBatch batch;
      batch.DeleteRange(table, std::move(begin), std::move(end));
      finding.healed = impl_.store.Write(batch, Durability::kWriteBehind).ok();
    }
    Add(std::move(finding));
  }
}

bool StoreChecker::Find(DocumentId document, int64_t segment_index, DocumentNow* now) const {
  absl::ReaderMutexLock lock(&impl_.mutex_);
  const DocumentEntry* entry = impl_.catalog.FindDocument(document);
  if (entry == nullptr) return false;
  now->key = entry->key;
  now->durable_bytes = entry->durable_bytes;
  now->damaged = entry->damaged;
  now->newest_unread = entry->append_time == absl::InfiniteFuture();
  if (segment_index < 0) return true;
  if (segment_index >= static_cast<int64_t>(entry->segments.size())) return false;
  now->segment = entry->segments[segment_index];
  const absl::Span<const int64_t> begins =
      entry->memory->landmarks.ByteBegin(document, segment_index);
  now->chunk_byte_begin.assign(begins.begin(), begins.end());
  return true;
}

absl::Status StoreChecker::CheckDocument(DocumentId document) {
  DocumentNow now;
  if (!Find(document, -1, &now)) return absl::OkStatus();
  RETURN_IF_ERROR(CheckText(now));
  bool exists = true;
  for (int64_t segment = 0; exists; ++segment) {
    RETURN_IF_ERROR(CheckSegment(document, segment, &exists));
  }
  return absl::OkStatus();
}

absl::Status StoreChecker::CheckText(DocumentNow document) {
  const int64_t known_bytes = document.durable_bytes;
  const absl::Status newest = document.newest_unread ? ReadNewestText(&document) : absl::OkStatus();
  if (!newest.ok() && !absl::IsDataLoss(newest)) return newest;
  std::vector<StoreFinding> findings;
  RETURN_IF_ERROR(WalkText(document, &findings));
  const bool named = !findings.empty() && findings.front().byte_end == document.durable_bytes;
  if (!newest.ok() && !named) {
    findings.insert(
        findings.begin(),
        document.Finding(StoreFinding::Kind::kText, document.durable_bytes, document.durable_bytes,
                         absl::StrCat("the newest text cannot be read: ", newest.message())));
  }
  if (findings.empty()) {
    if (document.damaged) AddReadableAgain(document);
    return absl::OkStatus();
  }
  // A deletion under way looks like damage.
  const absl::Status marked = impl_.MarkTextDamaged(document.key.document, known_bytes,
                                                    absl::DataLossError(findings.front().what));
  if (!absl::IsDataLoss(marked)) return absl::OkStatus();
  for (StoreFinding& finding : findings) Add(std::move(finding));
  return absl::OkStatus();
}

absl::Status StoreChecker::ReadNewestText(DocumentNow* document) {
  // Not while a deletion takes it away.
  absl::ReaderMutexLock gate(&impl_.write_gate_);
  int64_t end = 0;
  TextRecord newest;
  absl::Status damage;
  const auto [begin, range_end] = RecordKeyRange(document->key);
  RETURN_IF_ERROR(impl_.store.Scan(
      Table::kText, KeyAfter(begin), range_end,
      [&](absl::string_view key, absl::string_view value) {
        DocumentKey piece_document;
        const absl::StatusOr<TextRecord> record = DecodeTextRecord(key, value);
        if (!record.ok()) {
          damage = record.status();
        } else if (!ParseTextKey(key, &piece_document, &end) ||
                   end > std::numeric_limits<int64_t>::max() - TextBytesOfRecord(value)) {
          damage = absl::DataLossError("text record under a key of another shape");
        } else {
          newest = {.seal = record->seal, .time_us = record->time_us};
          end += static_cast<int64_t>(record->text.size());
        }
        return false;
      }));
  RETURN_IF_ERROR(damage);
  if (end < document->durable_bytes) return absl::OkStatus();  // the walk finds what is missing
  document->durable_bytes = end;
  if (!options_.heal) return absl::OkStatus();
  absl::MutexLock lock(&impl_.mutex_);
  DocumentEntry* entry = impl_.catalog.FindDocument(document->key.document);
  if (entry == nullptr || entry->append_time != absl::InfiniteFuture()) return absl::OkStatus();
  CountDocument(*entry, -1);
  entry->durable_bytes = end;
  entry->sealed = newest.seal;
  entry->append_time =
      newest.time_us == 0 ? entry->create_time : absl::FromUnixMicros(newest.time_us);
  entry->text_end_unknown = false;
  CountDocument(*entry, 1);
  impl_.views.Clear();
  return absl::OkStatus();
}

// Pieces come newest first, and each must end where the one after it begins. Behind damage the walk
// goes on where text can be read again, so that all of it is found and none named twice.
absl::Status StoreChecker::WalkText(const DocumentNow& document,
                                    std::vector<StoreFinding>* findings) {
  int64_t end = document.durable_bytes;  // text from here on has been checked
  const auto bad = [&](int64_t begin, std::string what) {
    if (begin < end) {
      findings->push_back(document.Finding(StoreFinding::Kind::kText, begin, end, std::move(what)));
    }
    end = std::min(begin, end);
  };
  const std::string range_end = RecordKeyRange(document.key).second;
  int64_t failed_at = -1;
  while (end > 0) {
    int64_t slice_bytes = 0;
    const int64_t before = end;
    const absl::Status status = impl_.store.Scan(
        Table::kText, TextKey(document.key, end - 1), range_end,
        [&](absl::string_view key, absl::string_view value) {
          Count(Table::kText, static_cast<int64_t>(key.size() + value.size()));
          slice_bytes += static_cast<int64_t>(key.size() + value.size());
          DocumentKey piece_document;
          int64_t offset = 0;
          if (!ParseTextKey(key, &piece_document, &offset) || offset >= end) {
            bad(0, "text record under a key of another shape");
            return false;
          }
          const absl::StatusOr<TextRecord> record = DecodeTextRecord(key, value);
          if (!record.ok()) {
            bad(offset, std::string(record.status().message()));
          } else {
            const int64_t piece_end = offset + static_cast<int64_t>(record->text.size());
            if (piece_end < end) bad(piece_end, "text is missing");
            if (piece_end > end) bad(offset, "two pieces of text overlap");
            if (record->seal && piece_end != document.durable_bytes) {
              bad(offset, "a seal with text behind it");
            }
            end = std::min(end, offset);
          }
          return end > 0 && slice_bytes < kSliceBytes;
        });
    RETURN_IF_ERROR(Step());
    if (absl::IsDataLoss(status)) {
      const int64_t readable_end = FindReadableText(document.key, end - 1);
      if (readable_end < end || failed_at == end) {
        bad(std::min(readable_end, end - 1), std::string(status.message()));
      }
      failed_at = end;  // may have been for once: look there again
    } else if (!status.ok()) {
      return status;
    } else if (end == before) {
      bad(0, "text is missing");
    }
  }
  return absl::OkStatus();
}

void StoreChecker::AddReadableAgain(const DocumentNow& document) {
  StoreFinding finding = document.Finding(StoreFinding::Kind::kText, 0, document.durable_bytes,
                                          "could not be read earlier; can be read now");
  if (options_.heal) {
    absl::MutexLock lock(&impl_.mutex_);
    DocumentEntry* entry = impl_.catalog.FindDocument(document.key.document);
    if (entry == nullptr) return;
    CountDocument(*entry, -1);
    entry->damaged = false;
    CountDocument(*entry, 1);
    impl_.views.Clear();
    finding.healed = true;
  }
  Add(std::move(finding));
}

int64_t StoreChecker::FindReadableText(const DocumentKey& key, int64_t unreadable) {
  const std::string range_end = RecordKeyRange(key).second;
  int64_t readable = -1;  // the last place found that can be read
  int64_t readable_end = 0;
  for (int64_t at = unreadable; at > readable; at = readable + (unreadable - readable) / 2) {
    int64_t piece_end = 0;
    const absl::Status status =
        impl_.store.Scan(Table::kText, TextKey(key, at), range_end,
                         [&](absl::string_view record_key, absl::string_view value) {
                           DocumentKey document;
                           if (ParseTextKey(record_key, &document, &piece_end)) {
                             piece_end += TextBytesOfRecord(value);
                           }
                           return false;
                         });
    if (status.ok()) {
      readable = at;
      readable_end = piece_end;
    } else {
      unreadable = at;
    }
  }
  return readable_end;
}

absl::StatusOr<StoreChecker::SegmentState> StoreChecker::ReadSegment(const DocumentNow& document,
                                                                     int64_t segment_index) {
  SegmentState state;
  const SegmentEntry& visible = document.segment;
  const std::string key = SegmentKey(document.key, segment_index);
  const absl::StatusOr<std::string> value = impl_.store.Get(Table::kSegments, key);
  if (absl::IsNotFound(value.status())) {
    state.record = absl::DataLossError("the record is missing");
  } else if (absl::IsDataLoss(value.status())) {
    state.record = value.status();
  } else if (!value.ok()) {
    return value.status();
  } else {
    Count(Table::kSegments, static_cast<int64_t>(key.size() + value->size()));
    const absl::StatusOr<SegmentRecord> record = DecodeSegmentRecord(key, *value);
    state.record = record.status();
    if (record.ok() &&
        (record->derivation_fingerprint != impl_.options.derivation_fingerprint ||
         record->encode_from_byte != visible.encode_from_byte ||
         record->skip_tokens != visible.skip_tokens || record->token_count != visible.token_count ||
         record->byte_begin != visible.byte_begin || record->byte_end != visible.byte_end ||
         record->chunk_byte_begin != document.chunk_byte_begin ||
         static_cast<int64_t>(record->landmarks.size()) !=
             visible.chunk_count * impl_.options.landmark_bytes)) {
      state.record = absl::DataLossError(absl::StrCat(
          "the record covers bytes [", record->byte_begin, ", ", record->byte_end,
          "), the visible segment [", visible.byte_begin, ", ", visible.byte_end, ")"));
    }
  }

  std::vector<std::string> keys;
  for (int64_t chunk = 0; chunk < visible.chunk_count; ++chunk) {
    keys.push_back(PageKey(document.key, segment_index, chunk));
  }
  const auto pages = impl_.store.MultiGet(Table::kPages, keys);
  for (size_t i = 0; i < keys.size(); ++i) {
    absl::Status status = pages[i].status();
    if (status.ok()) {
      Count(Table::kPages, static_cast<int64_t>(keys[i].size() + pages[i]->size()));
      const absl::StatusOr<PageRecord> record = DecodePageRecord(keys[i], *pages[i]);
      status = record.status();
      if (record.ok()) {
        const bool fits = record->derivation_fingerprint == impl_.options.derivation_fingerprint &&
                          record->segment_byte_end == visible.byte_end &&
                          static_cast<int64_t>(record->page.size()) == impl_.options.page_bytes;
        ++(fits ? state.pages_good : state.pages_missing);
        continue;
      }
    }
    if (absl::IsNotFound(status)) {
      ++state.pages_missing;
    } else if (absl::IsDataLoss(status)) {
      ++state.pages_damaged;
      if (state.page.ok()) state.page = status;
    } else {
      return status;
    }
  }
  return state;
}

absl::Status StoreChecker::CheckSegment(DocumentId document, int64_t segment_index, bool* exists) {
  DocumentNow now;
  *exists = Find(document, segment_index, &now);
  if (!*exists) return absl::OkStatus();
  ASSIGN_OR_RETURN(SegmentState state, ReadSegment(now, segment_index));
  if (!state.record.ok() || !state.pages_sound()) {
    // It may just have been replaced: look again while nobody can.
    absl::ReaderMutexLock gate(&impl_.write_gate_);
    {
      absl::MutexLock lock(&impl_.mutex_);
      impl_.AwaitDerivations({document});
      DocumentEntry* entry = impl_.catalog.FindDocument(document);
      *exists = entry != nullptr;
      if (!*exists) return absl::OkStatus();
      entry->derivation_in_flight = true;
    }
    const absl::Cleanup done = [&] {
      absl::MutexLock lock(&impl_.mutex_);
      impl_.catalog.FindDocument(document)->derivation_in_flight = false;
    };
    *exists = Find(document, segment_index, &now);
    if (!*exists) return absl::OkStatus();
    ASSIGN_OR_RETURN(state, ReadSegment(now, segment_index));
  }
  if (state.record.ok() && state.pages_sound()) {
    if (state.pages_good == 0 && state.pages_missing > 0) ++report_.segments_without_pages;
    return Step();
  }
  bool healed = false;
  std::string why_not;
  if (options_.heal) {
    const absl::Status status =
        options_.derive(document, segment_index, state.pages_good > 0 || state.pages_damaged > 0);
    healed = status.ok();
    if (!healed) why_not = absl::StrCat("; not derived again: ", status.message());
  }
  const auto add = [&](StoreFinding::Kind kind, std::string what) {
    StoreFinding finding = now.Finding(kind, now.segment.byte_begin, now.segment.byte_end,
                                       absl::StrCat(what, why_not));
    finding.segment_index = segment_index;
    finding.healed = healed;
    Add(std::move(finding));
  };
  if (!state.record.ok()) {
    impl_.CorruptRecords(RecordKind::kSegment).Increment();
    add(StoreFinding::Kind::kSegment, std::string(state.record.message()));
  }
  if (!state.pages_sound()) {
    impl_.CorruptRecords(RecordKind::kPage).Increment();
    add(StoreFinding::Kind::kPage,
        absl::StrCat(state.pages_damaged, " pages damaged, ", state.pages_missing, " missing of ",
                     now.segment.chunk_count, state.page.ok() ? "" : ": ", state.page.message()));
  }
  return Step();
}

}  // namespace mneme
