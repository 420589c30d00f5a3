#include "client/cli/command_line.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "common/utf8.h"

namespace mneme {
namespace {

// Edits (insert, delete, replace a letter) from a to b.
size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row[b.size()];
}

// "; did you mean X?" when one of `known` is at most two edits away (one for short words), else "".
std::string Suggestion(absl::string_view word, const std::vector<std::string>& known) {
  std::string best;
  size_t best_distance = std::min<size_t>(word.size() / 3, 2) + 1;
  for (const std::string& candidate : known) {
    const size_t distance = EditDistance(word, candidate);
    if (distance < best_distance && distance < word.size())
      best = candidate, best_distance = distance;
  }
  return best.empty() ? "" : absl::StrCat("; did you mean ", best, "?");
}

// What whoever typed a command that is none may have meant.
std::string Hint(absl::string_view word, const std::vector<std::string>& known) {
  if (word == "restore") {
    return ": a backup is restored offline, into an empty directory, with mneme-server "
           "--restore-from DIR[:ID] --data-dir NEW";
  }
  return Suggestion(word, known);
}

// "a whole number from 1 to 64", "a number of at least 0".
std::string Expected(const FlagSpec& flag) {
  const char* kind = flag.kind == FlagSpec::Kind::kInteger ? "whole number" : "number";
  if (flag.most == FlagSpec().most)
    return absl::StrFormat("a %s of at least %.0f", kind, flag.least);
  return absl::StrFormat("a %s from %.0f to %.0f", kind, flag.least, flag.most);
}

absl::Status CheckValue(const FlagSpec& flag, const std::string& value) {
  bool good = !value.empty();
  if (flag.kind == FlagSpec::Kind::kInteger) {
    int64_t number;
    good = absl::SimpleAtoi(value, &number) && number >= flag.least && number <= flag.most;
  } else if (flag.kind == FlagSpec::Kind::kNumber) {
    double number;
    good = absl::SimpleAtod(value, &number) && std::isfinite(number) && number >= flag.least &&
           number <= flag.most;
  }
  if (good) return absl::OkStatus();
  if (value.empty())
    return absl::InvalidArgumentError(absl::StrCat(flag.name, ": the value is empty"));
  return absl::InvalidArgumentError(
      absl::StrCat(flag.name, " ", value, ": ", Expected(flag), " is expected"));
}

const FlagSpec* FindFlag(const CommandSpec* command, absl::string_view name) {
  for (const FlagSpec& flag : GlobalFlags()) {
    if (flag.name == name) return &flag;
  }
  if (command != nullptr) {
    for (const FlagSpec& flag : command->flags) {
      if (flag.name == name) return &flag;
    }
  }
  return nullptr;
}

absl::Status UnknownFlag(const CommandSpec* command, absl::string_view name) {
  std::vector<std::string> known;
  for (const FlagSpec& flag : GlobalFlags()) known.push_back(flag.name);
  if (command != nullptr) {
    for (const FlagSpec& flag : command->flags) known.push_back(flag.name);
  }
  std::string message = absl::StrCat("unknown flag ", name);
  if (command != nullptr) absl::StrAppend(&message, " of mneme ", command->name);
  std::string suggestion = Suggestion(name, known);
  if (suggestion.empty() && command != nullptr)
    suggestion = "; -- goes before text that begins with a dash";
  return absl::InvalidArgumentError(absl::StrCat(message, suggestion));
}

// What is put to the server travels as UTF-8.
absl::Status CheckUtf8(absl::string_view what, absl::string_view text) {
  const size_t valid_bytes = ValidUtf8Prefix(text).valid_bytes;
  if (valid_bytes == text.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, " is not UTF-8 at byte ", valid_bytes));
}

