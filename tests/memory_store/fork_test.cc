// Forks and snapshots: what they cost, what a crash leaves of them, records of the form that knew
// no times, and that on a real disk what nobody holds any more leaves no byte.

#include <atomic>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "memory_store/keys.h"
#include "memory_store/store_checker.h"
#include "memory_store/tail_cache.h"
#include "tests/memory_store/file_search.h"
#include "tests/memory_store/harness.h"
#include "tests/memory_store/temp_store.h"

namespace mneme {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Op = FaultyChunkStore::Op;

class ForkTest : public MemoryStoreHarness {
 protected:
  MemoryId Fork(MemoryId source, const std::string& id, absl::Time as_of = absl::InfiniteFuture()) {
    return store().ForkMemory({source, as_of}, id, "").value().uid;
  }
  std::string TextIn(MemoryId memory, const std::string& id) {
    const DocumentInfo info = store().GetDocument(memory, id).value();
    return store().ReadText(info.uid, 0, info.durable_bytes).value();
  }
  int64_t Records() {
    int64_t count = 0;
    for (const Table table : {Table::kCatalog, Table::kText, Table::kSegments, Table::kPages}) {
      count += disk().key_count(table);
    }
    return count;
  }
  std::vector<Deletion> Purge() {
    std::atomic<bool> cancel{false};
    return store().Purge(cancel).value();
  }
  // A document of one open segment, and a tail of it.
  DocumentCut NewCutDocument(MemoryId memory, const std::string& id) {
    const DocumentId document = NewDocument(memory, id);
    EXPECT_TRUE(Append(document, 0, TextOf(document, 100)).ok());
    return {document, 50};
  }
  absl::StatusOr<TailHandle> PutTail(const DocumentCut& cut, int chunk_count) {
    const SegmentDerived tail =
        MadeUpSegment(options(), cut.document, 0, 0, chunk_count, 0, cut.cut_bytes);
    return store().PutTail(cut, 0, {&tail, 1});
  }
  int64_t PagesInMemory() {
    for (const TierUse& tier : store().tiers()) {
      if (tier.name == "host") return tier.used_bytes / options().page_bytes;
    }
    return -1;
  }
};

TEST_F(ForkTest, CostsOneRecordOfTheSameSizeWhateverItHolds) {
  const MemoryId small = NewMemory("small");
  const MemoryId large = NewMemory("large");
  NewDerivedDocument(small, "d");
  for (int d = 0; d < 300; ++d) NewDerivedDocument(large, absl::StrCat("d", d), 4, 16);
  const auto cost = [this](MemoryId source, const std::string& id) {
    const int64_t records = Records();
    const int64_t bytes = disk().used_bytes();
    const int64_t landmarks = store().totals().chunks;
    Fork(source, id);
    EXPECT_EQ(Records(), records + 1);
    EXPECT_EQ(store().totals().chunks, landmarks);
    return disk().used_bytes() - bytes;
  };
  EXPECT_EQ(cost(small, "f1"), cost(large, "f2"));
  EXPECT_EQ(store().totals(store().GetMemory("default", "f2")->uid)->documents, 300);
}

TEST_F(ForkTest, AWriteThatFailsChangesNothing) {
  const MemoryId memory = NewMemory("m");
  const DocumentId document = NewDerivedDocument(memory, "d", 2);
  const MemoryId fork = Fork(memory, "f");
  ASSERT_TRUE(Append(document, 200, "more").ok());
  const absl::Status full = absl::ResourceExhaustedError("disk full");
  const auto fails = [&](const absl::Status& status) { EXPECT_EQ(status, full); };
  faults().Fail(Op::kWrite, full);
  fails(store().ForkMemory({memory}, "g", "").status());
  EXPECT_TRUE(absl::IsNotFound(store().GetMemory("default", "g").status()));
  faults().Fail(Op::kWrite, full);
  fails(store().CreateSnapshot({memory}, "s").status());
  EXPECT_THAT(store().ListSnapshots(memory, "", 9), IsEmpty());
  faults().Fail(Op::kWrite, full);
  fails(store().DeleteDocument(memory, document).status());
  EXPECT_EQ(TextIn(memory, "d"), TextOf(document, 200) + "more");
  faults().Fail(Op::kWrite, full);
  fails(store().DeleteMemory(memory).status());
  EXPECT_EQ(TextIn(memory, "d"), TextOf(document, 200) + "more");
  EXPECT_EQ(TextIn(fork, "d"), TextOf(document, 200));
}

TEST_F(ForkTest, ACrashLeavesWhatWasSaid) {
  const MemoryId memory = NewMemory("m");
  const DocumentId document = NewDerivedDocument(memory, "d", 3);
  const MemoryId fork = Fork(memory, "f");
  ASSERT_TRUE(store().CreateSnapshot({fork}, "s").ok());
  clock().Advance(absl::Seconds(1));
  ASSERT_TRUE(Append(document, 300, "more").ok());
  const Deletion deletion = store().DeleteDocument(memory, document).value();
  EXPECT_EQ(deletion.receipt.text_bytes, 4);
  EXPECT_EQ(deletion.receipt.held_text_bytes, 300);
  disk().Crash(0);
  Reopen();
  EXPECT_TRUE(absl::IsNotFound(store().GetDocument(memory, "d").status()));
  EXPECT_EQ(TextIn(fork, "d"), TextOf(document, 300));
  EXPECT_TRUE(store().GetSnapshot(fork, "s").ok());
  const std::vector<Deletion> pending = store().PendingDeletions();
  ASSERT_EQ(pending.size(), 1u);
  EXPECT_EQ(pending[0].receipt.held_documents, 1);
  EXPECT_THAT(pending[0].receipt.held_by, ElementsAre("f"));
  const std::vector<Deletion> purged = Purge();
  ASSERT_EQ(purged.size(), 1u);
  EXPECT_EQ(purged[0].receipt.purge_time, absl::InfiniteFuture());
}

TEST_F(ForkTest, ANameIsFreeAtOnceInWhoeverDroppedIt) {
  const MemoryId memory = NewMemory("m");
  const DocumentId document = NewDerivedDocument(memory, "d");
  const MemoryId fork = Fork(memory, "f");
  EXPECT_TRUE(absl::IsAlreadyExists(store().CreateDocument(fork, "d").status()));
  ASSERT_TRUE(store().DeleteDocument(memory, document).ok());
  const DocumentId again = NewDocument(memory, "d");
  ASSERT_TRUE(Append(again, 0, "another").ok());
  ASSERT_TRUE(store().DeleteMemory(memory).ok());
  EXPECT_TRUE(store().CreateMemory("default", "m", "").ok());
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(TextIn(fork, "d"), TextOf(document, 100));
    EXPECT_TRUE(absl::IsNotFound(store().GetDocument(again).status())) << "nobody held it";
    Reopen();
  }
}

