// top.

#include <unistd.h>

#include <cstdio>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/admin_client.h"
#include "client/cli/commands.h"
#include "client/cli/session.h"
#include "client/cli/terminal.h"
#include "client/cli/top_view.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

constexpr char kTopNotes[] =
    "Without a terminal, with --once or with --json: one state, without rates. Otherwise until "
    "Ctrl-C.\n\n"
    "--json: {time, samples: {series: value}, slow_requests: [{method, resource, end_time, "
    "seconds, code}]};\nsamples are lines of the server's /metrics\n";

// The terminal's other screen, without a cursor; the first comes back as it was.
class OtherScreen {
 public:
  OtherScreen() { Print("\x1b[?1049h\x1b[?25l"); }
  ~OtherScreen() {
    Print("\x1b[?25h\x1b[?1049l");
    fflush(stdout);
  }
  OtherScreen(const OtherScreen&) = delete;
  OtherScreen& operator=(const OtherScreen&) = delete;

  void Draw(const std::string& text) {
    Print(absl::StrCat("\x1b[H\x1b[2J", text));
    fflush(stdout);
  }
};

// False when the user wants an end.
bool SleepUnlessInterrupted(const Session& session, absl::Duration time) {
  const absl::Time until = absl::Now() + time;
  while (!session.interrupted() && absl::Now() < until) absl::SleepFor(absl::Milliseconds(20));
  return !session.interrupted();
}

absl::Status Live(Session& session, AdminClient& admin, int requests) {
  const absl::Duration interval = absl::Seconds(session.line().Number("--interval", 1));
  OtherScreen screen;
  v1::Activity before;
  bool first = true;
  do {
    absl::StatusOr<v1::Activity> now = admin.GetActivity(requests, session.call());
    if (session.interrupted()) return absl::OkStatus();
    RETURN_IF_ERROR(now.status());
    screen.Draw(RenderTop(*now, first ? nullptr : &before, TerminalColumns(STDOUT_FILENO)));
    before = *std::move(now);
    first = false;
  } while (SleepUnlessInterrupted(session, interval));
  return absl::OkStatus();
}

absl::Status Top(Session& session) {
  AdminClient admin(session.client().channel());
  const auto requests = static_cast<int>(session.line().Integer("--requests", 10));
  const bool live = !session.json() && !session.line().Has("--once") && isatty(STDOUT_FILENO) != 0;
  if (live) return Live(session, admin, requests);
  ASSIGN_OR_RETURN(const v1::Activity activity, admin.GetActivity(requests, session.call()));
  if (session.json()) {
    PrintJson(ActivityJson(activity));
  } else {
    Print(RenderTop(activity, nullptr, TerminalColumns(STDOUT_FILENO)));
  }
  return absl::OkStatus();
}

}  // namespace

CommandSpec TopCommand() {
  return {.name = "top",
          .summary = "what the server is busy with, live: tiers, queues, rates, slow requests",
          .flags = {{"--once", "", "show one state and end"},
                    {"--interval", "SECONDS", "time between two states (default: 1)",
                     FlagSpec::Kind::kNumber, 0.1, 3600},
                    {"--requests", "N", "slow requests shown (default: 10)",
                     FlagSpec::Kind::kInteger, 1, 100}},
          .notes = kTopNotes,
          .run = Top};
}

}  // namespace mneme
