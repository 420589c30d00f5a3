#include <random>

#include "gtest/gtest.h"
#include "model/tokenizer.h"
#include "tests/model/spm_models.h"

namespace mneme {
namespace {

// The tokens of `text` given in pieces of random length (bytes, so characters are split too).
// `max_piece` bytes at most.
std::vector<Token> EncodeInPieces(const Tokenizer& tokenizer, absl::string_view text,
                                  size_t max_piece, std::mt19937_64& random) {
  StreamingEncoder encoder(tokenizer);
  std::vector<Token> tokens;
  for (size_t at = 0; at < text.size();) {
    const size_t bytes = std::min(text.size() - at, random() % (max_piece + 1));
    encoder.Append(text.substr(at, bytes), &tokens);
    at += bytes;
  }
  encoder.Finish(&tokens);
  EXPECT_EQ(encoder.pending_bytes(), 0);
  EXPECT_EQ(encoder.checkpoint().byte_offset, static_cast<int64_t>(text.size()));
  return tokens;
}

std::vector<Token> EncodeFrom(const Tokenizer& tokenizer, StreamingEncoder::Checkpoint from,
                              absl::string_view text) {
  StreamingEncoder encoder(tokenizer, from);
  std::vector<Token> tokens;
  encoder.Append(text.substr(static_cast<size_t>(from.byte_offset)), &tokens);
  encoder.Finish(&tokens);
  return tokens;
}

TEST(StreamingEncoderTest, AnySplitGivesTheTokensOfTheWhole) {
  const uint64_t seed = 7;
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  const std::string text = MixedText(seed, 300'000);
  const std::vector<Token> whole = EncodeAll(ShippedTokenizer(), text);
  for (size_t max_piece : {1, 2, 7, 100, 5000, 1 << 20}) {
    ASSERT_EQ(EncodeInPieces(ShippedTokenizer(), text, max_piece, random), whole)
        << "pieces of up to " << max_piece << " bytes";
  }
}

TEST(StreamingEncoderTest, AnySplitGivesTheTokensOfTheWholeOnRandomVocabularies) {
  const uint64_t seed = 99;
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 400; ++round) {
    const RandomVocabulary vocabulary = MakeRandomVocabulary(random);
    if (vocabulary.pieces.empty()) continue;
    const auto tokenizer = TokenizerOf(WithSpecialPieces(vocabulary.pieces), round % 4 != 0);
    for (int i = 0; i < 10; ++i) {
      const std::string text = RandomText(random, vocabulary, random() % 80, /*malformed=*/true);
      ASSERT_EQ(EncodeInPieces(*tokenizer, text, 1 + random() % 12, random),
                EncodeAll(*tokenizer, text))
          << "round " << round << ", text " << testing::PrintToString(text);
    }
  }
}

TEST(StreamingEncoderTest, SplitInsideAUserDefinedSymbolIsNoDifference) {
  const std::vector<Token> whole = EncodeAll(ShippedTokenizer(), "x<doc>y");
  StreamingEncoder encoder(ShippedTokenizer());
  std::vector<Token> tokens;
  for (absl::string_view piece : {"x", "<", "do", "c>", "y"}) encoder.Append(piece, &tokens);
  encoder.Finish(&tokens);
  EXPECT_EQ(tokens, whole);
  EXPECT_EQ(tokens[1].id, ShippedTokenizer().PieceToId("<doc>"));
}

TEST(StreamingEncoderTest, UserDefinedSymbolThatDoesNotComeIsPlainText) {
  const std::vector<Token> whole = EncodeAll(ShippedTokenizer(), "x<do y");
  StreamingEncoder encoder(ShippedTokenizer());
  std::vector<Token> tokens;
  for (absl::string_view piece : {"x", "<", "do", " y"}) encoder.Append(piece, &tokens);
  encoder.Finish(&tokens);
  EXPECT_EQ(tokens, whole);
}

// The promise that a segment's text can be encoded anew without the text before it.
TEST(StreamingEncoderTest, RestartingGivesTheRest) {
  const uint64_t seed = 5;
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  const auto check = [&](const Tokenizer& tokenizer, const std::string& text) {
    const std::vector<Token> whole = EncodeAll(tokenizer, text);
    for (size_t i = 0; i < whole.size(); ++i) {
      if (!whole[i].can_restart) continue;
      const StreamingEncoder::Checkpoint from{whole[i].byte_begin, i == 0};
      ASSERT_EQ(EncodeFrom(tokenizer, from, text),
                std::vector<Token>(whole.begin() + static_cast<ptrdiff_t>(i), whole.end()))
          << "token " << i << " of " << testing::PrintToString(text);
    }
    StreamingEncoder encoder(tokenizer);
    std::vector<Token> emitted;
    for (size_t at = 0; at < text.size();) {
      const size_t bytes = std::min(text.size() - at, 1 + random() % 9);
      encoder.Append(absl::string_view(text).substr(at, bytes), &emitted);
      at += bytes;
      std::vector<Token> all = emitted;
      for (const Token& token : EncodeFrom(tokenizer, encoder.checkpoint(), text))
        all.push_back(token);
      ASSERT_EQ(all, whole) << "after " << at << " bytes of " << testing::PrintToString(text);
    }
  };
  check(ShippedTokenizer(), MixedText(seed, 2'000));
  for (int round = 0; round < 200; ++round) {
    const RandomVocabulary vocabulary = MakeRandomVocabulary(random);
    if (vocabulary.pieces.empty()) continue;
    const auto tokenizer = TokenizerOf(WithSpecialPieces(vocabulary.pieces), round % 4 != 0);
    check(*tokenizer, RandomText(random, vocabulary, random() % 50, /*malformed=*/false));
  }
}

TEST(StreamingEncoderTest, CopyTellsWhatTheTokensWouldBeIfTheTextEndedHere) {
  const std::string text = MixedText(/*seed=*/3, 3'000);
  StreamingEncoder encoder(ShippedTokenizer());
  std::vector<Token> emitted;
  for (size_t at = 0; at < text.size(); at += 11) {
    encoder.Append(absl::string_view(text).substr(at, 11), &emitted);
    StreamingEncoder copy = encoder;
    std::vector<Token> tokens = emitted;
    copy.Finish(&tokens);
    ASSERT_EQ(tokens, EncodeAll(ShippedTokenizer(), absl::string_view(text).substr(0, at + 11)));
  }
}

TEST(StreamingEncoderTest, WordsComeOutWhenTheNextBegins) {
  StreamingEncoder encoder(ShippedTokenizer());
  std::vector<Token> tokens;
  encoder.Append("some words and", &tokens);
  EXPECT_EQ(Ids(tokens), Ids(EncodeAll(ShippedTokenizer(), "some words")));
  EXPECT_EQ(encoder.pending_bytes(), 4);  // " and"
  EXPECT_EQ(encoder.checkpoint().byte_offset, 10);
  EXPECT_FALSE(encoder.checkpoint().at_begin);
}

TEST(StreamingEncoderTest, EmptyTextHasNoTokens) {
  StreamingEncoder encoder(ShippedTokenizer());
  std::vector<Token> tokens;
  encoder.Append("", &tokens);
  EXPECT_TRUE(encoder.checkpoint().at_begin);
  encoder.Finish(&tokens);
  EXPECT_TRUE(tokens.empty());
}

// One letter without end has no place to cut: memory stays bounded all the same, and a split still
// makes no difference.
TEST(StreamingEncoderTest, EndlessRunIsCutAtTheBound) {
  const auto tokenizer = TokenizerOf(WithSpecialPieces({{"a", 0},
                                                        {"aa", -1},
                                                        {"aaa", -2},
                                                        {"\u2581", 0},
                                                        {"b", 0},
                                                        {"é", 0},
                                                        {"aé", 0},
                                                        {"éa", 0}}));
  std::string text(300'000, 'a');
  text.replace(StreamingEncoder::kMaxPendingBytes - 1, 1, "é");  // a character across the bound
  const std::vector<Token> whole = EncodeAll(*tokenizer, text);
  std::vector<int64_t> restarts;
  for (const Token& token : whole) {
    if (token.can_restart) restarts.push_back(token.byte_begin);
  }
  EXPECT_EQ(restarts, (std::vector<int64_t>{0, 0, 65535, 131071, 196607, 262143}));
  StreamingEncoder encoder(*tokenizer);
  std::vector<Token> tokens;
  for (char c : text) {
    encoder.Append({&c, 1}, &tokens);
    ASSERT_LE(encoder.pending_bytes(), StreamingEncoder::kMaxPendingBytes);
  }
  encoder.Finish(&tokens);
  EXPECT_EQ(tokens, whole);
}

}  // namespace
}  // namespace mneme
