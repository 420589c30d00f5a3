// Generate and Score. The fake model copies from the chunk that it reads with most weight.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/utf8.h"
#include "engine/token_stream.h"
#include "tests/engine/engine_harness.h"

namespace mneme {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

struct Answer {
  absl::Status status;
  std::string text;
  std::vector<GeneratePiece> pieces;
  GenerateResult result;
};

class GenerateTest : public ::testing::Test {
 protected:
  GenerateTest() { harness_.CreateMemory("m"); }

  Answer Ask(const std::string& question, GenerateOptions options = {},
             CallContext context = {.deadline = absl::Now() + kPatience}) {
    options.memories = {harness_.Memory("m")};
    options.question = question;
    Answer answer;
    const auto result = harness_.engine().Generate(options, context, [&](GeneratePiece piece) {
      answer.text += piece.text;
      answer.pieces.push_back(std::move(piece));
      return true;
    });
    answer.status = result.status();
    if (result.ok()) answer.result = *result;
    return answer;
  }

  EngineHarness harness_;
};

TEST_F(GenerateTest, AnswerIsReadFromTheMemory) {
  harness_.Ingest("m", "d", "my father went home last night", true);
  const Answer answer = Ask("my father went");
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.text, "home last night");
  EXPECT_EQ(answer.result.reason, FinishReason::kStop);
  int tokens = 0;
  for (const GeneratePiece& piece : answer.pieces) tokens += piece.token_count;
  EXPECT_GT(tokens, 1);
  EXPECT_EQ(harness_.Metric("mneme_generated_tokens_total"), tokens);
}

TEST_F(GenerateTest, PassagesCarryTheirTextOnce) {
  harness_.Ingest("m", "d", "the keeper fed the zebra at noon and the otter at night", true);
  const Answer answer = Ask("the keeper fed");
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  std::set<int64_t> told;
  for (const GeneratePiece& piece : answer.pieces) {
    ASSERT_FALSE(piece.passages.empty());
    EXPECT_LE(piece.passages.size(), 4u);
    for (size_t i = 0; i < piece.passages.size(); ++i) {
      const Passage& passage = piece.passages[i];
      EXPECT_GT(passage.weight, 0.01);
      EXPECT_EQ(passage.document, harness_.Document("m", "d"));
      EXPECT_EQ(passage.text.empty(), !told.insert(passage.chunk_index).second);
      if (i > 0) {
        EXPECT_LE(passage.weight, piece.passages[i - 1].weight);
      }
    }
  }
  const Answer bare = Ask("the keeper fed", {.omit_passages = true});
  EXPECT_EQ(bare.text, answer.text);
  for (const GeneratePiece& piece : bare.pieces) EXPECT_THAT(piece.passages, IsEmpty());
}

TEST_F(GenerateTest, PassagesHaveTheWeightsOfASecondLook) {
  harness_.Ingest("m", "d", "the keeper fed the zebra at noon and the otter at night", true);
  for (const double temperature : {0.0, 0.5}) {
    const auto ask = [&] {
      return Ask("the keeper fed", {.max_tokens = 5, .temperature = temperature, .seed = 1});
    };
    const Answer before = ask();
    harness_.model().LookAgain(0.75f);
    const Answer answer = ask();
    harness_.model().LookAgain(0);
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_EQ(answer.text, before.text);
    ASSERT_FALSE(answer.pieces.empty());
    for (const GeneratePiece& piece : answer.pieces) {
      ASSERT_FALSE(piece.passages.empty());
      for (const Passage& passage : piece.passages) EXPECT_EQ(passage.weight, 0.75);
    }
  }
}

TEST_F(GenerateTest, PiecesEndBetweenCharacters) {
  harness_.Ingest("m", "d", "the sign said 𓀀𝔘ꙮ today", true);
  const Answer answer = Ask("the sign said");
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  for (const GeneratePiece& piece : answer.pieces) {
    EXPECT_EQ(ValidUtf8Prefix(piece.text).valid_bytes, piece.text.size());
    EXPECT_FALSE(piece.text.empty());
  }
}

