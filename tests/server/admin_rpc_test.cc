// mneme.v1.AdminService over a loopback channel: checks and backups as operations, and what goes
// on.

#include <atomic>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/barrier.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "client/admin_client.h"
#include "client/client.h"
#include "client/rpc_error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mneme/v1/admin.grpc.pb.h"
#include "tests/server/fake_engine.h"
#include "tests/server/rpc_matchers.h"
#include "tests/server/test_server.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;
using Step = std::function<absl::Status(const StoreCheckReport&)>;

class AdminRpcTest : public ::testing::Test {
 protected:
  AdminRpcTest() { Start(); }

  void Start() {
    ServerOptions options;
    options.backup_dir = folder_.path() + "/backups";
    server_ = TestServer::Start(engine_, options);
    stub_ = v1::AdminService::NewStub(server_->NewChannel());
    admin_ = std::make_unique<AdminClient>(server_->NewChannel());
  }

  TemporaryFolder folder_;
  FakeEngine engine_;
  std::unique_ptr<TestServer> server_;
  std::unique_ptr<v1::AdminService::Stub> stub_;
  std::unique_ptr<AdminClient> admin_;
};

TEST_F(AdminRpcTest, VerifyTellsProgressAndWhatItFound) {
  engine_.check_store = [](absl::string_view memory, bool heal,
                           const Step& step) -> absl::StatusOr<StoreCheckReport> {
    EXPECT_EQ(memory, "");
    StoreCheckReport report;
    report.records[static_cast<size_t>(Table::kText)] = {7, 7000};
    report.files = {3, 3000};
    report.documents = 5;
    const absl::Status status = step(report);
    if (!status.ok()) return status;
    StoreFinding finding;
    finding.kind = StoreFinding::Kind::kText;
    finding.tenant = "default";
    finding.memory_id = "m";
    finding.document_id = "d";
    finding.byte_begin = 10;
    finding.byte_end = 20;
    finding.what = "crc 1, stored 2";
    finding.healed = heal;
    report.findings.push_back(finding);
    report.found[static_cast<size_t>(finding.kind)] = 1;
    report.healed[static_cast<size_t>(finding.kind)] = heal;
    return report;
  };
  for (const bool heal : {false, true}) {
    int64_t bytes_told = -1;
    const absl::StatusOr<v1::CheckReport> report = admin_->Check(
        "", heal, [&](const v1::CheckProgress& progress) { bytes_told = progress.bytes_read(); });
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(bytes_told, 10000);
    EXPECT_EQ(report->documents(), 5);
    EXPECT_EQ(report->found(), 1);
    EXPECT_EQ(report->healed(), heal ? 1 : 0);
    ASSERT_EQ(report->findings_size(), 1);
    EXPECT_EQ(report->findings(0).kind(), v1::Finding::TEXT);
    EXPECT_EQ(report->findings(0).document(), "tenants/default/memories/m/documents/d");
    EXPECT_EQ(report->findings(0).byte_begin(), 10);
    EXPECT_EQ(report->findings(0).byte_end(), 20);
    EXPECT_EQ(report->findings(0).healed(), heal);
    ASSERT_EQ(report->read_size(), 5);
    EXPECT_EQ(report->read(0).what(), "files");
    EXPECT_EQ(report->read(2).what(), "text");
    EXPECT_EQ(report->read(2).count(), 7);
  }
}

