// The program `mneme` from outside, against a fake service.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "tests/client/fake_service.h"
#include "tests/client/program.h"
#include "tests/client/test_files.h"

namespace mneme {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;
using ::testing::StartsWith;

constexpr char kMemory[] = "tenants/default/memories/m";

class CliProgramTest : public ::testing::Test {
 protected:
  CliProgramTest() { service().PutMemory(kMemory); }
  Program::Result Run(const std::vector<std::string>& arguments, const std::string& input = "",
                      bool terminal = false) {
    return RunProgram(arguments, server_.address(), input, terminal);
  }
  FakeService& service() { return server_.service(); }
  static std::string DocumentName(const std::string& id) {
    return absl::StrCat(kMemory, "/documents/", id);
  }

  FakeServer server_;
  TestFiles folder_;
};

std::vector<std::string> KeysOf(const json& object) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : object.items()) keys.push_back(key);
  return keys;
}

v1::RetrieveResponse TwoPassages() {
  v1::RetrieveResponse response;
  v1::Passage* passage = response.add_passages();
  passage->set_document(absl::StrCat(kMemory, "/documents/book"));
  passage->set_byte_begin(1000);
  passage->set_byte_end(1250);
  passage->set_score(3.5);
  passage->set_weight(0.75);
  passage->set_text("the\n\npass   key \x1b]0;title\x07 is 40917");
  passage->set_chunk_index(4);
  passage = response.add_passages();
  passage->set_document(absl::StrCat(kMemory, "/documents/book"));
  passage->set_text("another");
  for (const char* text : {"What", " key", "?"}) {
    v1::TokenExplanation* token = response.add_explanation();
    token->set_text(text);
    token->add_weights(0.5);
    token->add_weights(0);
  }
  response.set_chunks_scanned(17);
  return response;
}

TEST_F(CliProgramTest, WrongUsageIsStatusTwoAndNamed) {
  const std::pair<std::vector<std::string>, std::string> wrong[] = {
      {{}, "no command"},
      {{"nonsense"}, "unknown command nonsense"},
      {{"search", "m"}, "needs TEXT"},
      {{"search", "m", "q", "--nonsense"}, "unknown flag --nonsense"},
      {{"--address", "nonsense", "status"}, "--address nonsense"},
      {{"search", "m", "q", "-k", "0"}, "-k 0"},
      {{"ingest", "m", "-"}, "--document"},
      {{"search", "m", "q", "--as-of", "yesterday"}, "--as-of yesterday"},
      {{"fork", "m"}, "needs NEW"},
      {{"snapshot", "m"}, "--list"},
      {{"snapshot", "m", "s", "--list"}, "--list"},
      {{"snapshot", "m", "s", "--delete", "--as-of", "2h"}, "--as-of"},
  };
  for (const auto& [arguments, culprit] : wrong) {
    Program::Result result = Run(arguments);
    EXPECT_EQ(result.status, 2);
    EXPECT_EQ(result.output, "");
    EXPECT_THAT(result.errors, AllOf(StartsWith("mneme: "), HasSubstr(culprit)));
  }
  EXPECT_EQ(service().calls(), 0);
}

TEST_F(CliProgramTest, WrongUsageIsAnObjectToo) {
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"search", "m", "--json"},
        {"--json", "search", "m", "q", "--nonsense"},
        {"status", "--json", "--address", "nonsense"}}) {
    Program::Result result = Run(arguments);
    EXPECT_EQ(result.status, 2);
    EXPECT_EQ(result.output, "");
    const json error = json::parse(result.errors)["error"];
    EXPECT_EQ(error["code"], "INVALID_ARGUMENT");
    EXPECT_FALSE(error["message"].get<std::string>().empty());
  }
  // Behind -- it is text.
  EXPECT_THAT(Run({"search", "m", "q", "--", "--json"}).errors, StartsWith("mneme: "));
}

