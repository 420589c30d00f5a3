// Flags that say how long text lives and what of it is kept, shared by create, set and ingest.

#ifndef MNEME_CLIENT_CLI_POLICY_H_
#define MNEME_CLIENT_CLI_POLICY_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/cli/command_line.h"
#include "client/cli/session.h"

namespace mneme {

// --retention and --ttl of a memory.
FlagSpec RetentionFlag();
FlagSpec TtlFlag(absl::string_view help);

// A number with s, m, h, d or w, like 30d; "none" is infinite. INVALID_ARGUMENT otherwise.
absl::StatusOr<absl::Duration> ParseTtl(absl::string_view text);

// Checks the two flags of a command line, as far as they are given.
absl::Status CheckPolicyFlags(const CommandLine& line);
// Sets them; ttl stays unset for "none". The flags have been checked.
void SetPolicy(const CommandLine& line, v1::Memory* memory);

}  // namespace mneme

#endif  // MNEME_CLIENT_CLI_POLICY_H_
