#include "server/page_token.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/crc32c.h"
#include "server/error.h"

namespace mneme {
namespace {

constexpr int kPageSizeUsual = 100;
constexpr int kPageSizeMax = 1000;
// Format: version, crc of the list's identity, crc of everything before the position and of it,
// position.
constexpr char kVersion = 1;
constexpr size_t kHeaderBytes = 9;

std::string BigEndian(uint32_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<char>(value >> shift));
  return bytes;
}

std::string ListIdentity(absl::string_view method, absl::string_view parent) {
  return BigEndian(Crc32c(absl::StrCat(method, "\n", parent)));
}

}  // namespace

std::string MakePageToken(absl::string_view method, absl::string_view parent,
                          absl::string_view position) {
  const std::string head = absl::StrCat(std::string(1, kVersion), ListIdentity(method, parent));
  const std::string crc = BigEndian(Crc32c(position, Crc32c(head)));
  return absl::WebSafeBase64Escape(absl::StrCat(head, crc, position));
}

absl::StatusOr<std::string> ParsePageToken(absl::string_view method, absl::string_view parent,
                                           absl::string_view token) {
  std::string bytes;
  if (!absl::WebSafeBase64Unescape(token, &bytes) || bytes.size() < kHeaderBytes ||
      bytes[0] != kVersion) {
    return FieldError("page_token", token, absl::StrCat(Quoted(token), " is no page token"));
  }
  const absl::string_view all = bytes;
  const absl::string_view head = all.substr(0, 5);
  const absl::string_view position = all.substr(kHeaderBytes);
  if (BigEndian(Crc32c(position, Crc32c(head))) != all.substr(5, 4)) {
    return FieldError("page_token", token, absl::StrCat(Quoted(token), " is damaged"));
  }
  if (head.substr(1) != ListIdentity(method, parent)) {
    return FieldError(
        "page_token", token,
        absl::StrCat(Quoted(token), " belongs to another list than ", method, " of ", parent));
  }
  return std::string(position);
}

absl::StatusOr<int> PageSize(int asked) {
  if (asked < 0) {
    return FieldError("page_size", absl::StrCat(asked),
                      absl::StrCat(asked, " is negative; 0 means ", kPageSizeUsual));
  }
  return asked == 0 ? kPageSizeUsual : std::min(asked, kPageSizeMax);
}

}  // namespace mneme
