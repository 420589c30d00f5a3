// Utf8Scanner: finds the first byte that is not UTF-8 in text that comes in pieces.

#ifndef MNEME_CLIENT_CLI_UTF8_SCANNER_H_
#define MNEME_CLIENT_CLI_UTF8_SCANNER_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace mneme {

// Thread-compatible.
class Utf8Scanner {
 public:
  // The offset, counted over all pieces, of the first byte of the first sequence that is not UTF-8;
  // nullopt when there is none up to the end of this piece. Not to be called again after it
  // returned an offset.
  std::optional<int64_t> Scan(absl::string_view piece);
  // The same for the end of the text: the offset of a sequence that it cuts.
  std::optional<int64_t> InvalidAtEnd() const;
  int64_t bytes_seen() const { return valid_bytes_ + static_cast<int64_t>(begun_.size()); }

 private:
  int64_t valid_bytes_ = 0;  // in whole sequences
  std::string begun_;        // of a sequence that the last piece cut, 0 to 3 bytes
};

}  // namespace mneme

#endif  // MNEME_CLIENT_CLI_UTF8_SCANNER_H_
