// One bit flipped anywhere in a data directory, again and again: each is healed, or told, or lies
// where nothing is lost by it. Never is text read back that was not written, never does the process
// end. MNEME_BIT_FLIPS sets how many (default 25), MNEME_BIT_FLIP_SEED where they begin.

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

class BitFlipTest : public ::testing::Test {
 protected:
  BitFlipTest() {
    std::string folder = fs::temp_directory_path() / "mneme_flips_XXXXXX";
    if (mkdtemp(folder.data()) == nullptr) std::abort();
    folder_ = folder;
  }
  ~BitFlipTest() override {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }
  std::string whole() const { return folder_ + "/whole"; }
  std::string flipped() const { return folder_ + "/flipped"; }

  void Write(Opened& opened, const std::string& name, const std::string& text, bool seal) {
    TestWriter writer(opened.engine(), name);
    writer.Send(text);
    ASSERT_TRUE((seal ? writer->Seal() : writer->Flush()).ok());
    ASSERT_TRUE(writer.WaitVisible(static_cast<int64_t>(text.size())));
    texts_[name] = text;
  }

  // Two memories; some documents in tables and blobs, some in the log, some deleted.
  void Build() {
    Opened opened(whole());
    ASSERT_TRUE(opened.status().ok()) << opened.status();
    for (const char* memory : {"a", "b"}) {
      ASSERT_TRUE(opened.engine().CreateMemory(EngineHarness::Memory(memory), "").ok());
    }
    for (int i = 0; i < 16; ++i) {
      const std::string memory = i % 3 == 0 ? "a" : "b";
      const std::string name = EngineHarness::Document(memory, absl::StrCat("d", i));
      Write(opened, name, RandomText(static_cast<uint64_t>(i), 20 + i * 53 % 500), i % 2 == 0);
      if (i % 5 == 4) {
        ASSERT_TRUE(opened.engine().DeleteDocument(name).ok());
        texts_.erase(name);
      }
      // To files, but for the last documents.
      if (i == 5 || i == 11) {
        ASSERT_TRUE(opened.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
      }
    }
  }

  // Flips one bit of the copy, drawn evenly over all bytes of all files; returns where.
  std::string FlipOneBit(std::mt19937_64& random) {
    std::vector<std::pair<std::string, uint64_t>> files;
    uint64_t bytes = 0;
    for (const auto& entry : fs::recursive_directory_iterator(flipped())) {
      if (!entry.is_regular_file() || entry.file_size() == 0) continue;
      files.emplace_back(entry.path(), entry.file_size());
    }
    std::sort(files.begin(), files.end());
    for (const auto& [path, size] : files) bytes += size;
    uint64_t at = random() % bytes;
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
  // Reads every document. What is read must be what was written, or its beginning.
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
    for (const char* memory : {"a", "b"}) {
      const auto documents =
          opened.engine().ListDocuments(EngineHarness::Memory(memory), DocumentId{}, 1000);
      if (!documents.ok()) continue;
      for (const DocumentInfo& document : *documents) {
        seen.lost += !texts_.contains(EngineHarness::Document(memory, document.id));
      }
      // A question that goes through the landmarks and pages of all of them.
      const auto answer = opened.engine().Retrieve(
          {.memories = {EngineHarness::Memory(memory)}, .question = RandomQuestion(7, 5)}, {});
      if (!answer.ok()) continue;
      for (const Passage& passage : answer->passages) {
        const auto it = texts_.find(passage.document);
        if (it == texts_.end()) continue;
        EXPECT_EQ(passage.text,
                  it->second.substr(static_cast<size_t>(passage.byte_begin), passage.text.size()))
            << "WRONG PASSAGE";
      }
    }
    return seen;
  }

  enum class Outcome { kHarmless, kHealed, kReported, kRefused };

  // Opens the copy, reads, checks, mends, reads again, opens once more.
  Outcome Examine() {
    bool told = false;
    {
      Opened opened(flipped());
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
      EXPECT_LE(after.damaged, std::max(seen.damaged, static_cast<int>(found.found_count())));
    }
    Opened again(flipped());
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

  std::string folder_;
  std::map<std::string, std::string> texts_;
};

TEST_F(BitFlipTest, EachIsHealedOrToldOrHarmless) {
  ASSERT_NO_FATAL_FAILURE(Build());
  const int64_t flips = FromEnvironment("MNEME_BIT_FLIPS", 25);
  const int64_t seed = FromEnvironment("MNEME_BIT_FLIP_SEED", 1);
  std::map<Outcome, int> outcomes;
  std::map<std::string, std::map<Outcome, int>> of_files;
  for (int64_t flip = 0; flip < flips; ++flip) {
    std::mt19937_64 random(static_cast<uint64_t>(seed + flip));
    std::error_code ignored;
    fs::remove_all(flipped(), ignored);
    fs::copy(whole(), flipped(), fs::copy_options::recursive);
    const std::string where = FlipOneBit(random);
    SCOPED_TRACE(absl::StrCat("seed ", seed + flip, ": ", where));
    const Outcome outcome = Examine();
    ++outcomes[outcome];
    const std::string file = where.substr(0, where.find(' '));
    const size_t dot = file.rfind('.');
    const std::string kind =
        dot != std::string::npos ? file.substr(dot) : file.substr(0, file.find('-'));
    ++of_files[kind][outcome];
    if (HasFailure()) break;
  }
  const auto count = [](const std::map<Outcome, int>& of, Outcome outcome) {
    const auto it = of.find(outcome);
    return it == of.end() ? 0 : it->second;
  };
  const auto line = [&](const std::string& what, const std::map<Outcome, int>& of) {
    std::printf("%-28s harmless %4d  healed %4d  reported %4d  refused to open %4d\n", what.c_str(),
                count(of, Outcome::kHarmless), count(of, Outcome::kHealed),
                count(of, Outcome::kReported), count(of, Outcome::kRefused));
  };
  for (const auto& [kind, of] : of_files) line(kind, of);
  line(absl::StrCat("all ", flips), outcomes);
}

}  // namespace
}  // namespace mneme
