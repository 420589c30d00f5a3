// Retrieve, Generate and Score over a loopback channel, with a fake engine behind.

#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <grpcpp/client_context.h>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mneme/v1/mneme.grpc.pb.h"
#include "tests/server/fake_engine.h"
#include "tests/server/rpc_matchers.h"
#include "tests/server/test_server.h"

namespace mneme {
namespace {

constexpr char kMemory[] = "tenants/default/memories/books";

class QueryRpcTest : public ::testing::Test {
 protected:
  explicit QueryRpcTest(ServerOptions options = {})
      : server_(TestServer::Start(engine_, std::move(options))), stub_(server_->NewStub()) {}

  static v1::RetrieveRequest Question(const std::string& text = "who?") {
    v1::RetrieveRequest request;
    request.add_memories(kMemory);
    request.set_question(text);
    return request;
  }
  grpc::Status Retrieve(const v1::RetrieveRequest& request,
                        v1::RetrieveResponse* response = nullptr) {
    grpc::ClientContext context;
    v1::RetrieveResponse ignored;
    return stub_->Retrieve(&context, request, response != nullptr ? response : &ignored);
  }
  static v1::GenerateRequest Prompt() {
    v1::GenerateRequest request;
    request.add_memories(kMemory);
    request.set_question("who?");
    return request;
  }
  grpc::Status Generate(const v1::GenerateRequest& request,
                        std::vector<v1::GenerateResponse>* pieces = nullptr) {
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, request);
    v1::GenerateResponse piece;
    while (reader->Read(&piece)) {
      if (pieces != nullptr) pieces->push_back(piece);
    }
    return reader->Finish();
  }

