// Engine: catalog, reading text, readiness, draining.

#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/engine/engine_harness.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(EngineTest, MemoriesAreCreatedListedAndDeleted) {
  EngineHarness harness;
  Engine& engine = harness.engine();
  for (const char* id : {"b", "a", "c"}) harness.CreateMemory(id);
  EXPECT_EQ(engine.CreateMemory(harness.Memory("a"), "").status().code(),
            absl::StatusCode::kAlreadyExists);
  const auto page = engine.ListMemories("tenants/default", "a", 1);
  ASSERT_TRUE(page.ok());
  ASSERT_THAT(*page, SizeIs(1));
  EXPECT_EQ((*page)[0].info.id, "b");
  harness.Ingest("b", "d", "some text", true);
  const auto stat = engine.GetMemory(harness.Memory("b"));
  ASSERT_TRUE(stat.ok());
  EXPECT_EQ(stat->totals.documents, 1);
  EXPECT_EQ(stat->totals.durable_bytes, 9);
  EXPECT_EQ(stat->totals.visible_bytes, 9);
  ASSERT_TRUE(engine.DeleteMemory(harness.Memory("b")).ok());
  const auto gone = engine.GetMemory(harness.Memory("b"));
  EXPECT_EQ(gone.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(gone.status()), HasSubstr("tenants/default/memories/b"));
  EXPECT_EQ(engine.DeleteMemory(harness.Memory("b")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(engine.GetMemory("memories/b").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(EngineTest, DocumentsAreListedInTheOrderInWhichTheyBegan) {
  EngineHarness harness;
  harness.CreateMemory("m");
  for (const char* id : {"z", "a", "k"}) harness.Ingest("m", id, "text", true);
  const auto all = harness.engine().ListDocuments(harness.Memory("m"), DocumentId{0}, 10);
  ASSERT_TRUE(all.ok());
  ASSERT_THAT(*all, SizeIs(3));
  EXPECT_EQ((*all)[0].id, "z");
  EXPECT_EQ((*all)[1].id, "a");
  const auto rest = harness.engine().ListDocuments(harness.Memory("m"), (*all)[0].uid, 1);
  ASSERT_THAT(*rest, SizeIs(1));
  EXPECT_EQ((*rest)[0].id, "a");
  EXPECT_EQ(harness.engine().ListDocuments(harness.Memory("n"), DocumentId{0}, 1).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(EngineTest, CountsHaveLimits) {
  EngineOptions options = EngineHarness::TestOptions();
  options.memories_per_tenant_max = 2;
  options.documents_per_memory_max = 2;
  EngineHarness harness(options);
  harness.CreateMemory("a");
  harness.CreateMemory("b");
  const auto third = harness.engine().CreateMemory(harness.Memory("c"), "");
  EXPECT_EQ(third.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(third.status()), HasSubstr("limit 2"));
  EXPECT_EQ(harness.engine().CreateMemory(harness.Memory("a"), "").status().code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(harness.engine().CreateMemory("tenants/other/memories/c", "").ok());
  harness.Ingest("a", "1", "x", true);
  harness.Ingest("a", "2", "x", true);
  EXPECT_EQ(harness.engine().OpenWriter(harness.Document("a", "3"), {}).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(harness.engine().OpenWriter(harness.Document("a", "1"), {}).ok());
}

TEST(EngineTest, TextIsReadBackInRanges) {
  EngineHarness harness;
  harness.CreateMemory("m");
  harness.Ingest("m", "d", "0123456789", true);
  Engine& engine = harness.engine();
  const std::string name = harness.Document("m", "d");
  EXPECT_EQ(*engine.ReadText(name, 2, 5), "234");
  EXPECT_EQ(*engine.ReadText(name, 10, 10), "");
  EXPECT_EQ(engine.ReadText(name, 5, 11).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(engine.ReadText(name, -1, 3).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(engine.ReadText(name, 5, 3).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(engine.ReadText(name, 0, (4 << 20) + 1).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(engine.ReadText(harness.Document("m", "none"), 0, 1).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(EngineTest, OptionsThatCannotWorkAreRefused) {
  FakeModel model;
  Metrics metrics;
  EngineHarness harness;
  auto backend = CreateCpuBackend({.threads = 1});
  ASSERT_TRUE(backend.ok());
  EngineOptions options;
  options.queue_segments_max = 0;
  const auto engine =
      Engine::Open(options, model, **backend, harness.store(), metrics, RealClock());
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(engine.status()), HasSubstr("queue_segments_max"));
  options = EngineOptions();
  options.retrieve_k_max = 1000;
  EXPECT_FALSE(Engine::Open(options, model, **backend, harness.store(), metrics, RealClock()).ok());
}

TEST(EngineTest, ReadinessEndsWithABackgroundThread) {
  EngineHarness harness;
  harness.CreateMemory("m");
  ASSERT_TRUE(harness.WaitReady());
  harness.model().OnForward([](FakeModel::Segments) -> absl::Status { throw std::bad_alloc(); });
  TestWriter writer(harness.engine(), harness.Document("m", "d"));
  writer.Send("text");
  while (harness.engine().Ready().ok()) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_THAT(Message(harness.engine().Ready()), HasSubstr("background thread derive failed"));
  EXPECT_EQ(harness.Metric("mneme_thread_alive{thread=\"derive\"}"), 0);
  EXPECT_EQ(harness.Metric("mneme_thread_failures_total{thread=\"derive\"}"), 1);
  // Text is durable all the same.
  EXPECT_TRUE(writer.WaitDurable(4));
}

TEST(EngineTest, AThreadThatHangsIsNamedAndReadinessComesBackWithIt) {
  EngineHarness harness;
  harness.UseSimulatedClock();
  harness.Restart();
  harness.CreateMemory("m");
  ASSERT_TRUE(harness.WaitReady());
  Gate& gate = harness.NewGate();
  harness.model().OnForward([&](FakeModel::Segments) {
    gate.Pass();
    return absl::OkStatus();
  });
  TestWriter writer(harness.engine(), harness.Document("m", "d"));
  writer.Send("text");
  ASSERT_TRUE(writer->Flush().ok());
  ASSERT_TRUE(gate.WaitArrived(1));
  harness.clock().Advance(harness.options().thread_stall_max + absl::Seconds(1));
  // The others, which wait for work, beat within a second.
  const std::string named = "background thread derive has shown no sign of life";
  for (int i = 0; i < 6000 && Message(harness.engine().Ready()).find(named) == std::string::npos;
       ++i) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_THAT(Message(harness.engine().Ready()), HasSubstr(named));
  EXPECT_EQ(harness.Metric("mneme_thread_alive{thread=\"derive\"}"), 1);
  gate.Open();
  EXPECT_TRUE(harness.WaitReady());
}

TEST(EngineTest, QuestionsFailTidilyWhenTheirThreadDies) {
  EngineHarness harness;
  harness.CreateMemory("m");
  harness.model().OnRead([]() -> absl::Status { throw std::bad_alloc(); });
  const auto result =
      harness.engine().Retrieve({.memories = {harness.Memory("m")}, .question = "x"}, {});
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInternal);
}

TEST(EngineTest, DrainMakesDurableWhatWasAccepted) {
  EngineHarness harness;
  harness.CreateMemory("m");
  const std::string text = RandomText(1, 300);
  TestWriter writer(harness.engine(), harness.Document("m", "d"));
  writer.Send(text);
  EXPECT_TRUE(harness.engine().Drain(absl::Now() + kPatience).ok());
  EXPECT_EQ(harness.engine().GetDocument(harness.Document("m", "d"))->durable_bytes,
            static_cast<int64_t>(text.size()));
  EXPECT_EQ(writer.WaitFailed().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(writer->Append(static_cast<int64_t>(text.size()), "x").code(),
            absl::StatusCode::kUnavailable);
  Engine& engine = harness.engine();
  EXPECT_EQ(engine.Ready().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(engine.OpenWriter(harness.Document("m", "e"), {}).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(
      engine.Retrieve({.memories = {harness.Memory("m")}, .question = "x"}, {}).status().code(),
      absl::StatusCode::kUnavailable);
}

TEST(EngineTest, DrainDoesNotWaitForDerivationWhichTheNextStartTakesUp) {
  EngineHarness harness;
  harness.CreateMemory("m");
  Gate& gate = harness.NewGate();
  harness.model().OnForward([&](FakeModel::Segments) {
    gate.Pass();
    return absl::OkStatus();
  });
  const std::string text = RandomText(2, 300);
  {
    TestWriter writer(harness.engine(), harness.Document("m", "d"));
    writer.Send(text);
    ASSERT_TRUE(gate.WaitArrived(1));
    ASSERT_TRUE(writer.WaitDurable(static_cast<int64_t>(text.size())));
    // A question that waits for the text to become visible does not hold it up either.
    absl::Status waited;
    std::thread question([&] {
      waited = harness.engine()
                   .Retrieve({.memories = {harness.Memory("m")},
                              .question = "x",
                              .barriers = {{.document = harness.Document("m", "d"),
                                            .visible_bytes = static_cast<int64_t>(text.size())}}},
                             {})
                   .status();
    });
    EXPECT_TRUE(harness.engine().Drain(absl::Now() + kPatience).ok());
    question.join();
    EXPECT_EQ(waited.code(), absl::StatusCode::kUnavailable);
  }
  gate.Open();
  harness.Restart();
  ASSERT_TRUE(harness.WaitReady());
  EXPECT_EQ(harness.DerivedDiffers("m", "d", text), "");
}

TEST(EngineTest, EveryLimitIsExportedBesideItsUse) {
  EngineHarness harness;
  for (const char* queue :
       {"commit_bytes", "segments", "readers_running", "readers_waiting", "read_steps"}) {
    EXPECT_GT(harness.Metric(absl::StrCat("mneme_engine_queue_limit{queue=\"", queue, "\"}")), 0);
    EXPECT_EQ(harness.Metric(absl::StrCat("mneme_engine_queue_depth{queue=\"", queue, "\"}")), 0);
  }
  EXPECT_EQ(harness.Metric("mneme_engine_limit{limit=\"retrieve_k_max\"}"), 256);
  for (const char* thread : {"commit", "encode", "derive", "read", "recovery"}) {
    EXPECT_EQ(harness.Metric(absl::StrCat("mneme_thread_alive{thread=\"", thread, "\"}")), 1);
    EXPECT_GE(
        harness.Metric(absl::StrCat("mneme_thread_last_beat_seconds{thread=\"", thread, "\"}")), 0);
    EXPECT_EQ(
        harness.Metric(absl::StrCat("mneme_thread_beat_limit_seconds{thread=\"", thread, "\"}")),
        absl::ToDoubleSeconds(harness.options().thread_stall_max));
  }
}

}  // namespace
}  // namespace mneme
