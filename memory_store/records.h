// Records: what is stored under a key. Every record is an envelope (version, kind, length, crc32c
// over key and all else) around a payload; a record under another key than its own fails its
// checksum. Formats: docs/storage_format.md.
//
// Decoders take bytes from outside: any input gives a value or DATA_LOSS, never more. They leave
// the meaning of the numbers (does the segment fit its document?) to their callers.

#ifndef MNEME_MEMORY_STORE_RECORDS_H_
#define MNEME_MEMORY_STORE_RECORDS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace mneme {

enum class RecordKind : uint8_t {
  kCounter = 1,
  kMemory = 2,
  kDocument = 3,
  kText = 4,
  kSegment = 5,
  kPage = 6,
  kPurge = 7,
};
const char* RecordKindName(RecordKind kind);

// Of all records but those that say otherwise, and that are not written in a later version unless
// they need it.
inline constexpr uint8_t kRecordVersion = 1;
// Bytes of the envelope before the payload.
inline constexpr int64_t kRecordHeaderBytes = 12;

// Identities below these may have been given away.
struct CounterRecord {
  uint64_t next_memory = 1;
  uint64_t next_document = 1;
};

struct MemoryRecord {
  std::string tenant;
  std::string id;
  std::string display_name;
  int64_t create_time_us = 0;  // since the Unix epoch
  // Of version 2, which is written only when one of them is not 0.
  uint8_t retention = 0;  // as Retention
  int64_t ttl_us = 0;     // 0: none
};

struct DocumentRecord {
  std::string id;
  int64_t create_time_us = 0;
  // Of version 2, which is written only when it is not 0.
  int64_t expire_time_us = 0;  // since the Unix epoch; 0: none of its own
};

// One piece of the text log; its offset is in its key. `text` borrows from what was decoded.
struct TextRecord {
  bool seal = false;  // no text follows it
  absl::string_view text;
};

// One derived segment; its document and index are in its key.
struct SegmentRecord {
  uint64_t derivation_fingerprint = 0;
  int64_t encode_from_byte = 0;
  int32_t skip_tokens = 0;
  int32_t token_count = 0;
  int64_t byte_begin = 0;
  int64_t byte_end = 0;
  std::vector<int64_t> chunk_byte_begin;  // [chunk_count], ascending, up to byte_end
  absl::string_view landmarks;            // [chunk_count, landmark_bytes]; borrows
};

// K and V of one chunk. `segment_byte_end` names the version of the segment that the page belongs
// to.
struct PageRecord {
  uint64_t derivation_fingerprint = 0;
  int64_t segment_byte_end = 0;
  absl::string_view page;  // borrows
};

// What was deleted and is not off the disk yet; which memory or document is in its key. No name: it
// would outlive what it names.
struct PurgeRecord {
  std::string tenant;
  int64_t delete_time_us = 0;  // since the Unix epoch
  int64_t documents = 0;
  int64_t text_bytes = 0;
  int64_t tokens = 0;
  int64_t chunks = 0;
  int64_t pages = 0;
};

std::string EncodeRecord(absl::string_view key, const CounterRecord& record);
std::string EncodeRecord(absl::string_view key, const MemoryRecord& record);
std::string EncodeRecord(absl::string_view key, const DocumentRecord& record);
std::string EncodeRecord(absl::string_view key, const TextRecord& record);
std::string EncodeRecord(absl::string_view key, const SegmentRecord& record);
std::string EncodeRecord(absl::string_view key, const PageRecord& record);
std::string EncodeRecord(absl::string_view key, const PurgeRecord& record);

// DATA_LOSS with what is wrong: the checksum, the length, the kind, or a version this program does
// not know.
absl::StatusOr<CounterRecord> DecodeCounterRecord(absl::string_view key, absl::string_view value);
absl::StatusOr<MemoryRecord> DecodeMemoryRecord(absl::string_view key, absl::string_view value);
absl::StatusOr<DocumentRecord> DecodeDocumentRecord(absl::string_view key, absl::string_view value);
absl::StatusOr<TextRecord> DecodeTextRecord(absl::string_view key, absl::string_view value);
absl::StatusOr<SegmentRecord> DecodeSegmentRecord(absl::string_view key, absl::string_view value);
absl::StatusOr<PageRecord> DecodePageRecord(absl::string_view key, absl::string_view value);
absl::StatusOr<PurgeRecord> DecodePurgeRecord(absl::string_view key, absl::string_view value);

// Bytes of text that a text record of this size holds, read without its checksum: how far a damaged
// record reaches.
int64_t TextBytesOfRecord(absl::string_view value);

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_RECORDS_H_
