// MemoryStore: the text log. Text is stored in pieces under the byte at which they begin, newest
// first (keys.h), each with the time at which it was written. See memory_store_impl.h for the
// locks.

#include <algorithm>
#include <string>
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

// A piece is at most this long, so that reading a passage reads little more.
constexpr size_t kTextPieceBytesMax = 64 << 10;

std::string Name(DocumentId document) {
  return absl::StrCat("document ", static_cast<uint64_t>(document));
}

// What a call of AppendText makes of one document.
struct Growth {
  DocumentKey key;
  int64_t end = 0;
  bool sealed = false;
};
using Growths = absl::flat_hash_map<DocumentId, Growth>;

// Errors as AppendText.
absl::StatusOr<Growths> GrowthsOf(const Catalog& catalog, absl::Span<const TextAppend> appends) {
  Growths growths;
  for (const TextAppend& append : appends) {
    const DocumentEntry* document = catalog.FindDocument(append.document);
    if (document == nullptr || document->dropped) return NoDocument(append.document);
    if (document->damaged) {
      return absl::DataLossError(
          absl::StrCat(Name(append.document), " is damaged: it takes no more text"));
    }
    const auto [it, first] = growths.try_emplace(
        append.document, Growth{document->key, document->durable_bytes, document->sealed});
    Growth& growth = it->second;
    if (growth.sealed) {
      return absl::FailedPreconditionError(
          absl::StrCat(Name(append.document), " is sealed at byte ", growth.end));
    }
    if (append.byte_offset != growth.end) {
      return absl::FailedPreconditionError(absl::StrCat(Name(append.document), " has ", growth.end,
                                                        " durable bytes; the text is for byte ",
                                                        append.byte_offset));
    }
    growth.end += static_cast<int64_t>(append.text.size());
    growth.sealed = append.seal;
  }
  return growths;
}

WriteBatch BatchOf(absl::Span<const TextAppend> appends, const Growths& growths,
                   absl::Time moment) {
  WriteBatch batch;
  for (const TextAppend& append : appends) {
    if (append.text.empty() && !append.seal) continue;
    const DocumentKey document_key = growths.at(append.document).key;
    size_t position = 0;
    do {
      const absl::string_view piece = append.text.substr(position, kTextPieceBytesMax);
      const std::string key =
          TextKey(document_key, append.byte_offset + static_cast<int64_t>(position));
      position += piece.size();
      const bool seal = append.seal && position == append.text.size();
      batch.Put(Table::kText, key,
                EncodeRecord(key, TextRecord{seal, piece, absl::ToUnixMicros(moment)}));
    } while (position < append.text.size());
  }
  return batch;
}

// Bytes [begin, end) of a document, put together from its pieces, which come newest first: each
// must end where the one before it began.
class TextRange {
 public:
  TextRange(DocumentId document, int64_t byte_begin, int64_t byte_end)
      : document_(document),
        begin_(byte_begin),
        end_(byte_end),
        wanted_end_(byte_end),
        text_(static_cast<size_t>(byte_end - byte_begin), '\0') {}

  // The record before those added so far. False: it was the last one needed, or is damaged.
  bool Add(absl::string_view key, absl::string_view value) {
    DocumentKey piece_document;
    int64_t offset = 0;
    if (!ParseTextKey(key, &piece_document, &offset)) {
      return Damaged(absl::StrCat("a key of ", key.size(), " bytes is of another shape"));
    }
    const absl::StatusOr<TextRecord> record = DecodeTextRecord(key, value);
    if (!record.ok()) {
      damage_ = record.status();
      return false;
    }
    const int64_t piece_end = offset + static_cast<int64_t>(record->text.size());
    const bool is_first = wanted_end_ == end_;
    if (offset >= wanted_end_ || piece_end < wanted_end_ ||
        (!is_first && piece_end != wanted_end_)) {
      return Damaged(absl::StrCat("the piece before byte ", wanted_end_, " is [", offset, ", ",
                                  piece_end, ")"));
    }
    const int64_t from = std::max(offset, begin_);
    record->text.copy(text_.data() + (from - begin_), wanted_end_ - from, from - offset);
    wanted_end_ = from;
    return wanted_end_ > begin_;
  }

  // DATA_LOSS when a record was damaged or none is left. Called once.
  absl::StatusOr<std::string> Take() {
    if (damage_.ok() && wanted_end_ > begin_) {
      Damaged(absl::StrCat("bytes [", begin_, ", ", wanted_end_, ") are missing"));
    }
    RETURN_IF_ERROR(damage_);
    return std::move(text_);
  }

 private:
  bool Damaged(absl::string_view how) {
    damage_ = absl::DataLossError(absl::StrCat("text of ", Name(document_), ": ", how));
    return false;
  }

  const DocumentId document_;
  const int64_t begin_;
  const int64_t end_;
  int64_t wanted_end_;  // of what is still to come
  std::string text_;
  absl::Status damage_;
};

}  // namespace

absl::Status MemoryStore::AppendText(absl::Span<const TextAppend> appends) {
  Impl& impl = *impl_;
  absl::ReaderMutexLock gate(&impl.write_gate_);
  Growths growths;
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
    ASSIGN_OR_RETURN(growths, GrowthsOf(impl.catalog, appends));
    for (const auto& [uid, growth] : growths) {
      impl.catalog.FindDocument(uid)->append_in_flight = true;
    }
    moment = impl.BeginWrite();
  }

  const WriteBatch batch = BatchOf(appends, growths, moment);
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
    impl.catalog.CountAppended(*document.memory, growth.end - document.durable_bytes);
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
                                                Name(document), ", which has ", text_end));
    }
    document_key = entry->key;
  }
  if (byte_begin == byte_end) return std::string();

  TextRange range(document, byte_begin, byte_end);
  const absl::Status status = impl_->store.Scan(
      Table::kText, TextKey(document_key, byte_end - 1), RecordKeyRange(document_key).second,
      [&range](absl::string_view key, absl::string_view value) { return range.Add(key, value); });
  absl::StatusOr<std::string> text = status.ok() ? range.Take() : status;
  if (absl::IsDataLoss(text.status())) {
    return impl_->MarkTextDamaged(document, byte_end, text.status());
  }
  return text;
}

absl::Status MemoryStore::Impl::MarkTextDamaged(DocumentId document, int64_t bytes,
                                                const absl::Status& damage) {
  bool is_first = false;
  absl::Status told;
  {
    // A deletion under way looks like damage: let it finish.
    absl::ReaderMutexLock gate(&write_gate_);
    absl::MutexLock lock(&mutex_);
    DocumentEntry* entry = catalog.FindDocument(document);
    if (entry == nullptr) return NoDocument(document);
    if (entry->durable_bytes < bytes) {
      return absl::OutOfRangeError(absl::StrCat(Name(document),
                                                " has lost its end: ", entry->durable_bytes,
                                                " bytes are left of ", bytes));
    }
    told =
        absl::DataLossError(absl::StrCat("document ", entry->id, ": its stored text is damaged"));
    is_first = !entry->damaged;
    if (is_first) {
      CountDocument(*entry, -1);
      entry->damaged = true;
      CountDocument(*entry, 1);
      views.Clear();
    }
  }
  if (!is_first) return told;
  documents_damaged.Increment();
  ReportDamage(RecordKind::kText,
               absl::DataLossError(absl::StrCat(Name(document), ": ", damage.message())));
  return told;
}

}  // namespace mneme
