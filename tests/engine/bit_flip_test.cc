// One bit flipped anywhere in a data directory or its backups, again and again: each is healed, or
// told, or lies in a file that nobody needs. Never is text read back that was not written, never is
// another answer given, never does the process end.
//
// MNEME_BIT_FLIPS sets how many (default 24), MNEME_BIT_FLIP_SEED where they begin. Every third one
// is drawn evenly over all bytes, the others evenly over all files, so that small ones have their
// share; every eighth hits the backups. Flips are examined by processes of their own (this program
// again), so that one that ends by a signal is counted and the rest goes on.

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "memory_store/backup_directory.h"
#include "memory_store/rocksdb/rocksdb_chunk_store.h"
#include "tests/engine/engine_harness.h"
#include "tests/engine/fake_model.h"

namespace mneme {
namespace {

namespace fs = std::filesystem;

constexpr int kLargePage = 80;  // 5 KiB: into blob files

int64_t FromEnvironment(const char* name, int64_t otherwise) {
  const char* value = std::getenv(name);
  int64_t number = otherwise;
  if (value != nullptr && !absl::SimpleAtoi(value, &number)) ADD_FAILURE() << name << ": " << value;
  return number;
}

absl::Status NoStep(const StoreCheckReport&) { return absl::OkStatus(); }

// An engine over a directory that may be damaged.
class Opened {
 public:
  explicit Opened(const std::string& data_dir) : model_(kLargePage) {
    RocksDbOptions disk;
    disk.data_dir = data_dir;
    disk.block_cache_bytes = 8 << 20;
    disk.reserve_bytes = 0;
    status_ = Open(disk);
  }
  ~Opened() {
    engine_.reset();
    store_.reset();
    chunk_store_.reset();
  }

  const absl::Status& status() const { return status_; }
  Engine& engine() { return *engine_; }
  MemoryStore& store() { return *store_; }
  ChunkStore& chunk_store() { return *chunk_store_; }

  // Sum of a metric over its labels.
  double Metric(const std::string& name) const {
    double sum = 0;
    for (absl::string_view line : absl::StrSplit(metrics_.Expose(), '\n')) {
      const std::pair<std::string, std::string> parts =
          absl::StrSplit(line, absl::MaxSplits(' ', 1));
      if (parts.first == name || absl::StartsWith(parts.first, name + "{")) {
        sum += std::stod(parts.second);
      }
    }
    return sum;
  }
  void WaitDerived() {
    const absl::Time until = absl::Now() + kPatience;
    const auto left = [this] {
      for (const DocumentInfo& document : store_->AllDocuments()) {
        if (!document.damaged && document.visible_bytes < document.durable_bytes) return true;
      }
      return false;
    };
    while (left()) {
      ASSERT_LT(absl::Now(), until);
      absl::SleepFor(absl::Milliseconds(1));
    }
  }

 private:
  absl::Status Open(const RocksDbOptions& disk) {
    auto chunk_store = OpenRocksDbChunkStore(disk, metrics_);
    if (!chunk_store.ok()) return chunk_store.status();
    chunk_store_ = *std::move(chunk_store);
    MemoryStoreOptions tiers;
    tiers.page_bytes = model_.page_layout().page_bytes();
    tiers.landmark_bytes = model_.page_layout().landmark_bytes();
    tiers.derivation_fingerprint = model_.derivation_fingerprint();
    auto store = MemoryStore::Open(tiers, *chunk_store_, metrics_, RealClock());
    if (!store.ok()) return store.status();
    store_ = *std::move(store);
    backend_ = CreateCpuBackend({.threads = 1}).value();
    engine_ = Engine::Open(EngineHarness::TestOptions(), model_, *backend_, *store_, metrics_,
                           RealClock())
                  .value();
    return absl::OkStatus();
  }

