// Forks, snapshots and the past: answers are those of a memory that was given just that text; what
// one memory drops the others keep, and what nobody holds leaves no byte behind.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "tests/engine/engine_harness.h"
#include "tests/memory_store/file_search.h"

namespace mneme {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class ForkTest : public ::testing::Test {
 protected:
  using Texts = std::vector<std::pair<std::string, std::string>>;  // id and text, oldest first

  ForkTest() {
    harness_.CreateMemory("m");
    harness_.model().LookFor("crossed");
  }

  static std::string Snapshot(const std::string& memory, const std::string& id) {
    return absl::StrCat(EngineHarness::Memory(memory), "/snapshots/", id);
  }
  // A moment that nothing is written in.
  static absl::Time Moment() {
    absl::SleepFor(absl::Milliseconds(2));
    const absl::Time moment = absl::Now();
    absl::SleepFor(absl::Milliseconds(2));
    return moment;
  }
  void Fork(const std::string& source, const std::string& id,
            absl::Time as_of = absl::InfiniteFuture()) {
    const auto fork = harness_.engine().ForkMemory(EngineHarness::Memory(id),
                                                   EngineHarness::Memory(source), "", as_of);
    ASSERT_TRUE(fork.ok()) << fork.status();
  }
  // Every passage of a question, by landmarks and looked at again, and the score of a text: all
  // that the network sees of memories.
  using Answer =
      std::tuple<std::vector<std::tuple<std::string, int64_t, int64_t, int64_t, std::string, double,
                                        double, std::optional<double>, std::optional<double>>>,
                 std::vector<double>>;
  Answer Ask(const std::vector<std::string>& names, absl::Time as_of = absl::InfiniteFuture()) {
    Answer answer;
    const CallContext context{.deadline = absl::Now() + kPatience};
    for (const auto& [rerank, keywords] :
         {std::pair(false, false), std::pair(true, false), std::pair(true, true)}) {
      const auto found = harness_.engine().Retrieve({.memories = names,
                                                     .as_of = as_of,
                                                     .question = "the zebra quietly crossed",
                                                     .k = 256,
                                                     .rerank = rerank,
                                                     .keywords = keywords,
                                                     .context_bytes = 100},
                                                    context);
      EXPECT_TRUE(found.ok()) << found.status();
      if (!found.ok()) return answer;
      for (const Passage& p : found->passages) {
        const std::string id = p.document.substr(p.document.rfind('/') + 1);
        EXPECT_EQ(p.rerank_score.has_value(), rerank);
        EXPECT_EQ(p.keyword_score.has_value(), keywords);
        std::get<0>(answer).emplace_back(id, p.chunk_index, p.byte_begin, p.byte_end, p.text,
                                         p.score, p.weight, p.rerank_score, p.keyword_score);
      }
    }
    const auto score = harness_.engine().Score({.memories = names,
                                                .as_of = as_of,
                                                .prompt = "which zebra",
                                                .text = "it crossed the river at night"},
                                               context);
    EXPECT_TRUE(score.ok()) << score.status();
    if (!score.ok()) return answer;
    for (const auto& [text, value] : score->tokens) std::get<1>(answer).push_back(value);
    return answer;
  }
  Answer AskMemory(const std::string& memory, absl::Time as_of = absl::InfiniteFuture()) {
    return Ask({EngineHarness::Memory(memory)}, as_of);
  }
  // A memory that was given just these texts.
  Answer AskFresh(const Texts& texts) {
    const std::string id = absl::StrCat("fresh", ++fresh_);
    harness_.CreateMemory(id);
    for (const auto& [document, text] : texts) {
      if (!text.empty()) harness_.Ingest(id, document, text);
    }
    return AskMemory(id);
  }
  void Append(const std::string& memory, const std::string& document, const std::string& text,
              bool wait_visible) {
    TestWriter writer(harness_.engine(), EngineHarness::Document(memory, document));
    const int64_t end = writer->accepted_bytes() + static_cast<int64_t>(text.size());
    writer.Send(text);
    ASSERT_TRUE(writer->Flush().ok());
    ASSERT_TRUE(wait_visible ? writer.WaitVisible(end) : writer.WaitDurable(end));
  }
  DeletionReceipt Purged(const Deletion& deletion) {
    DeletionReceipt receipt;
    absl::Notification done;
    harness_.engine().WhenPurged(deletion.id, [&](const DeletionReceipt& of) {
      receipt = of;
      done.Notify();
    });
    EXPECT_TRUE(done.WaitForNotificationWithTimeout(kPatience));
    return receipt;
  }

