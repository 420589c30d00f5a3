#include "server/config.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <set>
#include <sstream>
#include <utility>

#include <yaml-cpp/yaml.h>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/utf8.h"
#include "server/listen_address.h"

namespace mneme {
namespace {

using Type = ConfigKey::Type;

// The largest double below 2^63 worth of nanoseconds, with room: 10 years.
constexpr double kSecondsMax = 10 * 365.0 * 86400;

absl::Status NotAllowed(absl::string_view value, absl::string_view allowed) {
  return absl::InvalidArgumentError(absl::StrCat("\"", value, "\" is not allowed: ", allowed));
}

// "65536", "64KiB", "4 MiB", "1GiB", "2TiB".
bool ParseBytes(absl::string_view text, int64_t* bytes) {
  int shift = 0;
  for (const auto& [suffix, bits] :
       {std::pair<absl::string_view, int>{"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}}) {
    if (absl::ConsumeSuffix(&text, suffix)) {
      shift = bits;
      break;
    }
  }
  int64_t count;
  if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(text), &count)) return false;
  if (count < 0 || count > (std::numeric_limits<int64_t>::max() >> shift)) return false;
  *bytes = count << shift;
  return true;
}

template <typename Field>  // std::string& (*)(ServerConfig&)
ConfigKey TextKey(std::string section, std::string name, std::string allowed, std::string help,
                  std::function<bool(absl::string_view)> valid, Field field) {
  return {section,
          name,
          Type::kText,
          allowed,
          std::move(help),
          [=](ServerConfig& config, absl::string_view value) -> absl::Status {
            if (!valid(value)) return NotAllowed(value, allowed);
            field(config) = std::string(value);
            return absl::OkStatus();
          },
          [=](const ServerConfig& config) { return field(const_cast<ServerConfig&>(config)); }};
}

template <typename Field>
ConfigKey ChoiceKey(std::string section, std::string name, std::vector<std::string> choices,
                    std::string help, Field field) {
  std::string allowed = absl::StrJoin(choices, ", ");
  return TextKey(
      std::move(section), std::move(name), std::move(allowed), std::move(help),
      [choices](absl::string_view value) {
        for (const std::string& choice : choices) {
          if (value == choice) return true;
        }
        return false;
      },
      field);
}

template <typename Field>  // int& or int64_t& (*)(ServerConfig&)
ConfigKey IntegerKey(std::string section, std::string name, int64_t min, int64_t max,
                     std::string help, Field field) {
  std::string allowed = absl::StrCat(min, " .. ", max);
  return {section,
          name,
          Type::kInteger,
          allowed,
          std::move(help),
          [=](ServerConfig& config, absl::string_view value) -> absl::Status {
            int64_t number;
            if (!absl::SimpleAtoi(value, &number) || number < min || number > max) {
              return NotAllowed(value, allowed);
            }
            field(config) = static_cast<std::decay_t<decltype(field(config))>>(number);
            return absl::OkStatus();
          },
          [=](const ServerConfig& config) {
            return absl::StrCat(field(const_cast<ServerConfig&>(config)));
          }};
}

template <typename Field>  // int64_t& (*)(ServerConfig&)
ConfigKey BytesKey(std::string section, std::string name, int64_t min, int64_t max,
                   std::string help, Field field) {
  std::string allowed = absl::StrCat(min, " .. ", max, ", or with KiB, MiB, GiB, TiB");
  return {section,
          name,
          Type::kBytes,
          allowed,
          std::move(help),
          [=](ServerConfig& config, absl::string_view value) -> absl::Status {
            int64_t bytes;
            if (!ParseBytes(value, &bytes) || bytes < min || bytes > max) {
              return NotAllowed(value, allowed);
            }
            field(config) = bytes;
            return absl::OkStatus();
          },
          [=](const ServerConfig& config) {
            return absl::StrCat(field(const_cast<ServerConfig&>(config)));
          }};
}

template <typename Field>  // absl::Duration& (*)(ServerConfig&)
ConfigKey SecondsKey(std::string section, std::string name, double min, std::string help,
                     Field field) {
  std::string allowed = absl::StrFormat("%g or more", min);
  return {section,
          name,
          Type::kSeconds,
          allowed,
          std::move(help),
          [=](ServerConfig& config, absl::string_view value) -> absl::Status {
            double seconds;
            if (!absl::SimpleAtod(value, &seconds) || !(seconds >= min) || seconds > kSecondsMax) {
              return NotAllowed(value, allowed);
            }
            field(config) = absl::Seconds(seconds);
            return absl::OkStatus();
          },
          [=](const ServerConfig& config) {
            return absl::StrFormat("%.9g",
                                   absl::ToDoubleSeconds(field(const_cast<ServerConfig&>(config))));
          }};
}

bool IsAddress(absl::string_view value) { return ParseListenAddress(value).ok(); }
bool IsAnything(absl::string_view) { return true; }
bool IsNotEmpty(absl::string_view value) { return !value.empty(); }

ConfigKey TenantsKey() {
  const std::string allowed = "ids, separated by commas";
  return {"server",
          "tenants",
          Type::kList,
          allowed,
          "Tenants that exist.",
          [=](ServerConfig& config, absl::string_view value) -> absl::Status {
            std::vector<std::string> tenants;
            for (absl::string_view id : absl::StrSplit(value, ',')) {
              id = absl::StripAsciiWhitespace(id);
              if (absl::Status status = CheckResourceId(id, "tenant"); !status.ok()) {
                return NotAllowed(value, absl::StrCat(allowed, " (", status.message(), ")"));
              }
              if (absl::c_linear_search(tenants, id)) {
                return NotAllowed(value, absl::StrCat(allowed, " (", id, " stands there twice)"));
              }
              tenants.emplace_back(id);
            }
            config.server.tenants = std::move(tenants);
            return absl::OkStatus();
          },
          [](const ServerConfig& config) { return absl::StrJoin(config.server.tenants, ","); }};
}

constexpr int64_t kBytesMax = int64_t{1} << 50;

// A limit that quota.*, quota.tenant_* and quota.tenants set alike.
struct QuotaKey {
  absl::string_view name;
  int64_t QuotaLimits::*limit;
  bool is_bytes;
  int64_t min, max;
  absl::string_view what;  // that is limited
};
constexpr QuotaKey kQuotaKeys[] = {
    {"text_bytes_max", &QuotaLimits::text_bytes_max, true, 0, kBytesMax, "Text stored"},
    {"documents_max", &QuotaLimits::documents_max, false, 0, int64_t{1} << 40, "Documents"},
    {"ingest_bytes_per_second", &QuotaLimits::ingest_bytes_per_second, true, 0, kBytesMax,
     "Text taken in a second (beyond it streams are read more slowly)"},
    {"ingest_burst_bytes", &QuotaLimits::ingest_burst_bytes, true, 1, kBytesMax,
     "Text taken at once before that rate holds"},
    {"readers_max", &QuotaLimits::readers_max, false, 0, 1'000'000,
     "Retrieve, Generate and Score at one time"},
    {"ingest_streams_max", &QuotaLimits::ingest_streams_max, false, 0, 1'000'000,
     "Ingest streams with a document at one time"},
};

// Sets a limit; INVALID_ARGUMENT says what is allowed.
absl::Status SetLimit(const QuotaKey& key, absl::string_view value, QuotaLimits* limits) {
  int64_t number;
  if (!(key.is_bytes ? ParseBytes(value, &number) : absl::SimpleAtoi(value, &number)) ||
      number < key.min || number > key.max) {
    return NotAllowed(value, absl::StrCat(key.name, " is ", key.min, " .. ", key.max));
  }
  limits->*key.limit = number;
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
          Type::kMap,
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

// A percentage kept as a share.
template <typename Field>  // double& (*)(ServerConfig&)
ConfigKey PercentKey(std::string section, std::string name, std::string help, Field field) {
  const std::string allowed = "1 .. 100";
  return {section,
          name,
          Type::kInteger,
          allowed,
          std::move(help),
          [=](ServerConfig& config, absl::string_view value) -> absl::Status {
            int percent;
            if (!absl::SimpleAtoi(value, &percent) || percent < 1 || percent > 100) {
              return NotAllowed(value, allowed);
            }
            field(config) = percent / 100.0;
            return absl::OkStatus();
          },
          [=](const ServerConfig& config) {
            return absl::StrCat(std::lround(100 * field(const_cast<ServerConfig&>(config))));
          }};
}

std::vector<ConfigKey> QuotaKeys() {
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

std::vector<ConfigKey> MakeKeys() {
  constexpr int kThreadsMax = 1024;
  constexpr int kQueueMax = 1'000'000;
#define FIELD(member) \
  [](ServerConfig & c) -> auto& { return c.member; }
  std::vector<ConfigKey> keys = {
      TextKey("server", "listen", "host:port",
              "Address of the gRPC service; port 0 takes a free port.", IsAddress,
              FIELD(server.listen)),
      TextKey(
          "server", "http", "host:port or off",
          "Address of /metrics, /livez and /readyz; port 0 takes a free port.",
          [](absl::string_view value) { return value == "off" || IsAddress(value); },
          FIELD(server.http)),
      TextKey("server", "port_file", "a path or empty",
              "File that gets the bound addresses once they are served.", IsAnything,
              FIELD(server.port_file)),
      TenantsKey(),
      ChoiceKey("server", "log_level", {"debug", "info", "warning", "error"},
                "Least level of the log lines on stderr.", FIELD(log_level)),
      BytesKey("server", "message_bytes_max", 1 << 16, int64_t{64} << 20,
               "A larger request message is refused with RESOURCE_EXHAUSTED.",
               FIELD(server.message_bytes_max)),
      IntegerKey("server", "connection_streams_max", 1, kQueueMax,
                 "Calls at one time on one connection; more of them wait in the client.",
                 FIELD(server.connection_streams_max)),
      IntegerKey("server", "ingest_streams_max", 1, kQueueMax,
                 "Ingest streams at one time; more are refused with RESOURCE_EXHAUSTED.",
                 FIELD(server.ingest_streams_max)),
      IntegerKey("server", "catalog_threads", 1, kThreadsMax,
                 "Threads for calls on memories and documents.", FIELD(server.catalog_threads)),
      IntegerKey("server", "catalog_queue_max", 1, kQueueMax,
                 "Calls that wait for such a thread; more are refused with RESOURCE_EXHAUSTED.",
                 FIELD(server.catalog_queue_max)),
      IntegerKey("server", "reader_threads", 1, kThreadsMax,
                 "Threads for Retrieve, Generate and Score: that many run at one time.",
                 FIELD(server.reader_threads)),
      IntegerKey("server", "reader_queue_max", 1, kQueueMax,
                 "Calls that wait for such a thread; more are refused with RESOURCE_EXHAUSTED.",
                 FIELD(server.reader_queue_max)),
      IntegerKey("server", "ingest_threads", 1, kThreadsMax, "Threads that serve Ingest streams.",
                 FIELD(server.ingest_threads)),
      IntegerKey("server", "request_ids_max", 1, 10'000'000,
                 "Requests with a request_id whose result is remembered (for 10 minutes).",
                 FIELD(server.request_ids_max)),
      IntegerKey("server", "operations_max", 1, kQueueMax,
                 "Long-running operations at one time; more are refused with RESOURCE_EXHAUSTED.",
                 FIELD(server.operations_max)),
      SecondsKey("server", "operation_keep_seconds", 1,
                 "Time for which an operation that has ended can be asked for.",
                 FIELD(server.operation_keep)),
      IntegerKey("server", "operation_threads", 1, kThreadsMax,
                 "Threads for operations that need one.", FIELD(server.operation_threads)),
      SecondsKey("server", "drain_seconds", 0,
                 "Time that running calls get to finish after SIGTERM or SIGINT.",
                 FIELD(server.drain_timeout)),
      SecondsKey("server", "client_stall_seconds", 0.1,
                 "A client that takes no response of its stream for so long loses the call.",
                 FIELD(server.client_stall_max)),
      SecondsKey("server", "keepalive_seconds", 1, "Silence after which a connection is probed.",
                 FIELD(server.keepalive_interval)),
      SecondsKey("server", "keepalive_timeout_seconds", 1,
                 "A connection that does not answer a probe for so long is closed.",
                 FIELD(server.keepalive_timeout)),

      TextKey("model", "path", "a folder or empty",
              "Model bundle; empty: models/mneme-small beside the program.", IsAnything,
              FIELD(model_path)),
      ChoiceKey("model", "device", {"cpu", "cuda", "auto"},
                "Where the network runs; auto: cuda when there is one, otherwise cpu.",
                FIELD(device)),
      ChoiceKey("model", "precision", {"bf16", "f32"}, "Arithmetic of the network.",
                FIELD(precision)),
      IntegerKey("model", "threads", 0, kThreadsMax,
                 "Worker threads of the cpu device; 0: one a core.", FIELD(threads)),

      TextKey("store", "data_dir", "a folder", "Where all data lies; created when absent.",
              IsNotEmpty, FIELD(data_dir)),
      BytesKey("store", "block_cache_bytes", 1 << 20, kBytesMax, "RocksDB's cache of blocks.",
               FIELD(block_cache_bytes)),
      IntegerKey("store", "background_threads", 1, kThreadsMax,
                 "RocksDB's threads for flushes and compactions.", FIELD(background_threads)),
      BytesKey("store", "reserve_bytes", 0, kBytesMax,
               "Space that writes leave free on the file system.", FIELD(reserve_bytes)),
      TextKey("store", "backup_dir", "a folder or empty",
              "Where mneme backup writes, once for all; created when absent. Empty: no backups.",
              IsAnything, FIELD(server.backup_dir)),
      BytesKey("store", "scrub_bytes_per_second", 0, kBytesMax,
               "The scrubber reads the whole store in the background, at most at this rate; 0: it "
               "does not.",
               FIELD(engine.scrub_bytes_per_second)),
      SecondsKey(
          "store", "scrub_interval_seconds", 1,
          "Time from the beginning of one pass of the scrubber to that of the next, at least.",
          FIELD(engine.scrub_interval)),
      BytesKey("store", "host_page_bytes_max", 1 << 20, kBytesMax,
               "Chunk pages (keys and values) kept in memory, at most.",
               FIELD(host_page_bytes_max)),
      BytesKey("store", "past_tail_bytes_max", 1 << 20, kBytesMax,
               "Landmarks of the ends of documents as they were earlier, kept in memory for "
               "questions about forks and the past, at most.",
               FIELD(past_tail_bytes_max)),
      IntegerKey(
          "store", "past_views_max", 0, 100'000,
          "Which documents of a memory a fork or a moment shows: kept in memory so often, at "
          "most.",
          FIELD(past_views_max)),
      IntegerKey("store", "snapshots_per_memory_max", 0, 1'000'000, "Snapshots of one memory.",
                 FIELD(snapshots_per_memory_max)),
      IntegerKey("store", "fork_depth_max", 0, 1000, "Forks of forks of a memory, at most so deep.",
                 FIELD(fork_depth_max)),
      BytesKey("store", "device_page_bytes_max", 1 << 20, kBytesMax,
               "Chunk pages kept in a GPU's memory, at most.", FIELD(device_page_bytes_max)),
      BytesKey("store", "device_landmark_bytes_max", 0, kBytesMax,
               "Landmarks kept in a GPU's memory, at most; queries read the rest from the host's.",
               FIELD(device_landmark_bytes_max)),
      ChoiceKey(
          "store", "device_landmark_overflow", {"stream", "refuse"},
          "What becomes of landmarks beyond that: read from the host's memory at each question, "
          "or kept from coming by the watermarks.",
          FIELD(device_landmark_overflow)),
      BytesKey("store", "host_landmark_bytes_max", 0, kBytesMax,
               "Landmarks in memory, for the watermarks; 0: no limit.",
               FIELD(engine.admission.host_landmark_bytes_max)),
      BytesKey("store", "disk_bytes_max", 0, kBytesMax,
               "Size of the data directory, for the watermarks; 0: no limit but the file system.",
               FIELD(engine.admission.disk_bytes_max)),
      PercentKey("store", "watermark_low_percent",
                 "Of disk_bytes_max and the landmark limits: beyond it ingest is slowed.",
                 FIELD(engine.admission.watermarks.low)),
      PercentKey("store", "watermark_high_percent",
                 "Beyond it ingest is refused with RESOURCE_EXHAUSTED until there is room again.",
                 FIELD(engine.admission.watermarks.high)),
      BytesKey("store", "free_low_bytes", 0, kBytesMax,
               "Free on the file system: below it ingest is slowed; 0 (and free_high_bytes 0): no "
               "matter.",
               FIELD(engine.admission.watermarks.free_low_bytes)),
      BytesKey("store", "free_high_bytes", 0, kBytesMax,
               "Free on the file system: below it ingest is refused.",
               FIELD(engine.admission.watermarks.free_high_bytes)),
      BytesKey(
          "store", "watermark_ingest_bytes_per_second", 1, kBytesMax,
          "Ingest of all streams at the low watermark; it falls to a fiftieth at the high one.",
          FIELD(engine.admission.slow_bytes_per_second)),

      IntegerKey("engine", "encode_threads", 1, kThreadsMax,
                 "Threads that turn text into tokens; more than 1 pay with a GPU.",
                 FIELD(engine.encode_threads)),
      IntegerKey("engine", "put_threads", 1, kThreadsMax,
                 "Threads that store what was derived; more than 1 pay with a GPU.",
                 FIELD(engine.put_threads)),
      IntegerKey("engine", "batch_segments_max", 1, 1024, "Segments derived in one batch, at most.",
                 FIELD(engine.batch_segments_max)),
      IntegerKey("engine", "batch_tokens_max", 1, 1 << 24,
                 "Tokens derived in one batch, at most; one segment always fits.",
                 FIELD(engine.batch_tokens_max)),
      IntegerKey("engine", "queue_segments_max", 1, kQueueMax,
                 "Segments waiting to be derived, at most; beyond it streams stop being read.",
                 FIELD(engine.queue_segments_max)),
      SecondsKey("engine", "idle_flush_seconds", 0.001,
                 "Silence after which the open segment of a document is derived as it stands.",
                 FIELD(engine.idle_flush)),
      BytesKey("engine", "commit_bytes_max", 1 << 16, int64_t{1} << 30,
               "Text gathered into one synced write, at most.", FIELD(engine.commit_bytes_max)),
      SecondsKey("engine", "commit_wait_seconds", 0,
                 "Time to gather text for one synced write; 0: none beyond the write before it.",
                 FIELD(engine.commit_wait_max)),
      BytesKey(
          "engine", "writer_pending_bytes_max", 1 << 16, int64_t{1} << 30,
          "Text of one stream accepted but not durable, at most; beyond it the stream is not read.",
          FIELD(engine.writer_pending_bytes_max)),
      BytesKey("engine", "commit_queue_bytes_max", 1 << 16, int64_t{1} << 40,
               "Text of all streams accepted but not durable, at most; beyond it none is read.",
               FIELD(engine.commit_queue_bytes_max)),
      SecondsKey(
          "engine", "thread_stall_seconds", 2,
          "A background thread without a sign of life for so long makes the server not ready.",
          FIELD(engine.thread_stall_max)),
      BytesKey("engine", "document_bytes_max", 1, int64_t{1} << 40,
               "Text of one document, at most.", FIELD(engine.document_bytes_max)),
      IntegerKey("engine", "documents_per_memory_max", 1, 1'000'000'000,
                 "Documents of one memory, at most.", FIELD(engine.documents_per_memory_max)),
      IntegerKey("engine", "memories_per_tenant_max", 1, 1'000'000'000,
                 "Memories of one tenant, at most.", FIELD(engine.memories_per_tenant_max)),
      IntegerKey("engine", "memories_per_read_max", 1, 64, "Memories that one question may name.",
                 FIELD(engine.memories_per_read_max)),
      IntegerKey("engine", "retrieve_k_max", 1, 256, "Passages of one Retrieve, at most.",
                 FIELD(engine.retrieve_k_max)),
      IntegerKey("engine", "generate_tokens_max", 1, 4096, "Tokens of one Generate, at most.",
                 FIELD(engine.generate_tokens_max)),
      IntegerKey("engine", "readers_max", 1, kThreadsMax,
                 "Questions that run at one time, at most.", FIELD(engine.readers_max)),
      IntegerKey("engine", "readers_waiting_max", 1, kQueueMax,
                 "Questions that wait to run; more are refused with RESOURCE_EXHAUSTED.",
                 FIELD(engine.readers_waiting_max)),
  };
#undef FIELD
  for (ConfigKey& key : QuotaKeys()) keys.push_back(std::move(key));
  return keys;
}

// What no key alone can tell.
absl::Status CheckTogether(const ServerConfig& config) {
  for (const auto& [tenant, limits] : config.tenant_quotas) {
    if (!absl::c_linear_search(config.server.tenants, tenant)) {
      return absl::InvalidArgumentError(
          absl::StrCat("quota.tenants: \"", tenant, "\" is none of server.tenants"));
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

// A map of maps of scalars as OUTER.INNER=VALUE, joined by commas.
absl::StatusOr<std::string> YamlMap(const YAML::Node& node, const ConfigKey& key,
                                    absl::string_view where) {
  const auto refuse = [&] {
    return absl::InvalidArgumentError(absl::StrCat(
        where, ": ", key.full_name(), ": not a map of maps of plain values without commas"));
  };
  std::vector<std::string> items;
  std::set<std::string> seen;
  for (const auto& outer : node) {
    if (!outer.first.IsScalar() || !outer.second.IsMap()) return refuse();
    if (!seen.insert(outer.first.Scalar()).second) {
      return absl::InvalidArgumentError(absl::StrCat(
          where, ": ", key.full_name(), ": \"", outer.first.Scalar(), "\" stands there twice"));
    }
    for (const auto& inner : outer.second) {
      if (!inner.first.IsScalar() || !inner.second.IsScalar()) return refuse();
      items.push_back(absl::StrCat(outer.first.Scalar(), ".", inner.first.Scalar(), "=",
                                   inner.second.Scalar()));
      if (absl::StrContains(items.back(), ',')) return refuse();
    }
  }
  return absl::StrJoin(items, ",");
}

// A scalar, or a sequence of scalars joined by commas.
absl::StatusOr<std::string> YamlValue(const YAML::Node& node, const ConfigKey& key,
                                      absl::string_view where) {
  if (node.IsScalar()) return node.Scalar();
  if (node.IsNull() && (key.type == Type::kText || key.type == Type::kMap)) return std::string();
  if (node.IsMap() && key.type == Type::kMap) return YamlMap(node, key, where);
  if (node.IsSequence() && key.type == Type::kList) {
    std::vector<std::string> items;
    for (const YAML::Node& item : node) {
      if (!item.IsScalar()) {
        return absl::InvalidArgumentError(
            absl::StrCat(where, ": ", key.full_name(), ": not a list of plain values"));
      }
      items.push_back(item.Scalar());
    }
    return absl::StrJoin(items, ",");
  }
  return absl::InvalidArgumentError(
      absl::StrCat(where, ": ", key.full_name(), ": not a plain value: ", key.allowed));
}

absl::Status ApplyYamlNode(const YAML::Node& root, absl::string_view source, ServerConfig* config) {
  const auto where = [source](const YAML::Node& node) {
    return absl::StrCat(source, ":", node.Mark().line + 1);
  };
  if (root.IsNull()) return absl::OkStatus();
  if (!root.IsMap()) {
    return absl::InvalidArgumentError(absl::StrCat(where(root), ": not a map of sections"));
  }
  std::set<std::string> sections, seen_sections, seen;
  for (const ConfigKey& key : ConfigKeys()) sections.insert(key.section);
  for (const auto& section : root) {
    const std::string section_name = section.first.IsScalar() ? section.first.Scalar() : "";
    if (!sections.contains(section_name)) {
      return absl::InvalidArgumentError(absl::StrCat(where(section.first), ": unknown section \"",
                                                     section_name,
                                                     "\": ", absl::StrJoin(sections, ", ")));
    }
    if (!seen_sections.insert(section_name).second) {
      return absl::InvalidArgumentError(absl::StrCat(where(section.first), ": section \"",
                                                     section_name, "\" stands there twice"));
    }
    if (section.second.IsNull()) continue;
    if (!section.second.IsMap()) {
      return absl::InvalidArgumentError(
          absl::StrCat(where(section.second), ": section ", section_name, " is not a map of keys"));
    }
    for (const auto& entry : section.second) {
      const std::string name =
          absl::StrCat(section_name, ".", entry.first.IsScalar() ? entry.first.Scalar() : "");
      const ConfigKey* key = FindKey(name);
      if (key == nullptr) {
        return absl::InvalidArgumentError(
            absl::StrCat(where(entry.first), ": unknown key \"", name, "\""));
      }
      if (!seen.insert(name).second) {
        return absl::InvalidArgumentError(
            absl::StrCat(where(entry.first), ": key \"", name, "\" is set twice"));
      }
      ASSIGN_OR_RETURN(const std::string value, YamlValue(entry.second, *key, where(entry.second)));
      RETURN_IF_ERROR(SetKey(*key, value, where(entry.second), config));
    }
  }
  return absl::OkStatus();
}

absl::Status ApplyFile(const std::string& path, ServerConfig* config) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream contents;
  // An empty file cannot be inserted, but it was read; a folder opens, but cannot be read.
  const bool is_empty = file.is_open() && file.peek() == EOF && !file.bad();
  if (!is_empty && (!file || !(contents << file.rdbuf()))) {
    return absl::NotFoundError(absl::StrCat("--config: cannot read \"", path, "\""));
  }
  return ApplyYaml(contents.str(), path, config);
}

constexpr absl::string_view kEnvironmentPrefix = "MNEME_";
// Variables of the client program, which share the prefix.
constexpr absl::string_view kClientEnvironment[] = {"MNEME_ADDRESS"};

absl::Status ApplyEnvironment(absl::Span<const std::string> environment, ServerConfig* config) {
  for (const std::string& entry : environment) {
    if (!absl::StartsWith(entry, kEnvironmentPrefix)) continue;
    const std::pair<std::string, std::string> variable =
        absl::StrSplit(entry, absl::MaxSplits('=', 1));
    const auto& [name, value] = variable;
    if (absl::c_linear_search(kClientEnvironment, name)) continue;
    const ConfigKey* key = nullptr;
    for (const ConfigKey& candidate : ConfigKeys()) {
      if (candidate.environment() == name) key = &candidate;
    }
    if (key == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("environment: unknown variable ", name, " (see --help)"));
    }
    RETURN_IF_ERROR(SetKey(*key, value, absl::StrCat("environment ", name), config));
  }
  return absl::OkStatus();
}

// Flags that stand for one key.
struct KeyFlag {
  absl::string_view flag;
  absl::string_view key;
};
constexpr KeyFlag kKeyFlags[] = {
    {"--data-dir", "store.data_dir"}, {"--model", "model.path"},
    {"--listen", "server.listen"},    {"--http", "server.http"},
    {"--device", "model.device"},     {"--log-level", "server.log_level"},
};

struct Flag {
  std::string name;
  std::string value;
};

// One assignment of a key by a flag, in the order of the command line.
struct Assignment {
  const ConfigKey* key;
  std::string value;
  std::string source;
};

absl::StatusOr<Assignment> ParseSet(const std::string& value) {
  const size_t equals = value.find('=');
  if (equals == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("--set \"", value, "\": not section.key=value"));
  }
  const std::string name = value.substr(0, equals);
  const ConfigKey* key = FindKey(name);
  if (key == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("--set: unknown key \"", name, "\" (see --help)"));
  }
  return Assignment{key, value.substr(equals + 1), "--set"};
}

// What YamlMap takes back.
void EmitMap(const std::string& value, YAML::Emitter* out) {
  std::map<std::string, std::vector<std::pair<std::string, std::string>>> outer;
  for (absl::string_view item : absl::StrSplit(value, ',', absl::SkipEmpty())) {
    const std::pair<std::string, std::string> sides = absl::StrSplit(item, absl::MaxSplits('=', 1));
    const size_t dot = sides.first.rfind('.');
    outer[sides.first.substr(0, dot)].emplace_back(sides.first.substr(dot + 1), sides.second);
  }
  *out << YAML::BeginMap;
  for (const auto& [name, entries] : outer) {
    *out << YAML::Key << name << YAML::Value << YAML::BeginMap;
    for (const auto& [key, text] : entries) *out << YAML::Key << key << YAML::Value << text;
    *out << YAML::EndMap;
  }
  *out << YAML::EndMap;
}

}  // namespace

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

std::string ConfigKey::full_name() const { return absl::StrCat(section, ".", name); }

std::string ConfigKey::environment() const {
  return absl::AsciiStrToUpper(absl::StrCat(kEnvironmentPrefix, section, "_", name));
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
  static const std::vector<ConfigKey>& keys = *new std::vector<ConfigKey>(MakeKeys());
  return keys;
}

absl::Status ApplyYaml(absl::string_view yaml, absl::string_view source, ServerConfig* config) {
  const size_t valid_bytes = ValidUtf8Prefix(yaml).valid_bytes;
  if (valid_bytes < yaml.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": not valid UTF-8 at byte ", valid_bytes));
  }
  try {  // yaml-cpp reports by exception
    const std::vector<YAML::Node> documents = YAML::LoadAll(std::string(yaml));
    if (documents.size() > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(source, ":", documents[1].Mark().line + 1,
                       ": a second YAML document (after \"---\"): a configuration has one"));
    }
    return documents.empty() ? absl::OkStatus() : ApplyYamlNode(documents[0], source, config);
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ":", e.mark.line + 1, ": not YAML: ", e.msg));
  }
}

