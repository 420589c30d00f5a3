#include "memory_store/records.h"

#include <algorithm>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/status_macros.h"
#include "memory_store/record_coding.h"

namespace mneme {
namespace {

constexpr size_t kCrcPosition = 8;

absl::Status Damaged(RecordKind kind, absl::string_view key, absl::string_view what) {
  return absl::DataLossError(absl::StrCat("damaged ", RecordKindName(kind), " record ",
                                          absl::BytesToHexString(key), ": ", what));
}

// version u8, kind u8, reserved u16 = 0, payload length u32, crc32c u32. The crc covers the key,
// the eight bytes before the crc and the payload.
uint32_t RecordCrc(absl::string_view key, absl::string_view head, absl::string_view payload) {
  return Crc32c(payload, Crc32c(head, Crc32c(key)));
}

std::string BeginRecord(RecordKind kind, size_t payload_bytes, uint8_t version = kRecordVersion) {
  std::string record;
  record.reserve(kRecordHeaderBytes + payload_bytes);
  PutU8(&record, version);
  PutU8(&record, static_cast<uint8_t>(kind));
  PutU8(&record, 0);
  PutU8(&record, 0);
  record.append(kRecordHeaderBytes - 4, '\0');
  return record;
}

// Fills in length and crc of a record begun by BeginRecord.
std::string FinishRecord(absl::string_view key, std::string record) {
  const size_t payload_bytes = record.size() - kRecordHeaderBytes;
  MNEME_CHECK(payload_bytes <= std::numeric_limits<uint32_t>::max());
  std::string length;
  PutU32(&length, static_cast<uint32_t>(payload_bytes));
  record.replace(4, 4, length);
  const absl::string_view bytes = record;
  std::string crc;
  PutU32(&crc, RecordCrc(key, bytes.substr(0, kCrcPosition), bytes.substr(kRecordHeaderBytes)));
  record.replace(kCrcPosition, 4, crc);
  return record;
}

struct Opened {
  absl::string_view payload;
  uint8_t version = 0;
};

// An intact record of a version up to `version_max`.
absl::StatusOr<Opened> OpenVersioned(RecordKind kind, absl::string_view key,
                                     absl::string_view value, uint8_t version_max) {
  RecordReader reader(value);
  uint8_t version, stored_kind, reserved_low, reserved_high;
  uint32_t length, stored_crc;
  if (!reader.ReadU8(&version) || !reader.ReadU8(&stored_kind) || !reader.ReadU8(&reserved_low) ||
      !reader.ReadU8(&reserved_high) || !reader.ReadU32(&length) || !reader.ReadU32(&stored_crc)) {
    return Damaged(kind, key, absl::StrCat(value.size(), " bytes, fewer than a header"));
  }
  const absl::string_view payload = reader.rest();
  if (payload.size() != length) {
    return Damaged(kind, key, absl::StrCat(payload.size(), " bytes of payload, stored ", length));
  }
  const uint32_t crc = RecordCrc(key, value.substr(0, kCrcPosition), payload);
  if (crc != stored_crc) {
    return Damaged(kind, key,
                   absl::StrCat("crc 0x", absl::Hex(crc), ", stored 0x", absl::Hex(stored_crc)));
  }
  if (version < kRecordVersion || version > version_max) {
    return Damaged(kind, key, absl::StrCat("version ", version, ", known ", version_max));
  }
  if (stored_kind != static_cast<uint8_t>(kind)) {
    return Damaged(kind, key, absl::StrCat("kind ", stored_kind));
  }
  return Opened{payload, version};
}

// The payload of an intact record of the one version that its kind has.
absl::StatusOr<absl::string_view> OpenRecord(RecordKind kind, absl::string_view key,
                                             absl::string_view value) {
  ASSIGN_OR_RETURN(const Opened opened, OpenVersioned(kind, key, value, kRecordVersion));
  return opened.payload;
}

}  // namespace

const char* RecordKindName(RecordKind kind) {
  switch (kind) {
    case RecordKind::kCounter:
      return "counter";
    case RecordKind::kMemory:
      return "memory";
    case RecordKind::kDocument:
      return "document";
    case RecordKind::kText:
      return "text";
    case RecordKind::kSegment:
      return "segment";
    case RecordKind::kPage:
      return "page";
    case RecordKind::kPurge:
      return "purge";
  }
  return "unknown";
}

std::string EncodeRecord(absl::string_view key, const CounterRecord& record) {
  std::string out = BeginRecord(RecordKind::kCounter, 16);
  PutU64(&out, record.next_memory);
  PutU64(&out, record.next_document);
  return FinishRecord(key, std::move(out));
}

absl::StatusOr<CounterRecord> DecodeCounterRecord(absl::string_view key, absl::string_view value) {
  ASSIGN_OR_RETURN(const absl::string_view payload, OpenRecord(RecordKind::kCounter, key, value));
  RecordReader reader(payload);
  CounterRecord record;
  if (!reader.ReadU64(&record.next_memory) || !reader.ReadU64(&record.next_document) ||
      !reader.rest().empty()) {
    return Damaged(RecordKind::kCounter, key, "payload");
  }
  return record;
}

std::string EncodeRecord(absl::string_view key, const MemoryRecord& record) {
  const bool has_policy = record.retention != 0 || record.ttl_us != 0;
  std::string out =
      BeginRecord(RecordKind::kMemory,
                  29 + record.tenant.size() + record.id.size() + record.display_name.size(),
                  has_policy ? 2 : 1);
  PutU64(&out, static_cast<uint64_t>(record.create_time_us));
  PutString(&out, record.tenant);
  PutString(&out, record.id);
  PutString(&out, record.display_name);
  if (has_policy) {
    PutU8(&out, record.retention);
    PutU64(&out, static_cast<uint64_t>(record.ttl_us));
  }
  return FinishRecord(key, std::move(out));
}

absl::StatusOr<MemoryRecord> DecodeMemoryRecord(absl::string_view key, absl::string_view value) {
  ASSIGN_OR_RETURN(const Opened opened,
                   OpenVersioned(RecordKind::kMemory, key, value, /*version_max=*/2));
  RecordReader reader(opened.payload);
  MemoryRecord record;
  uint64_t create_time_us;
  absl::string_view tenant, id, display_name;
  if (!reader.ReadU64(&create_time_us) || !reader.ReadString(&tenant) || !reader.ReadString(&id) ||
      !reader.ReadString(&display_name)) {
    return Damaged(RecordKind::kMemory, key, "payload");
  }
  if (opened.version >= 2 && (!reader.ReadU8(&record.retention) || record.retention > 1 ||
                              !reader.ReadI64(&record.ttl_us))) {
    return Damaged(RecordKind::kMemory, key, "policy");
  }
  if (!reader.rest().empty()) return Damaged(RecordKind::kMemory, key, "payload");
  record.create_time_us = static_cast<int64_t>(create_time_us);
  record.tenant = std::string(tenant);
  record.id = std::string(id);
  record.display_name = std::string(display_name);
  return record;
}

std::string EncodeRecord(absl::string_view key, const DocumentRecord& record) {
  const bool expires = record.expire_time_us != 0;
  std::string out = BeginRecord(RecordKind::kDocument, 20 + record.id.size(), expires ? 2 : 1);
  PutU64(&out, static_cast<uint64_t>(record.create_time_us));
  PutString(&out, record.id);
  if (expires) PutU64(&out, static_cast<uint64_t>(record.expire_time_us));
  return FinishRecord(key, std::move(out));
}

absl::StatusOr<DocumentRecord> DecodeDocumentRecord(absl::string_view key,
                                                    absl::string_view value) {
  ASSIGN_OR_RETURN(const Opened opened,
                   OpenVersioned(RecordKind::kDocument, key, value, /*version_max=*/2));
  RecordReader reader(opened.payload);
  uint64_t create_time_us;
  absl::string_view id;
  int64_t expire_time_us = 0;
  if (!reader.ReadU64(&create_time_us) || !reader.ReadString(&id) ||
      (opened.version >= 2 && !reader.ReadI64(&expire_time_us)) || !reader.rest().empty()) {
    return Damaged(RecordKind::kDocument, key, "payload");
  }
  return DocumentRecord{std::string(id), static_cast<int64_t>(create_time_us), expire_time_us};
}

std::string EncodeRecord(absl::string_view key, const TextRecord& record) {
  std::string out = BeginRecord(RecordKind::kText, 1 + record.text.size());
  PutU8(&out, record.seal ? 1 : 0);
  out.append(record.text.data(), record.text.size());
  return FinishRecord(key, std::move(out));
}

absl::StatusOr<TextRecord> DecodeTextRecord(absl::string_view key, absl::string_view value) {
  ASSIGN_OR_RETURN(const absl::string_view payload, OpenRecord(RecordKind::kText, key, value));
  RecordReader reader(payload);
  uint8_t flags;
  if (!reader.ReadU8(&flags) || flags > 1) return Damaged(RecordKind::kText, key, "flags");
  return TextRecord{flags == 1, reader.rest()};
}

int64_t TextBytesOfRecord(absl::string_view value) {
  return std::max<int64_t>(0, static_cast<int64_t>(value.size()) - kRecordHeaderBytes - 1);
}

std::string EncodeRecord(absl::string_view key, const SegmentRecord& record) {
  const size_t chunk_count = record.chunk_byte_begin.size();
  std::string out =
      BeginRecord(RecordKind::kSegment, 48 + 8 * chunk_count + record.landmarks.size());
  PutU64(&out, record.derivation_fingerprint);
  PutU64(&out, static_cast<uint64_t>(record.encode_from_byte));
  PutU32(&out, static_cast<uint32_t>(record.skip_tokens));
  PutU32(&out, static_cast<uint32_t>(record.token_count));
  PutU64(&out, static_cast<uint64_t>(record.byte_begin));
  PutU64(&out, static_cast<uint64_t>(record.byte_end));
  PutU32(&out, static_cast<uint32_t>(chunk_count));
  for (const int64_t begin : record.chunk_byte_begin) PutU64(&out, static_cast<uint64_t>(begin));
  PutString(&out, record.landmarks);
  return FinishRecord(key, std::move(out));
}

absl::StatusOr<SegmentRecord> DecodeSegmentRecord(absl::string_view key, absl::string_view value) {
  ASSIGN_OR_RETURN(const absl::string_view payload, OpenRecord(RecordKind::kSegment, key, value));
  RecordReader reader(payload);
  SegmentRecord record;
  uint32_t chunk_count;
  if (!reader.ReadU64(&record.derivation_fingerprint) ||
      !reader.ReadI64(&record.encode_from_byte) || !reader.ReadI32(&record.skip_tokens) ||
      !reader.ReadI32(&record.token_count) || !reader.ReadI64(&record.byte_begin) ||
      !reader.ReadI64(&record.byte_end) || !reader.ReadU32(&chunk_count) ||
      record.byte_begin > record.byte_end || chunk_count > reader.rest().size() / 8) {
    return Damaged(RecordKind::kSegment, key, "payload");
  }
  record.chunk_byte_begin.resize(chunk_count);
  int64_t previous = 0;
  for (int64_t& begin : record.chunk_byte_begin) {
    if (!reader.ReadI64(&begin) || begin < previous || begin > record.byte_end) {
      return Damaged(RecordKind::kSegment, key, "chunk offsets");
    }
    previous = begin;
  }
  if (!reader.ReadString(&record.landmarks) || !reader.rest().empty()) {
    return Damaged(RecordKind::kSegment, key, "landmarks");
  }
  return record;
}

std::string EncodeRecord(absl::string_view key, const PageRecord& record) {
  std::string out = BeginRecord(RecordKind::kPage, 16 + record.page.size());
  PutU64(&out, record.derivation_fingerprint);
  PutU64(&out, static_cast<uint64_t>(record.segment_byte_end));
  out.append(record.page.data(), record.page.size());
  return FinishRecord(key, std::move(out));
}

absl::StatusOr<PageRecord> DecodePageRecord(absl::string_view key, absl::string_view value) {
  ASSIGN_OR_RETURN(const absl::string_view payload, OpenRecord(RecordKind::kPage, key, value));
  RecordReader reader(payload);
  PageRecord record;
  if (!reader.ReadU64(&record.derivation_fingerprint) ||
      !reader.ReadI64(&record.segment_byte_end)) {
    return Damaged(RecordKind::kPage, key, "payload");
  }
  record.page = reader.rest();
  return record;
}

std::string EncodeRecord(absl::string_view key, const PurgeRecord& record) {
  std::string out = BeginRecord(RecordKind::kPurge, 52 + record.tenant.size());
  for (const int64_t value : {record.delete_time_us, record.documents, record.text_bytes,
                              record.tokens, record.chunks, record.pages}) {
    PutU64(&out, static_cast<uint64_t>(value));
  }
  PutString(&out, record.tenant);
  return FinishRecord(key, std::move(out));
}

absl::StatusOr<PurgeRecord> DecodePurgeRecord(absl::string_view key, absl::string_view value) {
  ASSIGN_OR_RETURN(const absl::string_view payload, OpenRecord(RecordKind::kPurge, key, value));
  RecordReader reader(payload);
  PurgeRecord record;
  absl::string_view tenant;
  if (!reader.ReadI64(&record.delete_time_us) || !reader.ReadI64(&record.documents) ||
      !reader.ReadI64(&record.text_bytes) || !reader.ReadI64(&record.tokens) ||
      !reader.ReadI64(&record.chunks) || !reader.ReadI64(&record.pages) ||
      !reader.ReadString(&tenant) || !reader.rest().empty()) {
    return Damaged(RecordKind::kPurge, key, "payload");
  }
  record.tenant = std::string(tenant);
  return record;
}

}  // namespace mneme
