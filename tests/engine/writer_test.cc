// Writer: durability, resumption, bad input, backpressure, lifetimes.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "tests/engine/engine_harness.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

class WriterTest : public ::testing::Test {
 protected:
  WriterTest() { harness_.CreateMemory("m"); }

  std::string Name(const std::string& id = "d") { return harness_.Document("m", id); }
  // Stops the committer at its next write of text until `gate` opens.
  void HoldCommits(Gate& gate) {
    harness_.faults().OnWrite([&gate](const WriteBatch& batch) {
      if (batch.ops[0].table == Table::kText) gate.Pass();
    });
  }

  EngineHarness harness_;
};

TEST_F(WriterTest, TextBecomesDurableThenVisible) {
  const std::string text = RandomText(1, 500);
  TestWriter writer(harness_.engine(), Name());
  writer.Send(text);
  EXPECT_TRUE(writer.WaitDurable(static_cast<int64_t>(text.size())));
  EXPECT_TRUE(writer.WaitVisible(static_cast<int64_t>(text.size())));
  EXPECT_FALSE(writer.misbehaved());
  EXPECT_EQ(harness_.DerivedDiffers("m", "d", text), "");
}

TEST_F(WriterTest, BadByteIsNamedAndBytesBeforeItAreKept) {
  TestWriter writer(harness_.engine(), Name());
  writer.Send("0123456789");
  const absl::Status status = writer->Append(10,
                                             "abc\xFF"
                                             "def");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("byte 13"));
  EXPECT_EQ(writer->accepted_bytes(), 13);
  EXPECT_TRUE(writer.WaitDurable(13));
  // The writer goes on from there.
  EXPECT_TRUE(writer->Append(13, "!").ok());
  EXPECT_TRUE(writer.WaitVisible(14));
  EXPECT_EQ(harness_.DerivedDiffers("m", "d", "0123456789abc!"), "");
}

TEST_F(WriterTest, BadByteInTheNextPieceIsNamedWhereItsSequenceBegins) {
  TestWriter writer(harness_.engine(), Name());
  ASSERT_TRUE(writer->Append(0, "ab\xE6\x97").ok());
  EXPECT_EQ(writer->accepted_bytes(), 4);
  const absl::Status status = writer->Append(4, "x");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("byte 2 "));
  EXPECT_EQ(writer->accepted_bytes(), 2);
  EXPECT_TRUE(writer.WaitDurable(2));
}

TEST_F(WriterTest, SequencesMayBeSplitAnywhere) {
  const std::string text = "aß日😀" + RandomText(2, 100) + "🚀";
  TestWriter writer(harness_.engine(), Name());
  for (size_t i = 0; i < text.size(); ++i) {
    ASSERT_TRUE(writer->Append(static_cast<int64_t>(i), text.substr(i, 1)).ok());
  }
  EXPECT_TRUE(writer->Flush().ok());
  EXPECT_TRUE(writer.WaitVisible(static_cast<int64_t>(text.size())));
  EXPECT_EQ(harness_.DerivedDiffers("m", "d", text), "");
}

