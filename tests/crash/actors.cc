#include "tests/crash/actors.h"

#include <algorithm>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/crash/sending.h"

namespace mneme {
namespace {

constexpr size_t kBackupsKept = 2;

// Deletes the backups that nobody keeps.
void DropOtherBackups(Stage& stage) {
  std::vector<int64_t> kept;
  {
    absl::MutexLock lock(&stage.mutex);
    for (const KeptBackup& backup : stage.kept_backups) kept.push_back(backup.id);
  }
  const auto listed = stage.admin.ListBackups();
  if (!listed.ok()) return;
  for (const v1::Backup& backup : listed->backups()) {
    EXPECT_EQ(backup.damage(), "") << "backup " << backup.id();
    if (std::find(kept.begin(), kept.end(), backup.id()) != kept.end()) continue;
    if (const absl::Status status = stage.admin.DeleteBackup(backup.id()); !status.ok()) {
      EXPECT_TRUE(IsOfACrash(status)) << status;
      return;
    }
  }
}

}  // namespace

void StreamDocuments(Stage& stage, int index, uint32_t seed) {
  std::mt19937 random(seed);
  for (int i = 0; !stage.stop.load(); ++i) {
    const std::string document = absl::StrCat(kCrashMemory, "/documents/c", index, "-", i);
    const bool expires = random() % 8 == 0;
    const absl::Duration ttl =
        expires ? RandomMilliseconds(random, 1500) : absl::InfiniteDuration();
    ASSERT_NO_FATAL_FAILURE(SendDocument(stage, random, document, 40'000, ttl));
    if (expires) {
      // It began before now, whichever attempt began it.
      absl::SleepFor(ttl + absl::Milliseconds(1));
      stage.acked.Expired(document);
      ++stage.expiries;
      continue;
    }
    if (random() % 2 == 0) continue;
    stage.acked.BeginDelete(document);
    const auto deletion = stage.client.DeleteDocument(document);
    ASSERT_TRUE(deletion.ok()) << document << ": " << deletion.status();
    stage.acked.Deleted(document);
    ++stage.deletions;
  }
}

void ChangeMemories(Stage& stage, uint32_t seed) {
  std::mt19937 random(seed);
  for (int i = 0; !stage.stop.load(); ++i) {
    const std::string id = absl::StrCat("m", i);
    const std::string memory = absl::StrCat("tenants/default/memories/", id);
    AckedPolicy policy{.keeps_pages = random() % 2 == 0};
    v1::CreateMemoryRequest create;
    create.set_parent("tenants/default");
    create.set_memory_id(id);
    *create.mutable_memory() = MemoryMessage("", policy);
    const auto created = stage.client.CreateMemory(create);
    // Its ack may have been lost with the server.
    ASSERT_TRUE(created.ok() || absl::IsAlreadyExists(created.status())) << created.status();
    stage.acked.AddMemory(memory, policy);

    const int documents = static_cast<int>(random() % 4);
    for (int d = 0; d < documents; ++d) {
      ASSERT_NO_FATAL_FAILURE(
          SendDocument(stage, random, absl::StrCat(memory, "/documents/d", d), 8000));
    }
    const int updates = static_cast<int>(random() % 4);
    for (int u = 0; u < updates; ++u) {
      if (random() % 4 != 0) policy.keeps_pages = !policy.keeps_pages;
      if (random() % 4 == 0) {
        ASSERT_NO_FATAL_FAILURE(ExpireMemory(stage, random, memory, &policy));
      } else {
        ASSERT_NO_FATAL_FAILURE(UpdateMemory(stage, memory, policy));
      }
    }
    if (random() % 8 == 0) continue;  // this one stays
    stage.acked.BeginDelete(memory);
    const auto deletion = stage.client.DeleteMemory(memory);
    ASSERT_TRUE(deletion.ok()) << memory << ": " << deletion.status();
    stage.acked.Deleted(memory);
    ++stage.deletions;
  }
}

void AskQuestions(Stage& stage) {
  for (int i = 0; !stage.stop.load(); ++i) {
    const AckedNow before = stage.acked.Now();
    std::vector<std::string> read;
    const auto read_passages = [&read](const auto& passages) {
      for (const v1::Passage& passage : passages) read.push_back(passage.document());
    };
    if (i % 4 == 3) {
      v1::GenerateRequest request;
      request.add_memories(kCrashMemory);
      request.set_question("What is the pass key?");
      request.set_max_tokens(4);
      const absl::Status status =
          stage.client.Generate(request, [&](const v1::GenerateResponse& response) {
            read_passages(response.passages());
            return true;
          });
      ASSERT_TRUE(status.ok() || absl::IsUnavailable(status)) << status;
    } else {
      v1::RetrieveRequest request;
      request.add_memories(kCrashMemory);
      request.set_question("What is the pass key?");
      request.set_k(64);
      const auto answer = stage.client.Retrieve(request);
      ASSERT_TRUE(answer.ok()) << answer.status();
      read_passages(answer->passages());
    }
    ++stage.questions;
    for (const std::string& document : read) {
      const auto it = before.documents.find(document);
      if (it == before.documents.end()) continue;  // newer than the question
      ASSERT_FALSE(it->second.gone) << document << " came back";
    }
  }
}

void MakeBackups(Stage& stage, uint32_t seed) {
  std::mt19937 random(seed);
  while (!stage.stop.load()) {
    AckedNow begun = stage.acked.Now();
    const auto backup = stage.admin.CreateBackup(nullptr);
    if (!backup.ok()) {
      ASSERT_TRUE(IsOfACrash(backup.status())) << backup.status();
      absl::SleepFor(absl::Milliseconds(20));
      continue;
    }
    {
      absl::MutexLock lock(&stage.mutex);
      stage.kept_backups.push_back({backup->id(), std::move(begun), stage.acked.Now()});
      if (stage.kept_backups.size() > kBackupsKept) {
        stage.kept_backups.erase(stage.kept_backups.begin());
      }
    }
    ++stage.backups;
    DropOtherBackups(stage);
    absl::SleepFor(RandomMilliseconds(random, 400));
  }
}

}  // namespace mneme
