#include "model/bpe_vocabulary.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <utility>

#include "absl/numeric/bits.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/status_macros.h"
#include "model/bpe_merge.h"
#include "model/utf8.h"

namespace mneme {
namespace {

absl::Status Invalid(TokenId id, absl::string_view text, absl::string_view problem) {
  return absl::InvalidArgumentError(absl::StrCat(
      "tokenizer.model: piece ", id, " \"", absl::CHexEscape(text.substr(0, 64)), "\" ", problem));
}

bool IsUtf8(absl::string_view text) {
  while (!text.empty()) {
    const Utf8Char c = DecodeUtf8(text, /*is_end=*/true);
    if (!c.valid) return false;
    text.remove_prefix(c.bytes);
  }
  return true;
}

// Whether a piece can match normalised text at all, which holds no ' '.
bool CanMatch(const BpePiece& piece) { return !absl::StrContains(piece.text, ' '); }

std::string SpacesRestored(absl::string_view piece) {
  return absl::StrReplaceAll(piece, {{"\u2581", " "}});
}

std::u32string Characters(absl::string_view text) {
  std::u32string out;
  while (!text.empty()) {
    const Utf8Char c = DecodeUtf8(text, /*is_end=*/true);
    out.push_back(c.value);
    text.remove_prefix(c.bytes);
  }
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<BpeVocabulary>> BpeVocabulary::Create(std::vector<BpePiece> pieces) {
  std::unique_ptr<BpeVocabulary> vocabulary(new BpeVocabulary());
  vocabulary->pieces_ = std::move(pieces);
  RETURN_IF_ERROR(vocabulary->IndexPieces());
  vocabulary->BuildUserTrie();
  vocabulary->BuildMerges();
  return vocabulary;
}

TokenId BpeVocabulary::PieceToId(absl::string_view piece) const {
  const auto it = ids_.find(piece);
  return it == ids_.end() ? -1 : it->second;
}

absl::Status BpeVocabulary::IndexPieces() {
  if (pieces_.empty() || pieces_.size() > kMaxPieces) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.model: ", pieces_.size(), " pieces, expected 1 to ", kMaxPieces));
  }
  token_bytes_.assign(pieces_.size(), 0);
  std::array<bool, 256> byte_found = {};
  TokenId unknown = -1;
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const BpePiece& piece = pieces_[i];
    const auto id = static_cast<TokenId>(i);
    if (piece.text.empty()) return Invalid(id, piece.text, "is empty");
    if (piece.text.size() > kMaxPieceBytes) {
      return Invalid(
          id, piece.text,
          absl::StrCat("has ", piece.text.size(), " bytes, the most is ", kMaxPieceBytes));
    }
    if (!IsUtf8(piece.text)) return Invalid(id, piece.text, "is not UTF-8");
    if (std::isnan(piece.score)) return Invalid(id, piece.text, "has a score that is not a number");
    const auto [it, inserted] = ids_.emplace(piece.text, id);
    if (!inserted) return Invalid(id, piece.text, absl::StrCat("is piece ", it->second, " again"));
    if (piece.type == BpePiece::Type::kByte) RETURN_IF_ERROR(IndexBytePiece(id, &byte_found));
    if (piece.type == BpePiece::Type::kUnknown) {
      if (unknown >= 0) {
        return Invalid(id, piece.text, absl::StrCat("is unknown, as is piece ", unknown));
      }
      unknown = id;
    }
    if (piece.type == BpePiece::Type::kUserDefined && absl::StrContains(piece.text, '\0')) {
      return Invalid(id, piece.text, "is user-defined and holds a NUL");
    }
  }
  if (unknown < 0) return absl::InvalidArgumentError("tokenizer.model: no piece is unknown");
  const auto missing = std::find(byte_found.begin(), byte_found.end(), false);
  if (missing != byte_found.end()) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.model: no piece for byte ",
                                                   missing - byte_found.begin(),
                                                   ", byte fallback needs all 256"));
  }
  return absl::OkStatus();
}

absl::Status BpeVocabulary::IndexBytePiece(TokenId id, std::array<bool, 256>* found) {
  const std::string& text = pieces_[id].text;
  uint32_t byte = 0;
  char canonical[8] = "";
  if (text.size() == 6 && absl::SimpleHexAtoi(text.substr(1, 4), &byte)) {
    std::snprintf(canonical, sizeof(canonical), "<0x%02X>", byte & 0xff);
  }
  if (text != canonical) return Invalid(id, text, "is of type byte, but not <0x00> to <0xFF>");
  (*found)[byte] = true;
  byte_tokens_[byte] = id;
  token_bytes_[id] = static_cast<uint8_t>(byte);
  return absl::OkStatus();
}

void BpeVocabulary::BuildUserTrie() {
  user_nodes_.emplace_back();
  for (size_t i = 0; i < pieces_.size(); ++i) {
    if (pieces_[i].type != BpePiece::Type::kUserDefined || !CanMatch(pieces_[i])) continue;
    const std::string text = SpacesRestored(pieces_[i].text);
    user_first_byte_.set(static_cast<uint8_t>(text[0]));
    int node = 0;
    for (char c : text) {
      const uint64_t edge = UserEdge(node, static_cast<uint8_t>(c));
      const auto [it, inserted] = user_edges_.emplace(edge, static_cast<int>(user_nodes_.size()));
      if (inserted) {
        user_nodes_[node].has_children = true;
        user_nodes_.emplace_back();
      }
      node = it->second;
    }
    user_nodes_[node].token = static_cast<TokenId>(i);
  }
}

