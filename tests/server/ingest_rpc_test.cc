// Ingest streams over a loopback channel, with a fake engine whose moments the tests control.

#include <chrono>
#include <csignal>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <grpcpp/client_context.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_facts.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mneme/v1/mneme.grpc.pb.h"
#include "tests/server/child_program.h"
#include "tests/server/fake_engine.h"
#include "tests/server/rpc_matchers.h"
#include "tests/server/test_server.h"

namespace mneme {
namespace {

constexpr char kMemory[] = "tenants/default/memories/books";
constexpr char kDocument[] = "tenants/default/memories/books/documents/a";

// One stream of a client.
class Stream {
 public:
  explicit Stream(v1::MemoryService::Stub& stub) : stream_(stub.Ingest(&context_)) {}

  bool Send(const std::string& document, int64_t offset, const std::string& text, bool seal = false,
            bool wait_visible = false) {
    v1::IngestRequest request;
    request.set_document(document);
    request.set_byte_offset(offset);
    request.set_text(text);
    request.set_seal(seal);
    request.set_wait_visible(wait_visible);
    return stream_->Write(request);
  }
  bool Receive(v1::IngestResponse* ack) { return stream_->Read(ack); }
  // Reads acks until one tells so many durable bytes.
  bool AwaitDurable(int64_t bytes) {
    v1::IngestResponse ack;
    while (ack.durable_bytes() < bytes) {
      if (!Receive(&ack)) return false;
    }
    return true;
  }
  void HalfClose() { stream_->WritesDone(); }
  // Reads what is left; the last ack goes to `last`.
  grpc::Status Finish(v1::IngestResponse* last = nullptr) {
    v1::IngestResponse ack;
    while (Receive(&ack)) {
      if (last != nullptr) *last = ack;
    }
    return stream_->Finish();
  }
  void Cancel() { context_.TryCancel(); }
  grpc::ClientContext& context() { return context_; }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::IngestRequest, v1::IngestResponse>> stream_;
};

class IngestRpcTest : public ::testing::Test {
 protected:
  explicit IngestRpcTest(ServerOptions options = {})
      : server_(TestServer::Start(engine_, std::move(options))), stub_(server_->NewStub()) {
    EXPECT_TRUE(engine_.CreateMemory(kMemory, "").ok());
  }

