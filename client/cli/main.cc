// mneme: Mneme's command line. Parses, connects, runs one command, and turns its status into words
// and an exit status.

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include <unistd.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/cli/commands.h"
#include "client/cli/session.h"
#include "client/rpc_error.h"
#include "mneme_version.h"

namespace mneme {
namespace {

constexpr int kExitError = 1;
constexpr int kExitUsage = 2;
// A program ended by signal N reports 128 + N, as shells do.
constexpr int kExitSignalBase = 128;

int signal_received = 0;

// SIGINT and SIGTERM arrive on a thread of their own, where cancelling a call is allowed; in a
// handler it is not. A second one ends the program at once.
Cancellation& WatchSignals() {
  // Never freed: the thread that waits for signals lives as long as the process.
  static Cancellation& cancellation = *new Cancellation();
  static sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread([] {
    int number = 0;
    sigwait(&signals, &number);
    signal_received = number;
    cancellation.Cancel();
    sigwait(&signals, &number);
    _exit(kExitSignalBase + number);
  }).detach();
  return cancellation;
}

void PrintErrorJson(const absl::Status& status, absl::string_view address) {
  const Json error = {{"error", ErrorJson(status, address)}};
  absl::FPrintF(stderr, "%s\n", error.dump(-1, ' ', false, Json::error_handler_t::replace));
}

int UsageError(const absl::Status& status, const CommandSpec* command, bool json) {
  if (json) {
    PrintErrorJson(status, "");
    return kExitUsage;
  }
  std::string hint =
      command != nullptr ? absl::StrCat("mneme ", command->name, " --help") : "mneme --help";
  absl::FPrintF(stderr, "mneme: %s\n       %s shows how it is used\n", status.message(), hint);
  return kExitUsage;
}

int Finish(const absl::Status& status, const Session& session) {
  absl::Status output = FlushOutput();
  const absl::Status& shown = status.ok() ? output : status;
  if (shown.ok()) return 0;
  if (session.interrupted()) {
    // A command that has more to say begins with the same word.
    const bool told = absl::StartsWith(shown.message(), "interrupted");
    if (!session.json())
      absl::FPrintF(stderr, "mneme: %s\n", told ? shown.message() : "interrupted");
  } else if (!session.json()) {
    absl::FPrintF(stderr, "mneme: %s\n", ErrorMessage(shown, session.address()));
  }
  if (session.json()) PrintErrorJson(shown, session.address());
  // The cancellation that ended the call was made after the signal's number was stored.
  return session.interrupted() ? kExitSignalBase + signal_received : kExitError;
}

int Main(const std::vector<std::string>& arguments) {
  auto line = ParseCommandLine(AllCommands(), arguments);
  if (!line.ok()) {
    // The command, when it was understood, names the help to look at.
    const CommandSpec* command = nullptr;
    for (const CommandSpec& candidate : AllCommands()) {
      if (!arguments.empty() && candidate.name == arguments[0]) command = &candidate;
    }
    // What the arguments are is not known, but this one is a flag wherever it stands before --.
    const auto flags_end = std::find(arguments.begin(), arguments.end(), "--");
    const bool json = std::find(arguments.begin(), flags_end, "--json") != flags_end;
    return UsageError(line.status(), command, json);
  }
  if (line->Has("--help")) {
    Print(line->command != nullptr ? CommandHelp(*line->command) : ProgramHelp(AllCommands()));
    return FlushOutput().ok() ? 0 : kExitError;
  }
  static const CommandSpec version = VersionCommand();
  if (line->Has("--version")) line->command = &version;

  const char* from_environment = getenv("MNEME_ADDRESS");
  const bool environment_set = from_environment != nullptr && *from_environment != '\0';
  const std::string address =
      line->Text("--address", environment_set ? from_environment : "127.0.0.1:7420");
  if (address.find(':') == std::string::npos) {
    return UsageError(absl::InvalidArgumentError(
                          absl::StrCat(line->Has("--address") ? "--address " : "MNEME_ADDRESS ",
                                       address, ": HOST:PORT is expected")),
                      line->command, line->Has("--json"));
  }
  Cancellation& cancellation = WatchSignals();
  CallOptions call{.cancellation = &cancellation};
  if (line->Has("--timeout"))
    call.deadline = absl::Now() + absl::Seconds(line->Number("--timeout", 0));
  Client client({.address = address});
  Session session(*line, address, client, call);
  return Finish(line->command->run(session), session);
}

}  // namespace
}  // namespace mneme

int main(int argc, char** argv) {
  // Errors are told by us, once; gRPC's own log would repeat them in its words.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  return mneme::Main(std::vector<std::string>(argv + 1, argv + argc));
}
