// Retrieve: ranking, weights, text, limits, barriers, and questions that share a scan.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/supervisor.h"
#include "common/utf8.h"
#include "engine/engine_metrics.h"
#include "engine/page_source.h"
#include "engine/read_batcher.h"
#include "tests/engine/engine_harness.h"
#include "tests/reference/chunk_weights_reference.h"

namespace mneme {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

class RetrieveTest : public ::testing::Test {
 protected:
  RetrieveTest() { harness_.CreateMemory("m"); }

  absl::StatusOr<RetrieveResult> Ask(const std::string& question, int k = 3,
                                     std::vector<std::string> memories = {"m"}) {
    RetrieveOptions options{.question = question, .k = k};
    for (const std::string& memory : memories) {
      options.memories.push_back(harness_.Memory(memory));
    }
    return harness_.engine().Retrieve(options, {.deadline = absl::Now() + kPatience});
  }

  EngineHarness harness_;
};

TEST_F(RetrieveTest, BestPassageComesFirstWithItsPlaceAndText) {
  const std::string text = RandomText(1, 400) + " the zebra quietly crossed " + RandomText(2, 400);
  harness_.Ingest("m", "d", text);
  const auto result = Ask("which zebra quietly crossed");
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_THAT(result->passages, SizeIs(3));
  const Passage& best = result->passages[0];
  EXPECT_THAT(best.text, HasSubstr("zebra"));
  EXPECT_EQ(best.document, harness_.Document("m", "d"));
  EXPECT_EQ(best.text, text.substr(static_cast<size_t>(best.byte_begin),
                                   static_cast<size_t>(best.byte_end - best.byte_begin)));
  EXPECT_GE(best.score, result->passages[1].score);
  EXPECT_GE(result->passages[1].score, result->passages[2].score);
  EXPECT_EQ(result->chunks_scanned,
            harness_.engine().GetDocument(harness_.Document("m", "d"))->chunk_count);
  EXPECT_GT(result->seconds.total, 0);
}

TEST_F(RetrieveTest, PassagesTileTheText) {
  const std::string text = RandomText(3, 200);
  harness_.Ingest("m", "d", text);
  auto result = Ask("x", 256);
  ASSERT_TRUE(result.ok()) << result.status();
  std::sort(result->passages.begin(), result->passages.end(),
            [](const Passage& a, const Passage& b) { return a.chunk_index < b.chunk_index; });
  std::string joined;
  for (size_t i = 0; i < result->passages.size(); ++i) {
    EXPECT_EQ(result->passages[i].chunk_index, static_cast<int64_t>(i));
    joined += result->passages[i].text;
  }
  EXPECT_EQ(joined, text);
}

TEST_F(RetrieveTest, WeightsAreThoseOfTheNetworksOwnSelection) {
  harness_.Ingest("m", "d", RandomText(4, 300));
  for (const int newest_margin : {0, 2}) {
    SCOPED_TRACE(newest_margin);
    harness_.model().set_newest_margin(newest_margin);
    const auto result = Ask("the lighthouse keeper wrote down every ship", 20);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_THAT(result->passages, SizeIs(20));
    // The network reads 4 chunks; the best 4, most recent first, share the weight.
    std::vector<const Passage*> read;
    for (size_t i = 0; i < 4; ++i) read.push_back(&result->passages[i]);
    std::sort(read.begin(), read.end(),
              [](const Passage* a, const Passage* b) { return a->chunk_index > b->chunk_index; });
    std::vector<double> scores;
    for (const Passage* passage : read) scores.push_back(passage->score);
    const std::vector<double> want = ChunkWeightsReference(scores, newest_margin);
    for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(read[i]->weight, want[i], 1e-5);
    for (size_t i = 4; i < 20; ++i) EXPECT_EQ(result->passages[i].weight, 0);
  }
}

TEST_F(RetrieveTest, NewerOfTwoEqualMatchesComesFirst) {
  harness_.Ingest("m", "older", "the pass key is blue", true);
  harness_.Ingest("m", "newer", "the pass key is blue", true);
  const auto result = Ask("pass key", 2);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->passages[0].document, harness_.Document("m", "newer"));
  EXPECT_EQ(result->passages[0].score, result->passages[1].score);
  EXPECT_GT(result->passages[0].weight, result->passages[1].weight);
}

