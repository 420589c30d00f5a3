#include "common/utf8.h"

#include <algorithm>
#include <cstring>

namespace mneme {
namespace {

// Bytes of the sequence at the beginning of `text`; 0: ill-formed; -1: more bytes may complete it.
int SequenceBytes(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte alone decides about overlong forms, surrogates and the upper end.
  uint8_t low = 0x80, high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return -1;
    if (byte(i) < low || byte(i) > high) return 0;
    low = 0x80;
    high = 0xBF;
  }
  return static_cast<int>(length);
}

}  // namespace

Utf8Prefix ValidUtf8Prefix(absl::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    while (at + 8 <= text.size()) {  // eight ASCII bytes at a time
      uint64_t word;
      std::memcpy(&word, text.data() + at, 8);
      if ((word & 0x8080808080808080u) != 0) break;
      at += 8;
    }
    if (at == text.size()) break;
    const int bytes = SequenceBytes(text.substr(at));
    if (bytes <= 0) return {.valid_bytes = at, .incomplete = bytes < 0};
    at += static_cast<size_t>(bytes);
  }
  return {.valid_bytes = at, .incomplete = false};
}

absl::string_view WholeUtf8(absl::string_view text) {
  while (!text.empty() && IsUtf8Continuation(text.front())) text.remove_prefix(1);
  return text.substr(0, ValidUtf8Prefix(text).valid_bytes);
}

size_t Utf8CutBytes(absl::string_view text, size_t bytes_max) {
  if (text.size() <= bytes_max) return text.size();
  size_t cut = bytes_max;
  while (cut > 0 && IsUtf8Continuation(text[cut])) --cut;
  return cut;
}

}  // namespace mneme
