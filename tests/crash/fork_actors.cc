// Actors that fork memories, read the past, and delete what forks share.

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/crash/actors.h"
#include "tests/crash/sending.h"

namespace mneme {
namespace {

constexpr char kTenant[] = "tenants/default";
constexpr size_t kTreeMemoriesMax = 6;

std::string MemoryName(const std::string& id) { return absl::StrCat(kTenant, "/memories/", id); }

void SetTime(absl::Time time, google::protobuf::Timestamp* timestamp) {
  const int64_t micros = absl::ToUnixMicros(time);
  timestamp->set_seconds(micros / 1'000'000);
  timestamp->set_nanos(static_cast<int32_t>(micros % 1'000'000 * 1000));
}

// What an answer over some memories may come from.
class ExpectedAnswer {
 public:
  // A document that one of them has.
  void Add(const std::string& name, const AckedNow::Document& document, int64_t bytes) {
    Text& text = texts_[document.origin];
    // Copies have as much of the text as there was when they were made.
    if (bytes > text.bytes || text.of == nullptr) text.of = document.text;
    text.bytes = std::max(text.bytes, bytes);
    Named& named = named_[name];
    named = {document.origin, std::max(named.bytes, bytes)};
  }
  int64_t Chunks(const Stage& stage) const {
    int64_t chunks = 0;
    for (const auto& [origin, text] : texts_) {
      chunks += stage.chunks_of(absl::string_view(*text.of).substr(0, text.bytes));
    }
    return chunks;
  }
  template <typename Passages>
  void ExpectFits(const Passages& passages) {
    for (const v1::Passage& passage : passages) {
      const auto named = named_.find(passage.document());
      ASSERT_TRUE(named != named_.end()) << passage.document() << " is not there";
      ASSERT_LE(passage.byte_end(), named->second.bytes) << passage.document() << " had less text";
      const Text& text = texts_.at(named->second.origin);
      // What is generated carries the text of a passage the first time only.
      const bool is_told = !told_.insert({passage.document(), passage.chunk_index()}).second;
      const int64_t bytes = is_told ? 0 : passage.byte_end() - passage.byte_begin();
      ASSERT_EQ(passage.text(), text.of->substr(passage.byte_begin(), bytes)) << passage.document();
    }
  }

 private:
  struct Text {
    std::shared_ptr<const std::string> of;
    int64_t bytes = 0;
  };
  struct Named {
    std::string origin;
    int64_t bytes = 0;  // the most that it had at one of the moments asked about
  };
  std::map<std::string, Text> texts_;   // by origin
  std::map<std::string, Named> named_;  // by name
  std::set<std::pair<std::string, int64_t>> told_;
};

// A memory and all that is made of it, by whatever way.
class ForkTree {
 public:
  ForkTree(Stage& stage, std::mt19937& random, int actor, int index)
      : stage_(stage), random_(random), prefix_(absl::StrCat("f", actor, "-", index, "-")) {}

  void Plant() {
    const std::string id = NewId();
    const std::string memory = MemoryName(id);
    AckedPolicy policy{.keeps_pages = Random(2) == 0};
    stage_.acked.BeginMemory(memory, policy);
    v1::CreateMemoryRequest create;
    create.set_parent(kTenant);
    create.set_memory_id(id);
    *create.mutable_memory() = MemoryMessage("", policy);
    const auto created = stage_.client.CreateMemory(create);
    ASSERT_TRUE(created.ok() || absl::IsAlreadyExists(created.status())) << created.status();
    stage_.acked.AddMemory(memory, policy);
    live_[memory] = policy;
  }

  void Step() {
    switch (Random(16)) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4:
        return WriteStep();
      case 5:
      case 6:
      case 7:
        return ForkStep();
      case 8:
      case 9:
        return SnapshotStep();
      case 10:
        moments_.push_back({absl::Now(), written_});
        return;
      case 11:
      case 12:
        return DeleteDocumentStep();
      case 13:
        return Random(3) == 0 && live_.size() > 1 ? DeleteMemoryStep() : PolicyStep();
      default:
        return AskStep();
    }
  }