TEST_F(AdminRpcTest, VerifyOfAMemoryNeedsThatMemory) {
  const auto verify = [&](const std::string& memory) {
    grpc::ClientContext context;
    v1::VerifyRequest request;
    request.set_memory(memory);
    google::longrunning::Operation operation;
    return stub_->Verify(&context, request, &operation);
  };
  ExpectFieldError(verify("nonsense"), "memory", "nonsense");
  EXPECT_EQ(verify("tenants/default/memories/m").error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(verify("tenants/other/memories/m").error_code(), grpc::StatusCode::NOT_FOUND);
  ASSERT_TRUE(engine_.CreateMemory("tenants/default/memories/m", "").ok());
  std::string asked;
  engine_.check_store = [&](absl::string_view memory, bool, const Step&) {
    asked = std::string(memory);
    return StoreCheckReport();
  };
  EXPECT_TRUE(admin_->Check("tenants/default/memories/m", false, nullptr).ok());
  EXPECT_EQ(asked, "tenants/default/memories/m");
}

TEST_F(AdminRpcTest, CheckEndsWhenItIsCancelledAndWithItsOwnErrors) {
  engine_.check_store = [](absl::string_view, bool,
                           const Step&) -> absl::StatusOr<StoreCheckReport> {
    return absl::AbortedError("another check of the store runs");
  };
  EXPECT_TRUE(absl::IsAborted(admin_->Check("", false, nullptr).status()));

  absl::Notification ended;
  absl::Status seen;
  engine_.check_store = [&](absl::string_view, bool,
                            const Step& step) -> absl::StatusOr<StoreCheckReport> {
    absl::Status status;
    while (status.ok()) {
      absl::SleepFor(absl::Milliseconds(1));
      status = step(StoreCheckReport());
    }
    seen = status;
    ended.Notify();
    return status;
  };
  // Before it has a name for the client, there is nothing to cancel.
  Cancellation cancellation;
  const auto cancel = [&](const v1::CheckProgress&) { cancellation.Cancel(); };
  EXPECT_FALSE(admin_->Check("", false, cancel, {.cancellation = &cancellation}).ok());
  ended.WaitForNotification();
  EXPECT_TRUE(absl::IsCancelled(seen)) << seen;
}

TEST_F(AdminRpcTest, AsManyOperationsRunAsThereAreThreadsAndTheOthersWait) {
  ServerOptions options;
  options.operation_threads = 3;
  absl::Barrier* const all_run = new absl::Barrier(4);
  absl::Notification go_on;
  std::atomic<int> begun = 0;
  engine_.check_store = [&](absl::string_view, bool,
                            const Step&) -> absl::StatusOr<StoreCheckReport> {
    if (++begun <= 3 && all_run->Block()) delete all_run;
    go_on.WaitForNotification();
    return StoreCheckReport();
  };
  const auto server = TestServer::Start(engine_, options);
  const auto stub = v1::AdminService::NewStub(server->NewChannel());
  for (int i = 0; i < 100; ++i) {
    grpc::ClientContext context;
    google::longrunning::Operation operation;
    EXPECT_TRUE(stub->Verify(&context, v1::VerifyRequest(), &operation).ok());
  }
  if (all_run->Block()) delete all_run;
  EXPECT_EQ(begun, 3);
  go_on.Notify();
}

TEST_F(AdminRpcTest, BackupsAreMadeListedAndDeleted) {
  EXPECT_EQ(admin_->ListBackups()->backups_size(), 0);
  const absl::StatusOr<v1::Backup> backup = admin_->CreateBackup(nullptr);
  ASSERT_TRUE(backup.ok()) << backup.status();
  EXPECT_EQ(backup->id(), 1);
  EXPECT_FALSE(backup->version().empty());
  EXPECT_EQ(admin_->CreateBackup(nullptr)->id(), 2);
  EXPECT_EQ(admin_->ListBackups()->backups_size(), 2);
  EXPECT_FALSE(backup->store().empty());
  EXPECT_THAT(server_->metrics().Expose(), HasSubstr("\nmneme_backups_total 2\n"));
  EXPECT_EQ(admin_->VerifyBackups(0, nullptr)->backups_size(), 2);
  EXPECT_EQ(admin_->VerifyBackups(2, nullptr)->backups(0).backup().id(), 2);
  EXPECT_EQ(admin_->VerifyBackups(0, nullptr)->backups(0).damaged_files_size(), 0);
  EXPECT_TRUE(absl::IsNotFound(admin_->VerifyBackups(3, nullptr).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(admin_->VerifyBackups(-1, nullptr).status()));
  EXPECT_TRUE(admin_->DeleteBackup(1).ok());
  EXPECT_EQ(admin_->ListBackups()->backups(0).id(), 2);
  EXPECT_TRUE(absl::IsNotFound(admin_->DeleteBackup(1)));
  EXPECT_TRUE(absl::IsInvalidArgument(admin_->DeleteBackup(-1)));
}

TEST_F(AdminRpcTest, BackupDirectoryInUseOrOfSomethingElseIsAnError) {
  auto held = BackupDirectory::Open(folder_.path() + "/backups").value();
  EXPECT_TRUE(absl::IsFailedPrecondition(admin_->CreateBackup(nullptr).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(admin_->DeleteBackup(1)));
  held.reset();
  std::filesystem::remove_all(folder_.path() + "/backups");
  std::filesystem::create_directory(folder_.path() + "/backups");
  std::ofstream(folder_.path() + "/backups/precious") << "data";
  EXPECT_TRUE(absl::IsFailedPrecondition(admin_->CreateBackup(nullptr).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(admin_->ListBackups().status()));
  EXPECT_THAT(server_->metrics().Expose(), HasSubstr("\nmneme_backup_failures_total 2\n"));
}

TEST_F(AdminRpcTest, WithoutABackupDirectoryThereAreNoBackups) {
  const auto server = TestServer::Start(engine_);
  const auto stub = v1::AdminService::NewStub(server->NewChannel());
  grpc::ClientContext context;
  google::longrunning::Operation operation;
  ExpectError(stub->CreateBackup(&context, v1::CreateBackupRequest(), &operation),
              grpc::StatusCode::FAILED_PRECONDITION, "store.backup_dir", "NO_BACKUP_DIRECTORY");
}

TEST_F(AdminRpcTest, ActivityShowsAnOverlongNameInPart) {
  Client client({.address = server_->address()});
  std::string name = "x";
  for (int i = 0; i < 1'000'000; ++i) name += "\u00e4";
  v1::ReadDocumentRequest read;
  read.set_name(name);
  EXPECT_TRUE(absl::IsInvalidArgument(client.GetMemory(name).status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(client.ReadDocument(read, [](absl::string_view) { return true; })));
  const absl::StatusOr<v1::Activity> activity = admin_->GetActivity(100);
  ASSERT_TRUE(activity.ok()) << activity.status();
  int seen = 0;
  for (const auto& slow : activity->slow_requests()) {
    if (slow.method() != "GetMemory" && slow.method() != "ReadDocument") continue;
    ++seen;
    EXPECT_EQ(slow.resource(), name.substr(0, 511)) << slow.method();
  }
  EXPECT_EQ(seen, 2);
}

TEST_F(AdminRpcTest, ActivityHasSamplesAndTheSlowestRequestsFirst) {
  Client client({.address = server_->address()});
  v1::CreateMemoryRequest create;
  create.set_parent("tenants/default");
  create.set_memory_id("slow");
  ASSERT_TRUE(client.CreateMemory(create).ok());
  engine_.on_get_memory = [] { absl::SleepFor(absl::Milliseconds(50)); };
  ASSERT_TRUE(client.GetMemory("tenants/default/memories/slow").ok());
  ASSERT_FALSE(client.GetMemory("tenants/default/memories/none").ok());
  EXPECT_EQ(admin_->GetActivity(2)->slow_requests_size(), 2);
  // All of them: others may be slower on a busy machine.
  const absl::StatusOr<v1::Activity> activity = admin_->GetActivity(100);
  ASSERT_TRUE(activity.ok()) << activity.status();
  int slow_gets = 0;
  double seconds_before = std::numeric_limits<double>::infinity();
  for (const auto& slow : activity->slow_requests()) {
    EXPECT_LE(slow.seconds(), std::exchange(seconds_before, slow.seconds()));
    if (slow.method() != "GetMemory") continue;
    ++slow_gets;
    EXPECT_GE(slow.seconds(), 0.05);
    EXPECT_EQ(slow.code(), slow.resource() == "tenants/default/memories/slow" ? "OK" : "NOT_FOUND");
  }
  EXPECT_EQ(slow_gets, 2);
  bool found = false;
  for (const auto& sample : activity->samples()) {
    found |= sample.series() == "mneme_requests_total{code=\"OK\",method=\"CreateMemory\"}" &&
             sample.value() == 1;
  }
  EXPECT_TRUE(found);
  EXPECT_TRUE(absl::IsInvalidArgument(admin_->GetActivity(-1).status()));
}

TEST(SlowRequestsTest, KeepsTheSlowestOfTwoWindowsAndNoMore) {
  SlowRequests slow;
  const absl::Time begin = absl::FromUnixSeconds(1'700'000'000);
  for (int i = 0; i < 300; ++i) {
    slow.Add({.method = "A", .code = "OK", .end = begin, .took = absl::Seconds(i)});
  }
  auto list = slow.List(1000, begin);
  ASSERT_EQ(list.size(), SlowRequests::kKept);
  EXPECT_EQ(list.front().took, absl::Seconds(299));
  EXPECT_EQ(list.back().took, absl::Seconds(200));
  const absl::Time later = begin + SlowRequests::kWindow;
  slow.Add({.method = "B", .code = "OK", .end = later, .took = absl::Seconds(250)});
  list = slow.List(50, later);
  ASSERT_EQ(list.size(), 50u);
  EXPECT_EQ(list[49].took, absl::Seconds(250));
  // What is old goes, with requests or without.
  EXPECT_EQ(slow.List(10, later + 3 * SlowRequests::kWindow).size(), 0u);
  slow.Add({.method = "C", .code = "OK", .end = later + 5 * SlowRequests::kWindow});
  EXPECT_EQ(slow.List(1000, later + 5 * SlowRequests::kWindow).size(), 1u);
}

// The whole way: text in, damage, verify, repair, backup, restore, over the real stack.
TEST(AdminEndToEndTest, DamageIsFoundAndMendedAndABackupBringsAllBack) {
  TemporaryFolder folder;
  ServerConfig config;
  config.server.backup_dir = folder.path() + "/backups";
  const std::string memory = "tenants/default/memories/m";
  std::string text;
  for (int i = 0; i < 200; ++i) absl::StrAppend(&text, "Day ", i, ": wind from the west.\n");
  {
    auto server = TestServer::StartReal(config, folder.path() + "/data");
    Client client({.address = server->address()});
    AdminClient admin(server->NewChannel());
    v1::CreateMemoryRequest create;
    create.set_parent("tenants/default");
    create.set_memory_id("m");
    ASSERT_TRUE(client.CreateMemory(create).ok());
    StringSource source(text);
    ASSERT_TRUE(client.Ingest({.document = memory + "/documents/d", .wait_visible = true}, source)
                    .status.ok());
    const absl::StatusOr<v1::CheckReport> report = admin.Check("", false, nullptr);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->found(), 0);
    EXPECT_EQ(report->documents(), 1);
    EXPECT_TRUE(admin.Check(memory, true, nullptr).ok());
    const absl::StatusOr<v1::Backup> backup = admin.CreateBackup(nullptr);
    ASSERT_TRUE(backup.ok()) << backup.status();
    EXPECT_EQ(backup->durable_bytes(), static_cast<int64_t>(text.size()));
    ASSERT_TRUE(client.DeleteDocument(memory + "/documents/d").ok());
    EXPECT_TRUE(admin.CreateBackup(nullptr).ok());
  }
  const auto restored =
      BackupDirectory::Restore(config.server.backup_dir, {.id = 1}, folder.path() + "/restored",
                               [](const BackupProgress&) { return absl::OkStatus(); });
  ASSERT_TRUE(restored.ok()) << restored.status();
  auto server = TestServer::StartReal(config, folder.path() + "/restored");
  Client client({.address = server->address()});
  std::string read;
  v1::ReadDocumentRequest request;
  request.set_name(memory + "/documents/d");
  ASSERT_TRUE(client
                  .ReadDocument(request,
                                [&](absl::string_view piece) {
                                  absl::StrAppend(&read, piece);
                                  return true;
                                })
                  .ok());
  EXPECT_EQ(read, text);
  EXPECT_EQ(client.GetDocument(request.name())->visible_bytes(), static_cast<int64_t>(text.size()));
}

}  // namespace
}  // namespace mneme
