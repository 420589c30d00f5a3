#include "client/cli/utf8_scanner.h"

#include "common/utf8.h"

namespace mneme {

std::optional<int64_t> Utf8Scanner::Scan(absl::string_view piece) {
  // A sequence that earlier pieces began: completed byte by byte, at most three of them.
  while (!begun_.empty() && !piece.empty()) {
    begun_.push_back(piece.front());
    piece.remove_prefix(1);
    const Utf8Prefix prefix = ValidUtf8Prefix(begun_);
    if (prefix.incomplete) continue;
    if (prefix.valid_bytes == 0) return valid_bytes_;
    valid_bytes_ += static_cast<int64_t>(begun_.size());
    begun_.clear();
  }
  const Utf8Prefix prefix = ValidUtf8Prefix(piece);
  valid_bytes_ += static_cast<int64_t>(prefix.valid_bytes);
  if (prefix.valid_bytes == piece.size()) return std::nullopt;
  if (!prefix.incomplete) return valid_bytes_;
  begun_ = std::string(piece.substr(prefix.valid_bytes));
  return std::nullopt;
}

std::optional<int64_t> Utf8Scanner::InvalidAtEnd() const {
  if (begun_.empty()) return std::nullopt;
  return valid_bytes_;
}

}  // namespace mneme