  FakeEngine engine_;
  std::unique_ptr<TestServer> server_;
  std::unique_ptr<v1::MemoryService::Stub> stub_;
};

TEST_F(IngestRpcTest, TheFirstAckComesBeforeAnyText) {
  Stream stream(*stub_);
  ASSERT_TRUE(stream.Send(kDocument, 0, ""));
  v1::IngestResponse ack;
  ASSERT_TRUE(stream.Receive(&ack));
  EXPECT_EQ(ack.durable_bytes(), 0);
  stream.HalfClose();
  EXPECT_TRUE(stream.Finish().ok());
}

TEST_F(IngestRpcTest, TheFirstAckSaysWhereToResume) {
  {
    Stream stream(*stub_);
    ASSERT_TRUE(stream.Send(kDocument, 0, "hello "));
    stream.HalfClose();
    ASSERT_TRUE(stream.Finish().ok());
  }
  Stream stream(*stub_);
  ASSERT_TRUE(stream.Send(kDocument, 0, ""));
  v1::IngestResponse ack;
  ASSERT_TRUE(stream.Receive(&ack));
  EXPECT_EQ(ack.durable_bytes(), 6);
  ASSERT_TRUE(stream.Send("", 6, "world"));
  stream.HalfClose();
  ASSERT_TRUE(stream.Finish(&ack).ok());
  EXPECT_EQ(ack.durable_bytes(), 11);
  EXPECT_EQ(engine_.Text(kDocument), "hello world");
}

TEST_F(IngestRpcTest, TheStreamEndsOnlyWhenEverythingIsDurable) {
  engine_.HoldDurable(true);
  Stream stream(*stub_);
  ASSERT_TRUE(stream.Send(kDocument, 0, "text"));
  stream.HalfClose();
  engine_.AwaitAppendCount(1);
  v1::IngestResponse ack;
  ASSERT_TRUE(stream.Receive(&ack));
  EXPECT_EQ(ack.durable_bytes(), 0);
  engine_.HoldDurable(false);
  ASSERT_TRUE(stream.Finish(&ack).ok());
  EXPECT_EQ(ack.durable_bytes(), 4);
}

TEST_F(IngestRpcTest, WaitVisibleEndsTheStreamOnlyWhenEverythingIsVisible) {
  engine_.HoldVisible(true);
  Stream stream(*stub_);
  ASSERT_TRUE(stream.Send(kDocument, 0, "text", false, /*wait_visible=*/true));
  stream.HalfClose();
  ASSERT_TRUE(stream.AwaitDurable(4));
  engine_.HoldVisible(false);
  v1::IngestResponse ack;
  ASSERT_TRUE(stream.Finish(&ack).ok());
  EXPECT_EQ(ack.visible_bytes(), 4);
}

TEST_F(IngestRpcTest, AcksNeverDecrease) {
  Stream stream(*stub_);
  int64_t offset = 0;
  std::thread sender([&] {
    for (int i = 0; i < 200; ++i) {
      const std::string text(100 + i, 'x');
      if (!stream.Send(kDocument, offset, text)) break;
      offset += static_cast<int64_t>(text.size());
    }
    stream.HalfClose();
  });
  v1::IngestResponse ack, last;
  while (stream.Receive(&ack)) {
    EXPECT_GE(ack.durable_bytes(), last.durable_bytes());
    EXPECT_GE(ack.visible_bytes(), last.visible_bytes());
    EXPECT_GE(ack.durable_bytes(), ack.visible_bytes());
    last = ack;
  }
  sender.join();
  EXPECT_TRUE(stream.Finish().ok());
  EXPECT_EQ(last.durable_bytes(), offset);
}

TEST_F(IngestRpcTest, AWriterThatIsNotReadyStopsTheReading) {
  engine_.SetWritersReady(false);
  Stream stream(*stub_);
  ASSERT_TRUE(stream.Send(kDocument, 0, "first "));
  engine_.AwaitAppendCount(1);
  ASSERT_TRUE(stream.Send("", 6, "second"));  // into flow control
  ASSERT_TRUE(stream.AwaitDurable(6));
  absl::SleepFor(absl::Milliseconds(20));  // long enough for a server that goes on reading
  EXPECT_EQ(engine_.append_count(), 1);
  engine_.SetWritersReady(true);
  stream.HalfClose();
  EXPECT_TRUE(stream.Finish().ok());
  EXPECT_EQ(engine_.Text(kDocument), "first second");
}

TEST_F(IngestRpcTest, BadFirstMessagesAreInvalid) {
  Stream nameless(*stub_);
  nameless.Send("", 0, "text");
  ExpectFieldError(nameless.Finish(), "document", "empty");
  Stream bad(*stub_);
  bad.Send("tenants/default/memories/books", 0, "text");
  ExpectFieldError(bad.Finish(), "document", "tenants/default/memories/books");
  Stream empty(*stub_);
  empty.HalfClose();
  ExpectFieldError(empty.Finish(), "document", "before its first message");
  Stream stranger(*stub_);
  stranger.Send("tenants/nobody/memories/books/documents/a", 0, "text");
  ExpectError(stranger.Finish(), grpc::NOT_FOUND, "nobody", "TENANT_NOT_FOUND");
  Stream lost(*stub_);
  lost.Send("tenants/default/memories/nothing/documents/a", 0, "text");
  ExpectError(lost.Finish(), grpc::NOT_FOUND, "nothing", "RESOURCE_NOT_FOUND");
}

TEST_F(IngestRpcTest, AnotherDocumentInAStreamIsInvalid) {
  Stream stream(*stub_);
  ASSERT_TRUE(stream.Send(kDocument, 0, "a"));
  ASSERT_TRUE(stream.Send(kDocument, 1, "b"));  // equal is fine
  stream.Send("tenants/default/memories/books/documents/b", 2, "c");
  ExpectFieldError(stream.Finish(), "document", "documents/b");
}

TEST_F(IngestRpcTest, ATooLargePieceIsInvalid) {
  Stream stream(*stub_);
  stream.Send(kDocument, 0, std::string((1 << 20) + 1, 'x'));
  ExpectFieldError(stream.Finish(), "text", "1048577 bytes: at most 1048576");
}

TEST_F(IngestRpcTest, ATooLargeMessageIsRefusedAndEarlierTextKept) {
  Stream stream(*stub_);
  ASSERT_TRUE(stream.Send(kDocument, 0, "kept"));
  stream.Send("", 4, std::string(5 << 20, 'x'));
  v1::IngestResponse ack;
  ExpectError(stream.Finish(&ack), grpc::RESOURCE_EXHAUSTED, "at most 4194304",
              "MESSAGE_TOO_LARGE");
  EXPECT_EQ(ack.durable_bytes(), 4);
}

TEST_F(IngestRpcTest, ANegativeOffsetIsInvalid) {
  Stream stream(*stub_);
  stream.Send(kDocument, -1, "text");
  ExpectFieldError(stream.Finish(), "byte_offset", "-1");
}

TEST_F(IngestRpcTest, WritersErrorsAreAckedFirst) {
  engine_.HoldDurable(true);
  Stream stream(*stub_);
  ASSERT_TRUE(stream.Send(kDocument, 0, "kept"));
  stream.Send("", 100, "gap");
  engine_.AwaitAppendCount(2);
  engine_.HoldDurable(false);
  v1::IngestResponse ack;
  const grpc::Status status = stream.Finish(&ack);
  ExpectError(status, grpc::OUT_OF_RANGE, "100", "OFFSET_GAP");
  EXPECT_EQ(DetailsOf(status).info->metadata().at("byte_offset"), "100");
  EXPECT_EQ(DetailsOf(status).info->metadata().at("resource"), kDocument);
  EXPECT_EQ(ack.durable_bytes(), 4);
}

TEST_F(IngestRpcTest, ASealedDocumentTakesNoMore) {
  Stream stream(*stub_);
  ASSERT_TRUE(stream.Send(kDocument, 0, "text", /*seal=*/true));
  stream.HalfClose();
  ASSERT_TRUE(stream.Finish().ok());
  Stream more(*stub_);
  more.Send(kDocument, 4, "more");
  ExpectError(more.Finish(), grpc::FAILED_PRECONDITION, "sealed", "DOCUMENT_SEALED");
}

TEST_F(IngestRpcTest, TwoWritersOfOneDocumentAreRefused) {
  Stream first(*stub_);
  ASSERT_TRUE(first.Send(kDocument, 0, "text"));
  ASSERT_TRUE(first.AwaitDurable(4));
  Stream second(*stub_);
  second.Send(kDocument, 4, "more");
  const grpc::Status status = second.Finish();
  ExpectError(status, grpc::ABORTED, kDocument, "DOCUMENT_BUSY");
  EXPECT_TRUE(DetailsOf(status).retry.has_value());
  first.HalfClose();
  EXPECT_TRUE(first.Finish().ok());
  // The writer is free as soon as the first stream has ended.
  Stream third(*stub_);
  ASSERT_TRUE(third.Send(kDocument, 4, "more"));
  third.HalfClose();
  EXPECT_TRUE(third.Finish().ok());
}

// A stream that ended on a full disk says so, and none of its text was durable.
void ExpectStorageFull(Stream& stream) {
  v1::IngestResponse ack;
  const grpc::Status status = stream.Finish(&ack);
  ExpectError(status, grpc::RESOURCE_EXHAUSTED, "no space left", "STORAGE_FULL");
  EXPECT_TRUE(DetailsOf(status).retry.has_value());
  EXPECT_EQ(ack.durable_bytes(), 0);
}

TEST_F(IngestRpcTest, AFullDiskIsToldAndNothingAcked) {
  engine_.HoldDurable(true);
  Stream stream(*stub_);
  ASSERT_TRUE(stream.Send(kDocument, 0, "text"));
  engine_.AwaitAppendCount(1);
  engine_.FailWriters(
      WithStorageFull(absl::ResourceExhaustedError("no space left in /data: 0 bytes free")));
  ExpectStorageFull(stream);
  EXPECT_EQ(engine_.writer_count(), 0);
}

TEST_F(IngestRpcTest, AFullDiskEndsAStreamWhoseLastTextWasRefused) {
  engine_.HoldDurable(true);
  Stream stream(*stub_);
  ASSERT_TRUE(stream.Send(kDocument, 0, "lost"));
  stream.Send("", 100, "gap");
  // The gap is the outcome of the step that appends; what comes now is for the next one.
  engine_.AwaitAppendCount(2);
  engine_.FailWriters(WithStorageFull(absl::ResourceExhaustedError("no space left in /data")));
  v1::IngestResponse ack;
  ExpectError(stream.Finish(&ack), grpc::OUT_OF_RANGE, "100", "OFFSET_GAP");
  EXPECT_EQ(ack.durable_bytes(), 0);
  EXPECT_EQ(engine_.writer_count(), 0);
}

TEST_F(IngestRpcTest, AFullDiskThatAnAppendMeetsFirstIsToldAsOne) {
  const absl::Status full = WithStorageFull(absl::ResourceExhaustedError("no space left in /data"));
  engine_.HoldDurable(true);
  Stream stream(*stub_);
  ASSERT_TRUE(stream.Send(kDocument, 0, "lost"));
  engine_.AwaitAppendCount(1);
  engine_.SetAppendError(full);
  ASSERT_TRUE(stream.Send("", 4, "more"));
  engine_.AwaitAppendCount(2);
  engine_.FailWriters(full);
  ExpectStorageFull(stream);
  EXPECT_EQ(engine_.writer_count(), 0);
}

TEST_F(IngestRpcTest, ADeletionThatAnAppendMeetsFirstIsToldAsOne) {
  const absl::Status deleted = absl::NotFoundError("document a was deleted");
  engine_.SetAppendError(deleted);
  Stream stream(*stub_);
  ASSERT_TRUE(stream.Send(kDocument, 0, "text"));
  engine_.AwaitAppendCount(1);
  engine_.FailWriters(deleted);
  ExpectError(stream.Finish(), grpc::NOT_FOUND, "deleted", "DOCUMENT_DELETED");
}

TEST_F(IngestRpcTest, AQuotaEndsTheStreamOnceWhatWasTakenIsDurable) {
  Stream stream(*stub_);
  ASSERT_TRUE(stream.Send(kDocument, 0, "text"));
  engine_.AwaitAppendCount(1);
  engine_.SetAppendError(WithQuota(absl::ResourceExhaustedError("quota text_bytes is used up"),
                                   {"text_bytes", "tenant default", 4, 4, 9}));
  ASSERT_TRUE(stream.Send(kDocument, 4, "more text"));
  v1::IngestResponse ack;
  const grpc::Status status = stream.Finish(&ack);
  ExpectError(status, grpc::RESOURCE_EXHAUSTED, "is used up", "QUOTA_EXCEEDED");
  EXPECT_EQ(DetailsOf(status).info->metadata().at("value"), "9");
  EXPECT_FALSE(DetailsOf(status).retry.has_value());
  EXPECT_EQ(ack.durable_bytes(), 4);
}

TEST_F(IngestRpcTest, CancellingInMidStreamFreesTheWriter) {
  Stream stream(*stub_);
  ASSERT_TRUE(stream.Send(kDocument, 0, "text"));
  ASSERT_TRUE(stream.AwaitDurable(4));
  stream.Cancel();
  EXPECT_EQ(stream.Finish().error_code(), grpc::CANCELLED);
  engine_.AwaitWriterCount(0);
  EXPECT_EQ(engine_.Text(kDocument), "text");
}

TEST_F(IngestRpcTest, CancellingWhileHeldBackFreesTheWriter) {
  engine_.SetWritersReady(false);
  engine_.HoldDurable(true);
  Stream stream(*stub_);
  ASSERT_TRUE(stream.Send(kDocument, 0, "text"));
  engine_.AwaitAppendCount(1);
  stream.Cancel();
  EXPECT_EQ(stream.Finish().error_code(), grpc::CANCELLED);
  engine_.AwaitWriterCount(0);
}

TEST_F(IngestRpcTest, AnOpenStreamEndsAtItsDeadline) {
  // However long a stream takes to open here: one of them is open in time.
  bool opened = false;
  for (auto patience = std::chrono::milliseconds(100); !opened; patience *= 2) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + patience);
    const auto stream = stub_->Ingest(&context);
    v1::IngestRequest request;
    request.set_document(absl::StrCat(kDocument, patience.count()));
    request.set_text("text");
    stream->Write(request);
    v1::IngestResponse ack;
    while (stream->Read(&ack)) opened = true;
    EXPECT_EQ(stream->Finish().error_code(), grpc::DEADLINE_EXCEEDED);
  }
  engine_.AwaitWriterCount(0);
}

