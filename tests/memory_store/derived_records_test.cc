// Segments, landmark views and pages of a MemoryStore.

#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "memory_store/keys.h"
#include "tests/memory_store/harness.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;
using Op = FaultyChunkStore::Op;

class DerivedRecordsTest : public MemoryStoreHarness {
 protected:
  DerivedRecordsTest() { memory_ = NewMemory("m"); }

  // An open document of `bytes` bytes, nothing derived.
  DocumentId NewOpenDocument(const std::string& id, int64_t bytes) {
    const DocumentId document = NewDocument(memory_, id);
    EXPECT_TRUE(Append(document, 0, TextOf(document, bytes)).ok());
    return document;
  }

  MemoryId memory_;
};

TEST_F(DerivedRecordsTest, SegmentsAreVisibleAtOnceAndAfterReopen) {
  const DocumentId document = NewDerivedDocument(memory_, "d", 3, 2);
  for (int round = 0; round < 2; ++round) {
    if (round == 1) Reopen();
    const LandmarkView view = View(memory_);
    ASSERT_EQ(view.chunk_count(), 6);
    for (int64_t chunk = 0; chunk < 6; ++chunk) {
      const ChunkText text = view.Locate(chunk);
      EXPECT_EQ(text.address, (ChunkAddress{document, chunk}));
      EXPECT_EQ(text.byte_begin, chunk * 50);
      EXPECT_EQ(text.byte_end, chunk * 50 + 50);
      EXPECT_EQ(LandmarkAt(view, chunk),
                MadeUpLandmark(document, chunk, chunk / 2 * 100 + 100, options().landmark_bytes));
    }
    const PinnedPages pages = Pin({{document, 5}, {document, 0}, {document, 5}});
    EXPECT_TRUE(pages.missing().empty());
    ExpectPage(pages.pages()[0], document, 5, 300);
    ExpectPage(pages.pages()[1], document, 0, 100);
    EXPECT_EQ(pages.pages()[2], pages.pages()[0]);
    const DocumentInfo info = store().GetDocument(document).value();
    EXPECT_EQ(info.visible_bytes, 300);
    EXPECT_EQ(info.chunk_count, 6);
    EXPECT_EQ(info.token_count, 6 * 64);
  }
}

TEST_F(DerivedRecordsTest, SegmentIsGivenBackWithoutLandmarksAndPages) {
  const DocumentId document = NewDerivedDocument(memory_, "d", 3, 2);
  for (int round = 0; round < 2; ++round) {
    if (round == 1) Reopen();
    const SegmentDerived expected = Segment(document, 1);
    const SegmentDerived segment = store().GetSegment(document, 1).value();
    EXPECT_EQ(segment.document, document);
    EXPECT_EQ(segment.segment_index, 1);
    EXPECT_EQ(segment.derivation_fingerprint, expected.derivation_fingerprint);
    EXPECT_EQ(segment.encode_from_byte, expected.encode_from_byte);
    EXPECT_EQ(segment.skip_tokens, expected.skip_tokens);
    EXPECT_EQ(segment.token_count, expected.token_count);
    EXPECT_EQ(segment.byte_begin, expected.byte_begin);
    EXPECT_EQ(segment.byte_end, expected.byte_end);
    EXPECT_EQ(segment.chunk_byte_begin, expected.chunk_byte_begin);
    EXPECT_TRUE(segment.landmarks.empty());
    EXPECT_TRUE(segment.pages.empty());
    EXPECT_EQ(store().GetSegment(document, -1).value().segment_index, 2);
  }
  EXPECT_TRUE(absl::IsNotFound(store().GetSegment(document, 3).status()));
  EXPECT_TRUE(absl::IsNotFound(store().GetSegment(document, -2).status()));
  EXPECT_TRUE(absl::IsNotFound(store().GetSegment(DocumentId{99}, 0).status()));
  EXPECT_TRUE(absl::IsNotFound(store().GetSegment(NewDocument(memory_, "e"), -1).status()));
}

