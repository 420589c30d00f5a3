// The real stack behind a loopback channel: text in, answers out, and the errors that only the real
// engine makes.

#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <grpcpp/client_context.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mneme/v1/mneme.grpc.pb.h"
#include "tests/server/rpc_matchers.h"
#include "tests/server/test_server.h"

namespace mneme {
namespace {

constexpr char kMemory[] = "tenants/default/memories/books";

std::string Document(const std::string& id) { return absl::StrCat(kMemory, "/documents/", id); }

struct Piece {
  int64_t offset;
  std::string text;
};

struct Ingested {
  grpc::Status status;
  v1::IngestResponse last;
};

class EndToEndTest : public ::testing::Test {
 protected:
  explicit EndToEndTest(ServerConfig config = {})
      : server_(TestServer::StartReal(std::move(config))), stub_(server_->NewStub()) {
    grpc::ClientContext context;
    v1::CreateMemoryRequest request;
    request.set_parent("tenants/default");
    request.set_memory_id("books");
    v1::Memory memory;
    EXPECT_TRUE(stub_->CreateMemory(&context, request, &memory).ok());
  }

  Ingested Ingest(const std::string& document, const std::vector<Piece>& pieces,
                  bool seal = false) {
    grpc::ClientContext context;
    const auto stream = stub_->Ingest(&context);
    for (size_t i = 0; i < pieces.size(); ++i) {
      v1::IngestRequest request;
      if (i == 0) request.set_document(document);
      request.set_wait_visible(i == 0);
      request.set_byte_offset(pieces[i].offset);
      request.set_text(pieces[i].text);
      request.set_seal(seal && i + 1 == pieces.size());
      if (!stream->Write(request)) break;
    }
    stream->WritesDone();
    Ingested result;
    v1::IngestResponse ack;
    while (stream->Read(&ack)) result.last = ack;
    result.status = stream->Finish();
    return result;
  }
  grpc::Status Retrieve(const std::string& question, v1::RetrieveResponse* response,
                        bool explain = false) {
    grpc::ClientContext context;
    v1::RetrieveRequest request;
    request.add_memories(kMemory);
    request.set_question(question);
    request.set_explain(explain);
    return stub_->Retrieve(&context, request, response);
  }
  v1::Document Get(const std::string& document) {
    grpc::ClientContext context;
    v1::GetDocumentRequest request;
    request.set_name(document);
    v1::Document result;
    EXPECT_TRUE(stub_->GetDocument(&context, request, &result).ok());
    return result;
  }

