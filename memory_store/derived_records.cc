// MemoryStore: what is derived from text, as it is put: segments, their landmarks and pages. See
// memory_store_impl.h for the locks.

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

absl::string_view Bytes(const uint8_t* data, int64_t count) {
  return {reinterpret_cast<const char*>(data), static_cast<size_t>(count)};
}

std::string Name(DocumentId document, int64_t segment_index) {
  return absl::StrCat("segment ", segment_index, " of document ", static_cast<uint64_t>(document));
}

int64_t ChunkCount(const SegmentDerived& segment) {
  return static_cast<int64_t>(segment.chunk_byte_begin.size());
}

// A run of pages that a segment of so many chunks has.
absl::Status CheckPages(absl::Span<const uint8_t> pages, int64_t first_chunk, int64_t chunk_count,
                        DocumentId document, int64_t segment_index,
                        const MemoryStoreOptions& options) {
  const int64_t count = static_cast<int64_t>(pages.size()) / options.page_bytes;
  const bool whole = static_cast<int64_t>(pages.size()) % options.page_bytes == 0;
  const bool some = count > 0 || chunk_count == 0;
  if (whole && some && first_chunk >= 0 && first_chunk + count <= chunk_count) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(Name(document, segment_index), ": ", pages.size(),
                                                 " bytes of pages of ", options.page_bytes,
                                                 " from chunk ", first_chunk, " of ", chunk_count));
}

void PutPageRecords(DocumentKey document, int64_t segment_index, int64_t segment_byte_end,
                    uint64_t fingerprint, int64_t page_bytes, absl::Span<const uint8_t> pages,
                    WriteBatch* batch, int64_t first_chunk = 0) {
  const int64_t count = static_cast<int64_t>(pages.size()) / page_bytes;
  for (int64_t chunk = 0; chunk < count; ++chunk) {
    const std::string key = PageKey(document, segment_index, first_chunk + chunk);
    batch->Put(Table::kPages, key,
               EncodeRecord(key, PageRecord{fingerprint, segment_byte_end,
                                            Bytes(pages.data() + chunk * page_bytes, page_bytes)}));
  }
}

bool PolicyKeepsPages(const MemoryEntry& memory) {
  return memory.info.policy.retention == Retention::kKeep;
}

void PutSegmentRecord(DocumentKey document, const SegmentDerived& s, WriteBatch* batch) {
  SegmentRecord record;
  record.derivation_fingerprint = s.derivation_fingerprint;
  record.encode_from_byte = s.encode_from_byte;
  record.skip_tokens = s.skip_tokens;
  record.token_count = s.token_count;
  record.byte_begin = s.byte_begin;
  record.byte_end = s.byte_end;
  record.chunk_byte_begin = s.chunk_byte_begin;
  record.landmarks = Bytes(s.landmarks.data(), static_cast<int64_t>(s.landmarks.size()));
  const std::string key = SegmentKey(document, s.segment_index);
  batch->Put(Table::kSegments, key, EncodeRecord(key, record));
}

}  // namespace

// What a call of PutSegments does to one document: segments [first, end) take the place of all from
// `first` on.
struct MemoryStore::Impl::Change {
  DocumentKey document;
  int64_t first = 0;
  int64_t end = 0;
  int64_t stored_end = 0;              // before
  bool keeps_pages = true;             // on the disk
  std::vector<SegmentEntry> replaced;  // from `first` on, as it was before

  // Whether pages from this chunk on may be on disk, of the segment that one of this index
  // replaces.
  bool MayLeavePages(int64_t segment_index, int64_t chunk) const {
    const size_t position = static_cast<size_t>(segment_index - first);
    if (position < replaced.size()) return replaced[position].chunk_count > chunk;
    return segment_index < stored_end;
  }
};

