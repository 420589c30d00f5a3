#include "tests/crash/checks.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme {
namespace {

CallOptions Patient() { return {.deadline = absl::Now() + kCrashPatience}; }

std::string ReadText(Client& client, const std::string& document) {
  v1::ReadDocumentRequest read;
  read.set_name(document);
  std::string text;
  const absl::Status status = client.ReadDocument(
      read,
      [&](absl::string_view piece) {
        text.append(piece.data(), piece.size());
        return true;
      },
      Patient());
  EXPECT_TRUE(status.ok()) << document << ": " << status;
  return text;
}

AckedPolicy PolicyOf(const v1::Memory& memory) {
  AckedPolicy policy{.keeps_pages = memory.retention() == v1::Memory::KEEP};
  if (memory.has_ttl()) {
    policy.ttl = absl::Seconds(memory.ttl().seconds()) + absl::Nanoseconds(memory.ttl().nanos());
  }
  return policy;
}

// Waits until all durable text is visible.
void AwaitVisible(Client& client, const std::string& document) {
  const absl::Time deadline = absl::Now() + kCrashPatience;
  for (;;) {
    const auto found = client.GetDocument(document, Patient());
    ASSERT_TRUE(found.ok()) << document << ": " << found.status();
    if (found->visible_bytes() == found->durable_bytes()) return;
    ASSERT_LT(absl::Now(), deadline) << document << " never became visible";
    absl::SleepFor(absl::Milliseconds(20));
  }
}

// What a listed document of a backup is to be: by what was acked when the backup had ended, or when
// it began; of a fork that nobody knows more of, its base's. Null: nobody sent it.
const AckedNow::Document* SourceOf(const KeptBackup& backup, const std::string& name) {
  for (const AckedNow* acked : {&backup.ended, &backup.begun}) {
    const auto found = acked->documents.find(name);
    if (found != acked->documents.end()) return &found->second;
  }
  const std::string memory = MemoryOf(name);
  const auto fork = backup.ended.memories.find(memory);
  if (fork == backup.ended.memories.end() || fork->second.base.empty()) return nullptr;
  if (!fork->second.forming && !fork->second.may_go) return nullptr;
  const auto found =
      backup.ended.documents.find(absl::StrCat(fork->second.base, absl::StripPrefix(name, memory)));
  return found == backup.ended.documents.end() ? nullptr : &found->second;
}

void ExpectSnapshots(const Listed& listed, const AckedNow& before, const AckedNow& after) {
  for (const auto& [name, state] : before.snapshots) {
    const bool found = listed.snapshots.contains(name);
    const AckedNow::Snapshot& now = after.snapshots.at(name);
    if (now.incarnation != state.incarnation) continue;  // it may have been made and gone meanwhile
    EXPECT_TRUE(found || !state.made || now.may_go) << name << " is lost";
    EXPECT_FALSE(found && state.gone) << name << " came back";
  }
}

}  // namespace

void List(Client& client, Listed* listed) {
  const absl::Status memories = client.ListMemories(
      "tenants/default",
      [&](const v1::Memory& memory) {
        EXPECT_TRUE(listed->memories.emplace(memory.name(), memory).second)
            << memory.name() << " is there twice";
        return true;
      },
      Patient());
  ASSERT_TRUE(memories.ok()) << memories;
  for (const auto& [name, memory] : listed->memories) {
    const absl::Status documents = client.ListDocuments(
        name,
        [&](const v1::Document& document) {
          EXPECT_TRUE(listed->documents.emplace(document.name(), document).second)
              << document.name() << " is there twice";
          return true;
        },
        Patient());
    ASSERT_TRUE(documents.ok() || absl::IsNotFound(documents)) << name << ": " << documents;
    const absl::Status snapshots = client.ListSnapshots(
        name,
        [&](const v1::Snapshot& snapshot) {
          EXPECT_TRUE(listed->snapshots.emplace(snapshot.name(), snapshot).second)
              << snapshot.name() << " is there twice";
          return true;
        },
        Patient());
    ASSERT_TRUE(snapshots.ok() || absl::IsNotFound(snapshots)) << name << ": " << snapshots;
  }
}