BpeSymbol BpeVocabulary::AddCharacter(char32_t c) {
  const auto [it, inserted] =
      char_symbols_.emplace(c, static_cast<BpeSymbol>(symbol_tokens_.size()));
  if (inserted) symbol_tokens_.push_back(-1);
  if (c < 128) ascii_symbols_[c] = it->second;
  return it->second;
}

void BpeVocabulary::AddJoins(const std::u32string& piece) {
  for (size_t i = 1; i < piece.size(); ++i) {
    const BpeSymbol left = char_symbols_.at(piece[i - 1]), right = char_symbols_.at(piece[i]);
    joins_right_[left] = true;
    if (left < kFlatJoins && right < kFlatJoins) {
      flat_joins_.set(left * kFlatJoins + right);
    } else {
      joins_.insert(PairKey(left, right));
    }
  }
}

// A piece is reachable when it splits into two parts that are each a single character or a
// reachable piece: only then can merges produce it. Shorter pieces first, so that the parts are
// known. User-defined symbols take no part: wherever one stands in the text it is matched before
// any merge.
void BpeVocabulary::BuildMerges() {
  ascii_symbols_.fill(kNoSymbol);
  std::vector<std::pair<std::u32string, TokenId>> normal;
  for (size_t i = 0; i < pieces_.size(); ++i) {
    if (pieces_[i].type != BpePiece::Type::kNormal || !CanMatch(pieces_[i])) continue;
    normal.emplace_back(Characters(SpacesRestored(pieces_[i].text)), static_cast<TokenId>(i));
  }
  std::stable_sort(normal.begin(), normal.end(),
                   [](const auto& a, const auto& b) { return a.first.size() < b.first.size(); });
  std::map<float, uint32_t, std::greater<>> ranks;
  for (const auto& [text, id] : normal) ranks[pieces_[id].score] = 0;
  uint32_t next_rank = 0;
  for (auto& [score, rank] : ranks) rank = next_rank++;

  // ASCII first: its symbols are the lowest, see kFlatJoins.
  for (const bool ascii : {true, false}) {
    for (const auto& [text, id] : normal) {
      for (char32_t c : text) {
        if ((c < 128) == ascii) AddCharacter(c);
      }
    }
  }
  joins_right_.assign(symbol_tokens_.size(), false);

  absl::flat_hash_map<std::u32string, BpeSymbol> reachable;  // of two or more characters
  std::vector<std::pair<std::u32string, BpeSymbol>> in_order;
  const auto symbol_of = [&](std::u32string part) {
    if (part.size() == 1) return char_symbols_.at(part[0]);
    const auto it = reachable.find(part);
    return it == reachable.end() ? kNoSymbol : it->second;
  };
  for (const auto& [text, id] : normal) {
    if (text.size() == 1) {
      symbol_tokens_[char_symbols_.at(text[0])] = id;
      continue;
    }
    const auto symbol = static_cast<BpeSymbol>(symbol_tokens_.size());
    bool is_reachable = false;
    for (size_t split = 1; split < text.size(); ++split) {
      const BpeSymbol left = symbol_of(text.substr(0, split));
      if (left == kNoSymbol) continue;
      const BpeSymbol right = symbol_of(text.substr(split));
      if (right == kNoSymbol) continue;
      merges_[PairKey(left, right)] = {symbol, ranks.at(pieces_[id].score)};
      is_reachable = true;
    }
    if (!is_reachable) continue;
    symbol_tokens_.push_back(id);
    reachable.emplace(text, symbol);
    in_order.emplace_back(text, symbol);
    AddJoins(text);
  }
  BuildWholeSymbols(in_order);
}

void BpeVocabulary::BuildWholeSymbols(
    const std::vector<std::pair<std::u32string, BpeSymbol>>& reachable) {
  whole_slots_.resize(absl::bit_ceil(2 * reachable.size() + 1));
  const size_t mask = whole_slots_.size() - 1;
  for (const auto& [text, symbol] : reachable) {
    std::vector<BpeSymbol> characters;
    uint64_t hash = 0;
    for (char32_t c : text) {
      characters.push_back(char_symbols_.at(c));
      hash = ExtendHash(hash, characters.back());
    }
    std::vector<BpeSymbol> merged = characters;
    std::vector<uint32_t> begins(merged.size());
    MergeSymbols(*this, &merged, &begins);
    if (merged.size() != 1) continue;
    size_t slot = hash & mask;
    while (whole_slots_[slot].symbol != kNoSymbol) slot = (slot + 1) & mask;
    whole_slots_[slot] = {symbol, static_cast<uint32_t>(whole_characters_.size()),
                          static_cast<uint32_t>(characters.size())};
    whole_characters_.insert(whole_characters_.end(), characters.begin(), characters.end());
  }
}

BpeSymbol BpeVocabulary::WholeSymbol(absl::Span<const BpeSymbol> characters, uint64_t hash) const {
  const size_t mask = whole_slots_.size() - 1;
  for (size_t i = hash & mask; whole_slots_[i].symbol != kNoSymbol; i = (i + 1) & mask) {
    const WholeSlot& slot = whole_slots_[i];
    if (slot.length == characters.size() &&
        std::equal(characters.begin(), characters.end(), whole_characters_.begin() + slot.begin)) {
      return slot.symbol;
    }
  }
  return kNoSymbol;
}

}  // namespace mneme