TEST_F(GenerateTest, CutInTheMiddleOfACharacterIsReplaced) {
  harness_.Ingest("m", "d", "the sign said 𓀀 today", true);
  for (int max_tokens = 1; max_tokens < 8; ++max_tokens) {
    const Answer answer = Ask("the sign said", {.max_tokens = max_tokens});
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_EQ(ValidUtf8Prefix(answer.text).valid_bytes, answer.text.size()) << max_tokens;
  }
}

TEST_F(GenerateTest, MaxTokensEndsTheAnswer) {
  harness_.Ingest("m", "d", "my father went home last night", true);
  const Answer answer = Ask("my father", {.max_tokens = 2});
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.text, "went home");
  EXPECT_EQ(answer.result.reason, FinishReason::kLength);
}

TEST_F(GenerateTest, WithoutAnEndTheAnswerGoesOnToMaxTokens) {
  harness_.Ingest("m", "d", "my father went home last night", true);
  const Answer ended = Ask("my father", {.max_tokens = 20});
  EXPECT_EQ(ended.result.reason, FinishReason::kStop);
  const Answer answer = Ask("my father", {.max_tokens = 20, .ignore_eos = true});
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.result.reason, FinishReason::kLength);
  EXPECT_EQ(answer.text.substr(0, ended.text.size()), ended.text);
  const double before = harness_.Metric("mneme_generated_tokens_total");
  Ask("my father", {.max_tokens = 20, .ignore_eos = true});
  EXPECT_EQ(harness_.Metric("mneme_generated_tokens_total"), before + 20);
}

TEST_F(GenerateTest, EmptyMemoryStillAnswers) {
  const Answer answer = Ask("anything");
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.text, "");
  EXPECT_EQ(answer.result.reason, FinishReason::kStop);
}

TEST_F(GenerateTest, DrawsRepeatWithTheSeed) {
  harness_.Ingest("m", "d", RandomText(1, 100), true);
  const GenerateOptions draw{.max_tokens = 12, .temperature = 5, .seed = 7};
  const Answer one = Ask("wind", draw), again = Ask("wind", draw);
  GenerateOptions other = draw;
  other.seed = 8;
  ASSERT_TRUE(one.status.ok()) << one.status;
  EXPECT_EQ(one.text, again.text);
  EXPECT_NE(one.text, Ask("wind", other).text);
}

TEST_F(GenerateTest, OptionsHaveTheirLimits) {
  const auto code = [&](GenerateOptions options) { return Ask("x", options).status.code(); };
  EXPECT_EQ(code({.max_tokens = 0}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.max_tokens = 4097}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.temperature = -0.5}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.temperature = 11}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.temperature = std::nan("")}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.top_p = 0}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.top_p = 1.1}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Ask("").status.code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(GenerateTest, EveryStepLooksForCancellation) {
  harness_.Ingest("m", "d", "again and again and again and again and again", true);
  std::atomic<int> checks{0};
  const Answer answer = Ask("and", {.max_tokens = 4000, .temperature = 8},
                            {.cancelled = [&] { return checks.fetch_add(1) > 20; }});
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kCancelled);
  EXPECT_GT(answer.pieces.size(), 5u);
  EXPECT_LT(answer.pieces.size(), 25u);
}