  // All goes, but now and then a memory that stays.
  void Fell() {
    if (Random(4) == 0) {
      ASSERT_NO_FATAL_FAILURE(ExpireStep());
    }
    for (size_t left = live_.size(); left > 0 && !stage_.stop.load(); --left) {
      if (Random(12) == 0) {
        live_.erase(AnyMemory());
      } else {
        ASSERT_NO_FATAL_FAILURE(DeleteMemoryStep());
      }
    }
  }

 private:
  // Of each document, by its origin, what was written at a time.
  using Written = std::map<std::string, int64_t>;
  struct Moment {
    absl::Time time;
    Written written;
  };

  int Random(int below) { return static_cast<int>(random_() % static_cast<uint32_t>(below)); }
  std::string NewId() { return absl::StrCat(prefix_, next_id_++); }
  std::string AnyMemory() {
    return std::next(live_.begin(), Random(static_cast<int>(live_.size())))->first;
  }
  const Moment* AnyMoment() {
    return moments_.empty() ? nullptr : &moments_[random_() % moments_.size()];
  }
  // A snapshot's name; empty: the memory has none.
  std::string AnySnapshot(const std::string& memory) {
    std::vector<std::string> names;
    for (const auto& [name, written] : snapshots_) {
      if (MemoryOf(name) == memory) names.push_back(name);
    }
    return names.empty() ? "" : names[random_() % names.size()];
  }
  // How much of each document a memory has, or had when so much was written.
  static std::map<std::string, int64_t> Holds(const AckedNow& now, const std::string& memory,
                                              const Written* written) {
    std::map<std::string, int64_t> bytes;
    for (const auto& [name, document] : now.DocumentsOf(memory)) {
      int64_t count = document.text_bytes;
      if (written != nullptr) {
        const auto then = written->find(document.origin);
        count = then == written->end() ? 0 : std::min(count, then->second);
      }
      if (count > 0) bytes[name] = count;
    }
    return bytes;
  }

  void WriteStep() {
    const std::string name =
        absl::StrCat(AnyMemory(), "/documents/d", Random(static_cast<int>(live_.size()) + 3));
    const AckedNow now = stage_.acked.Now();
    const auto found = now.documents.find(name);
    const bool is_there = found != now.documents.end() && !found->second.gone;
    // Text of a fork's base is not its own to grow.
    if (is_there && (found->second.is_copy || !open_.contains(found->second.origin))) return;
    std::string text = is_there ? *found->second.text : "";
    absl::StrAppend(&text, RandomText(random_, 1 + random_() % 5000));
    if (is_there) {
      stage_.acked.GrowDocument(name, text);
    } else {
      stage_.acked.AddDocument(name, text);
    }
    const bool seal = Random(5) == 0;
    ASSERT_NO_FATAL_FAILURE(SendText(stage_, random_, name, text, {.seal = seal}));
    const std::string origin = stage_.acked.Now().documents.at(name).origin;
    written_[origin] = static_cast<int64_t>(text.size());
    if (seal) {
      open_.erase(origin);
    } else {
      open_.insert(origin);
    }
  }

  void ForkStep() {
    if (live_.size() >= kTreeMemoriesMax) return;
    const std::string source = AnyMemory();
    // A name of its own, or one that a deleted memory had.
    std::string id = NewId();
    if (!free_ids_.empty() && Random(2) == 0) {
      id = *free_ids_.begin();
      free_ids_.erase(free_ids_.begin());
    }
    const Moment* const moment = Random(3) == 0 ? AnyMoment() : nullptr;
    const std::string snapshot = moment == nullptr && Random(2) == 0 ? AnySnapshot(source) : "";
    const Written* const written = moment != nullptr  ? &moment->written
                                   : snapshot.empty() ? nullptr
                                                      : &snapshots_.at(snapshot);
    v1::ForkMemoryRequest request;
    request.set_parent(kTenant);
    request.set_memory_id(id);
    request.set_source(snapshot.empty() ? source : snapshot);
    if (moment != nullptr) SetTime(moment->time, request.mutable_as_of());
    const std::string fork = MemoryName(id);
    stage_.acked.BeginFork(fork, source, Holds(stage_.acked.Now(), source, written));
    const auto made = stage_.client.ForkMemory(request);
    ASSERT_TRUE(made.ok() || absl::IsAlreadyExists(made.status())) << fork << ": " << made.status();
    stage_.acked.Forked(fork);
    live_[fork] = live_.at(source);
    ++stage_.forks;
  }

