// Flags that say how much text may be there, how long it lives and what of it is kept, shared by
// create, set and ingest.

#ifndef MNEME_CLIENT_CLI_POLICY_H_
#define MNEME_CLIENT_CLI_POLICY_H_

#include <google/protobuf/timestamp.pb.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/cli/command_line.h"
#include "client/cli/session.h"

namespace mneme {

// --retention, --ttl and --quota of a memory.
FlagSpec RetentionFlag();
FlagSpec TtlFlag(absl::string_view help);
FlagSpec QuotaFlag();

// A number with s, m, h, d or w, like 30d; "none" is infinite. INVALID_ARGUMENT otherwise.
absl::StatusOr<absl::Duration> ParseTtl(absl::string_view text);

// --as-of, of a moment to read or fork.
FlagSpec AsOfFlag();
// INVALID_ARGUMENT: neither a time like 2026-11-22T14:00:00Z nor how long ago, like 2h.
absl::Status CheckAsOfFlag(const CommandLine& line);
// Sets the field if the flag, which has been checked, is given.
template <typename Request>
void SetAsOf(const CommandLine& line, Request* request);

// A number with KiB, MiB, GiB, TiB or none of them; "none" is 0. INVALID_ARGUMENT otherwise.
absl::StatusOr<int64_t> ParseQuota(absl::string_view text);

// Checks these flags of a command line, as far as they are given.
absl::Status CheckPolicyFlags(const CommandLine& line);
// Sets them; ttl stays unset for "none". The flags have been checked.
void SetPolicy(const CommandLine& line, v1::Memory* memory);

// The moment that a checked --as-of says, `now` less a length of time; infinite future without one.
absl::StatusOr<absl::Time> ParseAsOf(absl::string_view text, absl::Time now);
void SetTimestamp(absl::Time time, google::protobuf::Timestamp* timestamp);

template <typename Request>
void SetAsOf(const CommandLine& line, Request* request) {
  if (!line.Has("--as-of")) return;
  const absl::Time as_of =
      ParseAsOf(line.Text("--as-of"), absl::Now()).value_or(absl::InfiniteFuture());
  SetTimestamp(as_of, request->mutable_as_of());
}

}  // namespace mneme

#endif  // MNEME_CLIENT_CLI_POLICY_H_
