// What the program makes of text: escaping, wrapping, numbers, the progress line, words of an
// explanation, UTF-8.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "absl/strings/str_split.h"
#include "client/cli/progress_line.h"
#include "client/cli/terminal.h"
#include "client/cli/utf8_scanner.h"
#include "client/cli/word_weights.h"

namespace mneme {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(TerminalTest, ControlCharactersAreShownNotSent) {
  EXPECT_EQ(EscapeForTerminal("a\x1b[31mred\x07\x7f"), "a\\x1b[31mred\\x07\\x7f");
  EXPECT_EQ(EscapeForTerminal("line\nnext\ttab\r"), "line\\x0anext\\x09tab\\x0d");
  EXPECT_EQ(EscapeForTerminal("line\nnext\ttab\r", true), "line\nnext\ttab\\x0d");
  // C1 control CSI, right-to-left override, and bytes that are not UTF-8.
  EXPECT_EQ(EscapeForTerminal("\xc2\x9b"
                              "31m \xe2\x80\xae \xff\xc3"),
            "\\u{9b}31m \\u{202e} \\xff\\xc3");
  EXPECT_EQ(EscapeForTerminal("na\xc3\xafve \xe6\xbc\xa2 \xf0\x9f\x98\x80"),
            "na\xc3\xafve \xe6\xbc\xa2 \xf0\x9f\x98\x80");
}

TEST(TerminalTest, RandomBytesNeverReachATerminalAsControls) {
  const uint64_t seed = 42;
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 2000; ++i) {
    std::string bytes(random() % 40, ' ');
    for (char& c : bytes) c = static_cast<char>(random());
    for (const std::string& shown : {EscapeForTerminal(bytes), Paragraph(bytes, 2, 30)}) {
      Utf8Scanner scanner;
      EXPECT_FALSE(scanner.Scan(shown).has_value());
      EXPECT_FALSE(scanner.InvalidAtEnd().has_value());
      for (char c : shown) EXPECT_TRUE(static_cast<unsigned char>(c) >= 0x20 || c == '\n');
      EXPECT_THAT(shown, Not(HasSubstr("\x7f")));
    }
  }
}

TEST(TerminalTest, ParagraphSqueezesAndWraps) {
  EXPECT_EQ(Paragraph("  one two\n\n three   four five six ", 2, 22),
            "  one two three four\n  five six\n");
  EXPECT_EQ(Paragraph("", 2, 22), "");
  EXPECT_EQ(Paragraph("abcdefghijklmnopqrstuvwxyz0123456789", 0, 20),
            "abcdefghijklmnopqrst\nuvwxyz0123456789\n");
}

TEST(TerminalTest, NumbersAreReadable) {
  EXPECT_EQ(WithCommas(0), "0");
  EXPECT_EQ(WithCommas(999), "999");
  EXPECT_EQ(WithCommas(1234567), "1,234,567");
  EXPECT_EQ(WithCommas(-1234), "-1,234");
  EXPECT_EQ(Counted(1, "memory", "memories"), "1 memory");
  EXPECT_EQ(Counted(0, "memory", "memories"), "0 memories");
  EXPECT_EQ(Counted(1234, "memory", "memories"), "1,234 memories");
  EXPECT_EQ(HumanBytes(12), "12 bytes");
  EXPECT_EQ(HumanBytes(835116), "835.1 kB");
  EXPECT_EQ(HumanBytes(2.5e9), "2.50 GB");
  EXPECT_EQ(HumanSeconds(7), "0:07");
  EXPECT_EQ(HumanSeconds(3723), "1:02:03");
  EXPECT_EQ(Shorten("abcdef", 6), "abcdef");
  EXPECT_EQ(Shorten("abcdefg", 6), "abcde\xe2\x80\xa6");
}

TEST(ProgressLineTest, SaysBytesPercentSpeedAndTimeLeft) {
  ProgressLine line(false);
  JobProgress progress{.what = "book.txt", .bytes_done = 0, .bytes_total = 40'000'000};
  const absl::Time begin = absl::UnixEpoch();
  line.Render(progress, begin, 150);
  progress.bytes_done = 10'000'000;
  progress.tokens_done = 25'000;
  EXPECT_EQ(line.Render(progress, begin + absl::Seconds(5), 150),
            "book.txt  [#####               ]  25%  10.0 MB of 40.0 MB  2.0 MB/s  5,000 tokens/s  "
            "ETA 0:15");
}

