// kill -9 of the real server, at random moments and at named points of its code, while clients
// stream documents, resume, delete and let them expire, memories come, change and go, backups are
// made and questions asked, against a model of what was acked: every acked byte is there, every
// document equals its source, no chunk is missing or doubled, nothing that was deleted comes back,
// in the end no file of the data directory has a word of it, and the last backups hold what had
// been acked when they began.
//
// CRASH_KILLS sets the number of kills (default 6, so that the suite stays quick), CRASH_SEED the
// random moments, CRASH_MODEL a bundle (default: a tiny one with random weights, so that time goes
// into storing and not into computing).

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/bundle.h"
#include "tests/crash/actors.h"
#include "tests/crash/checks.h"
#include "tests/crash/crash_status.h"
#include "tests/crash/server_process.h"
#include "tests/memory_store/file_search.h"
#include "tests/model/random_bundle.h"

namespace mneme {
namespace {

constexpr int kStreams = 3;
// Of deleted documents, as many are looked for in files.
constexpr size_t kMarkersMax = 100;
// How long a server may take to come to the point at which it is to end.
constexpr absl::Duration kPointPatience = absl::Seconds(4);

// Where the server ends by itself (common/crash_point.h), and how often it passes there in a short
// life, at most.
struct NamedPoint {
  const char* name;
  int passes_max;
};
constexpr NamedPoint kPoints[] = {
    {"text written", 8},          {"segments derived", 4},      {"segments written", 4},
    {"document created", 2},      {"memory created", 1},        {"memory updated", 1},
    {"document deleted", 2},      {"memory deleted", 1},        {"purge flushed", 1},
    {"purge range compacted", 4}, {"purge blobs rewritten", 1}, {"purged from files", 1},
    {"purge recorded", 1},        {"backup file copied", 6},    {"backup files copied", 1},
    {"backup listed", 1},         {"store opened", 1},          {"close record taken", 1},
    {"store closed", 1},
};

// A channel that looks for the server again at once, not after gRPC's backoff of seconds: what is
// to happen between two kills needs the time.
std::shared_ptr<grpc::Channel> EagerChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 10);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

int64_t FromEnvironment(const char* name, int64_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoll(value);
}

class KillNineTest : public ::testing::Test {
 protected:
  KillNineTest() : random_(seed_) {
    std::string folder = (std::filesystem::temp_directory_path() / "mneme-kill-XXXXXX").string();
    if (mkdtemp(folder.data()) == nullptr) std::abort();
    folder_ = folder;
    const char* const model = std::getenv("CRASH_MODEL");
    model_ = model != nullptr ? model : folder_ + "/model";
    // Pages of 5 KiB: into blob files.
    if (model == nullptr) {
      WriteRandomBundle({.landmark_dim = 64, .segment_size = 256}, "I8", 1, model_);
    }
  }
  ~KillNineTest() override {
    if (!HasFailure()) std::filesystem::remove_all(folder_);
  }

  void AwaitReady(Client& client, ServerProcess& server) {
    const absl::Time deadline = absl::Now() + kCrashPatience;
    while (!client.CheckReady({.deadline = absl::Now() + absl::Seconds(2)}).ok()) {
      ASSERT_TRUE(server.Alive()) << "the server ended by itself: see " << server.log_path();
      ASSERT_LT(absl::Now(), deadline) << "not ready in " << kCrashPatience;
      absl::SleepFor(absl::Milliseconds(5));
    }
  }

  // Lets the server that runs end in one of three ways.
  void EndSomehow(ServerProcess& server, const std::string& point) {
    const absl::Duration life = absl::Milliseconds(20 + random_() % 700);
    if (point.empty()) {
      absl::SleepFor(life);
      EXPECT_TRUE(server.Alive()) << "the server ended by itself: see " << server.log_path();
      if (random_() % 8 == 0) {
        EXPECT_EQ(server.Stop(), 0) << "see " << server.log_path();
        ++ends_["stopped in good order"];
        return;
      }
      server.KillNine();
      ++ends_["killed at a random moment"];
      return;
    }
    if (point == "store closed") {
      absl::SleepFor(life);
      EXPECT_EQ(server.Stop(), kCrashStatus) << "see " << server.log_path();
      ++ends_[point];
      return;
    }
    const int status = server.AwaitEnd(kPointPatience);
    if (status >= 0) {
      EXPECT_EQ(status, kCrashStatus) << "at " << point << ": see " << server.log_path();
      ++ends_[point];
      return;
    }
    EXPECT_TRUE(server.Alive()) << "the server ended by itself: see " << server.log_path();
    server.KillNine();
    ++ends_["killed on its way to a point"];
  }

  // Restores a backup beside the server, which has stopped, and starts one over it.
  void ExpectRestores(const KeptBackup& backup) {
    const std::string folder = absl::StrCat(folder_, "/restored-", backup.id);
    std::filesystem::create_directory(folder);
    ServerProcess restored(folder, model_);
    ASSERT_EQ(restored.RunToEnd({"--restore-from", absl::StrCat(folder_, "/backups:", backup.id),
                                 "--data-dir", restored.data_dir()}),
              0)
        << "see " << restored.log_path();
    restored.Start();
    Client client({.address = restored.address(), .seed = seed_ + 2});
    AwaitReady(client, restored);
    ExpectBackupHolds(client, backup);
    EXPECT_EQ(restored.Stop(), 0) << "see " << restored.log_path();
  }

