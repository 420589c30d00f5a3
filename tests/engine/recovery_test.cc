// Recovery: whatever was derived may be lost; text brings it back.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "absl/strings/str_cat.h"
#include "tests/engine/engine_harness.h"

namespace mneme {
namespace {

using ::testing::Contains;
using ::testing::Gt;
using ::testing::HasSubstr;

class RecoveryTest : public ::testing::Test {
 protected:
  RecoveryTest() { harness_.CreateMemory("m"); }

  std::string Name(const std::string& id = "d") { return harness_.Document("m", id); }
  // Adds documents with random text.
  void IngestMany(int count) {
    for (int i = 0; i < count; ++i) {
      texts_.push_back(RandomText(static_cast<uint64_t>(i), 20 + i * 37 % 400));
      harness_.Ingest("m", absl::StrCat("d", i), texts_.back(), /*seal=*/i % 2 == 0);
    }
  }
  void ExpectAllDerived() {
    for (size_t i = 0; i < texts_.size(); ++i) {
      EXPECT_EQ(harness_.DerivedDiffers("m", absl::StrCat("d", i), texts_[i]), "") << i;
    }
  }

  // From now on the network waits at the gate.
  Gate& HoldDerivation() {
    Gate& gate = harness_.NewGate();
    harness_.model().OnForward([&gate](FakeModel::Segments) {
      gate.Pass();
      return absl::OkStatus();
    });
    return gate;
  }

