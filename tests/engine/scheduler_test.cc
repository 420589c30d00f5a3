// From durable text to visible chunks: when open segments are derived, how documents share batches,
// and what happens when deriving or storing fails. Seen through the engine.

#include "engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/supervisor.h"
#include "engine/engine_metrics.h"
#include "tests/engine/engine_harness.h"

namespace mneme {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Le;

class SchedulerTest : public ::testing::Test {
 protected:
  SchedulerTest() { harness_.CreateMemory("m"); }

  std::string Name(const std::string& id = "d") { return harness_.Document("m", id); }
  void Reopen() {
    harness_.Restart();
    ASSERT_TRUE(harness_.WaitReady());
  }
  void HoldForward() {
    harness_.model().OnForward([this](FakeModel::Segments) {
      gate_.Pass();
      return absl::OkStatus();
    });
  }
  int64_t VisibleBytes(const std::string& id = "d") {
    return harness_.engine().GetDocument(Name(id))->visible_bytes;
  }

  EngineHarness harness_;
  Gate& gate_ = harness_.NewGate();
};

TEST_F(SchedulerTest, OpenSegmentWaitsUntilItsDocumentIsIdle) {
  harness_.options().idle_flush = absl::Seconds(10);
  harness_.UseSimulatedClock();
  Reopen();
  TestWriter writer(harness_.engine(), Name());
  writer.Send("a few words");
  ASSERT_TRUE(writer.WaitDurable(11));
  harness_.clock().Advance(absl::Seconds(9));
  writer.Send(" and some more");
  ASSERT_TRUE(writer.WaitDurable(25));
  harness_.clock().Advance(absl::Seconds(9));
  // A document that is sealed does not wait: by the time it is visible, the other could have been.
  harness_.Ingest("m", "other", "sealed at once", /*seal=*/true);
  EXPECT_EQ(VisibleBytes(), 0);
  harness_.clock().Advance(absl::Seconds(1));
  EXPECT_TRUE(writer.WaitVisible(25));
}

TEST_F(SchedulerTest, TextThatNeverPausesBecomesVisibleAllTheSame) {
  harness_.options().idle_flush = absl::Seconds(1);
  harness_.UseSimulatedClock();
  Reopen();
  TestWriter writer(harness_.engine(), Name());
  for (int i = 0; i < 25; ++i) {
    writer.Send("tick ");
    ASSERT_TRUE(writer.WaitDurable(5 * (i + 1)));
    harness_.clock().Advance(absl::Milliseconds(500));
  }
  EXPECT_TRUE(writer.WaitVisible(5));
}

TEST_F(SchedulerTest, WholeSegmentsDoNotWait) {
  harness_.options().idle_flush = absl::Hours(1);
  Reopen();
  TestWriter writer(harness_.engine(), Name());
  const std::string text = RandomText(1, 400);
  writer.Send(text);
  EXPECT_TRUE(writer.WaitVisible(static_cast<int64_t>(text.size()) - 600));
  EXPECT_LT(writer.told().visible_bytes, static_cast<int64_t>(text.size()));
  EXPECT_TRUE(writer->Flush().ok());
  EXPECT_TRUE(writer.WaitVisible(static_cast<int64_t>(text.size())));
}

TEST_F(SchedulerTest, FlushBeforeTheTextIsDurableCounts) {
  harness_.options().idle_flush = absl::Hours(1);
  Reopen();
  Gate& commit = harness_.NewGate();
  harness_.faults().OnWrite([&](const WriteBatch& batch) {
    if (batch.ops[0].table == Table::kText) commit.Pass();
  });
  TestWriter writer(harness_.engine(), Name());
  ASSERT_TRUE(writer->Append(0, "not yet durable").ok());
  ASSERT_TRUE(commit.WaitArrived(1));
  ASSERT_TRUE(writer->Flush().ok());
  commit.Open();
  EXPECT_TRUE(writer.WaitVisible(15));
}

TEST_F(SchedulerTest, TextThatDripsIsDerivedOnceAtATime) {
  HoldForward();
  TestWriter writer(harness_.engine(), Name());
  for (int i = 0; i < 30; ++i) {
    writer.Send("drip ");
    ASSERT_TRUE(writer->Flush().ok());
    ASSERT_TRUE(writer.WaitDurable(5 * (i + 1)));
    if (i == 0) {
      ASSERT_TRUE(gate_.WaitArrived(1));
    }
  }
  // All but the first drop waited for the first to be done, and went together.
  gate_.Open();
  EXPECT_TRUE(writer.WaitVisible(150));
  EXPECT_THAT(harness_.model().forward_batches(), ElementsAre(1, 1));
}

TEST_F(SchedulerTest, OpenSegmentRestsAsLongAsItTook) {
  harness_.options().idle_flush = absl::Milliseconds(1);
  harness_.UseSimulatedClock();
  Reopen();
  harness_.model().OnForward([this](FakeModel::Segments) {
    harness_.clock().Advance(absl::Seconds(5));
    return absl::OkStatus();
  });
  TestWriter writer(harness_.engine(), Name());
  writer.Send("one ");
  ASSERT_TRUE(writer.WaitDurable(4));
  harness_.clock().Advance(absl::Milliseconds(2));
  ASSERT_TRUE(writer.WaitVisible(4));
  writer.Send("two ");
  ASSERT_TRUE(writer.WaitDurable(8));
  harness_.clock().Advance(absl::Seconds(1));  // long idle, but not rested
  harness_.model().OnForward(nullptr);
  harness_.Ingest("m", "other", "sealed at once", /*seal=*/true);
  EXPECT_EQ(VisibleBytes(), 4);
  harness_.clock().Advance(absl::Seconds(5));
  EXPECT_TRUE(writer.WaitVisible(8));
}

TEST_F(SchedulerTest, DocumentsShareABatch) {
  HoldForward();
  TestWriter first(harness_.engine(), Name("first"));
  first.Send("x");
  ASSERT_TRUE(first->Flush().ok());
  ASSERT_TRUE(gate_.WaitArrived(1));
  std::vector<std::unique_ptr<TestWriter>> writers;
  for (int i = 0; i < 5; ++i) {
    writers.push_back(std::make_unique<TestWriter>(harness_.engine(), Name(absl::StrCat(i))));
    writers.back()->Send("short text");
    ASSERT_TRUE((*writers.back())->Flush().ok());
  }
  ASSERT_TRUE(harness_.WaitMetric("mneme_engine_queue_depth{queue=\"segments\"}", 5));
  gate_.Open();
  for (auto& writer : writers) EXPECT_TRUE(writer->WaitVisible(10));
  EXPECT_THAT(harness_.model().forward_batches(), ElementsAre(1, 5));
}

TEST_F(SchedulerTest, BatchHasItsLimits) {
  harness_.options().batch_segments_max = 3;
  harness_.options().batch_tokens_max = 2 * 64;
  Reopen();
  HoldForward();
  TestWriter writer(harness_.engine(), Name());
  const std::string text = RandomText(2, 600);
  writer.Send(text);
  ASSERT_TRUE(writer->Flush().ok());
  gate_.Open();
  EXPECT_TRUE(writer.WaitVisible(static_cast<int64_t>(text.size())));
  EXPECT_THAT(harness_.model().forward_batches(), Each(Le(2u)));
}

TEST_F(SchedulerTest, ShortTextDoesNotWaitForALongOneToEnd) {
  harness_.options().batch_segments_max = 2;
  harness_.options().queue_segments_max = 1000;
  harness_.options().idle_flush = absl::Hours(1);
  Reopen();
  const std::string text = RandomText(3, 10'000);
  harness_.Ingest("m", "twin", text);  // so it is known how many segments the long text has
  const double segments = harness_.Metric("mneme_derived_segments_total{kind=\"whole\"}") +
                          harness_.Metric("mneme_derived_segments_total{kind=\"open\"}");
  ASSERT_GE(segments, 20);

  // The long text waits, but for a first batch of it, which is held.
  std::atomic<int> held{0};
  harness_.model().OnForward([&](FakeModel::Segments batch) {
    held += static_cast<int>(batch.size());
    gate_.Pass();
    return absl::OkStatus();
  });
  TestWriter longer(harness_.engine(), Name("long"));
  longer.Send(text);
  ASSERT_TRUE(longer->Flush().ok());
  ASSERT_TRUE(gate_.WaitArrived(1));
  const std::string queue = "mneme_engine_queue_depth{queue=\"segments\"}";
  ASSERT_TRUE(harness_.WaitMetric(queue, segments - held)) << harness_.Metric(queue);
  TestWriter shorter(harness_.engine(), Name("short"));
  shorter.Send("a short text");
  ASSERT_TRUE(shorter->Flush().ok());
  ASSERT_TRUE(harness_.WaitMetric(queue, segments - held + 1)) << harness_.Metric(queue);

  // The next batch has the short text in it; none but that one passes.
  Gate& rest = harness_.NewGate();
  std::atomic<int> batches{0};
  harness_.model().OnForward([&](FakeModel::Segments) {
    if (batches.fetch_add(1) > 0) rest.Pass();
    return absl::OkStatus();
  });
  gate_.Open();
  EXPECT_TRUE(shorter.WaitVisible(12));
  EXPECT_LT(longer.told().visible_bytes, static_cast<int64_t>(text.size()));
  rest.Open();
  EXPECT_TRUE(longer.WaitVisible(static_cast<int64_t>(text.size())));
}

TEST_F(SchedulerTest, SegmentThatCannotBeDerivedStopsItsOwnDocumentOnly) {
  std::atomic<bool> broken{true};
  const TokenId poison = harness_.model().tokenizer().PieceToId("▁wind");
  ASSERT_GE(poison, 0);
  harness_.model().OnForward([&](FakeModel::Segments segments) {
    for (const auto& segment : segments) {
      if (broken && std::find(segment.begin(), segment.end(), poison) != segment.end()) {
        return absl::InternalError("device fault");
      }
    }
    return absl::OkStatus();
  });
  const std::string text = "the wind " + RandomText(4, 400);
  TestWriter bad(harness_.engine(), Name("bad")), good(harness_.engine(), Name("good"));
  bad.Send(text);
  good.Send("all is well");
  ASSERT_TRUE(bad->Flush().ok());
  ASSERT_TRUE(good->Flush().ok());
  EXPECT_TRUE(good.WaitVisible(11));
  EXPECT_EQ(VisibleBytes("bad"), 0);
  EXPECT_TRUE(harness_.WaitMetricAtLeast("mneme_derive_failures_total", 1));
  broken = false;
  EXPECT_TRUE(bad.WaitVisible(static_cast<int64_t>(text.size())));
  EXPECT_EQ(harness_.DerivedDiffers("m", "bad", text), "");
}

TEST_F(SchedulerTest, StoringIsTriedAgainUntilItSucceeds) {
  harness_.faults().FailWrites(Table::kSegments, absl::ResourceExhaustedError("no space left"));
  TestWriter writer(harness_.engine(), Name());
  const std::string text = RandomText(5, 200);
  writer.Send(text);
  ASSERT_TRUE(writer.WaitDurable(static_cast<int64_t>(text.size())));
  ASSERT_TRUE(harness_.WaitMetricAtLeast("mneme_derive_failures_total", 2));
  EXPECT_EQ(VisibleBytes(), 0);
  harness_.faults().FailWrites(Table::kSegments, absl::OkStatus());
  EXPECT_TRUE(writer.WaitVisible(static_cast<int64_t>(text.size())));
  EXPECT_EQ(harness_.DerivedDiffers("m", "d", text), "");
}

TEST_F(SchedulerTest, EngineEndsWhileStoringFails) {
  harness_.faults().FailWrites(Table::kSegments, absl::ResourceExhaustedError("no space left"));
  {
    TestWriter writer(harness_.engine(), Name());
    writer.Send("text");
    ASSERT_TRUE(writer.WaitDurable(4));
    ASSERT_TRUE(harness_.WaitMetricAtLeast("mneme_derive_failures_total", 1));
  }
  harness_.Restart();
  ASSERT_TRUE(harness_.WaitReady());
  EXPECT_EQ(harness_.DerivedDiffers("m", "d", "text"), "");
}

TEST_F(SchedulerTest, TextThatCannotBeReadIsTriedAgain) {
  harness_.options().idle_flush = absl::Hours(1);
  Reopen();
  TestWriter writer(harness_.engine(), Name());
  harness_.faults().FailReads(Table::kText, absl::InternalError("disk hiccup"));
  const std::string text = RandomText(6, 100);
  writer.Send(text);
  ASSERT_TRUE(writer->Flush().ok());
  ASSERT_TRUE(harness_.WaitMetricAtLeast("mneme_derive_failures_total", 2));
  harness_.faults().FailReads(Table::kText, absl::OkStatus());
  EXPECT_TRUE(writer.WaitVisible(static_cast<int64_t>(text.size())));
  EXPECT_EQ(harness_.DerivedDiffers("m", "d", text), "");
}

TEST_F(SchedulerTest, DamagedTextFailsItsDocumentAlone) {
  harness_.options().idle_flush = absl::Hours(1);
  Reopen();
  TestWriter bad(harness_.engine(), Name("bad")), good(harness_.engine(), Name("good"));
  bad.Send("quicksilver in the log");
  ASSERT_TRUE(bad.WaitDurable(22));
  ASSERT_EQ(harness_.Damage(Table::kText, "quicksilver"), 1);
  ASSERT_TRUE(bad->Flush().ok());
  // It may have been read before it was damaged: then it becomes visible, which is as good.
  while (VisibleBytes("bad") == 0 && bad.Failed().ok()) absl::SleepFor(absl::Milliseconds(1));
  if (VisibleBytes("bad") == 0) {
    EXPECT_EQ(bad.WaitFailed().code(), absl::StatusCode::kDataLoss);
  }
  good.Send("still here");
  ASSERT_TRUE(good->Flush().ok());
  EXPECT_TRUE(good.WaitVisible(10));
}

// Whatever the pieces, pauses, flushes and restarts: in the end the chunks are those of the whole
// text, and what is visible never shrank.
TEST_F(SchedulerTest, GrowingDocumentsEndAsIfWrittenAtOnce) {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const std::string id = absl::StrCat("grown", seed);
    std::string text = RandomText(seed + 100, 500);
    // Long runs without a place to cut keep many tokens unsettled, across the ends of segments.
    if (seed % 3 == 0) {
      for (int i = 0; i < 3; ++i) {
        std::string run;
        for (int j = 0; j < 700; ++j) run += static_cast<char>('a' + random() % 26);
        size_t at = random() % text.size();
        while (at > 0 && (text[at] & 0xC0) == 0x80) --at;
        text.insert(at, run);
      }
    }
    auto writer = std::make_unique<TestWriter>(harness_.engine(), Name(id));
    size_t sent = 0;
    while (sent < text.size()) {
      const std::string piece = text.substr(sent, 1 + random() % 200);
      ASSERT_TRUE((*writer)->Append(static_cast<int64_t>(sent), piece).ok());
      sent += piece.size();
      const uint64_t what = random() % 8;
      // A flush in the middle of a character flushes what is whole.
      if (what <= 2) (*writer)->Flush().IgnoreError();
      if (what == 2) {
        int64_t whole = static_cast<int64_t>(sent);
        while ((text[static_cast<size_t>(whole)] & 0xC0) == 0x80) --whole;
        if (sent < text.size()) {
          ASSERT_TRUE(writer->WaitVisible(whole));
          EXPECT_GE(VisibleBytes(id), whole);
        }
      }
      if (what == 3) {
        EXPECT_FALSE(writer->misbehaved());
        writer.reset();
        if (random() % 2 == 0) {
          harness_.Restart();
          if (random() % 2 == 0) {
            ASSERT_TRUE(harness_.WaitReady());
          }
        }
        writer = std::make_unique<TestWriter>(harness_.engine(), Name(id));
        sent = static_cast<size_t>((*writer)->accepted_bytes());
      }
    }
    ASSERT_TRUE((*writer)->Flush().ok());
    ASSERT_TRUE(writer->WaitVisible(static_cast<int64_t>(text.size())));
    EXPECT_FALSE(writer->misbehaved());
    EXPECT_EQ(harness_.DerivedDiffers("m", id, text), "");
    writer.reset();
    harness_.Restart();
    EXPECT_EQ(harness_.DerivedDiffers("m", id, text), "");
  }
}

TEST_F(SchedulerTest, WorkPerTokenDoesNotGrowWithTheDocument) {
  const std::string text = RandomText(9, 3000);
  TestWriter writer(harness_.engine(), Name());
  std::vector<double> tokens_derived;
  for (int part = 0; part < 8; ++part) {
    const double before = harness_.Metric("mneme_derived_tokens_total");
    writer.Send(text);
    ASSERT_TRUE(writer->Flush().ok());
    ASSERT_TRUE(writer.WaitVisible(static_cast<int64_t>(text.size()) * (part + 1)));
    tokens_derived.push_back(harness_.Metric("mneme_derived_tokens_total") - before);
  }
  // Beside the tokens of the part itself, at most a few open segments are derived again.
  const double tokens = harness_.Metric("mneme_ingest_tokens_total") / 8;
  for (double derived : tokens_derived) EXPECT_LT(derived, tokens * 1.3 + 10 * 64);
}

// A scheduler by itself, over a store whose engine has not been told of the documents.
class LoneSchedulerTest : public ::testing::Test {
 protected:
  // The network, whose first user after Hold waits at the gate until it is opened.
  class HeldModel : public FakeModel {
   public:
    void Hold(Gate* gate) { gate_ = gate; }
    const Bundle& bundle() const override {
      if (Gate* const gate = gate_.exchange(nullptr); gate != nullptr) gate->Pass();
      return FakeModel::bundle();
    }

