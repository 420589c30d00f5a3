// Retrieve with rerank: what a second look at the pages makes of the order of landmarks. The fake
// model's look adds FakeModel::kLookBonus to chunks with a word that the question need not have.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
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

// Looked at unless a question says how many.
constexpr size_t kCandidates = 64;
// Chunks that a token of the fake model reads.
constexpr size_t kChunksPerRead = 4;

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
  // The same of so many candidates.
  absl::StatusOr<RetrieveResult> AskOf(int candidates, const std::string& question, int k,
                                       bool rerank = true) {
    return harness_.engine().Retrieve({.memories = {harness_.Memory("m")},
                                       .question = question,
                                       .k = k,
                                       .rerank = rerank,
                                       .rerank_candidates = candidates},
                                      {.deadline = absl::Now() + kPatience});
  }
  // `otters` chunks that fit "the otter swam", and before them one that the look wants, which is
  // last of them all by its landmark.
  void IngestZebraBehind(int otters) {
    std::vector<std::string> texts = {"a zebra slept"};
    texts.resize(static_cast<size_t>(otters) + 1, "the otter swam");
    IngestChunks(texts);
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

TEST_F(RerankTest, SixtyFourAreLookedAtAndMoreWhereMoreAreWanted) {
  IngestZebraBehind(69);
  for (const int k : {1, 8, 64, 69}) {
    const auto result = Ask("the otter swam", k);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_THAT(result->passages, SizeIs(k));
    EXPECT_EQ(result->passages[0].text, "the otter swam") << k;
    EXPECT_EQ(harness_.model().looked_pages().back(), std::max<size_t>(kCandidates, k));
  }
  const auto all = Ask("the otter swam", 70);
  EXPECT_EQ(all->passages[0].text, "a zebra slept");
  const auto more = Ask("the otter swam", 256);
  ASSERT_THAT(more->passages, SizeIs(70));
  EXPECT_EQ(more->passages[0].text, "a zebra slept");
  // One that is not wanted by landmarks alone, but is among those looked at.
  harness_.Ingest("m", "new", "the zebra", true);
  EXPECT_EQ(Ask("the zebra otter", 1)->passages[0].text, "the zebra");
}

TEST_F(RerankTest, CandidatesSayHowFarDownTheLookFinds) {
  IngestZebraBehind(79);  // at place 80
  for (const int k : {1, 3, 79}) {
    SCOPED_TRACE(k);
    const auto fewer = AskOf(79, "the otter swam", k);
    ASSERT_TRUE(fewer.ok()) << fewer.status();
    ASSERT_THAT(fewer->passages, SizeIs(k));
    EXPECT_THAT(Texts(*fewer), ::testing::Each("the otter swam"));
    EXPECT_EQ(harness_.model().looked_pages().back(), 79u);

    const auto enough = AskOf(80, "the otter swam", k);
    ASSERT_TRUE(enough.ok()) << enough.status();
    ASSERT_THAT(enough->passages, SizeIs(k));
    EXPECT_EQ(enough->passages[0].text, "a zebra slept");
    EXPECT_EQ(harness_.model().looked_pages().back(), 80u);
    EXPECT_EQ(enough->chunks_scanned, 80) << "as without";
  }
}

TEST_F(RerankTest, FewerCandidatesThanTheNetworkReadsAreAllThatTakePart) {
  IngestZebraBehind(2);  // at place 3
  const auto by_landmark = Ask("the otter swam", 3, /*rerank=*/false);
  EXPECT_THAT(Texts(*by_landmark),
              ElementsAre("the otter swam", "the otter swam", "a zebra slept"));
  for (const int k : {1, 2}) {
    const auto two = AskOf(2, "the otter swam", k);
    ASSERT_TRUE(two.ok()) << two.status();
    ASSERT_THAT(two->passages, SizeIs(k));
    EXPECT_THAT(Texts(*two), ::testing::Each("the otter swam"));
    EXPECT_EQ(harness_.model().looked_pages().back(), 3u) << "for the weights of the reading";
  }
  const Found all = AllOf(*Ask("the otter swam", 3));
  EXPECT_EQ(std::get<0>(all[0]), harness_.Document("m", "d0"));
  EXPECT_EQ(AllOf(*AskOf(3, "the otter swam", 3)), all);
  const Found two = AllOf(*AskOf(2, "the otter swam", 2));
  EXPECT_EQ(two, Found(all.begin() + 1, all.end())) << "weights too";
}

TEST_F(RerankTest, MoreCandidatesThanTheMemoryHasAreAllItHas) {
  IngestZebraBehind(4);
  const auto result = AskOf(256, "the otter swam", 3);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(Texts(*result), ElementsAre("a zebra slept", "the otter swam", "the otter swam"));
  EXPECT_EQ(harness_.model().looked_pages().back(), 5u);
  EXPECT_EQ(AllOf(*result), AllOf(*Ask("the otter swam", 3)));
}

TEST_F(RerankTest, EqualAfterTheLookAreInTheOrderOfLandmarksTheNewestFirst) {
  IngestChunks({"a zebra slept", "the otter swam", "a zebra slept", "the otter swam",
                "a zebra slept", "the otter swam"});
  const std::vector<std::string> want = {"d4", "d2", "d0", "d5", "d3", "d1"};
  for (const int candidates : {6, 20, 256}) {
    for (const int k : {2, 4, 6}) {
      const auto result = AskOf(candidates, "the otter swam", k);
      ASSERT_TRUE(result.ok()) << result.status();
      ASSERT_THAT(result->passages, SizeIs(k));
      for (size_t i = 0; i < result->passages.size(); ++i) {
        EXPECT_EQ(result->passages[i].document, harness_.Document("m", want[i])) << candidates;
      }
    }
  }
}

TEST_F(RerankTest, CandidatesBeyondWhatTheNetworkReadsWeighNothing) {
  IngestZebraBehind(9);
  const auto few = AskOf(9, "the otter swam", 9);
  const auto result = AskOf(10, "the otter swam", 10);
  ASSERT_TRUE(few.ok() && result.ok());
  EXPECT_EQ(result->passages[0].text, "a zebra slept");
  EXPECT_EQ(result->passages[0].weight, 0);
  // What the others weigh does not depend on who else is looked at.
  const Found found = AllOf(*result);
  EXPECT_EQ(Found(found.begin() + 1, found.end()), AllOf(*few));
  double sum = 0;
  for (size_t i = 1; i <= kChunksPerRead; ++i) sum += result->passages[i].weight;
  EXPECT_GT(sum, 0.9) << "of the best by landmark, which have equal scores";
  for (size_t i = kChunksPerRead + 1; i < 10; ++i) EXPECT_EQ(result->passages[i].weight, 0);
}

TEST_F(RerankTest, TextOfPassagesThatAreNotFoundIsNotRead) {
  std::vector<std::string> texts = {"a zebra slept"};
  for (int i = 0; i < 19; ++i) texts.push_back("the otter swam on quicksilver");
  IngestChunks(texts);
  ASSERT_EQ(harness_.Damage(Table::kText, "quicksilver"), 19);
  const auto best = AskOf(256, "the otter swam", 1);
  ASSERT_TRUE(best.ok()) << best.status();
  EXPECT_THAT(Texts(*best), ElementsAre("a zebra slept"));
  EXPECT_EQ(best->damaged_passages, 0);
  EXPECT_EQ(harness_.Metric("mneme_passages_damaged_total"), 0);
  // One more would be among the damaged, all of which are in its way.
  const auto two = AskOf(256, "the otter swam", 2);
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_THAT(Texts(*two), ElementsAre("a zebra slept"));
  EXPECT_GE(two->damaged_passages, 19);
}

TEST_F(RerankTest, NextBestCandidateTakesThePlaceOfADamagedOne) {
  IngestChunks({"a zebra slept", "a zebra on quicksilver", "the otter swam", "the otter swam"});
  ASSERT_EQ(harness_.Damage(Table::kText, "quicksilver"), 1);
  const auto result = AskOf(256, "the otter swam", 1);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(Texts(*result), ElementsAre("a zebra slept"));
}

TEST_F(RerankTest, CandidatesAreOfAllMemoriesAtTheirMoment) {
  harness_.CreateMemory("other");
  IngestZebraBehind(9);
  harness_.Ingest("other", "o", "a zebra ran", true);
  absl::SleepFor(absl::Milliseconds(2));
  const absl::Time moment = absl::Now();
  absl::SleepFor(absl::Milliseconds(2));
  harness_.Ingest("m", "later", "no zebra", true);
  RetrieveOptions options{.memories = {harness_.Memory("other"), harness_.Memory("m")},
                          .question = "the otter swam",
                          .k = 3,
                          .rerank = true,
                          .rerank_candidates = 12};
  const auto now = harness_.engine().Retrieve(options, {});
  ASSERT_TRUE(now.ok()) << now.status();
  EXPECT_THAT(Texts(*now),
              ::testing::UnorderedElementsAre("no zebra", "a zebra ran", "a zebra slept"));
  EXPECT_EQ(now->chunks_scanned, 12);
  options.as_of = moment;
  const auto then = harness_.engine().Retrieve(options, {});
  ASSERT_TRUE(then.ok()) << then.status();
  EXPECT_THAT(Texts(*then),
              ::testing::UnorderedElementsAre("a zebra ran", "a zebra slept", "the otter swam"));
  EXPECT_EQ(then->chunks_scanned, 11);
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
  for (const int candidates : {0, 12, 40}) {
    SCOPED_TRACE(candidates);
    options.rerank_candidates = candidates;
    options.explain = false;
    const auto plain = harness_.engine().Retrieve(options, {});
    options.explain = true;
    const auto explained = harness_.engine().Retrieve(options, {});
    ASSERT_TRUE(plain.ok() && explained.ok());
    EXPECT_EQ(AllOf(*plain), AllOf(*explained));
    ASSERT_FALSE(explained->explanation.empty());
    EXPECT_THAT(explained->explanation[0].weights, SizeIs(12));
  }
}

// Of fewer pages than are looked at, or hardly more: they are not all pinned at one time.
TEST_F(RerankTest, SmallHostTierDoesNotChangeTheAnswer) {
  harness_.Ingest("m", "d", RandomText(8, 400) + " zebra " + RandomText(9, 400));
  const auto ask = [&](int candidates, int k) {
    std::vector<Found> answers;
    for (uint64_t i = 0; i < 10; ++i) {
      const auto result = AskOf(candidates, RandomQuestion(i, 40), k);
      EXPECT_TRUE(result.ok()) << result.status();
      if (result.ok()) answers.push_back(AllOf(*result));
    }
    return answers;
  };
  const std::vector<Found> sixteen = ask(16, 12), usual = ask(0, 64);
  for (const Retention retention : {Retention::kKeep, Retention::kText}) {
    ASSERT_TRUE(
        harness_.engine().UpdateMemory(harness_.Memory("m"), {.retention = retention}).ok());
    for (const int pages : {120, 80, 72, 24, 16, 12, 8}) {
      SCOPED_TRACE(pages);
      harness_.store_options().host_page_bytes_max = pages * 64;
      LosePages();
      EXPECT_EQ(ask(16, 12), sixteen);
      EXPECT_EQ(Unavailable(), 0);
    }
    // Of so many together those that are derived again first leave the tier, in which nobody has
    // read them, before the last are there; those of one look do not.
    for (const int pages : {120, 80, 72}) {
      SCOPED_TRACE(pages);
      harness_.store_options().host_page_bytes_max = pages * 64;
      LosePages();
      EXPECT_EQ(ask(0, 64), usual);
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
  harness_.Append("m", "half", "the otter swam home and others slept by the river then");
  harness_.Append("m", "half", " an end with quicksilver");
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

  std::vector<Found> together(kQuestions);
  std::vector<std::function<void()>> questions;
  for (size_t i = 0; i < kQuestions; ++i) {
    questions.emplace_back([&, i] { together[i] = AllOf(*ask(i)); });
  }
  harness_.RunTogether([&] { EXPECT_TRUE(Ask("holds up the others", 1, false).ok()); }, questions);
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

TEST_F(RerankTest, CandidatesAreFromKToTheMostOfK) {
  harness_.Ingest("m", "d", "the zebra crossed", true);
  const auto message = [&](int candidates, int k, bool rerank = true) {
    const absl::Status status = AskOf(candidates, "x", k, rerank).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << candidates;
    return std::string(status.message());
  };
  EXPECT_EQ(message(7, 8), "rerank_candidates is 7; it must be k, 8, to 256");
  EXPECT_EQ(message(257, 8), "rerank_candidates is 257; it must be k, 8, to 256");
  EXPECT_EQ(message(-1, 1), "rerank_candidates is -1; it must be k, 1, to 256");
  EXPECT_EQ(message(8, 8, /*rerank=*/false), "rerank_candidates is 8 without rerank");
  for (const int candidates : {0, 8, 9, 256}) {
    EXPECT_TRUE(AskOf(candidates, "x", 8).ok()) << candidates;
  }
  EXPECT_TRUE(AskOf(0, "x", 8, /*rerank=*/false).ok());
}

TEST_F(RerankTest, MostOfKOfAServerIsThatOfCandidates) {
  IngestZebraBehind(29);
  harness_.Stop();
  harness_.options().retrieve_k_max = 20;
  harness_.Start();
  EXPECT_THAT(std::string(AskOf(21, "x", 1).status().message()), HasSubstr("to 20"));
  ASSERT_TRUE(AskOf(20, "x", 1).ok());
  ASSERT_TRUE(Ask("the otter swam", 1).ok());
  EXPECT_EQ(harness_.model().looked_pages().back(), 20u);
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
