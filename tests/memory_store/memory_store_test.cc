// Catalog and text.

#include "memory_store/memory_store.h"

#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "memory_store/keys.h"
#include "tests/memory_store/harness.h"
#include "tests/memory_store/temp_store.h"

namespace mneme {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Op = FaultyChunkStore::Op;

class MemoryStoreTest : public MemoryStoreHarness {};

std::vector<std::string> Ids(const std::vector<MemoryInfo>& list) {
  std::vector<std::string> ids;
  for (const MemoryInfo& info : list) ids.push_back(info.id);
  return ids;
}

std::vector<std::string> Ids(const std::vector<DocumentInfo>& list) {
  std::vector<std::string> ids;
  for (const DocumentInfo& info : list) ids.push_back(info.id);
  return ids;
}

TEST_F(MemoryStoreTest, SizesOfZeroAreRefused) {
  options().page_bytes = 0;
  EXPECT_EQ(TryOpen().code(), absl::StatusCode::kInvalidArgument);
  options().page_bytes = 64;
  options().landmark_bytes = -1;
  EXPECT_EQ(TryOpen().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(MemoryStoreTest, AppendedBytesCountWhatBecameDurableWhateverBecomesOfIt) {
  const MemoryId memory = NewMemory("m"), other = NewMemory("n");
  const DocumentId document = NewDocument(memory, "d");
  ASSERT_TRUE(Append(document, 0, "five5").ok());
  ASSERT_TRUE(Append(document, 5, "seven77", /*seal=*/true).ok());
  EXPECT_FALSE(Append(document, 12, "refused").ok());
  EXPECT_EQ(store().own_totals(memory)->appended_bytes, 12);
  EXPECT_EQ(store().own_totals(other)->appended_bytes, 0);
  ASSERT_TRUE(store().DeleteDocument(memory, document).ok());
  EXPECT_EQ(store().own_totals(memory)->durable_bytes, 0);
  EXPECT_EQ(store().own_totals(memory)->appended_bytes, 12);
  ASSERT_TRUE(store().DeleteMemory(memory).ok());
  EXPECT_EQ(store().tenant_totals("default").appended_bytes, 12);
  EXPECT_EQ(store().tenant_totals("other").appended_bytes, 0);
  EXPECT_EQ(store().totals().appended_bytes, 12);
  Reopen();
  EXPECT_EQ(store().totals().appended_bytes, 0);
}

TEST_F(MemoryStoreTest, MemoryIsFoundByNameAfterReopen) {
  const MemoryInfo made = store().CreateMemory("default", "books", "My books").value();
  EXPECT_EQ(made.create_time, clock().Now());
  Reopen();
  const MemoryInfo found = store().GetMemory("default", "books").value();
  EXPECT_EQ(found.uid, made.uid);
  EXPECT_EQ(found.tenant, "default");
  EXPECT_EQ(found.display_name, "My books");
  EXPECT_EQ(found.create_time, made.create_time);
}

TEST_F(MemoryStoreTest, MemoryNameIsTakenOnceATenant) {
  ASSERT_TRUE(store().CreateMemory("default", "books", "").ok());
  EXPECT_TRUE(absl::IsAlreadyExists(store().CreateMemory("default", "books", "").status()));
  EXPECT_TRUE(store().CreateMemory("other", "books", "").ok());
  EXPECT_TRUE(absl::IsNotFound(store().GetMemory("default", "films").status()));
  EXPECT_TRUE(absl::IsNotFound(store().GetMemory("nobody", "books").status()));
}

TEST_F(MemoryStoreTest, TenantsAreLimited) {
  options().tenants_max = 2;
  Reopen();
  ASSERT_TRUE(store().CreateMemory("a", "m", "").ok());
  ASSERT_TRUE(store().CreateMemory("b", "m", "").ok());
  const absl::Status status = store().CreateMemory("c", "m", "").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("2 tenants"));
  EXPECT_TRUE(store().CreateMemory("a", "n", "").ok());
  // A tenant that has nothing left makes room for another.
  ASSERT_TRUE(store().DeleteMemory(store().GetMemory("b", "m").value().uid).ok());
  EXPECT_TRUE(store().CreateMemory("c", "m", "").ok());
}

TEST_F(MemoryStoreTest, MemoriesAreListedByNameInPages) {
  for (const char* id : {"d", "b", "a", "c"}) NewMemory(id);
  EXPECT_THAT(Ids(store().ListMemories("default", "", 3)), ElementsAre("a", "b", "c"));
  EXPECT_THAT(Ids(store().ListMemories("default", "c", 3)), ElementsAre("d"));
  EXPECT_THAT(Ids(store().ListMemories("default", "bb", 1)), ElementsAre("c"));
  EXPECT_TRUE(store().ListMemories("nobody", "", 3).empty());
}

TEST_F(MemoryStoreTest, DocumentsAreListedInTheOrderTheyBegan) {
  const MemoryId memory = NewMemory("m");
  const DocumentId z = NewDocument(memory, "z");
  NewDocument(NewMemory("other"), "elsewhere");
  NewDocument(memory, "a");
  for (int round = 0; round < 2; ++round) {
    if (round == 1) Reopen();
    EXPECT_THAT(Ids(store().ListDocuments(memory, DocumentId{}, 10).value()),
                ElementsAre("z", "a"));
    EXPECT_THAT(Ids(store().ListDocuments(memory, z, 10).value()), ElementsAre("a"));
    EXPECT_THAT(Ids(store().AllDocuments()), ElementsAre("z", "elsewhere", "a"));
  }
  EXPECT_TRUE(absl::IsNotFound(store().ListDocuments(MemoryId{99}, DocumentId{}, 10).status()));
}

TEST_F(MemoryStoreTest, DocumentNameIsTakenOnceAMemory) {
  const MemoryId memory = NewMemory("m");
  NewDocument(memory, "d");
  EXPECT_TRUE(absl::IsAlreadyExists(store().CreateDocument(memory, "d").status()));
  EXPECT_TRUE(store().CreateDocument(NewMemory("n"), "d").ok());
  EXPECT_TRUE(absl::IsNotFound(store().CreateDocument(MemoryId{99}, "d").status()));
  EXPECT_TRUE(absl::IsNotFound(store().GetDocument(memory, "e").status()));
  EXPECT_TRUE(absl::IsNotFound(store().GetDocument(MemoryId{99}, "d").status()));
  EXPECT_TRUE(absl::IsNotFound(store().GetDocument(DocumentId{99}).status()));
}

TEST_F(MemoryStoreTest, CreationThatFailsLeavesNothing) {
  NewMemory("first");  // the identities are reserved by now
  faults().Fail(Op::kWrite, absl::ResourceExhaustedError("disk full"));
  EXPECT_EQ(store().CreateMemory("default", "m", "").status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(absl::IsNotFound(store().GetMemory("default", "m").status()));
  const MemoryId memory = NewMemory("m");
  faults().Fail(Op::kWrite, absl::InternalError("disk failed"));
  EXPECT_EQ(store().CreateDocument(memory, "d").status().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(absl::IsNotFound(store().GetDocument(memory, "d").status()));
  EXPECT_TRUE(store().CreateDocument(memory, "d").ok());
}

TEST_F(MemoryStoreTest, ReservationOfIdentitiesThatFailsIsTriedAgain) {
  faults().Fail(Op::kWrite, absl::ResourceExhaustedError("disk full"));
  EXPECT_EQ(store().CreateMemory("default", "m", "").status().code(),
            absl::StatusCode::kResourceExhausted);
  const MemoryId memory = NewMemory("m");
  Reopen();
  faults().Fail(Op::kWrite, absl::ResourceExhaustedError("disk full"));
  EXPECT_EQ(store().CreateDocument(memory, "d").status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(store().CreateDocument(memory, "d").ok());
}

TEST_F(MemoryStoreTest, IdentitiesAreNeverGivenAgain) {
  const MemoryId memory = NewMemory("m");
  uint64_t last_document = 0, last_memory = static_cast<uint64_t>(memory);
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 1100; ++i) {
      const DocumentId document = NewDocument(memory, "d");
      ASSERT_GT(static_cast<uint64_t>(document), last_document);
      last_document = static_cast<uint64_t>(document);
      ASSERT_TRUE(store().DeleteDocument(document).ok());
    }
    const MemoryId other = NewMemory("other");
    ASSERT_GT(static_cast<uint64_t>(other), last_memory);
    last_memory = static_cast<uint64_t>(other);
    ASSERT_TRUE(store().DeleteMemory(other).ok());
    Reopen();
  }
}

TEST_F(MemoryStoreTest, SecondCreatorOfANameWaitsForTheFirst) {
  const MemoryId memory = NewMemory("m");
  NewDocument(memory, "reserve");
  absl::Notification second_begun;
  absl::Status second;
  std::thread thread;
  faults().OnWrite([&](const WriteBatch&) {
    faults().OnWrite(nullptr);
    thread = std::thread([&] {
      second_begun.Notify();
      second = store().CreateDocument(memory, "d").status();
    });
    second_begun.WaitForNotification();
  });
  EXPECT_TRUE(store().CreateDocument(memory, "d").ok());
  thread.join();
  EXPECT_TRUE(absl::IsAlreadyExists(second)) << second;
}

TEST_F(MemoryStoreTest, TextIsReadBackAfterReopen) {
  const DocumentId document = NewDocument(NewMemory("m"), "d");
  ASSERT_TRUE(Append(document, 0, "hello ").ok());
  ASSERT_TRUE(Append(document, 6, "world", /*seal=*/true).ok());
  for (int round = 0; round < 2; ++round) {
    if (round == 1) Reopen();
    EXPECT_EQ(store().ReadText(document, 0, 11).value(), "hello world");
    EXPECT_EQ(store().ReadText(document, 3, 8).value(), "lo wo");
    EXPECT_EQ(store().ReadText(document, 11, 11).value(), "");
    const DocumentInfo info = store().GetDocument(document).value();
    EXPECT_EQ(info.durable_bytes, 11);
    EXPECT_TRUE(info.sealed);
    EXPECT_FALSE(info.damaged);
  }
}

TEST_F(MemoryStoreTest, EveryRangeOfTextInPiecesOfAllSizesIsReadBack) {
  const DocumentId document = NewDocument(NewMemory("m"), "d");
  std::string text;
  for (const int64_t bytes : {1, 1, 2, 70'000, 3, 65'536, 131'072, 1}) {
    const std::string piece = TextOf(static_cast<DocumentId>(bytes), bytes);
    ASSERT_TRUE(Append(document, static_cast<int64_t>(text.size()), piece).ok());
    text += piece;
  }
  const std::vector<int64_t> cuts = {0,       1,       2,       3,      4,       5,
                                     65'540,  70'003,  70'004,  70'007, 135'543, 135'544,
                                     201'079, 266'614, 266'615, 266'616};
  ASSERT_EQ(text.size(), 266'616u);
  for (const int64_t begin : cuts) {
    for (const int64_t end : cuts) {
      if (begin > end) continue;
      ASSERT_EQ(store().ReadText(document, begin, end).value(), text.substr(begin, end - begin))
          << begin << " to " << end;
    }
  }
}

TEST_F(MemoryStoreTest, ReadBeyondTheDurableTextIsOutOfRange) {
  const DocumentId document = NewDocument(NewMemory("m"), "d");
  ASSERT_TRUE(Append(document, 0, "hello").ok());
  EXPECT_TRUE(absl::IsOutOfRange(store().ReadText(document, 0, 6).status()));
  EXPECT_TRUE(absl::IsOutOfRange(store().ReadText(document, -1, 2).status()));
  EXPECT_TRUE(absl::IsOutOfRange(store().ReadText(document, 3, 2).status()));
  EXPECT_TRUE(absl::IsNotFound(store().ReadText(DocumentId{99}, 0, 0).status()));
}

TEST_F(MemoryStoreTest, AppendToManyDocumentsIsOneSyncedWriteOfAllOrNothing) {
  const MemoryId memory = NewMemory("m");
  const DocumentId a = NewDocument(memory, "a"), b = NewDocument(memory, "b");
  const TextAppend appends[] = {{a, 0, "aaa", false}, {b, 0, "bb", true}};
  faults().Fail(Op::kWrite, absl::ResourceExhaustedError("disk full"));
  EXPECT_EQ(store().AppendText(appends).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(store().GetDocument(a).value().durable_bytes, 0);
  EXPECT_FALSE(store().GetDocument(b).value().sealed);
  const int64_t writes = faults().operations(Op::kWrite);
  EXPECT_TRUE(store().AppendText(appends).ok());
  EXPECT_EQ(faults().operations(Op::kWrite), writes + 1);
  EXPECT_EQ(disk().unsynced(), 0);
  EXPECT_EQ(store().ReadText(a, 0, 3).value(), "aaa");
  EXPECT_EQ(store().ReadText(b, 0, 2).value(), "bb");
  EXPECT_TRUE(store().GetDocument(b).value().sealed);
}

TEST_F(MemoryStoreTest, AppendThatDoesNotFitChangesNothing) {
  const MemoryId memory = NewMemory("m");
  const DocumentId a = NewDocument(memory, "a"), b = NewDocument(memory, "b");
  ASSERT_TRUE(Append(a, 0, "abc").ok());
  for (const int64_t offset : {0, 2, 4}) {
    const TextAppend appends[] = {{b, 0, "text", false}, {a, offset, "x", false}};
    const absl::Status status = store().AppendText(appends);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(), HasSubstr("3 durable bytes"));
  }
  const TextAppend gone[] = {{b, 0, "text", false}, {DocumentId{99}, 0, "x", false}};
  EXPECT_TRUE(absl::IsNotFound(store().AppendText(gone)));
  EXPECT_EQ(store().GetDocument(b).value().durable_bytes, 0);
  ASSERT_TRUE(Append(a, 3, "", /*seal=*/true).ok());
  EXPECT_EQ(Append(a, 3, "x").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store().ReadText(a, 0, 3).value(), "abc");
}

TEST_F(MemoryStoreTest, SealWithoutTextIsKeptOverAReopen) {
  const DocumentId document = NewDocument(NewMemory("m"), "d");
  ASSERT_TRUE(Append(document, 0, "abc").ok());
  ASSERT_TRUE(Append(document, 3, "").ok());
  EXPECT_FALSE(store().GetDocument(document).value().sealed);
  ASSERT_TRUE(Append(document, 3, "", /*seal=*/true).ok());
  Reopen();
  const DocumentInfo info = store().GetDocument(document).value();
  EXPECT_TRUE(info.sealed);
  EXPECT_FALSE(info.damaged);
  EXPECT_EQ(info.durable_bytes, 3);
  EXPECT_EQ(store().ReadText(document, 0, 3).value(), "abc");
}

TEST_F(MemoryStoreTest, ConcurrentAppendsToOneDocumentDoNotBothWin) {
  const DocumentId document = NewDocument(NewMemory("m"), "d");
  absl::Notification second_begun;
  absl::Status second;
  std::thread thread;
  faults().OnWrite([&](const WriteBatch&) {
    faults().OnWrite(nullptr);
    thread = std::thread([&] {
      second_begun.Notify();
      second = Append(document, 0, "second");
    });
    second_begun.WaitForNotification();
  });
  EXPECT_TRUE(Append(document, 0, "first").ok());
  thread.join();
  EXPECT_EQ(second.code(), absl::StatusCode::kFailedPrecondition) << second;
  EXPECT_EQ(store().ReadText(document, 0, 5).value(), "first");
}

TEST_F(MemoryStoreTest, DamagedTextStopsItsDocumentAlone) {
  const MemoryId memory = NewMemory("m");
  const DocumentId a = NewDocument(memory, "a"), b = NewDocument(memory, "b");
  ASSERT_TRUE(Append(a, 0, "first piece ").ok());
  ASSERT_TRUE(Append(a, 12, "second piece").ok());
  ASSERT_TRUE(Append(b, 0, "other").ok());
  const std::string key = TextKey({memory, a}, 0);
  std::string value = disk().Get(Table::kText, key).value();
  value.back() ^= 1;
  WriteBatch batch;
  batch.Put(Table::kText, key, value);
  ASSERT_TRUE(disk().Write(batch, Durability::kSynced).ok());

  EXPECT_EQ(store().ReadText(a, 12, 24).value(), "second piece");  // not this piece
  const absl::Status status = store().ReadText(a, 0, 24).status();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_EQ(status.message(), "document a: its stored text is damaged");
  EXPECT_TRUE(store().GetDocument(a).value().damaged);
  EXPECT_TRUE(absl::IsDataLoss(Append(a, 24, "more")));
  EXPECT_EQ(store().ReadText(b, 0, 5).value(), "other");
  EXPECT_TRUE(Append(b, 5, "more").ok());
  EXPECT_EQ(Metric("mneme_store_corrupt_records_total{kind=\"text\"}"), 1);
  EXPECT_TRUE(store().DeleteDocument(a).ok());
}

TEST_F(MemoryStoreTest, DamagedTextIsCountedOnceADocumentHoweverOftenItIsRead) {
  const MemoryId memory = NewMemory("m");
  const DocumentId a = NewDocument(memory, "a"), b = NewDocument(memory, "b");
  const auto spoil = [&](DocumentId document) {
    WriteBatch batch;
    batch.Put(Table::kText, TextKey({memory, document}, 0), "no record");
    ASSERT_TRUE(disk().Write(batch, Durability::kSynced).ok());
  };
  for (const DocumentId document : {a, b}) {
    ASSERT_TRUE(Append(document, 0, "first piece ").ok());
    ASSERT_TRUE(Append(document, 12, "second piece").ok());
  }
  EXPECT_EQ(Metric("mneme_documents_damaged_total"), 0) << "there before there is damage";
  EXPECT_EQ(Metric("mneme_damaged_documents"), 0);
  spoil(a);
  for (int read = 0; read < 3; ++read) {
    EXPECT_TRUE(absl::IsDataLoss(store().ReadText(a, 0, 24).status()));
  }
  EXPECT_EQ(Metric("mneme_documents_damaged_total"), 1);
  EXPECT_EQ(Metric("mneme_store_corrupt_records_total{kind=\"text\"}"), 1);
  EXPECT_EQ(Metric("mneme_damaged_documents"), 1);
  spoil(b);
  EXPECT_TRUE(absl::IsDataLoss(store().ReadText(b, 0, 24).status()));
  EXPECT_EQ(Metric("mneme_documents_damaged_total"), 2);
  EXPECT_EQ(Metric("mneme_damaged_documents"), 2);
  // How many there are is a state: it goes with the document.
  ASSERT_TRUE(store().DeleteDocument(a).ok());
  EXPECT_EQ(Metric("mneme_damaged_documents"), 1);
  EXPECT_EQ(Metric("mneme_documents_damaged_total"), 2);
}

TEST_F(MemoryStoreTest, MissingPieceOfTextIsDataLoss) {
  const MemoryId memory = NewMemory("m");
  for (const int64_t lost : {0, 5, 10}) {
    const DocumentId document = NewDocument(memory, absl::StrCat("d", lost));
    for (int64_t offset = 0; offset < 15; offset += 5) {
      ASSERT_TRUE(Append(document, offset, "abcde").ok());
    }
    WriteBatch batch;
    batch.Delete(Table::kText, TextKey({memory, document}, lost));
    ASSERT_TRUE(disk().Write(batch, Durability::kSynced).ok());
    EXPECT_TRUE(absl::IsDataLoss(store().ReadText(document, 0, 15).status())) << lost;
    EXPECT_TRUE(store().GetDocument(document).value().damaged);
  }
}

TEST_F(MemoryStoreTest, FailedReadIsPassedOnAndMarksNothing) {
  const DocumentId document = NewDocument(NewMemory("m"), "d");
  ASSERT_TRUE(Append(document, 0, "abc").ok());
  faults().Fail(Op::kScan, absl::InternalError("disk failed"));
  EXPECT_EQ(store().ReadText(document, 0, 3).status().code(), absl::StatusCode::kInternal);
  EXPECT_FALSE(store().GetDocument(document).value().damaged);
  EXPECT_EQ(store().ReadText(document, 0, 3).value(), "abc");
}

TEST_F(MemoryStoreTest, DeletedDocumentLeavesNoRecordAndItsNameIsFree) {
  const MemoryId memory = NewMemory("m");
  const DocumentId kept = NewDerivedDocument(memory, "kept");
  const int64_t text = disk().key_count(Table::kText), pages = disk().key_count(Table::kPages);
  const DocumentId gone = NewDerivedDocument(memory, "gone", 3);
  ASSERT_TRUE(store().DeleteDocument(gone).ok());
  EXPECT_EQ(disk().unsynced(), 0);
  EXPECT_EQ(disk().key_count(Table::kText), text);
  EXPECT_EQ(disk().key_count(Table::kPages), pages);
  EXPECT_EQ(disk().key_count(Table::kSegments), 1);
  EXPECT_TRUE(absl::IsNotFound(store().DeleteDocument(gone).status()));
  EXPECT_TRUE(absl::IsNotFound(store().GetDocument(memory, "gone").status()));
  EXPECT_TRUE(absl::IsNotFound(store().ReadText(gone, 0, 1).status()));
  EXPECT_TRUE(absl::IsNotFound(Append(gone, 300, "x")));
  EXPECT_EQ(View(memory).chunk_count(), 2);
  const DocumentId again = NewDocument(memory, "gone");
  EXPECT_NE(again, gone);
  EXPECT_EQ(store().GetDocument(again).value().durable_bytes, 0);
  Reopen();
  EXPECT_EQ(store().GetDocument(memory, "gone").value().uid, again);
  EXPECT_EQ(store().GetDocument(kept).value().visible_bytes, 100);
}

TEST_F(MemoryStoreTest, DeletedMemoryLeavesNoRecordAndItsNameIsFree) {
  const MemoryId kept = NewMemory("kept"), gone = NewMemory("gone");
  NewDerivedDocument(gone, "a");
  NewDerivedDocument(kept, "b");
  const DocumentId c = NewDerivedDocument(gone, "c");
  ASSERT_TRUE(store().DeleteMemory(gone).ok());
  EXPECT_EQ(disk().unsynced(), 0);
  for (const Table table : {Table::kText, Table::kSegments}) EXPECT_EQ(disk().key_count(table), 1);
  EXPECT_EQ(disk().key_count(Table::kPages), 2);
  EXPECT_EQ(disk().key_count(Table::kCatalog), 4);  // counter, memory, document, purge
  std::atomic<bool> cancel{false};
  ASSERT_TRUE(store().Purge(cancel).ok());
  EXPECT_EQ(disk().key_count(Table::kCatalog), 3);
  EXPECT_TRUE(absl::IsNotFound(store().DeleteMemory(gone).status()));
  EXPECT_TRUE(absl::IsNotFound(store().GetDocument(c).status()));
  EXPECT_TRUE(absl::IsNotFound(store().View({&gone, 1}).status()));
  EXPECT_TRUE(absl::IsNotFound(store().totals(gone).status()));
  EXPECT_NE(NewMemory("gone"), gone);
  Reopen();
  EXPECT_EQ(store().totals().documents, 1);
  EXPECT_EQ(store().totals().memories, 2);
}

TEST_F(MemoryStoreTest, DeletionThatFailsChangesNothing) {
  const MemoryId memory = NewMemory("m");
  const DocumentId document = NewDerivedDocument(memory, "d");
  faults().Fail(Op::kWrite, absl::InternalError("disk failed"), 0, 2);
  EXPECT_EQ(store().DeleteDocument(document).status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(store().DeleteMemory(memory).status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(store().GetDocument(document).value().visible_bytes, 100);
  EXPECT_EQ(View(memory).chunk_count(), 2);
}

TEST_F(MemoryStoreTest, DeletionWaitsForWritesUnderWayAndTakesThemAlong) {
  const MemoryId memory = NewMemory("m");
  const DocumentId document = NewDocument(memory, "d");
  absl::Notification deletion_begun;
  std::thread thread;
  faults().OnWrite([&](const WriteBatch&) {
    faults().OnWrite(nullptr);
    thread = std::thread([&] {
      deletion_begun.Notify();
      EXPECT_TRUE(store().DeleteDocument(document).ok());
    });
    deletion_begun.WaitForNotification();
  });
  EXPECT_TRUE(Append(document, 0, "text").ok());
  thread.join();
  EXPECT_EQ(disk().key_count(Table::kText), 0);
}

TEST_F(MemoryStoreTest, TotalsFollowEveryChange) {
  const MemoryId a = NewMemory("a"), b = NewMemory("b");
  const DocumentId document = NewDerivedDocument(a, "d", 2);
  ASSERT_TRUE(Append(document, 200, "tail").ok());
  NewDerivedDocument(b, "e");
  for (int round = 0; round < 2; ++round) {
    if (round == 1) Reopen();
    const MemoryStore::Totals of_a = store().totals(a).value();
    EXPECT_EQ(of_a.memories, 1);
    EXPECT_EQ(of_a.documents, 1);
    EXPECT_EQ(of_a.durable_bytes, 204);
    EXPECT_EQ(of_a.visible_bytes, 200);
    EXPECT_EQ(of_a.chunks, 4);
    EXPECT_EQ(of_a.tokens, 4 * 64);
    const MemoryStore::Totals all = store().totals();
    EXPECT_EQ(all.memories, 2);
    EXPECT_EQ(all.documents, 2);
    EXPECT_EQ(all.durable_bytes, 304);
    EXPECT_EQ(all.chunks, 6);
  }
  ASSERT_TRUE(store().DeleteDocument(document).ok());
  EXPECT_EQ(store().totals(a).value().durable_bytes, 0);
  EXPECT_EQ(store().totals(a).value().chunks, 0);
  EXPECT_EQ(store().totals(a).value().documents, 0);
}

TEST_F(MemoryStoreTest, TiersTellUseAndLimit) {
  NewDerivedDocument(NewMemory("m"), "d", 1, 3);
  const std::vector<TierUse> tiers = store().tiers();
  ASSERT_EQ(tiers.size(), 3u);
  EXPECT_EQ(tiers[0].name, "host");
  EXPECT_EQ(tiers[0].used_bytes, 3 * options().page_bytes);
  EXPECT_EQ(tiers[0].limit_bytes, options().host_page_bytes_max);
  EXPECT_EQ(tiers[1].name, "disk");
  EXPECT_GT(tiers[1].limit_bytes, tiers[1].used_bytes);
  EXPECT_EQ(tiers[2].name, "host_landmarks");
  EXPECT_EQ(tiers[2].used_bytes, 3 * options().landmark_bytes);
  EXPECT_EQ(Metric("mneme_tier_used_bytes{tier=\"host\"}"), 3 * 64);
  EXPECT_EQ(Metric("mneme_tier_limit_bytes{tier=\"host\"}"), 64 * 1024);
}

TEST_F(MemoryStoreTest, FlushReachesTheDisk) {
  NewDerivedDocument(NewMemory("m"), "d");
  EXPECT_GT(disk().unsynced(), 0);
  EXPECT_TRUE(store().Flush().ok());
  EXPECT_EQ(disk().unsynced(), 0);
  faults().Fail(Op::kFlush, absl::InternalError("disk failed"));
  EXPECT_EQ(store().Flush().code(), absl::StatusCode::kInternal);
}

TEST(MemoryStoreOnRocksDbTest, EverythingIsFoundAfterReopen) {
  TempStore temp;
  const MemoryId memory = temp.store().CreateMemory("default", "m", "").value().uid;
  const DocumentId document = temp.store().CreateDocument(memory, "d").value().uid;
  const std::string text(300, 'x');
  const TextAppend append{document, 0, text, true};
  ASSERT_TRUE(temp.store().AppendText({&append, 1}).ok());
  std::vector<SegmentDerived> segments;
  for (int s = 0; s < 3; ++s) {
    segments.push_back(
        MadeUpSegment(temp.options(), document, s, 2 * s, 2, 100 * s, 100 * s + 100));
  }
  ASSERT_TRUE(temp.store().PutSegments(segments).ok());
  for (int round = 0; round < 2; ++round) {
    if (round == 1) temp.Reopen();
    EXPECT_EQ(temp.store().ReadText(document, 0, 300).value(), text);
    const LandmarkView view = temp.store().View({&memory, 1}).value();
    ASSERT_EQ(view.chunk_count(), 6);
    EXPECT_EQ(view.Locate(5).address, (ChunkAddress{document, 5}));
    const ChunkAddress chunk{document, 5};
    const PinnedPages pages = temp.store().Pin({&chunk, 1}).value();
    EXPECT_TRUE(pages.missing().empty());
    const DocumentInfo info = temp.store().GetDocument(document).value();
    EXPECT_EQ(info.visible_bytes, 300);
    EXPECT_TRUE(info.sealed);
  }
}

}  // namespace
}  // namespace mneme
