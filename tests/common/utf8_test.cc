#include "common/utf8.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

namespace mneme {
namespace {

TEST(Utf8Test, WellFormedTextIsValidToItsEnd) {
  for (const std::string text :
       {"", "a", "plain ASCII text, longer than eight bytes", "ß", "日本語",
        "😀 and then ASCII again", "\xF4\x8F\xBF\xBF", "\xEE\x80\x80"}) {
    const Utf8Prefix prefix = ValidUtf8Prefix(text);
    EXPECT_EQ(prefix.valid_bytes, text.size()) << text;
    EXPECT_FALSE(prefix.incomplete);
  }
}

TEST(Utf8Test, FirstBadByteIsFound) {
  const struct {
    std::string text;
    size_t bad;
  } cases[] = {
      {"abc\x80", 3},           // continuation without a lead
      {"ab\xC0\xAF", 2},        // overlong
      {"\xC1\x81", 0},          // overlong
      {"\xE0\x80\x80", 0},      // overlong
      {"x\xED\xA0\x80", 1},     // surrogate
      {"\xF0\x80\x80\x80", 0},  // overlong
      {"\xF4\x90\x80\x80", 0},  // above U+10FFFF
      {"\xF5\x80\x80\x80", 0},  // above U+10FFFF
      {"\xFF", 0},              //
      {"12345678\xC3(", 8},     // lead without its continuation
      {"日本\xE8\xAA"
       "a",
       6},                               // three-byte sequence cut short
      {"1234567890123456\xFE tail", 16}  // beyond two words of ASCII
  };
  for (const auto& [text, bad] : cases) {
    const Utf8Prefix prefix = ValidUtf8Prefix(text);
    EXPECT_EQ(prefix.valid_bytes, bad);
    EXPECT_FALSE(prefix.incomplete) << bad;
  }
}

TEST(Utf8Test, EveryCutInsideASequenceIsIncomplete) {
  const std::string text = "aß日😀";
  const size_t begins[] = {0, 1, 3, 6, 10};
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    const Utf8Prefix prefix = ValidUtf8Prefix(text.substr(0, cut));
    size_t whole = 0;
    for (size_t begin : begins) {
      if (begin <= cut) whole = begin;
    }
    EXPECT_EQ(prefix.valid_bytes, whole) << cut;
    EXPECT_EQ(prefix.incomplete, whole != cut) << cut;
    EXPECT_EQ(WholeUtf8(absl::string_view(text).substr(0, cut)), text.substr(0, whole));
  }
}

TEST(Utf8Test, CutsFallBetweenSequences) {
  const std::string text = "aß日😀b";
  for (size_t limit = 4; limit <= text.size() + 2; ++limit) {
    const size_t cut = Utf8CutBytes(text, limit);
    EXPECT_LE(cut, limit);
    EXPECT_GT(cut + 4, std::min(limit, text.size()));
    EXPECT_EQ(ValidUtf8Prefix(text.substr(0, cut)).valid_bytes, cut);
  }
}

TEST(Utf8Test, RandomBytesNeverPassForMoreThanTheirWholeSequences) {
  constexpr uint64_t kSeed = 7;
  SCOPED_TRACE(kSeed);
  std::mt19937_64 random(kSeed);
  for (int round = 0; round < 2000; ++round) {
    std::string bytes;
    for (uint64_t i = random() % 12; i > 0; --i) bytes += static_cast<char>(random());
    const Utf8Prefix prefix = ValidUtf8Prefix(bytes);
    // The prefix is valid alone, and one more byte of what is not incomplete is not.
    EXPECT_EQ(ValidUtf8Prefix(bytes.substr(0, prefix.valid_bytes)).valid_bytes, prefix.valid_bytes);
    if (prefix.incomplete) {
      EXPECT_LE(bytes.size() - prefix.valid_bytes, 3u);
    }
  }
}

}  // namespace
}  // namespace mneme
