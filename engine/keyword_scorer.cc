#include "engine/keyword_scorer.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "engine/text_words.h"

namespace mneme {
namespace {

constexpr double kSaturation = 1.2;       // k1
constexpr double kLengthWeighing = 0.75;  // b

// Words of a question that count in full: of a longer one each counts for less, or a page of text
// before the question would outweigh all that the network says.
constexpr double kQuestionWords = 16;

struct SharedWords {
  double count = 0;                            // all of them
  std::vector<std::pair<size_t, int>> shared;  // word of the question, how often
};

}  // namespace

std::vector<double> KeywordScores(absl::string_view question,
                                  absl::Span<const absl::string_view> texts) {
  absl::flat_hash_map<std::string, size_t> wanted;
  ForEachWord(question, [&](absl::string_view word) { wanted.try_emplace(word, wanted.size()); });

  std::vector<SharedWords> words_of(texts.size());
  std::vector<double> texts_with(wanted.size());
  std::vector<int> found(wanted.size());  // in the text at hand; between two texts all 0
  double words = 0;
  for (size_t t = 0; t < texts.size(); ++t) {
    SharedWords& of_text = words_of[t];
    ForEachWord(texts[t], [&](absl::string_view word) {
      ++of_text.count;
      const auto it = wanted.find(word);
      if (it != wanted.end() && found[it->second]++ == 0) {
        of_text.shared.emplace_back(it->second, 0);
      }
    });
    words += of_text.count;
    for (auto& [word, times] : of_text.shared) {
      times = std::exchange(found[word], 0);
      ++texts_with[word];
    }
  }

  const double text_count = static_cast<double>(texts.size());
  const double share = std::min(1.0, kQuestionWords / static_cast<double>(wanted.size()));
  std::vector<double> scores(texts.size());
  for (size_t t = 0; t < texts.size(); ++t) {
    // Not 0 where there is a shared word, and unused where there is none.
    const double length = words_of[t].count * text_count / words;
    for (const auto& [word, times] : words_of[t].shared) {
      const double df = texts_with[word];
      scores[t] += share * std::log1p((text_count - df + 0.5) / (df + 0.5)) * times *
                   (kSaturation + 1) /
                   (times + kSaturation * (1 - kLengthWeighing + kLengthWeighing * length));
    }
  }
  return scores;
}

}  // namespace mneme
