#include "engine/keyword_scorer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/reference/keyword_scorer_reference.h"

namespace mneme {
namespace {

using ::testing::DoubleEq;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Gt;
using ::testing::IsEmpty;

std::vector<double> Scores(const std::string& question, const std::vector<std::string>& texts) {
  const std::vector<absl::string_view> views(texts.begin(), texts.end());
  return KeywordScores(question, views);
}

TEST(KeywordScorerTest, ScoresByHand) {
  // Two texts of four and two words, three on average; "key" is in both, "amber" in the first.
  const std::vector<double> scores = Scores("Amber KEY?", {"the amber key, amber", "a key"});
  const double amber = std::log(1 + (2 - 1 + 0.5) / (1 + 0.5));
  const double key = std::log(1 + (2 - 2 + 0.5) / (2 + 0.5));
  const double first = 1.2 * (0.25 + 0.75 * 4 / 3), second = 1.2 * (0.25 + 0.75 * 2 / 3);
  EXPECT_THAT(scores, ElementsAre(DoubleEq(amber * 2 * 2.2 / (2 + first) + key * 2.2 / (1 + first)),
                                  DoubleEq(key * 2.2 / (1 + second))));
}

TEST(KeywordScorerTest, AgreesWithTheFormulaOnRandomTexts) {
  for (const unsigned seed : {1u, 2u, 3u, 4u}) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto text = [&](int words_max) {
      static const std::vector<std::string> kWords = {"a",    "A",     "b",       "Key",   "key",
                                                      "3",    "33",    "compass", "naïve", "ölbaum",
                                                      "x9-y", "don't", "...",     "__",    "日本"};
      static const std::vector<std::string> kBetween = {" ", ", ", "\n", "-", "  ", "/"};
      std::string made;
      for (int i = static_cast<int>(random() % static_cast<unsigned>(words_max + 1)); i > 0; --i) {
        const std::string& word = kWords[random() % kWords.size()];
        absl::StrAppend(&made, word == "..." ? absl::StrCat(random() % 60) : word,
                        kBetween[random() % kBetween.size()]);
      }
      return made;
    };
    for (const size_t count : {1, 2, 7, 24}) {
      const std::string question = text(count == 7 ? 60 : 12);
      std::vector<std::string> texts(count);
      for (std::string& t : texts) t = text(40);
      const std::vector<double> got = Scores(question, texts);
      const std::vector<double> want = KeywordScoresReference(question, texts);
      ASSERT_EQ(got.size(), count);
      // Sums of a dozen terms in another order.
      for (size_t i = 0; i < count; ++i) EXPECT_NEAR(got[i], want[i], 1e-12) << texts[i];
    }
  }
}

TEST(KeywordScorerTest, AWordOfTheQuestionCountsOnce) {
  EXPECT_EQ(Scores("key key KEY", {"the key", "a door"}), Scores("key", {"the key", "a door"}));
}

TEST(KeywordScorerTest, RareWordsSayMoreThanCommonOnes) {
  const std::vector<double> scores =
      Scores("amber key 3", {"amber key 1", "amber key 2", "amber key 3", "amber key 4"});
  EXPECT_GT(scores[2], scores[0]);
  EXPECT_EQ(scores[0], scores[1]);
  EXPECT_GT(scores[0], 0) << "never against a text";
}

TEST(KeywordScorerTest, NothingToFindIsZero) {
  EXPECT_THAT(Scores("?! ...", {"the key", ""}), Each(0));
  EXPECT_THAT(Scores("", {"the key"}), Each(0));
  EXPECT_THAT(Scores("key", {"", "?!", " "}), Each(0));
  EXPECT_THAT(Scores("key", {"the keys", "monkey"}), Each(0));
  EXPECT_THAT(Scores("key", {}), IsEmpty());
  EXPECT_THAT(Scores("", {}), IsEmpty());
}

// Else a page of text before the question would order the texts, whatever the network says.
TEST(KeywordScorerTest, LongQuestionsScoreNoMoreThanThoseOfSixteenWords) {
  std::string question;
  for (int i = 0; i < 16; ++i) absl::StrAppend(&question, "asked", i, " ");
  const double sixteen = Scores(question, {question, "another"})[0];
  for (int i = 16; i < 160; ++i) absl::StrAppend(&question, "asked", i, " ");
  EXPECT_NEAR(Scores(question, {question, "another"})[0], sixteen, 0.1 * sixteen);
}

// A request's strings are UTF-8, and so is stored text; but no byte may lead astray.
TEST(KeywordScorerTest, AnyBytesAreTaken) {
  std::mt19937 random(5);
  for (int i = 0; i < 2000; ++i) {
    std::vector<std::string> texts(1 + random() % 3);
    for (std::string& text : texts) {
      for (unsigned n = random() % 6; n > 0; --n) {
        static const std::string kBytes = "a\xc2\xe2\x80\x81\xe3\xff \xf0";
        text += kBytes[random() % kBytes.size()];
      }
    }
    EXPECT_THAT(Scores(texts[0], texts), Each(::testing::Ge(0))) << i;
  }
  EXPECT_THAT(Scores("a", {"a\xe2\x80", "a"}), ElementsAre(0, Gt(0))) << "no UTF-8, no words";
}

}  // namespace
}  // namespace mneme