std::string ToYaml(const ServerConfig& config) {
  YAML::Emitter out;
  out << YAML::BeginMap;
  std::string section;
  for (const ConfigKey& key : ConfigKeys()) {
    if (key.section != section) {
      if (!section.empty()) out << YAML::EndMap;
      section = key.section;
      out << YAML::Key << section << YAML::Value << YAML::BeginMap;
    }
    const std::string value = key.get(config);
    out << YAML::Key << key.name << YAML::Value;
    if (key.type == Type::kList) {
      out << YAML::Flow << YAML::BeginSeq;
      for (absl::string_view item : absl::StrSplit(value, ',')) out << std::string(item);
      out << YAML::EndSeq;
    } else if (key.type == Type::kMap) {
      EmitMap(value, &out);
    } else {
      out << value;
    }
  }
  out << YAML::EndMap << YAML::EndMap;
  return absl::StrCat(out.c_str(), "\n");
}

absl::StatusOr<CommandLine> ParseCommandLine(absl::Span<const std::string> args,
                                             absl::Span<const std::string> environment) {
  CommandLine command;
  std::vector<Assignment> assignments;
  std::string config_path;
  for (size_t i = 0; i < args.size(); ++i) {
    std::string flag = args[i];
    if (flag == "--help" || flag == "-h") {
      command.action = CommandLine::Action::kHelp;
      return command;
    }
    if (flag == "--version") {
      command.action = CommandLine::Action::kVersion;
      return command;
    }
    if (flag == "--verify-only") {
      command.action = CommandLine::Action::kVerify;
      continue;
    }
    if (flag == "--print-config") {
      command.action = CommandLine::Action::kPrintConfig;
      continue;
    }
    std::string value;
    bool has_value = false;
    if (const size_t equals = flag.find('='); equals != std::string::npos) {
      value = flag.substr(equals + 1);
      flag.resize(equals);
      has_value = true;
    }
    const KeyFlag* key_flag = nullptr;
    for (const KeyFlag& candidate : kKeyFlags) {
      if (candidate.flag == flag) key_flag = &candidate;
    }
    if (key_flag == nullptr && flag != "--config" && flag != "--set" && flag != "--restore-from") {
      return absl::InvalidArgumentError(
          absl::StrCat(absl::StartsWith(flag, "-") ? "unknown flag " : "unexpected argument ", flag,
                       " (see --help)"));
    }
    if (!has_value) {
      if (i + 1 == args.size()) {
        return absl::InvalidArgumentError(absl::StrCat("flag ", flag, " needs a value"));
      }
      value = args[++i];
    }
    if (flag == "--config") {
      config_path = value;
    } else if (flag == "--restore-from") {
      if (value.empty()) return absl::InvalidArgumentError("--restore-from: the value is empty");
      command.action = CommandLine::Action::kRestore;
      command.restore_from = value;
    } else if (flag == "--set") {
      ASSIGN_OR_RETURN(Assignment assignment, ParseSet(value));
      assignments.push_back(std::move(assignment));
    } else {
      assignments.push_back({FindKey(key_flag->key), value, flag});
    }
  }
  if (!config_path.empty()) RETURN_IF_ERROR(ApplyFile(config_path, &command.config));
  RETURN_IF_ERROR(ApplyEnvironment(environment, &command.config));
  for (const Assignment& assignment : assignments) {
    RETURN_IF_ERROR(SetKey(*assignment.key, assignment.value, assignment.source, &command.config));
  }
  RETURN_IF_ERROR(CheckTogether(command.config));
  return command;
}

