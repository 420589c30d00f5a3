// StoreChecker over a map of records: every kind of damage is found, named where it lies, and
// mended when it can be.

#include "memory_store/store_checker.h"

#include <atomic>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "memory_store/records.h"
#include "tests/memory_store/harness.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;
using Kind = StoreFinding::Kind;

class StoreCheckerTest : public MemoryStoreHarness {
 protected:
  StoreCheckerTest() { memory_ = NewMemory("m"); }

  StoreCheckReport Check(bool heal = false) {
    StoreCheckOptions options;
    options.heal = heal;
    options.derive = [this](DocumentId document, int64_t segment, bool with_pages) {
      ++derived_;
      return store().RestoreSegment(Segment(document, static_cast<int>(segment), 2, with_pages));
    };
    absl::StatusOr<StoreCheckReport> report = StoreChecker(store(), options).Run();
    EXPECT_TRUE(report.ok()) << report.status();
    return report.ok() ? *std::move(report) : StoreCheckReport();
  }
  static int64_t Found(const StoreCheckReport& report, Kind kind) {
    return report.found[static_cast<size_t>(kind)];
  }
  void FlipByte(Table table, const std::string& key) {
    std::string value = disk().Get(table, key).value();
    value[value.size() / 2] = static_cast<char>(value[value.size() / 2] ^ 1);
    Put(table, key, value);
  }
  void Put(Table table, const std::string& key, const std::string& value) {
    WriteBatch batch;
    batch.Put(table, key, value);
    ASSERT_TRUE(disk().Write(batch, Durability::kSynced).ok());
  }
  void Remove(Table table, const std::string& key) {
    WriteBatch batch;
    batch.Delete(table, key);
    ASSERT_TRUE(disk().Write(batch, Durability::kSynced).ok());
  }
  DocumentKey Key(DocumentId document) const { return {memory_, document}; }

  MemoryId memory_{};
  int derived_ = 0;
};

TEST_F(StoreCheckerTest, HealthyStoreIsReadWholeAndNothingIsFound) {
  NewDerivedDocument(memory_, "a", /*segments=*/3);
  NewDerivedDocument(memory_, "b");
  const StoreCheckReport report = Check();
  EXPECT_EQ(report.found_count(), 0);
  EXPECT_EQ(report.documents, 2);
  EXPECT_EQ(report.records[static_cast<size_t>(Table::kText)].count, 2);
  EXPECT_EQ(report.records[static_cast<size_t>(Table::kSegments)].count, 4);
  EXPECT_EQ(report.records[static_cast<size_t>(Table::kPages)].count, 8);
  EXPECT_EQ(report.records[static_cast<size_t>(Table::kCatalog)].count, 4);
  EXPECT_GT(report.bytes_read(), 400 + 8 * 64);
}

TEST_F(StoreCheckerTest, OneMemoryAloneIsReadWhenAsked) {
  NewDerivedDocument(memory_, "a");
  const MemoryId other = NewMemory("other");
  const DocumentId theirs = NewDerivedDocument(other, "b");
  Remove(Table::kSegments, SegmentKey({other, theirs}, 0));
  StoreCheckOptions options;
  options.memory = memory_;
  StoreCheckReport report = StoreChecker(store(), options).Run().value();
  EXPECT_EQ(report.documents, 1);
  EXPECT_EQ(report.found_count(), 0);
  EXPECT_EQ(report.records[static_cast<size_t>(Table::kCatalog)].count, 0);
  options.memory = other;
  EXPECT_EQ(StoreChecker(store(), options).Run()->found_count(), 1);
}