  EngineHarness harness_;
  int fresh_ = 0;
};

TEST_F(ForkTest, AnswersAboutThePastAreThoseOfAMemoryOfThatTextAlone) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937_64 random(seed);
  Texts texts = {{"a", ""}, {"b", ""}, {"c", ""}};
  std::vector<std::pair<absl::Time, Texts>> moments;
  std::vector<std::string> forks;
  for (int step = 0; step < 12; ++step) {
    auto& [id, text] = texts[random() % (step < 3 ? step + 1 : 3)];
    const std::string piece = absl::StrCat(
        RandomText(random(), static_cast<int>(1 + random() % 300)), random() % 2 == 0 ? " " : "");
    Append("m", id, piece, random() % 2 == 0);
    text += piece;
    if (random() % 3 == 0) {
      forks.push_back(absl::StrCat("f", step));
      Fork("m", forks.back());
      moments.emplace_back(absl::InfiniteFuture(), texts);
    } else {
      forks.emplace_back();
      moments.emplace_back(Moment(), texts);
    }
  }
  if (random() % 2 == 0) {
    harness_.Restart();
    ASSERT_TRUE(harness_.WaitReady());
  }
  for (size_t i = 0; i < moments.size(); ++i) {
    const auto& [moment, then] = moments[i];
    // Documents begin in the order in which they were first written.
    Texts in_order;
    const auto memory = harness_.store().GetMemory("default", "m");
    const auto infos = harness_.store().ListDocuments(memory->uid, DocumentId{}, 10);
    for (const auto& info : infos.value()) {
      for (const auto& text : then) {
        if (text.first == info.id) in_order.push_back(text);
      }
    }
    const Answer answer = forks[i].empty() ? AskMemory("m", moment) : AskMemory(forks[i]);
    EXPECT_EQ(answer, AskFresh(in_order)) << "moment " << i << " fork " << forks[i];
  }
}

TEST_F(ForkTest, AForkOutlivesItsBaseAndGoesItsOwnWay) {
  const std::string text = RandomText(1, 500);
  Append("m", "a", text, true);
  Fork("m", "f");
  Append("m", "a", RandomText(2, 300), true);
  harness_.Ingest("m", "later", RandomText(3, 100));
  Append("f", "own", "the zebra quietly crossed at dawn", true);
  const Answer expected = AskFresh({{"a", text}, {"own", "the zebra quietly crossed at dawn"}});
  EXPECT_EQ(AskMemory("f"), expected);
  ASSERT_TRUE(harness_.engine().DeleteMemory(EngineHarness::Memory("m")).ok());
  EXPECT_EQ(AskMemory("f"), expected);
  harness_.CreateMemory("m");  // the name is free at once
  harness_.Restart();
  ASSERT_TRUE(harness_.WaitReady());
  EXPECT_EQ(AskMemory("f"), expected);
  EXPECT_EQ(harness_.engine().GetMemory(EngineHarness::Memory("f"))->info.base->memory_id, "");
}