TEST_F(ForkTest, TimeToLiveOfASharedDocumentIsThatOfItsOwnMemory) {
  const MemoryId memory =
      store().CreateMemory("default", "m", "", {.ttl = absl::Minutes(10)}).value().uid;
  NewDerivedDocument(memory, "d");
  const MemoryId fork = Fork(memory, "f");
  ASSERT_TRUE(store().DeleteMemory(memory).ok());
  EXPECT_TRUE(store().GetDocument(fork, "d").ok());
  clock().Advance(absl::Minutes(10));
  EXPECT_TRUE(absl::IsNotFound(store().GetDocument(fork, "d").status()));
  EXPECT_EQ(store().ViewPast({{fork}}).value().view->chunk_count(), 0);
  const std::vector<DocumentInfo> expired = store().ExpiredDocuments(10);
  ASSERT_EQ(expired.size(), 1u);
  const Deletion deletion = store().DeleteDocument(expired[0].uid, /*everywhere=*/true).value();
  EXPECT_EQ(deletion.receipt.documents, 1);
  EXPECT_EQ(deletion.receipt.held_documents, 0);
}

TEST_F(ForkTest, TextThatSaysNoTimeIsAsOldAsItsDocument) {
  const MemoryId memory = NewMemory("m");
  const DocumentId document = NewDocument(memory, "d");
  const absl::Time begin = store().GetDocument(document)->create_time;
  WriteBatch batch;
  for (const int64_t offset : {0, 5}) {
    const std::string key = TextKey({memory, document}, offset);
    batch.Put(Table::kText, key, EncodeRecord(key, TextRecord{false, "older"}));
  }
  ASSERT_TRUE(disk().Write(batch, Durability::kSynced).ok());
  Reopen();
  clock().Advance(absl::Seconds(1));
  ASSERT_TRUE(Append(document, 10, "newer").ok());
  EXPECT_EQ(TextIn(Fork(memory, "then", begin), "d"), "olderolder");
  EXPECT_EQ(TextIn(Fork(memory, "now"), "d"), "olderoldernewer");
}

