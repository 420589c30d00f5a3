// Forgetting: after a purge no file, no page of the host tier and no landmark has a byte of what
// was deleted, and the purge of a deletion is not forgotten before it is done.

#include <algorithm>
#include <array>
#include <atomic>
#include <filesystem>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "memory_store/keys.h"
#include "memory_store/landmark_list.h"
#include "memory_store/page_pool.h"
#include "tests/memory_store/file_search.h"
#include "tests/memory_store/harness.h"
#include "tests/memory_store/temp_store.h"

namespace mneme {
namespace {

using ::testing::IsEmpty;

// Every byte as likely as any other: compression leaves such text as it is.
std::string Noise(uint64_t seed, size_t bytes) {
  std::mt19937_64 random(seed);
  std::string noise(bytes, '\0');
  for (char& byte : noise) byte = static_cast<char>(random());
  return noise;
}

// Over a real store: what its files hold.
class ForgottenFilesTest : public ::testing::Test {
 protected:
  static constexpr int kSegments = 3;
  static constexpr int kChunks = 4;
  static constexpr int64_t kSegmentBytes = 3000;
  static constexpr int64_t kLandmarkBytes = 64;
  static constexpr int64_t kPageBytes = 5000;  // large enough for blob files

  ForgottenFilesTest() : store_({.page_bytes = kPageBytes, .landmark_bytes = kLandmarkBytes}) {
    memory_ = store_.store().CreateMemory("default", "m", "").value().uid;
  }

  // A document of noise with landmarks and pages.
  DocumentId Write(const std::string& id, MemoryId memory) {
    const DocumentId document = store_.store().CreateDocument(memory, id).value().uid;
    for (int s = 0; s < kSegments; ++s) {
      const std::string text = Noise(Seed(document, s), kSegmentBytes);
      const TextAppend append{document, s * kSegmentBytes, text, s + 1 == kSegments};
      EXPECT_TRUE(store_.store().AppendText({&append, 1}).ok());
      EXPECT_TRUE(Put(document, s, (s + 1) * kSegmentBytes).ok());
    }
    return document;
  }
  DocumentId Write(const std::string& id) { return Write(id, memory_); }
  static uint64_t Seed(DocumentId document, int segment) {
    return static_cast<uint64_t>(document) * 100 + static_cast<uint64_t>(segment);
  }
  static std::string Landmarks(DocumentId document, int segment, int64_t byte_end) {
    return Noise(Seed(document, segment) + 1'000'000 * static_cast<uint64_t>(byte_end),
                 kChunks * kLandmarkBytes);
  }
  static std::string Pages(DocumentId document, int segment, int64_t byte_end) {
    return Noise(Seed(document, segment) + 1'000'000'000 * static_cast<uint64_t>(byte_end),
                 kChunks * kPageBytes);
  }
  // Derived from text up to `byte_end`.
  absl::Status Put(DocumentId document, int segment, int64_t byte_end) {
    SegmentDerived derived = MadeUpSegment(store_.options(), document, segment, segment * kChunks,
                                           kChunks, segment * kSegmentBytes, byte_end);
    const std::string landmarks = Landmarks(document, segment, byte_end);
    const std::string pages = Pages(document, segment, byte_end);
    derived.landmarks.assign(landmarks.begin(), landmarks.end());
    derived.pages.assign(pages.begin(), pages.end());
    std::vector<SegmentDerived> segments;
    segments.push_back(std::move(derived));
    return store_.store().PutSegments(std::move(segments));
  }