   private:
    mutable std::atomic<Gate*> gate_ = nullptr;
  };

  LoneSchedulerTest() {
    harness_.CreateMemory("m");
    memory_ = harness_.store().GetMemory("default", "m")->uid;
    hooks_.visible = [this](const DocumentInfo& info) {
      absl::MutexLock lock(&mutex_);
      visible_bytes_ = info.visible_bytes;
    };
    hooks_.failed = [](DocumentId, const absl::Status&) {};
    hooks_.room = [] {};
    scheduler_ = std::make_unique<Scheduler>(SchedulerOptions{.batch_segments_max = 8,
                                                              .batch_tokens_max = 1 << 10,
                                                              .queue_segments_max = 64,
                                                              .idle_flush = absl::Hours(1)},
                                             model_, shape_, harness_.store(), metrics_,
                                             supervisor_, hooks_);
  }

  DocumentId NewDocument(const std::string& text) {
    const DocumentId document = harness_.store().CreateDocument(memory_, "d")->uid;
    Append(document, 0, text);
    return document;
  }
  void Append(DocumentId document, int64_t at, const std::string& text) {
    const TextAppend append{.document = document, .byte_offset = at, .text = text};
    ASSERT_TRUE(harness_.store().AppendText({&append, 1}).ok());
  }
  bool WaitVisible(int64_t bytes) {
    absl::MutexLock lock(&mutex_);
    const auto reached = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return visible_bytes_ == bytes; };
    return mutex_.AwaitWithTimeout(absl::Condition(&reached), kPatience);
  }

