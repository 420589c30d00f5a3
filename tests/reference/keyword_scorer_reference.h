// BM25 by its formula, word by word and text by text; what engine/keyword_scorer.h gathers
// in one pass over each text.

#ifndef MNEME_TESTS_REFERENCE_KEYWORD_SCORER_REFERENCE_H_
#define MNEME_TESTS_REFERENCE_KEYWORD_SCORER_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "engine/text_words.h"

namespace mneme {

// What a word is has tests of its own (text_words_test.cc).
inline std::vector<std::string> WordsReference(const std::string& text) {
  std::vector<std::string> words;
  ForEachWord(text, [&](absl::string_view word) { words.emplace_back(word); });
  return words;
}

inline std::vector<double> KeywordScoresReference(const std::string& question,
                                                  const std::vector<std::string>& texts) {
  const auto count = [](const std::string& text, const std::string& word) {
    const std::vector<std::string> words = WordsReference(text);
    return static_cast<double>(std::count(words.begin(), words.end(), word));
  };
  const auto n = static_cast<double>(texts.size());
  double average = 0;
  for (const std::string& text : texts) {
    average += static_cast<double>(WordsReference(text).size()) / n;
  }
  const std::vector<std::string> asked = WordsReference(question);
  const std::set<std::string> different(asked.begin(), asked.end());
  const double share = different.size() > 16 ? 16.0 / static_cast<double>(different.size()) : 1;
  std::vector<double> scores;
  for (const std::string& text : texts) {
    double score = 0;
    for (const std::string& word : different) {
      const double tf = count(text, word);
      if (tf == 0) continue;
      const auto df = static_cast<double>(std::count_if(
          texts.begin(), texts.end(), [&](const std::string& t) { return count(t, word) > 0; }));
      const double idf = std::log(1 + (n - df + 0.5) / (df + 0.5));
      const double length = static_cast<double>(WordsReference(text).size()) / average;
      score += idf * tf * (1.2 + 1) / (tf + 1.2 * (1 - 0.75 + 0.75 * length));
    }
    scores.push_back(share * score);
  }
  return scores;
}

}  // namespace mneme

#endif  // MNEME_TESTS_REFERENCE_KEYWORD_SCORER_REFERENCE_H_
