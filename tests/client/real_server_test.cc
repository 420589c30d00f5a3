// Client and program against a real server with the shipped bundle.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/client.h"
#include "client/rpc_error.h"
#include "tests/client/cutting_proxy.h"
#include "tests/client/program.h"
#include "tests/client/test_files.h"
#include "tests/server/test_server.h"

namespace mneme {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kDocument[] = "tenants/default/memories/m/documents/d";

int PortOf(const TestServer& server) {
  int port = 0;
  const std::string address = server.address();
  EXPECT_TRUE(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port));
  return port;
}

void CreateMemory(Client& client) {
  v1::CreateMemoryRequest request;
  request.set_parent("tenants/default");
  request.set_memory_id("m");
  EXPECT_TRUE(client.CreateMemory(request).ok());
}

// Words of all lengths, some beyond ASCII.
std::string RandomWords(size_t bytes, std::mt19937_64& random) {
  static constexpr const char* kWords[] = {
      "the", "na\xc3\xafve", "count", "\xe6\xbc\xa2\xe5\xad\x97", "castle", "of", "\n", "1897"};
  std::string text;
  while (text.size() < bytes) absl::StrAppend(&text, kWords[random() % 8], " ");
  return text;
}

std::string ReadAll(Client& client) {
  std::string text;
  v1::ReadDocumentRequest request;
  request.set_name(kDocument);
  EXPECT_TRUE(client
                  .ReadDocument(request,
                                [&](absl::string_view piece) {
                                  absl::StrAppend(&text, piece);
                                  return true;
                                })
                  .ok());
  return text;
}