TEST_F(ForkTest, LimitsAreNamed) {
  options().fork_depth_max = 2;
  options().snapshots_per_memory_max = 1;
  Reopen();
  const MemoryId memory = NewMemory("m");
  const MemoryId fork = Fork(Fork(memory, "f"), "g");
  const absl::Status deep = store().ForkMemory({fork}, "h", "").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(deep));
  EXPECT_THAT(std::string(deep.message()), HasSubstr("limit 2"));
  ASSERT_TRUE(store().CreateSnapshot({memory}, "s").ok());
  EXPECT_TRUE(absl::IsResourceExhausted(store().CreateSnapshot({memory}, "t").status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(store().View({&fork, 1}).status()));
}

TEST_F(ForkTest, TailsInUseHaveALimitAndOthersMakeRoom) {
  options().tail_bytes_max = 2 * options().landmark_bytes;
  Reopen();
  const MemoryId memory = NewMemory("m");
  const DocumentCut a = NewCutDocument(memory, "a");
  const DocumentCut b = NewCutDocument(memory, "b");
  {
    const TailHandle in_use = PutTail(a, 2).value();
    EXPECT_TRUE(absl::IsResourceExhausted(PutTail(b, 2).status()));
  }
  EXPECT_TRUE(PutTail(b, 2).ok());
}

TEST_F(ForkTest, TailsThatMadeRoomInVainLeaveNoPages) {
  options().tail_bytes_max = 2 * options().landmark_bytes;
  Reopen();
  const MemoryId memory = NewMemory("m");
  const TailHandle in_use = PutTail(NewCutDocument(memory, "a"), 1).value();
  ASSERT_TRUE(PutTail(NewCutDocument(memory, "b"), 1).ok());
  EXPECT_EQ(PagesInMemory(), 2);
  EXPECT_TRUE(absl::IsResourceExhausted(PutTail(NewCutDocument(memory, "c"), 2).status()));
  EXPECT_EQ(PagesInMemory(), 1) << "a deletion of b would not find the other one any more";
  EXPECT_EQ(Metric("mneme_tail_bytes"), static_cast<double>(options().landmark_bytes));
}

TEST_F(ForkTest, ADeletionWaitsForPinnedPagesOfATailThatMadeRoom) {
  options().tail_bytes_max = options().landmark_bytes;
  Reopen();
  const MemoryId memory = NewMemory("m");
  const DocumentCut cut = NewCutDocument(memory, "a");
  auto pages = std::make_unique<PinnedPages>();
  {
    const ChunkAddress page{PutTail(cut, 1).value()->handle, 0};
    *pages = store().Pin({&page, 1}).value();
    ASSERT_THAT(pages->missing(), IsEmpty());
  }
  ASSERT_TRUE(PutTail(NewCutDocument(memory, "b"), 1).ok());
  ASSERT_TRUE(store().DeleteDocument(memory, cut.document).ok());
  EXPECT_THAT(Purge(), IsEmpty()) << "somebody reads a page of it";
  pages.reset();
  EXPECT_EQ(Purge().size(), 1u);
}

TEST_F(ForkTest, ATailThatComesDuringADeletionLeavesNoPages) {
  const MemoryId memory = NewMemory("m");
  const DocumentCut cut = NewCutDocument(memory, "d");
  absl::Notification put_has_ended;
  absl::Status put;
  std::thread putter;
  faults().OnWrite([&](const WriteBatch&) {
    putter = std::thread([&] {
      put = PutTail(cut, 1).status();
      put_has_ended.Notify();
    });
    EXPECT_FALSE(put_has_ended.WaitForNotificationWithTimeout(absl::Milliseconds(50)))
        << "it would put its pages when the deletion has looked for them";
  });
  ASSERT_TRUE(store().DeleteDocument(memory, cut.document).ok());
  faults().Heal();
  putter.join();
  EXPECT_TRUE(absl::IsNotFound(put)) << put;
  EXPECT_EQ(PagesInMemory(), 0);
  EXPECT_EQ(Purge().size(), 1u);
}