TEST_F(GenerateTest, ReceiverMayStopTheAnswer) {
  harness_.Ingest("m", "d", "the keeper fed the zebra at noon", true);
  int pieces = 0;
  const auto result = harness_.engine().Generate(
      {.memories = {harness_.Memory("m")}, .question = "the keeper"}, {}, [&](GeneratePiece) {
        ++pieces;
        return false;
      });
  EXPECT_EQ(result.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(pieces, 1);
}

TEST_F(GenerateTest, ListTellsEachChunkOnce) {
  for (const char* color : {"red", "green", "blue"}) {
    harness_.Ingest("m", color, absl::StrCat("see ", color, "\n see"), true);
    ASSERT_EQ(harness_.engine().GetDocument(harness_.Document("m", color))->chunk_count, 1);
  }
  const auto ask = [&](double temperature) {
    return Ask("see", {.max_tokens = 9, .temperature = temperature, .seed = 1});
  };
  for (const double temperature : {0.0, 0.1}) {
    harness_.model().set_told_penalty(0);
    EXPECT_EQ(ask(temperature).text, "blue\n see blue\n see blue\n see");
    harness_.model().set_told_penalty(20);
    const Answer answer = ask(temperature);
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_EQ(answer.text, "blue\n see green\n see red\n see");
  }
}

TEST_F(GenerateTest, ToldChunkIsNamedWithTheScoreOfItsLandmarkAndLessWeight) {
  for (const char* color : {"red", "green"}) {
    harness_.Ingest("m", color, absl::StrCat("see ", color, "\n see"), true);
  }
  // What the newest chunk, which is told with the second token, was to the fourth.
  const auto last = [&](int penalty) {
    harness_.model().set_told_penalty(penalty);
    const Answer answer = Ask("see", {.max_tokens = 4, .temperature = 0.1});
    EXPECT_TRUE(answer.status.ok()) << answer.status;
    for (const Passage& passage : answer.pieces.back().passages) {
      if (passage.document == harness_.Document("m", "green")) return passage;
    }
    ADD_FAILURE() << "not among the passages";
    return Passage();
  };
  const Passage plain = last(0), told = last(1);
  EXPECT_EQ(told.score, plain.score);
  EXPECT_LT(told.weight, plain.weight);
}

// Both ways to choose tokens: drawn by the reader's thread, and the likeliest, by the batch thread.
class GenerateTogetherTest : public GenerateTest, public ::testing::WithParamInterface<double> {};

INSTANTIATE_TEST_SUITE_P(Temperatures, GenerateTogetherTest, ::testing::Values(0.0, 3.0),
                         [](const auto& test) { return test.param > 0 ? "Drawn" : "Likeliest"; });

TEST_P(GenerateTogetherTest, ReadersDecodeTogetherAndAnswerAsAlone) {
  constexpr int kReaders = 8;
  harness_.Ingest("m", "d", RandomText(2, 400), true);
  std::vector<std::string> alone;
  const auto options = [](int i) {
    return GenerateOptions{.max_tokens = 40,
                           .temperature = GetParam(),
                           .seed = static_cast<uint64_t>(i),
                           .ignore_eos = true};
  };
  for (int i = 0; i < kReaders; ++i) {
    alone.push_back(Ask(RandomQuestion(static_cast<uint64_t>(i), 5), options(i)).text);
  }
  const size_t before = harness_.model().upper_batches().size();
  std::vector<Answer> together(kReaders);
  std::vector<std::function<void()>> readers;
  for (int i = 0; i < kReaders; ++i) {
    readers.emplace_back([&, i] {
      together[static_cast<size_t>(i)] =
          Ask(RandomQuestion(static_cast<uint64_t>(i), 5), options(i));
    });
  }
  harness_.RunTogether([&] { EXPECT_TRUE(Ask("x", {.max_tokens = 1}).status.ok()); }, readers);
  for (size_t i = 0; i < kReaders; ++i) {
    ASSERT_TRUE(together[i].status.ok()) << together[i].status;
    EXPECT_EQ(together[i].text, alone[i]);
  }
  std::vector<size_t> batches = harness_.model().upper_batches();
  batches.erase(batches.begin(), batches.begin() + static_cast<ptrdiff_t>(before));
  EXPECT_THAT(batches, Contains(kReaders));
}

TEST_F(GenerateTest, UpperHalfThatRanOutOfMemoryIsNotRunAgain) {
  harness_.Ingest("m", "d", "again and again and again and again and again", true);
  // Of two readers together, when one has come further and the other has not.
  harness_.model().OnUpper([&] {
    return harness_.model().upper_batches().back() == 1
               ? absl::OkStatus()
               : absl::ResourceExhaustedError("no working space");
  });
  std::vector<Answer> answers(2);
  harness_.RunTogether([&] { EXPECT_TRUE(Ask("x", {.max_tokens = 1}).status.ok()); },
                       {[&] { answers[0] = Ask("and", {.max_tokens = 1}); },
                        [&] { answers[1] = Ask("and", {.max_tokens = 1}); }});
  for (const Answer& answer : answers) {
    EXPECT_EQ(answer.status.code(), absl::StatusCode::kResourceExhausted) << answer.status;
  }
  // Who held them up, and both together.
  EXPECT_THAT(harness_.model().upper_batches(), ::testing::ElementsAre(1, 2));
}

TEST_F(GenerateTest, CancelledStreamTakesNoMoreSteps) {
  harness_.Ingest("m", "d", "again and again and again and again and again", true);
  std::atomic<int> checks{0};
  const Answer answer = Ask("and", {.max_tokens = 4000, .ignore_eos = true},
                            {.cancelled = [&] { return checks.fetch_add(1) > 20; }});
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(answer.pieces.empty());
  EXPECT_LT(answer.pieces.size(), 25u);
  Ask("and", {.max_tokens = 1});  // behind the step that was under way
  const size_t steps = harness_.model().upper_batches().size();
  EXPECT_LT(steps, 25u + TokenStream::kTokensMax);
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_EQ(harness_.model().upper_batches().size(), steps);
}

TEST_F(GenerateTest, DeadlineEndsAStream) {
  harness_.Ingest("m", "d", "again and again and again and again and again", true);
  harness_.model().OnRead([] {
    absl::SleepFor(absl::Milliseconds(1));
    return absl::OkStatus();
  });
  const Answer answer = Ask("and", {.max_tokens = 4000, .ignore_eos = true},
                            {.deadline = absl::Now() + absl::Milliseconds(100)});
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(GenerateTest, SlowReceiverHoldsUpNobodyAndGetsTheSameTokens) {
  harness_.Ingest("m", "d", RandomText(2, 400), true);
  const GenerateOptions options = {.max_tokens = 300, .ignore_eos = true};
  const std::string alone = Ask("wind", options).text;
  const size_t before = harness_.model().upper_batches().size();
  Gate& gate = harness_.NewGate();
  Answer slow;
  int pieces = 0, tokens = 0;
  std::thread thread([&] {
    GenerateOptions own = options;
    own.memories = {harness_.Memory("m")};
    own.question = "wind";
    slow.status = harness_.engine()
                      .Generate(own, {},
                                [&](GeneratePiece piece) {
                                  if (++pieces == 2) gate.Pass();
                                  slow.text += piece.text;
                                  tokens += piece.token_count;
                                  return true;
                                })
                      .status();
  });
  ASSERT_TRUE(gate.WaitArrived(1));
  // The other one comes to its end, and the slow one is ahead of its receiver by no more than it
  // may be.
  EXPECT_EQ(Ask("wind", options).text, alone);
  const std::vector<size_t> batches = harness_.model().upper_batches();
  const int64_t together =
      std::count(batches.begin() + static_cast<ptrdiff_t>(before), batches.end(), size_t{2});
  EXPECT_LE(together, TokenStream::kTokensMax + 1);
  gate.Open();
  thread.join();
  EXPECT_TRUE(slow.status.ok()) << slow.status;
  EXPECT_EQ(slow.text, alone);
  EXPECT_EQ(tokens, 300);
  EXPECT_LE(pieces, 300 - TokenStream::kTokensMax + 2);  // what had waited came in one piece
}

TEST_F(GenerateTest, ErrorOfAStepEndsTheStream) {
  harness_.Ingest("m", "d", "again and again and again", true);
  std::atomic<int> reads{0};
  harness_.model().OnRead([&]() -> absl::Status {
    if (reads.fetch_add(1) == 10) return absl::InternalError("the device is lost");
    return absl::OkStatus();
  });
  const Answer answer = Ask("and", {.max_tokens = 100, .ignore_eos = true});
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(answer.status.message()), HasSubstr("the device is lost"));
  EXPECT_TRUE(Ask("and", {.max_tokens = 100}).status.ok());
}

TEST_F(GenerateTest, PagesOfTheLastTokensStayPinnedForTheNext) {
  harness_.Ingest("m", "d", "again and again and again and again", true);  // 4 chunks at most
  const char* const kReads = "mneme_page_reads_total{tier=\"host\"}";
  const double before = harness_.Metric(kReads);
  const Answer answer = Ask("and", {.max_tokens = 160, .ignore_eos = true});
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_GT(harness_.Metric(kReads), before);
  EXPECT_LT(harness_.Metric(kReads), before + 160);
  // And no longer: a purge waits for nobody.
  EXPECT_TRUE(harness_.engine().DeleteDocument(harness_.Document("m", "d")).ok());
  EXPECT_TRUE(harness_.WaitMetric("mneme_purges_total", 1));
}

TEST_F(GenerateTest, LostPagesAreDerivedAgainAndTheAnswerIsTheSame) {
  harness_.Ingest("m", "d", "the keeper fed the zebra at noon " + RandomText(3, 400), true);
  const std::string before = Ask("the keeper fed").text;
  harness_.Stop();
  harness_.LoseTable(Table::kPages);
  harness_.Start();
  const Answer answer = Ask("the keeper fed");
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.text, before);
  EXPECT_GT(harness_.Metric("mneme_pages_rederived_total"), 0);
  EXPECT_EQ(harness_.Metric("mneme_pages_unavailable_total"), 0);
}