  FakeEngine engine_;
  std::unique_ptr<TestServer> server_;
  std::unique_ptr<v1::MemoryService::Stub> stub_;
};

TEST_F(QueryRpcTest, RetrieveHandsEverythingOverAndBack) {
  RetrieveOptions seen;
  engine_.retrieve = [&](const RetrieveOptions& options, const CallContext&) {
    seen = options;
    RetrieveResult result;
    result.passages.push_back({.document = "d",
                               .chunk_index = 3,
                               .byte_begin = 10,
                               .byte_end = 20,
                               .score = 1.5,
                               .weight = 0.25,
                               .rerank_score = -0.5,
                               .keyword_score = 2.5,
                               .text = "0123456789"});
    result.passages.push_back({.document = "e"});
    // A token may be half a character.
    result.explanation.push_back({.text = "\xe2\x82", .weights = {0.5, 0.25}});
    result.chunks_scanned = 7;
    result.damaged_passages = 2;
    result.seconds.total = 0.125;
    return result;
  };
  v1::RetrieveRequest request = Question();
  request.add_memories("tenants/default/memories/notes");
  request.add_memories(kMemory);  // twice: counts once
  request.set_k(5);
  request.set_explain(true);
  request.set_rerank(true);
  request.set_rerank_candidates(40);
  request.set_keywords(true);
  request.set_context_bytes(100);
  auto* barrier = request.add_barriers();
  barrier->set_document("tenants/default/memories/books/documents/a");
  barrier->set_visible_bytes(42);
  v1::RetrieveResponse response;
  ASSERT_TRUE(Retrieve(request, &response).ok());
  EXPECT_EQ(seen.memories, (std::vector<std::string>{kMemory, "tenants/default/memories/notes"}));
  EXPECT_EQ(seen.question, "who?");
  EXPECT_EQ(seen.k, 5);
  EXPECT_TRUE(seen.explain);
  EXPECT_TRUE(seen.rerank);
  EXPECT_EQ(seen.rerank_candidates, 40);
  EXPECT_TRUE(seen.keywords);
  EXPECT_EQ(seen.context_bytes, 100);
  ASSERT_EQ(seen.barriers.size(), 1u);
  EXPECT_EQ(seen.barriers[0].visible_bytes, 42);
  ASSERT_EQ(response.passages_size(), 2);
  EXPECT_EQ(response.passages(0).chunk_index(), 3);
  EXPECT_EQ(response.passages(0).rerank_score(), -0.5);
  EXPECT_FALSE(response.passages(1).has_rerank_score());
  EXPECT_EQ(response.passages(0).keyword_score(), 2.5);
  EXPECT_FALSE(response.passages(1).has_keyword_score());
  EXPECT_EQ(response.passages(0).byte_end(), 20);
  EXPECT_EQ(response.passages(0).weight(), 0.25);
  EXPECT_EQ(response.chunks_scanned(), 7);
  EXPECT_EQ(response.damaged_passage_count(), 2);
  EXPECT_EQ(response.explanation(0).weights(0), 0.5);
  EXPECT_EQ(response.timing().total_seconds(), 0.125);
}

TEST_F(QueryRpcTest, KOfZeroMeansEightAndOthersAreChecked) {
  int k = -1;
  engine_.retrieve = [&](const RetrieveOptions& options, const CallContext&) {
    k = options.k;
    return RetrieveResult();
  };
  v1::RetrieveRequest request = Question();
  EXPECT_TRUE(Retrieve(request).ok());
  EXPECT_EQ(k, 8);
  request.set_k(1'000'000);
  ExpectFieldError(Retrieve(request), "k", "1000000 is not in 1 .. 256");
  request.set_k(-1);
  ExpectFieldError(Retrieve(request), "k", "-1");
  request.set_k(256);
  EXPECT_TRUE(Retrieve(request).ok());
  EXPECT_EQ(k, 256);
}

TEST_F(QueryRpcTest, RerankIsNotAskedForUnlessItIsAndMayNotFit) {
  engine_.retrieve = [&](const RetrieveOptions& options,
                         const CallContext&) -> absl::StatusOr<RetrieveResult> {
    if (!options.rerank) return RetrieveResult();
    return absl::FailedPreconditionError("the bundle has look_heads 0");
  };
  v1::RetrieveRequest request = Question();
  EXPECT_TRUE(Retrieve(request).ok());
  request.set_rerank(true);
  ExpectError(Retrieve(request), grpc::FAILED_PRECONDITION, "look_heads 0", "STATE_NOT_FIT");
}

TEST_F(QueryRpcTest, RerankCandidatesAreLeftToTheEngineOrFromKToItsMost) {
  int candidates = -1;
  engine_.retrieve = [&](const RetrieveOptions& options, const CallContext&) {
    candidates = options.rerank_candidates;
    return RetrieveResult();
  };
  v1::RetrieveRequest request = Question();
  EXPECT_TRUE(Retrieve(request).ok());
  EXPECT_EQ(candidates, 0);
  request.set_rerank_candidates(64);
  ExpectFieldError(Retrieve(request), "rerank_candidates", "64 is set without rerank");
  request.set_rerank(true);
  EXPECT_TRUE(Retrieve(request).ok());
  EXPECT_EQ(candidates, 64);
  request.set_rerank_candidates(7);
  ExpectFieldError(Retrieve(request), "rerank_candidates", "7 is not in 8 (k) .. 256");
  request.set_k(3);
  EXPECT_TRUE(Retrieve(request).ok());
  EXPECT_EQ(candidates, 7);
  request.set_rerank_candidates(257);
  ExpectFieldError(Retrieve(request), "rerank_candidates", "257 is not in 3 (k) .. 256");
  request.set_rerank_candidates(4'294'967'295);  // no negative number of the engine's
  ExpectFieldError(Retrieve(request), "rerank_candidates", "4294967295 is not in");
  request.set_rerank_candidates(256);
  EXPECT_TRUE(Retrieve(request).ok());
  EXPECT_EQ(candidates, 256);
}

TEST_F(QueryRpcTest, KeywordsNeedARerank) {
  bool keywords = true;
  engine_.retrieve = [&](const RetrieveOptions& options, const CallContext&) {
    keywords = options.keywords;
    return RetrieveResult();
  };
  v1::RetrieveRequest request = Question();
  EXPECT_TRUE(Retrieve(request).ok());
  EXPECT_FALSE(keywords);
  request.set_keywords(true);
  ExpectFieldError(Retrieve(request), "keywords", "true is set without rerank");
  request.set_rerank(true);
  EXPECT_TRUE(Retrieve(request).ok());
  EXPECT_TRUE(keywords);
}

TEST_F(QueryRpcTest, BadQuestionsAreInvalid) {
  ExpectFieldError(Retrieve(Question("")), "question", "empty");
  v1::RetrieveRequest none;
  none.set_question("who?");
  ExpectFieldError(Retrieve(none), "memories", "0 memories: 1 to 64");
  v1::RetrieveRequest many = none;
  for (int i = 0; i < 65; ++i) many.add_memories(absl::StrCat("tenants/default/memories/m", i));
  ExpectFieldError(Retrieve(many), "memories", "65 memories");
  v1::RetrieveRequest bad = none;
  bad.add_memories(kMemory);
  bad.add_memories("nonsense");
  ExpectFieldError(Retrieve(bad), "memories[1]", "nonsense");
  v1::RetrieveRequest far = Question();
  far.set_context_bytes(4097);
  ExpectFieldError(Retrieve(far), "context_bytes", "4097 is not in 0 .. 4096");
  v1::RetrieveRequest barrier = Question();
  barrier.add_barriers()->set_document("nonsense");
  ExpectFieldError(Retrieve(barrier), "barriers[0].document", "nonsense");
  barrier.mutable_barriers(0)->set_document("tenants/default/memories/books/documents/a");
  barrier.mutable_barriers(0)->set_visible_bytes(-5);
  ExpectFieldError(Retrieve(barrier), "barriers[0].visible_bytes", "-5");
  v1::RetrieveRequest stranger = none;
  stranger.add_memories("tenants/nobody/memories/a");
  ExpectError(Retrieve(stranger), grpc::NOT_FOUND, "nobody", "TENANT_NOT_FOUND");
}

TEST_F(QueryRpcTest, AScoredAnswerBeginsWithTheSpaceThatGenerateLeavesOut) {
  std::string seen;
  engine_.score = [&](const ScoreOptions& options, const CallContext&) {
    seen = options.text;
    return ScoreResult();
  };
  const auto scored = [&](const std::string& prompt, const std::string& text) {
    grpc::ClientContext context;
    v1::ScoreRequest request;
    request.set_prompt(prompt);
    request.set_text(text);
    v1::ScoreResponse response;
    EXPECT_TRUE(stub_->Score(&context, request, &response).ok());
    return seen;
  };
  EXPECT_EQ(scored("How many?", "40917"), " 40917");
  EXPECT_EQ(scored("How many?", " 40917"), " 40917");
  EXPECT_EQ(scored("How many?", "\n40917"), "\n40917");
  // At the beginning of a document nothing parts it from anything.
  EXPECT_EQ(scored("", "40917"), "40917");
}

TEST_F(QueryRpcTest, ErrorsOfTheEngineKeepTheirCode) {
  for (const absl::Status& error :
       {absl::NotFoundError("no memory x"), absl::InvalidArgumentError("question of 5000 tokens"),
        absl::ResourceExhaustedError("64 readers wait"), absl::DataLossError("chunk 3: crc"),
        absl::InternalError("bug")}) {
    engine_.retrieve = [&](const RetrieveOptions&, const CallContext&) { return error; };
    const grpc::Status status = Retrieve(Question());
    EXPECT_EQ(static_cast<int>(status.error_code()), static_cast<int>(error.code()));
    EXPECT_EQ(status.error_message(), std::string(error.message()));
    EXPECT_TRUE(DetailsOf(status).info.has_value());
  }
}

TEST_F(QueryRpcTest, TheEngineSeesDeadlineAndCancellation) {
  absl::Notification running, seen;
  engine_.retrieve = [&](const RetrieveOptions&,
                         const CallContext& context) -> absl::StatusOr<RetrieveResult> {
    EXPECT_LT(context.deadline, absl::Now() + absl::Minutes(2));
    running.Notify();
    while (context.Check().ok()) std::this_thread::yield();
    const absl::Status status = context.Check();
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
    seen.Notify();
    return status;
  };
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  std::thread canceller([&] {
    running.WaitForNotification();
    context.TryCancel();
  });
  v1::RetrieveResponse response;
  EXPECT_EQ(stub_->Retrieve(&context, Question(), &response).error_code(), grpc::CANCELLED);
  seen.WaitForNotification();
  canceller.join();
}

TEST_F(QueryRpcTest, ADeadlineThatPassesMeanwhileIsExceeded) {
  struct Seen {
    std::atomic<int> begun{0}, ended{0};
  };
  // Shared with calls that come to the engine when nobody waits for them any more.
  const auto seen = std::make_shared<Seen>();
  engine_.retrieve = [seen](const RetrieveOptions&,
                            const CallContext& context) -> absl::StatusOr<RetrieveResult> {
    if (!context.Check().ok()) return context.Check();
    ++seen->begun;
    while (context.Check().ok()) std::this_thread::yield();
    ++seen->ended;
    return context.Check();
  };
  // However long a call takes to come to the engine here: one of them is there in time.
  for (auto patience = std::chrono::milliseconds(50); seen->begun == 0; patience *= 2) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + patience);
    v1::RetrieveResponse response;
    EXPECT_EQ(stub_->Retrieve(&context, Question(), &response).error_code(),
              grpc::DEADLINE_EXCEEDED);
  }
  while (seen->ended < seen->begun) std::this_thread::yield();
}

