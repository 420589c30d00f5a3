// Retrieve with keywords: what the words of the candidates' texts make of the order of the second
// look. Words in capitals are others to the fake model's landmarks, and the same to keywords; its
// look adds FakeModel::kLookBonus to chunks with a word.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <thread>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/engine/engine_harness.h"
#include "tests/reference/keyword_scorer_reference.h"

namespace mneme {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

class KeywordsTest : public ::testing::Test {
 protected:
  KeywordsTest() {
    harness_.CreateMemory("m");
    harness_.model().LookFor("zebra");
  }

  RetrieveOptions Options(const std::string& question, int k) const {
    return {.memories = {harness_.Memory("m")},
            .question = question,
            .k = k,
            .rerank = true,
            .keywords = true};
  }
  absl::StatusOr<RetrieveResult> Ask(const RetrieveOptions& options) {
    return harness_.engine().Retrieve(options, {.deadline = absl::Now() + kPatience});
  }
  absl::StatusOr<RetrieveResult> Ask(const std::string& question, int k) {
    return Ask(Options(question, k));
  }
  absl::StatusOr<RetrieveResult> AskWithout(RetrieveOptions options) {
    options.keywords = false;
    return Ask(options);
  }
  // A document of each text, the oldest first.
  void IngestChunks(const std::vector<std::string>& texts) {
    for (size_t i = 0; i < texts.size(); ++i) {
      harness_.Ingest("m", absl::StrCat("d", i), texts[i], true);
    }
  }

  EngineHarness harness_;
};

std::vector<std::string> Texts(const RetrieveResult& result) {
  std::vector<std::string> texts;
  for (const Passage& passage : result.passages) texts.push_back(passage.text);
  return texts;
}

using Found = std::vector<
    std::tuple<std::string, int64_t, double, double, std::optional<double>, std::optional<double>>>;
Found AllOf(const RetrieveResult& result) {
  Found found;
  for (const Passage& p : result.passages) {
    found.emplace_back(p.document, p.chunk_index, p.score, p.weight, p.rerank_score,
                       p.keyword_score);
  }
  return found;
}

TEST_F(KeywordsTest, AChunkWithTheVeryKeyComesFirst) {
  IngestChunks({"the otter swam west", "the otter swam home", "the otter swam away"});
  const RetrieveOptions options = Options("the otter swam WEST", 3);
  const auto without = AskWithout(options);
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_NE(without->passages[0].text, "the otter swam west") << "newer ones are as good";
  for (const Passage& passage : without->passages) EXPECT_FALSE(passage.keyword_score);

  const auto with = Ask(options);
  ASSERT_TRUE(with.ok()) << with.status();
  ASSERT_THAT(with->passages, SizeIs(3));
  EXPECT_EQ(with->passages[0].text, "the otter swam west");
  EXPECT_GT(with->passages[0].keyword_score, with->passages[1].keyword_score);
  EXPECT_GT(with->passages[1].keyword_score, 0.0);
  // It is looked at as before.
  Found before = AllOf(*without), after = AllOf(*with);
  for (Found* found : {&before, &after}) {
    std::sort(found->begin(), found->end());
    for (auto& passage : *found) std::get<5>(passage).reset();
  }
  EXPECT_EQ(after, before);
}

TEST_F(KeywordsTest, OrderIsThatOfTheSumAndScoresAreThoseOfTheCandidates) {
  harness_.Ingest("m", "d", RandomText(1, 200) + " zebra " + RandomText(2, 200));
  for (const int candidates : {20, 64, 256}) {
    SCOPED_TRACE(candidates);
    RetrieveOptions options = Options(RandomQuestion(3, 12), candidates);
    options.rerank_candidates = candidates;
    const auto all = Ask(options);
    ASSERT_TRUE(all.ok()) << all.status();
    const std::vector<double> want = KeywordScoresReference(options.question, Texts(*all));
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_NEAR(*all->passages[i].keyword_score, want[i], 1e-9);
      if (i == 0) continue;
      const Passage &a = all->passages[i - 1], &b = all->passages[i];
      EXPECT_GE(*a.rerank_score + *a.keyword_score, *b.rerank_score + *b.keyword_score);
    }
    // Of all of these, however few are found, and whatever is shown beside them.
    const Found found = AllOf(*all);
    for (const int context_bytes : {0, 50}) {
      options.k = 7;
      options.context_bytes = context_bytes;
      const auto few = Ask(options);
      ASSERT_TRUE(few.ok()) << few.status();
      EXPECT_EQ(AllOf(*few), Found(found.begin(), found.begin() + 7));
      for (size_t i = 0; i < 7; ++i) {
        const std::string& text = all->passages[i].text;
        EXPECT_THAT(few->passages[i].text, HasSubstr(text));
        EXPECT_EQ(few->passages[i].text.size() > text.size(), context_bytes > 0);
      }
    }
  }
}

