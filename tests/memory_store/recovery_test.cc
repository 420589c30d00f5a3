// MemoryStore::Open over damage, loss and failure.

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "memory_store/keys.h"
#include "memory_store/records.h"
#include "tests/memory_store/harness.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;
using Op = FaultyChunkStore::Op;

class RecoveryTest : public MemoryStoreHarness {
 protected:
  RecoveryTest() { memory_ = NewMemory("m"); }

  void Damage(Table table, const std::string& key) {
    std::string value = disk().Get(table, key).value();
    value[value.size() / 2] = static_cast<char>(value[value.size() / 2] ^ 4);
    WriteBatch batch;
    batch.Put(table, key, value);
    ASSERT_TRUE(disk().Write(batch, Durability::kSynced).ok());
  }
  void Remove(Table table, const std::string& key) {
    WriteBatch batch;
    batch.Delete(table, key);
    ASSERT_TRUE(disk().Write(batch, Durability::kSynced).ok());
  }
  DocumentInfo Info(DocumentId document) { return store().GetDocument(document).value(); }
  double Ignored(const char* reason) {
    return Metric(absl::StrCat("mneme_store_ignored_segments_total{reason=\"", reason, "\"}"));
  }

  MemoryId memory_;
};

TEST_F(RecoveryTest, DamagedSegmentEndsWhatIsVisibleAndCanBePutAgain) {
  const DocumentId a = NewDerivedDocument(memory_, "a", 4), b = NewDerivedDocument(memory_, "b", 2);
  Damage(Table::kSegments, SegmentKey({memory_, a}, 1));
  Reopen();
  EXPECT_EQ(Info(a).visible_bytes, 100);
  EXPECT_EQ(Info(a).durable_bytes, 400);
  EXPECT_EQ(Info(b).visible_bytes, 200);
  EXPECT_EQ(View(memory_).chunk_count(), 6);
  EXPECT_EQ(Ignored("damaged"), 1);
  EXPECT_EQ(Ignored("hole"), 2);
  EXPECT_EQ(Metric("mneme_store_corrupt_records_total{kind=\"segment\"}"), 1);
  for (int segment = 1; segment < 4; ++segment) ASSERT_TRUE(PutSegment(Segment(a, segment)).ok());
  Reopen();
  EXPECT_EQ(Info(a).visible_bytes, 400);
  ExpectPage(Pin({{a, 7}}).pages()[0], a, 7, 400);
}

TEST_F(RecoveryTest, SegmentsBehindAHoleAreLeftOutAndReplaced) {
  const DocumentId document = NewDerivedDocument(memory_, "d", 4);
  Remove(Table::kSegments, SegmentKey({memory_, document}, 0));
  Reopen();
  EXPECT_EQ(Info(document).visible_bytes, 0);
  EXPECT_EQ(Ignored("hole"), 3);
  // What was behind the hole goes away with the first segment put, as it may not fit any more.
  ASSERT_TRUE(PutSegment(MadeUpSegment(options(), document, 0, 0, 1, 0, 50)).ok());
  Reopen();
  EXPECT_EQ(Info(document).visible_bytes, 50);
  EXPECT_EQ(View(memory_).chunk_count(), 1);
}

TEST_F(RecoveryTest, SegmentsBehindAnOlderVersionOfOneAreLeftOutAndReplaced) {
  const DocumentId document = NewDocument(memory_, "d");
  ASSERT_TRUE(Append(document, 0, TextOf(document, 200)).ok());
  ASSERT_TRUE(PutSegment(MadeUpSegment(options(), document, 0, 0, 1, 0, 60)).ok());
  const std::string key = SegmentKey({memory_, document}, 0);
  WriteBatch open_again;
  open_again.Put(Table::kSegments, key, disk().Get(Table::kSegments, key).value());
  for (int s = 0; s < 2; ++s) ASSERT_TRUE(PutSegment(Segment(document, s)).ok());
  // As when the record of the log is damaged that made the segment whole.
  ASSERT_TRUE(disk().Write(open_again, Durability::kSynced).ok());
  Reopen();
  EXPECT_EQ(Info(document).visible_bytes, 60) << "nobody would derive [60, 100) again";
  EXPECT_EQ(View(memory_).chunk_count(), 1);
  EXPECT_EQ(Ignored("hole"), 1);
  for (int s = 0; s < 2; ++s) ASSERT_TRUE(PutSegment(Segment(document, s)).ok());
  Reopen();
  EXPECT_EQ(Info(document).visible_bytes, 200);
  EXPECT_EQ(Ignored("hole"), 1);
}

