// TestServer: a server in this process on free loopback ports, over any Engine or over a real stack
// in a temporary folder. For the tests of every folder that talks to a server.

#ifndef MNEME_TESTS_SERVER_TEST_SERVER_H_
#define MNEME_TESTS_SERVER_TEST_SERVER_H_

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "common/supervisor.h"
#include "mneme/v1/mneme.grpc.pb.h"
#include "server/config.h"
#include "server/http_server.h"
#include "server/process_metrics.h"
#include "server/readiness.h"
#include "server/server.h"
#include "server/stack.h"

namespace mneme {

// A new folder below the system's temporary one, removed with all it holds at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "mneme_test_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) Die("mkdtemp", name);
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }

  [[noreturn]] static void Die(const std::string& what, const std::string& why) {
    std::fprintf(stderr, "test setup failed: %s: %s\n", what.c_str(), why.c_str());
    std::abort();
  }

 private:
  std::string path_;
};

// Of a server that soon gives up a client which takes nothing.
inline ServerOptions ImpatientOptions() {
  ServerOptions options;
  options.client_stall_max = absl::Milliseconds(200);
  return options;
}

// Thread-compatible; channels and stubs of it are thread-safe as gRPC's are.
class TestServer {
 public:
  // Ports are free ones whatever `server` says; HTTP is on unless it is "off".
  // Over an engine of the caller's, which must outlive this, as must the clock.
  static std::unique_ptr<TestServer> Start(Engine& engine, ServerOptions server = {},
                                           Clock& clock = RealClock()) {
    std::unique_ptr<TestServer> test(new TestServer(clock));
    test->Serve(engine, std::move(server), QueryLimits(), ServerInfo());
    return test;
  }

  // Over a real stack with the shipped bundle. An empty data_dir: a temporary one.
  static std::unique_ptr<TestServer> StartReal(ServerConfig config = {},
                                               const std::string& data_dir = "") {
    std::unique_ptr<TestServer> test(new TestServer(RealClock()));
    if (data_dir.empty()) {
      test->folder_ = std::make_unique<TemporaryFolder>();
      config.data_dir = test->folder_->path() + "/data";
    } else {
      config.data_dir = data_dir;
    }
    if (config.model_path.empty()) {
      config.model_path = std::string(MNEME_SOURCE_DIR) + "/models/mneme-small";
    }
    auto stack = Stack::Open(config, *test->supervisor_);
    if (!stack.ok()) TemporaryFolder::Die("Stack::Open", stack.status().ToString());
    test->stack_ = *std::move(stack);
    test->Serve(test->stack_->engine(), config.server,
                {.memories_per_read_max = config.engine.memories_per_read_max,
                 .retrieve_k_max = config.engine.retrieve_k_max,
                 .generate_tokens_max = config.engine.generate_tokens_max},
                test->stack_->info());
    return test;
  }

  // Drains with a deadline of 10 s.
  ~TestServer() {
    Stop(absl::Now() + absl::Seconds(10));
    readiness_->Detach();
  }

  // Drains and closes the server; the engine of a real stack stays open.
  void Stop(absl::Time deadline) {
    if (server_ == nullptr) return;
    server_->Drain(deadline);
    server_.reset();
  }

  std::string address() const { return address_; }
  // host:port; empty when HTTP is off.
  std::string http_address() const { return http_address_; }
  Metrics& metrics() { return *metrics_; }
  Supervisor& supervisor() { return *supervisor_; }
  Readiness& readiness() { return *readiness_; }
  Server& server() { return *server_; }

  // A channel of its own: connections are not shared between channels.
  std::shared_ptr<grpc::Channel> NewChannel() const {
    grpc::ChannelArguments args;
    args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    args.SetMaxReceiveMessageSize(-1);
    return grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), args);
  }
  std::unique_ptr<v1::MemoryService::Stub> NewStub() const {
    return v1::MemoryService::NewStub(NewChannel());
  }

 private:
  explicit TestServer(Clock& clock)
      : metrics_(std::make_unique<Metrics>()),
        supervisor_(std::make_unique<Supervisor>(*metrics_, clock)),
        readiness_(std::make_unique<Readiness>(*supervisor_)) {}

  void Serve(Engine& engine, ServerOptions options, const QueryLimits& limits, ServerInfo info) {
    if (options.http != "off") {
      auto http =
          HttpServer::Start({"127.0.0.1", 0}, *metrics_, [this] { return readiness_->status(); });
      if (!http.ok()) TemporaryFolder::Die("HttpServer::Start", http.status().ToString());
      http_ = *std::move(http);
      http_address_ = http_->address().ToString();
    }
    AddProcessMetrics(*metrics_, "cpu");
    options.listen = "127.0.0.1:0";
    auto server = Server::Start(options, {.engine = engine,
                                          .readiness = *readiness_,
                                          .supervisor = *supervisor_,
                                          .limits = limits,
                                          .info = std::move(info),
                                          .http_address = http_address_});
    if (!server.ok()) TemporaryFolder::Die("Server::Start", server.status().ToString());
    server_ = *std::move(server);
    address_ = server_->address().ToString();
    readiness_->Attach(engine);
  }

  std::unique_ptr<TemporaryFolder> folder_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<Supervisor> supervisor_;
  std::unique_ptr<Stack> stack_;
  std::unique_ptr<Readiness> readiness_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<Server> server_;
  std::string address_;
  std::string http_address_;
};

}  // namespace mneme

#endif  // MNEME_TESTS_SERVER_TEST_SERVER_H_
