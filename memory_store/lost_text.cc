// MemoryStore: what has to stand in the place of text that is lost with the damaged part of a file,
// before that part is given up. Where text of a document that is there went, records come that fail
// their checks, as long as the text was: so the document stays damaged, at the same bytes, also
// after the next start, which learns from the records alone where its text ends. What was being
// purged stays deleted, should the deletions have been lost too. See memory_store_impl.h for the
// locks.

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/crash_point.h"
#include "common/status_macros.h"
#include "memory_store/keys.h"
#include "memory_store/memory_store_impl.h"
#include "memory_store/records.h"

namespace mneme {
namespace {

// As a piece of text.
constexpr int64_t kStandInBytesMax = 64 << 10;

struct Piece {
  int64_t begin = 0;
  int64_t end = 0;
  bool seal = false;
  bool newer = false;  // than the damaged file
};

// A document whose text may lie in what is lost.
struct Affected {
  DocumentKey key;
  int64_t durable_bytes = 0;
  bool end_unknown = false;
  std::vector<Piece> pieces;  // that can be read
  // As found.
  std::vector<std::pair<int64_t, int64_t>> holes;
  int64_t end = 0;
  bool sealed = false;

  void FindHoles(const KeyRange& lost) {
    std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) {
      return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
    });
    for (const Piece& piece : pieces) {
      AddHole(lost, piece.begin);
      end = std::max(end, piece.end);
    }
    sealed = !pieces.empty() && pieces.back().seal;
    AddHole(lost, durable_bytes);
    // Text behind the last that is known of would lie in the file, unless that came later.
    if (end_unknown && !sealed && (pieces.empty() || !pieces.back().newer)) AddHole(lost, end + 1);
  }

 private:
  // Text [end, until) is missing: the key of its first piece says whether it is lost here.
  void AddHole(const KeyRange& lost, int64_t until) {
    if (until <= end) return;
    const std::string first = TextKey(key, end);
    if (first >= lost.begin && first < lost.end) holes.emplace_back(end, until);
    end = until;
  }
};

void PutStandIns(const DocumentKey& key, std::pair<int64_t, int64_t> hole, WriteBatch* batch) {
  for (int64_t at = hole.first; at < hole.second; at += kStandInBytesMax) {
    const int64_t bytes = std::min(kStandInBytesMax, hole.second - at);
    std::string record(static_cast<size_t>(kRecordHeaderBytes + 1 + bytes), '\0');
    batch->Put(Table::kText, TextKey(key, at), std::move(record));
  }
}

}  // namespace

absl::Status MemoryStore::Impl::GiveUpRecords(const LostRecords& lost) {
  if (lost.range.table == Table::kSegments || lost.range.table == Table::kPages) {
    // It is derived again, but for the deletions that may have been lost.
    absl::WriterMutexLock gate(&write_gate_);
    WriteBatch batch;
    batch.frees_space = true;
    RETURN_IF_ERROR(DeleteAgain(lost.range, &batch));
    return batch.ops.empty() ? absl::OkStatus() : store.Write(batch, Durability::kSynced);
  }
  if (lost.range.table != Table::kText) {
    return absl::DataLossError(absl::StrCat(
        lost.file, " holds damaged records of the catalog, which are not derived from others"));
  }
  std::vector<Affected> documents;
  {
    // What is being written shows in the catalog and the files, or in neither.
    absl::WriterMutexLock gate(&write_gate_);
    WriteBatch batch;
    absl::flat_hash_map<DocumentId, size_t> index;
    std::string begin, end;  // of all their records
    {
      absl::ReaderMutexLock lock(&mutex_);
      for (const auto& [uid, entry] : catalog.documents()) {
        const auto [first, last] = RecordKeyRange(entry->key);
        if (first >= lost.range.end || last <= lost.range.begin) continue;
        index[uid] = documents.size();
        documents.push_back({.key = entry->key,
                             .durable_bytes = entry->durable_bytes,
                             .end_unknown = entry->text_end_unknown,
                             .sealed = entry->sealed});
        if (begin.empty() || first < begin) begin = first;
        end = std::max(end, last);
      }
    }
    RETURN_IF_ERROR(DeleteAgain(lost.range, &batch));
    if (!documents.empty()) {
      RETURN_IF_ERROR(
          lost.scan(begin, end, [&](absl::string_view key, absl::string_view value, bool newer) {
            DocumentKey document;
            int64_t offset = 0;
            if (!ParseTextKey(key, &document, &offset)) return;
            const auto it = index.find(document.document);
            if (it == index.end() || !(documents[it->second].key == document)) return;
            Affected& affected = documents[it->second];
            // Behind a known end it was cut off, and its deletion is not to be undone.
            if (!affected.end_unknown && offset >= affected.durable_bytes) return;
            const absl::StatusOr<TextRecord> record = DecodeTextRecord(key, value);
            affected.pieces.push_back(
                {offset, offset + TextBytesOfRecord(value), record.ok() && record->seal, newer});
          }));
    }
    for (Affected& document : documents) {
      document.FindHoles(lost.range);
      for (const auto& hole : document.holes) PutStandIns(document.key, hole, &batch);
    }
    batch.frees_space = true;  // the damaged file goes for it
    if (!batch.ops.empty()) RETURN_IF_ERROR(store.Write(batch, Durability::kSynced));
    CrashPoint("lost text marked");
    absl::MutexLock lock(&mutex_);
    for (const Affected& document : documents) {
      DocumentEntry* entry = catalog.FindDocument(document.key.document);
      if (!document.end_unknown || entry == nullptr) continue;
      CountDocument(*entry, -1);
      entry->durable_bytes = std::max(entry->durable_bytes, document.end);
      entry->sealed = document.sealed;
      entry->text_end_unknown = false;
      CountDocument(*entry, 1);
    }
  }
  for (const Affected& document : documents) {
    if (document.holes.empty()) continue;
    const auto& [first, last] = document.holes.front();
    MarkTextDamaged(document.key.document, last,
                    absl::DataLossError(absl::StrCat("text [", first, ", ", last, ") of document ",
                                                     static_cast<uint64_t>(document.key.document),
                                                     " was lost with ", lost.file)))
        .IgnoreError();
  }
  return absl::OkStatus();
}