TEST_F(RecoveryTest, SegmentsOfAnotherModelAreLeftOutAndTheirPagesAreMissing) {
  const DocumentId document = NewDerivedDocument(memory_, "d", 2);
  options().derivation_fingerprint = 0xbeef;
  Reopen();
  EXPECT_EQ(Info(document).visible_bytes, 0);
  EXPECT_EQ(Info(document).durable_bytes, 200);
  EXPECT_EQ(Ignored("fingerprint"), 1);
  ASSERT_TRUE(PutSegment(Segment(document, 0, 2, /*with_pages=*/false)).ok());
  EXPECT_EQ(Pin({{document, 0}}).missing().size(), 1u) << "the page on disk is the other model's";
  Reopen();
  EXPECT_EQ(Info(document).visible_bytes, 100);
}

TEST_F(RecoveryTest, SegmentsOfAnotherLandmarkSizeAreLeftOut) {
  const DocumentId document = NewDerivedDocument(memory_, "d");
  options().landmark_bytes = 32;
  Reopen();
  EXPECT_EQ(Info(document).visible_bytes, 0);
  EXPECT_EQ(Info(document).durable_bytes, 100);
}

TEST_F(RecoveryTest, TextThatLostItsEndIsNoticedByWhatWasDerivedFromIt) {
  const DocumentId document = NewDocument(memory_, "d");
  for (int s = 0; s < 3; ++s) ASSERT_TRUE(Append(document, s * 100, TextOf(document, 100)).ok());
  for (int s = 0; s < 3; ++s) ASSERT_TRUE(PutSegment(Segment(document, s)).ok());
  Remove(Table::kText, TextKey({memory_, document}, 200));
  Reopen();
  EXPECT_TRUE(Info(document).damaged);
  EXPECT_EQ(Info(document).durable_bytes, 300);
  EXPECT_EQ(store().ReadText(document, 0, 200).value(),
            TextOf(document, 100) + TextOf(document, 100));
  EXPECT_TRUE(absl::IsDataLoss(store().ReadText(document, 150, 300).status()));
  EXPECT_TRUE(absl::IsDataLoss(Append(document, 300, "more")));
}

TEST_F(RecoveryTest, MachineCrashLosesTheNewestDerivedRecordsAndNoText) {
  const DocumentId document = NewDocument(memory_, "d");
  for (int s = 0; s < 5; ++s) ASSERT_TRUE(Append(document, s * 100, TextOf(document, 100)).ok());
  for (int s = 0; s < 5; ++s) ASSERT_TRUE(PutSegment(Segment(document, s)).ok());
  ASSERT_EQ(disk().unsynced(), 5);
  disk().Crash(2);
  Reopen();
  EXPECT_EQ(Info(document).durable_bytes, 500);
  EXPECT_EQ(Info(document).visible_bytes, 300);
  EXPECT_EQ(disk().key_count(Table::kPages), 6);
}