absl::Status CheckSegment(const SegmentDerived& s, const MemoryStoreOptions& options) {
  const int64_t chunk_count = ChunkCount(s);
  std::string wrong;
  if (s.derivation_fingerprint != options.derivation_fingerprint) {
    wrong = absl::StrCat("derivation fingerprint ", s.derivation_fingerprint, ", the store's is ",
                         options.derivation_fingerprint);
  } else if (s.segment_index < 0 || s.encode_from_byte < 0 || s.skip_tokens < 0 ||
             s.token_count < 0 || s.byte_begin < 0 || s.byte_end < s.byte_begin) {
    wrong = absl::StrCat("negative count or range: encode from byte ", s.encode_from_byte,
                         ", skip ", s.skip_tokens, ", tokens ", s.token_count, ", bytes [",
                         s.byte_begin, ", ", s.byte_end, ")");
  } else if (static_cast<int64_t>(s.landmarks.size()) != chunk_count * options.landmark_bytes) {
    wrong = absl::StrCat(s.landmarks.size(), " bytes of landmarks for ", chunk_count, " chunks of ",
                         options.landmark_bytes);
  } else if (!s.pages.empty() &&
             static_cast<int64_t>(s.pages.size()) != chunk_count * options.page_bytes) {
    wrong = absl::StrCat(s.pages.size(), " bytes of pages for ", chunk_count, " chunks of ",
                         options.page_bytes);
  } else if (!std::is_sorted(s.chunk_byte_begin.begin(), s.chunk_byte_begin.end()) ||
             (chunk_count > 0 &&
              (s.chunk_byte_begin.front() < 0 || s.chunk_byte_begin.back() > s.byte_end))) {
    wrong = absl::StrCat("chunks that do not ascend within ", s.byte_end, " bytes");
  }
  if (wrong.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(Name(s.document, s.segment_index), ": ", wrong));
}

std::vector<PageId> PageIds(DocumentId document, int64_t segment_index, int64_t segment_byte_end,
                            int64_t count, int64_t first) {
  std::vector<PageId> ids;
  ids.reserve(static_cast<size_t>(count));
  for (int64_t chunk = first; chunk < first + count; ++chunk) {
    ids.push_back({document, segment_index, segment_byte_end, chunk});
  }
  return ids;
}

void MemoryStore::Impl::TruncateSegments(DocumentEntry& document, int64_t segment_index) {
  document.memory->landmarks.Erase(document.key.document, segment_index);
  while (static_cast<int64_t>(document.segments.size()) > segment_index) {
    document.token_count -= document.segments.back().token_count;
    document.segments.pop_back();
  }
}

void MemoryStore::Impl::AppendSegment(DocumentEntry& document, SegmentEntry entry,
                                      absl::Span<const int64_t> chunk_byte_begin,
                                      const uint8_t* landmarks) {
  entry.first_chunk = document.chunk_count();
  document.memory->landmarks.Put({document.key.document,
                                  static_cast<int64_t>(document.segments.size()), entry.first_chunk,
                                  entry.byte_end, chunk_byte_begin, landmarks});
  document.token_count += entry.token_count;
  document.segments.push_back(entry);
}

absl::flat_hash_set<DocumentId> MemoryStore::Impl::Outdated(
    absl::Span<const SegmentDerived> segments) const {
  absl::flat_hash_set<DocumentId> outdated;
  absl::flat_hash_map<DocumentId, int64_t> next;
  for (const SegmentDerived& segment : segments) {
    const DocumentEntry* const entry = catalog.FindDocument(segment.document);
    if (entry == nullptr || !entry->dropped) continue;
    const auto [at, is_first] = next.try_emplace(segment.document, segment.segment_index);
    const bool follows = is_first
                             ? segment.segment_index <= static_cast<int64_t>(entry->segments.size())
                             : segment.segment_index == at->second;
    if (!follows || segment.byte_end > entry->durable_bytes) outdated.insert(segment.document);
    at->second = segment.segment_index + 1;
  }
  return outdated;
}

absl::StatusOr<MemoryStore::Impl::Changes> MemoryStore::Impl::ChangesOf(
    absl::Span<const SegmentDerived> segments) const {
  Changes changes;
  const absl::flat_hash_set<DocumentId> outdated = Outdated(segments);
  for (const SegmentDerived& segment : segments) {
    const DocumentEntry* const entry = catalog.FindDocument(segment.document);
    if (entry == nullptr || outdated.contains(segment.document)) continue;
    const DocumentEntry& document = *entry;
    const auto [it, is_first] = changes.try_emplace(
        segment.document, Change{document.key, segment.segment_index, segment.segment_index});
    Change& change = it->second;
    const int64_t segment_count = static_cast<int64_t>(document.segments.size());
    if (is_first) change.stored_end = document.stored_segments_end;
    change.keeps_pages = PolicyKeepsPages(*document.memory);
    if (is_first && segment.segment_index < segment_count) {
      change.replaced.assign(document.segments.begin() + change.first, document.segments.end());
    }
    if (segment.segment_index != change.end || change.first > segment_count) {
      return absl::FailedPreconditionError(
          absl::StrCat(Name(segment.document, segment.segment_index),
                       " does not follow the segments put before it: the next would be ",
                       is_first ? segment_count : change.end));
    }
    ++change.end;
    if (segment.byte_end > document.durable_bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(Name(segment.document, segment.segment_index), " ends at byte ",
                       segment.byte_end, ", beyond the ", document.durable_bytes, " durable"));
    }
  }
  return changes;
}