  const uint32_t seed_ =
      static_cast<uint32_t>(FromEnvironment("CRASH_SEED", std::random_device()() % 1'000'000));
  std::mt19937 random_;
  std::string folder_;
  std::string model_;
  std::map<std::string, int> ends_;
};

// When the purge of a deletion has ended, so have those of all deletions before it: no file has a
// word of them.
void ExpectDeletedIsInNoFile(Client& client, const std::string& data_dir, const AckedNow& acked) {
  StringSource source("the last one");
  const std::string last = absl::StrCat(kCrashMemory, "/documents/last");
  ASSERT_TRUE(client.Ingest({.document = last}, source).status.ok());
  const auto deletion = client.DeleteDocument(last);
  ASSERT_TRUE(deletion.ok()) << deletion.status();
  const auto purged = client.WaitOperation(*deletion, {.deadline = absl::Now() + kCrashPatience});
  ASSERT_TRUE(purged.ok()) << purged.status();
  std::vector<std::string> markers;
  for (const auto& [document, state] : acked.documents) {
    if (state.gone && markers.size() < kMarkersMax) markers.push_back(MarkerOf(document));
  }
  EXPECT_THAT(MarkersOnDisk(data_dir, markers), ::testing::IsEmpty());
}

TEST_F(KillNineTest, NothingAckedIsLostNothingIsDoubledAndNothingDeletedComesBack) {
  const int64_t kills = FromEnvironment("CRASH_KILLS", 6);
  std::printf("kills %lld, seed %u\n", static_cast<long long>(kills), seed_);
  std::fflush(stdout);
  const absl::Time begin = absl::Now();
  ServerProcess server(folder_, model_);
  const RetryPolicy forever = {.backoff_initial = absl::Milliseconds(10),
                               .backoff_max = absl::Milliseconds(100),
                               .attempts_max = 1'000'000,
                               .give_up_after = absl::InfiniteDuration()};
  Client client(EagerChannel(server.address()),
                {.retry = forever, .resume = forever, .seed = seed_ + 1});
  AdminClient admin(client.channel());
  server.Start();
  AwaitReady(client, server);
  Acked acked;
  v1::CreateMemoryRequest create;
  create.set_parent("tenants/default");
  create.set_memory_id("crash");
  ASSERT_TRUE(client.CreateMemory(create).ok());
  acked.AddMemory(kCrashMemory, {});

  std::atomic<bool> stop{false};
  Stage stage{.client = client, .admin = admin, .stop = stop, .acked = acked};
  // Whoever adds something that the server can do adds an actor here.
  std::vector<std::thread> actors;
  for (int i = 0; i < kStreams; ++i) {
    actors.emplace_back(
        [&, i] { StreamDocuments(stage, i, seed_ + 10 + static_cast<uint32_t>(i)); });
  }
  actors.emplace_back([&] { ChangeMemories(stage, seed_ + 20); });
  actors.emplace_back([&] { AskQuestions(stage); });
  actors.emplace_back([&] { MakeBackups(stage, seed_ + 30); });

  std::string point;  // at which the server that runs will end
  for (int64_t kill = 0; kill < kills && !HasFailure(); ++kill) {
    EndSomehow(server, point);
    const AckedNow before = acked.Now();
    point.clear();
    std::string crash_at;
    if (random_() % 2 == 0) {
      const NamedPoint& named = kPoints[random_() % std::size(kPoints)];
      point = named.name;
      crash_at = absl::StrCat(1 + random_() % static_cast<uint32_t>(named.passes_max), ":", point);
    }
    server.Start(crash_at);
    // Those that end at a point may never be ready; others are killed again while they recover.
    if (!point.empty() || random_() % 3 == 0) continue;
    AwaitReady(client, server);
    ExpectAckedIsThere(client, before, acked);
  }
  server.KillNine();
  const AckedNow before = acked.Now();
  server.Start();
  AwaitReady(client, server);
  ExpectAckedIsThere(client, before, acked);
  stop.store(true);
  for (std::thread& actor : actors) actor.join();

  const auto bundle = LoadBundle(model_);
  ASSERT_TRUE(bundle.ok()) << bundle.status();
  ExpectExactly(client, acked.Now(), (*bundle)->config, *(*bundle)->tokenizer);
  ExpectDeletedIsInNoFile(client, server.data_dir(), acked.Now());
  const auto report = admin.Check("", /*heal=*/false, nullptr);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->found(), 0) << report->DebugString();
  EXPECT_EQ(server.Stop(), 0) << "see " << server.log_path();
  std::vector<KeptBackup> backups;
  {
    absl::MutexLock lock(&stage.mutex);
    backups = stage.kept_backups;
  }
  for (const KeptBackup& backup : backups) ExpectRestores(backup);

  for (const auto& [how, count] : ends_) std::printf("%5d %s\n", count, how.c_str());
  std::printf(
      "%zu documents sent, %d deletions, %d ends of time, %d policies changed, %d questions, "
      "%d backups, %zu restored; %.1f s\n",
      acked.Now().documents.size(), stage.deletions.load(), stage.expiries.load(),
      stage.updates.load(), stage.questions.load(), stage.backups.load(), backups.size(),
      absl::ToDoubleSeconds(absl::Now() - begin));
}

}  // namespace
}  // namespace mneme
