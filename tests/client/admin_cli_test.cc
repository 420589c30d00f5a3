// verify, repair, backup and top: the program against a real server.

#include <signal.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/program.h"
#include "tests/server/test_server.h"

namespace mneme {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class AdminCliTest : public ::testing::Test {
 protected:
  AdminCliTest() {
    ServerConfig config;
    config.server.backup_dir = folder_.path() + "/backups";
    server_ = TestServer::StartReal(config);
    EXPECT_EQ(Run({"create", "m"}).status, 0);
    EXPECT_EQ(RunProgram({"ingest", "m", "-", "--document", "d"}, server_->address(),
                         "The harbour master keeps the brass buttons in a tin.\n")
                  .status,
              0);
  }
  Program::Result Run(const std::vector<std::string>& arguments) {
    return RunProgram(arguments, server_->address());
  }

  TemporaryFolder folder_;
  std::unique_ptr<TestServer> server_;
};

TEST_F(AdminCliTest, VerifyAndRepairOfAHealthyServer) {
  for (const char* command : {"verify", "repair"}) {
    Program::Result result = Run({command});
    EXPECT_EQ(result.status, 0) << result.errors;
    EXPECT_THAT(result.output, HasSubstr("1 document read, 0 damaged, 0 healed\n"));
    result = Run({command, "m", "--json"});
    EXPECT_EQ(result.status, 0) << result.errors;
    const json report = json::parse(result.output);
    EXPECT_EQ(report["documents"], 1);
    EXPECT_EQ(report["found"], 0);
    EXPECT_EQ(report["read"]["text"]["count"], 1);
    EXPECT_TRUE(report["findings"].empty());
  }
  EXPECT_EQ(Run({"verify", "nowhere"}).status, 1);
  EXPECT_EQ(Run({"verify", "a", "b"}).status, 2);
  EXPECT_THAT(Run({"verify", "--help"}).output, HasSubstr("mneme verify [M]"));
}

TEST_F(AdminCliTest, VerifyNamesDamageAndEndsWithOne) {
  const std::string data_dir = folder_.path() + "/damaged";
  std::string table;
  {
    auto server = TestServer::StartReal({}, data_dir);
    ASSERT_EQ(RunProgram({"create", "m"}, server->address()).status, 0);
    ASSERT_EQ(RunProgram({"ingest", "m", "-", "--document", "d"}, server->address(),
                         std::string(5000, 'x'))
                  .status,
              0);
  }
  {
    // The log of the last run becomes tables.
    auto server = TestServer::StartReal({}, data_dir);
  }
  for (const auto& entry : std::filesystem::directory_iterator(data_dir + "/rocksdb")) {
    if (entry.path().extension() == ".sst") table = std::max(table, entry.path().string());
  }
  ASSERT_NE(table, "");
  auto server = TestServer::StartReal({}, data_dir);
  {
    // In the footer of a file that is open already.
    std::fstream file(table, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(-1, std::ios::end);
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(-1, std::ios::end);
    file.put(byte);
  }
  Program::Result result = RunProgram({"verify"}, server->address());
  EXPECT_EQ(result.status, 1);
  EXPECT_THAT(result.output, HasSubstr("DAMAGED file 0"));
  EXPECT_THAT(result.errors, HasSubstr("1 thing is damaged"));
  // What can be read of it is written anew.
  result = RunProgram({"repair"}, server->address());
  EXPECT_EQ(result.status, 0) << result.output << result.errors;
  EXPECT_THAT(result.output, HasSubstr("healed  file 0"));
  EXPECT_EQ(RunProgram({"verify"}, server->address()).status, 0);
}

TEST_F(AdminCliTest, BackupsAreMadeListedAndDeleted) {
  EXPECT_THAT(Run({"backup", "--list"}).output, HasSubstr("no backups"));
  Program::Result result = Run({"backup"});
  EXPECT_EQ(result.status, 0) << result.errors;
  EXPECT_THAT(result.output, StartsWith("backup 1: 1 document"));
  result = Run({"backup", "--json"});
  EXPECT_EQ(json::parse(result.output)["id"], 2);
  const json list = json::parse(Run({"backup", "--list", "--json"}).output);
  ASSERT_EQ(list["backups"].size(), 2u);
  EXPECT_EQ(list["backups"][1]["documents"], 1);
  EXPECT_THAT(Run({"backup", "--list"}).output, HasSubstr("/data\n"));
  result = Run({"backup", "--verify"});
  EXPECT_EQ(result.status, 0) << result.errors;
  EXPECT_THAT(result.output, AllOf(HasSubstr("1  whole, "), HasSubstr("2  whole, ")));
  EXPECT_THAT(Run({"backup", "--verify", "2"}).output, StartsWith("2  whole, "));
  EXPECT_EQ(json::parse(Run({"backup", "--verify", "--json"}).output)["backups"].size(), 2u);
  EXPECT_EQ(Run({"backup", "--verify", "7"}).status, 1);
  EXPECT_EQ(Run({"backup", "--verify", "x"}).status, 2);
  EXPECT_EQ(Run({"backup", "1"}).status, 2);
  EXPECT_EQ(Run({"backup", "--delete", "1"}).output, "deleted backup 1\n");
  EXPECT_EQ(Run({"backup", "--delete", "1"}).status, 1);
  EXPECT_EQ(Run({"backup", "--delete", "1", "--list"}).status, 2);
}

TEST_F(AdminCliTest, TopShowsOneStateWithoutATerminalAndRefreshesOnOne) {
  Program::Result result = Run({"top"});
  EXPECT_EQ(result.status, 0) << result.errors;
  EXPECT_THAT(result.output, AllOf(HasSubstr("host"), HasSubstr("disk"), HasSubstr("queues"),
                                   HasSubstr("CreateMemory"), Not(HasSubstr("\x1b"))));
  result = Run({"top", "--json"});
  const json activity = json::parse(result.output);
  EXPECT_TRUE(activity["samples"].contains("mneme_documents"));
  EXPECT_FALSE(activity["slow_requests"].empty());

  Program live({"top", "--interval", "0.1"}, server_->address(), /*terminal=*/true);
  EXPECT_TRUE(live.AwaitOutput("rates"));  // of the second screen
  live.Signal(SIGINT);
  result = live.Wait();
  EXPECT_EQ(result.status, 0) << result.output;
  EXPECT_THAT(result.output, AllOf(HasSubstr("\x1b[?1049h"), HasSubstr("rates")));
  // The terminal as it was: the cursor, then the first screen.
  EXPECT_THAT(result.output, ::testing::EndsWith("\x1b[?25h\x1b[?1049l"));
}

}  // namespace
}  // namespace mneme
