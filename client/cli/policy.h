// Flags that say how much text may be there, how long it lives and what of it is kept, shared by
// create, set and ingest.

#ifndef MNEME_CLIENT_CLI_POLICY_H_
#define MNEME_CLIENT_CLI_POLICY_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
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

// A number with KiB, MiB, GiB, TiB or none of them; "none" is 0. INVALID_ARGUMENT otherwise.
absl::StatusOr<int64_t> ParseQuota(absl::string_view text);

// Checks these flags of a command line, as far as they are given.
absl::Status CheckPolicyFlags(const CommandLine& line);
// Sets them; ttl stays unset for "none". The flags have been checked.
void SetPolicy(const CommandLine& line, v1::Memory* memory);

}  // namespace mneme

#endif  // MNEME_CLIENT_CLI_POLICY_H_