TEST_F(DerivedRecordsTest, OpenSegmentIsReplacedTogetherWithItsPages) {
  const DocumentId document = NewOpenDocument("d", 100);
  ASSERT_TRUE(PutSegment(MadeUpSegment(options(), document, 0, 0, 2, 0, 60)).ok());
  const LandmarkView before = View(memory_);
  PinnedPages old_pages = Pin({{document, 1}});
  ASSERT_TRUE(PutSegment(MadeUpSegment(options(), document, 0, 0, 3, 0, 100)).ok());
  // What was taken before stays as it was.
  EXPECT_EQ(before.chunk_count(), 2);
  EXPECT_EQ(LandmarkAt(before, 1), MadeUpLandmark(document, 1, 60, options().landmark_bytes));
  ExpectPage(old_pages.pages()[0], document, 1, 60);
  old_pages = PinnedPages();
  for (int round = 0; round < 2; ++round) {
    if (round == 1) Reopen();
    const LandmarkView view = View(memory_);
    ASSERT_EQ(view.chunk_count(), 3);
    EXPECT_EQ(LandmarkAt(view, 1), MadeUpLandmark(document, 1, 100, options().landmark_bytes));
    const PinnedPages pages = Pin({{document, 1}, {document, 2}});
    ExpectPage(pages.pages()[0], document, 1, 100);
    ExpectPage(pages.pages()[1], document, 2, 100);
    EXPECT_EQ(store().GetDocument(document).value().token_count, 3 * 64);
  }
}

TEST_F(DerivedRecordsTest, ShorterSegmentLeavesNoPageOfTheLonger) {
  const DocumentId document = NewOpenDocument("d", 100);
  ASSERT_TRUE(PutSegment(MadeUpSegment(options(), document, 0, 0, 5, 0, 100)).ok());
  ASSERT_TRUE(PutSegment(MadeUpSegment(options(), document, 0, 0, 2, 0, 100)).ok());
  EXPECT_EQ(disk().key_count(Table::kPages), 2);
  EXPECT_EQ(View(memory_).chunk_count(), 2);
  EXPECT_EQ(Pin({{document, 2}}).missing().size(), 1u);
  ASSERT_TRUE(PutSegment(MadeUpSegment(options(), document, 0, 0, 2, 0, 100, false)).ok());
  EXPECT_EQ(disk().key_count(Table::kPages), 0);
  EXPECT_EQ(Pin({{document, 0}}).missing().size(), 1u);
}

TEST_F(DerivedRecordsTest, SegmentsAfterTheOnesPutGoAway) {
  const DocumentId document = NewDerivedDocument(memory_, "d", 4, 2);
  const DocumentId other = NewDerivedDocument(memory_, "other", 2, 2);
  std::vector<SegmentDerived> segments;
  segments.push_back(MadeUpSegment(options(), document, 1, 2, 3, 100, 210));
  segments.push_back(MadeUpSegment(options(), document, 2, 5, 1, 210, 220));
  ASSERT_TRUE(store().PutSegments(segments).ok());
  for (int round = 0; round < 2; ++round) {
    if (round == 1) Reopen();
    const DocumentInfo info = store().GetDocument(document).value();
    EXPECT_EQ(info.visible_bytes, 220);
    EXPECT_EQ(info.chunk_count, 6);
    EXPECT_TRUE(absl::IsNotFound(store().GetSegment(document, 3).status()));
    EXPECT_EQ(store().GetDocument(other).value().visible_bytes, 200);
    const LandmarkView view = View(memory_);
    EXPECT_EQ(view.chunk_count(), 10);
    EXPECT_EQ(view.Locate(5).byte_begin, 210);
    const PinnedPages pages = Pin({{document, 4}, {document, 5}});
    ExpectPage(pages.pages()[0], document, 4, 210);
    ExpectPage(pages.pages()[1], document, 5, 220);
  }
  EXPECT_EQ(disk().key_count(Table::kPages), 10);
  EXPECT_EQ(disk().key_count(Table::kSegments), 5);
}

TEST_F(DerivedRecordsTest, SegmentWithoutChunksIsCountedInBytesAlone) {
  const DocumentId document = NewOpenDocument("d", 100);
  ASSERT_TRUE(PutSegment(MadeUpSegment(options(), document, 0, 0, 0, 0, 10)).ok());
  for (int round = 0; round < 2; ++round) {
    if (round == 1) Reopen();
    EXPECT_EQ(store().GetDocument(document).value().visible_bytes, 10);
    EXPECT_EQ(View(memory_).chunk_count(), 0);
    EXPECT_TRUE(View(memory_).slabs().empty());
  }
  ASSERT_TRUE(PutSegment(MadeUpSegment(options(), document, 0, 0, 1, 0, 100)).ok());
  EXPECT_EQ(View(memory_).chunk_count(), 1);
  ASSERT_TRUE(PutSegment(MadeUpSegment(options(), document, 0, 0, 0, 0, 100)).ok());
  EXPECT_EQ(View(memory_).chunk_count(), 0);
}

