#include "engine/keyword_scorer.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/ascii.h"

namespace mneme {
namespace {

constexpr double kSaturation = 1.2;       // k1
constexpr double kLengthWeighing = 0.75;  // b

// Bytes of the sign with which `text`, not empty, begins; 0: it begins with (a part of) a letter or
// a digit.
size_t SignBytes(absl::string_view text) {
  const auto byte = [text](size_t i) {
    return i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{0};
  };
  if (byte(0) < 0x80) return absl::ascii_isalnum(byte(0)) ? 0 : 1;
  if (byte(0) == 0xC2) return std::min<size_t>(2, text.size());
  const bool is_sign = (byte(0) == 0xE2 && (byte(1) == 0x80 || byte(1) == 0x81)) ||
                       (byte(0) == 0xE3 && byte(1) == 0x80);
  return is_sign ? std::min<size_t>(3, text.size()) : 0;
}

// Visits the words of `text` in lower case; `visit` may keep none of them.
void ForEachWord(absl::string_view text, absl::FunctionRef<void(absl::string_view)> visit) {
  std::string word;
  const auto end_word = [&] {
    if (!word.empty()) visit(word);
    word.clear();
  };
  while (!text.empty()) {
    const size_t sign_bytes = SignBytes(text);
    if (sign_bytes == 0) {
      word += absl::ascii_tolower(static_cast<unsigned char>(text.front()));
    } else {
      end_word();
    }
    text.remove_prefix(std::max<size_t>(1, sign_bytes));
  }
  end_word();
}

struct TextWords {
  double count = 0;                            // all of them
  std::vector<std::pair<size_t, int>> shared;  // word of the question, how often
};

}  // namespace

std::vector<double> KeywordScores(absl::string_view question,
                                  absl::Span<const absl::string_view> texts) {
  absl::flat_hash_map<std::string, size_t> wanted;
  ForEachWord(question, [&](absl::string_view word) { wanted.try_emplace(word, wanted.size()); });

  std::vector<TextWords> words_of(texts.size());
  std::vector<double> texts_with(wanted.size());
  std::vector<int> found(wanted.size());  // in the text at hand; between two texts all 0
  double words = 0;
  for (size_t t = 0; t < texts.size(); ++t) {
    TextWords& of_text = words_of[t];
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
  std::vector<double> scores(texts.size());
  for (size_t t = 0; t < texts.size(); ++t) {
    // Not 0 where there is a shared word, and unused where there is none.
    const double length = words_of[t].count * text_count / words;
    for (const auto& [word, times] : words_of[t].shared) {
      const double df = texts_with[word];
      scores[t] += std::log1p((text_count - df + 0.5) / (df + 0.5)) * times * (kSaturation + 1) /
                   (times + kSaturation * (1 - kLengthWeighing + kLengthWeighing * length));
    }
  }
  return scores;
}

}  // namespace mneme