TEST_F(ForkTest, SharedDocumentsTakeNoTextUntilTheyAreDroppedAndWrittenAnew) {
  Append("m", "a", "the pass key is blue", true);
  Fork("m", "f");
  const std::string name = EngineHarness::Document("f", "a");
  const auto writer = harness_.engine().OpenWriter(name, {});
  EXPECT_TRUE(absl::IsFailedPrecondition(writer.status()));
  EXPECT_THAT(std::string(writer.status().message()), HasSubstr("shared"));
  const auto dropped = harness_.engine().DeleteDocument(name);
  ASSERT_TRUE(dropped.ok()) << dropped.status();
  const DeletionReceipt receipt = Purged(*dropped);
  EXPECT_EQ(receipt.documents, 0);
  EXPECT_EQ(receipt.held_documents, 1);
  EXPECT_THAT(receipt.held_by, ElementsAre("m"));
  EXPECT_EQ(receipt.purge_time, absl::InfiniteFuture());
  Append("f", "a", "the pass key is red", true);
  EXPECT_EQ(harness_.engine().ReadText(name, 0, 19).value(), "the pass key is red");
  EXPECT_EQ(harness_.engine().ReadText(EngineHarness::Document("m", "a"), 0, 20).value(),
            "the pass key is blue");
}

TEST_F(ForkTest, WhatAForkHoldsStaysAndTheRestLeavesNoByte) {
  const std::string held = "heldmarkerone" + RandomText(11, 300);
  const std::string later = " latermarkertwo" + RandomText(12, 300) + " latermarkerend";
  Append("m", "a", held, true);
  Fork("m", "f");
  Append("m", "a", later, true);
  EXPECT_EQ(AskMemory("f"), AskFresh({{"a", held}}));
  ASSERT_TRUE(harness_.engine().DeleteMemory(EngineHarness::Memory("fresh1")).ok());
  // m drops it: f holds the beginning, nobody the rest.
  const auto first = harness_.engine().DeleteDocument(EngineHarness::Document("m", "a"));
  ASSERT_TRUE(first.ok()) << first.status();
  const DeletionReceipt part = Purged(*first);
  EXPECT_EQ(part.text_bytes, static_cast<int64_t>(later.size()));
  EXPECT_EQ(part.held_text_bytes, static_cast<int64_t>(held.size()));
  EXPECT_THAT(part.held_by, ElementsAre("f"));
  EXPECT_THAT(MarkersOnDisk(harness_.folder(), {"latermarkertwo", "latermarkerend"}), IsEmpty());
  EXPECT_EQ(AskMemory("f"), AskFresh({{"a", held}}));
  ASSERT_TRUE(harness_.engine().DeleteMemory(EngineHarness::Memory("fresh2")).ok());
  const auto last = harness_.engine().DeleteMemory(EngineHarness::Memory("f"));
  ASSERT_TRUE(last.ok()) << last.status();
  const DeletionReceipt rest = Purged(*last);
  EXPECT_EQ(rest.documents, 1);
  EXPECT_EQ(rest.held_documents, 0);
  EXPECT_LT(rest.purge_time, absl::InfiniteFuture());
  EXPECT_THAT(MarkersOnDisk(harness_.folder(), {"heldmarkerone"}), IsEmpty());
}

TEST_F(ForkTest, EverywhereReachesForksOfForks) {
  Append("m", "a", "everywheremarker is here", true);
  Fork("m", "f");
  Fork("f", "g");
  const auto deletion =
      harness_.engine().DeleteDocument(EngineHarness::Document("m", "a"), /*everywhere=*/true);
  ASSERT_TRUE(deletion.ok()) << deletion.status();
  EXPECT_LT(Purged(*deletion).purge_time, absl::InfiniteFuture());
  for (const char* memory : {"m", "f", "g"}) {
    EXPECT_TRUE(absl::IsNotFound(
        harness_.engine().GetDocument(EngineHarness::Document(memory, "a")).status()))
        << memory;
  }
  EXPECT_THAT(MarkersOnDisk(harness_.folder(), {"everywheremarker"}), IsEmpty());
}