TEST_F(CliProgramTest, TextThatIsNotUtf8IsOneClearLine) {
  Program::Result result = Run({"search", "m", "bad\xff"});
  EXPECT_EQ(result.status, 2);
  EXPECT_EQ(
      result.errors,
      "mneme: TEXT is not UTF-8 at byte 3\n       mneme search --help shows how it is used\n");
  EXPECT_EQ(service().calls(), 0);
}

TEST_F(CliProgramTest, HelpAndVersionNeedNoServer) {
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"--help"}, {"ask", "--help"}, {"--version"}, {"version"}}) {
    Program::Result result = RunProgram(arguments, "127.0.0.1:1");
    EXPECT_EQ(result.status, 0) << result.errors;
    EXPECT_THAT(result.output, HasSubstr("mneme"));
    EXPECT_EQ(result.errors, "");
  }
  EXPECT_THAT(KeysOf(json::parse(RunProgram({"version", "--json"}, "127.0.0.1:1").output)),
              ElementsAre("commit", "version"));
}

TEST_F(CliProgramTest, ErrorsAreStatusOneInWordsOrAsJson) {
  Program::Result result = Run({"ingest", "none", folder_.Write("f", "text")});
  EXPECT_EQ(result.status, 1);
  EXPECT_EQ(result.output, "");
  EXPECT_EQ(result.errors,
            "mneme: tenants/default/memories/none does not exist; mneme create none makes it\n");

  result = Run({"ingest", "none", folder_.path() + "/f", "--json"});
  EXPECT_EQ(result.status, 1);
  EXPECT_EQ(result.output, "");
  const json error = json::parse(result.errors)["error"];
  EXPECT_EQ(error["code"], "NOT_FOUND");
  EXPECT_EQ(error["reason"], "RESOURCE_NOT_FOUND");
  EXPECT_EQ(error["metadata"]["value"], "x");
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("does not exist"));
}

TEST_F(CliProgramTest, NoMemoryIsToBeCreatedForAnUnknownTenant) {
  const std::string path = folder_.Write("f", "text");
  service().FailNextCalls({ServerError(grpc::NOT_FOUND, "no tenant \"zz\"", "TENANT_NOT_FOUND")});
  Program::Result result = Run({"ingest", "tenants/zz/memories/m", path});
  EXPECT_EQ(result.status, 1);
  EXPECT_EQ(result.errors, "mneme: no tenant \"zz\"\n");
}

TEST_F(CliProgramTest, NoServerIsOneClearLine) {
  Program::Result result = RunProgram({"status"}, "127.0.0.1:1");
  EXPECT_EQ(result.status, 1);
  EXPECT_EQ(result.errors,
            "mneme: no Mneme server answers at 127.0.0.1:1 (Connection refused); start one with "
            "mneme-server or name another "
            "with --address\n");
}

TEST_F(CliProgramTest, AddressFlagComesBeforeTheEnvironment) {
  EXPECT_EQ(RunProgram({"memories", "--address", server_.address()}, "127.0.0.1:1").status, 0);
}

TEST_F(CliProgramTest, TimeoutEndsACallThatHangs) {
  service().HangCalls(true);
  Program::Result result = Run({"search", "m", "q", "--timeout", "0.05"});
  EXPECT_EQ(result.status, 1);
  EXPECT_EQ(result.errors, "mneme: the time given with --timeout has passed\n");
  EXPECT_EQ(Run({"search", "m", "q", "--timeout", "0"}).status, 1);
}

