#include "memory_store/records.h"

#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "memory_store/keys.h"
#include "memory_store/record_coding.h"
#include "tests/memory_store/record_forgery.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

TEST(RecordsTest, BytesAreAsTheFormatDocumentSays) {
  const std::string record = EncodeRecord("key", TextRecord{true, "text"});
  ASSERT_EQ(record.size(), 17u);
  EXPECT_EQ(record.substr(0, 8), std::string("\x01\x04\x00\x00\x05\x00\x00\x00", 8));
  // crc32c("key" 01 04 00 00 05 00 00 00 01 "text"), computed apart from this program.
  EXPECT_EQ(record.substr(8, 4), std::string("\x97\xb0\x08\xca", 4));
  EXPECT_EQ(record.substr(12), "\x01text");
}

TEST(RecordsTest, AMemorysRecordIsOfTheOldestVersionThatSaysAll) {
  MemoryRecord memory{.tenant = "t", .id = "m"};
  EXPECT_EQ(EncodeRecord("k", memory)[0], 1);
  memory.ttl_us = 5;
  EXPECT_EQ(EncodeRecord("k", memory)[0], 2);
  memory.quota_bytes = int64_t{3} << 40;
  const std::string record = EncodeRecord("k", memory);
  EXPECT_EQ(record[0], 3);
  const MemoryRecord read = DecodeMemoryRecord("k", record).value();
  EXPECT_EQ(read.ttl_us, 5);
  EXPECT_EQ(read.quota_bytes, int64_t{3} << 40);
  memory.quota_bytes = -1;
  EXPECT_FALSE(DecodeMemoryRecord("k", EncodeRecord("k", memory)).ok());
}

TEST(RecordsTest, EveryKindIsReadBack) {
  const CounterRecord counter =
      DecodeCounterRecord("k", EncodeRecord("k", CounterRecord{7, 1ull << 63})).value();
  EXPECT_EQ(counter.next_memory, 7u);
  EXPECT_EQ(counter.next_document, 1ull << 63);
  const MemoryRecord memory =
      DecodeMemoryRecord("k", EncodeRecord("k", MemoryRecord{"tenant", "id", "", -5})).value();
  EXPECT_EQ(memory.tenant, "tenant");
  EXPECT_EQ(memory.id, "id");
  EXPECT_EQ(memory.display_name, "");
  EXPECT_EQ(memory.create_time_us, -5);
  const DocumentRecord document =
      DecodeDocumentRecord("k", EncodeRecord("k", DocumentRecord{"d", 12})).value();
  EXPECT_EQ(document.id, "d");
  EXPECT_EQ(document.create_time_us, 12);
  const std::string text_value = EncodeRecord("k", TextRecord{false, "some text"});
  const TextRecord text = DecodeTextRecord("k", text_value).value();
  EXPECT_FALSE(text.seal);
  EXPECT_EQ(text.text, "some text");
  EXPECT_EQ(TextBytesOfRecord(text_value), 9);
  const std::string timed_value = EncodeRecord("k", TextRecord{true, "some text", 1700000000});
  const TextRecord timed = DecodeTextRecord("k", timed_value).value();
  EXPECT_TRUE(timed.seal);
  EXPECT_EQ(timed.text, "some text");
  EXPECT_EQ(timed.time_us, 1700000000);
  EXPECT_EQ(TextBytesOfRecord(timed_value), 9);
  MemoryRecord of_fork{"tenant", "", "", 5, 1, 7};
  of_fork.base_memory = 3;
  of_fork.base_as_of_us = 4;
  of_fork.deleted_before = 9;
  const MemoryRecord fork = DecodeMemoryRecord("k", EncodeRecord("k", of_fork)).value();
  EXPECT_EQ(fork.retention, 1);
  EXPECT_EQ(fork.ttl_us, 7);
  EXPECT_EQ(fork.base_memory, 3u);
  EXPECT_EQ(fork.base_as_of_us, 4);
  EXPECT_EQ(fork.deleted_before, 9u);
  EXPECT_EQ(DecodeDropRecord("k", EncodeRecord("k", DropRecord{8}))->before_memory, 8u);
  const SnapshotRecord snapshot =
      DecodeSnapshotRecord("k", EncodeRecord("k", SnapshotRecord{11, 12})).value();
  EXPECT_EQ(snapshot.time_us, 11);
  EXPECT_EQ(snapshot.create_time_us, 12);
  PurgeRecord of_purge{.tenant = "tenant", .documents = 1};
  of_purge.held_documents = 2;
  of_purge.held_text_bytes = 300;
  of_purge.held_by = {4, 5};
  of_purge.also = {{6, 7}};
  const PurgeRecord purge = DecodePurgeRecord("k", EncodeRecord("k", of_purge)).value();
  EXPECT_EQ(purge.documents, 1);
  EXPECT_EQ(purge.held_documents, 2);
  EXPECT_EQ(purge.held_text_bytes, 300);
  EXPECT_EQ(purge.held_by, of_purge.held_by);
  EXPECT_EQ(purge.also, of_purge.also);
  SegmentRecord segment;
  segment.derivation_fingerprint = ~0ull;
  segment.encode_from_byte = 90;
  segment.skip_tokens = 2;
  segment.token_count = 128;
  segment.byte_begin = 100;
  segment.byte_end = 200;
  segment.chunk_byte_begin = {100, 150};
  segment.landmarks = "landmarks";
  const std::string segment_value = EncodeRecord("k", segment);
  const SegmentRecord read = DecodeSegmentRecord("k", segment_value).value();
  EXPECT_EQ(read.derivation_fingerprint, ~0ull);
  EXPECT_EQ(read.encode_from_byte, 90);
  EXPECT_EQ(read.skip_tokens, 2);
  EXPECT_EQ(read.token_count, 128);
  EXPECT_EQ(read.byte_begin, 100);
  EXPECT_EQ(read.byte_end, 200);
  EXPECT_EQ(read.chunk_byte_begin, segment.chunk_byte_begin);
  EXPECT_EQ(read.landmarks, "landmarks");
  const std::string page_value = EncodeRecord("k", PageRecord{3, 200, "page"});
  const PageRecord page = DecodePageRecord("k", page_value).value();
  EXPECT_EQ(page.derivation_fingerprint, 3u);
  EXPECT_EQ(page.segment_byte_end, 200);
  EXPECT_EQ(page.page, "page");
}