TEST_F(ForkTest, AWriterOfADroppedDocumentEndsAndItsTextIsDerivedForTheFork) {
  TestWriter writer(harness_.engine(), EngineHarness::Document("m", "a"));
  const std::string text = RandomText(21, 400);
  writer.Send(text);
  ASSERT_TRUE(writer.WaitDurable(static_cast<int64_t>(text.size())));
  Fork("m", "f");
  ASSERT_TRUE(harness_.engine().DeleteDocument(EngineHarness::Document("m", "a")).ok());
  EXPECT_TRUE(absl::IsNotFound(writer.WaitFailed()));
  writer.Drop();
  EXPECT_EQ(AskMemory("f"), AskFresh({{"a", text}}));
}

TEST_F(ForkTest, TheOrderOfMemoriesForksAndSnapshotsDoesNotMatter) {
  Append("m", "a", RandomText(31, 60), true);
  ASSERT_TRUE(harness_.engine().CreateSnapshot(Snapshot("m", "s")).ok());
  Fork("m", "f");
  Append("m", "a", RandomText(32, 60), true);
  Append("f", "b", RandomText(33, 60), true);
  harness_.CreateMemory("n");
  Append("n", "c", RandomText(34, 60), true);
  Append("m", "d", RandomText(35, 60), true);
  std::vector<std::string> names = {EngineHarness::Memory("m"), EngineHarness::Memory("f"),
                                    EngineHarness::Memory("n"), Snapshot("m", "s")};
  const Answer first = Ask(names);
  // Each document once: a with all the text that m has, in the order in which they began.
  int64_t chunks = 0;
  for (const char* document :
       {"m/documents/a", "f/documents/b", "n/documents/c", "m/documents/d"}) {
    chunks += harness_.engine()
                  .GetDocument(absl::StrCat("tenants/default/memories/", document))
                  ->chunk_count;
  }
  EXPECT_EQ(static_cast<int64_t>(std::get<0>(first).size()), 3 * chunks);
  std::sort(names.begin(), names.end());
  do {
    EXPECT_EQ(Ask(names), first);
  } while (std::next_permutation(names.begin(), names.end()));
  EXPECT_EQ(
      AskMemory("m",
                harness_.engine().ListSnapshots(EngineHarness::Memory("m"), "", 9)->front().as_of),
      Ask({Snapshot("m", "s")}));
}

TEST_F(ForkTest, APassageIsNamedByAMemoryThatHasItsText) {
  const std::string early = RandomText(41, 60);
  const auto early_bytes = static_cast<int64_t>(early.size());
  Append("m", "a", early, true);
  ASSERT_TRUE(harness_.engine().CreateSnapshot(Snapshot("m", "s")).ok());
  Append("m", "a", RandomText(42, 60), true);
  Append("m", "b", RandomText(43, 60), true);
  Fork("m", "f");
  // At the moment of the snapshot m had the beginning of a alone; the fork has all.
  const auto found = harness_.engine().Retrieve(
      {.memories = {Snapshot("m", "s"), EngineHarness::Memory("f")}, .question = "x", .k = 256},
      {.deadline = absl::Now() + kPatience});
  ASSERT_TRUE(found.ok()) << found.status();
  std::set<std::string> names;
  for (const Passage& passage : found->passages) {
    const bool is_early = passage.document.ends_with("/a") && passage.byte_end <= early_bytes;
    const std::string id = passage.document.substr(passage.document.rfind('/') + 1);
    EXPECT_EQ(passage.document, EngineHarness::Document(is_early ? "m" : "f", id));
    names.insert(passage.document);
  }
  EXPECT_THAT(names,
              ElementsAre(EngineHarness::Document("f", "a"), EngineHarness::Document("f", "b"),
                          EngineHarness::Document("m", "a")));
}

