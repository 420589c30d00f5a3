// Section `quota`: limits of all tenants together, of each, and of single ones.

#include <iterator>
#include <map>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "server/config_key_kinds.h"
#include "server/config_sections.h"

namespace mneme {
namespace {

// A limit that quota.*, quota.tenant_* and quota.tenants set alike.
struct QuotaKey {
  absl::string_view name;
  int64_t QuotaLimits::*limit;
  bool is_bytes;
  int64_t min, max;
  absl::string_view what;  // that is limited
};
constexpr QuotaKey kQuotaKeys[] = {
    {"text_bytes_max", &QuotaLimits::text_bytes_max, true, 0, kConfigBytesMax, "Text stored"},
    {"documents_max", &QuotaLimits::documents_max, false, 0, int64_t{1} << 40, "Documents"},
    {"ingest_bytes_per_second", &QuotaLimits::ingest_bytes_per_second, true, 0, kConfigBytesMax,
     "Text taken in a second (beyond it streams are read more slowly)"},
    {"ingest_burst_bytes", &QuotaLimits::ingest_burst_bytes, true, 1, kConfigBytesMax,
     "Text taken at once before that rate holds"},
    {"readers_max", &QuotaLimits::readers_max, false, 0, 1'000'000,
     "Retrieve, Generate and Score at one time"},
    {"ingest_streams_max", &QuotaLimits::ingest_streams_max, false, 0, 1'000'000,
     "Ingest streams with a document at one time"},
};

// Sets a limit; INVALID_ARGUMENT says what is allowed.
absl::Status SetLimit(const QuotaKey& key, absl::string_view value, QuotaLimits* limits) {
  const std::optional<int64_t> number =
      key.is_bytes ? ParseBytes(value, key.min, key.max) : ParseInteger(value, key.min, key.max);
  if (!number.has_value()) {
    return NotAllowed(value, absl::StrCat(key.name, " is ", key.min, " .. ", key.max));
  }
  limits->*key.limit = *number;
  return absl::OkStatus();
}

template <typename Field>  // QuotaLimits& (*)(ServerConfig&)
void AddQuotaKeys(const std::string& prefix, absl::string_view whose, Field field,
                  std::vector<ConfigKey>* keys) {
  for (const QuotaKey& key : kQuotaKeys) {
    const std::string help =
        absl::StrCat(key.what, whose, key.min == 0 ? ", at most; 0: no limit." : ", at most.");
    const auto limit = [=](ServerConfig& config) -> int64_t& { return field(config).*key.limit; };
    const std::string name = absl::StrCat(prefix, key.name);
    keys->push_back(key.is_bytes ? BytesKey("quota", name, key.min, key.max, help, limit)
                                 : IntegerKey("quota", name, key.min, key.max, help, limit));
  }
}

// "TENANT.KEY=VALUE,...": in YAML a map of tenants to maps of keys.
ConfigKey TenantQuotasKey() {
  const std::string allowed =
      "TENANT.KEY=VALUE, separated by commas (in a file: a map of maps), KEY as tenant_KEY above";
  return {"quota",
          "tenants",
          ConfigKey::Type::kMap,
          allowed,
          "Limits of single tenants, instead of those of each.",
          [=](ServerConfig& config, absl::string_view value) -> absl::Status {
            std::map<std::string, std::map<std::string, std::string>> quotas;
            for (absl::string_view item : absl::StrSplit(value, ',', absl::SkipWhitespace())) {
              item = absl::StripAsciiWhitespace(item);
              const std::vector<absl::string_view> sides =
                  absl::StrSplit(item, absl::MaxSplits('=', 1));
              const size_t dot = sides[0].rfind('.');
              if (sides.size() != 2 || dot == absl::string_view::npos) {
                return NotAllowed(item, allowed);
              }
              const absl::string_view tenant = sides[0].substr(0, dot);
              const absl::string_view name = sides[0].substr(dot + 1);
              const auto key = absl::c_find_if(
                  kQuotaKeys, [name](const QuotaKey& known) { return known.name == name; });
              if (key == std::end(kQuotaKeys)) {
                return absl::InvalidArgumentError(absl::StrCat("unknown key \"", item, "\""));
              }
              QuotaLimits unused;
              RETURN_IF_ERROR(SetLimit(*key, sides[1], &unused));
              if (!quotas[std::string(tenant)].emplace(name, sides[1]).second) {
                return absl::InvalidArgumentError(
                    absl::StrCat("\"", sides[0], "\" stands there twice"));
              }
            }
            config.tenant_quotas = std::move(quotas);
            return absl::OkStatus();
          },
          [](const ServerConfig& config) {
            std::vector<std::string> items;
            for (const auto& [tenant, limits] : config.tenant_quotas) {
              for (const auto& [name, value] : limits) {
                items.push_back(absl::StrCat(tenant, ".", name, "=", value));
              }
            }
            return absl::StrJoin(items, ",");
          }};
}

}  // namespace

std::vector<ConfigKey> QuotaSection() {
  std::vector<ConfigKey> keys;
  AddQuotaKeys(
      "", " by all tenants together",
      [](ServerConfig& c) -> QuotaLimits& { return c.engine.admission.quotas.all; }, &keys);
  AddQuotaKeys(
      "tenant_", " by each tenant",
      [](ServerConfig& c) -> QuotaLimits& { return c.engine.admission.quotas.tenant; }, &keys);
  keys.push_back(TenantQuotasKey());
  return keys;
}

AdmissionOptions ServerConfig::Admission() const {
  AdmissionOptions admission = engine.admission;
  for (const std::string& tenant : server.tenants) {
    QuotaLimits& limits = admission.quotas.tenants[tenant] = admission.quotas.tenant;
    const auto own = tenant_quotas.find(tenant);
    if (own == tenant_quotas.end()) continue;
    for (const QuotaKey& key : kQuotaKeys) {
      const auto value = own->second.find(std::string(key.name));
      // Checked when it was set.
      if (value != own->second.end()) SetLimit(key, value->second, &limits).IgnoreError();
    }
  }
  if (device_landmark_overflow == "refuse") {
    admission.device_landmark_bytes_max = device_landmark_bytes_max;
  }
  return admission;
}

}  // namespace mneme
