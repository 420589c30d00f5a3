#include "tests/crash/checks.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
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

int64_t ExpectedChunks(int64_t tokens, const ModelConfig& config) {
  const int64_t whole = tokens / config.segment_size, rest = tokens % config.segment_size;
  return whole * config.chunks_per_segment() + (rest + config.chunk_size - 1) / config.chunk_size;
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
  }
}

void ExpectAckedIsThere(Client& client, const AckedNow& before, const Acked& acked) {
  Listed listed;
  ASSERT_NO_FATAL_FAILURE(List(client, &listed));
  const AckedNow after = acked.Now();
  for (const auto& [name, state] : before.memories) {
    const AckedNow::Memory& now = after.memories.at(name);
    const auto found = listed.memories.find(name);
    if (found == listed.memories.end()) {
      EXPECT_TRUE(now.may_go) << name << " is lost";
      continue;
    }
    EXPECT_FALSE(state.gone) << name << " came back";
    if (now.updates != state.updates) continue;
    EXPECT_THAT(state.policies, ::testing::Contains(PolicyOf(found->second))) << name;
  }
  for (const auto& [name, state] : before.documents) {
    const auto found = listed.documents.find(name);
    if (found == listed.documents.end()) {
      EXPECT_TRUE(state.durable_bytes == 0 || after.documents.at(name).may_go)
          << name << " is lost, " << state.durable_bytes << " bytes acked";
      continue;
    }
    EXPECT_FALSE(state.gone) << name << " came back";
    EXPECT_TRUE(state.may_go || found->second.durable_bytes() >= state.durable_bytes)
        << name << " has " << found->second.durable_bytes() << " bytes, acked "
        << state.durable_bytes;
  }
}

void ExpectExactly(Client& client, const AckedNow& acked, const ModelConfig& config,
                   const Tokenizer& tokenizer) {
  Listed listed;
  ASSERT_NO_FATAL_FAILURE(List(client, &listed));
  int64_t chunks = 0;  // of kCrashMemory
  for (const auto& [name, state] : acked.documents) {
    if (state.gone) {
      EXPECT_FALSE(listed.documents.contains(name)) << name << " came back";
      continue;
    }
    ASSERT_FALSE(state.may_go) << name << ": an actor left it in between";
    ASSERT_NO_FATAL_FAILURE(AwaitVisible(client, name));
    const std::string& text = *state.text;
    ASSERT_EQ(ReadText(client, name), text) << name;
    std::vector<Token> tokens;
    tokenizer.Encode(text, &tokens);
    const int64_t token_count = 1 + static_cast<int64_t>(tokens.size());
    const auto found = client.GetDocument(name, Patient());
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->visible_bytes(), static_cast<int64_t>(text.size())) << name;
    EXPECT_EQ(found->token_count(), token_count) << name;
    EXPECT_EQ(found->chunk_count(), ExpectedChunks(token_count, config)) << name;
    if (name.starts_with(absl::StrCat(kCrashMemory, "/"))) chunks += found->chunk_count();
  }
  for (const auto& [name, document] : listed.documents) {
    EXPECT_TRUE(acked.documents.contains(name)) << name << ": nobody sent it";
  }
  for (const auto& [name, state] : acked.memories) {
    EXPECT_EQ(listed.memories.contains(name), !state.gone) << name;
  }
  v1::RetrieveRequest request;
  request.add_memories(kCrashMemory);
  request.set_question("What is the pass key?");
  const auto answer = client.Retrieve(request, Patient());
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->chunks_scanned(), chunks);
}

void ExpectBackupHolds(Client& client, const KeptBackup& backup) {
  Listed listed;
  ASSERT_NO_FATAL_FAILURE(List(client, &listed));
  for (const auto& [name, state] : backup.begun.memories) {
    const bool found = listed.memories.contains(name);
    EXPECT_FALSE(state.gone && found) << name << " came back";
    EXPECT_TRUE(found || backup.ended.memories.at(name).may_go) << name << " is lost";
  }
  for (const auto& [name, state] : backup.begun.documents) {
    const auto found = listed.documents.find(name);
    EXPECT_TRUE(!state.gone || found == listed.documents.end()) << name << " came back";
    if (state.durable_bytes == 0 || backup.ended.documents.at(name).may_go) continue;
    ASSERT_TRUE(found != listed.documents.end()) << name << " is lost";
    EXPECT_GE(found->second.durable_bytes(), state.durable_bytes) << name;
  }
  for (const auto& [name, document] : listed.documents) {
    const auto source = backup.ended.documents.find(name);
    ASSERT_TRUE(source != backup.ended.documents.end()) << name << ": nobody sent it";
    // Those whose time is over go while they are read.
    if (source->second.may_go) continue;
    ASSERT_NO_FATAL_FAILURE(AwaitVisible(client, name));
    const std::string text = ReadText(client, name);
    EXPECT_EQ(text, source->second.text->substr(0, text.size())) << name;
  }
}

}  // namespace mneme