// One batch, so that a segment and its pages change together.
WriteBatch MemoryStore::Impl::BatchOf(absl::Span<const SegmentDerived> segments,
                                      const Changes& changes) const {
  WriteBatch batch;
  for (const auto& [id, change] : changes) {
    if (change.stored_end <= change.end) continue;
    const std::string end = RecordKeyRange(change.document).second;
    batch.DeleteRange(Table::kSegments, SegmentKey(change.document, change.end), end);
    batch.DeleteRange(Table::kPages, PageKey(change.document, change.end, 0), end);
  }
  for (const SegmentDerived& s : segments) {
    const auto found = changes.find(s.document);
    if (found == changes.end()) continue;  // deleted
    const Change& change = found->second;
    const int64_t page_count =
        change.keeps_pages ? static_cast<int64_t>(s.pages.size()) / options.page_bytes : 0;
    if (change.MayLeavePages(s.segment_index, page_count)) {
      batch.DeleteRange(Table::kPages, PageKey(change.document, s.segment_index, page_count),
                        PageKey(change.document, s.segment_index + 1, 0));
    }
    PutSegmentRecord(change.document, s, &batch);
    if (!change.keeps_pages) continue;
    PutPageRecords(change.document, s.segment_index, s.byte_end, s.derivation_fingerprint,
                   options.page_bytes, s.pages, &batch);
  }
  return batch;
}

void MemoryStore::Impl::TakeIn(absl::Span<const SegmentDerived> segments, const Changes& changes) {
  absl::flat_hash_set<DocumentId> replaced;
  for (const auto& [document, change] : changes) {
    DocumentEntry& entry = *catalog.FindDocument(document);
    CountDocument(entry, -1);
    // Who sees it up to before its newest text sees none of its open segments.
    const bool is_open = change.first + 1 >= static_cast<int64_t>(entry.segments.size());
    entry.memory->changes.Add(is_open ? entry.append_time : entry.create_time);
    TruncateSegments(entry, change.first);
    entry.stored_segments_end = change.end;
    if (!change.replaced.empty()) replaced.insert(document);
  }
  page_changes.Add(replaced);
  for (const SegmentDerived& segment : segments) {
    if (!changes.contains(segment.document)) continue;
    AppendSegment(*catalog.FindDocument(segment.document), EntryOf(segment),
                  segment.chunk_byte_begin, segment.landmarks.data());
  }
  for (const auto& [document, change] : changes) {
    CountDocument(*catalog.FindDocument(document), 1);
  }
}

void MemoryStore::Impl::TakeInPages(absl::Span<const SegmentDerived> segments,
                                    const Changes& changes) {
  for (const auto& [document, change] : changes) {
    for (size_t i = 0; i < change.replaced.size(); ++i) {
      ErasePages(PageIds(document, change.first + static_cast<int64_t>(i),
                         change.replaced[i].byte_end, change.replaced[i].chunk_count));
    }
  }
  for (const SegmentDerived& s : segments) {
    if (s.pages.empty() || !changes.contains(s.document)) continue;
    pool.Insert(PageIds(s.document, s.segment_index, s.byte_end, ChunkCount(s)), s.pages.data());
  }
}

