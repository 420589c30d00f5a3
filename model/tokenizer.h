// SentencePiece BPE tokenizer: text -> token ids and back, exactly as the `spm_encode` program does
// it.
//
// The model file is read through its public protobuf schema; the merges are our own
// (libsentencepiece cannot be linked beside libprotobuf). Supported: model_type BPE, normalizer
// "identity" that keeps extra whitespace, byte fallback, user-defined symbols, dummy prefix (or
// none); anything else is refused by Load with UNIMPLEMENTED and the name of the setting.
//
// How it works: the text falls into *units* between which no merge can reach, because no piece
// holds the two characters at the cut side by side (BpeVocabulary::Joins), or because a
// user-defined symbol stands there. Each unit is merged on its own, so nothing before a unit has
// any influence on its tokens; that is what makes streaming and restarting exact. A unit longer
// than StreamingEncoder::kMaxPendingBytes is cut there: only in such a run (64 KiB of text in which
// every two neighbours occur together in some piece) may tokens differ from those of spm_encode.
// Source: Kudo and Richardson, arXiv 1808.06226; sentencepiece_model.proto.

#ifndef MNEME_MODEL_TOKENIZER_H_
#define MNEME_MODEL_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace mneme {

class BpeVocabulary;

using TokenId = int32_t;

// A token and where its text begins: bytes [byte_begin, byte_begin of the next token) of the text.
// byte_begin always lies on a character boundary: of the byte-fallback tokens of one character, the
// last holds the character and those before it are empty, as is the dummy prefix when it stands
// alone.
struct Token {
  TokenId id = 0;
  int64_t byte_begin = 0;
  // Encoding can start anew at this token: from StreamingEncoder::Checkpoint{byte_begin, .at_begin
  // = false} (true for the first token of a text) come this token and all after it, whatever the
  // text before it was.
  bool can_restart = false;
};

// Immutable after Load; thread-safe.
class Tokenizer {
 public:
  // `model`: contents of a tokenizer.model file. INVALID_ARGUMENT when it is not one or is
  // truncated, UNIMPLEMENTED when it uses a setting that is not supported; both name the piece or
  // setting.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(absl::string_view model);
  ~Tokenizer();

  int vocab_size() const;
  // -1 when there is no such piece.
  TokenId PieceToId(absl::string_view piece) const;
  // The piece as the model file has it (U+2581 for a space); empty for an id outside the
  // vocabulary.
  absl::string_view IdToPiece(TokenId id) const;

  // Appends the tokens of a whole text, offsets from the beginning of `text`. Linear-time in
  // practice; no token is added. A byte that is not part of valid UTF-8 counts as U+FFFD, as in
  // spm_encode.
  void Encode(absl::string_view text, std::vector<Token>* tokens) const;
  // Text of tokens. Control tokens, <unk> and ids outside the vocabulary give nothing;
  // byte-fallback bytes may be a partial UTF-8 sequence. The dummy prefix of the first token is
  // removed when `at_begin`. Gives back what was encoded, except that a U+2581 in the text comes
  // back as a space.
  std::string Decode(absl::Span<const TokenId> ids, bool at_begin = true) const;

 private:
  friend class StreamingEncoder;
  Tokenizer(std::unique_ptr<BpeVocabulary> vocabulary, bool add_dummy_prefix);

  std::unique_ptr<BpeVocabulary> vocabulary_;
  bool add_dummy_prefix_;
};

// Encodes a text that arrives in pieces: however the bytes are split (even inside a character), the
// concatenated output equals Encode of the whole. Tokens come out as soon as the unit they belong
// to is known to be complete. Copyable (a copy's Finish tells what the tokens would be if the text
// ended here). Memory is bounded by kMaxPendingBytes, not by the text. Thread-compatible. Borrows
// the tokenizer.
class StreamingEncoder {
 public:
  // A point where encoding can start anew: text before `byte_offset` has no influence on tokens
  // after it. `at_begin` is true only at the very beginning of a text (dummy prefix).
  struct Checkpoint {
    int64_t byte_offset = 0;
    bool at_begin = true;
  };

  explicit StreamingEncoder(const Tokenizer& tokenizer)
      : StreamingEncoder(tokenizer, Checkpoint()) {}
  StreamingEncoder(const Tokenizer& tokenizer, Checkpoint from);

  // Appends text and emits settled tokens, byte_begin counted from the beginning of the text.
  void Append(absl::string_view text, std::vector<Token>* tokens);
  // The text ends here: emits what is pending. Nothing may be appended afterwards.
  void Finish(std::vector<Token>* tokens);

  // Where the first token not yet emitted begins, in the form to start anew from: an encoder that
  // starts here and is given the text from byte_offset on emits exactly the tokens that this one
  // has not emitted yet. (The same holds of every token with can_restart.)
  Checkpoint checkpoint() const { return {base_offset_, at_begin_}; }
  // Bytes appended but not yet emitted as tokens: at most kMaxPendingBytes and one user-defined
  // symbol.
  int64_t pending_bytes() const { return static_cast<int64_t>(pending_.size()); }

  // The bound on one unit. A longer run without a cut is cut there; Encode cuts at the same places.
  static constexpr int64_t kMaxPendingBytes = 1 << 16;

 private:
  friend class Tokenizer;
  enum class UserMatch { kNone, kFound, kNeedsMore };

  // Emits the units that are complete in `text`, which begins at base_offset_; returns the bytes
  // they take.
  size_t EmitUnits(absl::string_view text, bool is_end, std::vector<Token>* tokens);
  // Looks for the longest user-defined symbol at text[begin], behind the dummy prefix if that is
  // still to come.
  UserMatch MatchUserDefined(absl::string_view text, size_t begin, bool is_end, TokenId* token,
                             size_t* end) const;
  void AddToUnit(int32_t symbol, size_t bytes);
  void MergeUnit();
  // Merges and emits the unit, text[0, unit_bytes_), and leaves it empty.
  void EmitUnit(absl::string_view text, std::vector<Token>* tokens);
  void EmitSymbol(absl::string_view text, int32_t symbol, size_t begin, bool can_restart,
                  std::vector<Token>* tokens);

  const Tokenizer* tokenizer_;
  int64_t base_offset_ = 0;  // of pending_[0] in the text; a unit begins here
  bool at_begin_ = true;     // no unit has been emitted yet
  bool prefix_to_come_ =
      false;  // the dummy prefix, which stands before text[0], is not in the unit yet
  std::string pending_;
  // The unit that begins at base_offset_, as far as it is known: symbol and first byte of each
  // character, from base_offset_ on. Kept between calls, so that a long unit that arrives in small
  // pieces is looked at once.
  std::vector<int32_t> unit_symbols_;
  std::vector<uint32_t> unit_begins_;
  size_t unit_bytes_ = 0;
  uint64_t unit_hash_ = 0;
};

}  // namespace mneme

#endif  // MNEME_MODEL_TOKENIZER_H_