TEST_F(CliProgramTest, CreateMemoriesAndDelete) {
  EXPECT_EQ(Run({"create", "n"}).output, "created n\n");
  const json created =
      json::parse(Run({"create", "o", "--json", "--display-name", "words"}).output);
  EXPECT_EQ(created["memory"], "o");
  EXPECT_EQ(created["name"], "tenants/default/memories/o");
  EXPECT_EQ(created["display_name"], "words");
  const json listed = json::parse(Run({"memories", "--json"}).output);
  ASSERT_EQ(listed["memories"].size(), 3u);
  EXPECT_THAT(KeysOf(listed["memories"][0]),
              ElementsAre("base", "base_time", "chunks", "create_time", "display_name", "documents",
                          "durable_bytes", "memory", "name", "quota_bytes", "retention", "tokens",
                          "ttl_seconds", "visible_bytes"));
  const json deleted = json::parse(Run({"delete", "tenants/default/memories/o", "--json"}).output);
  EXPECT_EQ(deleted["deleted"], "tenants/default/memories/o");
  EXPECT_EQ(deleted["receipt"]["documents"], 2);
  EXPECT_THAT(Run({"delete", "n"}).output,
              HasSubstr("deleted n and all its documents: 2 documents"));
  EXPECT_EQ(Run({"create", "n"}).status, 0);
  EXPECT_EQ(Run({"delete", "n", "--no-wait"}).output, "deleted n and all its documents\n");
  EXPECT_EQ(Run({"delete", "o"}).status, 1);
}

TEST_F(CliProgramTest, IngestOfAFile) {
  const std::string path = folder_.Write("my book.txt", "some text");
  Program::Result result = Run({"ingest", "m", path});
  EXPECT_EQ(result.status, 0) << result.errors;
  EXPECT_EQ(result.output, "my_book.txt: 9 bytes durable, 9 visible, 2 tokens\n");
  EXPECT_EQ(service().TextOf(DocumentName("my_book.txt")), "some text");

  result = Run({"ingest", "m", path});
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(result.output,
            "my_book.txt: 9 bytes durable, 9 visible, 2 tokens (was stored already)\n");
  EXPECT_EQ(result.errors, "");

  result = Run({"ingest", "m", path, "--json", "--document", "d"});
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(result.errors, "");
  const json object = json::parse(result.output);
  EXPECT_THAT(KeysOf(object), ElementsAre("documents", "errors", "seconds"));
  ASSERT_EQ(object["documents"].size(), 1u);
  EXPECT_THAT(KeysOf(object["documents"][0]),
              ElementsAre("document", "durable_bytes", "name", "new_bytes", "path", "tokens",
                          "visible_bytes"));
  EXPECT_EQ(object["documents"][0]["document"], "d");
  EXPECT_EQ(object["documents"][0]["durable_bytes"], 9);
  EXPECT_EQ(object["documents"][0]["visible_bytes"], 9);
  EXPECT_EQ(object["documents"][0]["tokens"], 2);
}

TEST_F(CliProgramTest, IngestOfStandardInputAndAppend) {
  EXPECT_EQ(Run({"ingest", "m", "-", "--document", "log"}, "first. ").status, 0);
  EXPECT_EQ(Run({"ingest", "m", "-", "--document", "log", "--append"}, "second.").status, 0);
  EXPECT_EQ(service().TextOf(DocumentName("log")), "first. second.");
  Program::Result result = Run({"ingest", "m", "-", "--document", "log", "--json"}, "other");
  EXPECT_EQ(result.status, 1);
  EXPECT_EQ(json::parse(result.errors)["error"]["reason"], "TEXT_DIFFERS");
  EXPECT_EQ(service().TextOf(DocumentName("log")), "first. second.");
}

