// status, version.

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/commands.h"
#include "client/cli/session.h"
#include "client/cli/terminal.h"
#include "common/status_macros.h"
#include "mneme_version.h"

namespace mneme {
namespace {

// "normal", "slow", "refuse".
std::string StateWord(const v1::WatermarkStatus& mark) {
  return absl::AsciiStrToLower(v1::WatermarkStatus::State_Name(mark.state()));
}

std::string UseWords(const v1::WatermarkStatus& mark) {
  const auto bytes = [](int64_t count) { return HumanBytes(static_cast<double>(count)); };
  std::string words = absl::StrCat(bytes(mark.used_bytes()), " used");
  if (mark.limit_bytes() > 0) absl::StrAppend(&words, " of ", bytes(mark.limit_bytes()));
  if (mark.free_bytes() >= 0) absl::StrAppend(&words, ", ", bytes(mark.free_bytes()), " free");
  if (mark.free_needed_bytes() > 0) {
    absl::StrAppend(&words, ", goes on above ", bytes(mark.free_needed_bytes()), " free");
  }
  return words;
}

absl::Status Status(Session& session) {
  ASSIGN_OR_RETURN(v1::GetStatusResponse status, session.client().GetStatus(session.call()));
  const absl::Status ready = session.client().CheckReady(session.call());
  if (session.json()) {
    Json tiers = Json::array();
    for (const auto& tier : status.tiers()) {
      tiers.push_back({{"name", tier.name()},
                       {"used_bytes", tier.used_bytes()},
                       {"limit_bytes", tier.limit_bytes()}});
    }
    Json quotas = Json::array();
    for (const auto& quota : status.quotas()) {
      quotas.push_back({{"tenant", quota.tenant()},
                        {"quota", quota.quota()},
                        {"used", quota.used()},
                        {"limit", quota.limit()}});
    }
    Json watermarks = Json::array();
    for (const auto& mark : status.watermarks()) {
      watermarks.push_back({{"resource", mark.resource()},
                            {"state", StateWord(mark)},
                            {"used_bytes", mark.used_bytes()},
                            {"limit_bytes", mark.limit_bytes()},
                            {"free_bytes", mark.free_bytes()},
                            {"free_needed_bytes", mark.free_needed_bytes()}});
    }
    PrintJson({{"address", session.address()},
               {"ready", ready.ok()},
               {"version", status.version()},
               {"commit", status.commit()},
               {"backend", status.backend()},
               {"device", status.device()},
               {"bundle_fingerprint", status.bundle_fingerprint()},
               {"parameters", status.parameter_count()},
               {"chunk_tokens", status.chunk_tokens()},
               {"segment_tokens", status.segment_tokens()},
               {"memories", status.memory_count()},
               {"documents", status.document_count()},
               {"durable_bytes", status.durable_bytes()},
               {"visible_bytes", status.visible_bytes()},
               {"tokens", status.token_count()},
               {"chunks", status.chunk_count()},
               {"tiers", tiers},
               {"quotas", quotas},
               {"watermarks", watermarks},
               {"uptime_seconds", status.uptime_seconds()},
               {"http_address", status.http_address()}});
    return absl::OkStatus();
  }
  const auto line = [](absl::string_view what, const std::string& value) {
    Print(absl::StrFormat("%-10s %s\n", what, EscapeForTerminal(value)));
  };
  line("server",
       absl::StrCat(session.address(), ", version ", status.version(), " (", status.commit(),
                    "), up ", HumanSeconds(status.uptime_seconds()),
                    ready.ok() ? ", ready" : absl::StrCat(", not ready: ", ready.message())));
  // The words for a device begin with its backend where that says something.
  line("runs on", absl::StartsWith(status.device(), status.backend())
                      ? status.device()
                      : absl::StrCat(status.backend(), ", ", status.device()));
  line("model",
       absl::StrCat(absl::StrFormat("%.1f", static_cast<double>(status.parameter_count()) / 1e6),
                    " million parameters, fingerprint ", status.bundle_fingerprint()));
  line("holds", absl::StrCat(Counted(status.memory_count(), "memory", "memories"), ", ",
                             Counted(status.document_count(), "document", "documents"), ", ",
                             Counted(status.durable_bytes(), "byte", "bytes"), " durable, ",
                             WithCommas(status.visible_bytes()), " visible, ",
                             Counted(status.token_count(), "token", "tokens"), ", ",
                             Counted(status.chunk_count(), "chunk", "chunks")));
  for (const auto& tier : status.tiers()) {
    line(
        tier.name(),
        absl::StrCat(HumanBytes(static_cast<double>(tier.used_bytes())),
                     tier.limit_bytes() > 0
                         ? absl::StrCat(" of ", HumanBytes(static_cast<double>(tier.limit_bytes())))
                         : std::string()));
  }
  for (const auto& quota : status.quotas()) {
    // Where nothing is limited there is nothing to tell.
    if (quota.limit() == 0) continue;
    line("quota",
         absl::StrCat(quota.tenant().empty() ? "all tenants" : quota.tenant(), ", ", quota.quota(),
                      ": ", WithCommas(quota.used()), " of ", WithCommas(quota.limit())));
  }
  for (const auto& mark : status.watermarks()) {
    if (mark.state() == v1::WatermarkStatus::NORMAL) continue;
    line("ingest", absl::StrCat(StateWord(mark) == "slow" ? "slowed" : "refused", ": the ",
                                mark.resource(), " runs out, ", UseWords(mark)));
  }
  if (!status.http_address().empty())
    line("metrics", absl::StrCat("http://", status.http_address(), "/metrics"));
  return absl::OkStatus();
}

absl::Status Version(Session& session) {
  if (session.json()) {
    PrintJson({{"version", kMnemeVersion}, {"commit", kMnemeCommit}});
  } else {
    Print(absl::StrCat("mneme ", kMnemeVersion, " (", kMnemeCommit, ")\n"));
  }
  return absl::OkStatus();
}

}  // namespace

CommandSpec StatusCommand() {
  return {.name = "status",
          .summary = "what the server is, holds and uses",
          .notes =
              "--json: {address, ready, version, commit, backend, device, bundle_fingerprint, "
              "parameters, chunk_tokens,\n"
              "segment_tokens, memories, documents, durable_bytes, visible_bytes, tokens, chunks,\n"
              "tiers: [{name, used_bytes, limit_bytes}], quotas: [{tenant, quota, used, limit}],\n"
              "watermarks: [{resource, state, used_bytes, limit_bytes, free_bytes, "
              "free_needed_bytes}],\nuptime_seconds, http_address}\n",
          .run = Status};
}

CommandSpec VersionCommand() {
  return {.name = "version",
          .summary = "the version of this program",
          .notes = "--json: {version, commit}\n",
          .run = Version};
}

}  // namespace mneme