absl::Status MemoryStore::Impl::DeleteAgain(const KeyRange& lost, WriteBatch* batch) const {
  std::vector<std::pair<PurgeId, PurgeRecord>> deletions;
  {
    absl::ReaderMutexLock lock(&mutex_);
    for (const auto& [id, purge] : purges) deletions.emplace_back(id, purge.record);
  }
  WriteBatch all;
  for (const auto& [id, record] : deletions) {
    if (id.document == kPagesOfMemory) {
      if (lost.table != Table::kPages) continue;
      auto [begin, end] = RecordKeyRange(id.memory);
      all.DeleteRange(lost.table, std::move(begin), std::move(end));
    } else if (id.document == DocumentId{}) {
      RETURN_IF_ERROR(DeleteMemoryAgain(id.memory, lost.table, &all));
    } else {
      RETURN_IF_ERROR(DeleteDocumentAgain({id.memory, id.document}, lost.table, &all));
    }
    for (const auto& [memory, document] : record.also) {
      const DocumentKey key{static_cast<MemoryId>(memory), static_cast<DocumentId>(document)};
      RETURN_IF_ERROR(DeleteDocumentAgain(key, lost.table, &all));
    }
  }
  for (WriteBatch::Op& op : all.ops) {
    if (op.key < lost.end && op.value > lost.begin) batch->ops.push_back(std::move(op));
  }
  return absl::OkStatus();
}

absl::Status MemoryStore::Impl::DeleteMemoryAgain(MemoryId memory, Table table,
                                                  WriteBatch* batch) const {
  // By the keys of their records: one that is damaged says as well that the document is there.
  std::vector<DocumentKey> held;
  const auto [first, last] = DocumentRecordKeyRange(memory);
  RETURN_IF_ERROR(
      store.Scan(Table::kCatalog, first, last, [&held](absl::string_view key, absl::string_view) {
        DocumentKey document;
        if (ParseDocumentRecordKey(key, &document)) held.push_back(document);
        return true;
      }));
  auto [begin, end] = RecordKeyRange(memory);
  for (const DocumentKey& key : held) {
    auto [document_begin, document_end] = RecordKeyRange(key);
    if (begin < document_begin) {
      batch->DeleteRange(table, std::move(begin), std::move(document_begin));
    }
    begin = std::move(document_end);
    DeleteEndAgain(key, table, batch);
  }
  batch->DeleteRange(table, std::move(begin), std::move(end));
  return absl::OkStatus();
}

absl::Status MemoryStore::Impl::DeleteDocumentAgain(DocumentKey key, Table table,
                                                    WriteBatch* batch) const {
  const absl::Status there = store.Get(Table::kCatalog, DocumentRecordKey(key)).status();
  if (absl::IsNotFound(there)) {
    auto [begin, end] = RecordKeyRange(key);
    batch->DeleteRange(table, std::move(begin), std::move(end));
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(there);
  DeleteEndAgain(key, table, batch);
  return absl::OkStatus();
}

void MemoryStore::Impl::DeleteEndAgain(DocumentKey key, Table table, WriteBatch* batch) const {
  absl::ReaderMutexLock lock(&mutex_);
  const DocumentEntry* entry = catalog.FindDocument(key.document);
  // Of a document whose record is damaged nobody knows the end; one that takes text still, or that
  // has its seal, has lost none.
  if (entry == nullptr || !entry->dropped) return;
  if (table == Table::kText && (entry->sealed || entry->text_end_unknown)) return;
  DeleteEnd({.key = key,
             .until = {},
             .keep_bytes = entry->durable_bytes,
             .keep_segments = entry->stored_segments_end},
            table, batch);
}

}  // namespace mneme
