// ResourceName (engine.h): tenants/{tenant}/memories/{memory}/documents/{document}.

#include <array>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "engine/engine.h"

namespace mneme {
namespace {

constexpr size_t kIdBytesMax = 128;

// A name as it may stand in an error message: printable, not too long.
std::string Shown(absl::string_view text) {
  constexpr size_t kShownBytes = 200;
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, kShownBytes)),
                      text.size() > kShownBytes ? "...\"" : "\"");
}

// Parses `collections.size()` pairs of collection and id.
absl::StatusOr<ResourceName> Parse(absl::string_view name,
                                   absl::Span<const absl::string_view> collections) {
  const bool of_snapshot = collections.back() == "snapshots";
  const std::array<absl::string_view, 3> id_forms = {"{tenant}", "{memory}",
                                                     of_snapshot ? "{snapshot}" : "{document}"};
  std::string form;
  for (size_t i = 0; i < collections.size(); ++i) {
    absl::StrAppend(&form, i == 0 ? "" : "/", collections[i], "/", id_forms[i]);
  }
  const std::vector<absl::string_view> parts = absl::StrSplit(name, '/');
  if (parts.size() != 2 * collections.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("name ", Shown(name), " is not of the form ", form));
  }
  ResourceName result;
  const std::array<std::string*, 3> ids = {&result.tenant, &result.memory,
                                           of_snapshot ? &result.snapshot : &result.document};
  const std::array<absl::string_view, 3> nouns = {"tenant id", "memory id",
                                                  of_snapshot ? "snapshot id" : "document id"};
  for (size_t i = 0; i < collections.size(); ++i) {
    if (parts[2 * i] != collections[i]) {
      return absl::InvalidArgumentError(absl::StrCat("name ", Shown(name), " is not of the form ",
                                                     form, ": ", Shown(parts[2 * i]), " where ",
                                                     collections[i], " should be"));
    }
    RETURN_IF_ERROR(CheckResourceId(parts[2 * i + 1], nouns[i]));
    *ids[i] = std::string(parts[2 * i + 1]);
  }
  return result;
}

}  // namespace

absl::StatusOr<ResourceName> ResourceName::ParseTenant(absl::string_view name) {
  return Parse(name, {"tenants"});
}

absl::StatusOr<ResourceName> ResourceName::ParseMemory(absl::string_view name) {
  return Parse(name, {"tenants", "memories"});
}

absl::StatusOr<ResourceName> ResourceName::ParseDocument(absl::string_view name) {
  return Parse(name, {"tenants", "memories", "documents"});
}

absl::StatusOr<ResourceName> ResourceName::ParseSnapshot(absl::string_view name) {
  return Parse(name, {"tenants", "memories", "snapshots"});
}

absl::StatusOr<ResourceName> ResourceName::ParseSource(absl::string_view name) {
  const std::vector<absl::string_view> parts = absl::StrSplit(name, '/');
  return parts.size() == 6 && parts[4] == "snapshots" ? ParseSnapshot(name) : ParseMemory(name);
}

std::string ResourceName::ToString() const {
  std::string name = absl::StrCat("tenants/", tenant);
  if (!memory.empty()) absl::StrAppend(&name, "/memories/", memory);
  if (!document.empty()) absl::StrAppend(&name, "/documents/", document);
  if (!snapshot.empty()) absl::StrAppend(&name, "/snapshots/", snapshot);
  return name;
}

absl::Status CheckResourceId(absl::string_view id, absl::string_view what) {
  if (id.empty()) return absl::InvalidArgumentError(absl::StrCat(what, " is empty"));
  if (id.size() > kIdBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(what, " ", Shown(id), " has ", id.size(),
                                                   " characters; at most ", kIdBytesMax,
                                                   " are allowed"));
  }
  const auto unreserved = [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '~' ||
           c == '-';
  };
  for (size_t i = 0; i < id.size(); ++i) {
    if (unreserved(id[i])) continue;
    return absl::InvalidArgumentError(absl::StrCat(what, " ", Shown(id), " has the character ",
                                                   Shown(id.substr(i, 1)), " at ", i,
                                                   "; allowed are [A-Za-z0-9._~-]"));
  }
  if (!absl::ascii_isalnum(static_cast<unsigned char>(id[0]))) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " ", Shown(id), " does not begin with a letter or digit"));
  }
  return absl::OkStatus();
}

}  // namespace mneme