TEST_F(StoreCheckerTest, DamagedPieceOfTextIsNamedAndStopsItsDocumentAlone) {
  const DocumentId bad = NewDocument(memory_, "bad");
  for (int piece = 0; piece < 4; ++piece) {
    ASSERT_TRUE(Append(bad, piece * 10, "0123456789").ok());
  }
  const DocumentId good = NewDerivedDocument(memory_, "good");
  FlipByte(Table::kText, TextKey(Key(bad), 10));
  const StoreCheckReport report = Check(/*heal=*/true);
  ASSERT_EQ(report.findings.size(), 1u);
  const StoreFinding& finding = report.findings[0];
  EXPECT_EQ(finding.kind, Kind::kText);
  EXPECT_EQ(finding.tenant, "default");
  EXPECT_EQ(finding.memory_id, "m");
  EXPECT_EQ(finding.document_id, "bad");
  EXPECT_EQ(finding.byte_begin, 10);
  EXPECT_EQ(finding.byte_end, 20);
  EXPECT_FALSE(finding.healed);
  EXPECT_THAT(finding.what, testing::Not(HasSubstr("0123")));
  EXPECT_TRUE(store().GetDocument(bad)->damaged);
  EXPECT_EQ(store().ReadText(bad, 20, 40).value(), "01234567890123456789");
  EXPECT_EQ(store().ReadText(good, 0, 100).value(), TextOf(good, 100));
}

TEST_F(StoreCheckerTest, DamagedTextIsCountedOnceHoweverManyChecksMeetIt) {
  const DocumentId bad = NewDocument(memory_, "bad");
  ASSERT_TRUE(Append(bad, 0, "0123456789").ok());
  const std::string key = TextKey(Key(bad), 0);
  FlipByte(Table::kText, key);
  for (int check = 0; check < 3; ++check) EXPECT_EQ(Found(Check(/*heal=*/true), Kind::kText), 1);
  EXPECT_EQ(Metric("mneme_documents_damaged_total"), 1);
  EXPECT_EQ(Metric("mneme_damaged_documents"), 1);
  FlipByte(Table::kText, key);  // as it was
  EXPECT_EQ(Check(/*heal=*/true).healed_count(), 1);
  EXPECT_EQ(Metric("mneme_damaged_documents"), 0);
}

TEST_F(StoreCheckerTest, ACheckOfAForkReadsWhatItSharesAndNamesItThere) {
  const DocumentId shared = NewDerivedDocument(memory_, "base.txt", /*segments=*/2);
  const DocumentId dropped = NewDerivedDocument(memory_, "dropped");
  const auto fork = [this](MemoryId source, const std::string& id) {
    return store().ForkMemory({source}, id, "").value().uid;
  };
  const MemoryId first = fork(memory_, "f1");
  const MemoryId second = fork(first, "f2");
  NewDerivedDocument(memory_, "later");
  NewDerivedDocument(second, "own");
  ASSERT_TRUE(store().DeleteDocument(second, dropped).ok());
  FlipByte(Table::kText, TextKey(Key(shared), 0));
  Remove(Table::kSegments, SegmentKey(Key(shared), 1));
  const auto check = [this](std::optional<MemoryId> memory) {
    StoreCheckOptions options;
    options.memory = memory;
    return StoreChecker(store(), options).Run().value();
  };
  const auto memories_named = [](const StoreCheckReport& report) {
    std::vector<std::string> names;
    for (const StoreFinding& finding : report.findings) {
      EXPECT_EQ(finding.tenant, "default");
      EXPECT_EQ(finding.document_id, "base.txt");
      names.push_back(finding.memory_id);
    }
    return names;
  };
  EXPECT_EQ(check(memory_).documents, 3);
  EXPECT_EQ(check(first).documents, 2);
  StoreCheckReport report = check(second);
  EXPECT_EQ(report.documents, 2) << "without what it dropped, with its own";
  EXPECT_THAT(memories_named(report), testing::ElementsAre("f2", "f2"));
  EXPECT_THAT(memories_named(check(std::nullopt)), testing::ElementsAre("m", "m"));
  // Then the oldest that has it.
  ASSERT_TRUE(store().DeleteDocument(memory_, shared).ok());
  EXPECT_THAT(memories_named(check(std::nullopt)), testing::ElementsAre("f1", "f1"));
  ASSERT_TRUE(store().DeleteMemory(memory_).ok());
  ASSERT_TRUE(store().DeleteMemory(first).ok());
  EXPECT_THAT(memories_named(check(std::nullopt)), testing::ElementsAre("f2", "f2"));
  EXPECT_EQ(check(second).documents, 2);
}

