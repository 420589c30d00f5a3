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

class ExpiryTest : public ::testing::Test {
 protected:
  ExpiryTest() {
    harness_.Stop();
    harness_.UseSimulatedClock();
    harness_.Start();
    EXPECT_TRUE(
        harness_.engine().CreateMemory(harness_.Memory("m"), "", {.ttl = absl::Hours(1)}).ok());
  }
  std::string Name(const std::string& id) { return harness_.Document("m", id); }

  EngineHarness harness_;
};

TEST_F(ExpiryTest, AnExpiredDocumentIsGoneAtOnceAndForgottenBehind) {
  harness_.Ingest("m", "d", RandomText(1, 100), /*seal=*/true);
  harness_.clock().Advance(absl::Minutes(59));
  EXPECT_TRUE(harness_.engine().GetDocument(Name("d")).ok());
  harness_.clock().Advance(absl::Minutes(1));
  EXPECT_EQ(harness_.engine().GetDocument(Name("d")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(harness_.engine().ReadText(Name("d"), 0, 1).status().code(),
            absl::StatusCode::kNotFound);
  const auto found = harness_.engine().Retrieve(
      {.memories = {harness_.Memory("m")}, .question = RandomQuestion(2, 4)}, {});
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_THAT(found->passages, IsEmpty());
  EXPECT_TRUE(harness_.WaitMetric("mneme_expired_documents_total", 1));
  EXPECT_TRUE(harness_.WaitMetric("mneme_purges_total", 1));
  EXPECT_THAT(harness_.engine().PendingDeletions(), IsEmpty());
}

TEST_F(ExpiryTest, AWriterOfADocumentThatExpiresIsToldAndTheNameIsFree) {
  TestWriter writer(harness_.engine(), Name("d"));
  writer.Send("some words ");
  ASSERT_TRUE(writer.WaitDurable(11));
  harness_.clock().Advance(absl::Hours(2));
  EXPECT_EQ(writer.WaitFailed().code(), absl::StatusCode::kNotFound);
  writer.Drop();
  harness_.Ingest("m", "d", "others");
  EXPECT_EQ(*harness_.engine().ReadText(Name("d"), 0, 6), "others");
}

TEST_F(ExpiryTest, ANameIsFreeAtTheVeryMomentOfExpiry) {
  for (int round = 0; round < 20; ++round) {
    harness_.Ingest("m", "d", absl::StrCat("round ", round), /*seal=*/true);
    harness_.clock().Advance(absl::Hours(1));
  }
  EXPECT_TRUE(harness_.WaitMetric("mneme_expired_documents_total", 20));
}

TEST_F(ExpiryTest, WhoTakesTheNameOfAnExpiredDocumentForgetsThatOneAlone) {
  harness_.options().documents_per_memory_max = 4;
  harness_.Restart();
  // Nobody sweeps meanwhile.
  Gate& gate = harness_.NewGate();
  harness_.CreateMemory("n");
  harness_.faults().FailPurges(absl::UnavailableError("not now"));
  const auto deletion = harness_.engine().DeleteMemory(harness_.Memory("n"));
  ASSERT_TRUE(deletion.ok()) << deletion.status();
  harness_.engine().WhenPurged(deletion->id, [&](const DeletionReceipt&) { gate.Pass(); });
  harness_.faults().FailPurges(absl::OkStatus());
  ASSERT_TRUE(gate.WaitArrived(1));
  for (const char* id : {"a", "b", "c", "last"}) harness_.Ingest("m", id, "some words");
  harness_.clock().Advance(absl::Hours(2));
  harness_.Ingest("m", "last", "others");
  EXPECT_EQ(*harness_.engine().ReadText(Name("last"), 0, 6), "others");
  EXPECT_EQ(harness_.Metric("mneme_expired_documents_total"), 1);
}

TEST_F(ExpiryTest, AShorterTimeToLiveEndsDocumentsAtOnceAndTheirOwnGoesBefore) {
  harness_.Ingest("m", "usual", "some words");
  auto own = harness_.engine().OpenWriter(
      Name("own"),
      {.progress = [](const IngestProgress&) {}, .ready = [] {}, .failed = [](absl::Status) {}},
      absl::Hours(10));
  ASSERT_TRUE(own.ok()) << own.status();
  harness_.clock().Advance(absl::Minutes(30));
  const auto updated =
      harness_.engine().UpdateMemory(harness_.Memory("m"), {.ttl = absl::Minutes(20)});
  ASSERT_TRUE(updated.ok()) << updated.status();
  EXPECT_EQ(updated->info.policy.ttl, absl::Minutes(20));
  EXPECT_EQ(harness_.engine().GetDocument(Name("usual")).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_TRUE(harness_.engine().GetDocument(Name("own")).ok());
}

TEST_F(ExpiryTest, OfAMemoryOfTextEveryPageIsDerivedWhenItIsReadAfterAStart) {
  ASSERT_TRUE(
      harness_.engine().UpdateMemory(harness_.Memory("m"), {.retention = Retention::kText}).ok());
  harness_.Ingest("m", "d", RandomText(3, 400), /*seal=*/true);
  const auto ask = [&] {
    std::string text;
    const auto answered = harness_.engine().Generate(
        {.memories = {harness_.Memory("m")}, .question = RandomQuestion(4, 5), .max_tokens = 4}, {},
        [&](GeneratePiece piece) {
          text += piece.text;
          return true;
        });
    EXPECT_TRUE(answered.ok()) << answered.status();
    return text;
  };
  const std::string before = ask();
  harness_.Restart();
  ASSERT_TRUE(harness_.WaitReady());
  const double derived = harness_.Metric("mneme_pages_rederived_total");
  EXPECT_EQ(ask(), before);
  EXPECT_GT(harness_.Metric("mneme_pages_rederived_total"), derived);
}

}  // namespace
}  // namespace mneme
