#include "server/http_server.h"

#include <civetweb.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

// Sends a whole response; returns the status code, as civetweb wants it.
int Respond(mg_connection* connection, int code, const char* reason, const char* content_type,
            absl::string_view body) {
  const absl::string_view method = mg_get_request_info(connection)->request_method;
  if (method != "GET" && method != "HEAD") {
    code = 405;
    reason = "Method Not Allowed";
    content_type = "text/plain; charset=utf-8";
    body = "only GET and HEAD are allowed\n";
  }
  std::string response =
      absl::StrCat("HTTP/1.1 ", code, " ", reason, "\r\nContent-Type: ", content_type,
                   "\r\nContent-Length: ", body.size(), code == 405 ? "\r\nAllow: GET, HEAD" : "",
                   "\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n");
  if (method != "HEAD") absl::StrAppend(&response, body);
  // A scraper that is gone cannot be told.
  mg_write(connection, response.data(), response.size());
  return code;
}

constexpr char kText[] = "text/plain; charset=utf-8";

int LogCivetweb(const mg_connection*, const char* message) {
  Log(LogLevel::kDebug, "http", message);
  return 1;
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const ListenAddress& address,
                                                              const Metrics& metrics,
                                                              std::function<absl::Status()> ready) {
  RETURN_IF_ERROR(ProbeListenAddress(address));
  auto server = std::unique_ptr<HttpServer>(new HttpServer(address, metrics, std::move(ready)));
  const std::string listen = address.ToString();
  const char* options[] = {
      "listening_ports", listen.c_str(),     "num_threads", "4",    "request_timeout_ms",
      "10000",           "connection_queue", "64",          nullptr};
  mg_callbacks callbacks;
  std::memset(&callbacks, 0, sizeof(callbacks));
  callbacks.log_message = LogCivetweb;
  server->context_ = mg_start(&callbacks, server.get(), options);
  if (server->context_ == nullptr) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", listen));
  }
  mg_server_port port = {};
  if (mg_get_server_ports(server->context_, 1, &port) == 1) server->address_.port = port.port;
  mg_set_request_handler(server->context_, "/metrics$", HandleMetrics, server.get());
  mg_set_request_handler(server->context_, "/livez$", HandleLive, server.get());
  mg_set_request_handler(server->context_, "/readyz$", HandleReady, server.get());
  return server;
}

HttpServer::HttpServer(ListenAddress address, const Metrics& metrics,
                       std::function<absl::Status()> ready)
    : address_(std::move(address)), metrics_(metrics), ready_(std::move(ready)) {}

HttpServer::~HttpServer() {
  if (context_ == nullptr) return;
  // civetweb's accepting thread looks for the end only every two seconds, or when a connection
  // comes: bring it one.
  std::atomic<bool> stopped = false;
  std::thread stopper([&] {
    mg_stop(context_);
    stopped = true;
  });
  while (!stopped) {
    KnockOn(address_);
    absl::SleepFor(absl::Milliseconds(5));
  }
  stopper.join();
}

int HttpServer::HandleMetrics(mg_connection* connection, void* self) {
  return Respond(connection, 200, "OK", "text/plain; version=0.0.4; charset=utf-8",
                 static_cast<HttpServer*>(self)->metrics_.Expose());
}

int HttpServer::HandleLive(mg_connection* connection, void*) {
  return Respond(connection, 200, "OK", kText, "ok\n");
}

int HttpServer::HandleReady(mg_connection* connection, void* self) {
  const absl::Status status = static_cast<HttpServer*>(self)->ready_();
  if (status.ok()) return Respond(connection, 200, "OK", kText, "ok\n");
  return Respond(connection, 503, "Service Unavailable", kText,
                 absl::StrCat("not ready: ", status.message(), "\n"));
}

}  // namespace mneme
