#include "server/config_key_kinds.h"

#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"

namespace mneme {

absl::Status NotAllowed(absl::string_view value, absl::string_view allowed) {
  return absl::InvalidArgumentError(absl::StrCat("\"", value, "\" is not allowed: ", allowed));
}

std::optional<int64_t> ParseInteger(absl::string_view text, int64_t min, int64_t max) {
  int64_t number;
  if (!absl::SimpleAtoi(text, &number) || number < min || number > max) return std::nullopt;
  return number;
}

std::optional<int64_t> ParseBytes(absl::string_view text, int64_t min, int64_t max) {
  int shift = 0;
  for (const auto& [suffix, bits] :
       {std::pair<absl::string_view, int>{"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}}) {
    if (absl::ConsumeSuffix(&text, suffix)) {
      shift = bits;
      break;
    }
  }
  const std::optional<int64_t> count = ParseInteger(absl::StripAsciiWhitespace(text), 0,
                                                    std::numeric_limits<int64_t>::max() >> shift);
  if (!count.has_value() || *count << shift < min || *count << shift > max) return std::nullopt;
  return *count << shift;
}

std::optional<absl::Duration> ParseSeconds(absl::string_view text, double min, double max) {
  double seconds;
  // So that what is no number is refused too.
  if (!absl::SimpleAtod(text, &seconds) || !(seconds >= min && seconds <= max)) return std::nullopt;
  return absl::Seconds(seconds);
}

}  // namespace mneme
