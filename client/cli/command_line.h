// CommandLine: the words after `mneme`, checked against one table of commands; the same table
// prints the help, so help and parser cannot disagree.
//
// Flags may stand anywhere: `--name value`, `--name=value`, `-k 5`, `-k5`; `--` ends them. A word
// that begins with a dash and is no flag is an error, as is a flag given twice. `-` alone is a
// positional.

#ifndef MNEME_CLIENT_CLI_COMMAND_LINE_H_
#define MNEME_CLIENT_CLI_COMMAND_LINE_H_

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mneme {

class Session;
struct CommandLine;

struct FlagSpec {
  enum class Kind { kSwitch, kText, kInteger, kNumber };
  // "--document" or "-k".
  std::string name;
  // Shown in the help, e.g. "N"; empty for a switch.
  std::string value_name;
  std::string help;
  Kind kind = Kind::kSwitch;
  // Allowed values of kInteger and kNumber, both ends included.
  double least = 0;
  double most = std::numeric_limits<int32_t>::max();
};

struct CommandSpec {
  std::string name;
  // One line for the list of commands.
  std::string summary;
  // Names and explanations of the positionals, all required but for the last
  // `optional_positionals`.
  std::vector<std::pair<std::string, std::string>> positionals;
  size_t optional_positionals = 0;
  std::vector<FlagSpec> flags;
  // Paragraphs below the flags: what happens, what --json prints, examples.
  std::string notes;
  // Index of the positional that is a path, whose bytes the file system decides; all other
  // arguments are UTF-8. -1: none is.
  int path_positional = -1;
  absl::Status (*run)(Session&) = nullptr;
  // What the table cannot say; nullptr: nothing more. INVALID_ARGUMENT means wrong usage.
  absl::Status (*check)(const CommandLine&) = nullptr;
};

// A checked command line.
struct CommandLine {
  // nullptr when none was named, which only --help and --version allow.
  const CommandSpec* command = nullptr;
  std::vector<std::string> positionals;
  // By flag name, the value as written ("" for a switch).
  std::map<std::string, std::string> flags;

  bool Has(const std::string& flag) const { return flags.count(flag) > 0; }
  std::string Text(const std::string& flag, const std::string& otherwise = "") const;
  // The flag's kind must fit; values were checked by ParseCommandLine.
  int64_t Integer(const std::string& flag, int64_t otherwise) const;
  double Number(const std::string& flag, double otherwise) const;
};

// Flags that every command takes.
const std::vector<FlagSpec>& GlobalFlags();

// `arguments` without the program's name. INVALID_ARGUMENT, with one line that names the culprit,
// for anything wrong. With --help or --version nothing else is checked.
absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<CommandSpec>& commands,
                                             const std::vector<std::string>& arguments);

// `mneme --help`.
std::string ProgramHelp(const std::vector<CommandSpec>& commands);
// `mneme COMMAND --help`.
std::string CommandHelp(const CommandSpec& command);

}  // namespace mneme

#endif  // MNEME_CLIENT_CLI_COMMAND_LINE_H_