TEST_F(GenerateTest, PagesNotKeptAreDerivedTogetherAndNoMoreOfASegmentThanIsNeeded) {
  for (int i = 0; i < 6; ++i) {
    harness_.Ingest("m", absl::StrCat("d", i), RandomText(static_cast<uint64_t>(i), 300), true);
  }
  const std::string before = Ask("the keeper fed", {.max_tokens = 1}).text;
  ASSERT_TRUE(
      harness_.engine().UpdateMemory(harness_.Memory("m"), {.retention = Retention::kText}).ok());
  harness_.Stop();
  harness_.LoseTable(Table::kPages);
  harness_.Start();
  std::vector<size_t> batches, tokens;
  harness_.model().OnForward([&](FakeModel::Segments segments) {
    batches.push_back(segments.size());
    for (const absl::Span<const TokenId> ids : segments) tokens.push_back(ids.size());
    return absl::OkStatus();
  });
  const Answer answer = Ask("the keeper fed", {.max_tokens = 1});
  harness_.model().OnForward(nullptr);
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.text, before);
  EXPECT_GT(*std::max_element(batches.begin(), batches.end()), 1u);
  EXPECT_LT(*std::min_element(tokens.begin(), tokens.end()), 64u);
  // What was derived is there for the next question.
  const double derived = harness_.Metric("mneme_pages_rederived_total");
  EXPECT_EQ(Ask("the keeper fed", {.max_tokens = 1}).text, before);
  EXPECT_EQ(harness_.Metric("mneme_pages_rederived_total"), derived);
}

