// Deletions through the engine: purged behind, told of once, taken up again after failures and
// restarts.

#include "engine/purger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "tests/engine/engine_harness.h"

namespace mneme {
namespace {

using ::testing::IsEmpty;

// What a WhenPurged was told.
class Told {
 public:
  PurgedCallback Callback() {
    return [this](const DeletionReceipt& receipt) {
      absl::MutexLock lock(&mutex_);
      ++calls_;
      receipt_ = receipt;
    };
  }
  bool Wait() {
    absl::MutexLock lock(&mutex_);
    const auto called = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return calls_ > 0; };
    return mutex_.AwaitWithTimeout(absl::Condition(&called), kPatience);
  }
  int calls() {
    absl::MutexLock lock(&mutex_);
    return calls_;
  }
  DeletionReceipt receipt() {
    absl::MutexLock lock(&mutex_);
    return receipt_;
  }

 private:
  absl::Mutex mutex_;
  int calls_ ABSL_GUARDED_BY(mutex_) = 0;
  DeletionReceipt receipt_ ABSL_GUARDED_BY(mutex_);
};

class PurgerTest : public ::testing::Test {
 protected:
  PurgerTest() {
    harness_.CreateMemory("m");
    harness_.Ingest("m", "d", RandomText(1, 200), /*seal=*/true);
  }
  Deletion Delete() {
    auto deletion = harness_.engine().DeleteDocument(harness_.Document("m", "d"));
    EXPECT_TRUE(deletion.ok()) << deletion.status();
    return deletion.value_or(Deletion());
  }

  EngineHarness harness_;
};

TEST_F(PurgerTest, ADeletionIsPurgedAndToldOfOnceWhetherAskedBeforeOrAfter) {
  const DocumentInfo info = *harness_.engine().GetDocument(harness_.Document("m", "d"));
  const Deletion deletion = Delete();
  Told early, late;
  harness_.engine().WhenPurged(deletion.id, early.Callback());
  ASSERT_TRUE(early.Wait());
  EXPECT_EQ(early.receipt().documents, 1);
  EXPECT_EQ(early.receipt().text_bytes, info.durable_bytes);
  EXPECT_EQ(early.receipt().tokens, info.token_count);
  EXPECT_EQ(early.receipt().chunks, info.chunk_count);
  EXPECT_GE(early.receipt().purge_time, early.receipt().delete_time);
  EXPECT_LT(early.receipt().purge_time, absl::InfiniteFuture());
  harness_.engine().WhenPurged(deletion.id, late.Callback());
  EXPECT_EQ(late.calls(), 1);
  EXPECT_EQ(early.calls(), 1);
  EXPECT_THAT(harness_.engine().PendingDeletions(), IsEmpty());
  EXPECT_TRUE(harness_.WaitMetric("mneme_purges_total", 1));
  EXPECT_TRUE(harness_.WaitMetric("mneme_purges_pending", 0));
}

TEST_F(PurgerTest, AFailedPurgeIsCountedAndTriedAgain) {
  harness_.faults().FailPurges(absl::ResourceExhaustedError("no space"));
  Told told;
  harness_.engine().WhenPurged(Delete().id, told.Callback());
  EXPECT_TRUE(harness_.WaitMetric("mneme_purges_pending", 1));
  while (harness_.Metric("mneme_purge_failures_total") < 2) absl::SleepFor(absl::Milliseconds(5));
  EXPECT_EQ(told.calls(), 0);
  EXPECT_TRUE(harness_.engine().Ready().ok());
  harness_.faults().FailPurges(absl::OkStatus());
  EXPECT_TRUE(told.Wait());
}

TEST_F(PurgerTest, APurgeThatAStopBrokeOffIsTakenUpAgain) {
  harness_.faults().FailPurges(absl::UnavailableError("not now"));
  const Deletion deletion = Delete();
  harness_.Restart();
  Told told;
  harness_.engine().WhenPurged(deletion.id, told.Callback());
  ASSERT_TRUE(told.Wait());
  EXPECT_EQ(told.receipt().text_bytes, deletion.receipt.text_bytes);
  EXPECT_THAT(harness_.engine().PendingDeletions(), IsEmpty());
}

TEST_F(PurgerTest, AMemoryOfManyDocumentsIsOneDeletion) {
  for (int i = 0; i < 5; ++i) {
    harness_.Ingest("m", absl::StrCat("d", i), RandomText(static_cast<uint64_t>(i), 50));
  }
  const auto deletion = harness_.engine().DeleteMemory(harness_.Memory("m"));
  ASSERT_TRUE(deletion.ok()) << deletion.status();
  Told told;
  harness_.engine().WhenPurged(deletion->id, told.Callback());
  ASSERT_TRUE(told.Wait());
  EXPECT_EQ(told.receipt().documents, 6);
}

TEST_F(PurgerTest, TheAgeOfTheOldestPendingDeletionGrowsAndEnds) {
  EngineHarness harness;
  harness.Stop();
  harness.UseSimulatedClock();
  harness.Start();
  harness.CreateMemory("m");
  ASSERT_TRUE(harness.engine().DeleteMemory(harness.Memory("m")).ok());
  EXPECT_TRUE(harness.WaitMetric("mneme_purges_total", 1));
  harness.faults().FailPurges(absl::UnavailableError("not now"));
  harness.CreateMemory("n");
  ASSERT_TRUE(harness.engine().DeleteMemory(harness.Memory("n")).ok());
  harness.clock().Advance(absl::Seconds(90));
  EXPECT_TRUE(harness.WaitMetric("mneme_purge_oldest_pending_seconds", 90));
  harness.faults().FailPurges(absl::OkStatus());
  EXPECT_TRUE(harness.WaitMetric("mneme_purge_oldest_pending_seconds", 0));
}

}  // namespace
}  // namespace mneme