  FakeModel model_;
  Metrics metrics_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<ChunkStore> chunk_store_;
  std::unique_ptr<MemoryStore> store_;
  std::unique_ptr<Engine> engine_;
  absl::Status status_;
};

enum class Outcome { kHarmless, kHealed, kReported, kRefused, kFailed, kCrashed };
constexpr int kOutcomes = 6;
constexpr const char* kOutcomeNames[kOutcomes] = {"harmless",        "healed", "reported",
                                                  "refused to open", "FAILED", "CRASHED"};

// Files whose bytes nobody reads back: RocksDB's notes for people and for itself, and the lock's.
bool IsNeeded(const std::string& file) {
  for (const char* unused : {"/IDENTITY", "/OPTIONS-", "/LOCK", "/LOG"}) {
    if (absl::StrContains(file, unused)) return false;
  }
  return true;
}

bool IsPages(const std::string& where) {
  return absl::StartsWith(where, "data/") && absl::StrContains(where, ".blob ");
}

// data/x/000012.sst -> data .sst; backups/files/0a0b0c0d-12-MANIFEST-000004 -> backups MANIFEST.
std::string KindOf(const std::string& file) {
  const std::string top = file.substr(0, file.find('/'));
  const std::string name = file.substr(file.rfind('/') + 1);
  for (const char* kind : {".sst", ".blob", ".log", "MANIFEST", "CURRENT", "CLOSED", "FORMAT",
                           "LOCK", "LOG", "IDENTITY", "OPTIONS"}) {
    if (absl::StrContains(name, kind)) return absl::StrCat(top, " ", kind);
  }
  return absl::StrCat(top, " list");
}

// What one process finds out about flips is handed on as lines of a file: "begin SEED PLACE", then
// "end SEED OUTCOME".
class BitFlipTest : public ::testing::Test {
 protected:
  BitFlipTest() {
    // A process that examines works in the folder of the one that began it.
    if (const char* folder = std::getenv("MNEME_BIT_FLIP_FOLDER"); folder != nullptr) {
      folder_ = folder;
      is_child_ = true;
      return;
    }
    std::string folder = fs::temp_directory_path() / "mneme_flips_XXXXXX";
    if (mkdtemp(folder.data()) == nullptr) std::abort();
    folder_ = folder;
  }
  ~BitFlipTest() override {
    std::error_code ignored;
    if (!is_child_) fs::remove_all(folder_, ignored);
  }
  std::string whole() const { return folder_ + "/whole"; }
  std::string flipped() const { return folder_ + "/flipped"; }
  std::string results() const { return folder_ + "/results"; }

  static std::string MemoryOf(int document) {
    return document % 3 == 0 ? "a" : document % 3 == 1 ? "b" : "c";
  }
  static bool IsDeleted(int document) { return document % 5 == 4; }

  // What is to be read back.
  void KnowTexts() {
    for (int i = 0; i < kDocuments; ++i) {
      if (IsDeleted(i)) continue;
      texts_[EngineHarness::Document(MemoryOf(i), absl::StrCat("d", i))] =
          RandomText(static_cast<uint64_t>(i), 20 + i * 53 % 500);
    }
    // The fork has what it was made of, but for what it has dropped; its base has dropped another.
    for (const char* document : {"d3", "d6"}) {
      texts_[EngineHarness::Document("f", document)] =
          texts_.at(EngineHarness::Document("a", document));
    }
    texts_.erase(EngineHarness::Document("a", "d3"));
  }

  // Three memories, one that keeps no pages and one that keeps none any more for a while; a fork of
  // the first, a snapshot, and documents that one of them has dropped and the other holds;
  // documents in tables and blobs and in the log, some deleted, of which some are purged; two
  // backups.
  void Build() {
    fs::create_directory(whole());
    Opened opened(whole() + "/data");
    ASSERT_TRUE(opened.status().ok()) << opened.status();
    Engine& engine = opened.engine();
    ASSERT_TRUE(engine.CreateMemory(EngineHarness::Memory("a"), "").ok());
    ASSERT_TRUE(engine.CreateMemory(EngineHarness::Memory("b"), "").ok());
    ASSERT_TRUE(
        engine.CreateMemory(EngineHarness::Memory("c"), "", {.retention = Retention::kText}).ok());
    auto backups = BackupDirectory::Open(whole() + "/backups");
    ASSERT_TRUE(backups.ok()) << backups.status();
    for (int i = 0; i < kDocuments; ++i) {
      const std::string name = EngineHarness::Document(MemoryOf(i), absl::StrCat("d", i));
      const std::string text = RandomText(static_cast<uint64_t>(i), 20 + i * 53 % 500);
      TestWriter writer(engine, name);
      writer.Send(text);
      ASSERT_TRUE((i % 2 == 0 ? writer->Seal() : writer->Flush()).ok());
      ASSERT_TRUE(writer.WaitVisible(static_cast<int64_t>(text.size())));
      if (IsDeleted(i)) {
        ASSERT_TRUE(engine.DeleteDocument(name).ok());
      }
      // To files, but for the last documents.
      if (i == 5 || i == 11) {
        AwaitPurged(opened);
        const auto backup = engine.CreateBackup(**backups, "test", NoBackupStep);
        ASSERT_TRUE(backup.ok()) << backup.status();
      }
      if (i == 7) SetRetention(engine, "b", Retention::kText);
      if (i == 7) ForkAndDrop(engine);
      if (i == 8) SetRetention(engine, "b", Retention::kKeep);
    }
    for (const char* memory : kMemories) {
      const std::string answer = Ask(opened, memory);
      ASSERT_FALSE(answer.empty());
      std::ofstream(absl::StrCat(folder_, "/answer-", memory)) << answer;
    }
    AwaitPurged(opened);
  }
  static void ForkAndDrop(Engine& engine) {
    const std::string base = EngineHarness::Memory("a");
    ASSERT_TRUE(
        engine.ForkMemory(EngineHarness::Memory("f"), base, "", absl::InfiniteFuture()).ok());
    ASSERT_TRUE(engine.CreateSnapshot(base + "/snapshots/s", absl::InfiniteFuture()).ok());
    for (const auto& [memory, document] : {std::pair("a", "d3"), std::pair("f", "d0")}) {
      const auto dropped = engine.DeleteDocument(EngineHarness::Document(memory, document));
      ASSERT_TRUE(dropped.ok()) << dropped.status();
      ASSERT_EQ(dropped->receipt.held_documents, 1);
    }
  }
  static void SetRetention(Engine& engine, const char* memory, Retention retention) {
    ASSERT_TRUE(engine.UpdateMemory(EngineHarness::Memory(memory), {.retention = retention}).ok());
  }
  static void AwaitPurged(Opened& opened) {
    const absl::Time until = absl::Now() + kPatience;
    while (!opened.engine().PendingDeletions().empty()) {
      ASSERT_LT(absl::Now(), until);
      absl::SleepFor(absl::Milliseconds(2));
    }
  }
  static absl::Status NoBackupStep(const BackupProgress&) { return absl::OkStatus(); }

