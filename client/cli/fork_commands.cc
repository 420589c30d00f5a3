// fork, snapshot.

#include <google/protobuf/util/time_util.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/commands.h"
#include "client/cli/policy.h"
#include "client/cli/resource_json.h"
#include "client/cli/session.h"
#include "client/cli/terminal.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

using google::protobuf::util::TimeUtil;

absl::Status Fork(Session& session) {
  v1::ForkMemoryRequest request;
  request.set_source(session.MemoryName(session.positional(0)));
  const std::string name = session.MemoryName(session.positional(1));
  const size_t id = name.rfind("/memories/");
  request.set_parent(id == std::string::npos ? session.TenantName() : name.substr(0, id));
  request.set_memory_id(id == std::string::npos ? session.positional(1) : name.substr(id + 10));
  request.set_display_name(session.line().Text("--display-name"));
  SetAsOf(session.line(), &request);
  ASSIGN_OR_RETURN(const v1::Memory fork, session.client().ForkMemory(request, session.call()));
  // What it holds is counted apart.
  ASSIGN_OR_RETURN(const v1::Memory memory,
                   session.client().GetMemory(fork.name(), session.call()));
  if (session.json()) {
    PrintJson(MemoryJson(memory));
  } else {
    Print(absl::StrCat("forked ", ResourceId(memory.name()), " of ", ResourceId(memory.base()),
                       " as of ", TimeUtil::ToString(memory.base_time()), ": ",
                       Counted(memory.document_count(), "document", "documents"), ", ",
                       HumanBytes(static_cast<double>(memory.durable_bytes())), " of text\n"));
  }
  return absl::OkStatus();
}

Json SnapshotJson(const v1::Snapshot& snapshot) {
  return {{"snapshot", ResourceId(snapshot.name())},
          {"name", snapshot.name()},
          {"as_of", TimeUtil::ToString(snapshot.as_of())},
          {"create_time", TimeUtil::ToString(snapshot.create_time())}};
}

absl::Status List(Session& session, const std::string& memory) {
  Json snapshots = Json::array();
  bool any = false;
  RETURN_IF_ERROR(session.client().ListSnapshots(
      memory,
      [&](const v1::Snapshot& snapshot) {
        any = true;
        if (session.json()) {
          snapshots.push_back(SnapshotJson(snapshot));
        } else {
          Print(absl::StrFormat("%-28s as of %s\n", ResourceId(snapshot.name()),
                                TimeUtil::ToString(snapshot.as_of())));
        }
        return true;
      },
      session.call()));
  if (session.json()) {
    PrintJson({{"snapshots", snapshots}});
  } else if (!any) {
    Print("no snapshots; mneme snapshot M NAME makes one\n");
  }
  return absl::OkStatus();
}

absl::Status Snapshot(Session& session) {
  const std::string memory = session.MemoryName(session.positional(0));
  if (session.line().Has("--list")) return List(session, memory);
  const std::string& id = session.positional(1);
  if (session.line().Has("--delete")) {
    const std::string name = absl::StrCat(memory, "/snapshots/", id);
    RETURN_IF_ERROR(session.client().DeleteSnapshot(name, session.call()));
    if (session.json()) {
      PrintJson({{"deleted", name}});
    } else {
      Print(absl::StrCat("deleted snapshot ", id, "\n"));
    }
    return absl::OkStatus();
  }
  v1::CreateSnapshotRequest request;
  request.set_parent(memory);
  request.set_snapshot_id(id);
  SetAsOf(session.line(), &request);
  ASSIGN_OR_RETURN(const v1::Snapshot snapshot,
                   session.client().CreateSnapshot(request, session.call()));
  if (session.json()) {
    PrintJson(SnapshotJson(snapshot));
  } else {
    Print(absl::StrCat("snapshot ", ResourceId(snapshot.name()), " as of ",
                       TimeUtil::ToString(snapshot.as_of()), "\n"));
  }
  return absl::OkStatus();
}

absl::Status CheckSnapshot(const CommandLine& line) {
  const bool lists = line.Has("--list");
  if (lists && (line.positionals.size() > 1 || line.Has("--delete"))) {
    return absl::InvalidArgumentError("--list takes a memory alone");
  }
  if (!lists && line.positionals.size() < 2) {
    return absl::InvalidArgumentError("which snapshot? NAME, or --list");
  }
  if (line.Has("--as-of") && (lists || line.Has("--delete"))) {
    return absl::InvalidArgumentError("--as-of is for a new snapshot");
  }
  return CheckAsOfFlag(line);
}

}  // namespace

CommandSpec ForkCommand() {
  return {.name = "fork",
          .summary = "makes a memory that holds what another one holds, at once",
          .positionals = {{"M", "the memory, or a snapshot of it: M/snapshots/NAME"},
                          {"NEW", "the id to be"}},
          .flags = {AsOfFlag(),
                    {"--display-name", "TEXT", "free text for people, at most 256 bytes",
                     FlagSpec::Kind::kText}},
          .notes =
              "Both go their own ways from there. What both have is stored once, and goes when the "
              "last of them\ndrops it.\n\n--json: as create\n",
          .run = Fork,
          .check = CheckAsOfFlag};
}

CommandSpec SnapshotCommand() {
  return {.name = "snapshot",
          .summary = "names a moment of a memory, to read or fork it as it was",
          .positionals = {{"M", "the memory"}, {"NAME", "the snapshot's id"}},
          .optional_positionals = 1,
          .flags = {AsOfFlag(),
                    {"--list", "", "list the memory's snapshots", FlagSpec::Kind::kSwitch},
                    {"--delete", "", "delete the snapshot", FlagSpec::Kind::kSwitch}},
          .notes =
              "Search, ask and score take M/snapshots/NAME in place of a memory. A snapshot holds "
              "nothing: what is\nforgotten is gone from it too.\n\n"
              "--json: {snapshot, name, as_of, create_time}; with --list {snapshots: [...]}, with "
              "--delete {deleted}\n",
          .run = Snapshot,
          .check = CheckSnapshot};
}

}  // namespace mneme