TEST_F(QueryRpcTest, GenerateStreamsPiecesAndEndsWithTheReason) {
  GenerateOptions seen;
  engine_.generate = [&](const GenerateOptions& options, const CallContext&,
                         const std::function<bool(GeneratePiece)>& emit) {
    seen = options;
    for (int i = 0; i < 100; ++i) {
      GeneratePiece piece{.text = absl::StrCat("w", i, " "), .token_count = 1};
      if (i == 0) piece.passages.push_back({.document = "d", .text = "passage"});
      EXPECT_TRUE(emit(std::move(piece)));
    }
    return GenerateResult{.reason = FinishReason::kLength, .damaged_passages = 1};
  };
  v1::GenerateRequest request = Prompt();
  request.set_max_tokens(100);
  request.set_temperature(0.5);
  request.set_seed(7);
  request.set_omit_passages(true);
  request.set_ignore_eos(true);
  std::vector<v1::GenerateResponse> pieces;
  ASSERT_TRUE(Generate(request, &pieces).ok());
  EXPECT_EQ(seen.max_tokens, 100);
  EXPECT_EQ(seen.temperature, 0.5);
  EXPECT_EQ(seen.top_p, 1);
  EXPECT_EQ(seen.seed, 7u);
  EXPECT_TRUE(seen.omit_passages);
  EXPECT_TRUE(seen.ignore_eos);
  ASSERT_EQ(pieces.size(), 101u);
  EXPECT_EQ(pieces[0].text(), "w0 ");
  EXPECT_EQ(pieces[0].passages(0).text(), "passage");
  EXPECT_EQ(pieces[99].text(), "w99 ");
  EXPECT_EQ(pieces[99].finish_reason(), v1::GenerateResponse::FINISH_REASON_UNSPECIFIED);
  EXPECT_EQ(pieces[100].finish_reason(), v1::GenerateResponse::LENGTH);
  EXPECT_EQ(pieces[99].damaged_passage_count(), 0);
  EXPECT_EQ(pieces[100].damaged_passage_count(), 1);
}