  // Passages and generated text, which go through the landmarks and pages of a memory.
  static std::string Ask(Opened& opened, const std::string& memory) {
    const std::vector<std::string> memories = {EngineHarness::Memory(memory)};
    const auto found =
        opened.engine().Retrieve({.memories = memories, .question = RandomQuestion(7, 5)}, {});
    if (!found.ok()) return found.status().ToString();
    std::string answer;
    for (const Passage& passage : found->passages) {
      absl::StrAppend(&answer, passage.document, " ", passage.byte_begin, " ", passage.text, "\n");
    }
    const auto generated = opened.engine().Generate(
        {.memories = memories, .question = RandomQuestion(7, 5), .max_tokens = 16}, {},
        [&answer](GeneratePiece piece) {
          answer += piece.text;
          return true;
        });
    return generated.ok() ? answer : generated.status().ToString();
  }
  std::string Expected(const std::string& memory) const {
    std::ifstream file(absl::StrCat(folder_, "/answer-", memory));
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }

  // Flips one bit below a folder of the copy, drawn evenly over all bytes or over all files;
  // returns where.
  std::string FlipOneBit(const std::string& folder, bool over_files, std::mt19937_64& random) {
    std::vector<std::pair<std::string, uint64_t>> files;
    uint64_t bytes = 0;
    for (const auto& entry : fs::recursive_directory_iterator(flipped() + folder)) {
      if (!entry.is_regular_file() || entry.file_size() == 0) continue;
      files.emplace_back(entry.path(), entry.file_size());
    }
    std::sort(files.begin(), files.end());
    for (const auto& [path, size] : files) bytes += size;
    if (over_files) files = {files[random() % files.size()]};
    uint64_t at = random() % (over_files ? files[0].second : bytes);
    const int bit = static_cast<int>(random() % 8);
    for (const auto& [path, size] : files) {
      if (at < size) {
        std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
        file.seekg(static_cast<std::streamoff>(at));
        const char byte = static_cast<char>(file.get() ^ (1 << bit));
        file.seekp(static_cast<std::streamoff>(at));
        file.put(byte);
        return absl::StrCat(path.substr(flipped().size() + 1), " byte ", at, " bit ", bit);
      }
      at -= size;
    }
    return "";
  }

