#include "engine/told_chunks.h"

#include <memory>
#include <vector>

#include <gtest/gtest.h>

namespace mneme {
namespace {

constexpr TokenId kQuestion = 1, kAnswer = 2, kDocument = 3, kLineEnd = 4, kWord = 9;

std::unique_ptr<ToldChunks> NewToldChunks(int penalty = 5) {
  Bundle bundle;
  bundle.config.told_penalty = penalty;
  bundle.question_id = kQuestion;
  bundle.answer_id = kAnswer;
  bundle.document_id = bundle.pad_id = kDocument;
  bundle.line_end_id = kLineEnd;
  return ToldChunks::Of(bundle);
}

// A step whose every row reads `chunk` with weight 0.5.
void Step(ToldChunks& told, const std::vector<TokenId>& ids, int64_t chunk) {
  told.BeginStep(ids);
  for (size_t row = 0; row < ids.size(); ++row) told.Count(row, chunk, 0.5);
}

TEST(ToldChunksTest, NoneWithoutAPenalty) { EXPECT_EQ(NewToldChunks(0), nullptr); }

TEST(ToldChunksTest, ValueIsToldFromTheEndOfItsLineUntilTheAnswerEnds) {
  for (const TokenId end : {kQuestion, kDocument, kAnswer}) {
    const auto told = NewToldChunks();
    Step(*told, {kQuestion, kWord, kAnswer}, 7);
    EXPECT_FALSE(told->Contains(7));
    Step(*told, {kWord}, 7);
    EXPECT_FALSE(told->Contains(7));
    Step(*told, {kLineEnd}, 8);
    EXPECT_TRUE(told->Contains(7));
    EXPECT_FALSE(told->Contains(8));
    Step(*told, {kWord, kWord}, 6);
    EXPECT_TRUE(told->Contains(7));
    EXPECT_FALSE(told->Contains(6));
    Step(*told, {kLineEnd}, 5);
    EXPECT_TRUE(told->Contains(7));
    EXPECT_TRUE(told->Contains(6));
    EXPECT_FALSE(told->Contains(8)) << "less of the second value than chunk 6";
    Step(*told, {end}, 5);
    for (int64_t chunk = 0; chunk < 10; ++chunk) EXPECT_FALSE(told->Contains(chunk));
    // The next answer begins with nothing, not even with the totals of the last one.
    told->BeginStep({kAnswer});
    told->BeginStep({kLineEnd});
    for (int64_t chunk = 0; chunk < 10; ++chunk) EXPECT_FALSE(told->Contains(chunk));
  }
}

TEST(ToldChunksTest, GreatestSumOverTheTokensOfAValueDecides) {
  const auto told = NewToldChunks();
  told->BeginStep({kAnswer});
  told->Count(0, 1, 0.6);
  told->Count(0, 2, 0.4);
  told->BeginStep({kWord, kWord});
  told->Count(0, 2, 0.4);
  told->Count(1, 3, 0.7);
  told->Count(1, 2, 0.0);
  told->BeginStep({kLineEnd});
  EXPECT_TRUE(told->Contains(2));
  EXPECT_FALSE(told->Contains(1));
  EXPECT_FALSE(told->Contains(3));
}

TEST(ToldChunksTest, EqualSumsTellTheNewestChunk) {
  const auto told = NewToldChunks();
  told->BeginStep({kAnswer});
  for (const int64_t chunk : {4, 9, 2}) told->Count(0, chunk, 0.25);
  told->BeginStep({kLineEnd});
  EXPECT_TRUE(told->Contains(9));
  EXPECT_FALSE(told->Contains(4));
}

TEST(ToldChunksTest, ValueThatReadNothingTellsNothing) {
  const auto told = NewToldChunks();
  told->BeginStep({kAnswer});
  told->Count(0, 0, 0.0);
  told->BeginStep({kLineEnd});
  EXPECT_FALSE(told->Contains(0));
  EXPECT_FALSE(told->Contains(-1));
}

TEST(ToldChunksTest, ChunkToldAgainStaysTold) {
  const auto told = NewToldChunks();
  Step(*told, {kAnswer}, 3);
  Step(*told, {kLineEnd}, 3);
  Step(*told, {kLineEnd}, 3);
  EXPECT_TRUE(told->Contains(3));
}

TEST(ToldChunksTest, TokensOutsideAnAnswerCountForNothing) {
  const auto told = NewToldChunks();
  Step(*told, {kDocument, kWord, kLineEnd, kWord, kQuestion, kLineEnd, kWord}, 5);
  told->BeginStep({kWord, kAnswer, kWord});
  told->Count(0, 5, 0.9);
  told->Count(1, 6, 0.1);
  told->Count(2, 6, 0.1);
  told->BeginStep({kLineEnd});
  EXPECT_FALSE(told->Contains(5));
  EXPECT_TRUE(told->Contains(6));
}

TEST(ToldChunksTest, StepsEndWhereWhatIsToldChanges) {
  const auto told = NewToldChunks();
  EXPECT_EQ(told->StepTokens({}), 0u);
  // Before an answer nothing is told.
  EXPECT_EQ(told->StepTokens({kQuestion, kLineEnd, kWord, kDocument, kLineEnd}), 5u);
  EXPECT_EQ(told->StepTokens({kQuestion, kLineEnd, kAnswer, kWord, kLineEnd, kWord}), 4u);
  told->BeginStep({kQuestion, kLineEnd, kAnswer, kWord});
  EXPECT_EQ(told->StepTokens({kLineEnd, kWord, kWord}), 3u);
  EXPECT_EQ(told->StepTokens({kLineEnd, kLineEnd}), 1u);
  for (const TokenId mark : {kLineEnd, kAnswer, kQuestion, kDocument}) {
    EXPECT_EQ(told->StepTokens({kWord, kWord, mark, kWord}), 2u);
  }
  EXPECT_EQ(told->StepTokens({kQuestion, kWord, kLineEnd, kAnswer, kWord, kAnswer}), 5u);
  told->BeginStep({kQuestion, kWord});
  EXPECT_EQ(told->StepTokens({kLineEnd, kWord, kLineEnd}), 3u);
}

}  // namespace
}  // namespace mneme