TEST_F(DerivedRecordsTest, SegmentThatLeavesAHoleIsRefused) {
  const DocumentId document = NewOpenDocument("d", 400);
  EXPECT_EQ(PutSegment(Segment(document, 1)).code(), absl::StatusCode::kFailedPrecondition);
  std::vector<SegmentDerived> holed;
  holed.push_back(Segment(document, 0));
  holed.push_back(Segment(document, 2));
  const absl::Status status = store().PutSegments(holed);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("segment 2"));
  EXPECT_EQ(store().GetDocument(document).value().visible_bytes, 0);
}

TEST_F(DerivedRecordsTest, MalformedSegmentsAreRefusedWithTheNumbers) {
  const DocumentId document = NewOpenDocument("d", 100);
  const auto expect_refused = [&](const char* what, auto change) {
    SegmentDerived segment = Segment(document, 0);
    change(segment);
    const absl::Status status = PutSegment(segment);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << what;
    EXPECT_THAT(status.message(), HasSubstr("segment")) << what;
  };
  expect_refused("fingerprint", [](SegmentDerived& s) { ++s.derivation_fingerprint; });
  expect_refused("landmarks", [](SegmentDerived& s) { s.landmarks.pop_back(); });
  expect_refused("pages", [](SegmentDerived& s) { s.pages.pop_back(); });
  expect_refused("index", [](SegmentDerived& s) { s.segment_index = -1; });
  expect_refused("range", [](SegmentDerived& s) { s.byte_begin = 101; });
  expect_refused("negative", [](SegmentDerived& s) { s.skip_tokens = -1; });
  expect_refused("order", [](SegmentDerived& s) { s.chunk_byte_begin = {50, 0}; });
  expect_refused("chunk beyond", [](SegmentDerived& s) { s.chunk_byte_begin = {0, 101}; });
  expect_refused("chunk before", [](SegmentDerived& s) { s.chunk_byte_begin = {-1, 0}; });
  expect_refused("not durable", [](SegmentDerived& s) { s.byte_end = 101; });
  EXPECT_EQ(store().GetDocument(document).value().visible_bytes, 0);
  EXPECT_TRUE(PutSegment(Segment(document, 0)).ok());
}

TEST_F(DerivedRecordsTest, SegmentsOfDeletedDocumentsAreDropped) {
  const DocumentId gone = NewOpenDocument("gone", 100), kept = NewOpenDocument("kept", 100);
  ASSERT_TRUE(store().DeleteDocument(gone).ok());
  std::vector<SegmentDerived> segments;
  segments.push_back(Segment(gone, 0));
  segments.push_back(Segment(kept, 0));
  EXPECT_TRUE(store().PutSegments(segments).ok());
  EXPECT_EQ(disk().key_count(Table::kSegments), 1);
  EXPECT_EQ(View(memory_).chunk_count(), 2);
  segments.resize(1);
  EXPECT_TRUE(store().PutSegments(segments).ok());
  EXPECT_TRUE(store().PutSegments({}).ok());
}

