// SentencePiece BPE tokenizer: text -> token ids and back, exactly as the `spm_encode` program does it.
//
// The model file is read through its public protobuf schema; the merges are our own (libsentencepiece cannot be linked
// beside libprotobuf). Supported: model_type BPE, normalizer "identity", byte fallback, user-defined symbols, dummy prefix;
// anything else is refused by Load with UNIMPLEMENTED and the name of the setting.
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

using TokenId = int32_t;

// A token and where its text begins: bytes [byte_begin, byte_begin of the next token) of the text.
struct Token {
  TokenId id = 0;
  int64_t byte_begin = 0;
};

// Immutable after Load; thread-safe.
class Tokenizer {
 public:
  // `model`: contents of a tokenizer.model file. INVALID_ARGUMENT when it is not one or is truncated.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(absl::string_view model);
  ~Tokenizer();

  int vocab_size() const;
  // -1 when there is no such piece.
  TokenId PieceToId(absl::string_view piece) const;

  // Tokens of a whole text (valid UTF-8), offsets from the beginning of `text`. Linear-time in practice; no token is added.
  void Encode(absl::string_view text, std::vector<Token>* tokens) const;
  // Text of tokens. Control tokens and unknown ids give nothing; byte-fallback bytes may be a partial UTF-8 sequence.
  // The dummy prefix of the first token is removed when `at_begin`.
  std::string Decode(absl::Span<const TokenId> ids, bool at_begin = true) const;

 private:
  friend class StreamingEncoder;
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Encodes a text that arrives in pieces: however the bytes are split, the concatenated output equals Encode of the whole.
// Tokens come out as soon as no later byte can change them. Copyable (a copy's Finish tells what the tokens would be if the
// text ended here). Memory is bounded by the longest run without a place to cut (see kMaxPendingBytes), not by the text.
// Thread-compatible. Borrows the tokenizer.
class StreamingEncoder {
 public:
  // A point where encoding can start anew: text before `byte_offset` has no influence on tokens after it.
  // `at_begin` is true only at the very beginning of a text (dummy prefix).
  struct Checkpoint {
    int64_t byte_offset = 0;
    bool at_begin = true;
  };

  explicit StreamingEncoder(const Tokenizer& tokenizer) : StreamingEncoder(tokenizer, Checkpoint()) {}
  StreamingEncoder(const Tokenizer& tokenizer, Checkpoint from);

  // Appends valid UTF-8 (whole sequences) and emits settled tokens, byte_begin counted from the beginning of the text.
  void Append(absl::string_view text, std::vector<Token>* tokens);
  // The text ends here: emits what is pending. Nothing may be appended afterwards.
  void Finish(std::vector<Token>* tokens);

  // The latest checkpoint at or before the first token not yet emitted; encoding again from here and dropping what was
  // emitted after it gives the same tokens.
  Checkpoint checkpoint() const;
  // Bytes appended but not yet emitted as tokens.
  int64_t pending_bytes() const;

  // The bound on pending text. A longer run without a cut is cut there; Encode cuts at the same places.
  static constexpr int64_t kMaxPendingBytes = 1 << 16;

 private:
  const Tokenizer* tokenizer_;
  int64_t base_offset_ = 0;  // of pending_[0] in the text
  bool at_begin_ = true;
  std::string pending_;
};

}  // namespace mneme

#endif  // MNEME_MODEL_TOKENIZER_H_
