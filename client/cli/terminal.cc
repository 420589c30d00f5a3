#include "client/cli/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace mneme {
namespace {

// The code point that begins at text[0] and its length in bytes; length 0 for bytes that are not
// UTF-8.
struct CodePoint {
  uint32_t value = 0;
  size_t bytes = 0;
};

CodePoint FirstCodePoint(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const size_t bytes = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < bytes) return {};
  uint32_t value = lead & (0xff >> (bytes + 1));
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {};
    value = value << 6 | (byte(i) & 0x3f);
  }
  constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  if (value < kLeast[bytes] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) return {};
  return {value, bytes};
}

bool IsHarmful(uint32_t c) {
  return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x200e || c == 0x200f ||
         (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

}  // namespace

std::string EscapeForTerminal(absl::string_view text, bool keep_lines) {
  std::string result;
  while (!text.empty()) {
    const CodePoint c = FirstCodePoint(text);
    const size_t bytes = std::max<size_t>(c.bytes, 1);
    if (c.bytes == 0 || (c.value < 0x80 && IsHarmful(c.value) &&
                         !(keep_lines && (text[0] == '\n' || text[0] == '\t')))) {
      absl::StrAppend(&result, absl::StrFormat("\\x%02x", static_cast<uint8_t>(text[0])));
    } else if (c.value >= 0x80 && IsHarmful(c.value)) {
      absl::StrAppend(&result, absl::StrFormat("\\u{%x}", c.value));
    } else {
      absl::StrAppend(&result, text.substr(0, bytes));
    }
    text.remove_prefix(bytes);
  }
  return result;
}

std::string SqueezeWhitespace(absl::string_view text) {
  std::string result;
  for (char c : text) {
    if (!absl::ascii_isspace(static_cast<unsigned char>(c))) {
      result += c;
    } else if (!result.empty() && result.back() != ' ') {
      result += ' ';
    }
  }
  if (!result.empty() && result.back() == ' ') result.pop_back();
  return result;
}

std::string Paragraph(absl::string_view text, int indent, int width) {
  const std::string clean = EscapeForTerminal(SqueezeWhitespace(text));
  const int room = std::max(width - indent, 20);
  std::string result, line;
  const auto end_line = [&] {
    if (!line.empty())
      absl::StrAppend(&result, std::string(static_cast<size_t>(indent), ' '), line, "\n");
    line.clear();
  };
  for (size_t begin = 0; begin < clean.size();) {
    const size_t end = std::min(clean.find(' ', begin), clean.size());
    absl::string_view word = absl::string_view(clean).substr(begin, end - begin);
    if (!line.empty() && CountColumns(line) + 1 + CountColumns(word) > room) end_line();
    if (!line.empty()) line += ' ';
    // A word longer than a line is cut, between characters.
    while (CountColumns(line) + CountColumns(word) > room) {
      while (CountColumns(line) < room) {
        const size_t bytes = std::max<size_t>(FirstCodePoint(word).bytes, 1);
        absl::StrAppend(&line, word.substr(0, bytes));
        word.remove_prefix(bytes);
      }
      end_line();
    }
    absl::StrAppend(&line, word);
    begin = end + 1;
  }
  end_line();
  return result;
}

std::string Shorten(absl::string_view text, int columns) {
  if (CountColumns(text) <= columns) return std::string(text);
  std::string result;
  while (CountColumns(result) < columns - 1) {
    const size_t bytes = std::max<size_t>(FirstCodePoint(text).bytes, 1);
    absl::StrAppend(&result, text.substr(0, bytes));
    text.remove_prefix(bytes);
  }
  return result + "\xe2\x80\xa6";
}

int CountColumns(absl::string_view text) {
  return static_cast<int>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

std::string WithCommas(int64_t number) {
  std::string digits = absl::StrCat(std::abs(number));
  for (int at = static_cast<int>(digits.size()) - 3; at > 0; at -= 3)
    digits.insert(static_cast<size_t>(at), ",");
  return number < 0 ? "-" + digits : digits;
}

std::string Counted(int64_t number, absl::string_view one, absl::string_view many) {
  return absl::StrCat(WithCommas(number), " ", number == 1 ? one : many);
}

std::string HumanBytes(double bytes) {
  if (bytes < 1e3) return absl::StrFormat("%.0f bytes", bytes);
  if (bytes < 1e6) return absl::StrFormat("%.1f kB", bytes / 1e3);
  if (bytes < 1e9) return absl::StrFormat("%.1f MB", bytes / 1e6);
  return absl::StrFormat("%.2f GB", bytes / 1e9);
}

std::string HumanSeconds(double seconds) {
  const auto whole = static_cast<int64_t>(std::llround(std::min(seconds, 3.6e8)));
  if (whole < 3600) return absl::StrFormat("%d:%02d", whole / 60, whole % 60);
  return absl::StrFormat("%d:%02d:%02d", whole / 3600, whole / 60 % 60, whole % 60);
}

int TerminalColumns(int fd) {
  struct winsize size;
  if (isatty(fd) && ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col >= 20) return size.ws_col;
  return 100;
}

}  // namespace mneme
