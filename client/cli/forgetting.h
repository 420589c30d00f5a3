// What forget and delete have in common: a deletion that was answered is waited for, and its
// receipt printed.

#ifndef MNEME_CLIENT_CLI_FORGETTING_H_
#define MNEME_CLIENT_CLI_FORGETTING_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cli/command_line.h"
#include "client/cli/session.h"
#include "google/longrunning/operations.pb.h"

namespace mneme {

// --no-wait.
FlagSpec NoWaitFlag();
// --everywhere.
FlagSpec EverywhereFlag();
// Of --json, for help.
extern const char kForgettingJsonNotes[];

// `name`: of what was deleted; `done`: in words, like "forgot log"; `begun`: how the call ended.
// Waits for the receipt, says on stderr why it takes long, and what became of the deletion when
// the call or the wait is cut off.
absl::Status FinishForgetting(Session& session, const std::string& name, const std::string& done,
                              const absl::StatusOr<google::longrunning::Operation>& begun);

}  // namespace mneme

#endif  // MNEME_CLIENT_CLI_FORGETTING_H_
