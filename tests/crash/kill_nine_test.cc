// kill -9 of the real server, at random moments and at named points of its code, while clients
// stream documents, resume, delete and let them expire, memories come, change and go, are forked
// and named by snapshots, their past is read, backups are made and questions asked, against a model
// of what was acked, in which a fork is a copy: every acked byte is there, every document equals
// its source, no chunk is missing or doubled, what a fork holds stays whatever becomes of it in its
// base, nothing that was deleted comes back, in the end no file of the data directory has a word of
// what nobody holds, and the last backups hold what had been acked when they began.
//
// CRASH_KILLS sets the number of kills (default 6, so that the suite stays quick), CRASH_SEED the
// random moments, CRASH_MODEL a bundle (default: a tiny one with random weights, so that time goes
// into storing and not into computing).

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/bundle.h"
#include "tests/crash/actors.h"
#include "tests/crash/checks.h"
#include "tests/crash/crash_status.h"
#include "tests/crash/sending.h"
#include "tests/crash/server_process.h"
#include "tests/memory_store/file_search.h"
#include "tests/model/random_bundle.h"

namespace mneme {
namespace {

constexpr int kStreams = 3;
constexpr int kForkTrees = 2;
// Of deleted documents, as many are looked for in files.
constexpr size_t kMarkersMax = 300;
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
    {"purge recorded", 1},        {"memory forked", 1},         {"snapshot created", 1},
    {"snapshot deleted", 1},      {"document dropped", 1},      {"document cut off", 1},
    {"memory kept for forks", 1}, {"identities reserved", 1},   {"backup file copied", 6},
    {"backup files copied", 1},   {"backup listed", 1},         {"store opened", 1},
    {"close record taken", 1},    {"store closed", 1},
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

// Of a document of this text; the first token says that it begins.
int64_t ChunksOf(absl::string_view text, const ModelConfig& config, const Tokenizer& tokenizer) {
  if (text.empty()) return 0;
  std::vector<Token> tokens;
  tokenizer.Encode(text, &tokens);
  const int64_t count = 1 + static_cast<int64_t>(tokens.size());
  const int64_t whole = count / config.segment_size, rest = count % config.segment_size;
  return whole * config.chunks_per_segment() + (rest + config.chunk_size - 1) / config.chunk_size;
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
// word of what nobody holds, the ends of documents included that only their beginnings are held of.
void ExpectDeletedIsInNoFile(Client& client, const std::string& data_dir, const AckedNow& acked,
                             std::mt19937& random) {
  StringSource source("the last one");
  const std::string last = absl::StrCat(kCrashMemory, "/documents/last");
  ASSERT_TRUE(client.Ingest({.document = last}, source).status.ok());
  const auto deletion = client.DeleteDocument(last);
  ASSERT_TRUE(deletion.ok()) << deletion.status();
  const auto purged = client.WaitOperation(*deletion, {.deadline = absl::Now() + kCrashPatience});
  ASSERT_TRUE(purged.ok()) << purged.status();
  std::set<std::string> sent, held;
  for (const auto& text : acked.replaced_texts) {
    for (std::string& marker : MarkersIn(*text)) sent.insert(std::move(marker));
  }
  for (const auto& [document, state] : acked.documents) {
    const absl::string_view text = *state.text;
    for (std::string& marker : MarkersIn(text)) sent.insert(std::move(marker));
    if (state.gone) continue;
    for (std::string& marker : MarkersIn(text.substr(0, static_cast<size_t>(state.text_bytes)))) {
      held.insert(std::move(marker));
    }
  }
  std::vector<std::string> deleted;
  std::set_difference(sent.begin(), sent.end(), held.begin(), held.end(),
                      std::back_inserter(deleted));
  std::shuffle(deleted.begin(), deleted.end(), random);
  if (deleted.size() > kMarkersMax) deleted.resize(kMarkersMax);
  EXPECT_THAT(MarkersOnDisk(data_dir, deleted), ::testing::IsEmpty());
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
  const auto bundle = LoadBundle(model_);
  ASSERT_TRUE(bundle.ok()) << bundle.status();
  const std::function<int64_t(absl::string_view)> chunks_of = [&](absl::string_view text) {
    return ChunksOf(text, (*bundle)->config, *(*bundle)->tokenizer);
  };
  Stage stage{
      .client = client, .admin = admin, .stop = stop, .acked = acked, .chunks_of = chunks_of};
  // Whoever adds something that the server can do adds an actor here.
  std::vector<std::thread> actors;
  for (int i = 0; i < kStreams; ++i) {
    actors.emplace_back(
        [&, i] { StreamDocuments(stage, i, seed_ + 10 + static_cast<uint32_t>(i)); });
  }
  actors.emplace_back([&] { ChangeMemories(stage, seed_ + 20); });
  for (int i = 0; i < kForkTrees; ++i) {
    actors.emplace_back([&, i] { GrowForkTrees(stage, i, seed_ + 40 + static_cast<uint32_t>(i)); });
  }
  actors.emplace_back([&] { ForkWhatChanges(stage, seed_ + 50); });
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

  ExpectExactly(client, acked.Now(), chunks_of);
  ExpectDeletedIsInNoFile(client, server.data_dir(), acked.Now(), random_);
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
      "%d backups, %zu restored; %d forks, %d snapshots, %d deletions of what is shared, %d "
      "questions about forks and the past; %.1f s\n",
      acked.Now().documents.size(), stage.deletions.load(), stage.expiries.load(),
      stage.updates.load(), stage.questions.load(), stage.backups.load(), backups.size(),
      stage.forks.load(), stage.snapshots.load(), stage.drops.load(), stage.past_questions.load(),
      absl::ToDoubleSeconds(absl::Now() - begin));
}

}  // namespace
}  // namespace mneme
