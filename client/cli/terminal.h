// Text for people: what documents hold made harmless for a terminal, wrapped, and numbers made
// readable.

#ifndef MNEME_CLIENT_CLI_TERMINAL_H_
#define MNEME_CLIENT_CLI_TERMINAL_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace mneme {

// Control characters (C0, DEL, C1), characters that turn the direction of text, and bytes that are
// not UTF-8 as \xNN or \u{NNNN}; all else unchanged. Newlines and tabs stay when `keep_lines` is
// set.
std::string EscapeForTerminal(absl::string_view text, bool keep_lines = false);
// Each run of whitespace as one space, none at the ends.
std::string SqueezeWhitespace(absl::string_view text);
// `text` squeezed, escaped and broken into lines of at most `width` columns, each after `indent`
// spaces and ending in "\n".
std::string Paragraph(absl::string_view text, int indent, int width);
// At most `columns` characters, the last one an ellipsis when something was cut.
std::string Shorten(absl::string_view text, int columns);
// Characters in UTF-8 text.
int CountColumns(absl::string_view text);

// 1234567 -> "1,234,567".
std::string WithCommas(int64_t number);
// (1, "memory", "memories") -> "1 memory", (1234, ...) -> "1,234 memories".
std::string Counted(int64_t number, absl::string_view one, absl::string_view many);
// 1234567 -> "1.2 MB".
std::string HumanBytes(double bytes);
// "0:07", "12:34", "1:02:03".
std::string HumanSeconds(double seconds);

// Columns of the terminal that `fd` is, or 100 when it is none.
int TerminalColumns(int fd);

}  // namespace mneme

#endif  // MNEME_CLIENT_CLI_TERMINAL_H_
