// The commands of `mneme`, one table entry each.

#ifndef MNEME_CLIENT_CLI_COMMANDS_H_
#define MNEME_CLIENT_CLI_COMMANDS_H_

#include <vector>

#include "client/cli/command_line.h"

namespace mneme {

CommandSpec CreateCommand();
CommandSpec SetCommand();
CommandSpec IngestCommand();
CommandSpec SearchCommand();
CommandSpec AskCommand();
CommandSpec MemoriesCommand();
CommandSpec DocumentsCommand();
CommandSpec ShowCommand();
CommandSpec ForgetCommand();
CommandSpec DeleteCommand();
CommandSpec ScoreCommand();
CommandSpec VerifyCommand();
CommandSpec RepairCommand();
CommandSpec BackupCommand();
CommandSpec TopCommand();
CommandSpec StatusCommand();
CommandSpec VersionCommand();

// All of them, in the order of the help.
const std::vector<CommandSpec>& AllCommands();

}  // namespace mneme

#endif  // MNEME_CLIENT_CLI_COMMANDS_H_
