// Retrieve with rerank: what a second look at the pages makes of the order of landmarks. The fake
// model's look adds FakeModel::kLookBonus to chunks with a word that the question need not have.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/engine/engine_harness.h"
#include "tests/reference/chunk_weights_reference.h"

namespace mneme {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// Of the fake model: as many chunks as four tokens read.
constexpr size_t kCandidates = 16;

class RerankTest : public ::testing::Test {
 protected:
  RerankTest() {
    harness_.CreateMemory("m");
    harness_.model().LookFor("zebra");
  }

  absl::StatusOr<RetrieveResult> Ask(const std::string& question, int k, bool rerank = true,
                                     CallContext context = {.deadline = absl::Now() + kPatience}) {
    return harness_.engine().Retrieve(
        {.memories = {harness_.Memory("m")}, .question = question, .k = k, .rerank = rerank},
        context);
  }
  // A document of each text, the oldest first.
  void IngestChunks(const std::vector<std::string>& texts) {
    for (size_t i = 0; i < texts.size(); ++i) {
      harness_.Ingest("m", absl::StrCat("d", i), texts[i], true);
    }
  }
  double Derived() const { return harness_.Metric("mneme_pages_rederived_total"); }
  double Unavailable() const { return harness_.Metric("mneme_pages_unavailable_total"); }
  void LosePages() {
    harness_.Stop();
    harness_.LoseTable(Table::kPages);
    harness_.Start();
  }

  EngineHarness harness_;
};

std::vector<std::string> Texts(const RetrieveResult& result) {
  std::vector<std::string> texts;
  for (const Passage& passage : result.passages) texts.push_back(passage.text);
  return texts;
}

// Documents, chunks and all numbers of each passage.
using Found = std::vector<std::tuple<std::string, int64_t, double, double, double>>;
Found AllOf(const RetrieveResult& result) {
  Found found;
  for (const Passage& p : result.passages) {
    found.emplace_back(p.document, p.chunk_index, p.score, p.weight, p.rerank_score.value_or(-1));
  }
  return found;
}

TEST_F(RerankTest, PassagesComeInTheOrderOfTheSecondLook) {
  IngestChunks({"the otter swam", "a zebra slept", "the otter swam home"});
  const auto by_landmark = Ask("the otter swam", 3, /*rerank=*/false);
  ASSERT_TRUE(by_landmark.ok()) << by_landmark.status();
  EXPECT_THAT(Texts(*by_landmark),
              ElementsAre("the otter swam home", "the otter swam", "a zebra slept"));
  for (const Passage& passage : by_landmark->passages) EXPECT_FALSE(passage.rerank_score);
  EXPECT_THAT(harness_.model().looked_pages(), IsEmpty());

  const auto again = Ask("the otter swam", 3);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_THAT(Texts(*again), ElementsAre("a zebra slept", "the otter swam home", "the otter swam"));
  const Passage& zebra = again->passages[0];
  EXPECT_EQ(zebra.score, by_landmark->passages[2].score);
  EXPECT_EQ(zebra.rerank_score, zebra.score + FakeModel::kLookBonus);
  for (size_t i = 1; i < 3; ++i) {
    EXPECT_EQ(again->passages[i].score, by_landmark->passages[i - 1].score);
    EXPECT_EQ(again->passages[i].rerank_score, again->passages[i].score);
  }
  EXPECT_GT(again->seconds.read, 0);
  EXPECT_GT(harness_.Metric("mneme_engine_stage_seconds_count{stage=\"look\"}"), 0);
}

TEST_F(RerankTest, FourReadsOfChunksAreLookedAtAndMoreWhereMoreAreWanted) {
  // The only zebra is the last of 20 chunks by its landmark, whose every chunk fits the question.
  std::vector<std::string> texts = {"a zebra slept"};
  for (int i = 0; i < 19; ++i) texts.push_back("the otter swam");
  IngestChunks(texts);
  for (const int k : {1, 8, 16, 19}) {
    const auto result = Ask("the otter swam", k);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_THAT(result->passages, SizeIs(k));
    EXPECT_EQ(result->passages[0].text, "the otter swam") << k;
    EXPECT_EQ(harness_.model().looked_pages().back(), std::max<size_t>(kCandidates, k));
  }
  const auto all = Ask("the otter swam", 20);
  EXPECT_EQ(all->passages[0].text, "a zebra slept");
  const auto more = Ask("the otter swam", 256);
  ASSERT_THAT(more->passages, SizeIs(20));
  EXPECT_EQ(more->passages[0].text, "a zebra slept");
  // One that is not wanted by landmarks alone, but is among those looked at.
  harness_.Ingest("m", "new", "the zebra", true);
  EXPECT_EQ(Ask("the zebra otter", 1)->passages[0].text, "the zebra");
}

TEST_F(RerankTest, WeightsAreThoseOfTheReading) {
  harness_.Ingest("m", "d", RandomText(4, 200) + " zebra " + RandomText(5, 100));
  const auto by_landmark = Ask("the lighthouse keeper wrote down every ship", 16, false);
  for (const int newest_margin : {0, 2}) {
    SCOPED_TRACE(newest_margin);
    harness_.model().set_newest_margin(newest_margin);
    const auto result = Ask("the lighthouse keeper wrote down every ship", 16);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_THAT(result->passages, SizeIs(16));
    // The network still reads the best four by landmark; their new scores share the weight out.
    std::vector<const Passage*> read;
    for (size_t i = 0; i < 4; ++i) {
      const auto same = std::find_if(
          result->passages.begin(), result->passages.end(), [&](const Passage& passage) {
            return passage.chunk_index == by_landmark->passages[i].chunk_index;
          });
      ASSERT_NE(same, result->passages.end());
      read.push_back(&*same);
    }
    std::sort(read.begin(), read.end(),
              [](const Passage* a, const Passage* b) { return a->chunk_index > b->chunk_index; });
    std::vector<double> scores;
    for (const Passage* passage : read) scores.push_back(*passage->rerank_score);
    const std::vector<double> want = ChunkWeightsReference(scores, newest_margin);
    double sum = 0, all = 0;
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_NEAR(read[i]->weight, want[i], 1e-5);
      sum += read[i]->weight;
    }
    for (const Passage& passage : result->passages) all += passage.weight;
    EXPECT_NEAR(all, sum, 1e-12) << "others weigh nothing";
  }
}

