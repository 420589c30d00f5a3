// Vocabulary of a SentencePiece BPE model, turned into the tables that encoding needs.
//
// Inside the tables U+2581, which stands for a space in pieces, is ' ' again: normalised text never
// holds a real ' ', so the two are the same thing, and most text needs no rewriting before it is
// looked up. A *symbol* is anything that can stand in the sequence being merged: a character that
// occurs in some piece, or a piece that merges can reach.

#ifndef MNEME_MODEL_BPE_VOCABULARY_H_
#define MNEME_MODEL_BPE_VOCABULARY_H_

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/tokenizer.h"

namespace mneme {

using BpeSymbol = int32_t;
// A character that is in no piece: it merges with nothing.
constexpr BpeSymbol kNoSymbol = -1;

struct BpePiece {
  enum class Type { kNormal, kUserDefined, kControl, kUnknown, kByte };
  std::string text;  // as in the model file: U+2581 for a space
  float score = 0;   // of a normal piece: higher merges first
  Type type = Type::kNormal;
};

// What two neighbouring symbols become. Lower ranks merge first; equal scores have equal ranks.
struct BpeMerge {
  BpeSymbol result = kNoSymbol;
  uint32_t rank = 0;
};

// Immutable after Create; thread-safe.
class BpeVocabulary {
 public:
  // A longer piece is refused.
  static constexpr size_t kMaxPieceBytes = 1024;
  static constexpr int kMaxPieces = 1 << 20;

  // Pieces in order of their ids. INVALID_ARGUMENT names the first piece that is empty, too long,
  // not UTF-8, a duplicate, without a comparable score, or a broken byte piece, or the byte or
  // unknown piece that is missing or double.
  static absl::StatusOr<std::unique_ptr<BpeVocabulary>> Create(std::vector<BpePiece> pieces);

  const std::vector<BpePiece>& pieces() const { return pieces_; }
  // -1 when there is no such piece.
  TokenId PieceToId(absl::string_view piece) const;
  TokenId ByteToken(uint8_t byte) const { return byte_tokens_[byte]; }
  // The byte that a byte piece stands for.
  uint8_t TokenByte(TokenId id) const { return token_bytes_[id]; }

  // The symbol of a character (a space for U+2581).
  BpeSymbol CharSymbol(char32_t c) const {
    if (c < 128) return ascii_symbols_[c];
    const auto it = char_symbols_.find(c);
    return it == char_symbols_.end() ? kNoSymbol : it->second;
  }
  // The token of a symbol; -1 for a character that is no piece itself.
  TokenId SymbolToken(BpeSymbol symbol) const {
    return symbol == kNoSymbol ? -1 : symbol_tokens_[symbol];
  }
  // Null when the two do not merge.
  const BpeMerge* FindMerge(BpeSymbol left, BpeSymbol right) const {
    const auto it = merges_.find(PairKey(left, right));
    return it == merges_.end() ? nullptr : &it->second;
  }
  // Whether some reachable piece holds character `left` directly before `right`. If not, no merge
  // ever spans the two: the text may be cut between them.
  bool Joins(BpeSymbol left, BpeSymbol right) const {
    if (left < kFlatJoins && right < kFlatJoins) {
      return left >= 0 && right >= 0 && flat_joins_[left * kFlatJoins + right];
    }
    return joins_.contains(PairKey(left, right));
  }
  // Whether Joins(left, anything).
  bool JoinsRight(BpeSymbol left) const { return left != kNoSymbol && joins_right_[left]; }

  // Hash of a sequence of symbols, one symbol at a time; of the empty sequence: 0.
  static uint64_t ExtendHash(uint64_t hash, BpeSymbol symbol) {
    hash = (hash ^ static_cast<uint32_t>(symbol)) * 0x9e3779b97f4a7c15;
    return hash ^ hash >> 32;
  }
  // The one symbol that these characters merge into when they stand alone; kNoSymbol when they do
  // not become one. Saves the merging of common words. `hash`: of `characters`.
  BpeSymbol WholeSymbol(absl::Span<const BpeSymbol> characters, uint64_t hash) const;

  // Trie of user-defined symbols over bytes, spaces as ' '. Node 0 is the root; -1 is no node.
  bool BeginsUserDefined(uint8_t first_byte) const { return user_first_byte_[first_byte]; }
  // Names the edge of a node for a byte: another one for every other pair.
  static uint64_t UserEdge(int node, uint8_t byte) {
    return uint64_t{static_cast<uint32_t>(node)} << 8 | byte;
  }
  int UserNext(int node, uint8_t byte) const {
    const auto it = user_edges_.find(UserEdge(node, byte));
    return it == user_edges_.end() ? -1 : it->second;
  }
  bool UserHasNext(int node) const { return user_nodes_[node].has_children; }
  // The user-defined symbol that ends at this node, or -1.
  TokenId UserToken(int node) const { return user_nodes_[node].token; }

 private:
  // Characters get the lowest symbols, those of ASCII first: Joins of the first kFlatJoins is a bit
  // table.
  static constexpr BpeSymbol kFlatJoins = 128;

  struct UserNode {
    TokenId token = -1;
    bool has_children = false;
  };

  static uint64_t PairKey(BpeSymbol left, BpeSymbol right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }

  BpeVocabulary() = default;
  absl::Status IndexPieces();
  absl::Status IndexBytePiece(TokenId id, std::array<bool, 256>* found);
  void BuildUserTrie();
  void BuildMerges();
  BpeSymbol AddCharacter(char32_t c);
  void AddJoins(const std::u32string& piece);
  void BuildWholeSymbols(const std::vector<std::pair<std::u32string, BpeSymbol>>& reachable);

  std::vector<BpePiece> pieces_;
  absl::flat_hash_map<absl::string_view, TokenId> ids_;  // views into pieces_
  std::array<TokenId, 256> byte_tokens_ = {};
  std::vector<uint8_t> token_bytes_;  // by id; 0 for a piece that is no byte

  std::array<BpeSymbol, 128> ascii_symbols_ = {};
  absl::flat_hash_map<char32_t, BpeSymbol> char_symbols_;
  std::vector<TokenId> symbol_tokens_;
  absl::flat_hash_map<uint64_t, BpeMerge> merges_;
  std::bitset<kFlatJoins * kFlatJoins> flat_joins_;
  absl::flat_hash_set<uint64_t> joins_;
  std::vector<bool> joins_right_;
  // Open addressing by hash; a slot's characters are whole_characters_[begin, begin + length).
  struct WholeSlot {
    BpeSymbol symbol = kNoSymbol;
    uint32_t begin = 0;
    uint32_t length = 0;
  };
  std::vector<WholeSlot> whole_slots_;  // a power of two of them
  std::vector<BpeSymbol> whole_characters_;

  std::bitset<256> user_first_byte_;
  std::vector<UserNode> user_nodes_;
  absl::flat_hash_map<uint64_t, int> user_edges_;
};

}  // namespace mneme

#endif  // MNEME_MODEL_BPE_VOCABULARY_H_
