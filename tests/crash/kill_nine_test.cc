// kill -9 of the real server at random moments while four clients stream documents, resume and
// delete some again, and one asks questions, against a model of what was acked: every acked byte is
// there, every document equals its source, no chunk is missing or doubled, nothing that was deleted
// comes back, and in the end no file has a word of it.
//
// CRASH_KILLS sets the number of kills (default 6, so that the suite stays quick), CRASH_SEED the
// random moments.

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "client/client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/bundle.h"
#include "tests/crash/server_process.h"
#include "tests/memory_store/file_search.h"

namespace mneme {
namespace {

constexpr int kClients = 4;
// With what hangs: a slow machine is no failure.
constexpr absl::Duration kPatience = absl::Minutes(12);
constexpr char kMemory[] = "tenants/default/memories/crash";

int64_t FromEnvironment(const char* name, int64_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoll(value);
}

// Words, digits and a few characters of two to four bytes, so that pieces break inside sequences.
std::string RandomText(std::mt19937& random, size_t bytes) {
  static const char* const kWords[] = {"harbor", "the",   "lantern", "of",      "and",  "17",
                                       "Zürich", "naïve", "река",    "日本",    "🙂", "pass",
                                       "key",    "is",    "wind,",   "north.\n"};
  std::string text;
  while (text.size() < bytes) {
    absl::StrAppend(&text, kWords[random() % 16],
                    random() % 5 == 0 ? absl::StrCat(random() % 100000) : "", " ");
  }
  return text;
}

// What the clients know of each document. Thread-safe.
class Acked {
 public:
  void Add(const std::string& document, std::string text) {
    absl::MutexLock lock(&mutex_);
    texts_[document] = std::move(text);
  }
  // 0 bytes are what the server says of a document before its first commit: nothing is acked yet.
  void Raise(const std::string& document, int64_t durable_bytes) {
    if (durable_bytes == 0) return;
    absl::MutexLock lock(&mutex_);
    int64_t& acked = durable_[document];
    acked = std::max(acked, durable_bytes);
  }
  std::map<std::string, int64_t> durable() const {
    absl::MutexLock lock(&mutex_);
    return durable_;
  }
  std::map<std::string, std::string> texts() const {
    absl::MutexLock lock(&mutex_);
    return texts_;
  }
  // A deletion is asked for: from now on the document may be there or not.
  void BeginDelete(const std::string& document) {
    absl::MutexLock lock(&mutex_);
    texts_.erase(document);
    durable_.erase(document);
  }
  // It was acked: from now on the document is gone.
  void Deleted(const std::string& document) {
    absl::MutexLock lock(&mutex_);
    deleted_.insert(document);
  }
  std::set<std::string> deleted() const {
    absl::MutexLock lock(&mutex_);
    return deleted_;
  }
  // Nobody has asked for its deletion.
  bool Stays(const std::string& document) const {
    absl::MutexLock lock(&mutex_);
    return texts_.contains(document);
  }