  void SnapshotStep() {
    const std::string memory = AnyMemory();
    const std::string id = absl::StrCat("s", Random(4));
    const std::string name = absl::StrCat(memory, "/snapshots/", id);
    if (snapshots_.contains(name)) {
      stage_.acked.BeginDelete(name);
      const absl::Status deleted = stage_.client.DeleteSnapshot(name);
      ASSERT_TRUE(deleted.ok()) << name << ": " << deleted;
      stage_.acked.Deleted(name);
      snapshots_.erase(name);
      return;
    }
    const Moment* const moment = Random(3) == 0 ? AnyMoment() : nullptr;
    v1::CreateSnapshotRequest request;
    request.set_parent(memory);
    request.set_snapshot_id(id);
    if (moment != nullptr) SetTime(moment->time, request.mutable_as_of());
    stage_.acked.BeginSnapshot(name);
    const auto made = stage_.client.CreateSnapshot(request);
    ASSERT_TRUE(made.ok() || absl::IsAlreadyExists(made.status())) << name << ": " << made.status();
    stage_.acked.Snapped(name);
    snapshots_[name] = moment != nullptr ? moment->written : written_;
    ++stage_.snapshots;
  }

  void DeleteDocumentStep() {
    const auto documents = stage_.acked.Now().DocumentsOf(AnyMemory());
    if (documents.empty()) return;
    const std::string name = documents[random_() % documents.size()].first;
    const bool everywhere = Random(4) == 0;
    everywhere ? stage_.acked.BeginDeleteEverywhere(name) : stage_.acked.BeginDelete(name);
    const auto deletion = stage_.client.DeleteDocument(name, {}, everywhere);
    ASSERT_TRUE(deletion.ok()) << name << ": " << deletion.status();
    everywhere ? stage_.acked.DeletedEverywhere(name) : stage_.acked.Deleted(name);
    ++stage_.drops;
  }

  void DeleteMemoryStep() {
    const std::string memory = AnyMemory();
    const bool everywhere = Random(6) == 0;
    everywhere ? stage_.acked.BeginDeleteEverywhere(memory) : stage_.acked.BeginDelete(memory);
    const auto deletion = stage_.client.DeleteMemory(memory, {}, everywhere);
    ASSERT_TRUE(deletion.ok()) << memory << ": " << deletion.status();
    everywhere ? stage_.acked.DeletedEverywhere(memory) : stage_.acked.Deleted(memory);
    live_.erase(memory);
    std::erase_if(snapshots_,
                  [&memory](const auto& entry) { return MemoryOf(entry.first) == memory; });
    free_ids_.insert(std::string(absl::StripPrefix(memory, MemoryName(""))));
    ++stage_.drops;
  }

  void PolicyStep() {
    const std::string memory = AnyMemory();
    AckedPolicy& policy = live_[memory];
    policy.keeps_pages = !policy.keeps_pages;
    ASSERT_NO_FATAL_FAILURE(UpdateMemory(stage_, memory, policy));
  }
  // What was written into one memory ends, wherever it is held. Nothing is written after.
  void ExpireStep() {
    const std::string memory = AnyMemory();
    ASSERT_NO_FATAL_FAILURE(ExpireMemory(stage_, random_, memory, &live_[memory]));
  }