TEST_F(RecoveryTest, DamagedTextMarksItsDocumentAndEverythingElseServes) {
  const DocumentId a = NewDocument(memory_, "a"), b = NewDocument(memory_, "b"),
                   c = NewDocument(memory_, "c");
  for (const DocumentId document : {a, b, c}) {
    for (int64_t offset = 0; offset < 30; offset += 10)
      ASSERT_TRUE(Append(document, offset, "0123456789").ok());
  }
  Damage(Table::kText, TextKey({memory_, a}, 20));  // the newest piece
  Remove(Table::kText, TextKey({memory_, c}, 10));  // the one before it
  Reopen();
  EXPECT_TRUE(Info(a).damaged);
  EXPECT_EQ(Info(a).durable_bytes, 30) << "its length is known all the same";
  EXPECT_EQ(store().ReadText(a, 0, 20).value(), "01234567890123456789");
  EXPECT_TRUE(absl::IsDataLoss(store().ReadText(a, 0, 30).status()));
  EXPECT_FALSE(Info(b).damaged);
  EXPECT_EQ(store().ReadText(b, 5, 25).value(), "56789012345678901234");
  EXPECT_TRUE(Info(c).damaged);
  // Found at Open, and counted there: reads find nothing new.
  EXPECT_EQ(Metric("mneme_documents_damaged_total"), 2);
  EXPECT_TRUE(absl::IsDataLoss(store().ReadText(c, 0, 30).status()));
  EXPECT_EQ(Metric("mneme_documents_damaged_total"), 2);
  EXPECT_EQ(Metric("mneme_damaged_documents"), 2);
  EXPECT_TRUE(store().DeleteDocument(a).ok());
  EXPECT_EQ(Metric("mneme_damaged_documents"), 1);
  EXPECT_EQ(Metric("mneme_store_corrupt_records_total{kind=\"text\"}"), 2);
}

TEST_F(RecoveryTest, TextWithoutItsBeginningIsDamaged) {
  const DocumentId document = NewDocument(memory_, "d");
  ASSERT_TRUE(Append(document, 0, "0123456789").ok());
  ASSERT_TRUE(Append(document, 10, "0123456789").ok());
  Remove(Table::kText, TextKey({memory_, document}, 0));
  Reopen();
  EXPECT_TRUE(Info(document).damaged);
}

TEST_F(RecoveryTest, TextRecordUnderAnImpossibleOffsetIsDamage) {
  const DocumentId document = NewDocument(memory_, "d");
  const std::string key = TextKey({memory_, document}, std::numeric_limits<int64_t>::max());
  WriteBatch batch;
  batch.Put(Table::kText, key, EncodeRecord(key, TextRecord{false, "x"}));
  ASSERT_TRUE(disk().Write(batch, Durability::kSynced).ok());
  Reopen();
  EXPECT_TRUE(Info(document).damaged);
}

TEST_F(RecoveryTest, TableThatCannotBeReadFromSomePlaceOnCostsWhatIsThere) {
  std::vector<DocumentId> documents;
  for (int i = 0; i < 5; ++i)
    documents.push_back(NewDerivedDocument(memory_, absl::StrCat("d", i), 2));
  for (int64_t record = 0; record < 5; ++record) {
    faults().FailScanAtRecord(Table::kText, record, absl::DataLossError("block checksum"));
    Reopen();
    for (int i = 0; i < 5; ++i) {
      // The fault passes: the document's records alone can be read.
      EXPECT_FALSE(Info(documents[i]).damaged) << record << " " << i;
      EXPECT_EQ(Info(documents[i]).visible_bytes, 200);
      EXPECT_EQ(Info(documents[i]).durable_bytes, 200);
    }
    faults().FailScanAtRecord(Table::kText, record, absl::DataLossError("block checksum"),
                              FaultyChunkStore::kForever);
    Reopen();
    for (int i = 0; i < 5; ++i)
      EXPECT_EQ(Info(documents[i]).damaged, i >= record) << record << " " << i;
    faults().Heal();
  }
  for (int64_t record = 0; record < 10; ++record) {
    faults().FailScanAtRecord(Table::kSegments, record, absl::DataLossError("block checksum"),
                              FaultyChunkStore::kForever);
    Reopen();
    int64_t visible = 0;
    for (const DocumentId document : documents) {
      EXPECT_FALSE(Info(document).damaged);
      visible += Info(document).visible_bytes;
    }
    EXPECT_EQ(visible, 100 * record);
    faults().Heal();
    for (const DocumentId document : documents) {
      std::vector<SegmentDerived> again;
      for (int s = 0; s < 2; ++s) again.push_back(Segment(document, s));
      ASSERT_TRUE(store().PutSegments(again).ok());
    }
  }
}

