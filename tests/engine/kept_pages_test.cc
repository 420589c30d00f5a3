// Pages that stay pinned between batches, and what ends that.

#include "engine/kept_pages.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "tests/engine/engine_harness.h"

namespace mneme {
namespace {

// A batch of readers of its own, over the store of a whole engine.
class KeptPagesTest : public ::testing::Test {
 protected:
  KeptPagesTest()
      : engine_metrics_(metrics_, harness_.options()),
        shape_(SegmentShape::Of(harness_.model())),
        source_(harness_.model(), shape_, harness_.store(), engine_metrics_, /*threads=*/1),
        kept_(source_) {
    harness_.CreateMemory("m");
  }

  DocumentId Uid(const std::string& document) {
    return harness_.engine().GetDocument(harness_.Document("m", document))->uid;
  }
  void Append(const std::string& document, const std::string& text) {
    harness_.Append("m", document, text);
  }
  // What the next batch reads there: the keys' tokens (see FakeModel); nothing without a page.
  std::vector<float> Read(DocumentId document, int64_t chunk = 0) {
    const ChunkAddress address{document, chunk};
    const float weight = 0.5f;
    std::vector<const uint8_t*> pages;
    const absl::Status status = kept_.Find({&address, 1}, {&weight, 1}, &pages);
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok() || pages[0] == nullptr) return {};
    const auto* floats = reinterpret_cast<const float*>(pages[0]);
    return {floats, floats + harness_.model().page_layout().chunk_tokens};
  }

  // Reads of pages that were in the host's pool.
  static constexpr char kReads[] = "mneme_page_reads_total{tier=\"host\"}";
  EngineHarness harness_;
  Metrics metrics_;
  EngineMetrics engine_metrics_;
  SegmentShape shape_;
  PageSource source_;
  KeptPages kept_;
};

TEST_F(KeptPagesTest, APageThatIsReadAgainIsKept) {
  harness_.Ingest("m", "d", RandomText(1, 40), /*seal=*/true);
  const DocumentId uid = Uid("d");
  const std::vector<float> first = Read(uid);
  ASSERT_FALSE(first.empty());
  const double reads = harness_.Metric(kReads);
  EXPECT_GT(reads, 0);
  EXPECT_EQ(Read(uid), first);
  EXPECT_EQ(harness_.Metric(kReads), reads);
  // What becomes of other documents does not matter.
  harness_.Ingest("m", "other", "some words");
  EXPECT_EQ(Read(uid), first);
  EXPECT_EQ(harness_.Metric(kReads), reads);
  // In the end it is found anew.
  for (int i = 0; i < 16; ++i) Read(uid);
  EXPECT_GT(harness_.Metric(kReads), reads);
}

TEST_F(KeptPagesTest, AQuestionAfterADeletionDoesNotReadItsPagesAndTheReceiptWaitsForThem) {
  harness_.Ingest("m", "gone", RandomText(2, 40), /*seal=*/true);
  harness_.Ingest("m", "stays", RandomText(3, 40), /*seal=*/true);
  const DocumentId gone = Uid("gone"), stays = Uid("stays");
  const std::vector<float> kept = Read(stays);
  ASSERT_FALSE(Read(gone).empty());

  const auto deletion = harness_.engine().DeleteDocument(harness_.Document("m", "gone"));
  ASSERT_TRUE(deletion.ok()) << deletion.status();
  absl::Notification purged;
  harness_.engine().WhenPurged(deletion->id, [&](const DeletionReceipt&) { purged.Notify(); });
  // Off the disk, but a batch may still read it.
  EXPECT_FALSE(purged.WaitForNotificationWithTimeout(absl::Milliseconds(500)));
  EXPECT_TRUE(Read(gone).empty());
  EXPECT_EQ(Read(stays), kept);
  EXPECT_TRUE(purged.WaitForNotificationWithTimeout(kPatience));
}

TEST_F(KeptPagesTest, ReadersThatReadNoPagesLetTheReceiptComeToo) {
  harness_.Ingest("m", "gone", RandomText(4, 40), /*seal=*/true);
  ASSERT_FALSE(Read(Uid("gone")).empty());
  const auto deletion = harness_.engine().DeleteDocument(harness_.Document("m", "gone"));
  ASSERT_TRUE(deletion.ok()) << deletion.status();
  absl::Notification purged;
  harness_.engine().WhenPurged(deletion->id, [&](const DeletionReceipt&) { purged.Notify(); });
  kept_.DropChanged();
  EXPECT_TRUE(purged.WaitForNotificationWithTimeout(kPatience));
}

TEST_F(KeptPagesTest, AChunkThatGrewIsReadAsItIsNow) {
  Append("d", "one two");
  const DocumentId uid = Uid("d");
  const std::vector<float> before = Read(uid);
  ASSERT_FALSE(before.empty());
  Append("d", " three four");
  const std::vector<float> after = Read(uid);
  EXPECT_NE(after, before);
  kept_.Drop();
  EXPECT_EQ(Read(uid), after);
}

}  // namespace
}  // namespace mneme