TEST_F(IngestRpcTest, AStreamWhoseDocumentIsDeletedIsTold) {
  Stream stream(*stub_);
  ASSERT_TRUE(stream.Send(kDocument, 0, "text"));
  ASSERT_TRUE(stream.AwaitDurable(4));
  engine_.FailWriters(absl::NotFoundError("document a was deleted"));
  ExpectError(stream.Finish(), grpc::NOT_FOUND, "deleted", "DOCUMENT_DELETED");
}

TEST_F(IngestRpcTest, AClientKilledInMidStreamFreesTheWriter) {
  ChildProgram client("mneme",
                      {"--address", server_->address(), "ingest", "books", "-", "--document", "a"});
  std::thread feeder([&] {
    while (client.WriteInput(std::string(1 << 16, 'x'))) {
    }
  });
  engine_.AwaitAppendCount(1);
  client.Signal(SIGKILL);
  feeder.join();
  engine_.AwaitWriterCount(0);
  EXPECT_EQ(client.Wait().status, 128 + SIGKILL);
  EXPECT_FALSE(engine_.Text(kDocument).empty());
}

class OneStreamTest : public IngestRpcTest {
 protected:
  OneStreamTest()
      : IngestRpcTest([] {
          ServerOptions options;
          options.ingest_streams_max = 1;
          return options;
        }()) {}
};

