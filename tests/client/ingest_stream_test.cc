#include "client/ingest_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "client/client.h"
#include "client/rpc_error.h"
#include "tests/client/fake_service.h"

namespace mneme {
namespace {

constexpr char kDocument[] = "tenants/default/memories/m/documents/d";

const grpc::Status kSocketClosed(grpc::UNAVAILABLE, "Socket closed");

ClientOptions QuickOptions(const FakeServer& server) {
  ClientOptions options;
  options.address = server.address();
  options.retry.backoff_initial = options.resume.backoff_initial = absl::Microseconds(100);
  options.resume.backoff_max = absl::Milliseconds(1);
  options.seed = 1;
  return options;
}

std::string RandomText(size_t bytes, std::mt19937_64& random) {
  std::string text(bytes, ' ');
  for (char& c : text) c = static_cast<char>('a' + random() % 26);
  return text;
}

IngestPlan SmallPlan() { return {.document = kDocument, .window_bytes = 4096, .piece_bytes = 512}; }

// A pipe with a thread that writes `text` into it.
class TextPipe {
 public:
  explicit TextPipe(const std::string& text) {
    EXPECT_EQ(pipe(fds_), 0);
    writer_ = std::thread([this, text] {
      size_t written = 0;
      while (written < text.size()) {
        ssize_t n = write(fds_[1], text.data() + written, text.size() - written);
        if (n <= 0) break;
        written += static_cast<size_t>(n);
      }
      close(fds_[1]);
    });
  }
  ~TextPipe() {
    writer_.join();
    close(fds_[0]);
  }
  int fd() const { return fds_[0]; }

