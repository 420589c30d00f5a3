// Views of forks and of the past that are kept: that they are used again, and that whatever changes
// what they show is seen at once.

#include "memory_store/view_cache.h"

#include <atomic>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "memory_store/change_log.h"
#include "tests/memory_store/harness.h"

namespace mneme {
namespace {

absl::Time At(int64_t us) { return absl::FromUnixMicros(us); }

TEST(ChangeLogTest, AChangeConcernsWhoSeesItsMomentOrLater) {
  ChangeLog log;
  const uint64_t before = log.Version(At(10));
  log.Add(At(20));
  EXPECT_EQ(log.Version(At(10)), before);
  EXPECT_EQ(log.Version(At(19)), before);
  const uint64_t at_20 = log.Version(At(20));
  EXPECT_NE(at_20, before);
  EXPECT_EQ(log.Version(absl::InfiniteFuture()), at_20);
  log.Add(At(30));
  EXPECT_EQ(log.Version(At(20)), at_20);
  EXPECT_NE(log.Version(At(30)), at_20);
  log.Add(At(10));
  for (const int64_t us : {10, 19, 20, 30}) EXPECT_NE(log.Version(At(us)), at_20) << us;
}

TEST(ChangeLogTest, ManyChangesAreMergedAndNoneIsMissed) {
  ChangeLog log;
  std::vector<uint64_t> seen;
  for (int64_t us = 0; us < 10'000; ++us) {
    log.Add(At(us));
    seen.push_back(log.Version(At(us)));
  }
  // Whoever looked at a moment before a later change reached back to it sees another number.
  for (int64_t us = 0; us < 10'000; us += 7) {
    const uint64_t version = log.Version(At(us));
    EXPECT_GE(version, seen[static_cast<size_t>(us)]);
    log.Add(At(us));
    EXPECT_NE(log.Version(At(us)), version);
  }
}

class ViewCacheTest : public MemoryStoreHarness {
 protected:
  ViewCacheTest() {
    memory_ = NewMemory("m");
    for (int d = 0; d < 3; ++d) documents_.push_back(NewDerivedDocument(memory_, absl::StrCat(d)));
    clock().Advance(absl::Seconds(1));
    fork_ = store().ForkMemory({memory_}, "f", "").value().uid;
    clock().Advance(absl::Seconds(1));
  }
  // Chunks of each document that a memory shows, two a segment.
  std::vector<DocumentId> Shown(MemoryId memory, absl::Time as_of = absl::InfiniteFuture()) {
    const ReadSource source{memory, as_of};
    const PastView past = store().ViewPast({&source, 1}).value();
    std::vector<DocumentId> shown;
    EXPECT_TRUE(past.view.has_value());
    if (!past.view.has_value()) return shown;
    for (int64_t i = 0; i < past.view->chunk_count(); ++i) {
      shown.push_back(past.view->Locate(i).document);
    }
    return shown;
  }
  std::vector<DocumentId> Twice(std::vector<DocumentId> documents) {
    std::vector<DocumentId> twice;
    for (const DocumentId document : documents) twice.insert(twice.end(), {document, document});
    return twice;
  }
  int Made() { return static_cast<int>(Metric("mneme_past_views_total{how=\"made\"}")); }
  int Reused() { return static_cast<int>(Metric("mneme_past_views_total{how=\"reused\"}")); }

