// The program from outside: flags, errors, signals, exit status.

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "memory_store/backup_directory.h"
#include "memory_store/rocksdb/rocksdb_chunk_store.h"
#include "mneme/v1/mneme.grpc.pb.h"
#include "tests/server/child_program.h"
#include "tests/server/http.h"
#include "tests/server/test_server.h"

namespace mneme {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// One line on stderr that names the program, and the exit status.
void ExpectFailure(const ChildProgram::Result& result, int status, const std::string& part) {
  EXPECT_EQ(result.status, status) << result.errors;
  EXPECT_EQ(result.output, "");
  std::string last;
  int lines = 0;
  for (absl::string_view line : absl::StrSplit(result.errors, '\n', absl::SkipEmpty())) {
    if (absl::StartsWith(line, "mneme-server: ")) ++lines;
    last = std::string(line);
  }
  EXPECT_EQ(lines, 1) << result.errors;
  EXPECT_THAT(last, StartsWith("mneme-server: "));
  EXPECT_THAT(last, HasSubstr(part));
}

class ProgramTest : public ::testing::Test {
 protected:
  // Flags of a server on free ports, with its data in the test's folder.
  std::vector<std::string> Flags(std::vector<std::string> more = {}) {
    std::vector<std::string> flags = {"--data-dir", data_dir(),    "--listen", "127.0.0.1:0",
                                      "--http",     "127.0.0.1:0", "--device", "cpu"};
    flags.insert(flags.end(), more.begin(), more.end());
    return flags;
  }
  std::string data_dir() const { return folder_.path() + "/data"; }

