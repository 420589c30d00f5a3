#include "memory_store/rocksdb/blob_file.h"

#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "memory_store/keys.h"
#include "tests/memory_store/temp_store.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

class BlobFileTest : public ::testing::Test {
 protected:
  // Values large enough for a blob file, under keys of pages 0 .. count - 1; the path of that file.
  std::string WriteBlobs(int count) {
    WriteBatch batch;
    for (int i = 0; i < count; ++i) {
      batch.Put(Table::kPages, Key(i), std::string(5000 + static_cast<size_t>(i), 'x'));
    }
    EXPECT_TRUE(store_.chunk_store().Write(batch, Durability::kSynced).ok());
    const KeyRange all{Table::kPages, "", std::string(28, '\xff')};
    std::atomic<bool> cancel{false};
    EXPECT_TRUE(store_.chunk_store().Purge({&all, 1}, cancel).ok());
    for (const auto& entry : std::filesystem::directory_iterator(store_.data_dir() + "/rocksdb")) {
      if (entry.path().extension() == ".blob") return entry.path();
    }
    ADD_FAILURE() << "no blob file";
    return "";
  }
  static std::string Key(int i) { return PageKey({MemoryId{1}, DocumentId{2}}, 3, i); }
  static std::string Bytes(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  // A copy with other bytes, or fewer.
  std::string Copy(const std::string& bytes) {
    const std::string path = store_.data_dir() + "/copy";
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  static absl::StatusOr<std::vector<std::string>> Keys(const std::string& path) {
    std::vector<std::string> keys;
    const absl::Status status =
        ReadBlobFileKeys(path, [&](absl::string_view key) { keys.emplace_back(key); });
    if (!status.ok()) return status;
    return keys;
  }

  TempStore store_;
};

TEST_F(BlobFileTest, EveryKeyIsReadInOrder) {
  const auto keys = Keys(WriteBlobs(30));
  ASSERT_TRUE(keys.ok()) << keys.status();
  ASSERT_EQ(keys->size(), 30u);
  for (int i = 0; i < 30; ++i) EXPECT_EQ((*keys)[static_cast<size_t>(i)], Key(i));
}

TEST_F(BlobFileTest, NoFileIsNotFound) {
  EXPECT_EQ(Keys(store_.data_dir() + "/none").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(BlobFileTest, AFolderIsNoFile) {
  EXPECT_EQ(Keys(store_.data_dir()).status().code(), absl::StatusCode::kInternal);
}

TEST_F(BlobFileTest, WhatIsNoBlobFileOrCutOffIsDataLossAndNeverMore) {
  const std::string bytes = Bytes(WriteBlobs(3));
  for (const size_t size : {size_t{0}, size_t{7}, size_t{29}, size_t{61}, size_t{70}, size_t{5000},
                            bytes.size() - 40}) {
    const auto keys = Keys(Copy(bytes.substr(0, size)));
    EXPECT_EQ(keys.status().code(), absl::StatusCode::kDataLoss) << size;
  }
  std::string other = bytes;
  other[0] = static_cast<char>(other[0] ^ 1);
  EXPECT_THAT(std::string(Keys(Copy(other)).status().message()), HasSubstr("magic"));
}

TEST_F(BlobFileTest, ALengthThatCannotBeIsDataLoss) {
  const std::string bytes = Bytes(WriteBlobs(2));
  for (const size_t position : {size_t{30 + 7}, size_t{30 + 1}, size_t{38 + 7}, size_t{38 + 3}}) {
    std::string damaged = bytes;
    damaged[position] = '\x7f';
    EXPECT_EQ(Keys(Copy(damaged)).status().code(), absl::StatusCode::kDataLoss) << position;
  }
}

}  // namespace
}  // namespace mneme