TEST_F(StoreCheckerTest, MissingTextIsNamedInTheMiddleAndAtBothEnds) {
  for (const int missing : {0, 1, 3}) {
    const DocumentId document = NewDocument(memory_, absl::StrCat("d", missing));
    for (int piece = 0; piece < 4; ++piece) {
      ASSERT_TRUE(Append(document, piece * 10, "0123456789").ok());
    }
    Remove(Table::kText, TextKey(Key(document), missing * 10));
    const StoreCheckReport report = Check();
    ASSERT_GE(report.findings.size(), 1u);
    EXPECT_EQ(report.findings.back().document, document);
    EXPECT_EQ(report.findings.back().byte_begin, missing * 10);
    EXPECT_EQ(report.findings.back().byte_end, missing * 10 + 10);
  }
}

TEST_F(StoreCheckerTest, TextThatTheDiskCannotReadIsNamedFromWhereItCanBeReadAgain) {
  const DocumentId document = NewDocument(memory_, "d");
  for (int piece = 0; piece < 4; ++piece) {
    ASSERT_TRUE(Append(document, piece * 10, "0123456789").ok());
  }
  // Records of text in the order read: one by the search for orphans, then pieces 3, 2 and 1.
  faults().FailScanAtRecord(Table::kText, 3, absl::DataLossError("bad block"));
  EXPECT_EQ(Check().found_count(), 0) << "for once";
  faults().FailScanAtRecord(Table::kText, 3, absl::DataLossError("bad block"),
                            FaultyChunkStore::kForever);
  StoreCheckReport report = Check();
  ASSERT_EQ(report.findings.size(), 1u);
  EXPECT_EQ(report.findings[0].byte_begin, 0);
  EXPECT_EQ(report.findings[0].byte_end, 20);
  EXPECT_THAT(report.findings[0].what, HasSubstr("bad block"));
  EXPECT_TRUE(store().GetDocument(document)->damaged);

  faults().Heal();
  report = Check(/*heal=*/true);
  ASSERT_EQ(report.findings.size(), 1u);
  EXPECT_TRUE(report.findings[0].healed);
  EXPECT_FALSE(store().GetDocument(document)->damaged);
  EXPECT_TRUE(Append(document, 40, "more").ok());
}

TEST_F(StoreCheckerTest, TextWhoseEndIsNotKnownStaysMarkedUntilItsEndCanBeRead) {
  const DocumentId document = NewDocument(memory_, "d");
  ASSERT_TRUE(Append(document, 0, "0123456789").ok());
  const MemoryId fork = store().ForkMemory({memory_}, "f", "").value().uid;
  ASSERT_TRUE(Append(document, 10, "0123456789").ok());
  ASSERT_TRUE(Append(document, 20, "0123456789", /*seal=*/true).ok());
  const auto now = [&] { return store().GetDocument(document).value(); };
  faults().FailScanAtRecord(Table::kText, 0, absl::DataLossError("bad block"),
                            FaultyChunkStore::kForever);
  Reopen();
  ASSERT_EQ(now().durable_bytes, 0) << "nothing says where it ends";
  StoreCheckReport report = Check(/*heal=*/true);
  ASSERT_EQ(report.findings.size(), 1u);
  EXPECT_FALSE(report.findings[0].healed);
  EXPECT_THAT(report.findings[0].what, HasSubstr("bad block"));
  EXPECT_TRUE(now().damaged);
  EXPECT_TRUE(absl::IsDataLoss(Append(document, 0, "over it")));

  faults().Heal();
  FlipByte(Table::kText, TextKey(Key(document), 10));
  for (const bool heal : {false, true}) {
    report = Check(heal);
    ASSERT_EQ(report.findings.size(), 1u);
    EXPECT_EQ(report.findings[0].byte_begin, 10);
    EXPECT_EQ(report.findings[0].byte_end, 20);
    EXPECT_TRUE(now().damaged);
    EXPECT_EQ(now().durable_bytes, heal ? 30 : 0);
  }
  EXPECT_EQ(store().ReadText(document, 20, 30).value(), "0123456789");

  FlipByte(Table::kText, TextKey(Key(document), 10));  // as it was
  EXPECT_EQ(Check(/*heal=*/true).healed_count(), 1);
  EXPECT_FALSE(now().damaged);
  EXPECT_TRUE(now().sealed);
  EXPECT_EQ(now().durable_bytes, 30);
  EXPECT_EQ(store().totals().durable_bytes, 30);
  EXPECT_EQ(store().GetDocument(fork, "d")->durable_bytes, 10);
  EXPECT_EQ(Check().found_count(), 0);
}