TEST(RecordsTest, RecordUnderAnotherKeyIsDamaged) {
  const std::string value = EncodeRecord("key", TextRecord{false, "text"});
  EXPECT_TRUE(DecodeTextRecord("key", value).ok());
  const absl::Status status = DecodeTextRecord("kez", value).status();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(status.message(), HasSubstr("damaged text record 6b657a: crc 0x"));
}

TEST(RecordsTest, RecordOfAnotherKindIsDamaged) {
  const std::string value = EncodeRecord("key", DocumentRecord{"d", 0});
  EXPECT_THAT(DecodeMemoryRecord("key", value).status().message(), HasSubstr("kind 3"));
}

TEST(RecordsTest, EveryFlippedBitAndEveryCutIsNoticed) {
  SegmentRecord segment;
  segment.byte_end = 200;
  segment.chunk_byte_begin = {0, 150};
  segment.landmarks = "landmarks";
  const std::string value = EncodeRecord("key", segment);
  ASSERT_TRUE(DecodeSegmentRecord("key", value).ok());
  for (size_t bit = 0; bit < 8 * value.size(); ++bit) {
    std::string damaged = value;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_TRUE(absl::IsDataLoss(DecodeSegmentRecord("key", damaged).status())) << bit;
  }
  for (size_t size = 0; size < value.size(); ++size) {
    EXPECT_TRUE(absl::IsDataLoss(DecodeSegmentRecord("key", value.substr(0, size)).status()))
        << size;
  }
  EXPECT_TRUE(absl::IsDataLoss(DecodeSegmentRecord("key", value + "x").status()));
}

