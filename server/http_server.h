// HTTP for operators: GET /metrics (Prometheus text), /livez, /readyz. Served by civetweb.

#ifndef MNEME_SERVER_HTTP_SERVER_H_
#define MNEME_SERVER_HTTP_SERVER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/metrics.h"
#include "server/listen_address.h"

struct mg_connection;
struct mg_context;

namespace mneme {

// Thread-safe.
class HttpServer {
 public:
  // Serves at once, from threads of its own. `ready` (thread-safe, must not block) answers /readyz:
  // OK, or why not. UNAVAILABLE names an address that cannot be bound. `metrics` must outlive it.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const ListenAddress& address,
                                                           const Metrics& metrics,
                                                           std::function<absl::Status()> ready);
  // Ends running requests and the threads.
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // As bound: never port 0.
  const ListenAddress& address() const { return address_; }

 private:
  HttpServer(ListenAddress address, const Metrics& metrics, std::function<absl::Status()> ready);

  static int HandleMetrics(mg_connection* connection, void* self);
  static int HandleLive(mg_connection* connection, void* self);
  static int HandleReady(mg_connection* connection, void* self);

  ListenAddress address_;
  const Metrics& metrics_;
  const std::function<absl::Status()> ready_;
  mg_context* context_ = nullptr;
};

}  // namespace mneme

#endif  // MNEME_SERVER_HTTP_SERVER_H_