 private:
  int fds_[2];
  std::thread writer_;
};

TEST(IngestStreamTest, WholeTextArrives) {
  FakeServer server;
  Client client(QuickOptions(server));
  std::mt19937_64 random(7);
  const std::string text = RandomText(100'000, random);
  StringSource source(text);
  IngestOutcome outcome = client.Ingest(SmallPlan(), source);
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_EQ(server.service().TextOf(kDocument), text);
  EXPECT_EQ(outcome.state.durable_bytes, 100'000);
  EXPECT_EQ(outcome.state.visible_bytes, 100'000);
  EXPECT_EQ(outcome.state.token_count, 25'000);
  EXPECT_EQ(outcome.state.breaks, 0);
}

TEST(IngestStreamTest, TakesUpAtDurableBytesAfterBreaksAtRandomPoints) {
  const grpc::Status statuses[] = {
      kSocketClosed, grpc::Status(grpc::UNKNOWN, "Stream removed"),
      grpc::Status(grpc::CANCELLED, ""), grpc::Status(grpc::INTERNAL, "RST_STREAM"),
      ServerError(grpc::UNAVAILABLE, "stopping", "SERVER_DRAINING", absl::Milliseconds(1))};
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    std::mt19937_64 random(seed);
    FakeServer server;
    Client client(QuickOptions(server));
    const std::string text = RandomText(20'000 + random() % 10'000, random);
    std::vector<int64_t> breaks;
    for (int i = 0; i < 8; ++i) breaks.push_back(static_cast<int64_t>(random() % 6'000));
    server.service().BreakIngestStreams(breaks, statuses[seed % 5],
                                        1 + static_cast<int64_t>(random() % 4'000), seed);
    // Files and memory can be read again from anywhere; a pipe only as far back as the window.
    StringSource memory(text);
    std::unique_ptr<TextPipe> pipe;
    std::unique_ptr<PipeSource> piped;
    TextSource* source = &memory;
    if (seed % 2 == 0) {
      pipe = std::make_unique<TextPipe>(text);
      piped = std::make_unique<PipeSource>(pipe->fd(), nullptr, absl::InfiniteFuture());
      source = piped.get();
    }
    IngestOutcome outcome = client.Ingest(SmallPlan(), *source);
    EXPECT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_EQ(server.service().TextOf(kDocument), text);
    EXPECT_EQ(outcome.state.durable_bytes, static_cast<int64_t>(text.size()));
    EXPECT_GT(outcome.state.breaks, 0);
    EXPECT_EQ(server.service().ingest_streams(), outcome.state.breaks + 1);
  }
}

// Remembers the furthest that was read beyond what the server had made durable.
class WatchedSource : public StringSource {
 public:
  WatchedSource(absl::string_view text, FakeService& service)
      : StringSource(text), service_(service) {}
  absl::StatusOr<std::string> Read(int64_t offset, int64_t bytes_max) override {
    ahead_ = std::max(ahead_, offset - static_cast<int64_t>(service_.TextOf(kDocument).size()));
    return StringSource::Read(offset, bytes_max);
  }
  int64_t ahead() const { return ahead_; }

 private:
  FakeService& service_;
  int64_t ahead_ = 0;
};

TEST(IngestStreamTest, NeverReadsFurtherAheadThanTheWindow) {
  FakeServer server;
  server.service().BreakIngestStreams({}, grpc::Status::OK, /*unacked_bytes_max=*/2048, 1);
  Client client(QuickOptions(server));
  std::mt19937_64 random(9);
  const std::string text = RandomText(200'000, random);
  WatchedSource source(text, server.service());
  IngestOutcome outcome = client.Ingest(SmallPlan(), source);
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_LE(source.ahead(), SmallPlan().window_bytes);
}

TEST(IngestStreamTest, SameTextAgainChangesNothing) {
  FakeServer server;
  Client client(QuickOptions(server));
  server.service().PutDocument(kDocument, "the same text");
  StringSource source("the same text");
  IngestOutcome outcome = client.Ingest(SmallPlan(), source);
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_EQ(server.service().TextOf(kDocument), "the same text");
  EXPECT_EQ(outcome.state.durable_bytes, outcome.state.durable_bytes_before);
  EXPECT_EQ(server.service().received_bytes(), 13);
}

TEST(IngestStreamTest, LongerTextAddsWhatIsNew) {
  FakeServer server;
  Client client(QuickOptions(server));
  server.service().PutDocument(kDocument, "the same text");
  StringSource source("the same text, and more");
  EXPECT_TRUE(client.Ingest(SmallPlan(), source).status.ok());
  EXPECT_EQ(server.service().TextOf(kDocument), "the same text, and more");
}

TEST(IngestStreamTest, OtherTextIsRefusedAndNothingIsLost) {
  FakeServer server;
  Client client(QuickOptions(server));
  server.service().PutDocument(kDocument, "the same text");
  StringSource source("another text");
  IngestOutcome outcome = client.Ingest(SmallPlan(), source);
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ErrorInfoOf(outcome.status)->reason(), "TEXT_DIFFERS");
  EXPECT_EQ(server.service().TextOf(kDocument), "the same text");
  EXPECT_EQ(server.service().ingest_streams(), 1);
}

TEST(IngestStreamTest, OtherTextIsNoticedAlsoAfterABreakInTheMiddleOfTheComparison) {
  FakeServer server;
  Client client(QuickOptions(server));
  std::mt19937_64 random(3);
  const std::string stored = RandomText(20'000, random);
  std::string other = stored;
  other[1500] = '!';
  server.service().PutDocument(kDocument, stored);
  // The stream breaks before it comes to the byte that differs.
  server.service().BreakIngestStreams({1000}, kSocketClosed, 1, 3);
  StringSource source(other);
  EXPECT_EQ(client.Ingest(SmallPlan(), source).status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(server.service().TextOf(kDocument), stored);
}

TEST(IngestStreamTest, AppendGoesAfterWhatIsStoredAlsoOverBreaks) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    std::mt19937_64 random(seed);
    FakeServer server;
    Client client(QuickOptions(server));
    const std::string text = RandomText(20'000, random);
    server.service().PutDocument(kDocument, "stored before. ");
    server.service().BreakIngestStreams(
        {static_cast<int64_t>(random() % 5'000), static_cast<int64_t>(random() % 5'000), 700},
        kSocketClosed, 1'000, seed);
    IngestPlan plan = SmallPlan();
    plan.append = true;
    StringSource source(text);
    IngestOutcome outcome = client.Ingest(plan, source);
    EXPECT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_EQ(server.service().TextOf(kDocument), "stored before. " + text);
  }
}

TEST(IngestStreamTest, DocumentThatWasDeletedMeanwhileIsAnError) {
  FakeServer server;
  Client client(QuickOptions(server));
  std::mt19937_64 random(5);
  const std::string text = RandomText(50'000, random);
  server.service().BreakIngestStreams({20'000}, kSocketClosed, 1'000, 5);
  IngestPlan plan = SmallPlan();
  plan.on_progress = [&](const IngestState& state) {
    if (state.breaks == 1 && !state.waiting_for.ok()) server.service().PutDocument(kDocument, "");
  };
  StringSource source(text);
  IngestOutcome outcome = client.Ingest(plan, source);
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kFailedPrecondition) << outcome.status;
}

TEST(IngestStreamTest, OwnBrokenStreamThatTheServerStillHoldsIsWaitedOut) {
  FakeServer server;
  Client client(QuickOptions(server));
  server.service().BreakIngestStreams({3'000}, kSocketClosed, 1'000, 5);
  std::mt19937_64 random(6);
  const std::string text = RandomText(9'000, random);
  IngestPlan plan = SmallPlan();
  plan.on_progress = [&](const IngestState& state) {
    if (state.breaks == 1) {
      server.service().FailNextIngests(std::vector<grpc::Status>(
          5, ServerError(grpc::ABORTED, "another stream writes the document", "DOCUMENT_BUSY",
                         absl::Milliseconds(1))));
    }
  };
  StringSource source(text);
  IngestOutcome outcome = client.Ingest(plan, source);
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_EQ(server.service().TextOf(kDocument), text);
  EXPECT_EQ(server.service().ingest_streams(), 7);
}

TEST(IngestStreamTest, SecondWriterIsToldAborted) {
  FakeServer server;
  Client client(QuickOptions(server));
  server.service().FailNextIngests(std::vector<grpc::Status>(
      1000, ServerError(grpc::ABORTED, "another stream writes the document", "DOCUMENT_BUSY")));
  IngestPlan plan = SmallPlan();
  plan.aborted_start_max = absl::Milliseconds(20);
  StringSource source("text");
  IngestOutcome outcome = client.Ingest(plan, source);
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(outcome.state.durable_bytes, 0);
}

TEST(IngestStreamTest, GivesUpWhenNothingMovesForTooLong) {
  FakeServer server;
  server.service().BreakIngestStreams({0}, kSocketClosed, 1, 5);
  ClientOptions options = QuickOptions(server);
  options.resume.give_up_after = absl::Milliseconds(30);
  Client client(options);
  IngestPlan plan = SmallPlan();
  plan.on_progress = [&](const IngestState& state) {
    if (state.breaks == 1) {
      server.service().FailNextIngests(std::vector<grpc::Status>(100'000, kSocketClosed));
    }
  };
  StringSource source("text");
  IngestOutcome outcome = client.Ingest(plan, source);
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_GT(outcome.state.breaks, 1);
}

TEST(IngestStreamTest, CancellationEndsAWaitForStandardInput) {
  FakeServer server;
  Client client(QuickOptions(server));
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  ASSERT_EQ(write(fds[1], "first part", 10), 10);
  Cancellation cancellation;
  PipeSource source(fds[0], &cancellation, absl::InfiniteFuture());
  std::thread other([&] {
    while (server.service().received_bytes() < 10) absl::SleepFor(absl::Milliseconds(1));
    cancellation.Cancel();
  });
  IngestOutcome outcome = client.Ingest(SmallPlan(), source, {.cancellation = &cancellation});
  other.join();
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(server.service().ingest_streams(), 1);
  close(fds[0]);
  close(fds[1]);
}

TEST(IngestStreamTest, DeadlineEndsAWaitForStandardInput) {
  FakeServer server;
  Client client(QuickOptions(server));
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  const absl::Time deadline = absl::Now() + absl::Milliseconds(50);
  PipeSource source(fds[0], nullptr, deadline);
  IngestOutcome outcome = client.Ingest(SmallPlan(), source, {.deadline = deadline});
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kDeadlineExceeded);
  close(fds[0]);
  close(fds[1]);
}

TEST(PipeSourceTest, KeepsTwiceTheUnreleasedBytesAtMost) {
  std::mt19937_64 random(11);
  const std::string text = RandomText(100'000, random);
  TextPipe pipe(text);
  PipeSource source(pipe.fd(), nullptr, absl::InfiniteFuture());
  int64_t offset = 0;
  std::string read;
  while (true) {
    auto piece = source.Read(offset, 1000);
    ASSERT_TRUE(piece.ok());
    if (piece->empty()) break;
    offset += static_cast<int64_t>(piece->size());
    read += *piece;
    source.Release(offset - 2000);
    EXPECT_LE(offset - source.first_offset(), 2 * 3000);
  }
  EXPECT_EQ(read, text);
  // The end is remembered, and what was not released can be read again.
  EXPECT_EQ(*source.Read(offset - 2000, 5000), text.substr(text.size() - 2000));
  EXPECT_EQ(*source.Read(offset, 10), "");
}

TEST(FileSourceTest, MissingFileFolderAndPipeAreNamed) {
  EXPECT_EQ(FileSource::Open("/nonexistent/file").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(FileSource::Open("/tmp").status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(FileSource::Open("/dev/null").status().message()),
              ::testing::StartsWith("/dev/null"));
}

}  // namespace
}  // namespace mneme