TEST_F(ForkTest, ReadsDuringADeletionThatTakesTheEndFindNoDamage) {
  const MemoryId memory = NewMemory("m");
  const DocumentId document = NewDocument(memory, "d");
  ASSERT_TRUE(Append(document, 0, TextOf(document, 100)).ok());
  const MemoryId fork = Fork(memory, "f");
  ASSERT_TRUE(Append(document, 100, TextOf(document, 100)).ok());
  absl::Status read;
  std::vector<DocumentInfo> listed;
  std::vector<std::thread> readers;
  faults().OnWrite([&](const WriteBatch& batch) {
    // The end is off the disk, and nobody has been told yet.
    ASSERT_TRUE(disk().Write(batch, Durability::kSynced).ok());
    readers.emplace_back([&] { read = store().ReadText(document, 50, 200).status(); });
    readers.emplace_back([&] { listed = store().ListDocuments(fork, DocumentId{}, 10).value(); });
    absl::SleepFor(absl::Milliseconds(50));
  });
  ASSERT_TRUE(store().DeleteDocument(memory, document).ok());
  faults().Heal();
  for (std::thread& reader : readers) reader.join();
  EXPECT_TRUE(absl::IsOutOfRange(read)) << read;
  ASSERT_EQ(listed.size(), 1u);
  EXPECT_FALSE(listed[0].damaged);
  EXPECT_EQ(listed[0].durable_bytes, 100);
  EXPECT_EQ(Metric("mneme_documents_damaged_total"), 0);
  EXPECT_EQ(TextIn(fork, "d"), TextOf(document, 100));
}

TEST_F(ForkTest, APageOfDocumentsIsFullAlsoWhenOneGoesMeanwhile) {
  const MemoryId memory = NewMemory("m");
  std::vector<DocumentId> documents;
  for (const char* id : {"a", "b", "c", "d"}) {
    documents.push_back(NewDocument(memory, id));
    ASSERT_TRUE(Append(documents.back(), 0, "held").ok());
  }
  const MemoryId fork = Fork(memory, "f");
  for (const DocumentId document : documents) ASSERT_TRUE(Append(document, 4, "more").ok());
  // Where a ends for the fork is being looked up, and b was found.
  faults().OnScan([&] {
    faults().Heal();
    EXPECT_TRUE(store().DeleteDocument(documents[1], /*everywhere=*/true).ok());
  });
  const auto page = store().ListDocuments(fork, DocumentId{}, 2);
  ASSERT_TRUE(page.ok()) << page.status();
  ASSERT_EQ(page->size(), 2u) << "fewer than were asked for: nothing would follow";
  EXPECT_EQ(page->at(0).id, "a");
  EXPECT_EQ(page->at(1).id, "c");
  EXPECT_EQ(store().ListDocuments(fork, page->at(1).uid, 2)->size(), 1u);
}

TEST_F(ForkTest, ADiskThatFailsIsNoShorterListAndNoSmallerSum) {
  const MemoryId memory = NewMemory("m");
  const DocumentId document = NewDocument(memory, "d");
  ASSERT_TRUE(Append(document, 0, "held").ok());
  const MemoryId fork = Fork(memory, "f");
  ASSERT_TRUE(Append(document, 4, "more").ok());
  const absl::Status failed = absl::InternalError("disk failed");
  faults().Fail(Op::kScan, failed, 0, FaultyChunkStore::kForever);
  EXPECT_EQ(store().ListDocuments(fork, DocumentId{}, 10).status(), failed);
  EXPECT_EQ(store().totals(fork).status(), failed);
  faults().Heal();
  EXPECT_EQ(store().ListDocuments(fork, DocumentId{}, 10)->size(), 1u);
  EXPECT_EQ(store().totals(fork)->durable_bytes, 4);
}