TEST_F(StoreCheckerTest, TextUnderAnImpossibleOffsetKeepsItsDocumentMarked) {
  const DocumentId document = NewDocument(memory_, "d");
  const std::string key = TextKey(Key(document), std::numeric_limits<int64_t>::max());
  Put(Table::kText, key, EncodeRecord(key, TextRecord{false, "x"}));
  Reopen();
  EXPECT_EQ(Check(/*heal=*/true).found_count(), 1);
  EXPECT_TRUE(store().GetDocument(document)->damaged);
}

TEST_F(StoreCheckerTest, ADamagedSealKeepsItsDocumentMarked) {
  const DocumentId document = NewDocument(memory_, "d");
  ASSERT_TRUE(Append(document, 0, "0123456789").ok());
  ASSERT_TRUE(Append(document, 10, "", /*seal=*/true).ok());
  const std::string seal = TextKey(Key(document), 10);
  FlipByte(Table::kText, seal);
  Reopen();
  for (int check = 0; check < 2; ++check) {
    const StoreCheckReport report = Check(/*heal=*/true);
    EXPECT_EQ(report.found_count(), 1);
    EXPECT_EQ(report.healed_count(), 0);
    EXPECT_TRUE(absl::IsDataLoss(Append(document, 10, "behind the seal")));
  }
  FlipByte(Table::kText, seal);  // as it was
  EXPECT_EQ(Check(/*heal=*/true).healed_count(), 1);
  EXPECT_TRUE(store().GetDocument(document)->sealed);
  EXPECT_TRUE(absl::IsFailedPrecondition(Append(document, 10, "behind the seal")));
}

TEST_F(StoreCheckerTest, DamagedAndMissingSegmentsAreDerivedAgain) {
  const DocumentId document = NewDerivedDocument(memory_, "d", /*segments=*/4);
  FlipByte(Table::kSegments, SegmentKey(Key(document), 1));
  Remove(Table::kSegments, SegmentKey(Key(document), 2));
  StoreCheckReport report = Check();
  EXPECT_EQ(Found(report, Kind::kSegment), 2);
  EXPECT_EQ(report.healed_count(), 0);
  EXPECT_EQ(report.findings[0].segment_index, 1);
  EXPECT_EQ(report.findings[0].byte_begin, 100);
  EXPECT_EQ(report.findings[0].byte_end, 200);

  report = Check(/*heal=*/true);
  EXPECT_EQ(Found(report, Kind::kSegment), 2);
  EXPECT_EQ(report.healed_count(), 2);
  EXPECT_EQ(derived_, 2);
  EXPECT_EQ(Check().found_count(), 0);
  Reopen();
  EXPECT_EQ(store().GetDocument(document)->visible_bytes, 400);
}