TEST(ProgressLineTest, WhatWasThereBeforeIsNoSpeed) {
  ProgressLine line(false);
  JobProgress progress{.what = "a",
                       .bytes_done = 5'000'000,
                       .bytes_total = 10'000'000,
                       .bytes_before = 5'000'000,
                       .tokens_done = 100,
                       .tokens_before = 100};
  line.Render(progress, absl::UnixEpoch(), 150);
  EXPECT_THAT(line.Render(progress, absl::UnixEpoch() + absl::Seconds(1), 150),
              HasSubstr("50%  5.0 MB of 10.0 MB  0 bytes/s  0 tokens/s"));
}

TEST(ProgressLineTest, FitsTheTerminal) {
  ProgressLine line(false);
  JobProgress progress{.what = "a name that is rather long, and then some more",
                       .bytes_done = 5'000'000,
                       .waiting_for = "the server"};
  for (int columns = 20; columns < 120; columns += 7)
    EXPECT_LE(CountColumns(line.Render(progress, absl::UnixEpoch(), columns)), columns);
}

v1::TokenExplanation Token(const std::string& text, double first, double second) {
  v1::TokenExplanation token;
  token.set_text(text);
  token.add_weights(first);
  token.add_weights(second);
  return token;
}

TEST(WordWeightsTest, TokensBecomeWordsWithTheirGreatestWeight) {
  google::protobuf::RepeatedPtrField<v1::TokenExplanation> tokens;
  *tokens.Add() = Token("What", 0, 0.1);
  *tokens.Add() = Token(" pass", 0.2, 0);
  *tokens.Add() = Token("word", 0.5, 0.25);
  *tokens.Add() = Token("?", 0.3, 0);
  *tokens.Add() = Token(" ", 0, 0);
  const auto words = WordsOf(tokens, 2);
  ASSERT_EQ(words.size(), 2u);
  EXPECT_EQ(words[0].word, "What");
  EXPECT_EQ(words[1].word, "password?");
  EXPECT_THAT(words[1].weights, ElementsAre(0.5, 0.25));
  EXPECT_EQ(ChosenBy(words, 0), "chosen by: password? 0.50");
  EXPECT_EQ(ChosenBy(words, 1), "chosen by: password? 0.25, What 0.10");
  EXPECT_EQ(WordTable(words, 2, 80),
            "               #1    #2\n"
            "  What          .  0.10\n"
            "  password?  0.50  0.25\n");
}

TEST(WordWeightsTest, ResponseWithTooFewWeightsIsNoCrash) {
  google::protobuf::RepeatedPtrField<v1::TokenExplanation> tokens;
  tokens.Add()->set_text("word");
  const auto words = WordsOf(tokens, 3);
  EXPECT_THAT(words.at(0).weights, ElementsAre(0, 0, 0));
  EXPECT_EQ(ChosenBy(words, 2), "chosen by: no single word");
}

TEST(Utf8ScannerTest, FindsTheFirstByteOfABadSequence) {
  const std::pair<std::string, int64_t> bad[] = {
      {"abc\xff", 3},          {"\x80", 0},
      {"a\xc0\x80", 1},        {"a\xe0\x80\x80", 1},
      {"ab\xed\xa0\x80", 2},   {"\xf4\x90\x80\x80", 0},
      {"\xf0\x80\x80\x80", 0}, {"\xf5\x80\x80\x80", 0},
      {"a\xe2\x82z", 1},
  };
  for (const auto& [text, offset] : bad) {
    Utf8Scanner scanner;
    EXPECT_EQ(scanner.Scan(text), offset) << text;
  }
  Utf8Scanner cut;
  EXPECT_EQ(cut.Scan("ab\xe2\x82"), std::nullopt);
  EXPECT_EQ(cut.InvalidAtEnd(), 2);
}

TEST(Utf8ScannerTest, SplitsDoNotMatter) {
  const std::string text =
      "na\xc3\xafve \xe6\xbc\xa2 \xf0\x9f\x98\x80\xed\x9f\xbf\xf4\x8f\xbf\xbf.";
  for (size_t split = 0; split <= text.size(); ++split) {
    Utf8Scanner scanner;
    EXPECT_EQ(scanner.Scan(text.substr(0, split)), std::nullopt);
    EXPECT_EQ(scanner.Scan(text.substr(split)), std::nullopt);
    EXPECT_EQ(scanner.InvalidAtEnd(), std::nullopt);
  }
}

}  // namespace
}  // namespace mneme
