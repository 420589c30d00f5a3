// BM25 by its formula, word by word and text by text; what engine/keyword_scorer.h gathers
// in one pass over each text.

#ifndef MNEME_TESTS_REFERENCE_KEYWORD_SCORER_REFERENCE_H_
#define MNEME_TESTS_REFERENCE_KEYWORD_SCORER_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <iterator>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace mneme {

// Words of well-formed UTF-8 whose characters beyond ASCII are all letters.
inline std::vector<std::string> WordsReference(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    const bool is_ascii = (c & 0x80) == 0;
    if (is_ascii && !(c >= 'a' && c <= 'z') && !(c >= '0' && c <= '9')) c = ' ';
  }
  std::istringstream words(text);
  return {std::istream_iterator<std::string>(words), std::istream_iterator<std::string>()};
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
  std::vector<double> scores;
  for (const std::string& text : texts) {
    double score = 0;
    for (const std::string& word : std::set<std::string>(asked.begin(), asked.end())) {
      const double tf = count(text, word);
      if (tf == 0) continue;
      const auto df = static_cast<double>(std::count_if(
          texts.begin(), texts.end(), [&](const std::string& t) { return count(t, word) > 0; }));
      const double idf = std::log(1 + (n - df + 0.5) / (df + 0.5));
      const double length = static_cast<double>(WordsReference(text).size()) / average;
      score += idf * tf * (1.2 + 1) / (tf + 1.2 * (1 - 0.75 + 0.75 * length));
    }
    scores.push_back(score);
  }
  return scores;
}

}  // namespace mneme

#endif  // MNEME_TESTS_REFERENCE_KEYWORD_SCORER_REFERENCE_H_
