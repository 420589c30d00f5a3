#include "server/config_key_kinds.h"

#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/strip.h"

namespace mneme {

absl::Status NotAllowed(absl::string_view value, absl::string_view allowed) {
  return absl::InvalidArgumentError(absl::StrCat("\"", value, "\" is not allowed: ", allowed));
}

bool ParseBytes(absl::string_view text, int64_t* bytes) {
  int shift = 0;
  for (const auto& [suffix, bits] :
       {std::pair<absl::string_view, int>{"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}}) {
    if (absl::ConsumeSuffix(&text, suffix)) {
      shift = bits;
      break;
    }
  }
  int64_t count;
  if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(text), &count)) return false;
  if (count < 0 || count > (std::numeric_limits<int64_t>::max() >> shift)) return false;
  *bytes = count << shift;
  return true;
}

}  // namespace mneme