TEST_F(OneStreamTest, MoreStreamsThanAllowedAreRefused) {
  Stream first(*stub_);
  ASSERT_TRUE(first.Send(kDocument, 0, "text"));
  ASSERT_TRUE(first.AwaitDurable(4));
  Stream second(*stub_);
  second.Send("tenants/default/memories/books/documents/b", 0, "text");
  const grpc::Status status = second.Finish();
  ExpectError(status, grpc::RESOURCE_EXHAUSTED, "at most 1", "TOO_MANY_STREAMS");
  EXPECT_TRUE(DetailsOf(status).retry.has_value());
}

class IngestStallTest : public IngestRpcTest {
 protected:
  IngestStallTest() : IngestRpcTest(ImpatientOptions()) {}
};

TEST_F(IngestStallTest, AClientThatTakesNoAcksLosesTheStream) {
  // Flow control lets little through to a client that does not read.
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1000);
  args.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  const auto stub = v1::MemoryService::NewStub(
      grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(), args));
  Stream stream(*stub);
  stream.Send(kDocument, 0, "x");
  stream.AwaitDurable(1);
  // While nothing is to be taken, time does not count.
  absl::SleepFor(absl::Milliseconds(500));
  for (int64_t sent = 1; stream.Send(kDocument, sent, "x");) ++sent;
  EXPECT_EQ(stream.Finish().error_code(), grpc::CANCELLED);
  engine_.AwaitWriterCount(0);
}

TEST_F(IngestRpcTest, ManyStreamsAtOnceAllArrive) {
  constexpr int kStreams = 16;
  std::vector<std::thread> clients;
  for (int i = 0; i < kStreams; ++i) {
    clients.emplace_back([this, i] {
      const std::string document = absl::StrCat(kMemory, "/documents/d", i);
      Stream stream(*stub_);
      int64_t offset = 0;
      for (int piece = 0; piece < 20; ++piece) {
        const std::string text = absl::StrCat("piece ", piece, " of ", i, "\n");
        ASSERT_TRUE(stream.Send(document, offset, text));
        offset += static_cast<int64_t>(text.size());
      }
      stream.HalfClose();
      v1::IngestResponse ack;
      EXPECT_TRUE(stream.Finish(&ack).ok());
      EXPECT_EQ(ack.durable_bytes(), offset);
    });
  }
  for (std::thread& client : clients) client.join();
}

}  // namespace
}  // namespace mneme
