// Readiness as the world sees it (grpc.health.v1, /readyz), HTTP, reflection, and drain.

#include <chrono>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "common/background_thread.h"
#include "gmock/gmock.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "gtest/gtest.h"
#include "tests/server/fake_engine.h"
#include "tests/server/http.h"
#include "tests/server/rpc_matchers.h"
#include "tests/server/test_server.h"

namespace mneme {
namespace {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kMemory[] = "tenants/default/memories/books";

class ServingTest : public ::testing::Test {
 protected:
  ServingTest() {
    EXPECT_TRUE(engine_.CreateMemory(kMemory, "").ok());
    server_ = TestServer::Start(engine_);
    stub_ = server_->NewStub();
    health_ = Health::NewStub(server_->NewChannel());
  }

  HealthCheckResponse::ServingStatus Check(const std::string& service = "") {
    grpc::ClientContext context;
    HealthCheckRequest request;
    request.set_service(service);
    HealthCheckResponse response;
    const grpc::Status status = health_->Check(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.status();
  }

  FakeEngine engine_;
  std::unique_ptr<TestServer> server_;
  std::unique_ptr<v1::MemoryService::Stub> stub_;
  std::unique_ptr<Health::Stub> health_;
};

TEST_F(ServingTest, CheckFollowsTheEngine) {
  EXPECT_EQ(Check(), HealthCheckResponse::SERVING);
  EXPECT_EQ(Check("mneme.v1.MemoryService"), HealthCheckResponse::SERVING);
  engine_.SetReady(absl::UnavailableError("recovering 3 documents"));
  EXPECT_EQ(Check(), HealthCheckResponse::NOT_SERVING);
}

TEST_F(ServingTest, CheckOfAnUnknownServiceIsNotFound) {
  grpc::ClientContext context;
  HealthCheckRequest request;
  request.set_service("nonsense");
  HealthCheckResponse response;
  ExpectError(health_->Check(&context, request, &response), grpc::NOT_FOUND, "nonsense",
              "SERVICE_UNKNOWN");
}

TEST_F(ServingTest, ALongUnknownServiceIsNamedInPart) {
  grpc::ClientContext context;
  HealthCheckRequest request;
  request.set_service(std::string(8000, 's'));
  HealthCheckResponse response;
  ExpectError(health_->Check(&context, request, &response), grpc::NOT_FOUND, "sss...\"",
              "SERVICE_UNKNOWN");
}

TEST_F(ServingTest, WatchTellsEveryChange) {
  grpc::ClientContext context;
  const auto watch = health_->Watch(&context, HealthCheckRequest());
  HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  engine_.SetReady(absl::UnavailableError("a thread stands still"));
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  engine_.SetReady(absl::OkStatus());
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  context.TryCancel();
  while (watch->Read(&response)) {
  }
  EXPECT_EQ(watch->Finish().error_code(), grpc::CANCELLED);
}

TEST_F(ServingTest, WatchOfAnUnknownServiceSaysSoAndStaysOpen) {
  grpc::ClientContext context;
  HealthCheckRequest request;
  request.set_service("nonsense");
  const auto watch = health_->Watch(&context, request);
  HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVICE_UNKNOWN);
  context.TryCancel();
}

TEST_F(ServingTest, WatchEndsWithNotServingWhenTheServerDrains) {
  grpc::ClientContext context;
  const auto watch = health_->Watch(&context, HealthCheckRequest());
  HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  std::thread stopper([&] { server_->Stop(absl::Now() + absl::Seconds(30)); });
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  EXPECT_FALSE(watch->Read(&response));
  EXPECT_EQ(watch->Finish().error_code(), grpc::UNAVAILABLE);
  stopper.join();
}

// Sends one message on a bidirectional stream of bytes and returns the first answer.
std::string AskStream(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                      const std::string& message) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  grpc::CompletionQueue queue;
  const auto next = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  grpc::GenericStub stub(channel);
  const auto call = stub.PrepareCall(&context, method, &queue);
  call->StartCall(nullptr);
  EXPECT_TRUE(next());
  const grpc::Slice slice(message);
  call->Write(grpc::ByteBuffer(&slice, 1), nullptr);
  EXPECT_TRUE(next());
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  EXPECT_TRUE(next());
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(answer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& part : slices) {
    bytes.append(reinterpret_cast<const char*>(part.begin()), part.size());
  }
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  next();
  queue.Shutdown();
  return bytes;
}

TEST_F(ServingTest, ReflectionListsTheServices) {
  // ServerReflectionRequest { list_services: "" }
  const std::string answer = AskStream(
      server_->NewChannel(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
      std::string("\x3a\x00", 2));
  EXPECT_THAT(answer, HasSubstr("mneme.v1.MemoryService"));
  EXPECT_THAT(answer, HasSubstr("grpc.health.v1.Health"));
}

TEST_F(ServingTest, HttpAnswersLivenessReadinessAndMetrics) {
  const std::string address = server_->http_address();
  EXPECT_THAT(Http(address, "GET /livez"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Http(address, "GET /readyz"), StartsWith("HTTP/1.1 200"));
  engine_.SetReady(absl::UnavailableError("recovering 3 documents"));
  const std::string not_ready = Http(address, "GET /readyz");
  EXPECT_THAT(not_ready, StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(not_ready, HasSubstr("recovering 3 documents"));
  EXPECT_THAT(Http(address, "GET /livez"), StartsWith("HTTP/1.1 200"));
  const std::string metrics = Http(address, "GET /metrics");
  EXPECT_THAT(metrics, StartsWith("HTTP/1.1 200"));
  for (const char* name :
       {"mneme_build_info{", "mneme_requests_total{", "mneme_requests_in_flight{",
        "mneme_worker_queue_limit{pool=\"reader\"}", "mneme_ingest_streams_limit", "mneme_ready",
        "mneme_thread_alive{thread=\"readiness\"} 1", "process_open_fds",
        "process_resident_memory_bytes", "process_start_time_seconds"}) {
    EXPECT_THAT(metrics, HasSubstr(name));
  }
}

// What grpc.health.v1 says.
HealthCheckResponse::ServingStatus HealthOf(TestServer& server) {
  const auto stub = Health::NewStub(server.NewChannel());
  grpc::ClientContext context;
  HealthCheckResponse response;
  EXPECT_TRUE(stub->Check(&context, {}, &response).ok());
  return response.status();
}

TEST_F(ServingTest, AThreadThatDiesMakesTheServerNotReadyAndIsNamed) {
  BackgroundThread thread("archivist", server_->supervisor(),
                          [](BackgroundThread&) -> absl::Status { throw std::bad_alloc(); });
  std::string answer;
  while (!absl::StartsWith(answer, "HTTP/1.1 503")) {
    answer = Http(server_->http_address(), "GET /readyz");
  }
  EXPECT_THAT(answer, HasSubstr("background thread archivist failed"));
  EXPECT_EQ(HealthOf(*server_), HealthCheckResponse::NOT_SERVING);
  EXPECT_THAT(server_->metrics().Expose(), HasSubstr("mneme_thread_alive{thread=\"archivist\"} 0"));
}

TEST_F(ServingTest, AThreadThatHangsMakesTheServerNotReadyUntilItBeats) {
  SimulatedClock clock(absl::FromUnixSeconds(1'700'000'000));
  const auto server = TestServer::Start(engine_, {}, clock);
  WatchedThread thread("archivist", server->supervisor(), absl::Seconds(1));
  EXPECT_EQ(HealthOf(*server), HealthCheckResponse::SERVING);
  EXPECT_THAT(Http(server->http_address(), "GET /readyz"), StartsWith("HTTP/1.1 200"));
  clock.Advance(absl::Seconds(2));
  const std::string answer = Http(server->http_address(), "GET /readyz");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(answer, HasSubstr("background thread archivist has shown no sign of life"));
  EXPECT_EQ(HealthOf(*server), HealthCheckResponse::NOT_SERVING);
  thread.Beat();
  EXPECT_EQ(HealthOf(*server), HealthCheckResponse::SERVING);
}

TEST_F(ServingTest, HttpRefusesOtherMethodsAndPaths) {
  const std::string address = server_->http_address();
  EXPECT_THAT(Http(address, "POST /metrics"), StartsWith("HTTP/1.1 405"));
  EXPECT_THAT(Http(address, "DELETE /readyz"), StartsWith("HTTP/1.1 405"));
  EXPECT_THAT(Http(address, "GET /"), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(Http(address, "GET /etc/passwd"), StartsWith("HTTP/1.1 404"));
  const std::string head = Http(address, "HEAD /livez");
  EXPECT_THAT(head, StartsWith("HTTP/1.1 200"));
  EXPECT_FALSE(absl::EndsWith(head, "ok\n"));
}

TEST_F(ServingTest, APortInUseIsNamed) {
  ServerOptions options;
  options.listen = server_->address();
  Metrics metrics;
  Supervisor supervisor(metrics, RealClock());
  Readiness readiness(supervisor);
  const auto second =
      Server::Start(options, {.engine = engine_, .readiness = readiness, .supervisor = supervisor});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr(absl::StrCat(server_->address(), ": Address already in use")));
  const auto http = HttpServer::Start(*ParseListenAddress(server_->http_address()), metrics,
                                      [] { return absl::OkStatus(); });
  EXPECT_EQ(http.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(http.status().message()), HasSubstr(server_->http_address()));
}

TEST_F(ServingTest, ADrainLetsRunningCallsFinishAndTakesNoNewOnes) {
  const auto channel = server_->NewChannel();
  const auto stub = v1::MemoryService::NewStub(channel);
  absl::Notification running, go_on;
  engine_.retrieve = [&](const RetrieveOptions&, const CallContext&) {
    running.Notify();
    go_on.WaitForNotification();
    return RetrieveResult();
  };
  std::thread caller([&] {
    grpc::ClientContext context;
    v1::RetrieveRequest request;
    request.add_memories(kMemory);
    request.set_question("who?");
    v1::RetrieveResponse response;
    EXPECT_TRUE(stub->Retrieve(&context, request, &response).ok());
  });
  running.WaitForNotification();
  std::thread stopper([&] { server_->Stop(absl::Now() + absl::Seconds(30)); });
  while (!server_->readiness().draining()) std::this_thread::yield();
  EXPECT_THAT(Http(server_->http_address(), "GET /readyz"), StartsWith("HTTP/1.1 503"));
  // Until the client has been told: gRPC ends a call that crosses the news with a bare CANCELLED.
  while (channel->GetState(false) == GRPC_CHANNEL_READY) std::this_thread::yield();
  grpc::ClientContext context;
  v1::GetMemoryRequest request;
  request.set_name(kMemory);
  v1::Memory memory;
  EXPECT_EQ(stub->GetMemory(&context, request, &memory).error_code(), grpc::UNAVAILABLE);
  go_on.Notify();
  caller.join();
  stopper.join();
}

TEST_F(ServingTest, ADrainCancelsWhatRunsBeyondItsDeadline) {
  absl::Notification running;
  engine_.retrieve = [&](const RetrieveOptions&,
                         const CallContext& context) -> absl::StatusOr<RetrieveResult> {
    running.Notify();
    while (context.Check().ok()) std::this_thread::yield();
    return context.Check();
  };
  std::thread caller([&] {
    grpc::ClientContext context;
    v1::RetrieveRequest request;
    request.add_memories(kMemory);
    request.set_question("who?");
    v1::RetrieveResponse response;
    EXPECT_FALSE(stub_->Retrieve(&context, request, &response).ok());
  });
  running.WaitForNotification();
  server_->Stop(absl::Now() + absl::Milliseconds(100));
  caller.join();
}

TEST_F(ServingTest, ADrainEndsIngestOnceItsTextIsDurable) {
  engine_.HoldDurable(true);
  grpc::ClientContext context;
  const auto stream = stub_->Ingest(&context);
  v1::IngestRequest request;
  request.set_document(absl::StrCat(kMemory, "/documents/a"));
  request.set_text("text");
  ASSERT_TRUE(stream->Write(request));
  engine_.AwaitAppendCount(1);
  std::thread stopper([&] { server_->Stop(absl::Now() + absl::Seconds(30)); });
  while (!server_->readiness().draining()) std::this_thread::yield();
  engine_.HoldDurable(false);
  v1::IngestResponse ack, last;
  while (stream->Read(&ack)) last = ack;
  EXPECT_EQ(last.durable_bytes(), 4);
  const grpc::Status status = stream->Finish();
  ExpectError(status, grpc::UNAVAILABLE, "stopping", "SERVER_DRAINING");
  EXPECT_TRUE(DetailsOf(status).retry.has_value());
  stopper.join();
}

}  // namespace
}  // namespace mneme
