// Agreement with the SentencePiece program itself, `spm_encode --output_format=id` (Debian package
// sentencepiece).

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include <fstream>
#include <iostream>
#include <random>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "tests/model/spm_models.h"

namespace mneme {
namespace {

bool HaveSpmEncode() { return std::system("command -v spm_encode > /dev/null 2>&1") == 0; }

#define SKIP_WITHOUT_SPM_ENCODE()                                                               \
  if (!HaveSpmEncode()) {                                                                       \
    std::cerr << "\n*** spm_encode is not installed (Debian package sentencepiece): agreement " \
                 "with it is NOT tested ***\n\n";                                               \
    GTEST_SKIP() << "spm_encode is not installed";                                              \
  }                                                                                             \
  static_assert(true)

// The program works line by line, each line with its own dummy prefix.
std::vector<std::vector<TokenId>> SpmEncodeLines(const std::string& model,
                                                 const std::string& text) {
  const std::string base = absl::StrCat(testing::TempDir(), "/spm_agreement_", getpid());
  std::ofstream(base + ".model", std::ios::binary) << model;
  std::ofstream(base + ".txt", std::ios::binary) << text;
  const std::string command = absl::StrCat(
      "spm_encode --model=", base, ".model --output_format=id < ", base, ".txt > ", base, ".ids");
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
  std::vector<std::vector<TokenId>> lines;
  std::ifstream ids(base + ".ids");
  for (std::string line; std::getline(ids, line);) {
    std::vector<TokenId>& out = lines.emplace_back();
    for (absl::string_view word : absl::StrSplit(line, ' ', absl::SkipEmpty())) {
      out.emplace_back();
      EXPECT_TRUE(absl::SimpleAtoi(word, &out.back())) << word;
    }
  }
  for (const char* suffix : {".model", ".txt", ".ids"}) std::remove((base + suffix).c_str());
  return lines;
}

void ExpectAgreement(const std::string& model, const Tokenizer& tokenizer,
                     const std::string& text) {
  const std::vector<std::vector<TokenId>> expected = SpmEncodeLines(model, text);
  std::vector<absl::string_view> lines = absl::StrSplit(text, '\n');
  if (lines.back().empty()) lines.pop_back();
  ASSERT_EQ(lines.size(), expected.size());
  for (size_t i = 0; i < lines.size(); ++i) {
    ASSERT_EQ(Ids(EncodeAll(tokenizer, lines[i])), expected[i])
        << "line " << i << ": " << testing::PrintToString(std::string(lines[i]));
  }
}

// 4 MB: takes seconds because the program encodes 1 to 3 MB a second.
TEST(SpmAgreementTest, ShippedModelOverMegabytesOfMixedText) {
  SKIP_WITHOUT_SPM_ENCODE();
  const uint64_t seed = 2504;
  SCOPED_TRACE(seed);
  ExpectAgreement(ShippedModel(), ShippedTokenizer(), MixedText(seed, 4'000'000));
}

TEST(SpmAgreementTest, ShippedModelOverOneLongLine) {
  SKIP_WITHOUT_SPM_ENCODE();
  std::string text = MixedText(/*seed=*/16795, 300'000);
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  ExpectAgreement(ShippedModel(), ShippedTokenizer(), text);
}

TEST(SpmAgreementTest, ShippedModelOverMalformedBytesAndNul) {
  SKIP_WITHOUT_SPM_ENCODE();
  const uint64_t seed = 3;
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  std::string text = MixedText(seed, 200'000);
  for (int i = 0; i < 5'000; ++i) text[random() % text.size()] = static_cast<char>(random());
  ExpectAgreement(ShippedModel(), ShippedTokenizer(), text);
}

TEST(SpmAgreementTest, RandomVocabularies) {
  SKIP_WITHOUT_SPM_ENCODE();
  const uint64_t seed = 4096;
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 60; ++round) {
    SCOPED_TRACE(round);
    const RandomVocabulary vocabulary = MakeRandomVocabulary(random);
    if (vocabulary.pieces.empty()) continue;
    const bool dummy_prefix = round % 4 != 0;
    const std::vector<BpePiece> pieces = WithSpecialPieces(vocabulary.pieces);
    std::string text;
    for (int line = 0; line < 200; ++line) {
      absl::StrAppend(&text, RandomText(random, vocabulary, random() % 80, line % 4 == 0), "\n");
    }
    ASSERT_NO_FATAL_FAILURE(ExpectAgreement(ModelOf(pieces, dummy_prefix).SerializeAsString(),
                                            *TokenizerOf(pieces, dummy_prefix), text));
  }
}

}  // namespace
}  // namespace mneme