  std::unique_ptr<TestServer> server_;
  std::unique_ptr<v1::MemoryService::Stub> stub_;
};

// Days of a log, one of which holds a fact.
std::string Log() {
  std::string text;
  for (int day = 1; day <= 60; ++day) {
    absl::StrAppend(&text, "Day ", day, ". The wind came from the west and nobody saw land.\n");
    if (day == 31)
      absl::StrAppend(&text, "The harbour master keeps 40917 brass buttons in a tin.\n");
  }
  return text;
}

TEST_F(EndToEndTest, TextIsFoundAndReadFrom) {
  const std::string log = Log();
  const Ingested ingested = Ingest(Document("log"), {{0, log}});
  ASSERT_TRUE(ingested.status.ok()) << ingested.status.error_message();
  EXPECT_EQ(ingested.last.durable_bytes(), static_cast<int64_t>(log.size()));
  EXPECT_EQ(ingested.last.visible_bytes(), static_cast<int64_t>(log.size()));
  EXPECT_GT(ingested.last.token_count(), 0);

  v1::RetrieveResponse found;
  ASSERT_TRUE(Retrieve("How many brass buttons does the harbour master keep?", &found, true).ok());
  ASSERT_GT(found.passages_size(), 0);
  bool has_fact = false;
  for (const v1::Passage& passage : found.passages()) {
    EXPECT_EQ(passage.text(),
              log.substr(passage.byte_begin(), passage.byte_end() - passage.byte_begin()));
    has_fact |= absl::StrContains(passage.text(), "40917");
  }
  EXPECT_TRUE(has_fact);
  ASSERT_GT(found.explanation_size(), 0);
  EXPECT_EQ(found.explanation(0).weights_size(), found.passages_size());

  grpc::ClientContext context;
  v1::GenerateRequest request;
  request.add_memories(kMemory);
  request.set_question("How many brass buttons does the harbour master keep?");
  request.set_max_tokens(5);
  const auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse piece, last;
  int tokens = 0;
  while (reader->Read(&piece)) {
    tokens += piece.token_count();
    last = piece;
  }
  ASSERT_TRUE(reader->Finish().ok());
  EXPECT_LE(tokens, 5);
  EXPECT_NE(last.finish_reason(), v1::GenerateResponse::FINISH_REASON_UNSPECIFIED);

  grpc::ClientContext score_context;
  v1::ScoreRequest score;
  score.add_memories(kMemory);
  score.set_text("The wind came from the west.");
  v1::ScoreResponse scored;
  ASSERT_TRUE(stub_->Score(&score_context, score, &scored).ok());
  EXPECT_LT(scored.log_likelihood(), 0);
  EXPECT_EQ(scored.tokens_size(), scored.token_count());
}

TEST_F(EndToEndTest, RerankOrdersByTheSecondLook) {
  const std::string log = Log();
  ASSERT_TRUE(Ingest(Document("log"), {{0, log}}).status.ok());
  std::vector<v1::RetrieveResponse> found(2);
  for (const bool rerank : {false, true}) {
    grpc::ClientContext context;
    v1::RetrieveRequest request;
    request.add_memories(kMemory);
    request.set_question("How many brass buttons does the harbour master keep?");
    request.set_k(rerank ? 5 : 256);
    request.set_rerank(rerank);
    const grpc::Status status = stub_->Retrieve(&context, request, &found[rerank]);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  std::map<int64_t, double> landmark_scores;  // by chunk
  for (const v1::Passage& passage : found[0].passages()) {
    EXPECT_FALSE(passage.has_rerank_score());
    landmark_scores[passage.chunk_index()] = passage.score();
  }
  ASSERT_EQ(found[1].passages_size(), 5);
  EXPECT_THAT(found[1].passages(0).text(), ::testing::HasSubstr("40917"));
  for (int i = 0; i < 5; ++i) {
    const v1::Passage& passage = found[1].passages(i);
    ASSERT_TRUE(passage.has_rerank_score());
    EXPECT_EQ(passage.score(), landmark_scores.at(passage.chunk_index()));
    EXPECT_NE(passage.rerank_score(), passage.score());
    if (i > 0) {
      EXPECT_LE(passage.rerank_score(), found[1].passages(i - 1).rerank_score());
    }
  }
}

TEST_F(EndToEndTest, KeywordsOrderByTheSumOfBothScores) {
  ASSERT_TRUE(Ingest(Document("log"), {{0, Log()}}).status.ok());
  v1::RetrieveRequest request;
  request.add_memories(kMemory);
  request.set_question("How many brass buttons does the harbour master keep?");
  request.set_k(64);
  request.set_rerank(true);
  std::vector<v1::RetrieveResponse> found(2);
  for (const bool keywords : {false, true}) {
    grpc::ClientContext context;
    request.set_keywords(keywords);
    const grpc::Status status = stub_->Retrieve(&context, request, &found[keywords]);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  std::map<int64_t, double> looks;  // by chunk
  for (const v1::Passage& passage : found[0].passages()) {
    EXPECT_FALSE(passage.has_keyword_score());
    looks[passage.chunk_index()] = passage.rerank_score();
  }
  ASSERT_EQ(found[1].passages_size(), found[0].passages_size());
  EXPECT_THAT(found[1].passages(0).text(), ::testing::HasSubstr("40917"));
  double last = std::numeric_limits<double>::infinity();
  for (const v1::Passage& passage : found[1].passages()) {
    ASSERT_TRUE(passage.has_keyword_score());
    EXPECT_GE(passage.keyword_score(), 0);
    EXPECT_EQ(passage.rerank_score(), looks.at(passage.chunk_index()));
    EXPECT_LE(passage.rerank_score() + passage.keyword_score(), last);
    last = passage.rerank_score() + passage.keyword_score();
  }
}

TEST_F(EndToEndTest, InvalidUtf8IsNamedAndEarlierBytesKept) {
  const Ingested bad = Ingest(Document("bad"), {{0, "good text "},
                                                {10,
                                                 "ab\xff"
                                                 "cd"}});
  ExpectError(bad.status, grpc::INVALID_ARGUMENT, "byte 12", "TEXT_INVALID");
  EXPECT_EQ(DetailsOf(bad.status).info->metadata().at("byte_offset"), "12");
  EXPECT_EQ(bad.last.durable_bytes(), 12);
  EXPECT_EQ(Get(Document("bad")).durable_bytes(), 12);
  // It goes on from there.
  const Ingested good = Ingest(Document("bad"), {{12, "xyz"}});
  EXPECT_TRUE(good.status.ok()) << good.status.error_message();
  EXPECT_EQ(good.last.durable_bytes(), 15);
}

TEST_F(EndToEndTest, ASequenceMayBeSplitButNotLeftOpen) {
  const Ingested split = Ingest(Document("split"), {{0, "w\xe2\x82"}, {3, "\xac!"}});
  EXPECT_TRUE(split.status.ok()) << split.status.error_message();
  EXPECT_EQ(split.last.durable_bytes(), 5);
  const Ingested open = Ingest(Document("open"), {{0, "ok \xe2\x82"}});
  ExpectError(open.status, grpc::INVALID_ARGUMENT, "byte 3", "TEXT_INVALID");
  EXPECT_EQ(DetailsOf(open.status).info->metadata().at("byte_offset"), "3");
  EXPECT_EQ(open.last.durable_bytes(), 3);
}

TEST_F(EndToEndTest, AGapIsOutOfRange) {
  const Ingested gap = Ingest(Document("gap"), {{0, "abc"}, {10, "def"}});
  ExpectError(gap.status, grpc::OUT_OF_RANGE, "10", "OFFSET_GAP");
  EXPECT_EQ(gap.last.durable_bytes(), 3);
}

TEST_F(EndToEndTest, DifferentBytesAtAStoredOffsetAreRefusedEqualOnesNot) {
  ASSERT_TRUE(Ingest(Document("same"), {{0, "hello world"}}).status.ok());
  const Ingested same = Ingest(Document("same"), {{6, "world, again"}});
  EXPECT_TRUE(same.status.ok()) << same.status.error_message();
  EXPECT_EQ(same.last.durable_bytes(), 18);
  const Ingested other = Ingest(Document("same"), {{4, "o World"}});
  ExpectError(other.status, grpc::ALREADY_EXISTS, "byte 6", "TEXT_DIFFERS");
  EXPECT_EQ(DetailsOf(other.status).info->metadata().at("byte_offset"), "6");
  EXPECT_EQ(Get(Document("same")).durable_bytes(), 18);
}

TEST_F(EndToEndTest, ASealedDocumentTakesTheSameBytesButNoMore) {
  ASSERT_TRUE(Ingest(Document("sealed"), {{0, "the end"}}, /*seal=*/true).status.ok());
  EXPECT_EQ(Get(Document("sealed")).state(), v1::Document::SEALED);
  EXPECT_TRUE(Ingest(Document("sealed"), {{0, "the end"}}, /*seal=*/true).status.ok());
  ExpectError(Ingest(Document("sealed"), {{7, "?"}}).status, grpc::FAILED_PRECONDITION, "sealed",
              "DOCUMENT_SEALED");
}

TEST_F(EndToEndTest, AnEmptyDocumentCannotBeSealedButIsNoHarm) {
  ExpectError(Ingest(Document("empty"), {{0, ""}}, /*seal=*/true).status, grpc::INVALID_ARGUMENT,
              "no text", "TEXT_INVALID");
  const Ingested open = Ingest(Document("empty"), {{0, ""}});
  EXPECT_TRUE(open.status.ok()) << open.status.error_message();
  EXPECT_EQ(Get(Document("empty")).durable_bytes(), 0);
  v1::RetrieveResponse found;
  EXPECT_TRUE(Retrieve("anything", &found).ok());
  EXPECT_EQ(found.passages_size(), 0);
}

TEST_F(EndToEndTest, AQuestionLongerThanASegmentIsInvalid) {
  std::string question;
  while (question.size() < 60'000)
    absl::StrAppend(&question, "What is the ", question.size(), "? ");
  v1::RetrieveResponse found;
  const grpc::Status status = Retrieve(question, &found);
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT) << status.error_message();
  EXPECT_THAT(status.error_message(), ::testing::HasSubstr("4096"));
  EXPECT_TRUE(DetailsOf(status).info.has_value());
}

TEST_F(EndToEndTest, UnknownMemoriesAndDocumentsAreNotFound) {
  grpc::ClientContext context, barrier_context;
  v1::RetrieveRequest request;
  request.add_memories("tenants/default/memories/nothing");
  request.set_question("who?");
  v1::RetrieveResponse found;
  ExpectError(stub_->Retrieve(&context, request, &found), grpc::NOT_FOUND, "nothing",
              "RESOURCE_NOT_FOUND");
  v1::RetrieveRequest barrier;
  barrier.add_memories(kMemory);
  barrier.set_question("who?");
  barrier.add_barriers()->set_document(Document("nothing"));
  barrier.mutable_barriers(0)->set_visible_bytes(1);
  EXPECT_EQ(stub_->Retrieve(&barrier_context, barrier, &found).error_code(), grpc::NOT_FOUND);
}

TEST_F(EndToEndTest, AFullDiskIsNoLimitThatSomebodySet) {
  TemporaryFolder folder;
  const auto create = [&](const std::string& id) {
    grpc::ClientContext context;
    v1::CreateMemoryRequest request;
    request.set_parent("tenants/default");
    request.set_memory_id(id);
    v1::Memory memory;
    return stub_->CreateMemory(&context, request, &memory);
  };
  const auto restart = [&](const ServerConfig& config) {
    stub_.reset();
    server_.reset();
    server_ = TestServer::StartReal(config, folder.path() + "/data");
    stub_ = server_->NewStub();
  };
  ServerConfig config;
  config.engine.memories_per_tenant_max = 1;
  restart(config);
  ASSERT_TRUE(create("books").ok());
  ASSERT_TRUE(Ingest(Document("log"), {{0, "some text"}}).status.ok());
  ExpectError(create("more"), grpc::RESOURCE_EXHAUSTED, "limit 1", "LIMIT_REACHED");

  // No disk has so much to keep in reserve.
  config.engine.memories_per_tenant_max = 10;
  config.reserve_bytes = int64_t{1} << 50;
  restart(config);
  const grpc::Status created = create("more");
  ExpectError(created, grpc::RESOURCE_EXHAUSTED, "disk full", "STORAGE_FULL");
  EXPECT_TRUE(DetailsOf(created).retry.has_value());
  ExpectError(Ingest(Document("new"), {{0, "text"}}).status, grpc::RESOURCE_EXHAUSTED, "disk full",
              "STORAGE_FULL");
  ExpectError(Ingest(Document("log"), {{9, " more"}}).status, grpc::RESOURCE_EXHAUSTED, "disk full",
              "STORAGE_FULL");
}

TEST_F(EndToEndTest, EverythingIsThereAfterARestart) {
  TemporaryFolder folder;
  const std::string log = Log();
  server_ = TestServer::StartReal({}, folder.path() + "/data");
  stub_ = server_->NewStub();
  {
    grpc::ClientContext context;
    v1::CreateMemoryRequest request;
    request.set_parent("tenants/default");
    request.set_memory_id("books");
    v1::Memory memory;
    ASSERT_TRUE(stub_->CreateMemory(&context, request, &memory).ok());
  }
  ASSERT_TRUE(Ingest(Document("log"), {{0, log}}).status.ok());
  stub_.reset();
  server_.reset();
  server_ = TestServer::StartReal({}, folder.path() + "/data");
  stub_ = server_->NewStub();
  EXPECT_EQ(Get(Document("log")).visible_bytes(), static_cast<int64_t>(log.size()));
  v1::RetrieveResponse found;
  ASSERT_TRUE(Retrieve("brass buttons", &found).ok());
  EXPECT_GT(found.passages_size(), 0);
}

class QuotaEndToEndTest : public EndToEndTest {
 protected:
  QuotaEndToEndTest() : EndToEndTest(WithQuota()) {}
  static ServerConfig WithQuota() {
    ServerConfig config;
    config.engine.admission.quotas.tenant.text_bytes_max = 1000;
    return config;
  }
};

TEST_F(QuotaEndToEndTest, AQuotaRefusesTextAndDeletingMakesRoom) {
  const std::string text = Log().substr(0, 900);
  ASSERT_TRUE(Ingest(Document("a"), {{0, text}}).status.ok());
  const Ingested refused = Ingest(Document("b"), {{0, text.substr(0, 60)}, {60, text}});
  ExpectError(refused.status, grpc::RESOURCE_EXHAUSTED, "quota text_bytes of tenant default",
              "QUOTA_EXCEEDED");
  const ErrorDetails details = DetailsOf(refused.status);
  EXPECT_EQ(details.info->metadata().at("limit"), "1000");
  EXPECT_EQ(details.info->metadata().at("used"), "960");
  EXPECT_EQ(details.info->metadata().at("value"), "900");
  EXPECT_FALSE(details.retry.has_value());
  EXPECT_EQ(refused.last.durable_bytes(), 60);  // acked, and it stays

  v1::GetStatusResponse status;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->GetStatus(&context, v1::GetStatusRequest(), &status).ok());
  }
  int shown = 0;
  for (const v1::QuotaStatus& quota : status.quotas()) {
    if (quota.tenant() != "default" || quota.quota() != "text_bytes") continue;
    EXPECT_EQ(quota.used(), 960);
    EXPECT_EQ(quota.limit(), 1000);
    ++shown;
  }
  EXPECT_EQ(shown, 1);
  EXPECT_EQ(status.watermarks_size(), 3);

  v1::RetrieveResponse found;
  EXPECT_TRUE(Retrieve("What does the harbour master keep?", &found).ok());
  {
    grpc::ClientContext context;
    v1::DeleteDocumentRequest request;
    request.set_name(Document("a"));
    google::longrunning::Operation operation;
    ASSERT_TRUE(stub_->DeleteDocument(&context, request, &operation).ok());
  }
  EXPECT_TRUE(Ingest(Document("b"), {{60, text}}).status.ok());
}

}  // namespace
}  // namespace mneme
