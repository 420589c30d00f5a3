#include <cstddef>

#include "model/bpe_merge.h"
#include "model/bpe_vocabulary.h"
#include "model/tokenizer.h"
#include "model/utf8.h"

namespace mneme {
namespace {

constexpr char32_t kSpaceMark = 0x2581;
constexpr absl::string_view kSpaceMarkBytes = "\u2581";
constexpr absl::string_view kReplacementBytes = "\ufffd";

char32_t SpaceRestored(char32_t c) { return c == kSpaceMark ? U' ' : c; }

// The bytes that normalised text has for a character of the text, with spaces as ' '.
absl::string_view InnerBytes(absl::string_view text, const Utf8Char& c) {
  if (!c.valid) return kReplacementBytes;
  return c.value == kSpaceMark ? " " : text.substr(0, c.bytes);
}

// Whether a user-defined symbol may begin with the character whose first byte in the text is
// `first`.
inline bool MayBeginUserDefined(const BpeVocabulary& vocabulary, uint8_t first) {
  if (first < 0x80 || vocabulary.BeginsUserDefined(first))
    return vocabulary.BeginsUserDefined(first);
  // U+2581 stands for a space, and a malformed byte counts as U+FFFD: its own value tells nothing.
  return (first == static_cast<uint8_t>(kSpaceMarkBytes[0]) && vocabulary.BeginsUserDefined(' ')) ||
         vocabulary.BeginsUserDefined(static_cast<uint8_t>(kReplacementBytes[0]));
}

}  // namespace

StreamingEncoder::StreamingEncoder(const Tokenizer& tokenizer, Checkpoint from)
    : tokenizer_(&tokenizer),
      base_offset_(from.byte_offset),
      at_begin_(from.at_begin),
      prefix_to_come_(from.at_begin && tokenizer.add_dummy_prefix_) {}

void StreamingEncoder::Append(absl::string_view text, std::vector<Token>* tokens) {
  if (pending_.empty()) {
    const size_t emitted = EmitUnits(text, /*is_end=*/false, tokens);
    pending_.assign(text.data() + emitted, text.size() - emitted);
  } else {
    pending_.append(text.data(), text.size());
    pending_.erase(0, EmitUnits(pending_, /*is_end=*/false, tokens));
  }
}

void StreamingEncoder::Finish(std::vector<Token>* tokens) {
  EmitUnits(pending_, /*is_end=*/true, tokens);
  pending_.clear();
}

size_t StreamingEncoder::EmitUnits(absl::string_view text, bool is_end,
                                   std::vector<Token>* tokens) {
  const BpeVocabulary& vocabulary = *tokenizer_->vocabulary_;
  // The text from the beginning of the unit on, and how much of it went before.
  absl::string_view rest = text;
  const auto emit = [&] {
    const size_t bytes = unit_bytes_;
    EmitUnit(rest, tokens);
    rest.remove_prefix(bytes);
  };
  while (unit_bytes_ < rest.size()) {
    TokenId user_token = -1;
    size_t user_end = 0;
    const uint8_t first = prefix_to_come_ ? ' ' : static_cast<uint8_t>(rest[unit_bytes_]);
    const UserMatch match =
        MayBeginUserDefined(vocabulary, first)
            ? MatchUserDefined(rest, unit_bytes_, is_end, &user_token, &user_end)
            : UserMatch::kNone;
    if (match == UserMatch::kNeedsMore) break;
    if (match == UserMatch::kFound) {
      const size_t user_bytes = user_end - unit_bytes_;
      if (!unit_symbols_.empty()) emit();
      tokens->push_back({user_token, base_offset_, true});
      base_offset_ += static_cast<int64_t>(user_bytes);
      rest.remove_prefix(user_bytes);
      at_begin_ = prefix_to_come_ = false;
      continue;
    }
    if (prefix_to_come_) {
      AddToUnit(vocabulary.CharSymbol(U' '), 0);
      prefix_to_come_ = false;
      continue;
    }
    const Utf8Char c = DecodeUtf8(rest.substr(unit_bytes_), is_end);
    if (c.bytes == 0) break;
    const BpeSymbol symbol = vocabulary.CharSymbol(SpaceRestored(c.value));
    if (!unit_symbols_.empty() && (!vocabulary.Joins(unit_symbols_.back(), symbol) ||
                                   unit_bytes_ + c.bytes > size_t{kMaxPendingBytes})) {
      emit();
    }
    AddToUnit(symbol, c.bytes);
    // Nothing can follow in the same unit: no need to wait for the next character.
    if (!vocabulary.JoinsRight(symbol)) emit();
  }
  if (is_end && !unit_symbols_.empty()) emit();
  return text.size() - rest.size();
}

StreamingEncoder::UserMatch StreamingEncoder::MatchUserDefined(absl::string_view text, size_t begin,
                                                               bool is_end, TokenId* token,
                                                               size_t* end) const {
  const BpeVocabulary& vocabulary = *tokenizer_->vocabulary_;
  int node = prefix_to_come_ ? vocabulary.UserNext(0, ' ') : 0;
  size_t at = begin;
  UserMatch match = UserMatch::kNone;
  const auto note_match = [&] {
    if (vocabulary.UserToken(node) < 0) return;
    match = UserMatch::kFound;
    *token = vocabulary.UserToken(node);
    *end = at;
  };
  note_match();
  while (vocabulary.UserHasNext(node)) {
    if (at == text.size()) return is_end ? match : UserMatch::kNeedsMore;
    const Utf8Char c = DecodeUtf8(text.substr(at), is_end);
    if (c.bytes == 0) return UserMatch::kNeedsMore;
    for (char byte : InnerBytes(text.substr(at), c)) {
      node = vocabulary.UserNext(node, static_cast<uint8_t>(byte));
      if (node < 0) return match;
    }
    at += c.bytes;
    note_match();
  }
  return match;
}

void StreamingEncoder::AddToUnit(int32_t symbol, size_t bytes) {
  unit_symbols_.push_back(symbol);
  unit_begins_.push_back(static_cast<uint32_t>(unit_bytes_));
  unit_bytes_ += bytes;
  unit_hash_ = BpeVocabulary::ExtendHash(unit_hash_, symbol);
}

void StreamingEncoder::MergeUnit() {
  const BpeVocabulary& vocabulary = *tokenizer_->vocabulary_;
  if (unit_symbols_.size() == 1) return;
  const BpeSymbol whole = vocabulary.WholeSymbol(unit_symbols_, unit_hash_);
  if (whole == kNoSymbol) {
    MergeSymbols(vocabulary, &unit_symbols_, &unit_begins_);
    return;
  }
  unit_symbols_.assign(1, whole);
  unit_begins_.resize(1);
}

void StreamingEncoder::EmitUnit(absl::string_view text, std::vector<Token>* tokens) {
  MergeUnit();
  // A unit of the dummy prefix alone takes no text; neither does a dummy prefix that did not merge.
  const bool prefix_alone = at_begin_ && tokenizer_->add_dummy_prefix_ &&
                            (unit_bytes_ == 0 || (unit_begins_.size() > 1 && unit_begins_[1] == 0));
  for (size_t i = 0; i < unit_symbols_.size(); ++i) {
    if (i == 0 && prefix_alone) {
      EmitSymbol(kSpaceMarkBytes.substr(0, 0), unit_symbols_[i], 0, true, tokens);
    } else {
      EmitSymbol(text, unit_symbols_[i], unit_begins_[i], i == 0, tokens);
    }
  }
  base_offset_ += static_cast<int64_t>(unit_bytes_);
  at_begin_ = false;
  unit_symbols_.clear();
  unit_begins_.clear();
  unit_bytes_ = 0;
  unit_hash_ = 0;
}

void StreamingEncoder::EmitSymbol(absl::string_view text, int32_t symbol, size_t begin,
                                  bool can_restart, std::vector<Token>* tokens) {
  const BpeVocabulary& vocabulary = *tokenizer_->vocabulary_;
  const auto offset = base_offset_ + static_cast<int64_t>(begin);
  const TokenId token = vocabulary.SymbolToken(symbol);
  if (token >= 0) {
    tokens->push_back({token, offset, can_restart});
    return;
  }
  // No piece: one token for each byte. Without text it is the dummy prefix.
  absl::string_view bytes = kSpaceMarkBytes;
  if (begin < text.size()) {
    const Utf8Char c = DecodeUtf8(text.substr(begin), /*is_end=*/true);
    bytes = InnerBytes(text.substr(begin), c);
    if (bytes == " ") bytes = kSpaceMarkBytes;
  }
  for (char byte : bytes) {
    tokens->push_back({vocabulary.ByteToken(static_cast<uint8_t>(byte)), offset, can_restart});
    can_restart = false;
  }
}

}  // namespace mneme
