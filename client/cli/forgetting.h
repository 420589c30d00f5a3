// What forget and delete have in common: a deletion that was answered is waited for, and its
// receipt printed.

#ifndef MNEME_CLIENT_CLI_FORGETTING_H_
#define MNEME_CLIENT_CLI_FORGETTING_H_

#include <string>

#include "absl/status/status.h"
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

// `name`: of what was deleted; `done`: in words, like "forgot log".
absl::Status FinishForgetting(Session& session, const std::string& name, const std::string& done,
                              const google::longrunning::Operation& operation);

}  // namespace mneme

#endif  // MNEME_CLIENT_CLI_FORGETTING_H_
