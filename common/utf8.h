// UTF-8: where well-formed text ends. Well-formed as in table 3-7 of the Unicode standard: no
// overlong forms, no surrogates, nothing above U+10FFFF.

#ifndef MNEME_COMMON_UTF8_H_
#define MNEME_COMMON_UTF8_H_

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"

namespace mneme {

struct Utf8Prefix {
  // Bytes of the longest prefix made of whole, well-formed sequences: also the offset of the first
  // bad byte when there is one.
  size_t valid_bytes = 0;
  // The rest (1 to 3 bytes) is the beginning of a well-formed sequence: more bytes may complete it.
  bool incomplete = false;
};

// The text is well-formed when valid_bytes is its size, may become so when `incomplete`, and never
// otherwise.
Utf8Prefix ValidUtf8Prefix(absl::string_view text);

// 10xxxxxx: not the first byte of a sequence.
inline bool IsUtf8Continuation(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) == 0x80; }

// Well-formed text of which any bytes were cut off at both ends -> its whole sequences.
absl::string_view WholeUtf8(absl::string_view text);

// Size of the longest prefix of well-formed `text` that has at most `bytes_max` (>= 4) bytes and
// ends between two sequences.
size_t Utf8CutBytes(absl::string_view text, size_t bytes_max);

}  // namespace mneme

#endif  // MNEME_COMMON_UTF8_H_