TEST_F(RerankTest, ExplainDoesNotChangeTheAnswer) {
  harness_.Ingest("m", "d", RandomText(8, 300) + " zebra " + RandomText(9, 300));
  RetrieveOptions options{.memories = {harness_.Memory("m")},
                          .question = RandomQuestion(9, 40),
                          .k = 12,
                          .rerank = true};
  const auto plain = harness_.engine().Retrieve(options, {});
  options.explain = true;
  const auto explained = harness_.engine().Retrieve(options, {});
  ASSERT_TRUE(plain.ok() && explained.ok());
  EXPECT_EQ(AllOf(*plain), AllOf(*explained));
  ASSERT_FALSE(explained->explanation.empty());
  EXPECT_THAT(explained->explanation[0].weights, SizeIs(12));
}

// Of fewer pages than are looked at, or hardly more: they are not all pinned at one time.
TEST_F(RerankTest, SmallHostTierDoesNotChangeTheAnswer) {
  constexpr uint64_t kQuestions = 10;
  harness_.Ingest("m", "d", RandomText(8, 400) + " zebra " + RandomText(9, 400));
  std::vector<Found> before;
  for (uint64_t i = 0; i < kQuestions; ++i) {
    before.push_back(AllOf(*Ask(RandomQuestion(i, 40), 12)));
  }
  for (const Retention retention : {Retention::kKeep, Retention::kText}) {
    ASSERT_TRUE(
        harness_.engine().UpdateMemory(harness_.Memory("m"), {.retention = retention}).ok());
    for (const int pages : {24, 16, 12, 8}) {
      SCOPED_TRACE(pages);
      harness_.store_options().host_page_bytes_max = pages * 64;
      LosePages();
      for (uint64_t i = 0; i < kQuestions; ++i) {
        const auto result = Ask(RandomQuestion(i, 40), 12);
        ASSERT_TRUE(result.ok()) << result.status();
        EXPECT_EQ(AllOf(*result), before[i]) << i;
      }
      EXPECT_EQ(Unavailable(), 0);
    }
  }
}

TEST_F(RerankTest, PagesAreReadFromTheDiskOrDerivedAgain) {
  harness_.Ingest("m", "d", RandomText(1, 200) + " zebra " + RandomText(2, 200), true);
  const auto before = Ask("the wind from the north", 8);
  ASSERT_TRUE(before.ok()) << before.status();
  harness_.Restart();
  EXPECT_EQ(AllOf(*Ask("the wind from the north", 8)), AllOf(*before));
  EXPECT_EQ(Derived(), 0);
  LosePages();
  EXPECT_EQ(AllOf(*Ask("the wind from the north", 8)), AllOf(*before));
  EXPECT_GT(Derived(), 0);
  EXPECT_EQ(Unavailable(), 0);
  ASSERT_GT(harness_.Damage(Table::kPages, ""), 0);
  harness_.Restart();
  EXPECT_EQ(AllOf(*Ask("the wind from the north", 8)), AllOf(*before));
}