  // Parts of its text, landmarks and pages.
  std::vector<std::string> Markers(DocumentId document) {
    std::vector<std::string> markers;
    for (int s = 0; s < kSegments; ++s) {
      const std::string text = Noise(Seed(document, s), kSegmentBytes);
      markers.push_back(text.substr(100, 24));
      markers.push_back(text.substr(kSegmentBytes - 30, 24));
      for (int c = 0; c < kChunks; ++c) {
        const int64_t end = (s + 1) * kSegmentBytes;
        markers.push_back(Landmarks(document, s, end).substr(c * kLandmarkBytes + 8, 24));
        markers.push_back(Pages(document, s, end).substr(c * kPageBytes + 16, 24));
        markers.push_back(Pages(document, s, end).substr((c + 1) * kPageBytes - 40, 24));
      }
    }
    return markers;
  }
  std::vector<std::string> OnDisk(DocumentId document) {
    return MarkersOnDisk(store_.data_dir(), Markers(document));
  }
  // Moves all that is written to the last level of the tables.
  void Settle() {
    const std::string all(24, '\xff');
    std::vector<KeyRange> ranges;
    for (const Table table : {Table::kText, Table::kSegments, Table::kPages}) {
      ranges.push_back({table, std::string(), all});
    }
    ASSERT_TRUE(store_.chunk_store().Purge(ranges, cancel_).ok());
  }
  std::vector<Deletion> Purge() {
    auto done = store_.store().Purge(cancel_);
    EXPECT_TRUE(done.ok()) << done.status();
    return done.ok() ? *std::move(done) : std::vector<Deletion>();
  }
  // The document is there, whole.
  void ExpectWhole(DocumentId document) {
    for (int s = 0; s < kSegments; ++s) {
      const auto text =
          store_.store().ReadText(document, s * kSegmentBytes, (s + 1) * kSegmentBytes);
      ASSERT_TRUE(text.ok()) << text.status();
      EXPECT_EQ(*text, Noise(Seed(document, s), kSegmentBytes));
    }
    std::vector<ChunkAddress> chunks;
    for (int64_t c = 0; c < kSegments * kChunks; ++c) chunks.push_back({document, c});
    const auto pins = store_.store().Pin(chunks);
    ASSERT_TRUE(pins.ok()) << pins.status();
    EXPECT_THAT(pins->missing(), IsEmpty());
    EXPECT_EQ(OnDisk(document).size(), Markers(document).size());
  }

