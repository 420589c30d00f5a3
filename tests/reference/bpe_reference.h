// The obvious, slow SentencePiece BPE encoder: whole strings, no units, one scan for the best pair
// per merge.

#ifndef MNEME_TESTS_REFERENCE_BPE_REFERENCE_H_
#define MNEME_TESTS_REFERENCE_BPE_REFERENCE_H_

#include <algorithm>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "model/bpe_vocabulary.h"
#include "model/utf8.h"

namespace mneme {

class BpeReference {
 public:
  BpeReference(const std::vector<BpePiece>& pieces, bool add_dummy_prefix)
      : add_dummy_prefix_(add_dummy_prefix) {
    for (size_t i = 0; i < pieces.size(); ++i) {
      ids_[pieces[i].text] = static_cast<TokenId>(i);
      if (pieces[i].type == BpePiece::Type::kNormal) scores_[pieces[i].text] = pieces[i].score;
      if (pieces[i].type == BpePiece::Type::kUserDefined) user_defined_.push_back(pieces[i].text);
    }
  }

  std::vector<TokenId> Encode(absl::string_view text) const {
    std::vector<TokenId> ids;
    for (const Symbol& symbol : Merge(Split(Normalize(text)))) {
      if (symbol.frozen || scores_.contains(symbol.text)) {
        ids.push_back(ids_.at(symbol.text));
        continue;
      }
      for (unsigned char byte : symbol.text) {
        char piece[8];
        std::snprintf(piece, sizeof(piece), "<0x%02X>", byte);
        ids.push_back(ids_.at(piece));
      }
    }
    return ids;
  }

 private:
  struct Symbol {
    std::string text;
    bool frozen = false;
  };

  std::string Normalize(absl::string_view text) const {
    std::string out = add_dummy_prefix_ && !text.empty() ? "\u2581" : "";
    while (!text.empty()) {
      const Utf8Char c = DecodeUtf8(text, /*is_end=*/true);
      absl::StrAppend(&out, text[0] == ' ' ? absl::string_view("\u2581")
                            : c.valid      ? text.substr(0, c.bytes)
                                           : absl::string_view("\ufffd"));
      text.remove_prefix(c.bytes);
    }
    return out;
  }

  std::vector<Symbol> Split(absl::string_view text) const {
    std::vector<Symbol> symbols;
    while (!text.empty()) {
      size_t longest = 0;
      for (const std::string& piece : user_defined_) {
        if (text.substr(0, piece.size()) == piece) longest = std::max(longest, piece.size());
      }
      const size_t bytes = longest > 0 ? longest : DecodeUtf8(text, /*is_end=*/true).bytes;
      symbols.push_back({std::string(text.substr(0, bytes)), longest > 0});
      text.remove_prefix(bytes);
    }
    return symbols;
  }

  std::vector<Symbol> Merge(std::vector<Symbol> symbols) const {
    while (true) {
      size_t best = symbols.size();
      float best_score = 0;
      for (size_t i = 0; i + 1 < symbols.size(); ++i) {
        if (symbols[i].frozen || symbols[i + 1].frozen) continue;
        const auto it = scores_.find(symbols[i].text + symbols[i + 1].text);
        if (it == scores_.end()) continue;
        if (best == symbols.size() || it->second > best_score) {
          best = i;
          best_score = it->second;
        }
      }
      if (best == symbols.size()) return symbols;
      symbols[best].text += symbols[best + 1].text;
      symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
    }
  }

  bool add_dummy_prefix_;
  std::map<std::string, TokenId> ids_;
  std::map<std::string, float> scores_;
  std::vector<std::string> user_defined_;
};

}  // namespace mneme

#endif  // MNEME_TESTS_REFERENCE_BPE_REFERENCE_H_
