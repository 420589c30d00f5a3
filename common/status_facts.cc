#include "common/status_facts.h"

#include <string>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace mneme {
namespace {

constexpr char kByteOffsetUrl[] = "mneme/byte_offset";
constexpr char kStorageFullUrl[] = "mneme/storage_full";
constexpr char kQuotaUrl[] = "mneme/quota";

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

absl::Status WithQuota(absl::Status status, const QuotaFact& fact) {
  const int64_t retry_us = fact.retry_after ? absl::ToInt64Microseconds(*fact.retry_after) : -1;
  status.SetPayload(kQuotaUrl, absl::Cord(absl::StrCat(
                                   fact.quota, "\n", fact.scope, "\n", fact.limit, "\n", fact.used,
                                   "\n", fact.asked, "\n", retry_us, "\n", fact.is_watermark, "\n",
                                   fact.free, "\n", fact.free_needed)));
  return status;
}

std::optional<QuotaFact> QuotaOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kQuotaUrl);
  if (!payload) return std::nullopt;
  const std::vector<std::string> lines = absl::StrSplit(std::string(*payload), '\n');
  QuotaFact fact;
  int64_t retry_us = 0, is_watermark = 0;
  if (lines.size() != 9 || !absl::SimpleAtoi(lines[2], &fact.limit) ||
      !absl::SimpleAtoi(lines[3], &fact.used) || !absl::SimpleAtoi(lines[4], &fact.asked) ||
      !absl::SimpleAtoi(lines[5], &retry_us) || !absl::SimpleAtoi(lines[6], &is_watermark) ||
      !absl::SimpleAtoi(lines[7], &fact.free) || !absl::SimpleAtoi(lines[8], &fact.free_needed)) {
    return std::nullopt;
  }
  fact.quota = lines[0];
  fact.scope = lines[1];
  if (retry_us >= 0) fact.retry_after = absl::Microseconds(retry_us);
  fact.is_watermark = is_watermark != 0;
  return fact;
}

}  // namespace mneme
