// Record decoders and key parsers on any bytes: as a record, and as the payload of a record whose
// checksum is right. What they take, the encoders write again byte for byte.

#include "common/check.h"
#include "memory_store/keys.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/memory_store/record_forgery.h"

namespace mneme {
namespace {

std::vector<std::string> RecordSeeds() {
  SegmentRecord segment;
  segment.byte_end = 200;
  segment.chunk_byte_begin = {0, 150};
  segment.landmarks = "landmarks";
  const std::vector<std::string> records = {
      EncodeRecord("key", CounterRecord{}),
      EncodeRecord("key", MemoryRecord{"tenant", "id", "name", 1}),
      EncodeRecord("key", DocumentRecord{"id", 1}),
      EncodeRecord("key", TextRecord{true, "text"}),
      EncodeRecord("key", segment),
      EncodeRecord("key", PageRecord{1, 2, "page"}),
      EncodeRecord("key", PurgeRecord{"tenant", 1, 2, 3, 4, 5, 6}),
      EncodeRecord("key", PurgeRecord{"tenant", 1, 2, 3, 4, 5, 6, 7, 8, {9, 10}, {{11, 12}}}),
      EncodeRecord("key", MemoryRecord{"tenant", "", "", 1, 0, 0, 2, 3, 4}),
      EncodeRecord("key", TextRecord{false, "text", 5}),
      EncodeRecord("key", DropRecord{6}),
      EncodeRecord("key", SnapshotRecord{7, 8})};
  std::vector<std::string> seeds = records;
  for (const std::string& record : records) seeds.push_back(record.substr(kRecordHeaderBytes));
  const DocumentKey document{MemoryId{2}, DocumentId{300}};
  for (const std::string& key :
       {MemoryKey(MemoryId{2}), DocumentRecordKey(document), TextKey(document, 5),
        SegmentKey(document, 5), PageKey(document, 5, 6),
        PurgeKey({document.memory, document.document}), DropKey(MemoryId{2}, DocumentId{3}),
        SnapshotKey(MemoryId{2}, "before")}) {
    seeds.push_back(key);
  }
  return seeds;
}

template <typename Record>
void CheckSame(const absl::StatusOr<Record>& record, absl::string_view value) {
  MNEME_CHECK(record.ok() || absl::IsDataLoss(record.status()));
  // The two reserved bytes, which decoders do not look at, are 0 in every record forged here. A
  // later version that says nothing more is written as the one before.
  if (!record.ok()) return;
  const std::string written = EncodeRecord("key", *record);
  MNEME_CHECK(written == value || written[0] < value[0]);
}

MNEME_FUZZ_TARGET(Records, RecordSeeds) {
  DecodeAsEveryKind("key", input);
  constexpr int kVersions = 3;
  for (int i = 0; i < kVersions * (static_cast<int>(kLastRecordKind) + 2); ++i) {
    const std::string value = ForgeRecord(static_cast<RecordKind>(i / kVersions), "key", input,
                                          static_cast<uint8_t>(1 + i % kVersions));
    CheckSame(DecodeCounterRecord("key", value), value);
    CheckSame(DecodeMemoryRecord("key", value), value);
    CheckSame(DecodeDocumentRecord("key", value), value);
    CheckSame(DecodeTextRecord("key", value), value);
    CheckSame(DecodeSegmentRecord("key", value), value);
    CheckSame(DecodePageRecord("key", value), value);
    CheckSame(DecodePurgeRecord("key", value), value);
    CheckSame(DecodeDropRecord("key", value), value);
    CheckSame(DecodeSnapshotRecord("key", value), value);
  }
  MemoryId memory;
  DocumentKey document;
  int64_t number;
  if (ParseMemoryKey(input, &memory)) MNEME_CHECK(MemoryKey(memory) == input);
  if (ParseDocumentRecordKey(input, &document)) MNEME_CHECK(DocumentRecordKey(document) == input);
  if (ParseTextKey(input, &document, &number)) MNEME_CHECK(TextKey(document, number) == input);
  if (ParseSegmentKey(input, &document, &number))
    MNEME_CHECK(SegmentKey(document, number) == input);
  PurgeId purge;
  if (ParsePurgeKey(input, &purge)) MNEME_CHECK(PurgeKey(purge) == input);
  if (ParseDropKey(input, &memory, &document.document)) {
    MNEME_CHECK(DropKey(memory, document.document) == input);
  }
  std::string id;
  if (ParseSnapshotKey(input, &memory, &id)) MNEME_CHECK(SnapshotKey(memory, id) == input);
  ParseRecordKeyDocument(input, &document);
}

}  // namespace
}  // namespace mneme
