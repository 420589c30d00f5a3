#include "client/cli/commands.h"

namespace mneme {

const std::vector<CommandSpec>& AllCommands() {
  static const auto& commands = *new std::vector<CommandSpec>{
      CreateCommand(),   SetCommand(),       IngestCommand(), SearchCommand(), AskCommand(),
      MemoriesCommand(), DocumentsCommand(), ShowCommand(),   ForgetCommand(), DeleteCommand(),
      ScoreCommand(),    VerifyCommand(),    RepairCommand(), BackupCommand(), TopCommand(),
      StatusCommand(),   VersionCommand()};
  return commands;
}

}  // namespace mneme