void ExpectAckedIsThere(Client& client, const AckedNow& before, const Acked& acked) {
  Listed listed;
  ASSERT_NO_FATAL_FAILURE(List(client, &listed));
  const AckedNow after = acked.Now();
  for (const auto& [name, state] : before.memories) {
    const AckedNow::Memory& now = after.memories.at(name);
    if (now.incarnation != state.incarnation) continue;
    const auto found = listed.memories.find(name);
    if (found == listed.memories.end()) {
      EXPECT_TRUE(now.may_go || !state.made) << name << " is lost";
      continue;
    }
    EXPECT_FALSE(state.gone) << name << " came back";
    if (now.updates != state.updates) continue;
    EXPECT_THAT(state.policies, ::testing::Contains(PolicyOf(found->second))) << name;
  }
  ExpectSnapshots(listed, before, after);
  for (const auto& [name, state] : before.documents) {
    const auto now = after.documents.find(name);
    if (now == after.documents.end() || now->second.incarnation != state.incarnation) continue;
    const auto found = listed.documents.find(name);
    if (found == listed.documents.end()) {
      EXPECT_TRUE(state.durable_bytes == 0 || now->second.may_go)
          << name << " is lost, " << state.durable_bytes << " bytes acked";
      continue;
    }
    EXPECT_FALSE(state.gone) << name << " came back";
    EXPECT_LE(found->second.durable_bytes(), now->second.text_bytes) << name;
    EXPECT_TRUE(state.may_go || found->second.durable_bytes() >= state.durable_bytes)
        << name << " has " << found->second.durable_bytes() << " bytes, acked "
        << state.durable_bytes;
  }
}

void ExpectExactly(Client& client, const AckedNow& acked,
                   const std::function<int64_t(absl::string_view)>& chunks_of) {
  Listed listed;
  ASSERT_NO_FATAL_FAILURE(List(client, &listed));
  std::map<std::string, int64_t> chunks;  // of each document
  for (const auto& [name, state] : acked.documents) {
    if (state.gone) {
      EXPECT_FALSE(listed.documents.contains(name)) << name << " came back";
      continue;
    }
    ASSERT_FALSE(state.may_go) << name << ": an actor left it in between";
    ASSERT_NO_FATAL_FAILURE(AwaitVisible(client, name));
    const std::string text = state.text->substr(0, state.text_bytes);
    ASSERT_EQ(ReadText(client, name), text) << name;
    chunks[name] = chunks_of(text);
  }
  for (const auto& [name, document] : listed.documents) {
    EXPECT_TRUE(chunks.contains(name)) << name << ": nobody sent it";
  }
  for (const auto& [name, state] : acked.memories) {
    EXPECT_EQ(listed.memories.contains(name), !state.gone) << name;
    if (state.gone) continue;
    int64_t expected = 0;
    for (const auto& [document, of] : acked.DocumentsOf(name)) expected += chunks.at(document);
    v1::RetrieveRequest request;
    request.add_memories(name);
    request.set_question("What is the pass key?");
    const auto answer = client.Retrieve(request, Patient());
    ASSERT_TRUE(answer.ok()) << name << ": " << answer.status();
    EXPECT_EQ(answer->chunks_scanned(), expected) << name;
  }
  for (const auto& [name, state] : acked.snapshots) {
    EXPECT_EQ(listed.snapshots.contains(name), !state.gone) << name;
  }
  // After the questions: the ends of documents that forks share are derived for those who ask.
  for (const auto& [name, expected] : chunks) {
    const auto found = client.GetDocument(name, Patient());
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->visible_bytes(), acked.documents.at(name).text_bytes) << name;
    EXPECT_EQ(found->chunk_count(), expected) << name;
  }
}

void ExpectBackupHolds(Client& client, const KeptBackup& backup) {
  Listed listed;
  ASSERT_NO_FATAL_FAILURE(List(client, &listed));
  for (const auto& [name, state] : backup.begun.memories) {
    const AckedNow::Memory& ended = backup.ended.memories.at(name);
    if (ended.incarnation != state.incarnation) continue;
    const bool found = listed.memories.contains(name);
    EXPECT_FALSE(state.gone && found) << name << " came back";
    EXPECT_TRUE(found || !state.made || ended.may_go) << name << " is lost";
  }
  ExpectSnapshots(listed, backup.begun, backup.ended);
  for (const auto& [name, state] : backup.begun.documents) {
    const auto ended = backup.ended.documents.find(name);
    if (ended == backup.ended.documents.end()) continue;
    if (ended->second.incarnation != state.incarnation) continue;
    const auto found = listed.documents.find(name);
    EXPECT_TRUE(!state.gone || found == listed.documents.end()) << name << " came back";
    if (state.durable_bytes == 0 || ended->second.may_go) continue;
    ASSERT_TRUE(found != listed.documents.end()) << name << " is lost";
    EXPECT_GE(found->second.durable_bytes(), state.durable_bytes) << name;
  }
  for (const auto& [name, document] : listed.documents) {
    const AckedNow::Document* const source = SourceOf(backup, name);
    ASSERT_TRUE(source != nullptr) << name << ": nobody sent it";
    const auto begun = backup.begun.documents.find(name);
    // Of those that came and went between only the first is known to be this one.
    const int incarnation = begun == backup.begun.documents.end() ? 0 : begun->second.incarnation;
    const bool is_same = source->incarnation == incarnation;
    // Those whose time is over go while they are read.
    if (source->may_go || !is_same) continue;
    ASSERT_NO_FATAL_FAILURE(AwaitVisible(client, name));
    const std::string text = ReadText(client, name);
    EXPECT_EQ(text, source->text->substr(0, text.size())) << name;
  }
}

}  // namespace mneme
