// The command line of mneme-server, the environment beside it, and --help.

#include <cstdio>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "server/config.h"

namespace mneme {
namespace {

absl::Status ApplyFile(const std::string& path, ServerConfig* config) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream contents;
  // An empty file cannot be inserted, but it was read; a folder opens, but cannot be read.
  const bool is_empty = file.is_open() && file.peek() == EOF && !file.bad();
  if (!is_empty && (!file || !(contents << file.rdbuf()))) {
    return absl::NotFoundError(absl::StrCat("--config: cannot read \"", path, "\""));
  }
  return ApplyYaml(contents.str(), path, config);
}

// Variables of the client program, which share the prefix.
constexpr absl::string_view kClientEnvironment[] = {"MNEME_ADDRESS"};

absl::Status ApplyEnvironment(absl::Span<const std::string> environment, ServerConfig* config) {
  for (const std::string& entry : environment) {
    if (!absl::StartsWith(entry, kConfigEnvironmentPrefix)) continue;
    const std::pair<std::string, std::string> variable =
        absl::StrSplit(entry, absl::MaxSplits('=', 1));
    const auto& [name, value] = variable;
    if (absl::c_linear_search(kClientEnvironment, name)) continue;
    const ConfigKey* key = nullptr;
    for (const ConfigKey& candidate : ConfigKeys()) {
      if (candidate.environment() == name) key = &candidate;
    }
    if (key == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("environment: unknown variable ", name, " (see --help)"));
    }
    RETURN_IF_ERROR(SetKey(*key, value, absl::StrCat("environment ", name), config));
  }
  return absl::OkStatus();
}

// Flags that stand for one key.
struct KeyFlag {
  absl::string_view flag;
  absl::string_view key;
};
constexpr KeyFlag kKeyFlags[] = {
    {"--data-dir", "store.data_dir"}, {"--model", "model.path"},
    {"--listen", "server.listen"},    {"--http", "server.http"},
    {"--device", "model.device"},     {"--log-level", "server.log_level"},
};

// One assignment of a key by a flag, in the order of the command line.
struct Assignment {
  const ConfigKey* key;
  std::string value;
  std::string source;
};

absl::StatusOr<Assignment> ParseSet(const std::string& value) {
  const size_t equals = value.find('=');
  if (equals == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("--set \"", value, "\": not section.key=value"));
  }
  const std::string name = value.substr(0, equals);
  const ConfigKey* key = FindKey(name);
  if (key == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("--set: unknown key \"", name, "\" (see --help)"));
  }
  return Assignment{key, value.substr(equals + 1), "--set"};
}

}  // namespace