 private:
  mutable absl::Mutex mutex_;
  std::map<std::string, int64_t> durable_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::string> texts_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> deleted_ ABSL_GUARDED_BY(mutex_);
};

// A word that no other document has.
std::string Marker(const std::string& document) {
  std::mt19937_64 random(std::hash<std::string>()(document));
  std::string marker;
  for (int i = 0; i < 24; ++i) {
    marker.push_back("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[random() % 52]);
  }
  return marker;
}

// One client: document after document until told to stop, resuming through every crash.
void Stream(Client& client, int index, uint32_t seed, const std::atomic<bool>& stop, Acked& acked) {
  std::mt19937 random(seed);
  for (int i = 0; !stop.load(); ++i) {
    const std::string document = absl::StrCat(kMemory, "/documents/c", index, "-", i);
    const std::string text =
        absl::StrCat(Marker(document), " ", RandomText(random, 1 + random() % 120'000));
    acked.Add(document, text);
    StringSource source(text);
    IngestPlan plan;
    plan.document = document;
    plan.seal = random() % 2 == 0;
    plan.wait_visible = random() % 4 != 0;
    plan.piece_bytes = 1 + static_cast<int64_t>(random() % 9000);
    plan.on_progress = [&](const IngestState& state) {
      ASSERT_LE(state.visible_bytes, state.durable_bytes);
      acked.Raise(document, state.durable_bytes);
    };
    const IngestOutcome outcome = client.Ingest(plan, source);
    ASSERT_TRUE(outcome.status.ok()) << document << ": " << outcome.status;
    acked.Raise(document, outcome.state.durable_bytes);
    ASSERT_EQ(outcome.state.durable_bytes, static_cast<int64_t>(text.size()));
    if (random() % 3 != 0) continue;
    acked.BeginDelete(document);
    const auto deletion = client.DeleteDocument(document);
    ASSERT_TRUE(deletion.ok()) << document << ": " << deletion.status();
    acked.Deleted(document);
  }
}

// Question after question: each is answered, through every crash, without what was gone before.
void Ask(Client& client, const std::atomic<bool>& stop, const Acked& acked) {
  while (!stop.load()) {
    const std::set<std::string> gone = acked.deleted();
    v1::RetrieveRequest request;
    request.add_memories(kMemory);
    request.set_question("What is the pass key?");
    request.set_k(64);
    const auto answer = client.Retrieve(request);
    ASSERT_TRUE(answer.ok()) << answer.status();
    for (const v1::Passage& passage : answer->passages()) {
      ASSERT_FALSE(gone.contains(passage.document())) << passage.document() << " came back";
    }
  }
}

void AwaitReady(Client& client, ServerProcess& server) {
  const absl::Time deadline = absl::Now() + kPatience;
  while (!client.CheckReady({.deadline = absl::Now() + absl::Seconds(2)}).ok()) {
    ASSERT_TRUE(server.Alive()) << "the server ended by itself: see " << server.log_path();
    ASSERT_LT(absl::Now(), deadline) << "not ready in " << kPatience;
    absl::SleepFor(absl::Milliseconds(20));
  }
}

// Everything acked before the kill is durable on the server that has just started, but for what was
// deleted since; and what was deleted before is gone.
void ExpectAckedIsThere(Client& client, const std::map<std::string, int64_t>& before,
                        const std::set<std::string>& deleted_before, const Acked& acked) {
  for (const std::string& document : deleted_before) {
    const auto found = client.GetDocument(document, {.deadline = absl::Now() + kPatience});
    ASSERT_TRUE(absl::IsNotFound(found.status())) << document << " came back: " << found.status();
  }
  for (const auto& [document, durable_bytes] : before) {
    const auto found = client.GetDocument(document, {.deadline = absl::Now() + kPatience});
    if (absl::IsNotFound(found.status()) && !acked.Stays(document)) continue;
    ASSERT_TRUE(found.ok()) << document << ", " << durable_bytes << " acked: " << found.status();
    ASSERT_GE(found->durable_bytes(), durable_bytes) << document;
  }
}

int64_t ExpectedChunks(int64_t tokens, const ModelConfig& config) {
  const int64_t whole = tokens / config.segment_size, rest = tokens % config.segment_size;
  return whole * config.chunks_per_segment() + (rest + config.chunk_size - 1) / config.chunk_size;
}

void ExpectEveryDocumentIsWhole(Client& client, const std::map<std::string, std::string>& texts) {
  const auto bundle = LoadBundle(absl::StrCat(MNEME_SOURCE_DIR, "/models/mneme-small"));
  ASSERT_TRUE(bundle.ok()) << bundle.status();
  int64_t chunks = 0;
  for (const auto& [document, text] : texts) {
    v1::ReadDocumentRequest read;
    read.set_name(document);
    std::string stored;
    ASSERT_TRUE(client
                    .ReadDocument(read,
                                  [&](absl::string_view piece) {
                                    stored.append(piece.data(), piece.size());
                                    return true;
                                  })
                    .ok());
    ASSERT_EQ(stored, text) << document;
    std::vector<Token> tokens;
    (*bundle)->tokenizer->Encode(text, &tokens);
    const int64_t token_count = 1 + static_cast<int64_t>(tokens.size());
    const auto found = client.GetDocument(document);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->visible_bytes(), static_cast<int64_t>(text.size())) << document;
    EXPECT_EQ(found->token_count(), token_count) << document;
    EXPECT_EQ(found->chunk_count(), ExpectedChunks(token_count, (*bundle)->config)) << document;
    chunks += found->chunk_count();
  }
  v1::RetrieveRequest request;
  request.add_memories(kMemory);
  request.set_question("What is the pass key?");
  const auto answer = client.Retrieve(request);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->chunks_scanned(), chunks);
}

// When the purge of a deletion has ended, so have those of all deletions before it: no file has a
// word of them.
void ExpectDeletedIsInNoFile(Client& client, const std::string& folder,
                             const std::set<std::string>& deleted) {
  StringSource source("the last one");
  const std::string last = absl::StrCat(kMemory, "/documents/last");
  ASSERT_TRUE(client.Ingest({.document = last}, source).status.ok());
  const auto deletion = client.DeleteDocument(last);
  ASSERT_TRUE(deletion.ok()) << deletion.status();
  const auto purged = client.WaitOperation(*deletion, {.deadline = absl::Now() + kPatience});
  ASSERT_TRUE(purged.ok()) << purged.status();
  std::vector<std::string> markers;
  for (const std::string& document : deleted) markers.push_back(Marker(document));
  EXPECT_THAT(MarkersOnDisk(folder, markers), ::testing::IsEmpty());
}

TEST(KillNineTest, NothingAckedIsLostNothingIsDoubledAndNothingDeletedComesBack) {
  const int64_t kills = FromEnvironment("CRASH_KILLS", 6);
  const uint32_t seed =
      static_cast<uint32_t>(FromEnvironment("CRASH_SEED", std::random_device()() % 1'000'000));
  std::printf("kills %lld, seed %u\n", static_cast<long long>(kills), seed);
  std::mt19937 random(seed);
  std::string folder = (std::filesystem::temp_directory_path() / "mneme-kill-XXXXXX").string();
  ASSERT_NE(mkdtemp(folder.data()), nullptr);

  ServerProcess server(folder);
  const RetryPolicy forever = {.attempts_max = 1'000'000,
                               .give_up_after = absl::InfiniteDuration()};
  Client client(
      {.address = server.address(), .retry = forever, .resume = forever, .seed = seed + 1});
  server.Start();
  AwaitReady(client, server);
  v1::CreateMemoryRequest create;
  create.set_parent("tenants/default");
  create.set_memory_id("crash");
  ASSERT_TRUE(client.CreateMemory(create).ok());

  Acked acked;
  std::atomic<bool> stop{false};
  std::vector<std::thread> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back(
        [&, i] { Stream(client, i, seed + 10 + static_cast<uint32_t>(i), stop, acked); });
  }
  clients.emplace_back([&] { Ask(client, stop, acked); });
  for (int64_t kill = 0; kill < kills && !::testing::Test::HasFatalFailure(); ++kill) {
    absl::SleepFor(absl::Milliseconds(30 + random() % 1500));
    EXPECT_TRUE(server.Alive()) << "the server ended by itself: see " << server.log_path();
    server.KillNine();
    const std::map<std::string, int64_t> before = acked.durable();
    const std::set<std::string> deleted_before = acked.deleted();
    server.Start();
    if (random() % 3 == 0) continue;  // killed again before or while it recovers
    AwaitReady(client, server);
    ExpectAckedIsThere(client, before, deleted_before, acked);
  }
  stop.store(true);
  for (std::thread& thread : clients) thread.join();
  AwaitReady(client, server);
  const auto texts = acked.texts();
  // A document that nobody waited for may still be on its way to being visible.
  for (const auto& [document, text] : texts) {
    const absl::Time deadline = absl::Now() + kPatience;
    while (client.GetDocument(document)->visible_bytes() < static_cast<int64_t>(text.size())) {
      ASSERT_LT(absl::Now(), deadline) << document << " never became visible";
      absl::SleepFor(absl::Milliseconds(20));
    }
  }
  ExpectEveryDocumentIsWhole(client, texts);
  ExpectDeletedIsInNoFile(client, folder, acked.deleted());
  std::printf("%zu documents, %zu deleted\n", texts.size(), acked.deleted().size());
  EXPECT_EQ(server.Stop(), 0);
  if (!::testing::Test::HasFailure()) std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace mneme