TEST_F(RetrieveTest, OrderAndRepetitionOfMemoriesDoNotMatter) {
  harness_.CreateMemory("n");
  harness_.Ingest("n", "a", RandomText(5, 100));
  harness_.Ingest("m", "b", RandomText(6, 100));
  harness_.Ingest("n", "c", RandomText(7, 100));
  const auto one = Ask("the wind from the north", 10, {"m", "n"});
  const auto other = Ask("the wind from the north", 10, {"n", "m", "n", "m"});
  ASSERT_TRUE(one.ok()) << one.status();
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(one->chunks_scanned, other->chunks_scanned);
  ASSERT_EQ(one->passages.size(), other->passages.size());
  for (size_t i = 0; i < one->passages.size(); ++i) {
    EXPECT_EQ(one->passages[i].document, other->passages[i].document);
    EXPECT_EQ(one->passages[i].chunk_index, other->passages[i].chunk_index);
    EXPECT_EQ(one->passages[i].weight, other->passages[i].weight);
  }
}

TEST_F(RetrieveTest, ExplanationHasAWeightForEachWordAndPassage) {
  harness_.Ingest("m", "a", "the zebra crossed", true);
  harness_.Ingest("m", "b", "an otter swam", true);
  const std::string question = "zebra or otter";
  const auto result = harness_.engine().Retrieve(
      {.memories = {harness_.Memory("m")}, .question = question, .k = 2, .explain = true}, {});
  ASSERT_TRUE(result.ok()) << result.status();
  std::string joined;
  for (const TokenExplanation& token : result->explanation) {
    joined += token.text;
    ASSERT_THAT(token.weights, SizeIs(2));
    for (double weight : token.weights) {
      EXPECT_GE(weight, 0);
      EXPECT_LE(weight, 1);
    }
  }
  EXPECT_EQ(joined, question);
  // At the first word nothing of the otter was asked yet: the otter's own score is 0, the zebra's
  // above.
  const size_t zebra = result->passages[0].text.find("zebra") != std::string::npos ? 0 : 1;
  const auto& first = result->explanation.front().weights;
  EXPECT_GT(first[zebra], 0.25);
}

TEST_F(RetrieveTest, ExplainDoesNotChangeTheAnswer) {
  harness_.Ingest("m", "d", RandomText(8, 300));
  RetrieveOptions options{
      .memories = {harness_.Memory("m")}, .question = RandomQuestion(9, 40), .k = 12};
  const auto plain = harness_.engine().Retrieve(options, {});
  options.explain = true;
  const auto explained = harness_.engine().Retrieve(options, {});
  ASSERT_TRUE(plain.ok() && explained.ok());
  ASSERT_EQ(plain->passages.size(), explained->passages.size());
  for (size_t i = 0; i < plain->passages.size(); ++i) {
    EXPECT_EQ(plain->passages[i].chunk_index, explained->passages[i].chunk_index);
    EXPECT_EQ(plain->passages[i].weight, explained->passages[i].weight);
  }
  EXPECT_THAT(plain->explanation, IsEmpty());
}

TEST_F(RetrieveTest, ContextIsAddedToTheTextAndCutBetweenCharacters) {
  const std::string text = RandomText(10, 400);
  harness_.Ingest("m", "d", text);
  for (int context = 0; context < 12; ++context) {
    const auto result = harness_.engine().Retrieve(
        {.memories = {harness_.Memory("m")}, .question = "wind", .k = 30, .context_bytes = context},
        {});
    ASSERT_TRUE(result.ok()) << result.status();
    for (const Passage& passage : result->passages) {
      EXPECT_EQ(ValidUtf8Prefix(passage.text).valid_bytes, passage.text.size());
      const std::string own =
          text.substr(static_cast<size_t>(passage.byte_begin),
                      static_cast<size_t>(passage.byte_end - passage.byte_begin));
      EXPECT_THAT(passage.text, HasSubstr(own));
      EXPECT_LE(passage.text.size(), own.size() + 2 * static_cast<size_t>(context));
      EXPECT_GE(passage.text.size() + 6,
                std::min(own.size() + static_cast<size_t>(context), text.size()));
    }
  }
}