absl::Status MemoryStore::PutSegments(absl::Span<const SegmentDerived> segments) {
  Impl& impl = *impl_;
  std::vector<DocumentId> documents;
  for (const SegmentDerived& segment : segments) {
    RETURN_IF_ERROR(CheckSegment(segment, impl.options));
    documents.push_back(segment.document);
  }
  absl::ReaderMutexLock gate(&impl.write_gate_);
  Impl::Changes changes;
  {
    absl::MutexLock lock(&impl.mutex_);
    impl.AwaitDerivations(documents);
    ASSIGN_OR_RETURN(changes, impl.ChangesOf(segments));
    for (const auto& [document, change] : changes) {
      impl.catalog.FindDocument(document)->derivation_in_flight = true;
    }
  }
  if (changes.empty()) return absl::OkStatus();

  CrashPoint("segments derived");
  const absl::Status status =
      impl.store.Write(impl.BatchOf(segments, changes), Durability::kWriteBehind);
  CrashPoint("segments written");
  {
    absl::MutexLock lock(&impl.mutex_);
    // All still there: deletions wait at the gate.
    for (const auto& [document, change] : changes) {
      impl.catalog.FindDocument(document)->derivation_in_flight = false;
    }
    RETURN_IF_ERROR(status);
    impl.TakeIn(segments, changes);
  }
  impl.TakeInPages(segments, changes);
  return absl::OkStatus();
}

absl::Status MemoryStore::PutPages(DocumentId document, int64_t segment_index,
                                   absl::Span<const uint8_t> pages, int64_t segment_byte_end,
                                   int64_t first_chunk) {
  Impl& impl = *impl_;
  if (IsTail(document)) return impl.PutTailPages(document, segment_index, pages, first_chunk);
  absl::ReaderMutexLock gate(&impl.write_gate_);
  DocumentKey document_key;
  bool keeps_pages = true;
  {
    absl::MutexLock lock(&impl.mutex_);
    impl.AwaitDerivations({document});
    DocumentEntry* entry = impl.catalog.FindDocument(document);
    if (entry == nullptr || segment_index < 0 ||
        segment_index >= static_cast<int64_t>(entry->segments.size())) {
      return absl::NotFoundError(absl::StrCat("no ", Name(document, segment_index)));
    }
    const SegmentEntry& segment = entry->segments[segment_index];
    if (segment_byte_end >= 0 && segment_byte_end != segment.byte_end) {
      return absl::FailedPreconditionError(
          absl::StrCat(Name(document, segment_index), " ends at byte ", segment.byte_end,
                       "; the pages are of the one that ended at ", segment_byte_end));
    }
    RETURN_IF_ERROR(
        CheckPages(pages, first_chunk, segment.chunk_count, document, segment_index, impl.options));
    segment_byte_end = segment.byte_end;
    document_key = entry->key;
    keeps_pages = PolicyKeepsPages(*entry->memory);
    entry->derivation_in_flight = true;
  }
  absl::Status status;
  if (keeps_pages) {
    WriteBatch batch;
    PutPageRecords(document_key, segment_index, segment_byte_end,
                   impl.options.derivation_fingerprint, impl.options.page_bytes, pages, &batch,
                   first_chunk);
    status = impl.store.Write(batch, Durability::kWriteBehind);
  }
  {
    absl::MutexLock lock(&impl.mutex_);
    impl.catalog.FindDocument(document)->derivation_in_flight = false;
  }
  RETURN_IF_ERROR(status);
  impl.pool.Insert(
      PageIds(document, segment_index, segment_byte_end,
              static_cast<int64_t>(pages.size()) / impl.options.page_bytes, first_chunk),
      pages.data());
  return absl::OkStatus();
}

bool MemoryStore::KeepsPages(DocumentId document) const {
  absl::ReaderMutexLock lock(&impl_->mutex_);
  const DocumentEntry* entry = impl_->catalog.FindDocument(document);
  return entry != nullptr && PolicyKeepsPages(*entry->memory);
}

absl::Status MemoryStore::Impl::PutTailPages(DocumentId handle, int64_t segment_index,
                                             absl::Span<const uint8_t> pages, int64_t first_chunk) {
  // A deletion would not find pages that come after it.
  absl::ReaderMutexLock gate(&write_gate_);
  std::vector<PageId> ids;
  {
    absl::ReaderMutexLock lock(&mutex_);
    const std::shared_ptr<const Tail> tail = tails.Find(handle);
    const int64_t index = tail == nullptr ? -1 : segment_index - tail->shared_segments;
    if (index < 0 || index >= static_cast<int64_t>(tail->segments.size())) {
      return absl::NotFoundError(absl::StrCat("no ", Name(handle, segment_index)));
    }
    const SegmentEntry& segment = tail->segments[index];
    const int64_t count = static_cast<int64_t>(pages.size()) / options.page_bytes;
    RETURN_IF_ERROR(
        CheckPages(pages, first_chunk, segment.chunk_count, handle, segment_index, options));
    ids = PageIds(handle, segment_index, segment.byte_end, count, first_chunk);
  }
  pool.Insert(ids, pages.data());
  return absl::OkStatus();
}