// One flag word and, where it takes one, its value; advances *i to the last word used.
absl::Status TakeFlag(const std::vector<std::string>& arguments, size_t* i, CommandLine* line) {
  const std::string& word = arguments[*i];
  RETURN_IF_ERROR(CheckUtf8(absl::StrCat("argument ", *i + 1), word));
  std::string name = word;
  std::optional<std::string> value;
  if (absl::StartsWith(word, "--")) {
    const size_t equals = word.find('=');
    if (equals != std::string::npos) name = word.substr(0, equals), value = word.substr(equals + 1);
  } else if (word.size() > 2) {
    name = word.substr(0, 2), value = word.substr(2);
  }
  const FlagSpec* flag = FindFlag(line->command, name);
  if (flag == nullptr)
    return UnknownFlag(line->command, absl::StartsWith(word, "--") ? name : word);
  if (flag->kind == FlagSpec::Kind::kSwitch) {
    if (value) return absl::InvalidArgumentError(absl::StrCat(name, " takes no value"));
  } else {
    if (!value) {
      if (*i + 1 >= arguments.size())
        return absl::InvalidArgumentError(absl::StrCat(name, " needs a value"));
      value = arguments[++*i];
      RETURN_IF_ERROR(CheckUtf8(name, *value));
    }
    RETURN_IF_ERROR(CheckValue(*flag, *value));
  }
  if (!line->flags.emplace(name, value.value_or("")).second) {
    return absl::InvalidArgumentError(absl::StrCat(name, " was given twice"));
  }
  return absl::OkStatus();
}

// Words of `text` in lines of at most `width`, each after `indent` spaces; the first line continues
// what was printed.
std::string Wrap(absl::string_view text, size_t indent, size_t width) {
  std::string result;
  size_t column = indent;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = std::min(text.find(' ', begin), text.size());
    absl::string_view word = text.substr(begin, end - begin);
    if (column > indent && column + 1 + word.size() > width) {
      absl::StrAppend(&result, "\n", std::string(indent, ' '));
      column = indent;
    } else if (column > indent) {
      result += ' ';
      ++column;
    }
    absl::StrAppend(&result, word);
    column += word.size();
    begin = end + 1;
  }
  return result;
}

std::string FlagHelp(const std::vector<FlagSpec>& flags) {
  std::string help;
  for (const FlagSpec& flag : flags) {
    std::string left =
        flag.value_name.empty() ? flag.name : absl::StrCat(flag.name, " ", flag.value_name);
    absl::StrAppend(&help, absl::StrFormat("  %-22s%s\n", left, Wrap(flag.help, 24, 100)));
  }
  return help;
}

// As it is shown: in brackets when it may be left out.
std::string PositionalName(const CommandSpec& command, size_t i) {
  const std::string& name = command.positionals[i].first;
  const bool optional = i + command.optional_positionals >= command.positionals.size();
  return optional ? absl::StrCat("[", name, "]") : name;
}

std::string UsageLine(const CommandSpec& command) {
  std::string usage = absl::StrCat("mneme ", command.name);
  for (size_t i = 0; i < command.positionals.size(); ++i) {
    absl::StrAppend(&usage, " ", PositionalName(command, i));
  }
  return usage;
}

}  // namespace

std::string CommandLine::Text(const std::string& flag, const std::string& otherwise) const {
  auto found = flags.find(flag);
  return found == flags.end() ? otherwise : found->second;
}

int64_t CommandLine::Integer(const std::string& flag, int64_t otherwise) const {
  auto found = flags.find(flag);
  if (found != flags.end()) (void)absl::SimpleAtoi(found->second, &otherwise);
  return otherwise;
}

double CommandLine::Number(const std::string& flag, double otherwise) const {
  auto found = flags.find(flag);
  if (found != flags.end()) (void)absl::SimpleAtod(found->second, &otherwise);
  return otherwise;
}

const std::vector<FlagSpec>& GlobalFlags() {
  static const auto& flags = *new std::vector<FlagSpec>{
      {"--json", "", "print one JSON object on standard output instead of text for people"},
      {"--address", "HOST:PORT",
       "the server (default: MNEME_ADDRESS from the environment, or 127.0.0.1:7420)",
       FlagSpec::Kind::kText},
      {"--tenant", "T", "the tenant that short memory names belong to (default: default)",
       FlagSpec::Kind::kText},
      {"--timeout", "SECONDS", "give up after this time (default: no limit)",
       FlagSpec::Kind::kNumber, 0, 1e9},
      {"--help", "", "print this help"},
      {"--version", "", "print the version"},
  };
  return flags;
}

absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<CommandSpec>& commands,
                                             const std::vector<std::string>& arguments) {
  CommandLine line;
  bool flags_ended = false;
  absl::Status wrong;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    if (!flags_ended && word == "--") {
      flags_ended = true;
    } else if (!flags_ended && word.size() > 1 && word[0] == '-') {
      absl::Status status = TakeFlag(arguments, &i, &line);
      if (wrong.ok()) wrong = status;
    } else if (line.command == nullptr) {
      RETURN_IF_ERROR(CheckUtf8("the command", word));
      for (const CommandSpec& command : commands) {
        if (command.name == word) line.command = &command;
      }
      if (line.command == nullptr) {
        std::vector<std::string> known;
        for (const CommandSpec& command : commands) known.push_back(command.name);
        return absl::InvalidArgumentError(
            absl::StrCat("unknown command ", word, Hint(word, known)));
      }
    } else {
      line.positionals.push_back(word);
    }
  }
  if (line.Has("--help") || line.Has("--version")) return line;
  RETURN_IF_ERROR(wrong);
  if (line.command == nullptr) return absl::InvalidArgumentError("no command was named");
  const auto& wanted = line.command->positionals;
  if (line.positionals.size() + line.command->optional_positionals < wanted.size()) {
    return absl::InvalidArgumentError(absl::StrCat("mneme ", line.command->name, " needs ",
                                                   wanted[line.positionals.size()].first, " (",
                                                   UsageLine(*line.command), ")"));
  }
  if (line.positionals.size() > wanted.size()) {
    return absl::InvalidArgumentError(absl::StrCat("mneme ", line.command->name, ": unexpected \"",
                                                   line.positionals[wanted.size()], "\" (",
                                                   UsageLine(*line.command), ")"));
  }
  for (size_t i = 0; i < line.positionals.size(); ++i) {
    if (static_cast<int>(i) == line.command->path_positional) continue;
    RETURN_IF_ERROR(CheckUtf8(wanted[i].first, line.positionals[i]));
  }
  if (line.command->check != nullptr) RETURN_IF_ERROR(line.command->check(line));
  return line;
}

std::string ProgramHelp(const std::vector<CommandSpec>& commands) {
  std::string help =
      "mneme talks to a Mneme server: it stores documents in memories and asks questions of "
      "them.\n\n"
      "usage: mneme COMMAND ... [FLAGS]\n\ncommands (mneme COMMAND --help says more):\n";
  for (const CommandSpec& command : commands) {
    std::string left = command.name;
    for (size_t i = 0; i < command.positionals.size(); ++i) {
      absl::StrAppend(&left, " ", PositionalName(command, i));
    }
    absl::StrAppend(&help, absl::StrFormat("  %-26s%s\n", left, command.summary));
  }
  absl::StrAppend(
      &help, "\nflags of every command:\n", FlagHelp(GlobalFlags()),
      "\nM is a memory's id (demo) or its full name (tenants/default/memories/demo), D a "
      "document's.\n"
      "exit status: 0 done, 1 error, 2 wrong usage, 130 interrupted. With --json an error (also of "
      "usage) "
      "is one object on\n"
      "standard error: {\"error\": {\"code\", \"message\", \"reason\", \"metadata\"}}.\n");
  return help;
}

std::string CommandHelp(const CommandSpec& command) {
  std::string help =
      absl::StrCat(command.summary, "\n\nusage: ", UsageLine(command), " [FLAGS]\n\n");
  for (const auto& [name, explanation] : command.positionals) {
    absl::StrAppend(&help, absl::StrFormat("  %-22s%s\n", name, Wrap(explanation, 24, 100)));
  }
  if (!command.flags.empty()) absl::StrAppend(&help, "\nflags:\n", FlagHelp(command.flags));
  absl::StrAppend(&help, "\nflags of every command:\n", FlagHelp(GlobalFlags()));
  if (!command.notes.empty()) absl::StrAppend(&help, "\n", command.notes);
  return help;
}

}  // namespace mneme
