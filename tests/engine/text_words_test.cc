#include "engine/text_words.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace mneme {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<std::string> Words(absl::string_view text) {
  std::vector<std::string> words;
  ForEachWord(text, [&](absl::string_view word) { words.emplace_back(word); });
  return words;
}

TEST(TextWordsTest, RunsOfLettersAndDigitsInLowerCase) {
  EXPECT_THAT(Words("The A1-B2_c3, it's 3.5"),
              ElementsAre("the", "a1", "b2", "c3", "it", "s", "3", "5"));
  EXPECT_THAT(Words("key"), ElementsAre("key"));
  EXPECT_THAT(Words(""), IsEmpty());
  EXPECT_THAT(Words("?! ... __ \n"), IsEmpty());
  EXPECT_THAT(Words(absl::string_view("a\0b", 3)), ElementsAre("a", "b"));
}

TEST(TextWordsTest, AllScriptsWithoutCase) {
  EXPECT_THAT(Words("Öl, КЛЮЧ ΑΘΗΝΑ"), ElementsAre("öl", "ключ", "αθηνα"));
  EXPECT_THAT(Words("Straße STRASSE"), ElementsAre("strasse", "strasse"));
}

TEST(TextWordsTest, SignsOfAllScriptsSeparate) {
  EXPECT_THAT(Words("“key”—he said… «x» 20\u00a0€"), ElementsAre("key", "he", "said", "x", "20"));
  EXPECT_THAT(Words("その、鍵。黄铜纽扣，在（抽屉）里？"),
              ElementsAre("その", "鍵", "黄铜纽扣", "在", "抽屉", "里"));
  EXPECT_THAT(Words("كتاب الأمير، ثم؟"), ElementsAre("كتاب", "الأمير", "ثم"));
  EXPECT_THAT(Words("यह कुंजी है। धन्यवाद"), ElementsAre("यह", "कुंजी", "है", "धन्यवाद"));
  EXPECT_THAT(Words("3→4 10−2"), ElementsAre("3", "4", "10", "2"));
}

TEST(TextWordsTest, OneSpellingOfWhatLooksTheSame) {
  EXPECT_EQ(Words("na\u00efve"), Words("nai\u0308ve"));
  EXPECT_THAT(Words("ＡＢＣ１２３ CO₂"), ElementsAre("abc123", "co2"));
}

TEST(TextWordsTest, WhatCannotBeSeenIsNotThere) {
  EXPECT_THAT(Words("\ufeffamber Kranken\u00adhaus a\u200db"),
              ElementsAre("amber", "krankenhaus", "ab"));
}

TEST(TextWordsTest, OtherSymbolsAreWordsOfTheirOwn) {
  EXPECT_THAT(Words("the 🗝🔑! 20°C"), ElementsAre("the", "🗝", "🔑", "20", "°", "c"));
}

TEST(TextWordsTest, WhatIsNotUtf8HasNone) {
  EXPECT_THAT(Words("key \xc3"), IsEmpty());
  EXPECT_THAT(Words("\xff"), IsEmpty());
}

}  // namespace
}  // namespace mneme
