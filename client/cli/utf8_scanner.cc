#include "client/cli/utf8_scanner.h"

namespace mneme {

std::optional<int64_t> Utf8Scanner::Scan(absl::string_view piece) {
  for (char c : piece) {
    const auto byte = static_cast<uint8_t>(c);
    if (missing_ > 0) {
      if (byte < next_least_ || byte > next_most_) return sequence_begin_;
      --missing_;
      next_least_ = 0x80, next_most_ = 0xbf;
    } else if (byte >= 0x80) {
      sequence_begin_ = bytes_seen_;
      if (byte < 0xc2 || byte > 0xf4) return sequence_begin_;
      missing_ = byte >= 0xf0 ? 3 : byte >= 0xe0 ? 2 : 1;
      // Overlong forms, surrogates and what lies beyond U+10FFFF show in the second byte (Unicode,
      // table 3-7).
      if (byte == 0xe0) next_least_ = 0xa0;
      if (byte == 0xed) next_most_ = 0x9f;
      if (byte == 0xf0) next_least_ = 0x90;
      if (byte == 0xf4) next_most_ = 0x8f;
    }
    ++bytes_seen_;
  }
  return std::nullopt;
}

std::optional<int64_t> Utf8Scanner::InvalidAtEnd() const {
  if (missing_ > 0) return sequence_begin_;
  return std::nullopt;
}

}  // namespace mneme