TEST_F(KeywordsTest, EqualSumsKeepTheOrderOfLandmarks) {
  IngestChunks({"a zebra slept", "the otter swam", "a zebra slept", "the otter swam"});
  const auto result = Ask("the otter swam", 4);
  ASSERT_TRUE(result.ok()) << result.status();
  std::vector<std::string> documents;
  for (const Passage& passage : result->passages) documents.push_back(passage.document);
  EXPECT_THAT(documents, ElementsAre(harness_.Document("m", "d2"), harness_.Document("m", "d0"),
                                     harness_.Document("m", "d3"), harness_.Document("m", "d1")));
}

TEST_F(KeywordsTest, AQuestionWithoutWordsLeavesTheOrderOfTheLook) {
  IngestChunks({"the otter?", "a zebra?!", "the end", "?!"});
  const RetrieveOptions options = Options("?!", 8);
  const auto with = Ask(options), without = AskWithout(options);
  ASSERT_TRUE(with.ok() && without.ok());
  EXPECT_EQ(Texts(*with), Texts(*without));
  for (const Passage& passage : with->passages) EXPECT_EQ(passage.keyword_score, 0.0);
}

TEST_F(KeywordsTest, WordsBeyondAsciiAreFound) {
  IngestChunks({"é!", "è?", "ê"});
  const auto result = Ask("(é)", 3);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_THAT(result->passages, SizeIs(3));
  EXPECT_EQ(result->passages[0].text, "é!");
  EXPECT_GT(result->passages[0].keyword_score, 0.0);
  EXPECT_EQ(result->passages[1].keyword_score, 0.0);
  EXPECT_EQ(result->passages[2].keyword_score, 0.0);
}

TEST_F(KeywordsTest, DamagedTextIsNoCandidateOfWordsAndCountedOnlyWhereItIsMissed) {
  std::vector<std::string> texts = {"a zebra slept", "a zebra sat"};
  for (int i = 0; i < 19; ++i) texts.push_back("the otter swam on quicksilver");
  IngestChunks(texts);
  ASSERT_EQ(harness_.Damage(Table::kText, "quicksilver"), 19);
  RetrieveOptions options = Options("the otter swam SLEPT", 1);
  options.rerank_candidates = 256;
  const auto best = Ask(options);
  ASSERT_TRUE(best.ok()) << best.status();
  EXPECT_THAT(Texts(*best), ElementsAre("a zebra slept"));
  EXPECT_NEAR(*best->passages[0].keyword_score,
              KeywordScoresReference("slept", {"a zebra slept", "a zebra sat"})[0], 1e-9)
      << "damaged texts are no texts";
  EXPECT_EQ(best->damaged_passages, 0);
  EXPECT_EQ(harness_.Metric("mneme_passages_damaged_total"), 0);
  // One more than there are is in want of the damaged ones, each once.
  options.k = 3;
  const auto more = Ask(options);
  ASSERT_TRUE(more.ok()) << more.status();
  EXPECT_THAT(Texts(*more), ElementsAre("a zebra slept", "a zebra sat"));
  options.keywords = false;
  const int64_t damaged = Ask(options)->damaged_passages;
  EXPECT_GE(damaged, 19);
  EXPECT_EQ(more->damaged_passages, damaged);
  EXPECT_EQ(harness_.Metric("mneme_passages_damaged_total"), 2 * damaged);
}

TEST_F(KeywordsTest, NextBestCandidateTakesThePlaceOfADamagedOne) {
  IngestChunks({"the otter swam", "a zebra on quicksilver", "a zebra slept"});
  ASSERT_EQ(harness_.Damage(Table::kText, "quicksilver"), 1);
  for (const int context_bytes : {0, 10}) {
    RetrieveOptions options = Options("the otter swam", 3);
    options.context_bytes = context_bytes;
    const auto result = Ask(options);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_THAT(Texts(*result), ElementsAre("a zebra slept", "the otter swam"));
    EXPECT_EQ(result->damaged_passages,
              harness_.engine().GetDocument(harness_.Document("m", "d1"))->chunk_count);
  }
}

TEST_F(KeywordsTest, ChunksWithoutAPageStandBehindTheOthersWhateverTheirWords) {
  // Text of the first document's one segment lies in two records, the second of which is damaged.
  harness_.Append("m", "half", "the otter swam home and others slept by the river then");
  harness_.Append("m", "half", " an end with quicksilver");
  harness_.Ingest("m", "whole", "a whole one", true);
  ASSERT_EQ(harness_.Damage(Table::kText, "quicksilver"), 1);
  harness_.Stop();
  harness_.LoseTable(Table::kPages);
  harness_.Start();
  const auto result = Ask("the otter swam home", 8);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_GE(result->passages.size(), 2u);
  EXPECT_EQ(result->passages[0].text, "a whole one");
  EXPECT_EQ(result->passages[0].keyword_score, 0.0);
  EXPECT_FALSE(result->passages[1].rerank_score.has_value());
  EXPECT_GT(result->passages[1].keyword_score, 0.0);
  for (size_t i = 2; i < result->passages.size(); ++i) {
    EXPECT_LE(result->passages[i].score, result->passages[i - 1].score);
  }
}