TEST_F(StoreCheckerTest, DamagedAndMissingPagesAreDerivedAgain) {
  const DocumentId document = NewDerivedDocument(memory_, "d", /*segments=*/3);
  FlipByte(Table::kPages, PageKey(Key(document), 0, 1));
  Remove(Table::kPages, PageKey(Key(document), 2, 0));
  const StoreCheckReport report = Check(/*heal=*/true);
  EXPECT_EQ(Found(report, Kind::kPage), 2);
  EXPECT_EQ(report.healed_count(), 2);
  EXPECT_EQ(Check().found_count(), 0);
  Reopen();
  const PinnedPages pages = Pin({{document, 1}, {document, 4}});
  ExpectPage(pages.pages()[0], document, 1, 100);
  ExpectPage(pages.pages()[1], document, 4, 300);
}

TEST_F(StoreCheckerTest, SegmentWhosePagesAreNotKeptIsWhole) {
  const DocumentId document = NewDocument(memory_, "d");
  ASSERT_TRUE(Append(document, 0, TextOf(document, 100)).ok());
  ASSERT_TRUE(PutSegment(Segment(document, 0, 2, /*with_pages=*/false)).ok());
  const StoreCheckReport report = Check(/*heal=*/true);
  EXPECT_EQ(report.found_count(), 0);
  EXPECT_EQ(report.segments_without_pages, 1);
  EXPECT_EQ(derived_, 0);
}

TEST_F(StoreCheckerTest, SegmentWithoutPagesIsRestoredWithoutPages) {
  const DocumentId document = NewDocument(memory_, "d");
  ASSERT_TRUE(Append(document, 0, TextOf(document, 100)).ok());
  ASSERT_TRUE(PutSegment(Segment(document, 0, 2, /*with_pages=*/false)).ok());
  FlipByte(Table::kSegments, SegmentKey(Key(document), 0));
  EXPECT_EQ(Check(/*heal=*/true).healed_count(), 1);
  EXPECT_EQ(Check().segments_without_pages, 1);
}

TEST_F(StoreCheckerTest, WhatCannotBeDerivedAgainIsNamedWithTheReason) {
  const DocumentId document = NewDerivedDocument(memory_, "d");
  Remove(Table::kSegments, SegmentKey(Key(document), 0));
  StoreCheckOptions options;
  options.heal = true;
  options.derive = [](DocumentId, int64_t, bool) {
    return absl::DataLossError("its text is damaged");
  };
  const StoreCheckReport report = StoreChecker(store(), options).Run().value();
  ASSERT_EQ(report.findings.size(), 1u);
  EXPECT_FALSE(report.findings[0].healed);
  EXPECT_THAT(report.findings[0].what, HasSubstr("its text is damaged"));
}

TEST_F(StoreCheckerTest, DerivedRecordsOfNobodyGoAndTextOfNobodyStays) {
  const DocumentId known = NewDerivedDocument(memory_, "d");
  const DocumentKey nobody{memory_, static_cast<DocumentId>(77)};
  for (const Table table : {Table::kText, Table::kSegments, Table::kPages}) {
    Put(table, SegmentKey(nobody, 0), "left over");
  }
  StoreCheckReport report = Check();
  EXPECT_EQ(Found(report, Kind::kOrphan), 3);
  EXPECT_EQ(report.healed_count(), 0);
  report = Check(/*heal=*/true);
  EXPECT_EQ(report.healed_count(), 2);
  EXPECT_TRUE(absl::IsNotFound(disk().Get(Table::kPages, SegmentKey(nobody, 0)).status()));
  EXPECT_TRUE(disk().Get(Table::kText, SegmentKey(nobody, 0)).ok());
  EXPECT_EQ(Found(Check(), Kind::kOrphan), 1);
  EXPECT_EQ(store().ReadText(known, 0, 100).value(), TextOf(known, 100));
}

