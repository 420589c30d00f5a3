#include "client/cli/policy.h"

#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

absl::Duration UnitOf(char unit) {
  switch (unit) {
    case 's':
      return absl::Seconds(1);
    case 'm':
      return absl::Minutes(1);
    case 'h':
      return absl::Hours(1);
    case 'd':
      return absl::Hours(24);
    case 'w':
      return absl::Hours(24 * 7);
    default:
      return absl::ZeroDuration();
  }
}

}  // namespace

FlagSpec RetentionFlag() {
  return {"--retention", "keep|text",
          "keep: pages stay on disk; text: text and landmarks alone, pages are derived when read",
          FlagSpec::Kind::kText};
}

FlagSpec TtlFlag(absl::string_view help) {
  return {"--ttl", "TIME", absl::StrCat(help, ": a number with s, m, h, d or w, like 30d"),
          FlagSpec::Kind::kText};
}

absl::StatusOr<absl::Duration> ParseTtl(absl::string_view text) {
  if (text == "none") return absl::InfiniteDuration();
  double count = 0;
  if (!text.empty() && UnitOf(text.back()) > absl::ZeroDuration() &&
      absl::SimpleAtod(text.substr(0, text.size() - 1), &count) && count > 0 && count < 1e10) {
    return count * UnitOf(text.back());
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "--ttl ", text, " is no time: a number with s, m, h, d or w, like 30d, or none"));
}

FlagSpec AsOfFlag() {
  return {"--as-of", "TIME",
          "as it was then: a time like 2026-11-22T14:00:00Z, or so long ago, like 2h",
          FlagSpec::Kind::kText};
}

absl::StatusOr<absl::Time> ParseAsOf(absl::string_view text, absl::Time now) {
  if (const auto ago = ParseTtl(text); ago.ok() && *ago != absl::InfiniteDuration()) {
    return now - *ago;
  }
  absl::Time time;
  std::string error;
  if (absl::ParseTime(absl::RFC3339_full, text, &time, &error) && time >= absl::UnixEpoch() &&
      time != absl::InfiniteFuture()) {
    return time;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "--as-of ", text, " is neither a time like 2026-11-22T14:00:00Z nor how long ago, like 2h"));
}

absl::Status CheckAsOfFlag(const CommandLine& line) {
  return line.Has("--as-of") ? ParseAsOf(line.Text("--as-of"), absl::Now()).status()
                             : absl::OkStatus();
}

void SetTimestamp(absl::Time time, google::protobuf::Timestamp* timestamp) {
  const int64_t micros = absl::ToUnixMicros(time);
  timestamp->set_seconds(micros / 1'000'000);
  timestamp->set_nanos(static_cast<int32_t>(micros % 1'000'000 * 1000));
}

FlagSpec QuotaFlag() {
  return {"--quota", "BYTES", "text that it may hold, like 10GiB, or none", FlagSpec::Kind::kText};
}

absl::StatusOr<int64_t> ParseQuota(absl::string_view text) {
  if (text == "none") return 0;
  absl::string_view digits = text;
  int shift = 0;
  for (const auto& [suffix, bits] :
       {std::pair<absl::string_view, int>{"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}}) {
    if (absl::ConsumeSuffix(&digits, suffix)) {
      shift = bits;
      break;
    }
  }
  int64_t count = 0;
  if (absl::SimpleAtoi(digits, &count) && count > 0 &&
      count <= (std::numeric_limits<int64_t>::max() >> shift)) {
    return count << shift;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--quota ", text,
                   " is no size: a number above 0, alone or with KiB, MiB, GiB or TiB, or none"));
}

absl::Status CheckPolicyFlags(const CommandLine& line) {
  const std::string retention = line.Text("--retention");
  if (line.Has("--retention") && retention != "keep" && retention != "text") {
    return absl::InvalidArgumentError(
        absl::StrCat("--retention ", retention, " is neither keep nor text"));
  }
  if (line.Has("--quota")) RETURN_IF_ERROR(ParseQuota(line.Text("--quota")).status());
  return line.Has("--ttl") ? ParseTtl(line.Text("--ttl")).status() : absl::OkStatus();
}

void SetPolicy(const CommandLine& line, v1::Memory* memory) {
  if (line.Has("--retention")) {
    memory->set_retention(line.Text("--retention") == "text" ? v1::Memory::TEXT : v1::Memory::KEEP);
  }
  if (line.Has("--quota")) {
    memory->set_quota_bytes(ParseQuota(line.Text("--quota")).value_or(0));
  }
  if (!line.Has("--ttl")) return;
  const absl::Duration ttl = ParseTtl(line.Text("--ttl")).value_or(absl::InfiniteDuration());
  if (ttl == absl::InfiniteDuration()) return;
  memory->mutable_ttl()->set_seconds(absl::ToInt64Seconds(ttl));
  memory->mutable_ttl()->set_nanos(static_cast<int32_t>(
      absl::ToInt64Nanoseconds(ttl - absl::Seconds(absl::ToInt64Seconds(ttl)))));
}

}  // namespace mneme