TEST_F(QueryRpcTest, BadGenerateRequestsAreInvalid) {
  v1::GenerateRequest request = Prompt();
  request.set_max_tokens(4097);
  ExpectFieldError(Generate(request), "max_tokens", "4097");
  request = Prompt();
  for (double temperature : {-0.1, 10.5, std::nan(""), std::numeric_limits<double>::infinity()}) {
    request.set_temperature(temperature);
    ExpectFieldError(Generate(request), "temperature", "is not in 0 .. 10");
  }
  request = Prompt();
  for (double top_p : {-0.1, 1.1, std::nan("")}) {
    request.set_top_p(top_p);
    ExpectFieldError(Generate(request), "top_p", "is not in 0 .. 1");
  }
  request = Prompt();
  request.clear_question();
  ExpectFieldError(Generate(request), "question", "empty");
}

TEST_F(QueryRpcTest, AnErrorAfterPiecesComesAfterThem) {
  engine_.generate =
      [&](const GenerateOptions&, const CallContext&,
          const std::function<bool(GeneratePiece)>& emit) -> absl::StatusOr<GenerateResult> {
    EXPECT_TRUE(emit({.text = "a", .token_count = 1}));
    return absl::NotFoundError("the memory went away");
  };
  std::vector<v1::GenerateResponse> pieces;
  ExpectError(Generate(Prompt(), &pieces), grpc::NOT_FOUND, "went away", "RESOURCE_NOT_FOUND");
  ASSERT_EQ(pieces.size(), 1u);
  EXPECT_EQ(pieces[0].text(), "a");
}

