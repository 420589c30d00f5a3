#include "server/resource_check.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "server/error.h"

namespace mneme {
namespace {

// Barriers are waited for one by one; a question has no use for more.
constexpr int kBarriersMax = 1000;
constexpr absl::Duration kTtlMax = absl::Hours(24 * 36525);

}  // namespace

ResourceCheck::ResourceCheck(const std::vector<std::string>& tenants)
    : tenants_(tenants.begin(), tenants.end()) {}

absl::StatusOr<ResourceName> ResourceCheck::Check(absl::StatusOr<ResourceName> parsed,
                                                  absl::string_view field,
                                                  absl::string_view name) const {
  if (!parsed.ok()) return FieldError(field, name, parsed.status().message());
  if (!tenants_.contains(parsed->tenant)) {
    return WithReason(
        absl::NotFoundError(absl::StrCat("no tenant \"", parsed->tenant, "\" (of ", name, ")")),
        "TENANT_NOT_FOUND", {{"tenant", parsed->tenant}, {"field", std::string(field)}});
  }
  return parsed;
}

absl::StatusOr<ResourceName> ResourceCheck::Tenant(absl::string_view field,
                                                   absl::string_view name) const {
  return Check(ResourceName::ParseTenant(name), field, name);
}

absl::StatusOr<ResourceName> ResourceCheck::Memory(absl::string_view field,
                                                   absl::string_view name) const {
  return Check(ResourceName::ParseMemory(name), field, name);
}

absl::StatusOr<ResourceName> ResourceCheck::Document(absl::string_view field,
                                                     absl::string_view name) const {
  return Check(ResourceName::ParseDocument(name), field, name);
}

absl::StatusOr<std::vector<std::string>> ResourceCheck::Memories(
    const google::protobuf::RepeatedPtrField<std::string>& names, int min, int max) const {
  if (names.size() < min || names.size() > max) {
    return FieldError("memories", absl::StrCat(names.size()),
                      absl::StrCat(names.size(), " memories: ", min, " to ", max, " are allowed"));
  }
  std::vector<std::string> memories;
  std::string tenant;
  for (int i = 0; i < names.size(); ++i) {
    const std::string field = absl::StrCat("memories[", i, "]");
    ASSIGN_OR_RETURN(const ResourceName name, Memory(field, names[i]));
    if (!tenant.empty() && name.tenant != tenant) {
      return FieldError(field, names[i],
                        absl::StrCat("\"", names[i], "\" is of another tenant than ", names[0]));
    }
    tenant = name.tenant;
    if (std::find(memories.begin(), memories.end(), names[i]) == memories.end()) {
      memories.push_back(names[i]);
    }
  }
  return memories;
}

absl::StatusOr<absl::Duration> ResourceCheck::Ttl(absl::string_view field, bool is_set,
                                                  const google::protobuf::Duration& ttl) {
  if (!is_set) return absl::InfiniteDuration();
  const absl::Duration duration = absl::Seconds(ttl.seconds()) + absl::Nanoseconds(ttl.nanos());
  // Shorter than the clock of a record can say is none.
  if (duration < absl::Microseconds(1) || duration > kTtlMax) {
    return FieldError(field, absl::FormatDuration(duration),
                      absl::StrCat(absl::FormatDuration(duration), " is not above 0 and at most ",
                                   absl::FormatDuration(kTtlMax)));
  }
  return duration;
}

absl::StatusOr<std::vector<ReadBarrier>> ResourceCheck::Barriers(
    const google::protobuf::RepeatedPtrField<v1::ReadBarrier>& barriers) const {
  if (barriers.size() > kBarriersMax) {
    return FieldError("barriers", absl::StrCat(barriers.size()),
                      absl::StrCat(barriers.size(), " barriers: at most ", kBarriersMax));
  }
  std::vector<ReadBarrier> checked;
  for (int i = 0; i < barriers.size(); ++i) {
    const std::string field = absl::StrCat("barriers[", i, "]");
    RETURN_IF_ERROR(Document(absl::StrCat(field, ".document"), barriers[i].document()).status());
    if (barriers[i].visible_bytes() < 0) {
      return FieldError(absl::StrCat(field, ".visible_bytes"),
                        absl::StrCat(barriers[i].visible_bytes()),
                        absl::StrCat(barriers[i].visible_bytes(), " is negative"));
    }
    checked.push_back({barriers[i].document(), barriers[i].visible_bytes()});
  }
  return checked;
}

}  // namespace mneme
