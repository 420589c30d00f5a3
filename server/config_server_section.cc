// Section `server`: what is served to whom, and by how many threads.

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_split.h"
#include "server/config_key_kinds.h"
#include "server/config_sections.h"
#include "server/listen_address.h"

namespace mneme {
namespace {

bool IsAddress(absl::string_view value) { return ParseListenAddress(value).ok(); }

ConfigKey TenantsKey() {
  const std::string allowed = "ids, separated by commas";
  return {"server",
          "tenants",
          ConfigKey::Type::kList,
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

}  // namespace

std::vector<ConfigKey> ServerSection() {
  return {
      TextKey("server", "listen", "host:port",
              "Address of the gRPC service; port 0 takes a free port.", IsAddress,
              MNEME_CONFIG_FIELD(server.listen)),
      TextKey(
          "server", "http", "host:port or off",
          "Address of /metrics, /livez and /readyz; port 0 takes a free port.",
          [](absl::string_view value) { return value == "off" || IsAddress(value); },
          MNEME_CONFIG_FIELD(server.http)),
      TextKey("server", "port_file", "a path or empty",
              "File that gets the bound addresses once they are served.", IsAnything,
              MNEME_CONFIG_FIELD(server.port_file)),
      TenantsKey(),
      ChoiceKey("server", "log_level", {"debug", "info", "warning", "error"},
                "Least level of the log lines on stderr.", MNEME_CONFIG_FIELD(log_level)),
      BytesKey("server", "message_bytes_max", 1 << 16, int64_t{64} << 20,
               "A larger request message is refused with RESOURCE_EXHAUSTED.",
               MNEME_CONFIG_FIELD(server.message_bytes_max)),
      IntegerKey("server", "connection_streams_max", 1, kConfigQueueMax,
                 "Calls at one time on one connection; more of them wait in the client.",
                 MNEME_CONFIG_FIELD(server.connection_streams_max)),
      IntegerKey("server", "ingest_streams_max", 1, kConfigQueueMax,
                 "Ingest streams at one time; more are refused with RESOURCE_EXHAUSTED.",
                 MNEME_CONFIG_FIELD(server.ingest_streams_max)),
      IntegerKey("server", "catalog_threads", 1, kConfigThreadsMax,
                 "Threads for calls on memories and documents.",
                 MNEME_CONFIG_FIELD(server.catalog_threads)),
      IntegerKey("server", "catalog_queue_max", 1, kConfigQueueMax,
                 "Calls that wait for such a thread; more are refused with RESOURCE_EXHAUSTED.",
                 MNEME_CONFIG_FIELD(server.catalog_queue_max)),
      IntegerKey("server", "reader_threads", 1, kConfigThreadsMax,
                 "Threads for Retrieve, Generate and Score: that many run at one time.",
                 MNEME_CONFIG_FIELD(server.reader_threads)),
      IntegerKey("server", "reader_queue_max", 1, kConfigQueueMax,
                 "Calls that wait for such a thread; more are refused with RESOURCE_EXHAUSTED.",
                 MNEME_CONFIG_FIELD(server.reader_queue_max)),
      IntegerKey("server", "ingest_threads", 1, kConfigThreadsMax,
                 "Threads that serve Ingest streams.", MNEME_CONFIG_FIELD(server.ingest_threads)),
      IntegerKey("server", "request_ids_max", 1, 10'000'000,
                 "Requests with a request_id whose result is remembered (for 10 minutes).",
                 MNEME_CONFIG_FIELD(server.request_ids_max)),
      IntegerKey("server", "operations_max", 1, kConfigQueueMax,
                 "Long-running operations at one time; more are refused with RESOURCE_EXHAUSTED.",
                 MNEME_CONFIG_FIELD(server.operations_max)),
      SecondsKey("server", "operation_keep_seconds", 1,
                 "Time for which an operation that has ended can be asked for.",
                 MNEME_CONFIG_FIELD(server.operation_keep)),
      IntegerKey(
          "server", "operation_threads", 1, kConfigThreadsMax,
          "Threads for Verify, Repair, CreateBackup and VerifyBackups: that many run at one time.",
          MNEME_CONFIG_FIELD(server.operation_threads)),
      SecondsKey("server", "drain_seconds", 0,
                 "Time that running calls get to finish after SIGTERM or SIGINT.",
                 MNEME_CONFIG_FIELD(server.drain_timeout)),
      SecondsKey("server", "client_stall_seconds", 0.1,
                 "A client that takes no response of its stream for so long loses the call.",
                 MNEME_CONFIG_FIELD(server.client_stall_max)),
      SecondsKey("server", "keepalive_seconds", 1, "Silence after which a connection is probed.",
                 MNEME_CONFIG_FIELD(server.keepalive_interval)),
      SecondsKey("server", "keepalive_timeout_seconds", 1,
                 "A connection that does not answer a probe for so long is closed.",
                 MNEME_CONFIG_FIELD(server.keepalive_timeout)),
  };
}

}  // namespace mneme