  struct Seen {
    int lost = 0;     // text that is not there
    int damaged = 0;  // documents that answer DATA_LOSS
    int invisible = 0;
  };
  // Reads every document. What is read must be what was written, or its beginning; and when all of
  // it is there, so must be all answers.
  Seen ReadAll(Opened& opened) {
    Seen seen;
    for (const auto& [name, text] : texts_) {
      const absl::StatusOr<DocumentInfo> info = opened.engine().GetDocument(name);
      if (!info.ok()) {
        EXPECT_TRUE(absl::IsNotFound(info.status())) << info.status();
        ++seen.lost;
        continue;
      }
      const auto size = static_cast<int64_t>(text.size());
      const absl::StatusOr<std::string> read =
          opened.engine().ReadText(name, 0, std::min(info->durable_bytes, size));
      if (!read.ok()) {
        EXPECT_TRUE(absl::IsDataLoss(read.status())) << read.status();
        ++seen.damaged;
        continue;
      }
      EXPECT_EQ(*read, text.substr(0, read->size())) << name << ": WRONG TEXT";
      EXPECT_LE(info->durable_bytes, size) << name << ": more text than was written";
      seen.lost += info->durable_bytes < size && !info->damaged;
      seen.damaged += info->damaged;
      seen.invisible += !info->damaged && info->visible_bytes < info->durable_bytes;
    }
    for (const char* memory : kMemories) {
      const auto documents =
          opened.engine().ListDocuments(EngineHarness::Memory(memory), DocumentId{}, 1000);
      if (!documents.ok()) {
        ++seen.lost;
        continue;
      }
      for (const DocumentInfo& document : *documents) {
        seen.lost += !texts_.contains(EngineHarness::Document(memory, document.id));
      }
    }
    for (const char* memory : kMemories) {
      const std::string answer = Ask(opened, memory);
      if (seen.lost + seen.damaged + seen.invisible == 0) {
        EXPECT_EQ(answer, Expected(memory)) << "ANOTHER ANSWER";
      }
    }
    return seen;
  }

  // Opens the data directory, reads, checks, mends, reads again, opens once more.
  Outcome ExamineData(const std::string& data_dir) {
    bool told = false;
    {
      Opened opened(data_dir);
      if (!opened.status().ok()) {
        EXPECT_TRUE(absl::IsDataLoss(opened.status()) ||
                    absl::IsFailedPrecondition(opened.status()))
            << opened.status();
        return Outcome::kRefused;
      }
      opened.WaitDerived();
      Seen seen = ReadAll(opened);
      const StoreCheckReport found = opened.engine().CheckStore("", /*heal=*/false, NoStep).value();
      told = found.found_count() > 0 || opened.Metric("mneme_store_corrupt_records_total") > 0 ||
             opened.Metric("mneme_store_close_mismatches_total") > 0 ||
             opened.Metric("mneme_store_damaged_log_bytes_total") > 0;
      EXPECT_TRUE(told || (seen.lost == 0 && seen.damaged == 0)) << "lost in silence";
      EXPECT_TRUE(opened.engine().CheckStore("", /*heal=*/true, NoStep).ok());
      opened.WaitDerived();
      const Seen after = ReadAll(opened);
      EXPECT_LE(after.lost, seen.lost);
      // One that a fork shares is seen twice.
      EXPECT_LE(after.damaged, std::max(seen.damaged, 2 * static_cast<int>(found.found_count())));
    }
    Opened again(data_dir);
    if (!again.status().ok()) {
      EXPECT_TRUE(absl::IsDataLoss(again.status())) << again.status();
      EXPECT_TRUE(told);
      return Outcome::kReported;
    }
    again.WaitDerived();
    const Seen seen = ReadAll(again);
    const StoreCheckReport left = again.engine().CheckStore("", /*heal=*/false, NoStep).value();
    EXPECT_TRUE(told || (seen.lost == 0 && seen.damaged == 0)) << "lost later, in silence";
    if (!told) return Outcome::kHarmless;
    if (seen.lost > 0 || seen.damaged > 0 || left.found_count() > 0) return Outcome::kReported;
    return Outcome::kHealed;
  }

  // Restores each backup: it is refused, or what it holds is whole.
  Outcome ExamineBackups() {
    Outcome outcome = Outcome::kHarmless;
    for (const int64_t id : {1, 2}) {
      const std::string data_dir = absl::StrCat(flipped(), "/restored-", id);
      const auto restored =
          BackupDirectory::Restore(flipped() + "/backups", {.id = id}, data_dir, NoBackupStep);
      if (!restored.ok()) {
        EXPECT_TRUE(absl::IsDataLoss(restored.status()) ||
                    absl::IsFailedPrecondition(restored.status()))
            << restored.status();
        outcome = Outcome::kReported;
        continue;
      }
      Opened opened(data_dir);
      EXPECT_TRUE(opened.status().ok()) << opened.status();
      if (!opened.status().ok()) continue;
      opened.WaitDerived();
      EXPECT_EQ(opened.engine().CheckStore("", /*heal=*/false, NoStep)->found_count(), 0);
      EXPECT_EQ(ReadAll(opened).damaged, 0);
    }
    return outcome;
  }