TEST_F(CliProgramTest, IngestOfAFolderGoesOnPastBadFiles) {
  folder_.Write("in/a.txt", "text a");
  folder_.Write("in/sub/b.txt", "text b");
  folder_.Write("in/bad.bin",
                "good\xff"
                "bad");
  folder_.Write("in/z.txt", "text z");
  Program::Result result = Run({"ingest", "m", folder_.path() + "/in"});
  EXPECT_EQ(result.status, 1);
  EXPECT_EQ(result.output,
            "a.txt: 6 bytes durable, 6 visible, 1 token\nsub~b.txt: 6 bytes durable, 6 visible, 1 "
            "token\n"
            "z.txt: 6 bytes durable, 6 visible, 1 token\n");
  EXPECT_THAT(result.errors, AllOf(HasSubstr("/in/bad.bin: not UTF-8 at byte 4"),
                                   HasSubstr("1 of 4 files failed")));
  EXPECT_EQ(service().TextOf(DocumentName("sub~b.txt")), "text b");

  result = Run({"ingest", "m", folder_.path() + "/in", "--json", "--concurrency", "1"});
  EXPECT_EQ(result.status, 1);
  const json object = json::parse(result.output);
  EXPECT_EQ(object["documents"].size(), 3u);
  ASSERT_EQ(object["errors"].size(), 1u);
  EXPECT_THAT(object["errors"][0]["path"].get<std::string>(), HasSubstr("bad.bin"));
  EXPECT_EQ(object["errors"][0]["code"], "INVALID_ARGUMENT");
}