TEST(RecordsTest, PayloadThatMeansNothingIsRefusedThoughItsChecksumIsRight) {
  EXPECT_TRUE(DecodeTextRecord("key", ForgeRecord(RecordKind::kText, "key", "\x01text")).ok());
  EXPECT_THAT(
      DecodeTextRecord("key", ForgeRecord(RecordKind::kText, "key", "\x02text")).status().message(),
      HasSubstr("flags"));
  EXPECT_FALSE(DecodeTextRecord("key", ForgeRecord(RecordKind::kText, "key", "")).ok());
  EXPECT_THAT(DecodeTextRecord("key", ForgeRecord(RecordKind::kText, "key", "\x01text", 2))
                  .status()
                  .message(),
              HasSubstr("time"));
  EXPECT_THAT(DecodeTextRecord("key", ForgeRecord(RecordKind::kText, "key", "\x01text", 3))
                  .status()
                  .message(),
              HasSubstr("version 3, known 2"));
  SegmentRecord segment;
  segment.byte_begin = 10;
  segment.byte_end = 20;
  segment.chunk_byte_begin = {10, 15};
  const std::string payload = EncodeRecord("key", segment).substr(kRecordHeaderBytes);
  const auto with = [&payload](size_t position, absl::string_view bytes) {
    std::string changed = payload;
    changed.replace(position, bytes.size(), bytes.data(), bytes.size());
    return DecodeSegmentRecord("key", ForgeRecord(RecordKind::kSegment, "key", changed)).ok();
  };
  EXPECT_TRUE(with(0, ""));
  EXPECT_FALSE(with(24, std::string("\x15\0\0\0\0\0\0\0", 8))) << "begins after its end";
  EXPECT_FALSE(with(40, "\xff\xff\xff\xff")) << "more chunks than bytes";
  EXPECT_FALSE(with(44, "\x10")) << "first chunk after the second";
  EXPECT_FALSE(with(52, "\x15")) << "last chunk beyond the end";
  EXPECT_FALSE(with(60, "\x01")) << "landmarks that are not there";
}

TEST(RecordsTest, AnyBytesGiveAValueOrDataLoss) {
  const uint32_t seed = std::random_device{}();
  RecordProperty("seed", std::to_string(seed));
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  SegmentRecord segment;
  segment.byte_end = 200;
  segment.chunk_byte_begin = {0, 150};
  segment.landmarks = "landmarks";
  const std::vector<std::string> samples = {EncodeRecord("key", CounterRecord{}),
                                            EncodeRecord("key", MemoryRecord{"t", "m", "name", 1}),
                                            EncodeRecord("key", DocumentRecord{"d", 1}),
                                            EncodeRecord("key", TextRecord{true, "text"}),
                                            EncodeRecord("key", segment),
                                            EncodeRecord("key", PageRecord{1, 2, "page"}),
                                            EncodeRecord("key", PurgeRecord{"t", 1}),
                                            EncodeRecord("key", DropRecord{1}),
                                            EncodeRecord("key", SnapshotRecord{1, 2})};
  int taken = 0;
  for (int round = 0; round < 50'000; ++round) {
    const size_t kind = random() % samples.size();
    std::string payload = samples[kind].substr(kRecordHeaderBytes);
    for (int changes = static_cast<int>(random() % 4); changes > 0 && !payload.empty(); --changes) {
      const size_t at = random() % payload.size();
      if (random() % 4 == 0) {
        payload.resize(at);
      } else {
        payload[at] = static_cast<char>(random());
      }
    }
    taken += DecodeAsEveryKind("key", ForgeRecord(static_cast<RecordKind>(kind + 1), "key", payload,
                                                  static_cast<uint8_t>(1 + random() % 3)));
  }
  EXPECT_GT(taken, 0);
}

TEST(RecordReaderTest, ReadsNothingMoreAfterTheEnd) {
  std::string bytes;
  PutU8(&bytes, 7);
  PutU32(&bytes, 0x01020304);
  PutString(&bytes, "ab");
  RecordReader reader(bytes);
  uint8_t small;
  uint32_t number;
  absl::string_view string;
  ASSERT_TRUE(reader.ReadU8(&small));
  ASSERT_TRUE(reader.ReadU32(&number));
  ASSERT_TRUE(reader.ReadString(&string));
  EXPECT_EQ(small, 7);
  EXPECT_EQ(number, 0x01020304u);
  EXPECT_EQ(string, "ab");
  EXPECT_TRUE(reader.rest().empty());
  EXPECT_FALSE(reader.ReadU8(&small));
  EXPECT_TRUE(reader.ReadBytes(0, &string) == false) << "a reader that failed stays failed";
}

