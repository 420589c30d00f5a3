// create, set, memories, delete.

#include <google/protobuf/util/time_util.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/commands.h"
#include "client/cli/forgetting.h"
#include "client/cli/policy.h"
#include "client/cli/resource_json.h"
#include "client/cli/session.h"
#include "client/cli/terminal.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

absl::Status Create(Session& session) {
  v1::CreateMemoryRequest request;
  const std::string name = session.MemoryName(session.positional(0));
  const size_t id = name.rfind("/memories/");
  // A full name says its own tenant; what is no name at all goes to the server as it is, to be
  // refused there.
  request.set_parent(id == std::string::npos ? session.TenantName() : name.substr(0, id));
  request.set_memory_id(id == std::string::npos ? session.positional(0) : name.substr(id + 10));
  request.mutable_memory()->set_display_name(session.line().Text("--display-name"));
  SetPolicy(session.line(), request.mutable_memory());
  ASSIGN_OR_RETURN(v1::Memory memory, session.client().CreateMemory(request, session.call()));
  if (session.json()) {
    PrintJson(MemoryJson(memory));
  } else {
    Print(absl::StrCat("created ", ResourceId(memory.name()), "\n"));
  }
  return absl::OkStatus();
}

absl::Status Set(Session& session) {
  v1::UpdateMemoryRequest request;
  request.mutable_memory()->set_name(session.MemoryName(session.positional(0)));
  SetPolicy(session.line(), request.mutable_memory());
  request.mutable_memory()->set_display_name(session.line().Text("--display-name"));
  if (session.line().Has("--display-name"))
    request.mutable_update_mask()->add_paths("display_name");
  if (session.line().Has("--retention")) request.mutable_update_mask()->add_paths("retention");
  if (session.line().Has("--ttl")) request.mutable_update_mask()->add_paths("ttl");
  if (session.line().Has("--quota")) request.mutable_update_mask()->add_paths("quota_bytes");
  ASSIGN_OR_RETURN(v1::Memory memory, session.client().UpdateMemory(request, session.call()));
  if (session.json()) {
    PrintJson(MemoryJson(memory));
  } else {
    Print(absl::StrCat(
        ResourceId(memory.name()), ": retention ", RetentionWord(memory), ", ttl ",
        memory.has_ttl() ? google::protobuf::util::TimeUtil::ToString(memory.ttl()) : "none",
        ", quota ",
        memory.quota_bytes() > 0 ? HumanBytes(static_cast<double>(memory.quota_bytes())) : "none",
        "\n"));
  }
  return absl::OkStatus();
}

absl::Status Memories(Session& session) {
  Json memories = Json::array();
  bool any = false;
  RETURN_IF_ERROR(session.client().ListMemories(
      session.TenantName(),
      [&](const v1::Memory& memory) {
        if (session.json()) {
          memories.push_back(MemoryJson(memory));
          return true;
        }
        if (!any)
          Print(absl::StrFormat("%-28s %9s %15s %15s %13s\n", "memory", "documents",
                                "durable bytes", "visible bytes", "tokens"));
        any = true;
        Print(
            absl::StrFormat("%-28s %9s %15s %15s %13s", ResourceId(memory.name()),
                            WithCommas(memory.document_count()), WithCommas(memory.durable_bytes()),
                            WithCommas(memory.visible_bytes()), WithCommas(memory.token_count())));
        if (!memory.display_name().empty())
          Print(absl::StrCat("  ", EscapeForTerminal(memory.display_name())));
        Print("\n");
        return true;
      },
      session.call()));
  if (session.json()) {
    PrintJson({{"memories", memories}});
  } else if (!any) {
    Print("no memories; mneme create M makes one\n");
  }
  return absl::OkStatus();
}

absl::Status Delete(Session& session) {
  const std::string name = session.MemoryName(session.positional(0));
  return FinishForgetting(
      session, name, absl::StrCat("deleted ", ResourceId(name), " and all its documents"),
      session.client().DeleteMemory(name, session.call(), session.line().Has("--everywhere")));
}

}  // namespace

CommandSpec CreateCommand() {
  return {
      .name = "create",
      .summary = "creates an empty memory",
      .positionals = {{"M",
                       "the id to be: 1 to 128 of A-Z a-z 0-9 . _ ~ -, first a letter or digit"}},
      .flags = {{"--display-name", "TEXT", "free text for people, at most 256 bytes",
                 FlagSpec::Kind::kText},
                RetentionFlag(),
                TtlFlag("how long its documents live"),
                QuotaFlag()},
      .notes =
          "An id that is taken is an error.\n\n--json: {memory, name, display_name, create_time, "
          "documents, "
          "durable_bytes, visible_bytes, tokens, chunks, retention, ttl_seconds, quota_bytes, "
          "base, "
          "base_time}\n",
      .run = Create,
      .check = CheckPolicyFlags};
}

CommandSpec SetCommand() {
  return {.name = "set",
          .summary = "changes what a memory keeps, for how long, and how much",
          .positionals = {{"M", "the memory"}},
          .flags = {{"--display-name", "TEXT", "free text for people, at most 256 bytes",
                     FlagSpec::Kind::kText},
                    RetentionFlag(),
                    TtlFlag("how long its documents live, or none"),
                    QuotaFlag()},
          .notes =
              "What is not named stays. Documents whose time is over with a new --ttl are gone "
              "at once.\n\n--json: {memory, name, display_name, create_time, documents, "
              "durable_bytes, visible_bytes,\ntokens, chunks, retention, ttl_seconds, "
              "quota_bytes}\n",
          .run = Set,
          .check = [](const CommandLine& line) -> absl::Status {
            if (!line.Has("--display-name") && !line.Has("--retention") && !line.Has("--ttl") &&
                !line.Has("--quota")) {
              return absl::InvalidArgumentError(
                  "nothing to set: --retention, --ttl, --quota or --display-name");
            }
            return CheckPolicyFlags(line);
          }};
}

CommandSpec MemoriesCommand() {
  return {.name = "memories",
          .summary = "lists the tenant's memories",
          .notes =
              "--json: {memories: [{memory, name, display_name, create_time, documents, "
              "durable_bytes,\n"
              "visible_bytes, tokens, chunks, retention, ttl_seconds, quota_bytes, base, "
              "base_time}]}\n",
          .run = Memories};
}

CommandSpec DeleteCommand() {
  return {
      .name = "delete",
      .summary = "deletes a memory and all its documents",
      .positionals = {{"M", "the memory"}},
      .flags = {EverywhereFlag(), NoWaitFlag()},
      .notes = absl::StrCat("There is no question asked and no way back. ", kForgettingJsonNotes),
      .run = Delete};
}

}  // namespace mneme