TEST_F(ForkTest, ADocumentThatGrowsWhileAViewIsMadeShowsNothingLater) {
  const MemoryId memory = NewMemory("m");
  const DocumentId grown = NewDerivedDocument(memory, "grown");
  const DocumentId still = NewDerivedDocument(memory, "still");
  const MemoryId fork = Fork(memory, "f");
  const auto grow = [this](DocumentId document) {
    ASSERT_TRUE(Append(document, 100, TextOf(document, 100)).ok());
    // Its open segment is replaced.
    ASSERT_TRUE(PutSegment(MadeUpSegment(options(), document, 0, 0, 4, 0, 200)).ok());
  };
  grow(grown);
  std::vector<TailHandle> tails = {PutTail({grown, 100}, 2).value()};
  // The view knows that one document has not grown, and looks for the end of the other.
  bool grows = true;
  faults().OnScan([&] {
    if (std::exchange(grows, false)) grow(still);
  });
  const PastView early = store().ViewPast({{fork}}).value();
  faults().Heal();
  ASSERT_FALSE(grows);
  ASSERT_FALSE(early.view.has_value()) << early.view->chunk_count() << " chunks";
  ASSERT_EQ(early.wanting.size(), 1u);
  EXPECT_EQ(early.wanting[0].document, still);
  EXPECT_EQ(early.wanting[0].cut_bytes, 100);

  tails.push_back(PutTail({still, 100}, 2).value());
  const PastView late = store().ViewPast({{fork}}).value();
  ASSERT_TRUE(late.view.has_value());
  ASSERT_EQ(late.view->chunk_count(), 4);
  for (int64_t chunk = 0; chunk < 4; ++chunk) {
    EXPECT_LE(late.view->Locate(chunk).byte_end, 100);
    EXPECT_EQ(late.view->Locate(chunk).document_end, 100);
  }
}

TEST_F(ForkTest, AViewKnowsWhereDocumentsEndThatGrowLater) {
  const MemoryId memory = NewMemory("m");
  const DocumentId document = NewDerivedDocument(memory, "d");
  const MemoryId fork = Fork(memory, "f");
  const auto document_end = [this](const ReadSource& source) {
    return store().ViewPast({source}).value().view->Locate(0).document_end;
  };
  const LandmarkView view = *store().ViewPast({{fork}}).value().view;
  ASSERT_TRUE(Append(document, 100, "later").ok());
  EXPECT_EQ(view.Locate(0).document_end, 100) << "what is read around a chunk ends there too";
  clock().Advance(absl::Seconds(1));
  ASSERT_TRUE(PutSegment(MadeUpSegment(options(), document, 0, 0, 2, 0, 105)).ok());
  EXPECT_EQ(document_end({memory, clock().Now()}), 105);
  EXPECT_GT(document_end({memory}), 105) << "as it is";
}

TEST_F(ForkTest, DamageThatHidesWhereAForkEndsIsCountedOnce) {
  const MemoryId memory = NewMemory("m");
  const DocumentId document = NewDocument(memory, "d");
  ASSERT_TRUE(Append(document, 0, TextOf(document, 100)).ok());
  const MemoryId fork = Fork(memory, "f");
  ASSERT_TRUE(Append(document, 100, TextOf(document, 100)).ok());
  WriteBatch batch;
  batch.Put(Table::kText, TextKey({memory, document}, 100), "no record");
  ASSERT_TRUE(disk().Write(batch, Durability::kSynced).ok());
  for (int read = 0; read < 3; ++read) {
    EXPECT_TRUE(store().ListDocuments(fork, DocumentId{}, 10)->at(0).damaged);
  }
  EXPECT_TRUE(store().GetDocument(memory, "d")->damaged);
  EXPECT_EQ(Metric("mneme_documents_damaged_total"), 1);
}