TEST(RecordReaderTest, SignedNumbersBeyondTheirRangeAreRefused) {
  std::string bytes;
  PutU64(&bytes, uint64_t{1} << 63);
  int64_t wide;
  EXPECT_FALSE(RecordReader(bytes).ReadI64(&wide));
  bytes.clear();
  PutU32(&bytes, uint32_t{1} << 31);
  int32_t narrow;
  EXPECT_FALSE(RecordReader(bytes).ReadI32(&narrow));
  bytes.clear();
  PutU32(&bytes, 5);  // a string of 5 bytes, of which 1 is there
  bytes += "x";
  absl::string_view string;
  EXPECT_FALSE(RecordReader(bytes).ReadString(&string));
}

TEST(KeysTest, SortAsTheirNumbersAndStayInTheirRanges) {
  const DocumentKey document{MemoryId{2}, DocumentId{300}};
  EXPECT_LT(SegmentKey(document, 1), SegmentKey(document, 256));
  EXPECT_LT(PageKey(document, 1, 63), PageKey(document, 2, 0));
  EXPECT_LT(PageKey(document, 1, 9), PageKey(document, 1, 10));
  EXPECT_GT(TextKey(document, 1), TextKey(document, 256)) << "newest text first";
  const auto [begin, end] = RecordKeyRange(document);
  for (const std::string& key : {TextKey(document, 0), TextKey(document, int64_t{1} << 62),
                                 SegmentKey(document, 0), PageKey(document, 1, 1)}) {
    EXPECT_LE(begin, key);
    EXPECT_LT(key, end);
  }
  const auto [memory_begin, memory_end] = RecordKeyRange(MemoryId{2});
  EXPECT_LE(memory_begin, begin);
  EXPECT_LT(end, memory_end);
  EXPECT_GE(SegmentKey({MemoryId{3}, DocumentId{1}}, 0), memory_end);
}

TEST(KeysTest, AreParsedBackAndOtherShapesAreNot) {
  const DocumentKey document{MemoryId{2}, DocumentId{300}};
  DocumentKey parsed;
  int64_t number;
  ASSERT_TRUE(ParseTextKey(TextKey(document, 77), &parsed, &number));
  EXPECT_EQ(parsed, document);
  EXPECT_EQ(number, 77);
  MemoryId of_key;
  ASSERT_TRUE(ParseDropKey(DropKey(MemoryId{9}, document.document), &of_key, &parsed.document));
  EXPECT_EQ(of_key, MemoryId{9});
  EXPECT_EQ(parsed.document, document.document);
  std::string id;
  ASSERT_TRUE(ParseSnapshotKey(SnapshotKey(MemoryId{8}, "before"), &of_key, &id));
  EXPECT_EQ(of_key, MemoryId{8});
  EXPECT_EQ(id, "before");
  EXPECT_FALSE(ParseSnapshotKey(SnapshotKey(MemoryId{8}, ""), &of_key, &id));
  EXPECT_FALSE(ParseDropKey(DocumentRecordKey(document), &of_key, &parsed.document));
  ASSERT_TRUE(ParseSegmentKey(SegmentKey(document, 5), &parsed, &number));
  EXPECT_EQ(number, 5);
  EXPECT_FALSE(ParseTextKey(SegmentKey(document, 5), &parsed, &number))
      << "its offset would be beyond all numbers";
  EXPECT_FALSE(ParseSegmentKey(PageKey(document, 5, 1), &parsed, &number));
  EXPECT_FALSE(ParseSegmentKey("", &parsed, &number));
  MemoryId memory;
  ASSERT_TRUE(ParseMemoryKey(MemoryKey(MemoryId{9}), &memory));
  EXPECT_EQ(memory, MemoryId{9});
  EXPECT_FALSE(ParseMemoryKey(DocumentRecordKey(document), &memory));
  ASSERT_TRUE(ParseDocumentRecordKey(DocumentRecordKey(document), &parsed));
  EXPECT_EQ(parsed, document);
  EXPECT_FALSE(ParseDocumentRecordKey(MemoryKey(MemoryId{9}), &parsed));
}

}  // namespace
}  // namespace mneme
