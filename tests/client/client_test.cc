#include "client/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <thread>

#include "client/rpc_error.h"
#include "tests/client/fake_service.h"

namespace mneme {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

constexpr char kMemory[] = "tenants/default/memories/m";
constexpr char kSnapshot[] = "tenants/default/memories/m/snapshots/s";

// Waits of microseconds, so that tests of retries take no time.
ClientOptions QuickOptions(const FakeServer& server) {
  ClientOptions options;
  options.address = server.address();
  options.retry.backoff_initial = absl::Microseconds(100);
  options.seed = 1;
  return options;
}

// The server refused; the connection broke under a call that may have arrived.
grpc::Status Unavailable() { return ServerError(grpc::UNAVAILABLE, "stopping", "SERVER_DRAINING"); }
grpc::Status Broken() { return grpc::Status(grpc::UNAVAILABLE, "Socket closed"); }

TEST(ClientTest, ErrorCarriesCodeMessageAndErrorInfo) {
  FakeServer server;
  Client client(QuickOptions(server));
  auto memory = client.GetMemory(kMemory);
  EXPECT_EQ(memory.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(memory.status().message(), "tenants/default/memories/m does not exist");
  auto info = ErrorInfoOf(memory.status());
  ASSERT_TRUE(info.has_value());
  EXPECT_EQ(info->reason(), "RESOURCE_NOT_FOUND");
  EXPECT_EQ(info->metadata().at("value"), "x");
  EXPECT_EQ(server.service().calls(), 1);
}

TEST(ClientTest, UnavailableIsTriedAgain) {
  FakeServer server;
  server.service().PutMemory(kMemory);
  server.service().FailNextCalls({Unavailable(), Unavailable()});
  Client client(QuickOptions(server));
  EXPECT_TRUE(client.GetMemory(kMemory).ok());
  EXPECT_EQ(server.service().calls(), 3);
}

TEST(ClientTest, CallThatGrpcCancelledAtAStopIsTriedAgainOneThatTheServerCancelledNot) {
  FakeServer server;
  server.service().FailNextCalls({grpc::Status(grpc::CANCELLED, ""),
                                  ServerError(grpc::CANCELLED, "by the operator", "CANCELLED")});
  Client client(QuickOptions(server));
  EXPECT_EQ(client.GetStatus().status().message(), "by the operator");
  EXPECT_EQ(server.service().calls(), 2);
}

TEST(ClientTest, GivesUpAfterAttemptsMax) {
  FakeServer server;
  server.service().FailNextCalls(std::vector<grpc::Status>(10, Unavailable()));
  ClientOptions options = QuickOptions(server);
  options.retry.attempts_max = 3;
  Client client(options);
  EXPECT_EQ(client.GetStatus().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(server.service().calls(), 3);
}

TEST(ClientTest, RetryInfoIsWaitedOut) {
  FakeServer server;
  const absl::Duration asked = absl::Milliseconds(50);
  server.service().FailNextCalls(
      {ServerError(grpc::RESOURCE_EXHAUSTED, "too many", "LIMIT_REACHED", asked)});
  Client client(QuickOptions(server));
  const absl::Time begun = absl::Now();
  EXPECT_TRUE(client.GetStatus().ok());
  EXPECT_GE(absl::Now() - begun, asked);
  EXPECT_EQ(server.service().calls(), 2);
}

TEST(ClientTest, ExhaustedWithoutRetryInfoIsFinal) {
  FakeServer server;
  server.service().FailNextCalls(
      {ServerError(grpc::RESOURCE_EXHAUSTED, "too long", "DOCUMENT_TOO_LONG")});
  Client client(QuickOptions(server));
  EXPECT_EQ(client.GetStatus().status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(server.service().calls(), 1);
}

TEST(ClientTest, CreateMemoryKeepsItsRequestIdOverAttempts) {
  FakeServer server;
  server.service().FailNextCalls({Unavailable(), Unavailable()});
  Client client(QuickOptions(server));
  v1::CreateMemoryRequest request;
  request.set_parent("tenants/default");
  request.set_memory_id("m");
  EXPECT_TRUE(client.CreateMemory(request).ok());
  EXPECT_EQ(server.service().calls(), 3);
  EXPECT_THAT(server.service().request_ids(), SizeIs(1));
}

TEST(ClientTest, DeletionWhoseAnswerWasLostIsDone) {
  FakeServer server;
  server.service().PutMemory(kMemory);
  server.service().FailNextCalls({Broken()});
  Client client(QuickOptions(server));
  EXPECT_TRUE(client.DeleteMemory(kMemory).ok());
  EXPECT_EQ(client.DeleteMemory(kMemory).status().code(), absl::StatusCode::kNotFound);
  server.service().FailNextCalls({Broken()});
  EXPECT_TRUE(client.DeleteSnapshot(kSnapshot).ok());
}

TEST(ClientTest, DeletionThatWasRefusedAndThenFoundNothingIsNotFound) {
  FakeServer server;
  const grpc::Status busy =
      ServerError(grpc::RESOURCE_EXHAUSTED, "full", "QUEUE_FULL", absl::Microseconds(100));
  Client client(QuickOptions(server));
  server.service().FailNextCalls({Unavailable(), busy});
  EXPECT_EQ(client.DeleteMemory(kMemory).status().code(), absl::StatusCode::kNotFound);
  server.service().FailNextCalls({Unavailable(), busy});
  EXPECT_EQ(client.DeleteSnapshot(kSnapshot).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(server.service().calls(), 6);
}

TEST(ClientTest, PastDeadlineFailsAtOnce) {
  FakeServer server;
  Client client(QuickOptions(server));
  const CallOptions call{.deadline = absl::Now() - absl::Seconds(1)};
  EXPECT_EQ(client.GetStatus(call).status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(ClientTest, DeadlineEndsACallThatHangs) {
  FakeServer server;
  server.service().HangCalls(true);
  Client client(QuickOptions(server));
  const CallOptions call{.deadline = absl::Now() + absl::Milliseconds(50)};
  EXPECT_EQ(client.GetStatus(call).status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(ClientTest, NoAttemptBeginsWhoseWaitWouldPassTheDeadline) {
  FakeServer server;
  server.service().FailNextCalls(
      {ServerError(grpc::UNAVAILABLE, "later", "SERVER_DRAINING", absl::Hours(2))});
  ClientOptions options = QuickOptions(server);
  options.retry.give_up_after = absl::InfiniteDuration();
  Client client(options);
  const CallOptions call{.deadline = absl::Now() + absl::Hours(1)};
  EXPECT_EQ(client.GetStatus(call).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(server.service().calls(), 1);
}

TEST(ClientTest, CancellationEndsACallThatHangs) {
  FakeServer server;
  server.service().HangCalls(true);
  Client client(QuickOptions(server));
  Cancellation cancellation;
  std::thread other([&] {
    while (server.service().calls() == 0) absl::SleepFor(absl::Milliseconds(1));
    cancellation.Cancel();
  });
  EXPECT_EQ(client.GetStatus({.cancellation = &cancellation}).status().code(),
            absl::StatusCode::kCancelled);
  other.join();
  EXPECT_EQ(client.GetStatus({.cancellation = &cancellation}).status().code(),
            absl::StatusCode::kCancelled);
}

TEST(ClientTest, NoServerIsUnavailable) {
  ClientOptions options;
  // Port 1 of loopback: nobody listens there.
  options.address = "127.0.0.1:1";
  options.retry.backoff_initial = absl::Microseconds(100);
  Client client(options);
  absl::Status status = client.GetStatus().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(ErrorInfoOf(status).has_value());
}

TEST(ClientTest, ListMemoriesVisitsAllPages) {
  FakeServer server;
  for (const char* id : {"a", "b", "c", "d", "e"})
    server.service().PutMemory(std::string("tenants/default/memories/") + id);
  Client client(QuickOptions(server));
  std::string ids;
  EXPECT_TRUE(client
                  .ListMemories("tenants/default",
                                [&](const v1::Memory& memory) {
                                  ids += memory.name().back();
                                  return memory.name().back() != 'd';
                                })
                  .ok());
  EXPECT_EQ(ids, "abcd");
}

TEST(ClientTest, ReadDocumentTakesUpWhereTheStreamBroke) {
  FakeServer server;
  std::string text;
  for (int i = 0; i < 500; ++i) text += static_cast<char>('a' + i % 26);
  server.service().PutDocument("d", text);
  server.service().FailNextCalls({grpc::Status(grpc::UNAVAILABLE, "Socket closed"),
                                  grpc::Status(grpc::UNKNOWN, "Stream removed"), Unavailable()});
  Client client(QuickOptions(server));
  v1::ReadDocumentRequest request;
  request.set_name("d");
  request.set_byte_begin(7);
  std::string read;
  EXPECT_TRUE(client
                  .ReadDocument(request,
                                [&](absl::string_view piece) {
                                  read.append(piece.data(), piece.size());
                                  return true;
                                })
                  .ok());
  EXPECT_EQ(read, text.substr(7));
  EXPECT_EQ(server.service().calls(), 4);
}

TEST(ClientTest, GenerateStreamsAllPieces) {
  FakeServer server;
  std::vector<v1::GenerateResponse> responses(3);
  responses[0].set_text("4");
  responses[1].set_text("0");
  responses[2].set_finish_reason(v1::GenerateResponse::STOP);
  server.service().SetGenerateResponses(responses);
  server.service().FailNextCalls({Unavailable()});
  Client client(QuickOptions(server));
  std::vector<std::string> texts;
  EXPECT_TRUE(client
                  .Generate(v1::GenerateRequest(),
                            [&](const v1::GenerateResponse& response) {
                              texts.push_back(response.text());
                              return true;
                            })
                  .ok());
  EXPECT_THAT(texts, ElementsAre("4", "0", ""));
}

TEST(RetrierTest, WaitsGrowWithJitterUpToTheMaximum) {
  RetryPolicy policy;
  policy.backoff_initial = absl::Milliseconds(100);
  policy.backoff_max = absl::Seconds(1);
  policy.multiplier = 3;
  policy.jitter = 0.25;
  const absl::Duration backoffs[] = {absl::Milliseconds(100), absl::Milliseconds(300),
                                     absl::Milliseconds(900), absl::Seconds(1), absl::Seconds(1)};
  std::minstd_rand random(1);
  for (int failures = 1; failures <= 5; ++failures) {
    const absl::Duration backoff = backoffs[failures - 1];
    absl::Duration least = absl::InfiniteDuration(), most = absl::ZeroDuration();
    for (int i = 0; i < 1000; ++i) {
      const absl::Duration wait = RetryWait(policy, failures, random);
      least = std::min(least, wait);
      most = std::max(most, wait);
    }
    // The ends of what a thousand even draws cover; what lies outside has a chance below 1e-20.
    EXPECT_GE(least, 0.75 * backoff);
    EXPECT_LT(least, 0.80 * backoff);
    EXPECT_LE(most, 1.25 * backoff);
    EXPECT_GT(most, 1.20 * backoff);
  }
  EXPECT_LE(RetryWait(policy, 1 << 30, random), 1.25 * absl::Seconds(1));
}

TEST(RetrierTest, ProgressCountsAttemptsAnew) {
  RetryPolicy policy;
  policy.backoff_initial = absl::Microseconds(1);
  policy.attempts_max = 2;
  Retrier retrier(policy, absl::InfiniteFuture(), 1, nullptr);
  for (int i = 0; i < 5; ++i) {
    EXPECT_TRUE(retrier.WaitForNext(absl::UnavailableError("x")));
    retrier.NoteProgress();
  }
  EXPECT_TRUE(retrier.WaitForNext(absl::UnavailableError("x")));
  EXPECT_FALSE(retrier.WaitForNext(absl::UnavailableError("x")));
}

}  // namespace
}  // namespace mneme