  TemporaryFolder folder_;
};

TEST_F(ProgramTest, VersionNamesVersionCommitAndBackends) {
  const auto result = RunServer({"--version"});
  EXPECT_EQ(result.status, 0);
  EXPECT_THAT(result.output, ::testing::MatchesRegex(
                                 "mneme-server [0-9.]+ commit [0-9a-z-]+ backends cpu[a-z,]*\n"));
}

TEST_F(ProgramTest, HelpGoesToStandardOutput) {
  const auto result = RunServer({"--help"});
  EXPECT_EQ(result.status, 0);
  EXPECT_THAT(result.output, HasSubstr("--data-dir"));
  EXPECT_EQ(result.errors, "");
}

TEST_F(ProgramTest, PrintedConfigurationIsTakenBack) {
  const auto first = RunServer(Flags({"--print-config"}), {"MNEME_SERVER_READER_THREADS=5"});
  ASSERT_EQ(first.status, 0) << first.errors;
  EXPECT_THAT(first.output, HasSubstr("reader_threads: 5"));
  const std::string path = folder_.path() + "/config.yaml";
  std::ofstream(path) << first.output;
  const auto second = RunServer({"--config", path, "--print-config"});
  EXPECT_EQ(second.output, first.output);
}

TEST_F(ProgramTest, UsageErrorsEndWithStatusTwo) {
  ExpectFailure(RunServer({"--prot", "1"}), 2, "--prot");
  ExpectFailure(RunServer({"--listen", "nowhere"}), 2, "\"nowhere\"");
  ExpectFailure(RunServer({"--set", "server.prot=1"}), 2, "server.prot");
  ExpectFailure(RunServer({}, {"MNEME_SERVER_PROT=1"}), 2, "MNEME_SERVER_PROT");
  ExpectFailure(RunServer({"--config", folder_.path() + "/none.yaml"}), 2, "none.yaml");
}

TEST_F(ProgramTest, ItServesAndDrainsOnSigterm) {
  const std::string port_file = folder_.path() + "/ports";
  ChildProgram server("mneme-server",
                      Flags({"--set", absl::StrCat("server.port_file=", port_file)}));
  ASSERT_TRUE(server.AwaitError(" server ready"));
  const std::string address = server.LogValue("grpc");
  std::ifstream file(port_file);
  std::ostringstream ports;
  ports << file.rdbuf();
  EXPECT_EQ(ports.str(), absl::StrCat("grpc=", address, "\nhttp=", server.LogValue("http"), "\n"));

  const auto stub =
      v1::MemoryService::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  v1::GetStatusResponse status;
  ASSERT_TRUE(stub->GetStatus(&context, v1::GetStatusRequest(), &status).ok());
  EXPECT_EQ(status.backend(), "cpu");
  EXPECT_GT(status.parameter_count(), 0);
  EXPECT_EQ(status.segment_tokens(), 4096);
  EXPECT_GE(status.tiers_size(), 2);

  server.Signal(SIGTERM);
  const auto result = server.Wait();
  EXPECT_EQ(result.status, 0) << result.errors;
  for (const char* line :
       {" starting version=", " listening grpc=", " draining signal=SIGTERM", " server stopped"}) {
    EXPECT_THAT(result.errors, HasSubstr(line));
  }
}

TEST_F(ProgramTest, ASecondSignalEndsItAtOnce) {
  ChildProgram server("mneme-server", Flags());
  ASSERT_TRUE(server.AwaitError(" server ready"));
  // A question that waits for text that never comes holds up the drain.
  const auto stub = v1::MemoryService::NewStub(
      grpc::CreateChannel(server.LogValue("grpc"), grpc::InsecureChannelCredentials()));
  {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    v1::CreateMemoryRequest create;
    create.set_parent("tenants/default");
    create.set_memory_id("books");
    v1::Memory memory;
    ASSERT_TRUE(stub->CreateMemory(&context, create, &memory).ok());
  }
  {
    grpc::ClientContext context;
    v1::IngestRequest text;
    text.set_document("tenants/default/memories/books/documents/a");
    text.set_text("some text");
    auto stream = stub->Ingest(&context);
    ASSERT_TRUE(stream->Write(text));
    stream->WritesDone();
    v1::IngestResponse ack;
    while (stream->Read(&ack)) {
    }
    ASSERT_TRUE(stream->Finish().ok());
  }
  std::thread caller([&] {
    grpc::ClientContext context;
    v1::RetrieveRequest request;
    request.add_memories("tenants/default/memories/books");
    request.set_question("who?");
    auto* barrier = request.add_barriers();
    barrier->set_document("tenants/default/memories/books/documents/a");
    barrier->set_visible_bytes(1'000'000);
    v1::RetrieveResponse response;
    EXPECT_FALSE(stub->Retrieve(&context, request, &response).ok());
  });
  const std::string in_flight = "mneme_requests_in_flight{method=\"Retrieve\"} 1";
  while (!absl::StrContains(Http(server.LogValue("http"), "GET /metrics"), in_flight)) {
    std::this_thread::yield();
  }
  server.Signal(SIGTERM);
  ASSERT_TRUE(server.AwaitError(" draining signal=SIGTERM"));
  server.Signal(SIGTERM);
  const auto result = server.Wait();
  EXPECT_EQ(result.status, 128 + SIGTERM);
  caller.join();
}

TEST_F(ProgramTest, PortsInUseAreOneClearLine) {
  ChildProgram server("mneme-server", Flags());
  ASSERT_TRUE(server.AwaitError(" listening "));
  const std::string grpc_address = server.LogValue("grpc"), http_address = server.LogValue("http");
  const std::string other = folder_.path() + "/other";
  ExpectFailure(RunServer({"--data-dir", other, "--listen", grpc_address, "--http", "off"}), 1,
                absl::StrCat("cannot listen on ", grpc_address, ": Address already in use"));
  ExpectFailure(RunServer({"--data-dir", other, "--listen", "127.0.0.1:0", "--http", http_address}),
                1, absl::StrCat("cannot listen on ", http_address, ": Address already in use"));
  ExpectFailure(RunServer({"--data-dir", other, "--listen", "192.0.2.1:0", "--http", "off"}), 1,
                "192.0.2.1");
}

TEST_F(ProgramTest, ADataDirectoryInUseIsOneClearLine) {
  ChildProgram server("mneme-server", Flags());
  ASSERT_TRUE(server.AwaitError(" listening "));
  ExpectFailure(RunServer(Flags()), 1, "in use by another server");
}

TEST_F(ProgramTest, ADataDirectoryOfANewerFormatIsOneClearLine) {
  {
    ChildProgram server("mneme-server", Flags());
    ASSERT_TRUE(server.AwaitError(" listening "));
    server.Signal(SIGINT);
    ASSERT_EQ(server.Wait().status, 0);
  }
  // The file that names the format: its number goes up.
  bool changed = false;
  for (const auto& entry : fs::directory_iterator(data_dir())) {
    if (!absl::StrContains(entry.path().filename().string(), "FORMAT")) continue;
    std::ifstream in(entry.path());
    std::ostringstream contents;
    contents << in.rdbuf();
    std::string text = contents.str();
    const size_t digit = text.find_last_of("0123456789");
    ASSERT_NE(digit, std::string::npos);
    text.replace(digit, 1, "99");
    std::ofstream(entry.path()) << text;
    changed = true;
  }
  ASSERT_TRUE(changed) << "no format file in " << data_dir();
  ExpectFailure(RunServer(Flags()), 1, "use a newer program");
}

TEST_F(ProgramTest, ADataDirectoryThatIsNoneIsOneClearLine) {
  std::ofstream(folder_.path() + "/file") << "not a folder";
  ExpectFailure(RunServer({"--data-dir", folder_.path() + "/file", "--listen", "127.0.0.1:0",
                           "--http", "off"}),
                1, folder_.path() + "/file");
}

// A copy of the shipped bundle, to be spoiled.
class BundleTest : public ProgramTest {
 protected:
  BundleTest() : bundle_(folder_.path() + "/bundle") {
    fs::copy(MNEME_SOURCE_DIR "/models/mneme-small", bundle_, fs::copy_options::recursive);
  }
  void ExpectRefusal(const std::string& part) {
    ExpectFailure(RunServer(Flags({"--model", bundle_})), 1, part);
  }