absl::StatusOr<CommandLine> ParseCommandLine(absl::Span<const std::string> args,
                                             absl::Span<const std::string> environment) {
  CommandLine command;
  std::vector<Assignment> assignments;
  std::string config_path;
  for (size_t i = 0; i < args.size(); ++i) {
    std::string flag = args[i];
    if (flag == "--help" || flag == "-h") {
      command.action = CommandLine::Action::kHelp;
      return command;
    }
    if (flag == "--version") {
      command.action = CommandLine::Action::kVersion;
      return command;
    }
    if (flag == "--verify-only") {
      command.action = CommandLine::Action::kVerify;
      continue;
    }
    if (flag == "--restore-damaged") {
      command.restore_damaged = true;
      continue;
    }
    if (flag == "--print-config") {
      command.action = CommandLine::Action::kPrintConfig;
      continue;
    }
    std::string value;
    bool has_value = false;
    if (const size_t equals = flag.find('='); equals != std::string::npos) {
      value = flag.substr(equals + 1);
      flag.resize(equals);
      has_value = true;
    }
    const KeyFlag* key_flag = nullptr;
    for (const KeyFlag& candidate : kKeyFlags) {
      if (candidate.flag == flag) key_flag = &candidate;
    }
    if (key_flag == nullptr && flag != "--config" && flag != "--set" && flag != "--restore-from") {
      return absl::InvalidArgumentError(
          absl::StrCat(absl::StartsWith(flag, "-") ? "unknown flag " : "unexpected argument ", flag,
                       " (see --help)"));
    }
    if (!has_value) {
      if (i + 1 == args.size()) {
        return absl::InvalidArgumentError(absl::StrCat("flag ", flag, " needs a value"));
      }
      value = args[++i];
    }
    if (flag == "--config") {
      config_path = value;
    } else if (flag == "--restore-from") {
      if (value.empty()) return absl::InvalidArgumentError("--restore-from: the value is empty");
      command.action = CommandLine::Action::kRestore;
      command.restore_from = value;
    } else if (flag == "--set") {
      ASSIGN_OR_RETURN(Assignment assignment, ParseSet(value));
      assignments.push_back(std::move(assignment));
    } else {
      assignments.push_back({FindKey(key_flag->key), value, flag});
    }
  }
  if (command.restore_damaged && command.action != CommandLine::Action::kRestore) {
    return absl::InvalidArgumentError("--restore-damaged goes with --restore-from");
  }
  if (!config_path.empty()) RETURN_IF_ERROR(ApplyFile(config_path, &command.config));
  RETURN_IF_ERROR(ApplyEnvironment(environment, &command.config));
  for (const Assignment& assignment : assignments) {
    RETURN_IF_ERROR(SetKey(*assignment.key, assignment.value, assignment.source, &command.config));
  }
  RETURN_IF_ERROR(CheckConfig(command.config));
  return command;
}

std::string HelpText() {
  std::string text =
      "mneme-server: serves memories over gRPC, metrics and health over HTTP.\n"
      "\n"
      "Usage: mneme-server [flags]\n"
      "\n"
      "Without flags it listens on 127.0.0.1 (gRPC 7420, HTTP 7421), keeps its data in "
      "./mneme-data and\n"
      "loads the bundle mneme-small that comes with the program.\n"
      "\n"
      "Flags (--flag value or --flag=value):\n";
  for (const KeyFlag& flag : kKeyFlags) {
    const ConfigKey& key = *FindKey(flag.key);
    absl::StrAppend(&text, absl::StrFormat("  %-24s %s (%s) [key %s]\n", std::string(flag.flag),
                                           key.help, key.allowed, key.full_name()));
  }
  absl::StrAppend(
      &text,
      "  --set section.key=value  Sets any key below; may be repeated, the last one counts.\n"
      "  --config FILE            YAML file of sections and keys.\n"
      "  --print-config           Prints the effective configuration as YAML (which --config "
      "takes) and exits.\n"
      "  --verify-only            Reads everything in the data directory, which no server may "
      "use,\n"
      "                           says what is damaged, writes nothing, and exits with 1 if "
      "anything is.\n"
      "  --restore-from DIR[:ID]  Restores a backup (the newest, or the one of that id) into the "
      "data directory,\n"
      "                           which must be empty, and exits.\n"
      "  --restore-damaged        With it: also a backup of which only derived data is damaged; "
      "the server\n"
      "                           derives that again (mneme repair).\n"
      "  --version                Prints version, commit and backends and exits.\n"
      "  --help                   Prints this text and exits.\n"
      "\n"
      "Configuration: defaults < file (--config) < environment (MNEME_SECTION_KEY, for example\n"
      "MNEME_STORE_DATA_DIR) < flags. Unknown flags, keys, variables and values are errors.\n"
      "Exit status: 0 after a drain (SIGTERM or SIGINT), 1 error, 2 usage or configuration.\n");
  const ServerConfig defaults;
  std::string section;
  for (const ConfigKey& key : ConfigKeys()) {
    if (key.section != section) {
      section = key.section;
      absl::StrAppend(&text, "\n", section, ":\n");
    }
    const std::string value = key.get(defaults);
    absl::StrAppend(&text, "  ", key.name, " = ", value.empty() ? "\"\"" : value,
                    key.unit().empty() ? "" : " ", key.unit(), "\n      ", key.help, " (",
                    key.allowed, ")\n");
  }
  return text;
}

}  // namespace mneme
