// For tests: records with a right checksum around any payload, as an enemy or a program with a bug
// would write them.

#ifndef MNEME_TESTS_MEMORY_STORE_RECORD_FORGERY_H_
#define MNEME_TESTS_MEMORY_STORE_RECORD_FORGERY_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "common/crc32c.h"
#include "memory_store/record_coding.h"
#include "memory_store/records.h"

namespace mneme {

inline std::string ForgeRecord(RecordKind kind, absl::string_view key, absl::string_view payload,
                               uint8_t version = kRecordVersion) {
  std::string record;
  PutU8(&record, version);
  PutU8(&record, static_cast<uint8_t>(kind));
  PutU8(&record, 0);
  PutU8(&record, 0);
  PutU32(&record, static_cast<uint32_t>(payload.size()));
  PutU32(&record, Crc32c(payload, Crc32c(record, Crc32c(key))));
  record.append(payload.data(), payload.size());
  return record;
}

// Decodes a value as every kind. Whether any took it.
inline bool DecodeAsEveryKind(absl::string_view key, absl::string_view value) {
  bool taken = DecodeCounterRecord(key, value).ok();
  taken |= DecodeMemoryRecord(key, value).ok();
  taken |= DecodeDocumentRecord(key, value).ok();
  taken |= DecodeTextRecord(key, value).ok();
  taken |= DecodeSegmentRecord(key, value).ok();
  taken |= DecodePageRecord(key, value).ok();
  taken |= DecodePurgeRecord(key, value).ok();
  taken |= DecodeDropRecord(key, value).ok();
  taken |= DecodeSnapshotRecord(key, value).ok();
  return taken;
}

}  // namespace mneme

#endif  // MNEME_TESTS_MEMORY_STORE_RECORD_FORGERY_H_
