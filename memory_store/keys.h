// Keys of the tables. All integers are big-endian, so that the records of one memory, and of one
// document, are one range of keys. Layout: docs/storage_format.md, "Keys".

#ifndef MNEME_MEMORY_STORE_KEYS_H_
#define MNEME_MEMORY_STORE_KEYS_H_

#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"
#include "memory_store/ids.h"

namespace mneme {

// A document and the memory it was written into.
struct DocumentKey {
  MemoryId memory{};
  DocumentId document{};

  friend bool operator==(const DocumentKey&, const DocumentKey&) = default;
};

// Table kCatalog.
std::string CounterKey();
std::string MemoryKey(MemoryId memory);
std::string DocumentRecordKey(DocumentKey document);
std::string PurgeKey(PurgeId purge);
// `document` is of any memory: what `memory` has dropped.
std::string DropKey(MemoryId memory, DocumentId document);
std::string SnapshotKey(MemoryId memory, absl::string_view id);
// Keys [first, second) of all drop / snapshot records, and of those of one memory.
std::pair<std::string, std::string> DropKeyRange();
std::pair<std::string, std::string> DropKeyRange(MemoryId memory);
std::pair<std::string, std::string> SnapshotKeyRange();
std::pair<std::string, std::string> SnapshotKeyRange(MemoryId memory);
// Keys [first, second) of all purge records.
std::pair<std::string, std::string> PurgeKeyRange();
// Keys [first, second) of all memory records / all document records / the document records of one
// memory.
std::pair<std::string, std::string> MemoryKeyRange();
std::pair<std::string, std::string> DocumentRecordKeyRange();
std::pair<std::string, std::string> DocumentRecordKeyRange(MemoryId memory);

// Tables kText, kSegments and kPages.
// Keys [first, second) of all records of a memory / of a document.
std::pair<std::string, std::string> RecordKeyRange(MemoryId memory);
std::pair<std::string, std::string> RecordKeyRange(DocumentKey document);
// The newest piece has the smallest key: a scan from TextKey(b) meets first the piece that holds
// byte b, then the ones before it; a scan from the beginning of the document's range meets the end
// of its text.
std::string TextKey(DocumentKey document, int64_t byte_offset);
std::string SegmentKey(DocumentKey document, int64_t segment_index);
std::string PageKey(DocumentKey document, int64_t segment_index, int64_t chunk_in_segment);

// Each returns false for a key of another shape.
bool ParseMemoryKey(absl::string_view key, MemoryId* memory);
bool ParseDocumentRecordKey(absl::string_view key, DocumentKey* document);
bool ParsePurgeKey(absl::string_view key, PurgeId* purge);
bool ParseDropKey(absl::string_view key, MemoryId* memory, DocumentId* document);
bool ParseSnapshotKey(absl::string_view key, MemoryId* memory, std::string* id);
// Of a key of kText, kSegments or kPages.
bool ParseRecordKeyDocument(absl::string_view key, DocumentKey* document);
bool ParseTextKey(absl::string_view key, DocumentKey* document, int64_t* byte_offset);
bool ParseSegmentKey(absl::string_view key, DocumentKey* document, int64_t* segment_index);

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_KEYS_H_