  void AskStep() {
    const AckedNow now = stage_.acked.Now();
    const Moment* const moment = Random(2) == 0 ? AnyMoment() : nullptr;
    const bool is_live = moment == nullptr && Random(3) == 0;
    ExpectedAnswer expected;
    std::vector<std::string> sources;
    for (int count = 1 + Random(3); count > 0; --count) {
      const std::string memory = AnyMemory();
      const std::string snapshot = Random(2) == 0 ? AnySnapshot(memory) : "";
      const Written* const written = !snapshot.empty()   ? &snapshots_.at(snapshot)
                                     : moment != nullptr ? &moment->written
                                                         : nullptr;
      for (const auto& [name, bytes] : Holds(now, memory, written)) {
        expected.Add(name, now.documents.at(name), bytes);
      }
      sources.push_back(snapshot.empty() ? memory : snapshot);
    }
    ++stage_.past_questions;
    const absl::Time as_of = moment != nullptr ? moment->time : absl::Now();
    if (Random(5) == 0) return Generate(sources, is_live, as_of, expected);
    v1::RetrieveRequest request;
    request.mutable_memories()->Add(sources.begin(), sources.end());
    request.set_question("What is the pass key?");
    request.set_k(64);
    if (!is_live) SetTime(as_of, request.mutable_as_of());
    const auto answer = stage_.client.Retrieve(request);
    ASSERT_TRUE(answer.ok()) << answer.status();
    ASSERT_NO_FATAL_FAILURE(expected.ExpectFits(answer->passages()));
    // Of what is live the newest text may not be visible yet.
    const int64_t chunks = expected.Chunks(stage_);
    ASSERT_LE(answer->chunks_scanned(), chunks) << request.DebugString();
    ASSERT_TRUE(is_live || answer->chunks_scanned() == chunks)
        << answer->chunks_scanned() << " of " << chunks << " chunks: " << request.DebugString();
  }
  void Generate(const std::vector<std::string>& sources, bool is_live, absl::Time as_of,
                ExpectedAnswer& expected) {
    v1::GenerateRequest request;
    request.mutable_memories()->Add(sources.begin(), sources.end());
    request.set_question("What is the pass key?");
    request.set_max_tokens(4);
    if (!is_live) SetTime(as_of, request.mutable_as_of());
    const absl::Status status =
        stage_.client.Generate(request, [&](const v1::GenerateResponse& response) {
          expected.ExpectFits(response.passages());
          return true;
        });
    ASSERT_TRUE(status.ok() || absl::IsUnavailable(status)) << status;
  }

  Stage& stage_;
  std::mt19937& random_;
  const std::string prefix_;
  int next_id_ = 0;
  std::map<std::string, AckedPolicy> live_;  // memories
  std::set<std::string> free_ids_;           // of memories that are gone
  std::set<std::string> open_;               // origins that may grow
  Written written_;                          // now
  std::vector<Moment> moments_;
  std::map<std::string, Written> snapshots_;  // by name
};

// The durable bytes of a memory's documents, by name.
absl::Status ListBytes(Client& client, const std::string& memory,
                       std::map<std::string, int64_t>* bytes) {
  bytes->clear();
  return client.ListDocuments(memory, [bytes](const v1::Document& document) {
    EXPECT_TRUE(document.shared()) << document.name();
    EXPECT_TRUE(bytes->emplace(document.name(), document.durable_bytes()).second)
        << document.name() << " is there twice";
    return true;
  });
}

// What a fork of `base` holds, by what had been acked before it was asked for and after.
void ExpectForked(const std::string& fork, const std::string& base, const AckedNow& before,
                  const AckedNow& after, const std::map<std::string, int64_t>& bytes) {
  const auto fork_name = [&](const std::string& name) {
    return absl::StrCat(fork, absl::StripPrefix(name, base));
  };
  for (const auto& [name, document] : before.DocumentsOf(base)) {
    if (document.durable_bytes == 0 || after.documents.at(name).may_go) continue;
    const auto found = bytes.find(fork_name(name));
    ASSERT_TRUE(found != bytes.end()) << fork << " lacks " << name;
    ASSERT_GE(found->second, document.durable_bytes) << fork << " lacks the end of " << name;
  }
  for (const auto& [name, count] : bytes) {
    const std::string of = absl::StrCat(base, absl::StripPrefix(name, fork));
    const auto sent = after.documents.find(of);
    ASSERT_TRUE(sent != after.documents.end()) << name << ": nobody sent it";
    ASSERT_LE(count, sent->second.text_bytes) << name;
    const auto earlier = before.documents.find(of);
    ASSERT_TRUE(earlier == before.documents.end() || !earlier->second.gone) << name << " came back";
  }
}

// With nothing lost and nothing new but what expired.
void ExpectUnchanged(const AckedNow& now, const std::map<std::string, int64_t>& held,
                     const std::map<std::string, int64_t>& bytes) {
  for (const auto& [name, count] : held) {
    const AckedNow::Document& document = now.documents.at(name);
    const auto found = bytes.find(name);
    if (document.may_go) continue;
    ASSERT_TRUE(found != bytes.end()) << name << " is lost";
    ASSERT_EQ(found->second, count) << name;
  }
  for (const auto& [name, count] : bytes) {
    ASSERT_TRUE(held.contains(name)) << name << " was not there";
    ASSERT_FALSE(now.documents.at(name).gone && !now.documents.at(name).expires)
        << name << " came back";
  }
}

}  // namespace