TEST_F(RetrieveTest, EmptyMemoryGivesNoPassages) {
  const auto result = Ask("anything");
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->passages, IsEmpty());
  EXPECT_EQ(result->chunks_scanned, 0);
}

TEST_F(RetrieveTest, QuestionsThatAreNoneAreRefused) {
  EXPECT_EQ(Ask("").status().code(), absl::StatusCode::kInvalidArgument);
  const auto bad = Ask("what is \xC3(");
  EXPECT_EQ(bad.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(bad.status()), HasSubstr("byte 8"));
  const auto cut = Ask("what is \xC3");
  EXPECT_EQ(cut.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(RetrieveTest, QuestionMayFillASegmentAndNoMore) {
  // One token a word.
  std::string question;
  for (int i = 0; i < 62; ++i) question += i == 0 ? "the" : " the";
  EXPECT_TRUE(Ask(question).ok());
  const auto longer = Ask(question + " the");
  EXPECT_EQ(longer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(longer.status()), HasSubstr("65 tokens"));
  EXPECT_THAT(Message(longer.status()), HasSubstr("limit 64"));
}

TEST_F(RetrieveTest, KHasItsLimits) {
  for (int k : {-1, 0, 257, 1'000'000}) {
    const auto result = Ask("x", k);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(result.status()), HasSubstr(absl::StrCat(k)));
  }
  EXPECT_TRUE(Ask("x", 256).ok());
}

TEST_F(RetrieveTest, MemoriesMustBeNamedExistAndBeOfOneTenant) {
  EXPECT_EQ(Ask("x", 3, {}).status().code(), absl::StatusCode::kInvalidArgument);
  const auto unknown = Ask("x", 3, {"m", "nowhere"});
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(unknown.status()), HasSubstr("memories/nowhere"));
  EXPECT_EQ(Ask("x", 3, std::vector<std::string>(65, "m")).status().code(),
            absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(harness_.engine().CreateMemory("tenants/other/memories/m", "").ok());
  const auto two = harness_.engine().Retrieve(
      {.memories = {harness_.Memory("m"), "tenants/other/memories/m"}, .question = "x"}, {});
  EXPECT_EQ(two.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(two.status()), HasSubstr("other"));
}

TEST_F(RetrieveTest, DeadlineInThePastAndCancellationAreHonoured) {
  RetrieveOptions options{.memories = {harness_.Memory("m")}, .question = "x"};
  EXPECT_EQ(harness_.engine()
                .Retrieve(options, {.deadline = absl::Now() - absl::Seconds(1)})
                .status()
                .code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(harness_.engine().Retrieve(options, {.cancelled = [] { return true; }}).status().code(),
            absl::StatusCode::kCancelled);
}

TEST_F(RetrieveTest, QuestionSeesWhatItsBarrierNames) {
  harness_.Stop();
  harness_.options().idle_flush = absl::Hours(1);
  harness_.Start();
  TestWriter writer(harness_.engine(), harness_.Document("m", "d"));
  writer.Send("the zebra crossed");
  ASSERT_TRUE(writer.WaitDurable(17));
  // The barrier hastens the open segment, which would rest for an hour.
  const auto result = harness_.engine().Retrieve(
      {.memories = {harness_.Memory("m")},
       .question = "zebra",
       .barriers = {{.document = harness_.Document("m", "d"), .visible_bytes = 17}}},
      {.deadline = absl::Now() + kPatience});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->passages, SizeIs(1));
}

TEST_F(RetrieveTest, BarrierWaitsForTextThatHasNotComeYet) {
  TestWriter writer(harness_.engine(), harness_.Document("m", "d"));
  std::atomic<bool> answered{false};
  std::thread question([&] {
    const auto result = harness_.engine().Retrieve(
        {.memories = {harness_.Memory("m")},
         .question = "zebra",
         .barriers = {{.document = harness_.Document("m", "d"), .visible_bytes = 17}}},
        {.deadline = absl::Now() + kPatience});
    answered = true;
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_THAT(result->passages[0].text, HasSubstr("crossed"));
  });
  writer.Send("the zebra");
  ASSERT_TRUE(writer.WaitVisible(9));
  EXPECT_FALSE(answered);
  writer.Send(" crossed");
  question.join();
}

TEST_F(RetrieveTest, BarrierEndsWithTheDeadlineTheCallerOrTheDocument) {
  harness_.Ingest("m", "d", "short");
  RetrieveOptions options{
      .memories = {harness_.Memory("m")},
      .question = "x",
      .barriers = {{.document = harness_.Document("m", "d"), .visible_bytes = 1000}}};
  EXPECT_EQ(harness_.engine()
                .Retrieve(options, {.deadline = absl::Now() + absl::Milliseconds(30)})
                .status()
                .code(),
            absl::StatusCode::kDeadlineExceeded);
  std::atomic<int> asked{0};
  EXPECT_EQ(harness_.engine()
                .Retrieve(options, {.cancelled = [&] { return asked.fetch_add(1) > 3; }})
                .status()
                .code(),
            absl::StatusCode::kCancelled);
  std::atomic<bool> waiting{false};
  std::thread question([&] {
    EXPECT_EQ(harness_.engine()
                  .Retrieve(options, {.deadline = absl::Now() + kPatience,
                                      .cancelled =
                                          [&] {
                                            waiting = true;
                                            return false;
                                          }})
                  .status()
                  .code(),
              absl::StatusCode::kNotFound);
  });
  while (!waiting) std::this_thread::yield();
  ASSERT_TRUE(harness_.engine().DeleteDocument(harness_.Document("m", "d")).ok());
  question.join();
  options.barriers[0].visible_bytes = -1;
  EXPECT_EQ(harness_.engine().Retrieve(options, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(RetrieveTest, BarrierThatCannotComeTrueIsRefused) {
  harness_.Ingest("m", "sealed", "short", /*seal=*/true);
  TestWriter writer(harness_.engine(), harness_.Document("m", "open"));
  writer.Send("short");
  const auto ask = [&](const std::string& document, int64_t visible_bytes,
                       std::function<bool()> cancelled = nullptr) {
    return harness_.engine()
        .Retrieve({.memories = {harness_.Memory("m")},
                   .question = "x",
                   .barriers = {{harness_.Document("m", document), visible_bytes}}},
                  {.deadline = absl::Now() + kPatience, .cancelled = std::move(cancelled)})
        .status();
  };
  EXPECT_TRUE(ask("sealed", 5).ok());
  const absl::Status beyond = ask("sealed", 6);
  EXPECT_EQ(beyond.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(beyond), HasSubstr("ends at byte 5; 6 were asked for"));
  const absl::Status too_long = ask("open", harness_.options().document_bytes_max + 1);
  EXPECT_EQ(too_long.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(too_long), HasSubstr(absl::StrCat(harness_.options().document_bytes_max)));
  // The end comes while a question waits.
  std::atomic<bool> waiting{false};
  std::thread question([&] {
    EXPECT_EQ(ask("open", 6,
                  [&] {
                    waiting = true;
                    return false;
                  })
                  .code(),
              absl::StatusCode::kFailedPrecondition);
  });
  while (!waiting) std::this_thread::yield();
  ASSERT_TRUE(writer->Seal().ok());
  question.join();
}

// A question of 4096 tokens with `explain` holds the chunks of every row until it is answered.
TEST_F(RetrieveTest, OnlyTheLastRowOfAStepHasMoreChunksThanTheNetworkReads) {
  harness_.Ingest("m", "d", RandomText(31, 300));
  const FakeModel model;
  const auto backend = CreateCpuBackend({.threads = 1});
  ASSERT_TRUE(backend.ok()) << backend.status();
  const SegmentShape shape = SegmentShape::Of(model);
  Metrics registry;
  EngineMetrics metrics(registry, harness_.options());
  Supervisor supervisor(registry, RealClock());
  PageSource pages(model, shape, harness_.store(), metrics, /*threads=*/1);
  ReadBatcher batcher(model, **backend, harness_.store(), pages, metrics, supervisor);
  const auto state = model.NewReaderState();
  ReadScope scope{.memories = {harness_.store().GetMemory("default", "m")->uid}};
  const std::vector<TokenId> ids = {300, 301, 302};
  ReadStep step{
      .state = state.get(), .ids = ids, .scope = &scope, .select = ReadStep::Rows::kAll, .k = 20};
  ASSERT_TRUE(batcher.Run(step).ok());
  EXPECT_THAT(step.rows, ElementsAre(SizeIs(4), SizeIs(4), SizeIs(20)));
}

TEST_F(RetrieveTest, QuestionsThatArriveTogetherShareOnePass) {
  constexpr int kQuestions = 16;
  harness_.CreateMemory("n");
  harness_.Ingest("m", "d", RandomText(11, 500));
  harness_.Ingest("n", "d", RandomText(12, 500));
  const std::vector<std::vector<std::string>> memories = {{"m"}, {"m", "n"}};
  std::vector<RetrieveResult> alone;
  for (int i = 0; i < kQuestions; ++i) {
    alone.push_back(*Ask(RandomQuestion(static_cast<uint64_t>(i), 8), 5 + i,
                         memories[static_cast<size_t>(i % 2)]));
  }
  const size_t batches_before = harness_.model().read_batches().size();
  const double scanned_before = harness_.Metric("mneme_landmarks_scanned_total");

  std::vector<absl::StatusOr<RetrieveResult>> together(kQuestions);
  std::vector<std::function<void()>> questions;
  for (int i = 0; i < kQuestions; ++i) {
    questions.emplace_back([&, i] {
      together[static_cast<size_t>(i)] = Ask(RandomQuestion(static_cast<uint64_t>(i), 8), 5 + i,
                                             memories[static_cast<size_t>(i % 2)]);
    });
  }
  harness_.RunTogether([&] { EXPECT_TRUE(Ask("the first, which holds up the others").ok()); },
                       questions);

  const std::vector<size_t> batches = harness_.model().read_batches();
  ASSERT_EQ(batches.size(), batches_before + 2);
  EXPECT_EQ(batches.back(), static_cast<size_t>(kQuestions));
  // One scan of each view, beside that of the first question.
  const double m = static_cast<double>(alone[0].chunks_scanned);
  const double both = static_cast<double>(alone[1].chunks_scanned);
  EXPECT_EQ(harness_.Metric("mneme_landmarks_scanned_total") - scanned_before, m + m + both);
  for (size_t i = 0; i < kQuestions; ++i) {
    ASSERT_TRUE(together[i].ok()) << together[i].status();
    ASSERT_EQ(together[i]->passages.size(), alone[i].passages.size());
    for (size_t j = 0; j < alone[i].passages.size(); ++j) {
      EXPECT_EQ(together[i]->passages[j].chunk_index, alone[i].passages[j].chunk_index);
      EXPECT_EQ(together[i]->passages[j].weight, alone[i].passages[j].weight);
    }
  }
}

TEST_F(RetrieveTest, ReadersBeyondTheLimitsAreTurnedAway) {
  harness_.Stop();
  harness_.options().readers_max = 1;
  harness_.options().readers_waiting_max = 1;
  harness_.Start();
  Gate& gate = harness_.NewGate();
  harness_.model().OnRead([&] {
    gate.Pass();
    return absl::OkStatus();
  });
  std::thread running([&] { EXPECT_TRUE(Ask("one").ok()); });
  ASSERT_TRUE(gate.WaitArrived(1));
  std::thread waiting([&] { EXPECT_TRUE(Ask("two").ok()); });
  ASSERT_TRUE(harness_.WaitMetric("mneme_engine_queue_depth{queue=\"readers_waiting\"}", 1));
  const auto third = Ask("three");
  EXPECT_EQ(third.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(third.status()), HasSubstr("limit 1"));
  gate.Open();
  running.join();
  waiting.join();
}

TEST_F(RetrieveTest, DeletedDocumentsAreGoneAtOnce) {
  harness_.Ingest("m", "a", "the zebra crossed", true);
  harness_.Ingest("m", "b", "the zebra stayed", true);
  ASSERT_TRUE(harness_.engine().DeleteDocument(harness_.Document("m", "a")).ok());
  const auto result = Ask("zebra");
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_THAT(result->passages, SizeIs(1));
  EXPECT_THAT(result->passages[0].text, HasSubstr("stayed"));
}

TEST_F(RetrieveTest, DamagedTextIsLeftOutOfTheAnswer) {
  harness_.Ingest("m", "a", "the zebra met quicksilver", true);
  harness_.Ingest("m", "b", "the zebra stayed", true);
  EXPECT_EQ(Ask("zebra")->damaged_passages, 0);
  ASSERT_EQ(harness_.Damage(Table::kText, "quicksilver"), 1);
  const auto result = Ask("zebra");
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_THAT(result->passages, SizeIs(1));
  EXPECT_THAT(result->passages[0].text, HasSubstr("stayed"));
  // Its chunks would all be passages: there are fewer than were asked for.
  const int64_t chunks = harness_.engine().GetDocument(harness_.Document("m", "a"))->chunk_count;
  EXPECT_EQ(result->damaged_passages, chunks);
  EXPECT_EQ(harness_.Metric("mneme_passages_damaged_total"), chunks);
  const absl::Status read = harness_.engine().ReadText(harness_.Document("m", "a"), 0, 5).status();
  EXPECT_EQ(read.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(read.message(), harness_.Document("m", "a") +
                                ": its stored text is damaged, somewhere in bytes 0 to 5");
}

TEST_F(RetrieveTest, MemoryDeletedUnderAQuestionIsNotFoundOrLeftOut) {
  harness_.Ingest("m", "d", RandomText(13, 200));
  Gate& gate = harness_.NewGate();
  harness_.model().OnRead([&] {
    gate.Pass();
    return absl::OkStatus();
  });
  std::thread question([&] { EXPECT_EQ(Ask("x").status().code(), absl::StatusCode::kNotFound); });
  ASSERT_TRUE(gate.WaitArrived(1));
  ASSERT_TRUE(harness_.engine().DeleteMemory(harness_.Memory("m")).ok());
  gate.Open();
  question.join();
}

TEST_F(RetrieveTest, LongQuestionsGoInStepsAndGiveTheSame) {
  // Steps are bounded by the host tier: with a tiny one, by one token.
  harness_.Ingest("m", "d", RandomText(14, 300));
  const std::string question = RandomQuestion(15, 40);
  const auto whole = Ask(question, 10);
  ASSERT_TRUE(whole.ok()) << whole.status();
  harness_.Stop();
  harness_.store_options().host_page_bytes_max = 16 * 64;
  harness_.Start();
  const auto stepped = Ask(question, 10);
  ASSERT_TRUE(stepped.ok()) << stepped.status();
  EXPECT_GT(harness_.model().read_batches().size(), 10u);
  for (size_t i = 0; i < 10; ++i) {
    EXPECT_EQ(whole->passages[i].chunk_index, stepped->passages[i].chunk_index);
    EXPECT_EQ(whole->passages[i].score, stepped->passages[i].score);
  }
}

}  // namespace
}  // namespace mneme