TEST_F(ForkTest, ARestartThatCannotReadTheNewestTextShowsNothingLaterToForks) {
  const MemoryId memory = NewMemory("m");
  const DocumentId document = NewDocument(memory, "d");
  std::vector<MemoryId> forks;  // each of one piece of 100 bytes more
  for (int piece = 0; piece < 3; ++piece) {
    ASSERT_TRUE(Append(document, piece * 100, TextOf(document, 100)).ok());
    forks.push_back(Fork(memory, absl::StrCat("f", piece)));
  }
  for (int s = 0; s < 2; ++s) ASSERT_TRUE(PutSegment(Segment(document, s)).ok());
  const std::string key = TextKey({memory, document}, 200);
  const std::string newest = disk().Get(Table::kText, key).value();
  const auto expect_no_later_text = [&](absl::string_view how) {
    SCOPED_TRACE(how);
    for (int f = 0; f < 3; ++f) {
      const DocumentInfo info = store().GetDocument(forks[f], "d").value();
      EXPECT_TRUE(info.damaged);
      const PastView view = store().ViewPast({{forks[f]}}).value();
      ASSERT_TRUE(view.view.has_value());
      EXPECT_EQ(view.view->chunk_count(), 0) << f;
    }
    EXPECT_EQ(TextIn(forks[0], "d"), TextOf(document, 100)) << "its end is found without the piece";
    EXPECT_EQ(store().totals(forks[0])->durable_bytes, 100);
    EXPECT_GT(store().ViewPast({{memory}}).value().view->chunk_count(), 0);
  };
  WriteBatch damage, mend, loss;
  damage.Put(Table::kText, key, newest.substr(0, newest.size() - 1) + "\1");
  mend.Put(Table::kText, key, newest);
  loss.Delete(Table::kText, key);

  ASSERT_TRUE(disk().Write(damage, Durability::kSynced).ok());
  Reopen();
  expect_no_later_text("damaged");

  ASSERT_TRUE(disk().Write(mend, Durability::kSynced).ok());
  faults().FailScanAtRecord(Table::kText, 0, absl::DataLossError("block checksum"),
                            FaultyChunkStore::kForever);
  Reopen();
  faults().Heal();
  expect_no_later_text("its table could not be read");

  Reopen();
  ASSERT_TRUE(PutSegment(Segment(document, 2)).ok());
  ASSERT_TRUE(disk().Write(loss, Durability::kSynced).ok());
  Reopen();
  expect_no_later_text("missing, and known by what was derived from it");
}

TEST_F(ForkTest, AReceiptCountsNothingThatAForkHolds) {
  const MemoryId memory = NewMemory("m");
  const DocumentId document = NewDocument(memory, "d");
  ASSERT_TRUE(Append(document, 0, TextOf(document, 130)).ok());
  const MemoryId fork = Fork(memory, "f");
  ASSERT_TRUE(Append(document, 130, TextOf(document, 170)).ok());
  // Three segments of 100 bytes, each with four chunks of 25; the last one has half its tokens.
  std::vector<SegmentDerived> segments;
  for (int s = 0; s < 3; ++s) segments.push_back(Segment(document, s, /*chunks=*/4));
  segments[2].token_count -= 32;
  ASSERT_TRUE(store().PutSegments(segments).ok());
  const DeletionReceipt part = store().DeleteDocument(memory, document)->receipt;
  EXPECT_EQ(part.documents, 0);
  EXPECT_EQ(part.text_bytes, 170);
  EXPECT_EQ(part.held_text_bytes, 130);
  // The chunk with byte 125 is held in part: so it is not counted.
  EXPECT_EQ(part.chunks, 2 + 4);
  EXPECT_EQ(part.pages, 2 + 4);
  EXPECT_EQ(part.tokens, 2 * 64 + 4 * 64 - 32);
  const DeletionReceipt rest = store().DeleteMemory(fork)->receipt;
  EXPECT_EQ(rest.documents, 1);
  EXPECT_EQ(rest.text_bytes, 130);
}

TEST_F(ForkTest, AReceiptOfAFewBytesCountsNoChunkThatAForkHolds) {
  const MemoryId memory = NewMemory("m");
  const DocumentId document = NewDocument(memory, "d");
  ASSERT_TRUE(Append(document, 0, TextOf(document, 83)).ok());
  Fork(memory, "f");
  ASSERT_TRUE(Append(document, 83, TextOf(document, 17)).ok());
  ASSERT_TRUE(PutSegment(Segment(document, 0)).ok());  // two chunks of 50 bytes
  const DeletionReceipt part = store().DeleteDocument(memory, document)->receipt;
  EXPECT_EQ(part.text_bytes, 17);
  EXPECT_EQ(part.tokens, 0);
  EXPECT_EQ(part.chunks, 0);
  EXPECT_EQ(part.pages, 0);
}