  std::vector<std::string> texts_;
  EngineHarness harness_;
};

TEST_F(RecoveryTest, NothingIsDerivedAgainWhenNothingWasLost) {
  IngestMany(10);
  const size_t before = harness_.model().forward_batches().size();
  harness_.Restart();
  ASSERT_TRUE(harness_.WaitReady());
  ExpectAllDerived();
  EXPECT_EQ(harness_.model().forward_batches().size(), before);
}

TEST_F(RecoveryTest, LostSegmentsAreDerivedAgainInSharedBatches) {
  IngestMany(40);
  harness_.Stop();
  harness_.LoseTable(Table::kSegments);
  harness_.LoseTable(Table::kPages);
  Gate& gate = HoldDerivation();
  const size_t before = harness_.model().forward_batches().size();
  harness_.Start();
  ASSERT_TRUE(gate.WaitArrived(1));
  // The engine serves meanwhile, and says how much is left.
  EXPECT_TRUE(harness_.engine().Ready().ok());
  EXPECT_EQ(harness_.Metric("mneme_recovery_documents"), 40);
  EXPECT_EQ(harness_.Metric("mneme_recovery_documents_left"), 40);
  // So that the next batch may have more than a few of them.
  ASSERT_TRUE(harness_.WaitMetricAtLeast("mneme_engine_queue_depth{queue=\"segments\"}", 20));
  gate.Open();
  ASSERT_TRUE(harness_.WaitReady());
  EXPECT_EQ(harness_.Metric("mneme_recovery_documents_left"), 0);
  ExpectAllDerived();
  std::vector<size_t> batches = harness_.model().forward_batches();
  batches.erase(batches.begin(), batches.begin() + static_cast<ptrdiff_t>(before));
  EXPECT_THAT(batches, Contains(Gt(4u)));
}

TEST_F(RecoveryTest, AnotherModelDerivesEverythingAgain) {
  IngestMany(10);
  harness_.model().set_fingerprint(0xfeed);
  harness_.Restart();
  ASSERT_TRUE(harness_.WaitReady());
  ExpectAllDerived();
  EXPECT_EQ(harness_.Metric("mneme_recovery_documents"), 10);
}

TEST_F(RecoveryTest, TextThatWasDurableButNotDerivedIsFound) {
  harness_.faults().FailWrites(Table::kSegments, absl::ResourceExhaustedError("no space left"));
  texts_.push_back(RandomText(1, 300));
  {
    TestWriter writer(harness_.engine(), Name("d0"));
    writer.Send(texts_[0]);
    ASSERT_TRUE(writer.WaitDurable(static_cast<int64_t>(texts_[0].size())));
  }
  harness_.Restart();
  ASSERT_TRUE(harness_.WaitReady());
  ExpectAllDerived();
}

TEST_F(RecoveryTest, WriterMayGoOnWhileItsDocumentRecovers) {
  IngestMany(3);
  harness_.Stop();
  harness_.LoseTable(Table::kSegments);
  Gate& gate = HoldDerivation();
  harness_.Start();
  TestWriter writer(harness_.engine(), Name("d1"));
  EXPECT_EQ(writer->accepted_bytes(), static_cast<int64_t>(texts_[1].size()));
  EXPECT_EQ(writer->progress().visible_bytes, 0);
  writer.Send(" and more");
  texts_[1] += " and more";
  gate.Open();
  EXPECT_TRUE(writer.WaitVisible(static_cast<int64_t>(texts_[1].size())));
  ASSERT_TRUE(harness_.WaitReady());
  ExpectAllDerived();
}

TEST_F(RecoveryTest, DocumentDeletedWhileItRecoversDoesNotHoldUpTheRest) {
  IngestMany(3);
  harness_.Stop();
  harness_.LoseTable(Table::kSegments);
  Gate& gate = HoldDerivation();
  harness_.Start();
  ASSERT_TRUE(gate.WaitArrived(1));
  ASSERT_TRUE(harness_.engine().DeleteDocument(Name("d2")).ok());
  gate.Open();
  ASSERT_TRUE(harness_.WaitReady());
  texts_.pop_back();
  ExpectAllDerived();
  EXPECT_FALSE(harness_.engine().GetDocument(Name("d2")).ok());
}

TEST_F(RecoveryTest, DocumentThatLosesItsEndWhileItWaitsDoesNotHoldUpTheRest) {
  const std::string text = RandomText(1, 30);
  harness_.Ingest("m", "first", text);
  ASSERT_TRUE(harness_.engine().ForkMemory(harness_.Memory("fork"), harness_.Memory("m"), "").ok());
  harness_.Append("m", "first", RandomText(2, 300));
  IngestMany(64);  // as many as are derived at one time; the oldest comes last
  harness_.Stop();
  harness_.LoseTable(Table::kSegments);
  Gate& gate = HoldDerivation();
  harness_.Start();
  ASSERT_TRUE(gate.WaitArrived(1));
  ASSERT_TRUE(harness_.engine().DeleteMemory(harness_.Memory("m")).ok());
  gate.Open();
  ASSERT_TRUE(harness_.WaitReady());
  const auto left = harness_.engine().GetDocument(harness_.Document("fork", "first"));
  ASSERT_TRUE(left.ok()) << left.status();
  EXPECT_EQ(left->visible_bytes, static_cast<int64_t>(text.size()));
}

TEST_F(RecoveryTest, DamagedTextDoesNotKeepTheEngineFromBeingReady) {
  texts_ = {"first text of all", "quicksilver in the text", "third text"};
  for (size_t i = 0; i < texts_.size(); ++i) {
    harness_.Ingest("m", absl::StrCat("d", i), texts_[i], /*seal=*/true);
  }
  ASSERT_EQ(harness_.Damage(Table::kText, "quicksilver"), 1);
  harness_.Stop();
  harness_.LoseTable(Table::kSegments);
  harness_.Start();
  ASSERT_TRUE(harness_.WaitReady());
  EXPECT_EQ(harness_.DerivedDiffers("m", "d0", texts_[0]), "");
  EXPECT_EQ(harness_.DerivedDiffers("m", "d2", texts_[2]), "");
  EXPECT_TRUE(harness_.engine().GetDocument(Name("d1"))->damaged);
  EXPECT_EQ(harness_.engine().OpenWriter(Name("d1"), {}).status().code(),
            absl::StatusCode::kDataLoss);
  const auto blocked =
      harness_.engine().Retrieve({.memories = {harness_.Memory("m")},
                                  .question = "x",
                                  .barriers = {{.document = Name("d1"), .visible_bytes = 23}}},
                                 {});
  EXPECT_EQ(blocked.status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(RecoveryTest, CrashesAtAnyMomentLoseNothingThatWasAcked) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const std::string id = absl::StrCat("crash", seed);
    const std::string text = RandomText(seed, 800);
    int64_t acked = 0;
    for (int crash = 0; crash < 6; ++crash) {
      {
        TestWriter writer(harness_.engine(), Name(id));
        ASSERT_GE(writer->accepted_bytes(), acked);
        for (uint64_t pieces = random() % 6; pieces > 0; --pieces) {
          const auto at = static_cast<size_t>(writer->accepted_bytes());
          if (at >= text.size()) break;
          ASSERT_TRUE(
              writer->Append(static_cast<int64_t>(at), text.substr(at, 1 + random() % 300)).ok());
        }
        acked = writer.told().durable_bytes;
      }
      harness_.Stop();
      if (random() % 4 == 0) harness_.LoseTable(Table::kSegments);
      if (random() % 4 == 0) harness_.LoseTable(Table::kPages);
      harness_.Start();
    }
    TestWriter writer(harness_.engine(), Name(id));
    ASSERT_GE(writer->accepted_bytes(), acked);
    ASSERT_TRUE(writer->Append(0, text).ok());
    ASSERT_TRUE(writer->Seal().ok());
    ASSERT_TRUE(writer.WaitVisible(static_cast<int64_t>(text.size())));
    EXPECT_EQ(harness_.DerivedDiffers("m", id, text), "");
  }
}

}  // namespace
}  // namespace mneme
