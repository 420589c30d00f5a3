// A data directory of format 1, which knew no forks and whose text says no time: it is read,
// becomes one of format 2 at the first start that may write, and keeps all it had; a program that
// may only read leaves it as it is; formats that nobody knows are refused.

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "memory_store/keys.h"
#include "memory_store/records.h"
#include "tests/memory_store/derived.h"
#include "tests/memory_store/temp_store.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

constexpr char kTextA[] = "what the first program was told";
constexpr char kTextB[] = ", and then some";

class OlderFormatTest : public ::testing::Test {
 protected:
  OlderFormatTest() {
    WriteAsFormat1();
    disk_.Close();
    WriteFormat("mneme store 1\n");
  }

  void Put(const std::string& key, const std::string& record, Table table, WriteBatch* batch) {
    // What no record of that time has: a version beyond 1.
    ASSERT_EQ(record[0], 1);
    batch->Put(table, key, record);
  }
  // Memory 1 with document 1, of two pieces and one segment.
  void WriteAsFormat1() {
    created_ = disk_.clock().Now();
    WriteBatch batch;
    Put(CounterKey(), EncodeRecord(CounterKey(), CounterRecord{1000, 1000}), Table::kCatalog,
        &batch);
    const std::string memory_key = MemoryKey(kMemory);
    Put(memory_key,
        EncodeRecord(memory_key, MemoryRecord{.tenant = "default",
                                              .id = "old",
                                              .display_name = "Old",
                                              .create_time_us = absl::ToUnixMicros(created_)}),
        Table::kCatalog, &batch);
    const std::string document_key = DocumentRecordKey({kMemory, kDocument});
    Put(document_key, EncodeRecord(document_key, DocumentRecord{"d", absl::ToUnixMicros(created_)}),
        Table::kCatalog, &batch);
    int64_t offset = 0;
    for (const std::string text : {kTextA, kTextB}) {
      const std::string key = TextKey({kMemory, kDocument}, offset);
      Put(key, EncodeRecord(key, TextRecord{false, text}), Table::kText, &batch);
      offset += static_cast<int64_t>(text.size());
    }
    ASSERT_TRUE(disk_.chunk_store().Write(batch, Durability::kSynced).ok());
    disk_.Reopen();
    segment_ = MadeUpSegment(disk_.options(), kDocument, 0, 0, 1, 0, offset, /*with_pages=*/true);
    ASSERT_TRUE(disk_.store().PutSegments({&segment_, 1}).ok());
  }
  void WriteFormat(const std::string& text) {
    std::ofstream(disk_.data_dir() + "/FORMAT", std::ios::trunc) << text;
  }
  std::string Format() const {
    std::ifstream file(disk_.data_dir() + "/FORMAT");
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  std::string TextOf(MemoryId memory) {
    const auto info = disk_.store().GetDocument(memory, "d");
    EXPECT_TRUE(info.ok()) << info.status();
    if (!info.ok()) return "";
    return disk_.store().ReadText(info->uid, 0, info->durable_bytes).value();
  }

  static constexpr MemoryId kMemory{1};
  static constexpr DocumentId kDocument{1};
  TempStore disk_;
  absl::Time created_;
  SegmentDerived segment_;
};

TEST_F(OlderFormatTest, IsTakenOverWithAllItHad) {
  disk_.Open();
  EXPECT_EQ(Format(), "mneme store 2\n");
  EXPECT_EQ(disk_.store().GetMemory("default", "old")->uid, kMemory);
  EXPECT_EQ(TextOf(kMemory), absl::StrCat(kTextA, kTextB));
  const MemoryId memory = kMemory;
  EXPECT_EQ(disk_.store().View({&memory, 1})->chunk_count(), 1);
  // Its text counts from when its document began, for forks and moments that it knew nothing of.
  disk_.clock().Advance(absl::Seconds(1));
  const TextAppend more{kDocument, segment_.byte_end, " in a newer one"};
  ASSERT_TRUE(disk_.store().AppendText({&more, 1}).ok());
  const MemoryId then = disk_.store().ForkMemory({kMemory, created_}, "then", "")->uid;
  const MemoryId now = disk_.store().ForkMemory({kMemory}, "now", "")->uid;
  disk_.Close();
  disk_.Open();
  EXPECT_EQ(TextOf(then), absl::StrCat(kTextA, kTextB));
  EXPECT_EQ(TextOf(now), absl::StrCat(kTextA, kTextB, " in a newer one"));
  const ReadSource source{then};
  const PastView past = disk_.store().ViewPast({&source, 1}).value();
  ASSERT_EQ(past.wanting.size(), 1u);  // what was its open segment may be one no more
  EXPECT_EQ(past.wanting[0].cut_bytes, segment_.byte_end);
}

TEST_F(OlderFormatTest, IsLeftAsItIsByWhoOnlyReads) {
  disk_.rocksdb_options().read_only = true;
  disk_.Open();
  EXPECT_EQ(TextOf(kMemory), absl::StrCat(kTextA, kTextB));
  disk_.Close();
  EXPECT_EQ(Format(), "mneme store 1\n");
}

TEST_F(OlderFormatTest, FormatsThatNobodyKnowsAreRefusedByNumber) {
  for (const int format : {0, 3}) {
    const std::string text = absl::StrCat("mneme store ", format, "\n");
    WriteFormat(text);
    const absl::Status status =
        OpenRocksDbChunkStore(disk_.rocksdb_options(), disk_.metrics()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(absl::StrCat("has store format ", format,
                                       "; this program reads formats 1 to 2")));
    EXPECT_EQ(Format(), text);
  }
  WriteFormat("mneme store 1\n");
  disk_.Open();
  EXPECT_EQ(TextOf(kMemory), absl::StrCat(kTextA, kTextB));
}

}  // namespace
}  // namespace mneme