TEST_F(ForkTest, ACheckFindsNothingWrongWithWhatForksHold) {
  const MemoryId memory = NewMemory("m");
  const DocumentId document = NewDerivedDocument(memory, "d", 3);
  NewDerivedDocument(memory, "e", 2);
  Fork(memory, "f");
  ASSERT_TRUE(store().CreateSnapshot({memory}, "s").ok());
  ASSERT_TRUE(store().DeleteDocument(memory, document).ok());
  for (int round = 0; round < 2; ++round) {
    const StoreCheckReport report = StoreChecker(store(), {.heal = true}).Run().value();
    EXPECT_EQ(report.found_count(), 0);
    EXPECT_EQ(report.documents, 2);
    if (round == 0) {
      ASSERT_TRUE(store().DeleteMemory(memory).ok());
    }
  }
  EXPECT_EQ(TextIn(store().GetMemory("default", "f")->uid, "d"), TextOf(document, 300));
}

// A purge meets a file whose deletions are lost: what they deleted is there again.
class LostDeletionsTest : public ForkTest {
 protected:
  using Records = std::map<std::pair<Table, std::string>, std::string>;

  Records AllRecords() {
    Records records;
    for (const Table table : kTables) {
      EXPECT_TRUE(disk()
                      .Scan(table, "", "",
                            [&](absl::string_view key, absl::string_view value) {
                              records[{table, std::string(key)}] = std::string(value);
                              return true;
                            })
                      .ok());
    }
    return records;
  }
  void PutBack(const Records& records) {
    WriteBatch batch;
    for (const auto& [key, value] : records) batch.Put(key.first, key.second, value);
    ASSERT_TRUE(disk().Write(batch, Durability::kSynced).ok());
  }
  // A purge for which files of all tables are given up. No text of a document that is there is lost
  // with them.
  std::vector<Deletion> PurgeGivingUp() {
    faults().Fail(Op::kPurge, absl::DataLossError("damaged"));
    faults().OnMend([this](const GiveUp& give_up) {
      absl::Status status;
      for (const Table table : kTables) {
        LostRecords lost{.file = "1.sst", .range = {table, "", std::string(30, '\xff')}};
        lost.scan = [&](absl::string_view begin, absl::string_view end, const auto& visit) {
          return disk().Scan(table, begin, end,
                             [&](absl::string_view key, absl::string_view value) {
                               visit(key, value, false);
                               return true;
                             });
        };
        status.Update(give_up(lost));
      }
      return status;
    });
    return Purge();
  }
  // A document of which a fork that is made then holds all, and one of which it holds 100 bytes.
  void NewHeldDocuments(MemoryId memory) {
    sealed_ = NewDerivedDocument(memory, "sealed");
    ASSERT_TRUE(Append(sealed_, 100, "", /*seal=*/true).ok());
    grows_ = NewDerivedDocument(memory, "grows");
  }
  void Grow() {
    ASSERT_TRUE(Append(grows_, 100, TextOf(grows_, 200)).ok());
    ASSERT_TRUE(store().PutSegments({Segment(grows_, 1), Segment(grows_, 2)}).ok());
  }

  static constexpr Table kTables[] = {Table::kText, Table::kSegments, Table::kPages};
  DocumentId sealed_{}, grows_{};
};

