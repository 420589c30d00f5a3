// Exact forgetting over a real server: when the operation of a deletion has ended, no file of the
// data directory has a byte of the text, while questions run.

#include <atomic>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/memory_store/file_search.h"
#include "tests/server/test_server.h"

namespace mneme {
namespace {

using ::testing::IsEmpty;
using ::testing::Not;

constexpr char kMemory[] = "tenants/default/memories/m";

// Words that nobody else writes.
std::vector<std::string> Markers(uint64_t seed, int count) {
  std::mt19937_64 random(seed);
  std::vector<std::string> markers;
  for (int i = 0; i < count; ++i) {
    std::string marker;
    for (int c = 0; c < 24; ++c) {
      marker.push_back("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[random() % 52]);
    }
    markers.push_back(marker);
  }
  return markers;
}

class ForgettingTest : public ::testing::Test {
 protected:
  ForgettingTest()
      : server_(TestServer::StartReal({}, folder_.path())),
        client_({.address = server_->address()}) {
    v1::CreateMemoryRequest request;
    request.set_parent("tenants/default");
    request.set_memory_id("m");
    EXPECT_TRUE(client_.CreateMemory(request).ok());
  }

  static std::string Document(const std::string& id) {
    return absl::StrCat(kMemory, "/documents/", id);
  }
  void Ingest(const std::string& id, const std::vector<std::string>& markers) {
    std::string text;
    for (const std::string& marker : markers) absl::StrAppend(&text, "The word is ", marker, ". ");
    StringSource source(text);
    const IngestOutcome outcome =
        client_.Ingest({.document = Document(id), .wait_visible = true}, source);
    EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  }
  absl::StatusOr<v1::ForgetReceipt> Receipt(
      const absl::StatusOr<google::longrunning::Operation>& deletion) {
    if (!deletion.ok()) return deletion.status();
    const auto ended = client_.WaitOperation(*deletion);
    if (!ended.ok()) return ended.status();
    v1::ForgetReceipt receipt;
    if (!ended->response().UnpackTo(&receipt)) return absl::InternalError("no receipt");
    return receipt;
  }
  std::vector<std::string> OnDisk(const std::vector<std::string>& markers) {
    return MarkersOnDisk(folder_.path(), markers);
  }

  TemporaryFolder folder_;
  std::unique_ptr<TestServer> server_;
  Client client_;
};

TEST_F(ForgettingTest, AForgottenDocumentIsInNoFileWhileQuestionsRun) {
  const std::vector<std::string> gone = Markers(1, 60), kept = Markers(2, 60);
  Ingest("kept", kept);
  Ingest("gone", gone);
  ASSERT_THAT(OnDisk(gone), Not(IsEmpty()));

  std::atomic<bool> stop{false};
  std::atomic<int> asked{0};
  std::vector<std::thread> askers;
  for (int i = 0; i < 2; ++i) {
    askers.emplace_back([&] {
      Client client({.address = server_->address()});
      while (!stop) {
        v1::RetrieveRequest request;
        request.add_memories(kMemory);
        request.set_question("What is the word?");
        const auto found = client.Retrieve(request);
        EXPECT_TRUE(found.ok()) << found.status();
        v1::GenerateRequest generate;
        generate.add_memories(kMemory);
        generate.set_question("What is the word? The word is");
        generate.set_max_tokens(8);
        const absl::Status generated =
            client.Generate(generate, [](const v1::GenerateResponse&) { return true; });
        EXPECT_TRUE(generated.ok()) << generated;
        ++asked;
      }
    });
  }
  while (asked < 2) absl::SleepFor(absl::Milliseconds(1));
  const auto receipt = Receipt(client_.DeleteDocument(Document("gone")));
  // Also while they go on: what is gone does not come back.
  const int asked_before = asked;
  while (asked < asked_before + 2) absl::SleepFor(absl::Milliseconds(1));
  stop = true;
  for (std::thread& asker : askers) asker.join();
  ASSERT_TRUE(receipt.ok()) << receipt.status();
  EXPECT_EQ(receipt->name(), Document("gone"));
  EXPECT_EQ(receipt->document_count(), 1);
  EXPECT_GT(receipt->text_bytes(), 60 * 24);
  EXPECT_GT(receipt->chunk_count(), 0);
  EXPECT_THAT(OnDisk(gone), IsEmpty());

  v1::RetrieveRequest request;
  request.add_memories(kMemory);
  request.set_question("What is the word?");
  request.set_k(256);
  const auto found = client_.Retrieve(request);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_GT(found->passages_size(), 0);
  for (const v1::Passage& passage : found->passages()) {
    EXPECT_EQ(passage.document(), Document("kept"));
  }
}

TEST_F(ForgettingTest, AForgottenMemoryIsInNoFile) {
  const std::vector<std::string> a = Markers(3, 30), b = Markers(4, 30);
  Ingest("a", a);
  Ingest("b", b);
  ASSERT_THAT(OnDisk(a), Not(IsEmpty()));
  const auto receipt = Receipt(client_.DeleteMemory(kMemory));
  ASSERT_TRUE(receipt.ok()) << receipt.status();
  EXPECT_EQ(receipt->document_count(), 2);
  EXPECT_THAT(OnDisk(a), IsEmpty());
  EXPECT_THAT(OnDisk(b), IsEmpty());
}

}  // namespace
}  // namespace mneme
