#include "client/cli/word_weights.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/terminal.h"

namespace mneme {
namespace {

// Weights below this are noise to a reader.
constexpr double kShownWeight = 0.005;
constexpr int kWordColumnsMax = 20;

bool IsSpace(char c) { return absl::ascii_isspace(static_cast<unsigned char>(c)); }

}  // namespace

std::vector<WordWeights> WordsOf(
    const google::protobuf::RepeatedPtrField<v1::TokenExplanation>& tokens, int passages) {
  std::vector<WordWeights> words;
  bool word_ended = true;
  for (const auto& token : tokens) {
    if (token.text().empty()) continue;
    absl::string_view text = absl::StripAsciiWhitespace(token.text());
    if (word_ended || IsSpace(token.text().front()))
      words.push_back({"", std::vector<double>(static_cast<size_t>(passages))});
    WordWeights& word = words.back();
    absl::StrAppend(&word.word, text);
    for (int i = 0; i < std::min(passages, token.weights_size()); ++i) {
      word.weights[static_cast<size_t>(i)] =
          std::max(word.weights[static_cast<size_t>(i)], token.weights(i));
    }
    word_ended = IsSpace(token.text().back());
  }
  words.erase(std::remove_if(words.begin(), words.end(),
                             [](const WordWeights& word) { return word.word.empty(); }),
              words.end());
  return words;
}

std::string ChosenBy(const std::vector<WordWeights>& words, int passage) {
  std::vector<std::pair<double, std::string>> best;
  for (const WordWeights& word : words) {
    const double weight = word.weights[static_cast<size_t>(passage)];
    if (weight < kShownWeight) continue;
    // A question often says a word twice.
    auto same = std::find_if(best.begin(), best.end(),
                             [&](const auto& entry) { return entry.second == word.word; });
    if (same == best.end()) {
      best.emplace_back(weight, word.word);
    } else {
      same->first = std::max(same->first, weight);
    }
  }
  if (best.empty()) return "chosen by: no single word";
  std::stable_sort(best.begin(), best.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  std::string text = "chosen by:";
  for (size_t i = 0; i < std::min<size_t>(best.size(), 4); ++i) {
    absl::StrAppend(&text, i == 0 ? " " : ", ",
                    absl::StrFormat("%s %.2f", best[i].second, best[i].first));
  }
  return text;
}

std::string WordTable(const std::vector<WordWeights>& words, int passages, int width) {
  int word_columns = 4;
  for (const WordWeights& word : words) {
    word_columns = std::max(word_columns,
                            std::min(CountColumns(EscapeForTerminal(word.word)), kWordColumnsMax));
  }
  const int columns = std::min(passages, std::max(1, (width - 2 - word_columns) / 6));
  std::string table(static_cast<size_t>(2 + word_columns), ' ');
  for (int i = 1; i <= columns; ++i)
    absl::StrAppend(&table, absl::StrFormat("%6s", absl::StrCat("#", i)));
  table += "\n";
  for (const WordWeights& word : words) {
    const std::string shown = Shorten(EscapeForTerminal(word.word), kWordColumnsMax);
    absl::StrAppend(&table, "  ", shown,
                    std::string(static_cast<size_t>(word_columns - CountColumns(shown)), ' '));
    for (int i = 0; i < columns; ++i) {
      const double weight = word.weights[static_cast<size_t>(i)];
      absl::StrAppend(&table, weight >= kShownWeight ? absl::StrFormat("%6.2f", weight) : "     .");
    }
    table += "\n";
  }
  return table;
}

}  // namespace mneme
