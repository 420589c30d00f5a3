#include "engine/text_words.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

#include "absl/strings/ascii.h"

namespace mneme {
namespace {

// NFKC_Casefold of `text`; nothing for what is not UTF-8.
std::string Folded(absl::string_view text) {
  if (std::all_of(text.begin(), text.end(), absl::ascii_isascii)) {
    return absl::AsciiStrToLower(text);
  }
  uint8_t* folded = nullptr;
  const utf8proc_ssize_t size = utf8proc_map(
      reinterpret_cast<const uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
      &folded,
      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT |
                                     UTF8PROC_CASEFOLD | UTF8PROC_IGNORE));
  const std::unique_ptr<uint8_t, decltype(&std::free)> owner(folded, &std::free);
  return size < 0 ? std::string() : std::string(folded, folded + size);
}

enum class Kind { kLetter, kSymbol, kSign };

Kind KindOf(int32_t character) {
  switch (utf8proc_category(character)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return Kind::kLetter;
    case UTF8PROC_CATEGORY_SO:
      return Kind::kSymbol;
    default:
      return Kind::kSign;
  }
}

}  // namespace

void ForEachWord(absl::string_view text, absl::FunctionRef<void(absl::string_view)> visit) {
  const std::string folded = Folded(text);
  const absl::string_view rest = folded;
  const auto* const bytes = reinterpret_cast<const uint8_t*>(folded.data());
  size_t word_begin = 0;
  const auto end_word = [&](size_t end, size_t next) {
    if (end > word_begin) visit(rest.substr(word_begin, end - word_begin));
    word_begin = next;
  };
  for (size_t at = 0; at < folded.size();) {
    int32_t character = 0;
    const auto size = static_cast<size_t>(std::max<utf8proc_ssize_t>(
        1, utf8proc_iterate(bytes + at, static_cast<utf8proc_ssize_t>(folded.size() - at),
                            &character)));
    const Kind kind = KindOf(character);
    if (kind == Kind::kSign) end_word(at, at + size);
    if (kind == Kind::kSymbol) {
      end_word(at, at);
      end_word(at + size, at + size);
    }
    at += size;
  }
  end_word(folded.size(), folded.size());
}

}  // namespace mneme