TEST(RealServerTest, IngestOutlivesConnectionsThatAreCut) {
  auto server = TestServer::StartReal();
  Client direct({.address = server->address()});
  CreateMemory(direct);
  const uint64_t seed = 20;
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937_64 random(seed);
  const std::string text = RandomWords(150'000, random);
  std::vector<int64_t> cuts;
  for (int i = 0; i < 8; ++i) cuts.push_back(static_cast<int64_t>(random() % 15'000));
  CuttingProxy proxy(PortOf(*server), cuts);
  ClientOptions options;
  options.address = proxy.address();
  // Before the first answer a cut connection counts as no server at all: be patient there too.
  options.retry = {.backoff_initial = absl::Milliseconds(1),
                   .backoff_max = absl::Milliseconds(20),
                   .attempts_max = 100};
  options.resume = options.retry;
  Client client(options);
  StringSource source(text);
  // Not visible: this is about the text, not about the network.
  IngestOutcome outcome = client.Ingest({.document = kDocument,
                                         .wait_visible = false,
                                         .window_bytes = 16 << 10,
                                         .piece_bytes = 3'000},
                                        source);
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_EQ(outcome.state.durable_bytes, static_cast<int64_t>(text.size()));
  EXPECT_EQ(proxy.cut(), 8);
  EXPECT_TRUE(ReadAll(direct) == text);
}

TEST(RealServerTest, ErrorsOfAnIngestKeepTheirReason) {
  auto server = TestServer::StartReal();
  Client client({.address = server->address()});
  CreateMemory(client);
  StringSource good("one. "), bad("one. two\xff"), other("ONE. "), rest("three.");
  EXPECT_TRUE(client.Ingest({.document = kDocument}, good).status.ok());
  IngestOutcome outcome = client.Ingest({.document = kDocument}, bad);
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(outcome.status.message()), HasSubstr("8"));
  EXPECT_EQ(ReadAll(client), "one. two");
  EXPECT_EQ(client.Ingest({.document = kDocument}, other).status.code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(
      client.Ingest({.document = kDocument, .seal = true, .append = true}, rest).status.ok());
  EXPECT_EQ(ReadAll(client), "one. twothree.");
  outcome = client.Ingest({.document = kDocument, .append = true}, rest);
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(ErrorInfoOf(outcome.status).has_value());
}

TEST(RealServerTest, ProgramFromCreateToDelete) {
  auto server = TestServer::StartReal();
  TestFiles files;
  std::string text;
  for (int day = 1; day <= 18; ++day) {
    absl::StrAppend(&text, "The lighthouse log for day ", day,
                    " records wind from the north and passing ships. ");
    if (day == 8)
      absl::StrAppend(&text, "The pass key is 40917. Remember it. 40917 is the pass key. ");
  }
  const std::string path = files.Write("log.txt", text);
  const auto run = [&](std::vector<std::string> arguments) {
    arguments.push_back("--json");
    Program::Result result = RunProgram(arguments, server->address());
    EXPECT_EQ(result.status, 0) << result.errors;
    return json::parse(result.output);
  };
  run({"create", "m"});
  const json ingested = run({"ingest", "m", path})["documents"][0];
  EXPECT_EQ(ingested["durable_bytes"], text.size());
  EXPECT_EQ(ingested["visible_bytes"], text.size());
  const json again = run({"ingest", "m", path})["documents"][0];
  EXPECT_EQ(again["new_bytes"], 0);
  EXPECT_EQ(again["tokens"], ingested["tokens"]);

  const json found =
      run({"search", "m", "What is the pass key? The pass key is", "-k", "3", "--explain"});
  ASSERT_EQ(found["results"].size(), 3u);
  const json& best = found["results"][0];
  EXPECT_THAT(best["text"].get<std::string>(), HasSubstr("40917"));
  EXPECT_EQ(best["text"], text.substr(best["byte_begin"], best["byte_end"].get<size_t>() -
                                                              best["byte_begin"].get<size_t>()));
  EXPECT_GT(found["explanation"]["words"].size(), 5u);
  EXPECT_FALSE(best.contains("rerank_score"));
  const json looked = run(
      {"search", "m", "What is the pass key? The pass key is", "-k", "3", "--rerank"})["results"];
  ASSERT_EQ(looked.size(), 3u);
  EXPECT_THAT(looked[0]["text"].get<std::string>(), HasSubstr("40917"));
  EXPECT_GE(looked[0]["rerank_score"], looked[1]["rerank_score"]);
  const json wider = run({"search", "m", "What is the pass key? The pass key is", "-k", "3",
                          "--rerank", "--candidates", "256"})["results"];
  ASSERT_EQ(wider.size(), 3u);
  EXPECT_EQ(wider[0]["byte_begin"], looked[0]["byte_begin"]);
  EXPECT_FALSE(wider[0].contains("keyword_score"));
  const json words = run({"search", "m", "What is the pass key? The pass key is", "-k", "3",
                          "--rerank", "--keywords"})["results"];
  ASSERT_EQ(words.size(), 3u);
  EXPECT_EQ(words[0]["byte_begin"], looked[0]["byte_begin"]);
  EXPECT_GT(words[0]["keyword_score"], 0);
  EXPECT_EQ(
      run({"ask", "m", "What is the pass key? The pass key is", "--max-tokens", "8"})["answer"],
      "40917");
  EXPECT_LT(run({"score", "-", "passing ships"})["log_likelihood"], 0);
  EXPECT_EQ(run({"show", "m", "log.txt"})["text"], text);
  EXPECT_EQ(run({"documents", "m"})["documents"][0]["document"], "log.txt");
  EXPECT_EQ(run({"memories"})["memories"][0]["documents"], 1);
  EXPECT_EQ(run({"status"})["ready"], true);
  const json forgotten = run({"forget", "m", "log.txt"});
  EXPECT_EQ(forgotten["receipt"]["text_bytes"], text.size());
  EXPECT_GE(forgotten["receipt"]["purge_time"], forgotten["receipt"]["delete_time"]);
  EXPECT_EQ(run({"documents", "m"})["documents"].size(), 0u);
  run({"delete", "m"});

  Program::Result gone = RunProgram({"ask", "m", "anything"}, server->address());
  EXPECT_EQ(gone.status, 1);
  EXPECT_THAT(gone.errors, HasSubstr("tenants/default/memories/m"));
}

TEST(RealServerTest, ProgramForksAndReadsThePast) {
  auto server = TestServer::StartReal();
  const auto run = [&](std::vector<std::string> arguments, const std::string& input = "") {
    arguments.push_back("--json");
    Program::Result result = RunProgram(arguments, server->address(), input);
    EXPECT_EQ(result.status, 0) << result.errors;
    return json::parse(result.output);
  };
  const auto texts = [&](std::vector<std::string> arguments) {
    std::string all;
    const json found = run(std::move(arguments));
    for (const json& result : found["results"]) all += result["text"].get<std::string>();
    return all;
  };
  const std::string question = "What is the pass key?";
  run({"create", "m"});
  run({"ingest", "m", "-", "--document", "log"}, "The pass key is 40917.");
  const json snapshot = run({"snapshot", "m", "before"});
  EXPECT_EQ(run({"snapshot", "m", "--list"})["snapshots"][0], snapshot);
  run({"ingest", "m", "-", "--document", "log", "--append"}, " No: the pass key is 55555.");
  EXPECT_THAT(texts({"search", "m", question}), HasSubstr("55555"));
  for (const std::vector<std::string>& past :
       {std::vector<std::string>{"search", "m/snapshots/before", question},
        {"search", "m", question, "--as-of", snapshot["as_of"]}}) {
    EXPECT_THAT(texts(past), HasSubstr("40917"));
    EXPECT_THAT(texts(past), Not(HasSubstr("55555")));
  }
  EXPECT_EQ(run({"search", "m", question, "--as-of", "1h"})["results"].size(), 0u);

  const json fork = run({"fork", "m/snapshots/before", "f"});
  EXPECT_EQ(fork["base"], "tenants/default/memories/m");
  EXPECT_EQ(fork["base_time"], snapshot["as_of"]);
  EXPECT_EQ(fork["documents"], 1);
  EXPECT_EQ(run({"documents", "f"})["documents"][0]["shared"], true);
  EXPECT_EQ(run({"show", "f", "log"})["text"], "The pass key is 40917.");
  Program::Result refused =
      RunProgram({"ingest", "f", "-", "--document", "log", "--append"}, server->address(), "x");
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.errors, HasSubstr("shared"));
  const json held = run({"forget", "m", "log"})["receipt"];
  EXPECT_EQ(held["held_by"], json({"tenants/default/memories/f"}));
  EXPECT_EQ(held["held_text_bytes"], 22);
  EXPECT_EQ(held["text_bytes"], 27);
  EXPECT_TRUE(held["purge_time"].is_null());
  EXPECT_THAT(RunProgram({"delete", "m"}, server->address()).output, HasSubstr("deleted m"));
  EXPECT_THAT(texts({"search", "f", question}), HasSubstr("40917"));
  EXPECT_EQ(run({"memories"})["memories"][0]["base"], "");
  const json gone = run({"delete", "f", "--everywhere"})["receipt"];
  EXPECT_EQ(gone["documents"], 1);
  EXPECT_FALSE(gone["purge_time"].is_null());
}

}  // namespace
}  // namespace mneme