TEST_F(GenerateTest, LostPagesOfAGrowingDocumentAreDerivedAsTheyWere) {
  // Open segments were cut as though the text ended there.
  std::string text;
  for (int i = 0; i < 6; ++i) {
    text += RandomText(static_cast<uint64_t>(i), 60) + "unfinish";
    {
      TestWriter writer(harness_.engine(), harness_.Document("m", "d"));
      writer.Send(text.substr(static_cast<size_t>(writer->accepted_bytes())));
      ASSERT_TRUE(writer->Flush().ok());
      ASSERT_TRUE(writer.WaitVisible(static_cast<int64_t>(text.size())));
    }
    const std::string before = Ask("the wind from", {.max_tokens = 20}).text;
    harness_.Stop();
    harness_.LoseTable(Table::kPages);
    harness_.Start();
    EXPECT_EQ(Ask("the wind from", {.max_tokens = 20}).text, before);
    EXPECT_EQ(harness_.Metric("mneme_pages_unavailable_total"), 0);
  }
}

TEST_F(GenerateTest, AnswerOutOfDamagedTextSaysSo) {
  harness_.Ingest("m", "d", "my father went home last night", true);
  EXPECT_EQ(Ask("my father went").result.damaged_passages, 0);
  ASSERT_EQ(harness_.Damage(Table::kText, "father"), 1);
  const Answer answer = Ask("my father went");
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.text, "home last night") << "its pages are whole";
  for (const GeneratePiece& piece : answer.pieces) EXPECT_THAT(piece.passages, IsEmpty());
  const int64_t chunks = harness_.engine().GetDocument(harness_.Document("m", "d"))->chunk_count;
  EXPECT_GE(answer.result.damaged_passages, 1);
  EXPECT_LE(answer.result.damaged_passages, chunks) << "each chunk once";
  EXPECT_EQ(harness_.Metric("mneme_passages_damaged_total"), answer.result.damaged_passages);
  EXPECT_EQ(Ask("my father went", {.omit_passages = true}).result.damaged_passages, 0);
}

