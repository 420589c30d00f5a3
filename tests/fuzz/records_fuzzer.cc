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
      EncodeRecord("key", PurgeRecord{"tenant", 1, 2, 3, 4, 5, 6})};
  std::vector<std::string> seeds = records;
  for (const std::string& record : records) seeds.push_back(record.substr(kRecordHeaderBytes));
  const DocumentKey document{MemoryId{2}, DocumentId{300}};
  for (const std::string& key :
       {MemoryKey(MemoryId{2}), DocumentRecordKey(document), TextKey(document, 5),
        SegmentKey(document, 5), PageKey(document, 5, 6),
        PurgeKey({document.memory, document.document})}) {
    seeds.push_back(key);
  }
  return seeds;
}

template <typename Record>
void CheckSame(const absl::StatusOr<Record>& record, absl::string_view value) {
  MNEME_CHECK(record.ok() || absl::IsDataLoss(record.status()));
  // The two reserved bytes, which decoders do not look at, are 0 in every record forged here.
  MNEME_CHECK(!record.ok() || EncodeRecord("key", *record) == value);
}

MNEME_FUZZ_TARGET(Records, RecordSeeds) {
  DecodeAsEveryKind("key", input);
  for (int kind = 0; kind < 9; ++kind) {
    const std::string value = ForgeRecord(static_cast<RecordKind>(kind), "key", input);
    CheckSame(DecodeCounterRecord("key", value), value);
    CheckSame(DecodeMemoryRecord("key", value), value);
    CheckSame(DecodeDocumentRecord("key", value), value);
    CheckSame(DecodeTextRecord("key", value), value);
    CheckSame(DecodeSegmentRecord("key", value), value);
    CheckSame(DecodePageRecord("key", value), value);
    CheckSame(DecodePurgeRecord("key", value), value);
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
  ParseRecordKeyDocument(input, &document);
}

}  // namespace
}  // namespace mneme
