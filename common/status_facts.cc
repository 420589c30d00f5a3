#include "common/status_facts.h"

#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace mneme {
namespace {

constexpr char kByteOffsetUrl[] = "mneme/byte_offset";
constexpr char kStorageFullUrl[] = "mneme/storage_full";

}  // namespace

absl::Status WithByteOffset(absl::Status status, int64_t byte_offset) {
  status.SetPayload(kByteOffsetUrl, absl::Cord(absl::StrCat(byte_offset)));
  return status;
}

std::optional<int64_t> ByteOffsetOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kByteOffsetUrl);
  int64_t byte_offset = 0;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &byte_offset)) return std::nullopt;
  return byte_offset;
}

absl::Status WithStorageFull(absl::Status status) {
  status.SetPayload(kStorageFullUrl, absl::Cord());
  return status;
}

bool IsStorageFull(const absl::Status& status) {
  return status.GetPayload(kStorageFullUrl).has_value();
}

}  // namespace mneme