TEST_F(GenerateTest, PagesOfDamagedTextAreDoneWithout) {
  harness_.Ingest("m", "d", "the keeper met quicksilver", true);
  ASSERT_EQ(harness_.Damage(Table::kText, "quicksilver"), 1);
  harness_.Stop();
  harness_.LoseTable(Table::kPages);
  harness_.Start();
  const Answer answer = Ask("the keeper");
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.text, "");
  EXPECT_GT(harness_.Metric("mneme_pages_unavailable_total"), 0);
  EXPECT_GE(answer.result.damaged_passages, 1);
}

TEST_F(GenerateTest, SmallHostTierMakesSmallerStepsNotOtherAnswers) {
  harness_.Ingest("m", "d", RandomText(4, 600), true);
  const std::string question = RandomQuestion(5, 40);
  const std::string before = Ask(question, {.max_tokens = 10}).text;
  harness_.Stop();
  harness_.store_options().host_page_bytes_max = 16 * 64;  // 16 pages
  harness_.Start();
  const Answer answer = Ask(question, {.max_tokens = 10});
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.text, before);
}

TEST_F(GenerateTest, DocumentDeletedUnderAnAnswerIsDoneWithout) {
  harness_.Ingest("m", "d", "again and again and again and again", true);
  std::atomic<int> pieces{0};
  const auto result = harness_.engine().Generate(
      {.memories = {harness_.Memory("m")}, .question = "and", .max_tokens = 60, .temperature = 8},
      {}, [&](GeneratePiece) {
        if (pieces.fetch_add(1) == 2) {
          EXPECT_TRUE(harness_.engine().DeleteDocument(harness_.Document("m", "d")).ok());
        }
        return true;
      });
  EXPECT_TRUE(result.ok()) << result.status();
  EXPECT_GT(pieces, 3);
}

using ScoreTest = GenerateTest;

TEST_F(ScoreTest, TextThatStandsInTheMemoryIsLikelier) {
  harness_.Ingest("m", "d", "the keeper fed the zebra at noon", true);
  const auto with = harness_.engine().Score(
      {.memories = {harness_.Memory("m")}, .prompt = "the keeper fed", .text = "the zebra"}, {});
  const auto without =
      harness_.engine().Score({.prompt = "the keeper fed", .text = "the zebra"}, {});
  ASSERT_TRUE(with.ok()) << with.status();
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_GT(with->log_likelihood, without->log_likelihood);
  double sum = 0;
  std::string joined;
  for (const auto& [text, log_likelihood] : with->tokens) {
    EXPECT_LE(log_likelihood, 0);
    sum += log_likelihood;
    joined += text;
  }
  EXPECT_NEAR(sum, with->log_likelihood, 1e-9);
  EXPECT_EQ(joined, "the zebra");
}

TEST_F(ScoreTest, LikelihoodsAreThoseOfTheSoftmax) {
  // Without memory the fake puts 10 on </s> and 0 on all others.
  const auto result = harness_.engine().Score({.text = "the"}, {});
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_THAT(result->tokens, SizeIs(1));
  const double vocab = harness_.model().config().vocab_size;
  EXPECT_NEAR(result->log_likelihood, -std::log(vocab - 1 + std::exp(10.0)), 1e-6);
}

TEST_F(ScoreTest, BadInputIsRefused) {
  const auto code = [&](ScoreOptions options) {
    return harness_.engine().Score(options, {}).status().code();
  };
  EXPECT_EQ(code({.text = ""}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.text = "\xFF"}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.prompt = "\xFF", .text = "x"}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.prompt = RandomText(1, 40), .text = RandomText(1, 40)}),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.memories = {harness_.Memory("none")}, .text = "x"}),
            absl::StatusCode::kNotFound);
}

TEST_F(ScoreTest, ListThatTellsEachChunkOnceIsLikelier) {
  for (const char* color : {"red", "green", "blue"}) {
    harness_.Ingest("m", color, absl::StrCat("see ", color, "\n see"), true);
  }
  const auto score = [&](const std::string& text) {
    return harness_.engine()
        .Score({.memories = {harness_.Memory("m")}, .prompt = "see", .text = text}, {})
        ->log_likelihood;
  };
  const std::string once = "blue\n see green\n see red\n", again = "blue\n see blue\n see blue\n";
  EXPECT_LT(score(once), score(again));
  harness_.model().set_told_penalty(20);
  EXPECT_GT(score(once), score(again));
}

}  // namespace
}  // namespace mneme
