#include "client/cli/session.h"

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cli/terminal.h"
#include "client/rpc_error.h"

namespace mneme {

std::string Session::TenantName() const {
  return absl::StrCat("tenants/", line_.Text("--tenant", "default"));
}

std::string Session::MemoryName(absl::string_view memory) const {
  if (absl::StartsWith(memory, "tenants/")) return std::string(memory);
  return absl::StrCat(TenantName(), "/memories/", memory);
}

std::vector<std::string> Session::MemoryNames(absl::string_view memories) const {
  std::vector<std::string> names;
  for (absl::string_view memory : absl::StrSplit(memories, ','))
    names.push_back(MemoryName(memory));
  return names;
}

std::string Session::DocumentName(absl::string_view memory, absl::string_view document) const {
  if (absl::StartsWith(document, "tenants/")) return std::string(document);
  return absl::StrCat(MemoryName(memory), "/documents/", document);
}

std::string ResourceId(absl::string_view name) {
  const size_t slash = name.rfind('/');
  return std::string(slash == absl::string_view::npos ? name : name.substr(slash + 1));
}

std::string MemoryIdOf(absl::string_view document_name) {
  std::vector<std::string> parts = absl::StrSplit(document_name, '/');
  return parts.size() > 3 ? parts[3] : "";
}

void Print(absl::string_view text) { fwrite(text.data(), 1, text.size(), stdout); }

void PrintJson(const Json& object) {
  // Text of documents is UTF-8 by contract; should it not be, the object is still valid JSON.
  Print(absl::StrCat(object.dump(-1, ' ', false, Json::error_handler_t::replace), "\n"));
}

absl::Status FlushOutput() {
  if (fflush(stdout) == 0 && ferror(stdout) == 0) return absl::OkStatus();
  return absl::UnknownError(absl::StrCat("standard output: ", strerror(errno)));
}

std::string ErrorMessage(const absl::Status& status, absl::string_view address) {
  const bool from_server = ErrorInfoOf(status).has_value();
  if (absl::IsUnavailable(status) && !from_server) {
    absl::string_view reason = status.message();
    const size_t colon = reason.rfind(": ");
    if (colon != absl::string_view::npos) reason.remove_prefix(colon + 2);
    return absl::StrCat(IsOutcomeUnknown(status) ? "the connection was lost, and no Mneme server "
                                                   "answers at "
                                                 : "no Mneme server answers at ",
                        address, " (", EscapeForTerminal(reason),
                        "); start one with mneme-server or name another with --address");
  }
  if (absl::IsDeadlineExceeded(status) && !from_server)
    return "the time given with --timeout has passed";
  return EscapeForTerminal(status.message());
}

Json ErrorJson(const absl::Status& status, absl::string_view address) {
  Json error = {{"code", absl::StatusCodeToString(status.code())},
                {"message", ErrorMessage(status, address)},
                {"reason", ""},
                {"metadata", Json::object()}};
  if (IsOutcomeUnknown(status)) error["reason"] = "OUTCOME_UNKNOWN";
  if (auto info = ErrorInfoOf(status)) {
    error["reason"] = info->reason();
    for (const auto& [key, value] : info->metadata()) error["metadata"][key] = value;
  }
  return error;
}

}  // namespace mneme