TEST_F(QueryRpcTest, CancellingInMidStreamStopsTheEngine) {
  absl::Notification stopped;
  engine_.generate =
      [&](const GenerateOptions&, const CallContext& context,
          const std::function<bool(GeneratePiece)>& emit) -> absl::StatusOr<GenerateResult> {
    while (emit({.text = "word ", .token_count = 1}) && context.Check().ok()) {
    }
    stopped.Notify();
    return absl::CancelledError("the caller went away");
  };
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Prompt());
  v1::GenerateResponse piece;
  ASSERT_TRUE(reader->Read(&piece));
  context.TryCancel();
  while (reader->Read(&piece)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::CANCELLED);
  stopped.WaitForNotification();
}

class StallTest : public QueryRpcTest {
 protected:
  StallTest() : QueryRpcTest(ImpatientOptions()) {}
};

TEST_F(StallTest, AClientThatTakesNothingLosesTheCall) {
  absl::Notification stopped;
  engine_.generate =
      [&](const GenerateOptions&, const CallContext&,
          const std::function<bool(GeneratePiece)>& emit) -> absl::StatusOr<GenerateResult> {
    // More than flow control lets through to a client that does not read.
    while (emit({.text = std::string(100'000, 'x'), .token_count = 1})) {
    }
    stopped.Notify();
    return absl::CancelledError("stopped");
  };
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Prompt());
  stopped.WaitForNotification();
  v1::GenerateResponse piece;
  while (reader->Read(&piece)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::CANCELLED);
}

TEST_F(QueryRpcTest, ScoreHandsEverythingOverAndBack) {
  ScoreOptions seen;
  engine_.score = [&](const ScoreOptions& options, const CallContext&) {
    seen = options;
    ScoreResult result;
    result.log_likelihood = -3.5;
    result.tokens = {{"a", -1.5}, {"\xff", -2.0}};
    return result;
  };
  grpc::ClientContext context, bad_context;
  v1::ScoreRequest request;
  request.set_prompt("p");
  request.set_text("a");
  v1::ScoreResponse response;
  ASSERT_TRUE(stub_->Score(&context, request, &response).ok());
  EXPECT_TRUE(seen.memories.empty());
  EXPECT_EQ(seen.prompt, "p");
  EXPECT_EQ(response.log_likelihood(), -3.5);
  EXPECT_EQ(response.token_count(), 2);
  EXPECT_EQ(response.tokens(1).log_likelihood(), -2.0);
  request.clear_text();
  ExpectFieldError(stub_->Score(&bad_context, request, &response), "text", "empty");
}

}  // namespace
}  // namespace mneme