TEST_F(CliProgramTest, IngestOutlivesBrokenStreams) {
  const std::string text(3'000'000, 'x');
  service().BreakIngestStreams({100'000, 900'000, 10},
                               grpc::Status(grpc::UNAVAILABLE, "Socket closed"), 200'000, 1);
  Program::Result result = Run({"ingest", "m", folder_.Write("f", text)});
  EXPECT_EQ(result.status, 0) << result.errors;
  EXPECT_THAT(result.errors,
              HasSubstr("mneme: f: the connection to the server is lost; trying again\n"));
  EXPECT_EQ(service().TextOf(DocumentName("f")), text);
}

TEST_F(CliProgramTest, PipesGetNoControlCodesAndTerminalsAProgressLine) {
  const std::string path = folder_.Write("f", std::string(1'000'000, 'x'));
  Program::Result piped = Run({"ingest", "m", path, "--document", "piped"});
  EXPECT_THAT(piped.output + piped.errors, AllOf(Not(HasSubstr("\x1b")), Not(HasSubstr("\r"))));
  Program::Result terminal =
      Run({"ingest", "m", path, "--document", "terminal"}, "", /*terminal=*/true);
  EXPECT_EQ(terminal.status, 0);
  EXPECT_THAT(terminal.output, AllOf(HasSubstr("\rterminal  ["), HasSubstr("of 1.0 MB"),
                                     HasSubstr("terminal: 1,000,000 bytes durable")));
}

TEST_F(CliProgramTest, InterruptedIngestSaysWhatIsDurable) {
  Program program({"ingest", "m", "-", "--document", "d"}, server_.address());
  program.WriteInput("ten bytes.");
  while (service().received_bytes() < 10) absl::SleepFor(absl::Milliseconds(1));
  program.Signal(SIGINT);
  Program::Result result = program.Wait();
  EXPECT_EQ(result.status, 130);
  EXPECT_THAT(result.errors, MatchesRegex("mneme: interrupted with [0-9]+ bytes of d durable; "
                                          "the same command goes on from there\n"));
}

TEST_F(CliProgramTest, InterruptEndsACallThatHangs) {
  service().HangCalls(true);
  for (int number : {SIGINT, SIGTERM}) {
    const int before = service().calls();
    Program program({"search", "m", "q"}, server_.address());
    while (service().calls() == before) absl::SleepFor(absl::Milliseconds(1));
    program.Signal(number);
    EXPECT_EQ(program.Wait().status, 128 + number);
  }
}

TEST_F(CliProgramTest, ADeletionThatIsNotWaitedForToTheEndIsToldAsDurable) {
  service().KeepDeletionsRunning();
  // The fake has no operations to wait for: the wait fails, the deletion does not.
  Program::Result result = Run({"delete", "m"});
  EXPECT_EQ(result.status, 1);
  EXPECT_THAT(result.errors,
              HasSubstr("the deletion of tenants/default/memories/m is durable, and what is left "
                        "of it goes as operations/forget-m1"));
  service().PutMemory(kMemory);
  result = Run({"delete", "m", "--json"});
  EXPECT_EQ(result.status, 1);
  EXPECT_EQ(json::parse(result.output)["operation"], "operations/forget-m1");
}

TEST_F(CliProgramTest, ADeletionWithoutAnAnswerIsToldAsUnknown) {
  service().HangCalls(true);
  const Program::Result result = Run({"delete", "m", "--timeout", "0.5"});
  EXPECT_EQ(result.status, 1);
  EXPECT_THAT(result.errors, AllOf(HasSubstr("whether tenants/default/memories/m is deleted is not "
                                             "known"),
                                   HasSubstr("--timeout has passed")));
  const Program::Result none = RunProgram({"delete", "m"}, "127.0.0.1:1");
  EXPECT_THAT(none.errors, AllOf(HasSubstr("no Mneme server answers"), Not(HasSubstr("known"))));
}

TEST_F(CliProgramTest, AnEmptyIngestSaysWhatItDid) {
  EXPECT_THAT(Run({"ingest", "m", "-", "--document", "d"}).output,
              HasSubstr("(no text came: the document is there, empty)"));
  service().PutDocument(DocumentName("d"), "some text");
  EXPECT_THAT(Run({"ingest", "m", "-", "--document", "d"}).output,
              HasSubstr("(no text came: the document is as it was)"));
}

TEST_F(CliProgramTest, SearchForPeople) {
  service().SetRetrieveResponse(TwoPassages());
  Program::Result result = Run({"search", "m", "What key?", "-k", "2", "--context", "64"});
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(result.output,
            " 1. book  bytes 1,000-1,250  weight 0.750  score 3.50\n"
            "    the pass key \\x1b]0;title\\x07 is 40917\n\n"
            " 2. book  bytes 0-0  weight 0.000  score 0.00\n"
            "    another\n");
  const v1::RetrieveRequest request = service().last_retrieve();
  EXPECT_THAT(request.memories(), ElementsAre(kMemory));
  EXPECT_EQ(request.question(), "What key?");
  EXPECT_EQ(request.k(), 2);
  EXPECT_EQ(request.context_bytes(), 64);
  EXPECT_FALSE(request.explain());
  EXPECT_FALSE(request.rerank());
}

TEST_F(CliProgramTest, SearchReranked) {
  v1::RetrieveResponse found = TwoPassages();
  found.mutable_passages(0)->set_rerank_score(-1.25);
  service().SetRetrieveResponse(found);
  Program::Result result = Run({"search", "m", "What key?", "--rerank"});
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(result.output,
            " 1. book  bytes 1,000-1,250  weight 0.750  score 3.50  rerank score -1.25\n"
            "    the pass key \\x1b]0;title\\x07 is 40917\n\n"
            " 2. book  bytes 0-0  weight 0.000  score 0.00\n"
            "    another\n");
  EXPECT_TRUE(service().last_retrieve().rerank());
  const json results =
      json::parse(Run({"search", "m", "What key?", "--rerank", "--json"}).output)["results"];
  EXPECT_EQ(results[0]["rerank_score"], -1.25);
  EXPECT_FALSE(results[1].contains("rerank_score"));
  EXPECT_THAT(Run({"search", "--help"}).output,
              AllOf(HasSubstr("--rerank"), HasSubstr("rerank_score")));
  EXPECT_THAT(Run({"search", "m", "q", "--rerank=yes"}).errors,
              HasSubstr("--rerank takes no value"));
}

TEST_F(CliProgramTest, SearchSaysHowManyCandidatesARerankHas) {
  service().SetRetrieveResponse(TwoPassages());
  ASSERT_EQ(Run({"search", "m", "q", "--rerank"}).status, 0);
  EXPECT_EQ(service().last_retrieve().rerank_candidates(), 0u) << "the server's own number";
  ASSERT_EQ(Run({"search", "m", "q", "--rerank", "--candidates", "128"}).status, 0);
  EXPECT_EQ(service().last_retrieve().rerank_candidates(), 128u);
  EXPECT_EQ(service().last_retrieve().k(), 8);
  ASSERT_EQ(Run({"search", "m", "q", "--rerank", "-k", "3", "--candidates=3"}).status, 0);
  EXPECT_EQ(service().last_retrieve().rerank_candidates(), 3u);

  const auto refused = [&](const std::vector<std::string>& arguments) {
    const Program::Result result = Run(arguments);
    EXPECT_EQ(result.status, 2);
    return result.errors;
  };
  EXPECT_THAT(refused({"search", "m", "q", "--candidates", "64"}),
              HasSubstr("--candidates says how many passages --rerank looks at; it needs "
                        "--rerank"));
  EXPECT_THAT(refused({"search", "m", "q", "--rerank", "--candidates", "7"}),
              HasSubstr("--candidates 7 is fewer than the 8 passages wanted (-k)"));
  EXPECT_THAT(refused({"search", "m", "q", "--rerank", "-k", "20", "--candidates", "19"}),
              HasSubstr("--candidates 19 is fewer than the 20 passages wanted (-k)"));
  for (const char* value : {"0", "-1", "many", "3000000000"}) {
    EXPECT_THAT(refused({"search", "m", "q", "--rerank", absl::StrCat("--candidates=", value)}),
                HasSubstr("--candidates"));
  }
  EXPECT_THAT(refused({"search", "m", "q", "--candidates", "64", "--rerank", "--as-of", "then"}),
              HasSubstr("--as-of"));
  EXPECT_THAT(refused({"ask", "m", "q", "--candidates", "64"}), HasSubstr("--candidates"));
  EXPECT_THAT(Run({"search", "--help"}).output, HasSubstr("--candidates N"));
}

TEST_F(CliProgramTest, SearchWithKeywords) {
  v1::RetrieveResponse found = TwoPassages();
  found.mutable_passages(0)->set_rerank_score(-1.25);
  found.mutable_passages(0)->set_keyword_score(4.5);
  service().SetRetrieveResponse(found);
  const Program::Result result = Run({"search", "m", "What key?", "--rerank", "--keywords"});
  EXPECT_EQ(result.status, 0);
  EXPECT_THAT(result.output, StartsWith(" 1. book  bytes 1,000-1,250  weight 0.750  score 3.50  "
                                        "rerank score -1.25  keyword score 4.50\n"));
  EXPECT_TRUE(service().last_retrieve().keywords());
  const json results =
      json::parse(Run({"search", "m", "q", "--keywords", "--rerank", "--json"}).output)["results"];
  EXPECT_EQ(results[0]["keyword_score"], 4.5);
  EXPECT_FALSE(results[1].contains("keyword_score"));
  ASSERT_EQ(Run({"search", "m", "q", "--rerank"}).status, 0);
  EXPECT_FALSE(service().last_retrieve().keywords());

  const Program::Result refused = Run({"search", "m", "q", "--keywords"});
  EXPECT_EQ(refused.status, 2);
  EXPECT_THAT(refused.errors, HasSubstr("it needs --rerank"));
  EXPECT_EQ(Run({"ask", "m", "q", "--keywords"}).status, 2);
  EXPECT_THAT(Run({"search", "--help"}).output,
              AllOf(HasSubstr("--keywords"), HasSubstr("keyword_score")));
}

TEST_F(CliProgramTest, SearchSaysWhatIsDamagedAndWhatWasNotThereYet) {
  v1::RetrieveResponse found = TwoPassages();
  found.set_damaged_passage_count(1);
  service().SetRetrieveResponse(found);
  Program::Result result = Run({"search", "m", "What key?"});
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(result.errors,
            "mneme: 1 passage fits and cannot be shown: the text is damaged on the server's disk "
            "(mneme documents says which document is damaged)\n");
  EXPECT_EQ(json::parse(Run({"search", "m", "What key?", "--json"}).output)["damaged_passages"], 1);

  found.clear_passages();
  found.set_damaged_passage_count(2);
  service().SetRetrieveResponse(found);
  result = Run({"search", "m", "What key?"});
  EXPECT_EQ(result.output, "nothing found: what fits cannot be shown\n");
  EXPECT_THAT(result.errors, StartsWith("mneme: 2 passages fit and cannot be shown"));

  service().SetRetrieveResponse({});
  result = Run({"search", "m", "What key?", "--as-of", "2020-01-01T00:00:00Z"});
  EXPECT_EQ(result.output, "nothing found: the memory held no text at 2020-01-01T00:00:00Z\n");
  EXPECT_EQ(result.errors, "");
  EXPECT_EQ(Run({"search", "m", "What key?"}).output,
            "nothing found: no text of the memory is visible yet\n");
}

TEST_F(CliProgramTest, SearchExplainedForPeople) {
  service().SetRetrieveResponse(TwoPassages());
  Program::Result result = Run({"search", "m", "What key?", "--explain"});
  EXPECT_THAT(result.output,
              AllOf(HasSubstr("    chosen by: What 0.50, key? 0.50\n"),
                    HasSubstr("    chosen by: no single word\n"),
                    HasSubstr("          #1    #2\n  What  0.50     .\n  key?  0.50     .\n")));
  EXPECT_TRUE(service().last_retrieve().explain());
}

TEST_F(CliProgramTest, SearchAsJson) {
  service().SetRetrieveResponse(TwoPassages());
  const json object = json::parse(
      Run({"search", "m,tenants/default/memories/n", "q", "--json", "--explain"}).output);
  ASSERT_EQ(object["results"].size(), 2u);
  EXPECT_THAT(KeysOf(object["results"][0]),
              ElementsAre("byte_begin", "byte_end", "chunk_index", "document", "memory", "name",
                          "score", "text", "weight"));
  EXPECT_EQ(object["results"][0]["document"], "book");
  EXPECT_EQ(object["results"][0]["text"], "the\n\npass   key \x1b]0;title\x07 is 40917");
  EXPECT_EQ(object["results"][0]["byte_end"], 1250);
  EXPECT_EQ(object["chunks_scanned"], 17);
  EXPECT_EQ(object["explanation"]["words"].size(), 2u);
  EXPECT_EQ(object["explanation"]["tokens"].size(), 3u);
  EXPECT_EQ(service().last_retrieve().memories_size(), 2);
}

TEST_F(CliProgramTest, AskStreamsTheAnswerAndNamesWhatItRead) {
  std::vector<v1::GenerateResponse> responses(3);
  responses[0].set_text(" 409");
  responses[0].set_token_count(1);
  *responses[0].add_passages() = TwoPassages().passages(1);
  *responses[0].add_passages() = TwoPassages().passages(0);
  responses[1].set_text("17");
  responses[1].set_token_count(1);
  *responses[1].add_passages() = TwoPassages().passages(0);
  responses[1].mutable_passages(0)->clear_text();
  responses[1].mutable_passages(0)->set_weight(0.9);
  responses[2].set_finish_reason(v1::GenerateResponse::STOP);
  service().SetGenerateResponses(responses);

  Program::Result result = Run({"ask", "m", "What key?"});
  EXPECT_EQ(result.status, 0);
  EXPECT_THAT(result.output,
              StartsWith("40917\n\nread from:\n 1. book  bytes 1,000-1,250  weight 0.825"));

  const json object = json::parse(Run({"ask", "m", "What key?", "--json"}).output);
  EXPECT_THAT(KeysOf(object), ElementsAre("answer", "damaged_passages", "finish_reason", "results",
                                          "timing", "tokens"));
  EXPECT_EQ(object["answer"], "40917");
  EXPECT_EQ(object["finish_reason"], "stop");
  EXPECT_EQ(object["tokens"], 2);
  ASSERT_EQ(object["results"].size(), 2u);
  EXPECT_EQ(object["results"][0]["weight"], 0.825);
  EXPECT_THAT(object["results"][0]["text"].get<std::string>(), HasSubstr("40917"));
}

TEST_F(CliProgramTest, AskSaysWhenNothingWasRead) {
  Program::Result result = Run({"ask", "m", "What key?"});
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(result.output, "(the network gave no answer)\n");
  EXPECT_EQ(result.errors,
            "mneme: no passage was read: the memory holds no text that can be found yet\n");

  service().PutDocument(DocumentName("d"), "some text");
  std::vector<v1::GenerateResponse> responses(1);
  responses[0].set_text("an answer");
  responses[0].set_token_count(2);
  service().SetGenerateResponses(responses);
  result = Run({"ask", "m", "What key?"});
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(result.output, "an answer\n");
  EXPECT_THAT(result.errors, StartsWith("mneme: no passage was read: no passage had weight"));

  result = Run({"ask", "m", "What key?", "--json"});
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(result.errors, "");
  EXPECT_EQ(json::parse(result.output)["results"], json::array());
  EXPECT_EQ(json::parse(result.output)["damaged_passages"], 0);

  responses[0].set_damaged_passage_count(1);
  service().SetGenerateResponses(responses);
  result = Run({"ask", "m", "What key?"});
  EXPECT_EQ(result.status, 0);
  EXPECT_EQ(result.output, "an answer\n");
  EXPECT_THAT(result.errors, StartsWith("mneme: 1 passage was read and cannot be shown: the text "
                                        "is damaged on the server's disk"));
  EXPECT_EQ(json::parse(Run({"ask", "m", "What key?", "--json"}).output)["damaged_passages"], 1);
}

TEST_F(CliProgramTest, StatusForPeople) {
  v1::GetStatusResponse status;
  status.set_backend("cpu");
  status.set_device("cpu, 2 threads");
  status.set_memory_count(1);
  status.set_document_count(1);
  status.set_durable_bytes(1234);
  service().SetStatusResponse(status);
  const std::string output = Run({"status"}).output;
  EXPECT_THAT(output, HasSubstr("runs on    cpu, 2 threads\n"));
  EXPECT_THAT(
      output,
      HasSubstr("holds      1 memory, 1 document, 1,234 bytes durable, 0 visible, 0 tokens, "
                "0 chunks\n"));
}

TEST_F(CliProgramTest, ShowOfAnEmptyRangeStillAsksTheServer) {
  service().PutDocument(DocumentName("d"), "text");
  Program::Result result = Run({"show", "m", "d", "--begin", "2", "--end", "2"});
  EXPECT_EQ(result.status, 0) << result.errors;
  EXPECT_EQ(result.output, "");
  EXPECT_EQ(Run({"show", "m", "none", "--begin", "2", "--end", "2"}).status, 1);
  EXPECT_EQ(Run({"show", "m", "d", "--begin", "5", "--end", "2"}).status, 2);
}

TEST_F(CliProgramTest, ShowGivesTheVeryBytesToAPipeAndHarmlessTextToATerminal) {
  const std::string text = "line one\nred \x1b[31m na\xc3\xafve\ttab";
  service().PutDocument(DocumentName("d"), text);
  EXPECT_EQ(Run({"show", "m", "d"}).output, text);
  EXPECT_EQ(Run({"show", "m", DocumentName("d"), "--begin", "5", "--end", "8"}).output, "one");
  EXPECT_EQ(json::parse(Run({"show", "m", "d", "--json"}).output)["text"], text);
  EXPECT_THAT(Run({"show", "m", "d"}, "", /*terminal=*/true).output,
              AllOf(HasSubstr("red \\x1b[31m na\xc3\xafve"), Not(HasSubstr("\x1b"))));
}

}  // namespace
}  // namespace mneme