TEST_F(StoreCheckerTest, DamagedCatalogRecordIsFoundWhileTheServerStillKnowsTheDocument) {
  const DocumentId document = NewDerivedDocument(memory_, "d");
  FlipByte(Table::kCatalog, DocumentRecordKey(Key(document)));
  const StoreCheckReport report = Check(/*heal=*/true);
  ASSERT_EQ(report.findings.size(), 1u);
  EXPECT_EQ(report.findings[0].kind, Kind::kCatalog);
  EXPECT_EQ(report.findings[0].document, document);
}

TEST_F(StoreCheckerTest, StepEndsTheCheckAndSeesItsProgress) {
  NewDerivedDocument(memory_, "d", /*segments=*/3);
  StoreCheckOptions options;
  int64_t bytes = 0;
  options.step = [&](const StoreCheckReport& so_far) {
    EXPECT_GE(so_far.bytes_read(), bytes);
    bytes = so_far.bytes_read();
    return bytes > 200 ? absl::CancelledError("enough") : absl::OkStatus();
  };
  EXPECT_TRUE(absl::IsCancelled(StoreChecker(store(), options).Run().status()));
}

TEST_F(StoreCheckerTest, DiskThatFailsOtherwiseEndsTheCheckWithItsError) {
  NewDerivedDocument(memory_, "d");
  using Op = FaultyChunkStore::Op;
  for (const Op op : {Op::kScan, Op::kGet, Op::kMultiGet}) {
    for (int64_t skip = 0; skip < (op == Op::kScan ? 6 : 1); ++skip) {
      faults().Fail(op, absl::InternalError("disk gone"), skip);
      EXPECT_TRUE(absl::IsInternal(StoreChecker(store(), {}).Run().status()))
          << static_cast<int>(op) << " after " << skip;
      faults().Heal();
    }
  }
  EXPECT_EQ(Check().found_count(), 0);
}

TEST_F(StoreCheckerTest, WritesThatGoOnAreNoDamage) {
  const DocumentId grows = NewDocument(memory_, "grows");
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (int i = 0; !stop; ++i) {
      ASSERT_TRUE(Append(grows, i * 100, TextOf(grows, 100)).ok());
      // The open segment grows, then others follow and it changes its end.
      ASSERT_TRUE(PutSegment(Segment(grows, i)).ok());
      const DocumentId goes = NewDerivedDocument(memory_, "goes");
      ASSERT_TRUE(store().DeleteDocument(goes).ok());
      if (i % 3 == 2) {
        std::vector<SegmentDerived> again;
        again.push_back(Segment(grows, i - 1));
        again.push_back(Segment(grows, i));
        ASSERT_TRUE(store().PutSegments(std::move(again)).ok());
      }
    }
  });
  for (int i = 0; i < 50; ++i) EXPECT_EQ(Check(/*heal=*/true).found_count(), 0);
  stop = true;
  writer.join();
}

TEST_F(StoreCheckerTest, RestoreSegmentTakesTheVisibleVersionAlone) {
  const DocumentId document = NewDerivedDocument(memory_, "d", /*segments=*/2);
  EXPECT_TRUE(store().RestoreSegment(Segment(document, 0)).ok());
  EXPECT_TRUE(absl::IsNotFound(store().RestoreSegment(Segment(document, 2))));
  EXPECT_TRUE(
      absl::IsFailedPrecondition(store().RestoreSegment(Segment(document, 0, /*chunks=*/3))));
  SegmentDerived other = Segment(document, 0);
  other.derivation_fingerprint ^= 1;
  EXPECT_TRUE(absl::IsInvalidArgument(store().RestoreSegment(other)));
  faults().Fail(FaultyChunkStore::Op::kWrite, absl::ResourceExhaustedError("full"));
  EXPECT_TRUE(absl::IsResourceExhausted(store().RestoreSegment(Segment(document, 0))));
  EXPECT_TRUE(store().RestoreSegment(Segment(document, 0)).ok());
  ASSERT_TRUE(store().DeleteDocument(document).ok());
  EXPECT_TRUE(absl::IsNotFound(store().RestoreSegment(Segment(document, 0))));
}

}  // namespace
}  // namespace mneme
