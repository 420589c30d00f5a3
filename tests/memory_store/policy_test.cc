// What a memory keeps and for how long: retention of pages, documents that expire, and records of
// the form that knew neither.

#include <atomic>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "memory_store/keys.h"
#include "memory_store/record_coding.h"
#include "tests/memory_store/harness.h"
#include "tests/memory_store/record_forgery.h"

namespace mneme {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class PolicyTest : public MemoryStoreHarness {
 protected:
  MemoryId New(const std::string& id, const MemoryPolicy& policy) {
    return store().CreateMemory("default", id, "", policy).value().uid;
  }
  absl::Status Set(MemoryId memory, const MemoryUpdate& update) {
    return store().UpdateMemory(memory, update).status();
  }
  // Pages of a document that no tier has, after the host tier has let go of all.
  size_t MissingPages(DocumentId document, int64_t chunks) {
    Reopen();
    std::vector<ChunkAddress> addresses;
    for (int64_t c = 0; c < chunks; ++c) addresses.push_back({document, c});
    return Pin(addresses).missing().size();
  }
  std::vector<DocumentId> Listed(MemoryId memory) {
    std::vector<DocumentId> uids;
    const auto infos = store().ListDocuments(memory, DocumentId{}, 100);
    for (const DocumentInfo& info : infos.value()) {
      uids.push_back(info.uid);
    }
    return uids;
  }
  std::vector<Deletion> Purge() {
    std::atomic<bool> cancel{false};
    return store().Purge(cancel).value();
  }
};

TEST_F(PolicyTest, AMemoryOfTextHasLandmarksAndNoPagesOnDisk) {
  const MemoryId memory = New("m", {.retention = Retention::kText});
  const DocumentId document = NewDerivedDocument(memory, "d", 2, 3);
  EXPECT_EQ(disk().key_count(Table::kPages), 0);
  EXPECT_EQ(View(memory).chunk_count(), 6);
  ExpectPage(Pin({{document, 4}}).pages()[0], document, 4, 200);  // from the host tier
  EXPECT_EQ(MissingPages(document, 6), 6u);
  // Derived again they are in the host tier, and there alone.
  ASSERT_TRUE(store().PutPages(document, 0, Segment(document, 0, 3).pages).ok());
  EXPECT_EQ(disk().key_count(Table::kPages), 0);
  ExpectPage(Pin({{document, 1}}).pages()[0], document, 1, 100);
  EXPECT_EQ(store().DeleteDocument(document)->receipt.pages, 0);
}

TEST_F(PolicyTest, PagesThatAreKeptNoMoreLeaveTheDiskAndArePurged) {
  const MemoryId memory = NewMemory("m"), other = NewMemory("other");
  const DocumentId document = NewDerivedDocument(memory, "d", 2, 3);
  NewDerivedDocument(other, "d", 1, 3);
  EXPECT_EQ(disk().key_count(Table::kPages), 9);
  ASSERT_TRUE(Set(memory, {.retention = Retention::kText}).ok());
  EXPECT_EQ(disk().unsynced(), 0);
  EXPECT_EQ(disk().key_count(Table::kPages), 3);
  const auto pending = store().PendingDeletions();
  ASSERT_EQ(pending.size(), 1u);
  EXPECT_EQ(pending[0].id.ToString(), absl::StrCat("m", static_cast<uint64_t>(memory), "-pages"));
  EXPECT_EQ(pending[0].receipt.pages, 6);
  EXPECT_EQ(pending[0].receipt.documents, 0);
  Reopen();
  EXPECT_EQ(store().PendingDeletions().size(), 1u);
  EXPECT_EQ(Purge().size(), 1u);
  for (const KeyRange& range : disk().purged()) EXPECT_EQ(range.table, Table::kPages);
  EXPECT_EQ(store().GetMemory("default", "m")->policy.retention, Retention::kText);
  EXPECT_EQ(store().ReadText(document, 0, 200)->size(), 200u);
  EXPECT_EQ(View(memory).chunk_count(), 6);
}

TEST_F(PolicyTest, PagesThatAreKeptAgainComeAsTheyAreDerived) {
  const MemoryId memory = New("m", {.retention = Retention::kText});
  const DocumentId document = NewDerivedDocument(memory, "d", 2, 3);
  ASSERT_TRUE(Set(memory, {.retention = Retention::kKeep}).ok());
  EXPECT_THAT(store().PendingDeletions(), IsEmpty());
  EXPECT_EQ(MissingPages(document, 6), 6u);
  ASSERT_TRUE(store().PutPages(document, 1, Segment(document, 1, 3).pages).ok());
  EXPECT_EQ(MissingPages(document, 6), 3u);
}

TEST_F(PolicyTest, ASecondChangeWhileTheFirstIsPurgedIsPurgedToo) {
  const MemoryId memory = NewMemory("m");
  NewDerivedDocument(memory, "d", 1, 3);
  ASSERT_TRUE(Set(memory, {.retention = Retention::kText}).ok());
  ASSERT_TRUE(Set(memory, {.retention = Retention::kKeep}).ok());
  ASSERT_TRUE(Set(memory, {.retention = Retention::kText}).ok());
  EXPECT_EQ(Purge().size(), 1u);
  EXPECT_THAT(store().PendingDeletions(), IsEmpty());
}

TEST_F(PolicyTest, AnUpdateChangesWhatItNamesAndStays) {
  const MemoryId memory = New("m", {.ttl = absl::Hours(1)});
  ASSERT_TRUE(Set(memory, {.display_name = "words"}).ok());
  ASSERT_TRUE(Set(memory, {.retention = Retention::kText}).ok());
  Reopen();
  const MemoryInfo info = *store().GetMemory("default", "m");
  EXPECT_EQ(info.display_name, "words");
  EXPECT_EQ(info.policy, (MemoryPolicy{Retention::kText, absl::Hours(1)}));
  EXPECT_TRUE(absl::IsNotFound(Set(MemoryId{999}, {})));
}

TEST_F(PolicyTest, AnUpdateThatFailsChangesNothing) {
  const MemoryId memory = NewMemory("m");
  NewDerivedDocument(memory, "d", 1, 3);
  faults().Fail(FaultyChunkStore::Op::kWrite, absl::InternalError("disk"));
  EXPECT_EQ(Set(memory, {.retention = Retention::kText, .ttl = absl::Seconds(1)}).code(),
            absl::StatusCode::kInternal);
  EXPECT_EQ(store().GetMemory("default", "m")->policy, MemoryPolicy());
  EXPECT_THAT(store().PendingDeletions(), IsEmpty());
  EXPECT_EQ(disk().key_count(Table::kPages), 3);
}

TEST_F(PolicyTest, AnExpiredDocumentIsNotFoundByAnyMethod) {
  const MemoryId memory = New("m", {.ttl = absl::Minutes(10)});
  const DocumentId old = NewDerivedDocument(memory, "old");
  clock().Advance(absl::Minutes(5));
  const DocumentId young = NewDerivedDocument(memory, "young");
  EXPECT_EQ(View(memory).chunk_count(), 4);
  EXPECT_EQ(store().GetDocument(old)->expire_time, clock().Now() + absl::Minutes(5));
  clock().Advance(absl::Minutes(5));
  for (int round = 0; round < 2; ++round) {
    const LandmarkView view = View(memory);
    ASSERT_EQ(view.chunk_count(), 2);
    EXPECT_EQ(view.Locate(0).address.document, young);
    EXPECT_EQ(LandmarkAt(view, 0), MadeUpLandmark(young, 0, 100, options().landmark_bytes));
    EXPECT_THAT(Listed(memory), ElementsAre(young));
    EXPECT_TRUE(absl::IsNotFound(store().GetDocument(old).status()));
    EXPECT_TRUE(absl::IsNotFound(store().GetDocument(memory, "old").status()));
    EXPECT_TRUE(absl::IsNotFound(store().ReadText(old, 0, 10).status()));
    EXPECT_TRUE(store().ReadText(young, 0, 10).ok());
    ASSERT_EQ(store().ExpiredDocuments(10).size(), 1u);
    EXPECT_EQ(store().ExpiredDocuments(10)[0].uid, old);
    EXPECT_THAT(store().ExpiredDocuments(0), IsEmpty());
    ASSERT_TRUE(store().ExpiredDocument(memory, "old").has_value());
    EXPECT_EQ(store().ExpiredDocument(memory, "old")->uid, old);
    EXPECT_FALSE(store().ExpiredDocument(memory, "young").has_value());
    Reopen();
  }
  ASSERT_TRUE(store().DeleteDocument(old).ok());
  EXPECT_THAT(store().ExpiredDocuments(10), IsEmpty());
  EXPECT_FALSE(store().ExpiredDocument(memory, "old").has_value());
  EXPECT_EQ(View(memory).chunk_count(), 2);
}

TEST_F(PolicyTest, ADocumentsOwnTimeGoesBeforeItsMemorys) {
  const MemoryId memory = New("m", {.ttl = absl::Minutes(10)});
  const absl::Time now = clock().Now();
  const DocumentId longer = store().CreateDocument(memory, "longer", now + absl::Hours(1))->uid;
  const DocumentId shorter = store().CreateDocument(memory, "shorter", now + absl::Minutes(1))->uid;
  const DocumentId usual = NewDocument(memory, "usual");
  clock().Advance(absl::Minutes(1));
  EXPECT_THAT(Listed(memory), ElementsAre(longer, usual));
  Reopen();
  clock().Advance(absl::Minutes(9));
  EXPECT_THAT(Listed(memory), ElementsAre(longer));
  ASSERT_TRUE(Set(memory, {.ttl = absl::InfiniteDuration()}).ok());
  EXPECT_THAT(Listed(memory), ElementsAre(longer, usual));  // it was not deleted yet
  ASSERT_TRUE(Set(memory, {.ttl = absl::Minutes(5)}).ok());
  EXPECT_THAT(Listed(memory), ElementsAre(longer));
  EXPECT_EQ(store().GetDocument(longer)->expire_time, now + absl::Hours(1));
  EXPECT_TRUE(absl::IsNotFound(store().GetDocument(shorter).status()));
}

TEST_F(PolicyTest, RecordsOfTheFormerVersionAreReadAndWrittenWhereNothingNewIsSaid) {
  // As the format's first version had them.
  const std::string memory_key = MemoryKey(MemoryId{5});
  std::string memory_payload;
  PutU64(&memory_payload, 1'600'000'000'000'000);
  for (const char* text : {"default", "old", "an old one"}) PutString(&memory_payload, text);
  const std::string document_key = DocumentRecordKey({MemoryId{5}, DocumentId{6}});
  std::string document_payload;
  PutU64(&document_payload, 1'600'000'001'000'000);
  PutString(&document_payload, "d");
  const std::string memory_record = ForgeRecord(RecordKind::kMemory, memory_key, memory_payload);
  const std::string document_record =
      ForgeRecord(RecordKind::kDocument, document_key, document_payload);
  ASSERT_EQ(memory_record[0], 1);
  WriteBatch batch;
  batch.Put(Table::kCatalog, memory_key, memory_record);
  batch.Put(Table::kCatalog, document_key, document_record);
  ASSERT_TRUE(disk().Write(batch, Durability::kSynced).ok());
  Reopen();
  const MemoryInfo info = *store().GetMemory("default", "old");
  EXPECT_EQ(info.policy, MemoryPolicy());
  EXPECT_EQ(info.display_name, "an old one");
  EXPECT_EQ(store().GetDocument(info.uid, "d")->expire_time, absl::InfiniteFuture());
  EXPECT_EQ(EncodeRecord(memory_key, *DecodeMemoryRecord(memory_key, memory_record)),
            memory_record);
  EXPECT_EQ(EncodeRecord(document_key, *DecodeDocumentRecord(document_key, document_record)),
            document_record);

  ASSERT_TRUE(Set(info.uid, {.retention = Retention::kText}).ok());
  EXPECT_EQ((*disk().Get(Table::kCatalog, memory_key))[0], 2);
  ASSERT_TRUE(Set(info.uid, {.retention = Retention::kKeep}).ok());
  EXPECT_EQ(*disk().Get(Table::kCatalog, memory_key), memory_record);
}

}  // namespace
}  // namespace mneme