TEST_F(RerankTest, ChunksWithoutAPageKeepTheirOrderBehindTheOthers) {
  // Text of the first document's one segment lies in two records, the second of which is damaged.
  {
    TestWriter writer(harness_.engine(), harness_.Document("m", "half"));
    for (const char* part :
         {"the otter swam home and others slept by the river then", " an end with quicksilver"}) {
      const int64_t end = writer->accepted_bytes() + static_cast<int64_t>(std::strlen(part));
      writer.Send(part);
      ASSERT_TRUE(writer->Flush().ok());
      ASSERT_TRUE(writer.WaitVisible(end));
    }
  }
  harness_.Ingest("m", "whole", "a whole one", true);
  harness_.Ingest("m", "striped", "the zebra", true);
  const auto before = Ask("the otter swam home", 8);
  ASSERT_TRUE(before.ok()) << before.status();
  EXPECT_EQ(before->passages[0].document, harness_.Document("m", "striped"));
  EXPECT_EQ(before->passages[1].document, harness_.Document("m", "half"));

  ASSERT_EQ(harness_.Damage(Table::kText, "quicksilver"), 1);
  LosePages();
  const auto result = Ask("the otter swam home", 8);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_GT(Unavailable(), 0);
  ASSERT_GE(result->passages.size(), 3u);
  EXPECT_EQ(result->passages[0].text, "the zebra");
  EXPECT_EQ(result->passages[1].text, "a whole one");
  for (size_t i = 0; i < result->passages.size(); ++i) {
    const Passage& passage = result->passages[i];
    EXPECT_EQ(passage.rerank_score.has_value(), i < 2);
    if (i < 2) continue;
    EXPECT_EQ(passage.document, harness_.Document("m", "half"));
    EXPECT_EQ(passage.weight, 0) << "as though it had not been chosen";
    if (i > 2) {
      EXPECT_LE(passage.score, result->passages[i - 1].score);
    }
  }
  EXPECT_EQ(result->passages[2].text.substr(0, 9), "the otter");
  EXPECT_GT(result->damaged_passages, 0);
}

TEST_F(RerankTest, DocumentDeletedUnderAQuestionIsDoneWithout) {
  harness_.Ingest("m", "a", "the zebra crossed", true);
  harness_.Ingest("m", "b", "the otter stayed", true);
  absl::SleepFor(absl::Milliseconds(2));
  Gate& gate = harness_.NewGate();
  harness_.model().OnRead([&] {
    gate.Pass();
    return absl::OkStatus();
  });
  std::thread question([&] {
    // The view of the past is there before the network runs.
    const auto result = harness_.engine().Retrieve({.memories = {harness_.Memory("m")},
                                                    .as_of = absl::Now(),
                                                    .question = "zebra",
                                                    .rerank = true},
                                                   {.deadline = absl::Now() + kPatience});
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_THAT(Texts(*result), ElementsAre("the otter stayed"));
  });
  ASSERT_TRUE(gate.WaitArrived(1));
  ASSERT_TRUE(harness_.engine().DeleteDocument(harness_.Document("m", "a")).ok());
  gate.Open();
  question.join();
}

TEST_F(RerankTest, QuestionsThatArriveTogetherAreLookedAtTogetherAndGetTheSame) {
  constexpr size_t kQuestions = 12;
  harness_.Ingest("m", "d", RandomText(11, 300) + " zebra " + RandomText(12, 300));
  // Every third one wants no second look.
  const auto ask = [&](size_t i) {
    return Ask(RandomQuestion(i, 8), static_cast<int>(5 + i), i % 3 != 0);
  };
  std::vector<Found> alone;
  for (size_t i = 0; i < kQuestions; ++i) alone.push_back(AllOf(*ask(i)));
  const size_t looks_before = harness_.model().looked_pages().size();

  Gate& gate = harness_.NewGate();
  harness_.model().OnRead([&] {
    gate.Pass();
    return absl::OkStatus();
  });
  std::thread first([&] { EXPECT_TRUE(Ask("holds up the others", 1, false).ok()); });
  ASSERT_TRUE(gate.WaitArrived(1));
  std::vector<std::thread> threads;
  std::vector<Found> together(kQuestions);
  for (size_t i = 0; i < kQuestions; ++i) {
    threads.emplace_back([&, i] { together[i] = AllOf(*ask(i)); });
  }
  EXPECT_TRUE(harness_.WaitMetric("mneme_engine_queue_depth{queue=\"read_steps\"}", kQuestions));
  gate.Open();
  first.join();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(together, alone);
  const std::vector<size_t> looked = harness_.model().looked_pages();
  ASSERT_EQ(looked.size(), looks_before + 1);
  EXPECT_EQ(looked.back(), kQuestions * 2 / 3 * kCandidates);
}

TEST_F(RerankTest, EmptyMemoryGivesNoPassages) {
  const auto result = Ask("zebra", 8);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->passages, IsEmpty());
}

TEST_F(RerankTest, ANetworkWithoutASecondLookSaysSo) {
  EngineHarness plain;
  plain.CreateMemory("m");
  const absl::Status status =
      plain.engine()
          .Retrieve({.memories = {plain.Memory("m")}, .question = "x", .rerank = true}, {})
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("the bundle has look_heads 0"));
}

TEST_F(RerankTest, LimitsAndDeadlinesAreThoseOfOtherRetrievals) {
  harness_.Ingest("m", "d", "the zebra crossed", true);
  EXPECT_EQ(Ask("x", 0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Ask("x", 257).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Ask("x", 1, true, {.deadline = absl::Now() - absl::Seconds(1)}).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  // Until the last look for it, whenever that is.
  for (int calls = 0; calls < 100; ++calls) {
    int left = calls;
    const absl::Status status =
        Ask("x", 1, true, {.cancelled = [&] { return left-- == 0; }}).status();
    if (left >= 0) {
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_GT(calls, 2);
      break;
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  }
}

}  // namespace
}  // namespace mneme