std::string HelpText() {
  std::string text =
      "mneme-server: serves memories over gRPC, metrics and health over HTTP.\n"
      "\n"
      "Usage: mneme-server [flags]\n"
      "\n"
      "Without flags it listens on 127.0.0.1 (gRPC 7420, HTTP 7421), keeps its data in "
      "./mneme-data and\n"
      "loads the bundle mneme-small that comes with the program.\n"
      "\n"
      "Flags (--flag value or --flag=value):\n";
  for (const KeyFlag& flag : kKeyFlags) {
    const ConfigKey& key = *FindKey(flag.key);
    absl::StrAppend(&text, absl::StrFormat("  %-24s %s (%s) [key %s]\n", std::string(flag.flag),
                                           key.help, key.allowed, key.full_name()));
  }
  absl::StrAppend(
      &text,
      "  --set section.key=value  Sets any key below; may be repeated, the last one counts.\n"
      "  --config FILE            YAML file of sections and keys.\n"
      "  --print-config           Prints the effective configuration as YAML (which --config "
      "takes) and exits.\n"
      "  --verify-only            Reads everything in the data directory, which no server may "
      "use,\n"
      "                           says what is damaged, writes nothing, and exits with 1 if "
      "anything is.\n"
      "  --restore-from DIR[:ID]  Restores a backup (the newest, or the one of that id) into the "
      "data directory,\n"
      "                           which must be empty, and exits.\n"
      "  --version                Prints version, commit and backends and exits.\n"
      "  --help                   Prints this text and exits.\n"
      "\n"
      "Configuration: defaults < file (--config) < environment (MNEME_SECTION_KEY, for example\n"
      "MNEME_STORE_DATA_DIR) < flags. Unknown flags, keys, variables and values are errors.\n"
      "Exit status: 0 after a drain (SIGTERM or SIGINT), 1 error, 2 usage or configuration.\n");
  const ServerConfig defaults;
  std::string section;
  for (const ConfigKey& key : ConfigKeys()) {
    if (key.section != section) {
      section = key.section;
      absl::StrAppend(&text, "\n", section, ":\n");
    }
    const std::string value = key.get(defaults);
    absl::StrAppend(&text, "  ", key.name, " = ", value.empty() ? "\"\"" : value,
                    key.unit().empty() ? "" : " ", key.unit(), "\n      ", key.help, " (",
                    key.allowed, ")\n");
  }
  return text;
}

}  // namespace mneme
