// Decoding of UTF-8 one character at a time, by the rules of the SentencePiece program: a byte that
// begins no valid sequence stands alone for U+FFFD.

#ifndef MNEME_MODEL_UTF8_H_
#define MNEME_MODEL_UTF8_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace mneme {

constexpr char32_t kReplacementCharacter = 0xfffd;

struct Utf8Char {
  char32_t value = 0;
  uint8_t bytes = 0;  // that it takes in the text; 0: the text ends inside a sequence that may
                      // still become valid
  bool valid = true;  // false: `value` is U+FFFD in place of one malformed byte
};

// The character at the beginning of `text`, which must not be empty. With `is_end`, nothing follows
// the text, so a sequence that is cut off is malformed.
inline Utf8Char DecodeUtf8(absl::string_view text, bool is_end) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {lead, 1, true};
  const uint8_t length = (lead & 0xe0) == 0xc0   ? 2
                         : (lead & 0xf0) == 0xe0 ? 3
                         : (lead & 0xf8) == 0xf0 ? 4
                                                 : 0;
  constexpr Utf8Char kMalformed = {kReplacementCharacter, 1, false};
  if (length == 0) return kMalformed;
  char32_t value = lead & (0xff >> (length + 1));
  for (uint8_t i = 1; i < length; ++i) {
    if (i == text.size()) return is_end ? kMalformed : Utf8Char{0, 0, true};
    if ((byte(i) & 0xc0) != 0x80) return kMalformed;
    value = value << 6 | (byte(i) & 0x3f);
  }
  constexpr char32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool is_surrogate = value >= 0xd800 && value < 0xe000;
  if (value < kSmallest[length] || is_surrogate || value > 0x10ffff) return kMalformed;
  return {value, length, true};
}

}  // namespace mneme

#endif  // MNEME_MODEL_UTF8_H_
