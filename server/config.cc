#include "server/config.h"

#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "memory_store/backup_directory.h"
#include "server/config_sections.h"

namespace mneme {
namespace {

std::vector<ConfigKey> AllSections() {
  std::vector<ConfigKey> keys;
  for (auto* section : {ServerSection, ModelSection, StoreSection, EngineSection, QuotaSection}) {
    for (ConfigKey& key : section()) keys.push_back(std::move(key));
  }
  return keys;
}

}  // namespace

std::string ConfigKey::full_name() const { return absl::StrCat(section, ".", name); }

std::string ConfigKey::environment() const {
  return absl::AsciiStrToUpper(absl::StrCat(kConfigEnvironmentPrefix, section, "_", name));
}

absl::string_view ConfigKey::unit() const {
  switch (type) {
    case Type::kBytes:
      return "bytes";
    case Type::kSeconds:
      return "seconds";
    case Type::kText:
    case Type::kList:
    case Type::kMap:
    case Type::kInteger:
      return "";
  }
  return "";
}

absl::Span<const ConfigKey> ConfigKeys() {
  static const std::vector<ConfigKey>& keys = *new std::vector<ConfigKey>(AllSections());
  return keys;
}

const ConfigKey* FindKey(absl::string_view full_name) {
  for (const ConfigKey& key : ConfigKeys()) {
    if (key.full_name() == full_name) return &key;
  }
  return nullptr;
}

absl::Status SetKey(const ConfigKey& key, absl::string_view value, absl::string_view source,
                    ServerConfig* config) {
  if (absl::StrContains(value, '\0')) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": ", key.full_name(), ": the value has a NUL character"));
  }
  if (absl::Status status = key.set(*config, value); !status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": ", key.full_name(), ": ", status.message()));
  }
  return absl::OkStatus();
}

absl::Status CheckConfig(const ServerConfig& config) {
  for (const auto& [tenant, limits] : config.tenant_quotas) {
    if (!absl::c_linear_search(config.server.tenants, tenant)) {
      return absl::InvalidArgumentError(
          absl::StrCat("quota.tenants: \"", tenant, "\" is none of server.tenants"));
    }
  }
  if (!config.server.backup_dir.empty()) {
    const absl::Status apart = CheckApart(config.server.backup_dir, config.data_dir);
    if (!apart.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("store.backup_dir: ", apart.message()));
    }
  }
  const AdmissionOptions admission = config.Admission();
  const absl::Status status = CheckAdmissionOptions(admission);
  if (status.ok()) return status;
  return absl::InvalidArgumentError(
      absl::StrCat("store.watermark_low_percent, store.watermark_high_percent, "
                   "store.free_low_bytes, store.free_high_bytes: ",
                   status.message()));
}

}  // namespace mneme
