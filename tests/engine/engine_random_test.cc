// Writers, readers and deleters at random and at once, with restarts between rounds, against what
// the test knows must be there. Long for a unit test (seconds): chance needs some rounds.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/engine/engine_harness.h"

namespace mneme {
namespace {

constexpr int kMemories = 2;
constexpr int kWriters = 4;
constexpr int kReaders = 3;

// What must be there. A writer thread owns its documents; others look them up.
class Expected {
 public:
  // Text that the engine has acked as visible; what a question must see from now on.
  void SetVisible(const std::string& name, const std::string& text, int64_t visible) {
    absl::MutexLock lock(&mutex_);
    documents_[name] = {text, visible};
  }
  void Remove(const std::string& name) {
    absl::MutexLock lock(&mutex_);
    documents_.erase(name);
    removed_.insert(name);
  }
  struct Document {
    std::string text;  // all that was ever sent
    int64_t visible_bytes = 0;
  };
  std::map<std::string, Document> documents() const {
    absl::MutexLock lock(&mutex_);
    return documents_;
  }
  bool removed(const std::string& name) const {
    absl::MutexLock lock(&mutex_);
    return removed_.contains(name);
  }

 private:
  mutable absl::Mutex mutex_;
  std::map<std::string, Document> documents_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> removed_ ABSL_GUARDED_BY(mutex_);
};

class EngineRandomTest : public ::testing::Test {
 protected:
  static std::string MemoryOf(uint64_t draw) { return absl::StrCat("m", draw % kMemories); }

  // Writes some documents, one after the other, in random pieces; deletes some.
  void Write(int round, int writer, uint64_t seed) {
    std::mt19937_64 random(seed);
    for (int i = 0; i < 4; ++i) {
      const std::string memory = MemoryOf(random());
      const std::string id = absl::StrCat("r", round, "w", writer, "d", i);
      const std::string name = EngineHarness::Document(memory, id);
      const std::string text = RandomText(random(), 10 + static_cast<int>(random() % 300));
      const auto size = static_cast<int64_t>(text.size());
      expected_.SetVisible(name, text, 0);
      auto handle = std::make_unique<TestWriter>(harness_.engine(), name);
      while ((*handle)->accepted_bytes() < size) {
        const auto at = static_cast<size_t>((*handle)->accepted_bytes());
        handle->Send(text.substr(at, 1 + random() % 400));
        const uint64_t what = random() % 10;
        if (what == 0) (*handle)->Flush().IgnoreError();
        if (what == 1) expected_.SetVisible(name, text, handle->told().visible_bytes);
        if (what == 2) {
          handle.reset();
          handle = std::make_unique<TestWriter>(harness_.engine(), name);
        }
      }
      if (random() % 2 == 0) {
        ASSERT_TRUE((*handle)->Seal().ok());
      } else {
        ASSERT_TRUE((*handle)->Flush().ok());
      }
      if (random() % 2 == 0) {
        ASSERT_TRUE(handle->WaitVisible(size));
        expected_.SetVisible(name, text, size);
      } else {
        ASSERT_TRUE(handle->WaitDurable(size));
      }
      EXPECT_FALSE(handle->misbehaved());
      if (random() % 4 == 0) {
        // Sometimes under its writer.
        if (random() % 2 == 0) handle.reset();
        expected_.Remove(name);
        ASSERT_TRUE(harness_.engine().DeleteDocument(name).ok());
        EXPECT_FALSE(harness_.engine().GetDocument(name).ok());
      }
    }
  }

  void Read(uint64_t seed) {
    std::mt19937_64 random(seed);
    while (!writers_done_) {
      const auto before = expected_.documents();
      RetrieveOptions options{.question = RandomQuestion(random(), 6),
                              .k = 1 + static_cast<int>(random() % 256),
                              .explain = random() % 4 == 0};
      for (int m = 0; m < kMemories; ++m) {
        options.memories.push_back(EngineHarness::Memory(absl::StrCat("m", m)));
      }
      const auto result =
          harness_.engine().Retrieve(options, {.deadline = absl::Now() + kPatience});
      ASSERT_TRUE(result.ok()) << result.status();
      const auto after = expected_.documents();
      double weights = 0;
      std::map<std::string, int64_t> found_bytes;
      for (const Passage& passage : result->passages) {
        weights += passage.weight;
        found_bytes[passage.document] += passage.byte_end - passage.byte_begin;
        const auto document = after.find(passage.document);
        if (document == after.end()) {
          EXPECT_TRUE(expected_.removed(passage.document)) << passage.document;
          continue;
        }
        EXPECT_EQ(passage.text, document->second.text.substr(
                                    static_cast<size_t>(passage.byte_begin),
                                    static_cast<size_t>(passage.byte_end - passage.byte_begin)));
      }
      EXPECT_LE(weights, 1 + 1e-5);
      // With all chunks asked for, everything that was visible before the question is there.
      if (result->chunks_scanned <= options.k) {
        for (const auto& [name, document] : before) {
          if (expected_.removed(name)) continue;
          EXPECT_GE(found_bytes[name], document.visible_bytes) << name;
        }
      }
      if (random() % 3 == 0) {
        std::string answer;
        const auto generated = harness_.engine().Generate(
            {.memories = options.memories,
             .question = options.question,
             .max_tokens = 1 + static_cast<int>(random() % 20),
             .temperature = 2,
             .seed = random()},
            {.deadline = absl::Now() + kPatience}, [&](GeneratePiece piece) {
              answer += piece.text;
              return random() % 50 != 0;
            });
        EXPECT_TRUE(generated.ok() || absl::IsCancelled(generated.status())) << generated.status();
      }
    }
  }

  EngineHarness harness_{[] {
    EngineOptions options = EngineHarness::TestOptions();
    options.idle_flush = absl::Milliseconds(2);
    options.queue_segments_max = 8;
    options.batch_segments_max = 3;
    options.readers_max = 2;
    return options;
  }()};
  Expected expected_;
  std::atomic<bool> writers_done_{false};
};

TEST_F(EngineRandomTest, WhatIsVisibleIsFoundAndWhatIsDeletedIsGone) {
  const uint64_t seed = 20261122;
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int m = 0; m < kMemories; ++m) harness_.CreateMemory(absl::StrCat("m", m));
  for (int round = 0; round < 4; ++round) {
    SCOPED_TRACE(absl::StrCat("round ", round));
    writers_done_ = false;
    std::vector<std::thread> writers, readers;
    for (int i = 0; i < kWriters; ++i) {
      writers.emplace_back([this, round, i, own = random()] { Write(round, i, own); });
    }
    for (int i = 0; i < kReaders; ++i) {
      readers.emplace_back([this, own = random()] { Read(own); });
    }
    for (std::thread& thread : writers) thread.join();
    writers_done_ = true;
    for (std::thread& thread : readers) thread.join();

    // A crash; sometimes with derived data lost.
    harness_.Stop();
    if (random() % 2 == 0) harness_.LoseTable(Table::kPages);
    if (random() % 2 == 0) harness_.LoseTable(Table::kSegments);
    harness_.Start();
    ASSERT_TRUE(harness_.WaitReady());
    int64_t count = 0;
    for (const auto& [name, document] : expected_.documents()) {
      const auto parsed = ResourceName::ParseDocument(name);
      EXPECT_EQ(harness_.DerivedDiffers(parsed->memory, parsed->document, document.text), "")
          << name;
      ++count;
    }
    EXPECT_EQ(harness_.store().totals().documents, count);
  }
}

}  // namespace
}  // namespace mneme