  MemoryId memory_{}, fork_{};
  std::vector<DocumentId> documents_;
};

TEST_F(ViewCacheTest, IsUsedAgainWhileBaseAndForkAreWrittenOn) {
  EXPECT_EQ(Shown(fork_), Twice(documents_));
  EXPECT_EQ(Made(), 1);
  for (int i = 0; i < 5; ++i) {
    clock().Advance(absl::Seconds(1));
    NewDerivedDocument(memory_, absl::StrCat("later", i));
    const DocumentId own = NewDerivedDocument(fork_, absl::StrCat("own", i));
    documents_.push_back(own);
    EXPECT_EQ(Shown(fork_), Twice(documents_));
  }
  EXPECT_EQ(Made(), 1);
  EXPECT_EQ(Reused(), 5);
}

TEST_F(ViewCacheTest, ADeletionIsSeenAtOnceAndNoViewHoldsWhatItDeleted) {
  EXPECT_EQ(Shown(fork_), Twice(documents_));
  ASSERT_TRUE(store().DeleteDocument(fork_, documents_[1]).ok());
  EXPECT_EQ(Shown(fork_), Twice({documents_[0], documents_[2]}));
  ASSERT_TRUE(store().DeleteDocument(memory_, documents_[0], /*everywhere=*/true).ok());
  EXPECT_EQ(Shown(fork_), Twice({documents_[2]}));
  // Of the base alone: the fork keeps it.
  ASSERT_TRUE(store().DeleteDocument(memory_, documents_[2]).ok());
  EXPECT_EQ(Shown(fork_), Twice({documents_[2]}));
  ASSERT_TRUE(store().DeleteMemory(fork_).ok());
  std::atomic<bool> cancel{false};
  const std::vector<Deletion> purged = store().Purge(cancel).value();
  EXPECT_EQ(purged.size(), 2u);  // the document that was dropped everywhere, and the fork
  EXPECT_TRUE(store().PendingDeletions().empty());
}

TEST_F(ViewCacheTest, TheEndOfADocumentsTimeIsSeenAtOnce) {
  const absl::Time end = clock().Now() + absl::Seconds(10);
  const DocumentId brief = store().CreateDocument(memory_, "brief", end).value().uid;
  ASSERT_TRUE(Append(brief, 0, TextOf(brief, 100)).ok());
  ASSERT_TRUE(PutSegment(Segment(brief, 0)).ok());
  clock().Advance(absl::Seconds(1));
  const MemoryId fork = store().ForkMemory({memory_}, "g", "").value().uid;
  std::vector<DocumentId> all = documents_;
  all.push_back(brief);
  EXPECT_EQ(Shown(fork), Twice(all));
  clock().Advance(absl::Seconds(9));
  EXPECT_EQ(Shown(fork), Twice(documents_));
  ASSERT_TRUE(store().UpdateMemory(memory_, {.ttl = absl::Seconds(1)}).ok());
  EXPECT_TRUE(Shown(fork).empty());
}

TEST_F(ViewCacheTest, ADocumentThatGrowsIsCutAtTheMoment) {
  EXPECT_EQ(Shown(fork_), Twice(documents_));
  clock().Advance(absl::Seconds(1));
  const DocumentId grown = documents_[1];
  ASSERT_TRUE(Append(grown, 100, TextOf(grown, 100)).ok());
  const ReadSource source{fork_};
  const PastView past = store().ViewPast({&source, 1}).value();
  ASSERT_EQ(past.wanting.size(), 1u);
  EXPECT_EQ(past.wanting[0].document, grown);
  EXPECT_EQ(past.wanting[0].cut_bytes, 100);
  const TailHandle tail = store().PutTail(past.wanting[0], 1, {}).value();
  EXPECT_EQ(Shown(fork_), Twice(documents_));
  // It goes on growing, which is nothing to those who see less.
  const int made = Made();
  ASSERT_TRUE(PutSegment(Segment(grown, 1)).ok());
  EXPECT_EQ(Shown(fork_), Twice(documents_));
  EXPECT_EQ(Made(), made);
}

TEST_F(ViewCacheTest, AMomentIsKeptLikeAForkAndOtherMomentsMakeRoom) {
  options().past_views_max = 2;
  Reopen();
  const absl::Time now = clock().Now();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Shown(memory_, now), Twice(documents_));
  EXPECT_EQ(Made(), 1);
  EXPECT_EQ(Reused(), 2);
  for (int ms = 1; ms <= 2; ++ms) Shown(memory_, now - absl::Milliseconds(ms));
  EXPECT_EQ(Made(), 3);
  Shown(memory_, now);
  EXPECT_EQ(Made(), 4);
  options().past_views_max = 0;
  Reopen();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Shown(fork_), Twice(documents_));
  EXPECT_EQ(Made(), 7);
}

}  // namespace
}  // namespace mneme