TEST_F(KeywordsTest, WordsAreOfAllMemoriesAtTheirMoment) {
  harness_.CreateMemory("other");
  harness_.Ingest("m", "d", "the moth, ", false);
  harness_.Ingest("other", "o", "the otter", true);
  absl::SleepFor(absl::Milliseconds(2));
  const absl::Time moment = absl::Now();
  absl::SleepFor(absl::Milliseconds(2));
  harness_.Ingest("m", "later", "MOTH", true);
  RetrieveOptions options = Options("moth", 8);
  options.memories.push_back(harness_.Memory("other"));
  const auto now = Ask(options);
  ASSERT_TRUE(now.ok()) << now.status();
  EXPECT_THAT(Texts(*now), ::testing::UnorderedElementsAre("the moth, ", "the otter", "MOTH"));
  options.as_of = moment;
  const auto then = Ask(options);
  ASSERT_TRUE(then.ok()) << then.status();
  EXPECT_THAT(Texts(*then), ElementsAre("the moth, ", "the otter"));
  EXPECT_NEAR(*then->passages[0].keyword_score,
              KeywordScoresReference("moth", {"the moth, ", "the otter"})[0], 1e-9);
}

TEST_F(KeywordsTest, TextOfEachCandidateIsReadOnce) {
  harness_.Ingest("m", "d", RandomText(1, 400));
  RetrieveOptions options = Options(RandomQuestion(3, 12), 8);
  const auto reads = [&] {
    const int before = harness_.faults().text_scans();
    EXPECT_TRUE(Ask(options).ok());
    return harness_.faults().text_scans() - before;
  };
  EXPECT_EQ(reads(), 64) << "those of the passages among them";
  options.context_bytes = 10;
  EXPECT_EQ(reads(), 64 + 8) << "with what is around the passages";
  options.keywords = false;
  EXPECT_EQ(reads(), 8);
}

TEST_F(KeywordsTest, TextsThatCannotBeReadLeaveNothingToFindAsWithoutKeywords) {
  IngestChunks({"a zebra slept", "the otter swam"});
  harness_.faults().FailReads(Table::kText, absl::UnavailableError("no disk"));
  const RetrieveOptions options = Options("the otter", 2);
  for (const auto& result : {Ask(options), AskWithout(options)}) {
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_THAT(result->passages, SizeIs(0));
    EXPECT_EQ(result->damaged_passages, 0) << "for all that is known";
  }
}

TEST_F(KeywordsTest, ExplainDoesNotChangeTheAnswer) {
  harness_.Ingest("m", "d", RandomText(8, 300) + " zebra " + RandomText(9, 300));
  RetrieveOptions options = Options(RandomQuestion(9, 40), 12);
  const auto plain = Ask(options);
  options.explain = true;
  const auto explained = Ask(options);
  ASSERT_TRUE(plain.ok() && explained.ok());
  EXPECT_EQ(AllOf(*plain), AllOf(*explained));
  EXPECT_THAT(explained->explanation[0].weights, SizeIs(12));
}

TEST_F(KeywordsTest, DocumentThatIsDeletedMeanwhileIsLeftOut) {
  IngestChunks({"a zebra slept", "a zebra ran"});
  Gate& gate = harness_.NewGate();
  harness_.model().OnRead([&] {
    gate.Pass();
    return absl::OkStatus();
  });
  absl::StatusOr<RetrieveResult> result;
  std::thread question([&] { result = Ask("the zebra ran", 8); });
  ASSERT_TRUE(gate.WaitArrived(1));
  ASSERT_TRUE(harness_.engine().DeleteDocument(harness_.Document("m", "d1")).ok());
  gate.Open();
  question.join();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(Texts(*result), ElementsAre("a zebra slept"));
  EXPECT_EQ(result->damaged_passages, 0);
}

TEST_F(KeywordsTest, KeywordsNeedARerank) {
  harness_.Ingest("m", "d", "the zebra crossed", true);
  RetrieveOptions options = Options("x", 1);
  options.rerank = false;
  const absl::Status status = Ask(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "keywords is true without rerank");
}

TEST_F(KeywordsTest, CancelledBetweenTwoTexts) {
  harness_.Ingest("m", "d", RandomText(1, 400));
  // How often it is asked whether the caller still waits.
  const auto asked = [&](const RetrieveOptions& options) {
    int times = 0;
    const auto result = harness_.engine().Retrieve(options, {.cancelled = [&] {
                                                     ++times;
                                                     return false;
                                                   }});
    EXPECT_TRUE(result.ok()) << result.status();
    return times;
  };
  RetrieveOptions options = Options("x", 1);
  const int times = asked(options);
  options.keywords = false;
  EXPECT_EQ(times, asked(options) + 64) << "a candidate more each";
  options.keywords = true;
  for (const int calls : {times - 60, times - 2}) {
    int left = calls;
    const absl::Status status =
        harness_.engine().Retrieve(options, {.cancelled = [&] { return left-- == 0; }}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  }
}

}  // namespace
}  // namespace mneme