absl::Status MemoryStore::RestoreSegment(const SegmentDerived& segment) {
  Impl& impl = *impl_;
  RETURN_IF_ERROR(CheckSegment(segment, impl.options));
  const DocumentId document = segment.document;
  absl::ReaderMutexLock gate(&impl.write_gate_);
  DocumentKey document_key;
  {
    absl::MutexLock lock(&impl.mutex_);
    impl.AwaitDerivations({document});
    DocumentEntry* entry = impl.catalog.FindDocument(document);
    if (entry == nullptr || segment.segment_index < 0 ||
        segment.segment_index >= static_cast<int64_t>(entry->segments.size())) {
      return absl::NotFoundError(absl::StrCat("no ", Name(document, segment.segment_index)));
    }
    const SegmentEntry& visible = entry->segments[segment.segment_index];
    if (visible.byte_begin != segment.byte_begin || visible.byte_end != segment.byte_end ||
        visible.token_count != segment.token_count || visible.chunk_count != ChunkCount(segment)) {
      return absl::FailedPreconditionError(absl::StrCat(
          Name(document, segment.segment_index), " covers bytes [", visible.byte_begin, ", ",
          visible.byte_end, ") in ", visible.chunk_count, " chunks; the one to restore covers [",
          segment.byte_begin, ", ", segment.byte_end, ") in ", ChunkCount(segment)));
    }
    document_key = entry->key;
    entry->derivation_in_flight = true;
  }
  WriteBatch batch;
  PutSegmentRecord(document_key, segment, &batch);
  PutPageRecords(document_key, segment.segment_index, segment.byte_end,
                 segment.derivation_fingerprint, impl.options.page_bytes, segment.pages, &batch);
  const absl::Status status = impl.store.Write(batch, Durability::kWriteBehind);
  absl::MutexLock lock(&impl.mutex_);
  impl.catalog.FindDocument(document)->derivation_in_flight = false;
  return status;
}

absl::StatusOr<SegmentDerived> MemoryStore::GetSegment(DocumentId document,
                                                       int64_t segment_index) const {
  absl::ReaderMutexLock lock(&impl_->mutex_);
  const std::shared_ptr<const Tail> tail = impl_->tails.Find(document);
  const DocumentEntry* entry = tail == nullptr ? impl_->catalog.FindDocument(document) : nullptr;
  if (entry == nullptr && tail == nullptr) return NoDocument(document);
  const int64_t first = tail == nullptr ? 0 : tail->shared_segments;
  const int64_t end =
      tail == nullptr ? static_cast<int64_t>(entry->segments.size()) : tail->segment_count();
  const int64_t index = segment_index == -1 ? end - 1 : segment_index;
  if (index < first || index >= end) {
    return absl::NotFoundError(absl::StrCat("no ", Name(document, segment_index), ", which has ",
                                            end - first, " segments from ", first, " on"));
  }
  const SegmentEntry& segment =
      tail == nullptr ? entry->segments[index] : tail->segments[index - first];
  const absl::Span<const int64_t> byte_begin =
      tail == nullptr ? entry->memory->landmarks.ByteBegin(document, index)
                      : absl::MakeConstSpan(tail->chunk_byte_begin[index - first]);
  SegmentDerived result;
  result.document = document;
  result.segment_index = index;
  result.derivation_fingerprint = impl_->options.derivation_fingerprint;
  result.encode_from_byte = segment.encode_from_byte;
  result.skip_tokens = segment.skip_tokens;
  result.token_count = segment.token_count;
  result.byte_begin = segment.byte_begin;
  result.byte_end = segment.byte_end;
  result.chunk_byte_begin.assign(byte_begin.begin(), byte_begin.end());
  return result;
}

void MemoryStore::Impl::AwaitDerivations(absl::Span<const DocumentId> documents) const {
  const auto nobody_derives = [this, documents]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return std::none_of(documents.begin(), documents.end(),
                        [this](DocumentId document) ABSL_NO_THREAD_SAFETY_ANALYSIS {
                          const DocumentEntry* entry = catalog.FindDocument(document);
                          return entry != nullptr && entry->derivation_in_flight;
                        });
  };
  mutex_.Await(absl::Condition(&nobody_derives));
}

}  // namespace mneme