TEST_F(WriterTest, DurableTextNeverEndsInsideACharacter) {
  TestWriter writer(harness_.engine(), Name());
  ASSERT_TRUE(writer->Append(0, "ab\xF0\x9F\x98").ok());
  EXPECT_TRUE(writer.WaitDurable(2));
  EXPECT_EQ(writer->accepted_bytes(), 5);
  const absl::Status flush = writer->Flush();
  EXPECT_EQ(flush.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(flush), HasSubstr("byte 2;"));
  const absl::Status seal = writer->Seal();
  EXPECT_EQ(seal.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(writer.WaitVisible(2));
  ASSERT_TRUE(writer->Append(5, "\x80").ok());
  EXPECT_TRUE(writer.WaitVisible(6));
  EXPECT_EQ(harness_.DerivedDiffers("m", "d", "ab😀"), "");
}

TEST_F(WriterTest, GapIsRefusedWithBothOffsets) {
  TestWriter writer(harness_.engine(), Name());
  writer.Send("hello");
  const absl::Status status = writer->Append(9, "x");
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(Message(status), HasSubstr("9"));
  EXPECT_THAT(Message(status), HasSubstr("5"));
  EXPECT_EQ(writer->Append(-1, "x").code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(WriterTest, SameBytesAgainChangeNothing) {
  const std::string text = RandomText(3, 300);
  harness_.Ingest("m", "d", text);
  TestWriter writer(harness_.engine(), Name());
  EXPECT_EQ(writer->accepted_bytes(), static_cast<int64_t>(text.size()));
  const int synced = harness_.faults().synced_writes();
  for (size_t i = 0; i < text.size(); i += 100) {
    ASSERT_TRUE(writer->Append(static_cast<int64_t>(i), text.substr(i, 150)).ok());
  }
  EXPECT_EQ(harness_.faults().synced_writes(), synced);
  // A piece that begins in stored text and goes beyond it adds what is new.
  ASSERT_TRUE(
      writer->Append(static_cast<int64_t>(text.size()) - 3, text.substr(text.size() - 3) + "new")
          .ok());
  EXPECT_TRUE(writer.WaitVisible(static_cast<int64_t>(text.size()) + 3));
  EXPECT_EQ(harness_.DerivedDiffers("m", "d", text + "new"), "");
}

TEST_F(WriterTest, OtherBytesAtAStoredOffsetAreRefusedAndNamed) {
  harness_.Ingest("m", "d", "The wind is from the north.");
  TestWriter writer(harness_.engine(), Name());
  const absl::Status status = writer->Append(4, "wind is from the south.");
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(Message(status), HasSubstr("byte 21 "));
}

TEST_F(WriterTest, OtherBytesAreFoundInTextThatIsNotYetDurable) {
  Gate& gate = harness_.NewGate();
  HoldCommits(gate);
  TestWriter writer(harness_.engine(), Name());
  ASSERT_TRUE(writer->Append(0, "first ").ok());
  ASSERT_TRUE(gate.WaitArrived(1));
  ASSERT_TRUE(writer->Append(6, "second\xE6").ok());
  EXPECT_TRUE(writer->Append(3, "st second\xE6").ok());
  const absl::Status pending = writer->Append(3, "st secund");
  EXPECT_EQ(pending.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(Message(pending), HasSubstr("byte 9 "));
  const absl::Status tail = writer->Append(11, "d\xE7");
  EXPECT_EQ(tail.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(Message(tail), HasSubstr("byte 12 "));
  gate.Open();
  EXPECT_TRUE(writer.WaitDurable(12));
}

TEST_F(WriterTest, SealedDocumentTakesTheSameBytesAndNoMore) {
  const std::string text = "All of it.";
  harness_.Ingest("m", "d", text, /*seal=*/true);
  EXPECT_TRUE(harness_.engine().GetDocument(Name())->sealed);
  TestWriter writer(harness_.engine(), Name());
  EXPECT_TRUE(writer->Append(0, text).ok());
  EXPECT_TRUE(writer->Seal().ok());
  EXPECT_TRUE(writer->progress().sealed);
  const absl::Status status = writer->Append(5, text.substr(5) + " More.");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), HasSubstr("10 bytes"));
}

TEST_F(WriterTest, SealIsToldOnlyWhenItIsDurable) {
  TestWriter writer(harness_.engine(), Name());
  writer.Send("text");
  ASSERT_TRUE(writer.WaitDurable(4));
  Gate& gate = harness_.NewGate();
  HoldCommits(gate);
  ASSERT_TRUE(writer->Seal().ok());
  EXPECT_EQ(writer->Append(4, "more").code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(gate.WaitArrived(1));
  EXPECT_FALSE(writer->progress().sealed);
  gate.Open();
  EXPECT_TRUE(writer.WaitSealed());
}

TEST_F(WriterTest, EmptyDocumentCannotBeSealed) {
  TestWriter writer(harness_.engine(), Name());
  EXPECT_TRUE(writer->Append(0, "").ok());
  EXPECT_TRUE(writer->Flush().ok());
  EXPECT_EQ(writer->Seal().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(WriterTest, SecondWriterIsTurnedAwayUntilTheFirstIsGone) {
  auto first = std::make_unique<TestWriter>(harness_.engine(), Name());
  EXPECT_EQ(harness_.engine().OpenWriter(Name(), {}).status().code(), absl::StatusCode::kAborted);
  first.reset();
  EXPECT_TRUE(harness_.engine().OpenWriter(Name(), {}).ok());
}

TEST_F(WriterTest, NextWriterBeginsBehindTheLastTextOfADroppedOne) {
  Gate& gate = harness_.NewGate();
  HoldCommits(gate);
  auto first = std::make_unique<TestWriter>(harness_.engine(), Name());
  ASSERT_TRUE((*first)->Append(0, "on its way").ok());
  ASSERT_TRUE(gate.WaitArrived(1));
  first.reset();
  absl::Notification begun;
  std::atomic<bool> committed{false};
  std::thread next([&] {
    begun.Notify();
    TestWriter second(harness_.engine(), Name());
    EXPECT_TRUE(committed);
    EXPECT_EQ(second->accepted_bytes(), 10);
    EXPECT_TRUE(second->Append(10, " and on").ok());
    EXPECT_TRUE(second.WaitVisible(17));
  });
  begun.WaitForNotification();
  absl::SleepFor(absl::Milliseconds(20));  // long enough for one that does not wait
  committed = true;
  gate.Open();
  next.join();
  EXPECT_EQ(harness_.DerivedDiffers("m", "d", "on its way and on"), "");
}

TEST_F(WriterTest, WriterNeedsItsMemory) {
  const auto writer = harness_.engine().OpenWriter(harness_.Document("none", "d"), {});
  EXPECT_EQ(writer.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(writer.status()), HasSubstr("memories/none"));
}

TEST_F(WriterTest, WritersThatWaitTogetherShareOneSync) {
  Gate& gate = harness_.NewGate();
  HoldCommits(gate);
  std::vector<std::unique_ptr<TestWriter>> writers;
  for (int i = 0; i < 8; ++i) {
    writers.push_back(std::make_unique<TestWriter>(harness_.engine(), Name(absl::StrCat("d", i))));
  }
  const int before = harness_.faults().synced_writes();
  ASSERT_TRUE((*writers[0])->Append(0, "a").ok());
  ASSERT_TRUE(gate.WaitArrived(1));  // the commit of the first is under way
  for (auto& writer : writers) {
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE((*writer)->Append((*writer)->accepted_bytes(), "text ").ok());
    }
  }
  gate.Open();
  for (size_t i = 0; i < writers.size(); ++i) {
    EXPECT_TRUE(writers[i]->WaitDurable(i == 0 ? 16 : 15));
  }
  EXPECT_EQ(harness_.faults().synced_writes() - before, 2);
}

TEST_F(WriterTest, FailedCommitIsNotAckedAndServiceReturns) {
  TestWriter writer(harness_.engine(), Name());
  writer.Send("safe ");
  ASSERT_TRUE(writer.WaitDurable(5));
  harness_.faults().FailWrites(Table::kText, absl::ResourceExhaustedError("no space left"));
  ASSERT_TRUE(writer->Append(5, "lost").ok());
  EXPECT_EQ(writer.WaitFailed().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(writer->Append(9, "x").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(writer.told().durable_bytes, 5);
  EXPECT_EQ(harness_.engine().GetDocument(Name())->durable_bytes, 5);
  EXPECT_TRUE(harness_.WaitReady());  // questions are still answered
  writer.Drop();

  harness_.faults().FailWrites(Table::kText, absl::OkStatus());
  TestWriter again(harness_.engine(), Name());
  EXPECT_EQ(again->accepted_bytes(), 5);
  again.Send("found");
  EXPECT_TRUE(again.WaitVisible(10));
  EXPECT_EQ(harness_.DerivedDiffers("m", "d", "safe found"), "");
}

TEST_F(WriterTest, TextThatAFailedWriterGivesUpMakesRoomForOthers) {
  harness_.Stop();
  harness_.options().queue_segments_max = 1;
  harness_.options().document_share_bytes = 0;
  harness_.options().idle_flush = absl::Hours(1);
  harness_.Start();
  Gate& gate = harness_.NewGate();
  HoldCommits(gate);
  harness_.faults().FailWrites(Table::kText, absl::ResourceExhaustedError("no space left"));
  TestWriter failing(harness_.engine(), Name("failing")), other(harness_.engine(), Name("other"));
  ASSERT_TRUE(failing->Append(0, std::string(4000, 'a')).ok());
  EXPECT_FALSE(other->ready());
  gate.Open();
  EXPECT_FALSE(failing.WaitFailed().ok());
  EXPECT_TRUE(other.WaitReadyCallback());
  EXPECT_TRUE(other->ready());
}

TEST_F(WriterTest, TextThatNeedsFewerTokensThanThoughtMakesRoom) {
  harness_.Stop();
  harness_.options().queue_segments_max = 1;
  harness_.options().document_share_bytes = 0;
  harness_.options().idle_flush = absl::Hours(1);
  harness_.Start();
  Gate& gate = harness_.NewGate();
  HoldCommits(gate);
  TestWriter writer(harness_.engine(), Name());
  // Counted as a segment of 64 tokens of 4 bytes, it is less.
  ASSERT_TRUE(writer->Append(0, RandomQuestion(1, 55) + std::string(30, '\n')).ok());
  EXPECT_FALSE(writer->ready());
  gate.Open();
  EXPECT_TRUE(writer.WaitReadyCallback());
}

TEST_F(WriterTest, ShortTextIsTakenHoweverMuchOfALongOneWaits) {
  harness_.Stop();
  harness_.options().queue_segments_max = 1;
  harness_.options().document_share_bytes = 100;
  harness_.Start();
  Gate& gate = harness_.NewGate();
  harness_.model().OnForward([&](FakeModel::Segments) {
    gate.Pass();
    return absl::OkStatus();
  });
  TestWriter long_text(harness_.engine(), Name("long")),
      short_text(harness_.engine(), Name("short"));
  ASSERT_TRUE(long_text->Append(0, RandomText(3, 20'000)).ok());
  ASSERT_TRUE(gate.WaitArrived(1));
  EXPECT_FALSE(long_text->ready());
  EXPECT_TRUE(short_text->ready());
  short_text.Send("abc");
  EXPECT_TRUE(short_text.WaitDurable(3));
  EXPECT_TRUE(short_text->ready());
  gate.Open();
  EXPECT_TRUE(long_text.WaitReadyCallback());
}

TEST_F(WriterTest, DrainGivesUpOnADiskThatHangs) {
  Gate& gate = harness_.NewGate();
  HoldCommits(gate);
  TestWriter writer(harness_.engine(), Name());
  writer.Send("text");
  ASSERT_TRUE(gate.WaitArrived(1));
  EXPECT_EQ(harness_.engine().Drain(absl::Now() + absl::Milliseconds(20)).code(),
            absl::StatusCode::kDeadlineExceeded);
  gate.Open();
}

TEST_F(WriterTest, NothingBehindAFailedPieceBecomesDurable) {
  Gate& gate = harness_.NewGate();
  TestWriter writer(harness_.engine(), Name());
  HoldCommits(gate);
  harness_.faults().FailWrites(Table::kText, absl::ResourceExhaustedError("no space left"));
  ASSERT_TRUE(writer->Append(0, "one ").ok());
  ASSERT_TRUE(gate.WaitArrived(1));
  ASSERT_TRUE(writer->Append(4, "two ").ok());
  // The disk has room again before the second piece is tried.
  harness_.faults().OnWrite([&](const WriteBatch&) {});
  gate.Open();
  EXPECT_FALSE(writer.WaitFailed().ok());
  harness_.faults().FailWrites(Table::kText, absl::OkStatus());
  writer.Drop();
  TestWriter again(harness_.engine(), Name());
  EXPECT_EQ(again->accepted_bytes(), 0);
}

TEST_F(WriterTest, DocumentThatIsGoneDoesNotFailItsNeighboursInABatch) {
  TestWriter doomed(harness_.engine(), Name("doomed")), other(harness_.engine(), Name("other"));
  Gate& gate = harness_.NewGate();
  HoldCommits(gate);
  ASSERT_TRUE(other->Append(0, "a").ok());
  ASSERT_TRUE(gate.WaitArrived(1));
  ASSERT_TRUE(doomed->Append(0, "text").ok());
  ASSERT_TRUE(other->Append(1, "b").ok());
  std::thread deleter([&] { EXPECT_TRUE(harness_.engine().DeleteDocument(Name("doomed")).ok()); });
  gate.Open();
  deleter.join();
  EXPECT_EQ(doomed.WaitFailed().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(other.WaitDurable(2));
}

TEST_F(WriterTest, FullQueueStopsWritersUntilThereIsRoom) {
  harness_.Stop();
  harness_.options().queue_segments_max = 4;
  harness_.options().document_share_bytes = 0;
  harness_.options().batch_segments_max = 2;
  harness_.Start();
  Gate& gate = harness_.NewGate();
  harness_.model().OnForward([&](FakeModel::Segments) {
    gate.Pass();
    return absl::OkStatus();
  });
  TestWriter writer(harness_.engine(), Name());
  const std::string text = RandomText(4, 3000);
  size_t sent = 0;
  const auto fill = [&] {
    while (writer->ready() && sent < text.size()) {
      const std::string piece = text.substr(sent, 64);
      ASSERT_TRUE(writer->Append(static_cast<int64_t>(sent), piece).ok());
      sent += piece.size();
    }
  };
  ASSERT_TRUE(writer->Append(0, text.substr(0, 64)).ok());
  sent = 64;
  ASSERT_TRUE(gate.WaitArrived(1));  // so that nothing leaves the queue any more
  // Text may turn out to need fewer segments than thought, so that there is room again; segments
  // in the queue stay.
  do {
    fill();
  } while (sent < text.size() &&
           harness_.Metric("mneme_engine_queue_depth{queue=\"segments\"}") < 4);
  // Stopped long before the end of the text: at about four segments and what is in the batch.
  EXPECT_LT(sent, text.size() / 2);
  EXPECT_FALSE(writer->ready());
  gate.Open();
  EXPECT_TRUE(writer.WaitReadyCallback());
  writer.Send(text.substr(sent));
  ASSERT_TRUE(writer->Flush().ok());
  EXPECT_TRUE(writer.WaitVisible(static_cast<int64_t>(text.size())));
  EXPECT_EQ(harness_.DerivedDiffers("m", "d", text), "");
}

TEST_F(WriterTest, AppendBeyondThePendingLimitIsRefusedAndRoomIsTold) {
  harness_.Stop();
  harness_.options().writer_pending_bytes_max = 100;
  harness_.Start();
  Gate& gate = harness_.NewGate();
  HoldCommits(gate);
  TestWriter writer(harness_.engine(), Name());
  ASSERT_TRUE(writer->Append(0, std::string(101, 'a')).ok());
  EXPECT_FALSE(writer->ready());
  const absl::Status status = writer->Append(101, "b");
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr("limit 100"));
  gate.Open();
  EXPECT_TRUE(writer.WaitReadyCallback());
  EXPECT_TRUE(writer->Append(101, "b").ok());
  EXPECT_TRUE(writer.WaitDurable(102));
}

TEST_F(WriterTest, DocumentHasALimit) {
  harness_.Stop();
  harness_.options().document_bytes_max = 10;
  harness_.Start();
  TestWriter writer(harness_.engine(), Name());
  ASSERT_TRUE(writer->Append(0, "0123456789").ok());
  const absl::Status status = writer->Append(10, "x");
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr("limit 10"));
  EXPECT_TRUE(writer.WaitDurable(10));
}

TEST_F(WriterTest, WriterOfADeletedDocumentIsToldAndNothingComesBack) {
  Gate& gate = harness_.NewGate();
  harness_.model().OnForward([&](FakeModel::Segments) {
    gate.Pass();
    return absl::OkStatus();
  });
  TestWriter writer(harness_.engine(), Name());
  writer.Send(RandomText(5, 400));
  ASSERT_TRUE(gate.WaitArrived(1));  // segments of it are being derived
  ASSERT_TRUE(harness_.engine().DeleteDocument(Name()).ok());
  EXPECT_EQ(writer.WaitFailed().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(writer->Append(0, "x").code(), absl::StatusCode::kNotFound);
  // The name is free at once; the old writer may still be there.
  TestWriter next(harness_.engine(), Name());
  EXPECT_EQ(next->accepted_bytes(), 0);
  next.Send("another text");
  gate.Open();
  EXPECT_TRUE(next.WaitVisible(12));
  EXPECT_EQ(harness_.DerivedDiffers("m", "d", "another text"), "");
  writer.Drop();
  EXPECT_TRUE(next->Append(12, "!").ok());
  EXPECT_TRUE(next.WaitVisible(13));
}

TEST_F(WriterTest, DeletingAMemoryEndsItsWriters) {
  TestWriter a(harness_.engine(), Name("a")), b(harness_.engine(), Name("b"));
  harness_.CreateMemory("n");
  TestWriter other(harness_.engine(), harness_.Document("n", "d"));
  a.Send(RandomText(6, 200));
  ASSERT_TRUE(harness_.engine().DeleteMemory(harness_.Memory("m")).ok());
  EXPECT_EQ(a.WaitFailed().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(b.WaitFailed().code(), absl::StatusCode::kNotFound);
  other.Send("alive");
  EXPECT_TRUE(other.WaitVisible(5));
}

TEST_F(WriterTest, NoCallbackComesOnceTheWriterIsDropped) {
  for (int round = 0; round < 50; ++round) {
    auto alive = std::make_unique<std::atomic<bool>>(true);
    std::atomic<bool> late{false};
    auto writer = harness_.engine().OpenWriter(
        Name(), {.progress = [&](const IngestProgress&) { late = late || !alive->load(); }});
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE((*writer)->Append((*writer)->accepted_bytes(), "some text ").ok());
    writer->reset();
    alive->store(false);
    EXPECT_FALSE(late.load());
  }
}

TEST_F(WriterTest, WriterMayBeDroppedInsideItsCallback) {
  // Outlives the callback, which goes on for a moment after the writer is gone.
  struct Shared {
    absl::Mutex mutex;
    std::unique_ptr<Writer> writer ABSL_GUARDED_BY(mutex);
    absl::Notification dropped;
  };
  const auto shared = std::make_shared<Shared>();
  auto opened = harness_.engine().OpenWriter(Name(), {.progress = [shared](const IngestProgress&) {
                                               absl::MutexLock lock(&shared->mutex);
                                               if (shared->writer == nullptr) return;
                                               shared->writer.reset();
                                               shared->dropped.Notify();
                                             }});
  ASSERT_TRUE(opened.ok());
  {
    absl::MutexLock lock(&shared->mutex);
    shared->writer = *std::move(opened);
    ASSERT_TRUE(shared->writer->Append(0, "text").ok());
  }
  shared->dropped.WaitForNotification();
  TestWriter next(harness_.engine(), Name());
  EXPECT_EQ(next->accepted_bytes(), 4);
}

TEST_F(WriterTest, DroppedWriterLeavesTextThatIsDerivedAllTheSame) {
  const std::string text = RandomText(7, 300);
  {
    TestWriter writer(harness_.engine(), Name());
    writer.Send(text);
  }
  const auto found = harness_.engine().Retrieve(
      {.memories = {harness_.Memory("m")},
       .question = "x",
       .barriers = {{.document = Name(), .visible_bytes = static_cast<int64_t>(text.size())}}},
      {.deadline = absl::Now() + kPatience});
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(harness_.DerivedDiffers("m", "d", text), "");
}

}  // namespace
}  // namespace mneme
