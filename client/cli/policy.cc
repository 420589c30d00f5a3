#include "client/cli/policy.h"

#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

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

absl::Status CheckPolicyFlags(const CommandLine& line) {
  const std::string retention = line.Text("--retention");
  if (line.Has("--retention") && retention != "keep" && retention != "text") {
    return absl::InvalidArgumentError(
        absl::StrCat("--retention ", retention, " is neither keep nor text"));
  }
  return line.Has("--ttl") ? ParseTtl(line.Text("--ttl")).status() : absl::OkStatus();
}

void SetPolicy(const CommandLine& line, v1::Memory* memory) {
  if (line.Has("--retention")) {
    memory->set_retention(line.Text("--retention") == "text" ? v1::Memory::TEXT : v1::Memory::KEEP);
  }
  if (!line.Has("--ttl")) return;
  const absl::Duration ttl = ParseTtl(line.Text("--ttl")).value_or(absl::InfiniteDuration());
  if (ttl == absl::InfiniteDuration()) return;
  memory->mutable_ttl()->set_seconds(absl::ToInt64Seconds(ttl));
  memory->mutable_ttl()->set_nanos(static_cast<int32_t>(
      absl::ToInt64Nanoseconds(ttl - absl::Seconds(absl::ToInt64Seconds(ttl)))));
}

}  // namespace mneme