  const std::string bundle_;
};

TEST_F(BundleTest, ATruncatedBundleIsOneClearLine) {
  fs::resize_file(bundle_ + "/model.safetensors", 1'000'000);
  ExpectRefusal("model.safetensors");
}

TEST_F(BundleTest, AWrongShapedBundleIsOneClearLine) {
  std::ifstream in(bundle_ + "/config.json");
  std::ostringstream contents;
  contents << in.rdbuf();
  std::string config = contents.str();
  const std::string field = "\"landmark_dim\": 256";
  ASSERT_NE(config.find(field), std::string::npos);
  config.replace(config.find(field), field.size(), "\"landmark_dim\": 128");
  std::ofstream(bundle_ + "/config.json") << config;
  ExpectRefusal("128");
}

TEST_F(BundleTest, AMissingFileIsOneClearLine) {
  fs::remove(bundle_ + "/tokenizer.model");
  ExpectRefusal("tokenizer.model");
}

TEST_F(ProgramTest, ADeviceThatIsNotThereIsOneClearLine) {
  // Whether the build lacks the backend or the machine the GPU.
  if (fs::exists("/dev/nvidia0")) GTEST_SKIP() << "this machine has a GPU";
  ExpectFailure(RunServer(Flags({"--device", "cuda"})), 1, "cuda");
}

TEST_F(ProgramTest, VerifyOnlyReadsADirectoryThatNoServerUsesAndWritesNothing) {
  ExpectFailure(RunServer(Flags({"--verify-only"})), 1, "is not a Mneme data directory");
  EXPECT_FALSE(fs::exists(data_dir()));
  { auto server = TestServer::StartReal({}, data_dir()); }
  const auto files = [&] {
    std::vector<std::string> names;
    for (const auto& entry : fs::recursive_directory_iterator(data_dir())) {
      // The lock holds the number of the process, whose digits may be more next time.
      if (!entry.is_regular_file() || entry.path().filename() == "LOCK") continue;
      names.push_back(absl::StrCat(entry.path().string(), " ", entry.file_size()));
    }
    std::sort(names.begin(), names.end());
    return names;
  };
  const std::vector<std::string> before = files();
  const auto result = RunServer(Flags({"--verify-only"}));
  EXPECT_EQ(result.status, 0) << result.errors;
  EXPECT_THAT(result.output, HasSubstr("0 damaged"));
  EXPECT_EQ(files(), before);
  auto server = TestServer::StartReal({}, data_dir());
  ExpectFailure(RunServer(Flags({"--verify-only"})), 1, "in use");
}

TEST_F(ProgramTest, RestoreFromMakesADataDirectoryAndSaysWhatIsWrong) {
  const std::string backups = folder_.path() + "/backups";
  ExpectFailure(RunServer(Flags({"--restore-from", backups})), 1, "no FORMAT file");
  {
    auto directory = BackupDirectory::Open(backups).value();
    auto server = TestServer::StartReal({}, folder_.path() + "/source");
  }
  ExpectFailure(RunServer(Flags({"--restore-from", backups})), 1, "no backup in");
  {
    RocksDbOptions options;
    options.data_dir = folder_.path() + "/source";
    Metrics metrics;
    auto store = OpenRocksDbChunkStore(options, metrics).value();
    const auto files = store->Files(ChunkStore::FilesFor::kBackup).value();
    auto directory = BackupDirectory::Open(backups).value();
    const auto step = [](const BackupProgress&) { return absl::OkStatus(); };
    ASSERT_TRUE(directory->Create(files, {}, step).ok());
  }
  ExpectFailure(RunServer(Flags({"--restore-from", backups + ":7"})), 1, "no backup 7");
  const auto result = RunServer(Flags({"--restore-from", backups + ":1"}));
  EXPECT_EQ(result.status, 0) << result.errors;
  EXPECT_THAT(result.output, StartsWith("restored backup 1 of "));
  ExpectFailure(RunServer(Flags({"--restore-from", backups})), 1, "into an empty directory");
  EXPECT_EQ(RunServer(Flags({"--verify-only"})).status, 0);
}

}  // namespace
}  // namespace mneme
