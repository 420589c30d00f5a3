// Limits and addresses of the RPC and HTTP front. Every limit is a config key and a metric.

#ifndef MNEME_SERVER_SERVER_OPTIONS_H_
#define MNEME_SERVER_SERVER_OPTIONS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace mneme {

struct ServerOptions {
  // host:port; port 0 takes a free one.
  std::string listen = "127.0.0.1:7420";
  // host:port of /metrics, /livez and /readyz; "off": none.
  std::string http = "127.0.0.1:7421";
  // File that gets the bound addresses, as `grpc=host:port` and `http=host:port`; empty: none.
  std::string port_file;
  std::vector<std::string> tenants = {"default"};
  // A request message beyond it is refused. The transport itself breaks off at four times as much.
  int64_t message_bytes_max = int64_t{4} << 20;
  // Calls on one connection, and Ingest streams on all of them, at one time.
  int connection_streams_max = 1000;
  int ingest_streams_max = 1000;
  // Worker threads and waiting calls: catalog calls; readers (Retrieve, Generate, Score); Ingest
  // streams.
  int catalog_threads = 4;
  int catalog_queue_max = 1024;
  int reader_threads = 32;
  int reader_queue_max = 1024;
  int ingest_threads = 4;
  // Results of requests with a request_id that are remembered.
  int request_ids_max = 10'000;
  // Long-running operations under way at one time, and as many that have ended, for so long;
  // threads for those of AdminService.
  int operations_max = 10'000;
  absl::Duration operation_keep = absl::Hours(1);
  int operation_threads = 2;
  // Where CreateBackup writes; empty: nowhere. A client names no path.
  std::string backup_dir;
  absl::Duration drain_timeout = absl::Seconds(20);
  // A client that takes no response for so long loses its call.
  absl::Duration client_stall_max = absl::Seconds(60);
  absl::Duration keepalive_interval = absl::Seconds(60);
  absl::Duration keepalive_timeout = absl::Seconds(20);
};

// Text of one Ingest message, at most.
inline constexpr int64_t kIngestTextBytesMax = int64_t{1} << 20;

}  // namespace mneme

#endif  // MNEME_SERVER_SERVER_OPTIONS_H_