  std::atomic<bool> cancel_{false};
  TempStore store_;
  MemoryId memory_{};
};

TEST_F(ForgottenFilesTest, NothingIsLeftOfADocumentThatWasJustWritten) {
  const DocumentId stays = Write("stays"), goes = Write("goes");
  // In the log, whose blocks break a few of them in two.
  ASSERT_GE(OnDisk(goes).size() + 4, Markers(goes).size());
  ASSERT_TRUE(store_.store().DeleteDocument(goes).ok());
  ASSERT_THAT(OnDisk(goes), testing::Not(IsEmpty()));  // a deletion alone takes nothing away
  const std::vector<Deletion> done = Purge();
  ASSERT_EQ(done.size(), 1u);
  EXPECT_THAT(OnDisk(goes), IsEmpty());
  ExpectWhole(stays);
}

TEST_F(ForgottenFilesTest, NothingIsLeftOfADocumentAtTheLastLevel) {
  const DocumentId stays = Write("stays"), goes = Write("goes"), also_stays = Write("also stays");
  Settle();
  ASSERT_EQ(OnDisk(goes).size(), Markers(goes).size());
  ASSERT_TRUE(store_.store().DeleteDocument(goes).ok());
  ASSERT_EQ(Purge().size(), 1u);
  EXPECT_THAT(OnDisk(goes), IsEmpty());
  ExpectWhole(stays);
  ExpectWhole(also_stays);
}

TEST_F(ForgottenFilesTest, NothingIsLeftOfADocumentThatLiesInTablesAndInTheLog) {
  // Its first part settled, then grown; its pages share blob files with others on both sides.
  std::vector<DocumentId> stay;
  const DocumentId goes = store_.store().CreateDocument(memory_, "goes").value().uid;
  for (int s = 0; s < kSegments; ++s) {
    stay.push_back(Write(absl::StrCat("stays-", s)));
    const std::string text = Noise(Seed(goes, s), kSegmentBytes);
    const TextAppend append{goes, s * kSegmentBytes, text, s + 1 == kSegments};
    ASSERT_TRUE(store_.store().AppendText({&append, 1}).ok());
    ASSERT_TRUE(Put(goes, s, (s + 1) * kSegmentBytes).ok());
    if (s < 2) Settle();
  }
  ASSERT_TRUE(store_.store().DeleteDocument(goes).ok());
  ASSERT_EQ(Purge().size(), 1u);
  EXPECT_THAT(OnDisk(goes), IsEmpty());
  for (const DocumentId document : stay) ExpectWhole(document);
  store_.Reopen();
  EXPECT_THAT(OnDisk(goes), IsEmpty());
  for (const DocumentId document : stay) ExpectWhole(document);
}

TEST_F(ForgottenFilesTest, WhatASegmentWasBeforeItGrewIsForgottenToo) {
  const DocumentId goes = Write("goes"), stays = Write("stays");
  const std::vector<std::string> before = Markers(goes);
  Settle();
  // The last segment again, as though text had come to it: other landmarks, other pages.
  ASSERT_TRUE(Put(goes, kSegments - 1, kSegments * kSegmentBytes - 1).ok());
  ASSERT_TRUE(store_.store().DeleteDocument(goes).ok());
  ASSERT_EQ(Purge().size(), 1u);
  EXPECT_THAT(MarkersOnDisk(store_.data_dir(), before), IsEmpty());
  ExpectWhole(stays);
}

TEST_F(ForgottenFilesTest, AMemoryGoesWithAllItsDocumentsAndTheReceiptCountsThem) {
  const MemoryId other = store_.store().CreateMemory("default", "other", "").value().uid;
  const DocumentId stays = Write("stays", other);
  const DocumentId a = Write("a"), b = Write("b");
  Settle();
  const auto deletion = store_.store().DeleteMemory(memory_);
  ASSERT_TRUE(deletion.ok());
  EXPECT_EQ(deletion->receipt.purge_time, absl::InfiniteFuture());
  const absl::Time deleted = store_.clock().Now();
  store_.clock().Advance(absl::Seconds(3));
  const std::vector<Deletion> done = Purge();
  ASSERT_EQ(done.size(), 1u);
  EXPECT_EQ(done[0].id, deletion->id);
  EXPECT_EQ(done[0].tenant, "default");
  EXPECT_EQ(done[0].receipt.documents, 2);
  EXPECT_EQ(done[0].receipt.text_bytes, 2 * kSegments * kSegmentBytes);
  EXPECT_EQ(done[0].receipt.chunks, 2 * kSegments * kChunks);
  EXPECT_EQ(done[0].receipt.tokens, 2 * kSegments * kChunks * 64);
  EXPECT_EQ(done[0].receipt.pages, 2 * kSegments * kChunks);
  EXPECT_EQ(done[0].receipt.delete_time, deleted);
  EXPECT_EQ(done[0].receipt.purge_time, deleted + absl::Seconds(3));
  EXPECT_THAT(OnDisk(a), IsEmpty());
  EXPECT_THAT(OnDisk(b), IsEmpty());
  ExpectWhole(stays);
}

TEST_F(ForgottenFilesTest, ManyDeletionsAreOnePurge) {
  std::vector<DocumentId> go, stay;
  for (int i = 0; i < 12; ++i) {
    (i % 3 == 0 ? stay : go).push_back(Write(absl::StrCat("d", i)));
    if (i == 6) Settle();
  }
  for (const DocumentId document : go) {
    ASSERT_TRUE(store_.store().DeleteDocument(document).ok());
  }
  EXPECT_EQ(Purge().size(), go.size());
  for (const DocumentId document : go) EXPECT_THAT(OnDisk(document), IsEmpty());
  for (const DocumentId document : stay) ExpectWhole(document);
  EXPECT_THAT(store_.store().PendingDeletions(), IsEmpty());
  EXPECT_THAT(Purge(), IsEmpty());
}

TEST_F(ForgottenFilesTest, APurgeThatARestartBrokeOffIsDoneAfterIt) {
  const DocumentId stays = Write("stays"), goes = Write("goes");
  Settle();
  ASSERT_TRUE(store_.store().DeleteDocument(goes).ok());
  store_.Reopen();
  const std::vector<Deletion> pending = store_.store().PendingDeletions();
  ASSERT_EQ(pending.size(), 1u);
  EXPECT_EQ(pending[0].receipt.text_bytes, kSegments * kSegmentBytes);
  const std::vector<Deletion> done = Purge();
  ASSERT_EQ(done.size(), 1u);
  EXPECT_EQ(done[0].receipt.text_bytes, kSegments * kSegmentBytes);
  EXPECT_THAT(OnDisk(goes), IsEmpty());
  ExpectWhole(stays);
  store_.Reopen();
  EXPECT_THAT(store_.store().PendingDeletions(), IsEmpty());
}

TEST_F(ForgottenFilesTest, APurgeRewritesNothingWhileABackupKeepsTheFiles) {
  const DocumentId gone = Write("gone");
  const DocumentId stays = Write("stays");
  ASSERT_TRUE(store_.store().DeleteDocument(gone).ok());
  {
    const StoreFiles kept = store_.chunk_store().Files(ChunkStore::FilesFor::kBackup).value();
    const auto files = [this] {
      std::vector<std::string> names;
      for (const auto& entry :
           std::filesystem::directory_iterator(store_.data_dir() + "/rocksdb")) {
        names.push_back(entry.path().filename());
      }
      std::sort(names.begin(), names.end());
      return names;
    };
    const std::vector<std::string> before = files();
    for (int retry = 0; retry < 3; ++retry) {
      EXPECT_TRUE(absl::IsUnavailable(store_.store().Purge(cancel_).status()));
    }
    EXPECT_EQ(files(), before);
    EXPECT_EQ(store_.store().PendingDeletions().size(), 1u);
  }
  EXPECT_EQ(Purge().size(), 1u);
  EXPECT_THAT(OnDisk(gone), IsEmpty());
  ExpectWhole(stays);
}

TEST_F(ForgottenFilesTest, ACancelledPurgeStaysPending) {
  Write("stays");
  ASSERT_TRUE(store_.store().DeleteDocument(Write("goes")).ok());
  cancel_ = true;
  EXPECT_EQ(store_.store().Purge(cancel_).status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(store_.store().PendingDeletions().size(), 1u);
  cancel_ = false;
  EXPECT_EQ(Purge().size(), 1u);
}

// Over a map that fails on demand.
class ForgettingTest : public MemoryStoreHarness {
 protected:
  absl::StatusOr<std::vector<Deletion>> Purge() { return store().Purge(cancel_); }

  std::atomic<bool> cancel_{false};
};

TEST_F(ForgettingTest, TheRangesOfAPurgeHoldEveryRecordOfTheDocumentAndNoOther) {
  const MemoryId memory = NewMemory("m");
  const DocumentId a = NewDerivedDocument(memory, "a"), b = NewDerivedDocument(memory, "b"),
                   c = NewDerivedDocument(memory, "c");
  ASSERT_TRUE(store().DeleteDocument(b).ok());
  ASSERT_TRUE(Purge().ok());
  const auto purged = [&](Table table, const std::string& key) {
    for (const KeyRange& range : disk().purged()) {
      if (range.table == table && key >= range.begin && key < range.end) return true;
    }
    return false;
  };
  for (const DocumentId document : {a, b, c}) {
    const DocumentKey key{memory, document};
    EXPECT_EQ(purged(Table::kCatalog, DocumentRecordKey(key)), document == b);
    EXPECT_EQ(purged(Table::kText, TextKey(key, 0)), document == b);
    EXPECT_EQ(purged(Table::kText, TextKey(key, int64_t{1} << 60)), document == b);
    EXPECT_EQ(purged(Table::kSegments, SegmentKey(key, 0)), document == b);
    EXPECT_EQ(purged(Table::kPages, PageKey(key, 0, 63)), document == b);
  }
}

TEST_F(ForgettingTest, ADeletionThatFailsLeavesNoPurge) {
  const MemoryId memory = NewMemory("m");
  const DocumentId document = NewDerivedDocument(memory, "d");
  faults().Fail(FaultyChunkStore::Op::kWrite, absl::InternalError("disk"), 0, 2);
  EXPECT_FALSE(store().DeleteDocument(document).ok());
  EXPECT_FALSE(store().DeleteMemory(memory).ok());
  EXPECT_THAT(store().PendingDeletions(), IsEmpty());
  Reopen();
  EXPECT_THAT(store().PendingDeletions(), IsEmpty());
  EXPECT_TRUE(store().GetDocument(document).ok());
}

TEST_F(ForgettingTest, AfterAFailedPurgeAllStaysPendingAndIsDoneByTheNext) {
  const MemoryId memory = NewMemory("m");
  ASSERT_TRUE(store().DeleteDocument(NewDerivedDocument(memory, "a")).ok());
  ASSERT_TRUE(store().DeleteDocument(NewDerivedDocument(memory, "b")).ok());
  faults().Fail(FaultyChunkStore::Op::kPurge, absl::ResourceExhaustedError("full"));
  EXPECT_EQ(Purge().status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(store().PendingDeletions().size(), 2u);
  // Off the disk, but the note of it cannot be written.
  faults().Fail(FaultyChunkStore::Op::kWrite, absl::InternalError("disk"));
  EXPECT_EQ(Purge().status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(store().PendingDeletions().size(), 2u);
  Reopen();
  EXPECT_EQ(store().PendingDeletions().size(), 2u);
  EXPECT_EQ(Purge()->size(), 2u);
  EXPECT_THAT(store().PendingDeletions(), IsEmpty());
}

TEST_F(ForgettingTest, WhatAQuestionStillReadsIsPendingUntilItHasRead) {
  const MemoryId memory = NewMemory("m");
  const DocumentId seen = NewDerivedDocument(memory, "seen"),
                   pinned = NewDerivedDocument(memory, "pinned"),
                   free = NewDerivedDocument(memory, "free");
  auto pins = std::make_unique<PinnedPages>(Pin({{pinned, 0}}));
  auto view = std::make_unique<LandmarkView>(View(memory));
  for (const DocumentId document : {seen, pinned, free}) {
    ASSERT_TRUE(store().DeleteDocument(document).ok());
  }
  EXPECT_THAT(*Purge(), IsEmpty());  // the view has the landmarks of all three
  ExpectPage(pins->pages()[0], pinned, 0, 100);
  view.reset();
  const auto two = Purge();
  ASSERT_EQ(two->size(), 2u);
  EXPECT_EQ((*two)[0].id.document, seen);
  EXPECT_EQ((*two)[1].id.document, free);
  EXPECT_EQ(disk().purged().size(), 3u * 4);  // the disk part was not done again
  pins.reset();
  ASSERT_EQ(Purge()->size(), 1u);
  EXPECT_THAT(store().PendingDeletions(), IsEmpty());
}

TEST_F(ForgettingTest, AViewOfAnOlderStateOfTheLandmarksCountsToo) {
  const MemoryId memory = NewMemory("m");
  const DocumentId first = NewDerivedDocument(memory, "first");
  auto view = std::make_unique<LandmarkView>(View(memory));
  NewDerivedDocument(memory, "second");  // the list copies the block that the view has
  ASSERT_TRUE(store().DeleteMemory(memory).ok());
  EXPECT_THAT(*Purge(), IsEmpty());
  EXPECT_EQ(LandmarkAt(*view, 0), MadeUpLandmark(first, 0, 100, options().landmark_bytes));
  view.reset();
  EXPECT_EQ(Purge()->size(), 1u);
}

TEST_F(ForgettingTest, OfADamagedPurgeRecordOnlyTheReceiptIsLost) {
  const MemoryId memory = NewMemory("m");
  const DocumentId document = NewDerivedDocument(memory, "d");
  const PurgeId id = store().DeleteDocument(document)->id;
  WriteBatch damage;
  damage.Put(Table::kCatalog, PurgeKey(id), "rubbish");
  ASSERT_TRUE(disk().Write(damage, Durability::kSynced).ok());
  Reopen();
  EXPECT_EQ(Metric("mneme_store_corrupt_records_total{kind=\"purge\"}"), 1);
  const auto done = Purge();
  ASSERT_EQ(done->size(), 1u);
  EXPECT_EQ((*done)[0].id, id);
  EXPECT_EQ((*done)[0].receipt.text_bytes, 0);
  Reopen();
  EXPECT_THAT(store().PendingDeletions(), IsEmpty());
}

TEST(PurgeIdTest, NamesTheMemoryAndTheDocument) {
  EXPECT_EQ((PurgeId{MemoryId{3}, DocumentId{17}}.ToString()), "m3-d17");
  EXPECT_EQ((PurgeId{MemoryId{3}, DocumentId{}}.ToString()), "m3");
}

// Bytes of the host tier.

TEST(PagePoolForgettingTest, APageThatLeavesIsOverwritten) {
  constexpr int64_t kPageBytes = 64;
  Metrics metrics;
  PagePool pool(kPageBytes, 4 * kPageBytes, metrics);
  const std::vector<PageId> ids{{DocumentId{1}, 0, 100, 0}, {DocumentId{2}, 0, 100, 0}};
  std::vector<uint8_t> data(2 * kPageBytes, 0xab);
  pool.Insert(ids, data.data());
  const auto nothing = [](auto, auto, auto* found) {
    found->assign(found->size(), false);
    return absl::OkStatus();
  };
  const PagePool::Pins pins = pool.PinAll(ids, nothing).value();
  const uint8_t* slot = pins.pages[0];
  pool.EraseDocuments({DocumentId{1}});
  EXPECT_EQ(pool.Held({DocumentId{1}}).size(), 1u);  // pinned: it stays for who reads it
  EXPECT_EQ(slot[0], 0xab);
  pool.Unpin(pins.slots);
  EXPECT_EQ(pool.Held({DocumentId{1}}).size(), 0u);
  EXPECT_EQ(pool.Held({DocumentId{1}, DocumentId{2}}).size(), 1u);
  for (int64_t i = 0; i < kPageBytes; ++i) ASSERT_EQ(slot[i], 0) << i;
  EXPECT_EQ(pins.pages[1][0], 0xab);
}

TEST(LandmarkBlocksTest, KnowWhoseLandmarksAnybodyHolds) {
  LandmarkBlocks blocks;
  LandmarkList list(16, &blocks);
  const std::vector<uint8_t> row(16, 1);
  const std::vector<int64_t> byte_begin{0};
  for (uint64_t document = 1; document <= 2000; ++document) {
    list.Put({DocumentId{document}, 0, 0, 7, byte_begin, row.data()});
  }
  auto snapshot = list.Snapshot();
  for (uint64_t document = 1; document <= 2000; document += 2) list.Erase(DocumentId{document}, 0);
  EXPECT_EQ(blocks.Held({DocumentId{1}}).size(), 1u);
  EXPECT_EQ(blocks.Held({DocumentId{2001}}).size(), 0u);
  snapshot.reset();
  EXPECT_EQ(blocks.Held({DocumentId{1}, DocumentId{3}}).size(), 0u);
  EXPECT_EQ(blocks.Held({DocumentId{1}, DocumentId{2}}).size(), 1u);
}

}  // namespace
}  // namespace mneme