void GrowForkTrees(Stage& stage, int index, uint32_t seed) {
  std::mt19937 random(seed);
  for (int i = 0; !stage.stop.load(); ++i) {
    ForkTree tree(stage, random, index, i);
    ASSERT_NO_FATAL_FAILURE(tree.Plant());
    const int steps = 10 + static_cast<int>(random() % 60);
    for (int step = 0; step < steps && !stage.stop.load(); ++step) {
      ASSERT_NO_FATAL_FAILURE(tree.Step());
    }
    if (stage.stop.load()) return;  // what is there stays
    ASSERT_NO_FATAL_FAILURE(tree.Fell());
  }
}

void ForkWhatChanges(Stage& stage, uint32_t seed) {
  std::mt19937 random(seed);
  for (int i = 0; !stage.stop.load(); ++i) {
    const std::string id = absl::StrCat("r", i);
    const std::string fork = MemoryName(id);
    const AckedNow before = stage.acked.Now();
    stage.acked.BeginForming(fork, kCrashMemory);
    v1::ForkMemoryRequest request;
    request.set_parent(kTenant);
    request.set_memory_id(id);
    request.set_source(kCrashMemory);
    const auto made = stage.client.ForkMemory(request);
    ASSERT_TRUE(made.ok() || absl::IsAlreadyExists(made.status())) << fork << ": " << made.status();
    const AckedNow after = stage.acked.Now();
    ++stage.forks;
    std::map<std::string, int64_t> held, bytes;
    absl::Status listed = ListBytes(stage.client, fork, &held);
    ASSERT_TRUE(listed.ok()) << fork << ": " << listed;
    ASSERT_NO_FATAL_FAILURE(ExpectForked(fork, kCrashMemory, before, after, held));
    stage.acked.Formed(fork, held);

    // Some of it goes from the fork; the rest stays, whatever becomes of it in the base.
    for (const auto& [name, count] : held) {
      if (stage.stop.load()) return;
      if (random() % 40 != 0) continue;
      if (stage.acked.Now().documents.at(name).expires) continue;
      stage.acked.BeginDelete(name);
      const auto deletion = stage.client.DeleteDocument(name);
      ASSERT_TRUE(deletion.ok()) << name << ": " << deletion.status();
      stage.acked.Deleted(name);
      ++stage.drops;
    }
    for (int look = static_cast<int>(random() % 3); look >= 0; --look) {
      absl::SleepFor(RandomMilliseconds(random, 600));
      const AckedNow asked = stage.acked.Now();
      listed = ListBytes(stage.client, fork, &bytes);
      ASSERT_TRUE(listed.ok()) << fork << ": " << listed;
      ASSERT_NO_FATAL_FAILURE(ExpectUnchanged(stage.acked.Now(), held, bytes));
      for (const auto& [name, count] : bytes) {
        ASSERT_FALSE(asked.documents.at(name).gone) << name << " came back";
      }
    }
    if (stage.stop.load()) return;
    stage.acked.BeginDelete(fork);
    const auto deletion = stage.client.DeleteMemory(fork);
    ASSERT_TRUE(deletion.ok()) << fork << ": " << deletion.status();
    stage.acked.Deleted(fork);
    stage.acked.Forget(fork);
    ++stage.deletions;
  }
}

}  // namespace mneme