  bool WaitDone(DocumentId document) {
    const absl::Time until = absl::Now() + kPatience;
    while (!scheduler_->Done(document)) {
      if (absl::Now() > until) return false;
      absl::SleepFor(absl::Milliseconds(1));
    }
    return true;
  }

  EngineHarness harness_;
  MemoryId memory_{};
  HeldModel model_;
  const SegmentShape shape_ = SegmentShape::Of(model_);
  Metrics registry_;
  const EngineOptions engine_options_ = EngineHarness::TestOptions();
  EngineMetrics metrics_{registry_, engine_options_};
  Supervisor supervisor_{registry_, RealClock(), engine_options_.thread_stall_max};
  absl::Mutex mutex_;
  int64_t visible_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  SchedulerHooks hooks_;
  std::unique_ptr<Scheduler> scheduler_;
};

TEST_F(LoneSchedulerTest, TextThatComesWhileItsDocumentIsOpenedIsNotTakenOffTheBacklog) {
  Gate& gate = harness_.NewGate();
  model_.Hold(&gate);
  const DocumentId document = NewDocument("a few words");
  scheduler_->TextDurable(document, 11, /*sealed=*/false);
  ASSERT_TRUE(gate.WaitArrived(1));
  Append(document, 11, " and some more");
  scheduler_->TextDurable(document, 25, /*sealed=*/true);
  gate.Open();
  ASSERT_TRUE(WaitVisible(25));
  EXPECT_TRUE(scheduler_->Done(document));
  EXPECT_TRUE(absl::StrContains(registry_.Expose(), "\nmneme_ingest_backlog_bytes 0\n"));
}

TEST_F(LoneSchedulerTest, DocumentThatHasLostItsEndIsDoneWhereItEndsNow) {
  MemoryStore& store = harness_.store();
  const DocumentId document = NewDocument("a few words");
  ASSERT_TRUE(store.ForkMemory({.memory = memory_}, "fork", "").ok());
  Append(document, 11, " and some more");
  ASSERT_TRUE(store.DeleteDocument(memory_, document).ok());
  ASSERT_EQ(store.GetDocument(document)->durable_bytes, 11);
  // Told by somebody who had looked at it before; the second time all of it is visible.
  for (int time = 0; time < 2; ++time) {
    scheduler_->TextDurable(document, 25, /*sealed=*/false);
    scheduler_->Flush(document, 25);
    EXPECT_TRUE(WaitDone(document));
    EXPECT_EQ(store.GetDocument(document)->visible_bytes, 11);
    EXPECT_TRUE(absl::StrContains(registry_.Expose(), "\nmneme_ingest_backlog_bytes 0\n"));
  }
}

}  // namespace
}  // namespace mneme
