#include "memory_store/rocksdb/log_salvage.h"

#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "memory_store/store_files.h"
#include "tests/memory_store/temp_store.h"

namespace mneme {
namespace {

// A log as RocksDB writes it: `writes` values of `bytes` bytes each.
std::string MakeLog(TempStore& temp, int writes, size_t bytes) {
  for (int i = 0; i < writes; ++i) {
    WriteBatch batch;
    batch.Put(Table::kText, absl::StrCat("key", 1000 + i),
              std::string(bytes, static_cast<char>('a' + i % 26)));
    EXPECT_TRUE(temp.chunk_store().Write(batch, Durability::kSynced).ok());
  }
  temp.Close();
  std::string log;
  for (const auto& entry : std::filesystem::directory_iterator(temp.data_dir() + "/rocksdb")) {
    if (!absl::EndsWith(entry.path().string(), ".log")) continue;
    std::ifstream file(entry.path(), std::ios::binary);
    std::stringstream contents;
    contents << file.rdbuf();
    if (contents.str().size() > log.size()) log = contents.str();
  }
  return log;
}

TEST(LogSalvageTest, WholeLogIsLeftAlone) {
  TempStore temp;
  const LogSalvage salvage = SalvageLog(MakeLog(temp, 20, 5000));
  EXPECT_GE(salvage.records, 20);
  EXPECT_EQ(salvage.damaged_bytes, 0);
  EXPECT_TRUE(salvage.log.empty());
}

TEST(LogSalvageTest, TornEndIsLeftToRocksDb) {
  TempStore temp;
  const std::string log = MakeLog(temp, 20, 5000);
  for (const size_t cut : {1, 100, 4000, 6000}) {
    const LogSalvage salvage = SalvageLog(absl::string_view(log).substr(0, log.size() - cut));
    EXPECT_EQ(salvage.damaged_bytes, 0) << cut;
    EXPECT_GE(salvage.records, 18) << cut;
  }
}

TEST(LogSalvageTest, AnyFlippedBitCostsItsRecordAndNoOther) {
  // Records of many fragments, and many records a block.
  for (const auto& [writes, bytes] : {std::pair<int, size_t>{8, 100'000}, {300, 500}}) {
    TempStore temp;
    const std::string log = MakeLog(temp, writes, bytes);
    const int64_t records = SalvageLog(log).records;
    std::mt19937_64 random(7);
    for (int i = 0; i < 200; ++i) {
      std::string flipped = log;
      // Not in the last record: damage there is a torn end.
      const size_t at = random() % (log.size() - bytes - 100);
      flipped[at] = static_cast<char>(flipped[at] ^ (1 << random() % 8));
      const LogSalvage salvage = SalvageLog(flipped);
      SCOPED_TRACE(absl::StrCat("byte ", at, " of ", log.size()));
      if (salvage.damaged_bytes == 0) {
        EXPECT_EQ(salvage.records, records) << "in the padding of a block";
        continue;
      }
      // A damaged length may lead to the end of its block.
      EXPECT_GE(salvage.records,
                records - (bytes < 32768 ? 32768 / static_cast<int64_t>(bytes) : 1) - 1);
      EXPECT_LT(salvage.records, records);
      EXPECT_EQ(SalvageLog(salvage.log).records, salvage.records);
      EXPECT_EQ(SalvageLog(salvage.log).damaged_bytes, 0);
    }
  }
}

TEST(LogSalvageTest, AnyBytesGiveAResult) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 200; ++i) {
    std::string bytes(random() % 100'000, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random() % (i % 2 == 0 ? 256 : 3));
    EXPECT_EQ(SalvageLog(bytes).records, 0);
  }
}

// The flips that RocksDB alone answers with silence (lengths) or with a refusal (fragments).
TEST(LogSalvageTest, StoreOpensWithAllButTheDamagedWrite) {
  constexpr int kWrites = 12;
  for (const size_t place : {0, 4, 5, 6, 50'000}) {
    TempStore temp;
    MakeLog(temp, kWrites, 100'000);
    std::string path;
    for (const auto& entry : std::filesystem::directory_iterator(temp.data_dir() + "/rocksdb")) {
      if (absl::EndsWith(entry.path().string(), ".log")) path = entry.path();
    }
    {
      // Of the second fragment of some record: at the beginning of a block.
      std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
      const auto at = static_cast<std::streamoff>(10 * 32768 + place);
      file.seekg(at);
      const char byte = static_cast<char>(file.get() ^ 4);
      file.seekp(at);
      file.put(byte);
    }
    temp.Open();
    int there = 0;
    for (int i = 0; i < kWrites; ++i) {
      const auto value = temp.chunk_store().Get(Table::kText, absl::StrCat("key", 1000 + i));
      if (!value.ok()) continue;
      EXPECT_EQ(*value, std::string(100'000, static_cast<char>('a' + i)));
      ++there;
    }
    EXPECT_EQ(there, kWrites - 1) << place;
    EXPECT_TRUE(
        absl::StrContains(temp.metrics().Expose(), "\nmneme_store_close_mismatches_total 1\n"));
  }
}

TEST(LogSalvageTest, FolderThatIsNotThereIsAnError) {
  EXPECT_TRUE(absl::IsNotFound(SalvageLogs("/nonexistent/folder", /*write=*/true).status()));
}

}  // namespace
}  // namespace mneme