TEST_F(LostDeletionsTest, OfAMemoryThatStaysForItsForksAreWrittenAgain) {
  const MemoryId memory = NewMemory("m");
  NewDerivedDocument(NewMemory("other"), "d");
  NewHeldDocuments(memory);
  const DocumentId unknown = NewDerivedDocument(memory, "unknown");
  const MemoryId fork = Fork(memory, "f");
  NewDerivedDocument(memory, "later");
  Grow();
  const Records before = AllRecords();
  ASSERT_TRUE(store().DeleteMemory(memory).ok());
  const Records left = AllRecords();
  ASSERT_LT(left.size(), before.size());
  // Nobody can tell what was deleted of a document whose record is damaged: all of it stays.
  WriteBatch damage;
  damage.Put(Table::kCatalog, DocumentRecordKey({memory, unknown}), "rubbish");
  ASSERT_TRUE(disk().Write(damage, Durability::kSynced).ok());
  Reopen();
  PutBack(before);
  EXPECT_EQ(PurgeGivingUp().size(), 1u);
  EXPECT_EQ(AllRecords(), left);
  EXPECT_EQ(TextIn(fork, "sealed"), TextOf(sealed_, 100));
  EXPECT_EQ(TextIn(fork, "grows"), TextOf(grows_, 100));
  Reopen();
  EXPECT_TRUE(store().GetDocument(sealed_)->sealed);
  EXPECT_FALSE(store().GetDocument(grows_)->damaged);
}

TEST_F(LostDeletionsTest, OfDocumentsAndOfThoseThatWentWithOthersAreWrittenAgain) {
  const MemoryId memory = NewMemory("m");
  const MemoryId other = NewMemory("other");
  NewDerivedDocument(other, "d");
  const MemoryId holder = Fork(other, "h");
  NewHeldDocuments(memory);
  const MemoryId fork = Fork(memory, "f");
  Grow();
  const Records before = AllRecords();
  // The end of one document goes with its own deletion, all else with that of the fork.
  ASSERT_TRUE(store().DeleteDocument(memory, grows_).ok());
  Records left = AllRecords();
  PutBack(before);
  EXPECT_EQ(PurgeGivingUp().size(), 1u);
  EXPECT_EQ(AllRecords(), left);
  EXPECT_EQ(TextIn(fork, "grows"), TextOf(grows_, 100));
  ASSERT_TRUE(store().DeleteMemory(memory).ok());
  ASSERT_TRUE(store().DeleteMemory(fork).ok());
  left = AllRecords();
  PutBack(before);
  EXPECT_EQ(PurgeGivingUp().size(), 2u);
  EXPECT_EQ(AllRecords(), left);
  EXPECT_TRUE(store().GetDocument(holder, "d").ok());
}

// Every byte as likely as any other: compression leaves such text as it is.
std::string Noise(uint64_t seed, size_t bytes) {
  std::mt19937_64 random(seed);
  std::string noise(bytes, '\0');
  for (char& byte : noise) byte = static_cast<char>(random());
  return noise;
}

TEST(ForkOnDiskTest, WhatNobodyHoldsLeavesNoByteAndWhatAForkHoldsStays) {
  TempStore temp({.page_bytes = 64, .landmark_bytes = 16});
  MemoryStore& store = temp.store();
  const MemoryId memory = store.CreateMemory("default", "m", "").value().uid;
  const std::string held = Noise(1, 3000), later = Noise(2, 3000);
  const auto append = [&](DocumentId document, int64_t offset, const std::string& text) {
    const TextAppend piece{document, offset, text, false};
    ASSERT_TRUE(store.AppendText({&piece, 1}).ok());
  };
  const DocumentId document = store.CreateDocument(memory, "d").value().uid;
  append(document, 0, held);
  const MemoryId fork = store.ForkMemory({memory}, "f", "").value().uid;
  append(document, 3000, later);
  const std::vector<std::string> markers = {held.substr(100, 24), later.substr(100, 24)};
  ASSERT_TRUE(store.Flush().ok());
  EXPECT_EQ(MarkersOnDisk(temp.data_dir(), markers).size(), 2u);
  std::atomic<bool> cancel{false};
  ASSERT_TRUE(store.DeleteMemory(memory).ok());
  ASSERT_EQ(store.Purge(cancel).value().size(), 1u);
  EXPECT_THAT(MarkersOnDisk(temp.data_dir(), markers), ElementsAre(markers[0]));
  EXPECT_EQ(store.ReadText(document, 0, 3000).value(), held);
  ASSERT_TRUE(store.DeleteMemory(fork).ok());
  ASSERT_EQ(store.Purge(cancel).value().size(), 1u);
  EXPECT_THAT(MarkersOnDisk(temp.data_dir(), markers), IsEmpty());
}

}  // namespace
}  // namespace mneme