  void ExamineFlips(int64_t begin, int64_t end) {
    KnowTexts();
    for (int64_t seed = begin; seed < end; ++seed) {
      std::mt19937_64 random(static_cast<uint64_t>(seed));
      std::error_code ignored;
      fs::remove_all(flipped(), ignored);
      fs::copy(whole(), flipped(), fs::copy_options::recursive);
      const std::string where =
          FlipOneBit(seed % 8 == 0 ? "/backups" : "/data", seed % 3 != 0, random);
      SCOPED_TRACE(absl::StrCat("seed ", seed, ": ", where));
      std::ofstream(results(), std::ios::app) << "begin " << seed << " " << where << std::endl;
      Outcome outcome =
          absl::StartsWith(where, "data/") ? ExamineData(flipped() + "/data") : ExamineBackups();
      EXPECT_TRUE(outcome != Outcome::kHarmless || !IsNeeded(where)) << "not noticed";
      // All that is in these is derived.
      EXPECT_TRUE(outcome == Outcome::kHealed || !IsPages(where)) << "not healed";
      if (HasFailure()) outcome = Outcome::kFailed;
      std::ofstream(results(), std::ios::app)
          << "end " << seed << " " << static_cast<int>(outcome) << std::endl;
      // The failure of one must not count for the next: another process goes on.
      if (HasFailure()) return;
    }
  }

  // This program again, for a part of the work; its exit status, or 128 + the signal.
  int RunChild(const std::string& part) {
    const pid_t pid = fork();
    if (pid == 0) {
      setenv("MNEME_BIT_FLIP_FOLDER", folder_.c_str(), 1);
      setenv("MNEME_BIT_FLIP_PART", part.c_str(), 1);
      execl("/proc/self/exe", "mneme_engine_tests", "--gtest_filter=BitFlipTest.*",
            "--gtest_brief=1", static_cast<char*>(nullptr));
      _exit(127);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  }

  static constexpr int kDocuments = 16;
  static constexpr const char* kMemories[] = {"a", "b", "c", "f"};
  std::string folder_;
  bool is_child_ = false;
  std::map<std::string, std::string> texts_;
};

TEST_F(BitFlipTest, EachIsHealedOrToldOrHarmless) {
  if (is_child_) {
    const std::string part = std::getenv("MNEME_BIT_FLIP_PART");
    if (part == "build") return Build();
    const std::vector<std::string> range = absl::StrSplit(part, ' ');
    return ExamineFlips(std::stoll(range[0]), std::stoll(range[1]));
  }
  const int64_t flips = FromEnvironment("MNEME_BIT_FLIPS", 24);
  const int64_t first = FromEnvironment("MNEME_BIT_FLIP_SEED", 1);
  ASSERT_EQ(RunChild("build"), 0);
  std::map<int64_t, std::string> places;
  std::map<int64_t, Outcome> outcomes;
  for (int64_t next = first; next < first + flips;) {
    const int status = RunChild(absl::StrCat(next, " ", first + flips));
    std::ifstream lines(results());
    std::string word, rest;
    int64_t seed = next - 1;
    while (lines >> word >> seed && std::getline(lines, rest)) {
      if (word == "begin") places[seed] = rest.substr(1);
      if (word == "end") outcomes[seed] = static_cast<Outcome>(std::stoi(rest));
    }
    ASSERT_TRUE(places.contains(next)) << "nothing was examined, exit status " << status;
    // The last one it began, if it did not come to its end.
    next = places.rbegin()->first + 1;
    if (!outcomes.contains(next - 1)) {
      outcomes[next - 1] = Outcome::kCrashed;
      ADD_FAILURE() << "seed " << next - 1 << ": " << places[next - 1]
                    << " ended the process: " << status;
    } else if (status != 0) {
      ADD_FAILURE() << "seed " << next - 1 << ": " << places[next - 1];
    }
  }

  std::map<std::string, std::array<int, kOutcomes>> counts;
  for (const auto& [seed, place] : places) {
    const auto outcome = static_cast<size_t>(outcomes.at(seed));
    const std::string file = place.substr(0, place.find(' '));
    for (const std::string& row :
         {KindOf(file), std::string(seed % 3 != 0 ? "~ even over files" : "~ even over bytes"),
          std::string("~ all")}) {
      ++counts[row][outcome];
    }
  }
  std::printf("%-20s", "");
  for (const char* name : kOutcomeNames) std::printf("%16s", name);
  for (const auto& [row, of] : counts) {
    std::printf("\n%-20s", row.c_str());
    for (const int count : of) std::printf("%16d", count);
  }
  std::printf("\n");
}

}  // namespace
}  // namespace mneme