TEST_F(ForkTest, WhoWaitsForTailsThatAnotherQuestionDerivesMayLeave) {
  Append("m", "a", "the zebra quietly", true);
  Fork("m", "f");
  Append("m", "a", " crossed", true);
  Gate& gate = harness_.NewGate();
  std::atomic<bool> passed{false};
  harness_.model().OnForward([&](FakeModel::Segments) {
    gate.Pass();
    passed = true;
    return absl::OkStatus();
  });
  const RetrieveOptions options{.memories = {EngineHarness::Memory("f")}, .question = "zebra"};
  std::thread first([&] { EXPECT_TRUE(harness_.engine().Retrieve(options, {}).ok()); });
  ASSERT_TRUE(gate.WaitArrived(1));
  std::atomic<int> asked{0};
  const auto second =
      harness_.engine().Retrieve(options, {.cancelled = [&] { return asked.fetch_add(1) > 20; }});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(passed);
  gate.Open();
  first.join();
  EXPECT_TRUE(harness_.engine().Retrieve(options, {}).ok());
}

TEST_F(ForkTest, WhoWaitsForTextThatIsCutOffMeanwhileIsAnsweredWithoutIt) {
  Append("m", "a", "the zebra quietly", true);
  Append("m", "b", "the zebra crossed", true);
  Fork("m", "f");
  Gate& gate = harness_.NewGate();
  harness_.model().OnForward([&gate](FakeModel::Segments) {
    gate.Pass();
    return absl::OkStatus();
  });
  Append("m", "a", " crossed", false);
  std::atomic<int> looked{0};
  const CallContext context{.deadline = absl::Now() + kPatience,
                            .cancelled = [&looked] { return looked.fetch_add(1) < 0; }};
  std::thread asking([this, moment = Moment(), &context] {
    const auto found = harness_.engine().Retrieve(
        {.memories = {EngineHarness::Memory("m")}, .as_of = moment, .question = "zebra"}, context);
    ASSERT_TRUE(found.ok()) << found.status();
    ASSERT_FALSE(found->passages.empty());
    for (const Passage& passage : found->passages) {
      EXPECT_EQ(passage.document, EngineHarness::Document("m", "b"));
    }
  });
  const absl::Time until = absl::Now() + kPatience;
  while (looked < 5 && absl::Now() < until) absl::SleepFor(absl::Milliseconds(1));  // it waits
  EXPECT_TRUE(harness_.engine().DeleteDocument(EngineHarness::Document("m", "a")).ok());
  gate.Open();
  asking.join();
}

TEST_F(ForkTest, WrongMomentsAndNamesAreNamed) {
  Engine& engine = harness_.engine();
  const std::string m = EngineHarness::Memory("m");
  const auto retrieve = [&](const std::string& name, absl::Time as_of) {
    return engine.Retrieve({.memories = {name}, .as_of = as_of, .question = "x"}, {}).status();
  };
  EXPECT_TRUE(absl::IsInvalidArgument(retrieve(m, absl::Now() + absl::Hours(1))));
  EXPECT_TRUE(retrieve(m, absl::UnixEpoch()).ok()) << "nothing was there";
  EXPECT_TRUE(absl::IsNotFound(retrieve(Snapshot("m", "none"), absl::InfiniteFuture())));
  EXPECT_TRUE(absl::IsInvalidArgument(
      engine.ForkMemory(EngineHarness::Memory("f"), m, "", absl::UnixEpoch()).status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(engine.ForkMemory("tenants/other/memories/f", m, "").status()));
  EXPECT_TRUE(absl::IsAlreadyExists(engine.ForkMemory(m, m, "").status()));
  EXPECT_TRUE(absl::IsNotFound(
      engine.ForkMemory(EngineHarness::Memory("f"), EngineHarness::Memory("none"), "").status()));
  EXPECT_TRUE(absl::IsNotFound(engine.DeleteSnapshot(Snapshot("m", "none"))));
  EXPECT_TRUE(absl::IsInvalidArgument(engine.CreateSnapshot(m).status()));
  ASSERT_TRUE(engine.CreateSnapshot(Snapshot("m", "s")).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(engine.CreateSnapshot(Snapshot("m", "s")).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      engine.ForkMemory(EngineHarness::Memory("f"), Snapshot("m", "s"), "", absl::Now()).status()));
}

}  // namespace
}  // namespace mneme