TEST_F(DerivedRecordsTest, WriteThatFailsChangesNothingAndMayBeRepeated) {
  const DocumentId document = NewDerivedDocument(memory_, "d", 1, 2);
  ASSERT_TRUE(Append(document, 100, TextOf(document, 100)).ok());
  std::vector<SegmentDerived> segments;
  segments.push_back(MadeUpSegment(options(), document, 0, 0, 3, 0, 120));
  segments.push_back(MadeUpSegment(options(), document, 1, 3, 1, 120, 200));
  faults().Fail(Op::kWrite, absl::ResourceExhaustedError("disk full"));
  EXPECT_EQ(store().PutSegments(segments).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(store().GetDocument(document).value().visible_bytes, 100);
  EXPECT_EQ(View(memory_).chunk_count(), 2);
  ExpectPage(Pin({{document, 1}}).pages()[0], document, 1, 100);
  EXPECT_TRUE(store().PutSegments(segments).ok());
  EXPECT_EQ(View(memory_).chunk_count(), 4);
  ExpectPage(Pin({{document, 1}}).pages()[0], document, 1, 120);
}

TEST_F(DerivedRecordsTest, ViewOfSeveralMemoriesIsOrderedByWhenDocumentsBegan) {
  const MemoryId other = NewMemory("other"), third = NewMemory("third");
  std::vector<DocumentId> order;
  std::vector<MemoryId> where = {memory_, other, memory_, memory_, third, other, other, memory_};
  for (size_t i = 0; i < where.size(); ++i) {
    order.push_back(NewDerivedDocument(where[i], absl::StrCat("d", i), 1 + i % 3, 2));
  }
  // Two of the three, named in any order and twice.
  const std::vector<MemoryId> memories = {other, memory_, other};
  const LandmarkView view = store().View(memories).value();
  int64_t index = 0;
  for (size_t i = 0; i < where.size(); ++i) {
    if (where[i] == third) continue;
    for (int64_t chunk = 0; chunk < 2 * static_cast<int64_t>(1 + i % 3); ++chunk, ++index) {
      ASSERT_EQ(view.Locate(index).address, (ChunkAddress{order[i], chunk}));
      EXPECT_EQ(LandmarkAt(view, index),
                MadeUpLandmark(order[i], chunk, chunk / 2 * 100 + 100, options().landmark_bytes));
    }
  }
  EXPECT_EQ(view.chunk_count(), index);
  EXPECT_EQ(store().View({}).value().chunk_count(), 0);
  const std::vector<MemoryId> gone = {memory_, MemoryId{99}};
  EXPECT_TRUE(absl::IsNotFound(store().View(gone).status()));
  EXPECT_EQ(LandmarkView().chunk_count(), 0);
  EXPECT_TRUE(LandmarkView().slabs().empty());
}

TEST_F(DerivedRecordsTest, ViewOutlivesDeletionAndGrowth) {
  const DocumentId a = NewDerivedDocument(memory_, "a", 2);
  const DocumentId b = NewDerivedDocument(memory_, "b", 1);
  const LandmarkView view = View(memory_);
  ASSERT_TRUE(Append(b, 100, TextOf(b, 100)).ok());
  ASSERT_TRUE(PutSegment(Segment(b, 1)).ok());
  ASSERT_TRUE(store().DeleteDocument(a).ok());
  ASSERT_TRUE(store().DeleteMemory(memory_).ok());
  ASSERT_EQ(view.chunk_count(), 6);
  EXPECT_EQ(view.Locate(0).address, (ChunkAddress{a, 0}));
  EXPECT_EQ(view.Locate(5).address, (ChunkAddress{b, 1}));
  EXPECT_EQ(LandmarkAt(view, 4), MadeUpLandmark(b, 0, 100, options().landmark_bytes));
}

TEST_F(DerivedRecordsTest, ManySmallDocumentsShareFewSlabs) {
  for (int i = 0; i < 2000; ++i) NewDerivedDocument(memory_, absl::StrCat("d", i), 1, 1);
  for (int round = 0; round < 2; ++round) {
    if (round == 1) Reopen();
    const LandmarkView view = View(memory_);
    EXPECT_EQ(view.chunk_count(), 2000);
    EXPECT_LE(view.slabs().size(), 8u);
  }
}

TEST_F(DerivedRecordsTest, MissingPagesAreToldAndCanBePutBack) {
  const DocumentId document = NewOpenDocument("d", 200);
  ASSERT_TRUE(PutSegment(Segment(document, 0)).ok());
  ASSERT_TRUE(PutSegment(Segment(document, 1, 2, /*with_pages=*/false)).ok());
  {
    const PinnedPages pages = Pin({{document, 2}, {document, 0}, {document, 3}, {document, 4}});
    ASSERT_EQ(pages.missing().size(), 3u);
    EXPECT_EQ(pages.missing()[0], (ChunkAddress{document, 2}));
    EXPECT_EQ(pages.missing()[1], (ChunkAddress{document, 3}));
    EXPECT_EQ(pages.missing()[2], (ChunkAddress{document, 4}));  // no such chunk
    EXPECT_EQ(pages.pages()[0], nullptr);
    ExpectPage(pages.pages()[1], document, 0, 100);
  }
  const std::vector<uint8_t> again = Segment(document, 1).pages;
  ASSERT_TRUE(store().PutPages(document, 1, again).ok());
  ExpectPage(Pin({{document, 3}}).pages()[0], document, 3, 200);
  Reopen();
  ExpectPage(Pin({{document, 3}}).pages()[0], document, 3, 200);
}

TEST_F(DerivedRecordsTest, PagesThatDoNotFitTheirSegmentAreRefused) {
  const DocumentId document = NewDerivedDocument(memory_, "d");
  const std::vector<uint8_t> pages = Segment(document, 0).pages;
  EXPECT_TRUE(absl::IsNotFound(store().PutPages(DocumentId{99}, 0, pages)));
  EXPECT_TRUE(absl::IsNotFound(store().PutPages(document, 1, pages)));
  EXPECT_TRUE(absl::IsNotFound(store().PutPages(document, -1, pages)));
  EXPECT_EQ(store().PutPages(document, 0, absl::MakeConstSpan(pages).subspan(1)).code(),
            absl::StatusCode::kInvalidArgument);
  // A run of them, which ends before the segment does.
  const auto chunks = static_cast<int64_t>(Segment(document, 0).chunk_byte_begin.size());
  const auto last = absl::MakeConstSpan(pages).last(pages.size() / static_cast<size_t>(chunks));
  EXPECT_TRUE(store().PutPages(document, 0, last, 100, chunks - 1).ok());
  EXPECT_EQ(store().PutPages(document, 0, last, 100, chunks).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store().PutPages(document, 0, last, 100, -1).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store().PutPages(document, 0, {}, 100).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store().PutPages(document, 0, pages, 99).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(store().PutPages(document, 0, pages, 100).ok());
  faults().Fail(Op::kWrite, absl::InternalError("disk failed"));
  EXPECT_EQ(store().PutPages(document, 0, pages).code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(store().PutPages(document, 0, pages).ok());
}

TEST_F(DerivedRecordsTest, DamagedPageIsMissingAndNeverReturned) {
  const DocumentId document = NewDerivedDocument(memory_, "d", 1, 2);
  const int64_t bits =
      8 *
      static_cast<int64_t>(disk().Get(Table::kPages, PageKey({memory_, document}, 0, 0))->size());
  for (int64_t bit = 0; bit < bits; bit += 7) {
    Reopen();  // nothing in the host tier
    faults().FlipBitOfRecord(Table::kPages, 0, bit);
    const PinnedPages pages = Pin({{document, 0}, {document, 1}});
    ASSERT_EQ(pages.missing().size(), 1u) << "bit " << bit;
    EXPECT_EQ(pages.pages()[0], nullptr);
    ExpectPage(pages.pages()[1], document, 1, 100);
  }
  EXPECT_GT(Metric("mneme_store_corrupt_records_total{kind=\"page\"}"), 0);
}

TEST_F(DerivedRecordsTest, PageThatTheDiskLostIsMissingAndOtherErrorsArePassedOn) {
  const DocumentId document = NewDerivedDocument(memory_, "d");
  Reopen();
  faults().Fail(Op::kMultiGet, absl::DataLossError("block checksum"));
  EXPECT_EQ(Pin({{document, 0}}).missing().size(), 1u);
  faults().Fail(Op::kMultiGet, absl::InternalError("disk failed"));
  const ChunkAddress chunk{document, 0};
  EXPECT_EQ(store().Pin({&chunk, 1}).status().code(), absl::StatusCode::kInternal);
  ExpectPage(Pin({{document, 0}}).pages()[0], document, 0, 100);
}

TEST_F(DerivedRecordsTest, PageUnderAnotherKeyIsMissing) {
  const DocumentId document = NewDerivedDocument(memory_, "d", 1, 2);
  WriteBatch batch;
  batch.Put(Table::kPages, PageKey({memory_, document}, 0, 0),
            disk().Get(Table::kPages, PageKey({memory_, document}, 0, 1)).value());
  ASSERT_TRUE(disk().Write(batch, Durability::kSynced).ok());
  Reopen();
  EXPECT_EQ(Pin({{document, 0}}).missing().size(), 1u);
}

TEST_F(DerivedRecordsTest, PagesOfGoneDocumentsAreNotFoundAndPinnedOnesStay) {
  const DocumentId document = NewDerivedDocument(memory_, "d");
  {
    const PinnedPages pages = Pin({{document, 0}});
    ASSERT_TRUE(store().DeleteDocument(document).ok());
    ExpectPage(pages.pages()[0], document, 0, 100);
    const ChunkAddress chunk{document, 0};
    EXPECT_TRUE(absl::IsNotFound(store().Pin({&chunk, 1}).status()));
    EXPECT_EQ(store().tiers()[0].used_bytes, options().page_bytes);
  }
  EXPECT_EQ(store().tiers()[0].used_bytes, 0);
}

TEST_F(DerivedRecordsTest, PinnedPagesBeyondTheLimitAreRefusedAndTheLimitHolds) {
  options().host_page_bytes_max = 4 * options().page_bytes;
  Reopen();
  const DocumentId document = NewDerivedDocument(memory_, "d", 1, 10);
  EXPECT_LE(store().tiers()[0].used_bytes, 4 * options().page_bytes);
  const PinnedPages three = Pin({{document, 0}, {document, 1}, {document, 2}});
  const ChunkAddress two[] = {{document, 3}, {document, 4}};
  const absl::Status status = store().Pin(two).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("256"));
  ExpectPage(Pin({{document, 9}}).pages()[0], document, 9, 100);
  EXPECT_LE(store().tiers()[0].used_bytes, 4 * options().page_bytes);
  // Held by the handle, moved or not, and free again after it.
  PinnedPages moved = Pin({{document, 5}});
  PinnedPages target;
  target = std::move(moved);
  ExpectPage(target.pages()[0], document, 5, 100);
  EXPECT_EQ(store().Pin({two, 1}).status().code(), absl::StatusCode::kResourceExhausted);
  target = PinnedPages();
  EXPECT_TRUE(store().Pin({two, 1}).ok());
}

TEST_F(DerivedRecordsTest, PinSeesTheSegmentThatReplacedAnotherWhileItRead) {
  const DocumentId document = NewOpenDocument("d", 100);
  ASSERT_TRUE(PutSegment(MadeUpSegment(options(), document, 0, 0, 2, 0, 60)).ok());
  Reopen();
  WriteBatch stale;  // as though the page had been read before the disk lost it
  stale.Delete(Table::kPages, PageKey({memory_, document}, 0, 0));
  ASSERT_TRUE(disk().Write(stale, Durability::kSynced).ok());
  faults().OnMultiGet([&] {
    faults().OnMultiGet(nullptr);
    EXPECT_TRUE(PutSegment(MadeUpSegment(options(), document, 0, 0, 2, 0, 100)).ok());
  });
  const PinnedPages pages = Pin({{document, 0}});
  EXPECT_TRUE(pages.missing().empty());
  ExpectPage(pages.pages()[0], document, 0, 100);
}

TEST_F(DerivedRecordsTest, ReadsAreCountedByTier) {
  const DocumentId document = NewDerivedDocument(memory_, "d", 1, 3);
  Pin({{document, 0}, {document, 1}});
  EXPECT_EQ(Metric("mneme_page_reads_total{tier=\"host\"}"), 2);
  Reopen();
  Pin({{document, 0}});
  EXPECT_EQ(Metric("mneme_page_reads_total{tier=\"disk\"}"), 1);
  WriteBatch batch;
  batch.Delete(Table::kPages, PageKey({memory_, document}, 0, 2));
  ASSERT_TRUE(disk().Write(batch, Durability::kSynced).ok());
  Pin({{document, 2}});
  EXPECT_EQ(Metric("mneme_page_reads_total{tier=\"missing\"}"), 1);
}

TEST_F(DerivedRecordsTest, ReadersAreServedWhileAWriteIsUnderWay) {
  const DocumentId document = NewDerivedDocument(memory_, "d", 1, 2);
  ASSERT_TRUE(Append(document, 100, TextOf(document, 100)).ok());
  faults().OnWrite([&](const WriteBatch&) {
    faults().OnWrite(nullptr);
    // The write waits for this: were a lock held that readers need, this would never end.
    EXPECT_EQ(View(memory_).chunk_count(), 2);
    EXPECT_EQ(store().GetDocument(document).value().visible_bytes, 100);
    EXPECT_EQ(store().ReadText(document, 0, 5).value(), TextOf(document, 5));
    ExpectPage(Pin({{document, 0}}).pages()[0], document, 0, 100);
  });
  EXPECT_TRUE(PutSegment(Segment(document, 1)).ok());
  EXPECT_EQ(View(memory_).chunk_count(), 4);
}

}  // namespace
}  // namespace mneme