TEST_F(RecoveryTest, FailuresOfTheDiskStopOpen) {
  NewDerivedDocument(memory_, "d", 2);
  for (int64_t skip = 0; skip < 4; ++skip) {  // memories, documents, text, segments
    faults().Fail(Op::kScan, absl::InternalError("disk failed"), skip);
    EXPECT_EQ(TryOpen().code(), absl::StatusCode::kInternal) << skip;
  }
  faults().Heal();
  faults().Fail(Op::kGet, absl::InternalError("disk failed"));
  EXPECT_EQ(TryOpen().code(), absl::StatusCode::kInternal);
  faults().FailScanAtRecord(Table::kCatalog, 0, absl::DataLossError("block checksum"));
  EXPECT_TRUE(absl::IsDataLoss(TryOpen())) << "without the catalog nobody knows what is there";
  Reopen();
  EXPECT_EQ(store().totals().visible_bytes, 200);
}

TEST_F(RecoveryTest, DamagedCatalogRecordHidesItsOwnAlone) {
  const MemoryId other = NewMemory("other");
  const DocumentId a = NewDerivedDocument(memory_, "a"), b = NewDerivedDocument(memory_, "b");
  const DocumentId c = NewDerivedDocument(other, "c");
  Damage(Table::kCatalog, DocumentRecordKey({memory_, a}));
  Damage(Table::kCatalog, MemoryKey(other));
  Reopen();
  EXPECT_TRUE(absl::IsNotFound(store().GetDocument(a).status()));
  EXPECT_EQ(Info(b).visible_bytes, 100);
  EXPECT_TRUE(absl::IsNotFound(store().GetDocument(c).status()));
  EXPECT_TRUE(absl::IsNotFound(store().GetMemory("default", "other").status()));
  EXPECT_EQ(Metric("mneme_store_corrupt_records_total{kind=\"document\"}"), 2);
  EXPECT_EQ(Metric("mneme_store_corrupt_records_total{kind=\"memory\"}"), 1);
  EXPECT_GT(static_cast<uint64_t>(NewDocument(memory_, "new")), static_cast<uint64_t>(c));
  EXPECT_GT(disk().key_count(Table::kText), 2) << "nothing is thrown away";
}

TEST_F(RecoveryTest, DamagedCounterSkipsFarAhead) {
  const DocumentId document = NewDocument(memory_, "d");
  Damage(Table::kCatalog, CounterKey());
  Reopen();
  EXPECT_GE(static_cast<uint64_t>(NewDocument(memory_, "e")),
            static_cast<uint64_t>(document) + 1'000'000);
}

TEST_F(RecoveryTest, ForeignKeysAreStepedOver) {
  const DocumentId document = NewDerivedDocument(memory_, "d", 2);
  WriteBatch batch;
  batch.Put(Table::kCatalog, "M", "short key");
  batch.Put(Table::kCatalog, "Dxyz", "short key");
  batch.Put(Table::kText, "x", "short key");
  batch.Put(Table::kSegments, "x", "short key");
  for (int i = 0; i < 20; ++i) {  // of a document that is not there
    const std::string key = TextKey({memory_, DocumentId{0}}, i);
    batch.Put(Table::kText, key, EncodeRecord(key, TextRecord{false, "x"}));
  }
  ASSERT_TRUE(disk().Write(batch, Durability::kSynced).ok());
  Reopen();
  EXPECT_EQ(Info(document).visible_bytes, 200);
  EXPECT_EQ(Info(document).durable_bytes, 200);
}

TEST_F(RecoveryTest, EndsOfManyTextsAreFoundInFewScans) {
  for (int i = 0; i < 500; ++i) {
    const DocumentId document = NewDocument(memory_, absl::StrCat("d", i));
    const int pieces = i % 100 == 0 ? 50 : i % 3;  // some long, most short, some empty
    for (int p = 0; p < pieces; ++p) ASSERT_TRUE(Append(document, p * 2, "ab").ok());
  }
  const int64_t scans = faults().operations(Op::kScan);
  Reopen();
  EXPECT_LE(faults().operations(Op::kScan) - scans, 5 + 5 + 1 + 1);
  int i = 0;
  for (const DocumentInfo& info : store().AllDocuments()) {
    EXPECT_EQ(info.durable_bytes, i % 100 == 0 ? 100 : i % 3 * 2) << i;
    EXPECT_FALSE(info.damaged);
    ++i;
  }
  EXPECT_EQ(i, 500);
}

}  // namespace
}  // namespace mneme
