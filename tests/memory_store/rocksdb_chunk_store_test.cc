#include <fcntl.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_facts.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/memory_store/temp_store.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class RocksDbChunkStoreTest : public ::testing::Test {
 protected:
  RocksDbOptions Options() const {
    RocksDbOptions options;
    options.data_dir = dir_.path() + "/data";
    options.block_cache_bytes = 3 << 20;
    options.reserve_bytes = 0;
    return options;
  }
  absl::StatusOr<std::unique_ptr<ChunkStore>> Open() {
    return OpenRocksDbChunkStore(Options(), metrics_);
  }
  static absl::Status Put(ChunkStore& store, Table table, const std::string& key,
                          const std::string& value, Durability durability = Durability::kSynced) {
    WriteBatch batch;
    batch.Put(table, key, value);
    return store.Write(batch, durability);
  }
  static std::vector<std::string> Keys(ChunkStore& store, Table table, const std::string& begin,
                                       const std::string& end) {
    std::vector<std::string> keys;
    EXPECT_TRUE(store
                    .Scan(table, begin, end,
                          [&keys](absl::string_view key, absl::string_view) {
                            keys.emplace_back(key);
                            return true;
                          })
                    .ok());
    return keys;
  }
  void WriteFile(const std::string& name, const std::string& text) {
    std::filesystem::create_directories(Options().data_dir);
    std::ofstream(Options().data_dir + "/" + name) << text;
  }

  TempDir dir_;
  Metrics metrics_;
};

TEST_F(RocksDbChunkStoreTest, KeepsWhatWasWrittenInEveryTableOverAReopen) {
  const std::string large(20'000, 'p');
  {
    auto store = Open().value();
    for (int table = 0; table < kTableCount; ++table) {
      for (const Durability durability : {Durability::kSynced, Durability::kWriteBehind}) {
        const std::string key = absl::StrCat("key", static_cast<int>(durability));
        ASSERT_TRUE(Put(*store, static_cast<Table>(table), key, large + key, durability).ok());
      }
    }
  }
  auto store = Open().value();
  for (int table = 0; table < kTableCount; ++table) {
    EXPECT_EQ(store->Get(static_cast<Table>(table), "key0").value(), large + "key0");
    EXPECT_EQ(store->Get(static_cast<Table>(table), "key1").value(), large + "key1");
  }
}

TEST_F(RocksDbChunkStoreTest, GetOfAnAbsentKeyIsNotFound) {
  auto store = Open().value();
  EXPECT_TRUE(absl::IsNotFound(store->Get(Table::kText, "nothing").status()));
  EXPECT_TRUE(store->Get(Table::kText, "").status().code() == absl::StatusCode::kNotFound);
}

TEST_F(RocksDbChunkStoreTest, MultiGetAnswersInOrderWithOneResultPerKey) {
  auto store = Open().value();
  ASSERT_TRUE(Put(*store, Table::kPages, "a", std::string(10'000, '1')).ok());
  ASSERT_TRUE(Put(*store, Table::kPages, "c", "3").ok());
  const std::vector<std::string> keys = {"c", "b", "a", "c"};
  const auto values = store->MultiGet(Table::kPages, keys);
  ASSERT_EQ(values.size(), 4u);
  EXPECT_EQ(values[0].value(), "3");
  EXPECT_TRUE(absl::IsNotFound(values[1].status()));
  EXPECT_EQ(values[2].value(), std::string(10'000, '1'));
  EXPECT_EQ(values[3].value(), "3");
  EXPECT_TRUE(store->MultiGet(Table::kPages, {}).empty());
}

TEST_F(RocksDbChunkStoreTest, ScanVisitsTheRangeInOrderUntilToldToStop) {
  auto store = Open().value();
  for (const char* key : {"d", "a", "c", "b"}) {
    ASSERT_TRUE(Put(*store, Table::kText, key, "v").ok());
  }
  EXPECT_EQ(Keys(*store, Table::kText, "b", "d"), (std::vector<std::string>{"b", "c"}));
  EXPECT_EQ(Keys(*store, Table::kText, "", ""), (std::vector<std::string>{"a", "b", "c", "d"}));
  int visited = 0;
  ASSERT_TRUE(store
                  ->Scan(Table::kText, "", "",
                         [&](absl::string_view, absl::string_view) { return ++visited < 2; })
                  .ok());
  EXPECT_EQ(visited, 2);
}

TEST_F(RocksDbChunkStoreTest, BatchAppliesItsOperationsInOrder) {
  auto store = Open().value();
  ASSERT_TRUE(Put(*store, Table::kText, "a", "old").ok());
  ASSERT_TRUE(Put(*store, Table::kText, "b", "old").ok());
  WriteBatch batch;
  batch.DeleteRange(Table::kText, "a", "c");
  batch.Put(Table::kText, "b", "new");
  batch.Put(Table::kCatalog, "x", "1");
  batch.Delete(Table::kCatalog, "x");
  ASSERT_TRUE(store->Write(batch, Durability::kSynced).ok());
  EXPECT_EQ(Keys(*store, Table::kText, "", ""), std::vector<std::string>{"b"});
  EXPECT_EQ(store->Get(Table::kText, "b").value(), "new");
  EXPECT_TRUE(absl::IsNotFound(store->Get(Table::kCatalog, "x").status()));
}

TEST_F(RocksDbChunkStoreTest, SecondServerOfOneDirectoryIsRefusedAndNamesThePath) {
  auto store = Open().value();
  const absl::Status status = Open().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr(Options().data_dir));
  EXPECT_THAT(status.message(), HasSubstr(absl::StrCat("process ", getpid())));
  store.reset();
  EXPECT_TRUE(Open().ok());
}

TEST_F(RocksDbChunkStoreTest, NewerFormatIsRefusedAndLeftAlone) {
  WriteFile("FORMAT", "mneme store 3\n");
  const absl::Status status = Open().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("store format 3; this program reads formats 1 to 2"));
  EXPECT_FALSE(std::filesystem::exists(Options().data_dir + "/rocksdb"));
}

TEST_F(RocksDbChunkStoreTest, FormatFileThatIsNotOursIsRefused) {
  for (const char* text : {"", "rocks\n", "mneme store \n", "mneme store 1", "mneme store 1x\n"}) {
    WriteFile("FORMAT", text);
    EXPECT_EQ(Open().status().code(), absl::StatusCode::kFailedPrecondition) << text;
  }
}

TEST_F(RocksDbChunkStoreTest, DirectoryOfSomethingElseIsRefused) {
  WriteFile("thesis.tex", "precious");
  const absl::Status status = Open().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("thesis.tex"));
}

TEST_F(RocksDbChunkStoreTest, FreshFileSystemAndInterruptedCreationAreTaken) {
  WriteFile("FORMAT.new", "mneme st");  // killed while it wrote this
  std::filesystem::create_directories(Options().data_dir + "/lost+found");
  EXPECT_TRUE(Open().ok());
  EXPECT_TRUE(Open().ok());
}

TEST_F(RocksDbChunkStoreTest, PathThatCannotBeADirectoryIsRefused) {
  RocksDbOptions options = Options();
  options.data_dir = "";
  EXPECT_EQ(OpenRocksDbChunkStore(options, metrics_).status().code(),
            absl::StatusCode::kInvalidArgument);
  options.data_dir = dir_.path() + "/no/such/parent";
  absl::Status status = OpenRocksDbChunkStore(options, metrics_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr(options.data_dir));
  std::ofstream(dir_.path() + "/file") << "x";
  options.data_dir = dir_.path() + "/file";
  EXPECT_EQ(OpenRocksDbChunkStore(options, metrics_).status().code(),
            absl::StatusCode::kFailedPrecondition);
  options.data_dir = dir_.path() + "/file/below";
  EXPECT_EQ(OpenRocksDbChunkStore(options, metrics_).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(RocksDbChunkStoreTest, UnwritableDirectoryIsPermissionDenied) {
  RocksDbOptions options = Options();
  std::filesystem::create_directory(options.data_dir);
  std::filesystem::permissions(
      options.data_dir, std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
  // Permissions do not apply to root: be nobody for a moment.
  const bool root = geteuid() == 0;
  ASSERT_EQ(root ? seteuid(65534) : 0, 0);
  const absl::Status status = OpenRocksDbChunkStore(options, metrics_).status();
  ASSERT_EQ(root ? seteuid(0) : 0, 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << status;
  EXPECT_THAT(status.message(), HasSubstr(options.data_dir));
  std::filesystem::permissions(options.data_dir, std::filesystem::perms::owner_all);
}

TEST_F(RocksDbChunkStoreTest, MetricsTellOfItWhileItLivesAndNotAfter) {
  auto store = Open().value();
  ASSERT_TRUE(Put(*store, Table::kText, "a", "b").ok());
  std::string text = metrics_.Expose();
  EXPECT_THAT(text, HasSubstr("mneme_rocksdb_wal_syncs_total"));
  EXPECT_THAT(text, HasSubstr("mneme_rocksdb_memtable_bytes{table=\"text\"}"));
  EXPECT_THAT(text, HasSubstr("mneme_store_synced_write_seconds_count 1"));
  // That of our tables, not RocksDB's own of a table without options.
  EXPECT_THAT(text, HasSubstr("mneme_rocksdb_block_cache_limit_bytes 3145728"));
  store.reset();
  EXPECT_THAT(metrics_.Expose(), Not(HasSubstr("mneme_rocksdb_wal_syncs_total")));
}

TEST_F(RocksDbChunkStoreTest, WriteThatWouldTouchTheReserveIsRefusedButDeletionIsNot) {
  RocksDbOptions options = Options();
  options.reserve_bytes = int64_t{1} << 60;
  auto store = OpenRocksDbChunkStore(options, metrics_).value();
  const absl::Status status = Put(*store, Table::kText, "a", "b");
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr(options.data_dir));
  WriteBatch batch;
  batch.Delete(Table::kText, "a");
  batch.DeleteRange(Table::kText, "a", "b");
  EXPECT_TRUE(store->Write(batch, Durability::kSynced).ok());
  EXPECT_THAT(metrics_.Expose(), HasSubstr("mneme_store_writes_refused_total 1"));
}

TEST_F(RocksDbChunkStoreTest, SpaceOfADeletedRangeIsGivenBack) {
  const auto fill = [](ChunkStore& store, const std::string& prefix) {
    for (int i = 0; i < 1000; ++i) {
      WriteBatch batch;
      std::string value(16 << 10, '\0');
      for (size_t b = 0; b < value.size(); ++b) value[b] = static_cast<char>(b * b * i + (b >> 3));
      batch.Put(Table::kPages, absl::StrCat(prefix, i), value);
      ASSERT_TRUE(store.Write(batch, Durability::kWriteBehind).ok());
    }
  };
  for (const char* prefix : {"a", "b"}) {  // reopened in between: files of their own
    auto store = Open().value();
    fill(*store, prefix);
  }
  auto store = Open().value();
  const int64_t before = store->used_bytes();
  WriteBatch batch;
  batch.DeleteRange(Table::kPages, "a", "b");
  ASSERT_TRUE(store->Write(batch, Durability::kSynced).ok());
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (store->used_bytes() > before - (15 << 20) && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(10));  // RocksDB deletes files when it likes
  }
  EXPECT_LE(store->used_bytes(), before - (15 << 20));
  EXPECT_TRUE(store->Get(Table::kPages, "b999").ok());
}

// A file system of its own, of a given size. Needs the right to mount.
class SmallDisk {
 public:
  explicit SmallDisk(int64_t bytes) {
    mounted_ =
        mount("tmpfs", dir_.path().c_str(), "tmpfs", 0, absl::StrCat("size=", bytes).c_str()) == 0;
  }
  ~SmallDisk() {
    if (mounted_) umount(dir_.path().c_str());
  }
  bool mounted() const { return mounted_; }
  const std::string& path() const { return dir_.path(); }
  // Takes all the space there is but `left` bytes.
  void Fill(int64_t left) {
    const std::string path = dir_.path() + "/ballast";
    const int fd = open(path.c_str(), O_CREAT | O_WRONLY, 0600);
    const auto space = std::filesystem::space(dir_.path());
    EXPECT_EQ(posix_fallocate(fd, 0, static_cast<int64_t>(space.available) - left), 0);
    close(fd);
  }
  void Free() { std::filesystem::remove(dir_.path() + "/ballast"); }

 private:
  TempDir dir_;
  bool mounted_ = false;
};

// Writes until the disk is full, expects RESOURCE_EXHAUSTED and that everything acked is there;
// frees space and expects writes to work again, without help; reopens and expects everything acked.
void FillAndRecover(int64_t reserve_bytes, int64_t left_bytes) {
  SmallDisk disk(int64_t{128} << 20);
  if (!disk.mounted()) GTEST_SKIP() << "may not mount a small file system here";
  Metrics metrics;
  RocksDbOptions options;
  options.data_dir = disk.path() + "/data";
  options.block_cache_bytes = 1 << 20;
  options.reserve_bytes = reserve_bytes;
  auto store = OpenRocksDbChunkStore(options, metrics).value();
  disk.Fill(left_bytes);
  int acked = 0;
  const auto write = [&store](int i) {
    WriteBatch batch;
    std::string value(100'000, '\0');
    for (size_t b = 0; b < value.size(); ++b) value[b] = static_cast<char>(i * 31 + b * b);
    batch.Put(Table::kText, absl::StrCat("key", i), value);
    batch.Put(Table::kPages, absl::StrCat("key", i), value);
    return store->Write(batch, Durability::kSynced);
  };
  absl::Status status;
  while ((status = write(acked)).ok()) ASSERT_LT(++acked, 2000);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_TRUE(IsStorageFull(status));
  const auto expect_all = [&] {
    for (int i = 0; i < acked; ++i) {
      ASSERT_TRUE(store->Get(Table::kText, absl::StrCat("key", i)).ok()) << i << " of " << acked;
      ASSERT_TRUE(store->Get(Table::kPages, absl::StrCat("key", i)).ok()) << i << " of " << acked;
    }
  };
  expect_all();
  EXPECT_EQ(write(acked).code(), absl::StatusCode::kResourceExhausted);
  disk.Free();
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (!(status = write(acked)).ok() && absl::Now() < deadline) {
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    absl::SleepFor(absl::Milliseconds(20));  // the disk's state is not ours to await
  }
  ASSERT_TRUE(status.ok()) << status;
  ++acked;
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(write(acked++).ok());
  expect_all();
  store.reset();
  store = OpenRocksDbChunkStore(options, metrics).value();
  expect_all();
}

TEST(RocksDbFullDiskTest, RecoversByItselfWhenTheReserveStopsWrites) {
  FillAndRecover(int64_t{8} << 20, int64_t{40} << 20);
}

TEST(RocksDbFullDiskTest, RecoversByItselfWhenSpaceRunsOutAllTheSame) {
  FillAndRecover(0, int64_t{20} << 20);
}

TEST(RocksDbFullDiskTest, RecoversByItselfWhenNotEvenTheFirstWriteFits) {
  FillAndRecover(0, int64_t{64} << 10);
}

TEST(RocksDbFullDiskTest, ClosesAndLosesNothingWhileTheDiskIsFull) {
  SmallDisk disk(int64_t{128} << 20);
  if (!disk.mounted()) GTEST_SKIP() << "may not mount a small file system here";
  Metrics metrics;
  RocksDbOptions options;
  options.data_dir = disk.path() + "/data";
  options.reserve_bytes = 0;
  auto store = OpenRocksDbChunkStore(options, metrics).value();
  WriteBatch small;
  small.Put(Table::kText, "small", "text");
  ASSERT_TRUE(store->Write(small, Durability::kWriteBehind).ok());
  EXPECT_TRUE(store->Flush().ok());
  disk.Fill(64 << 10);
  // The log took some space beforehand.
  int acked = 0;
  absl::Status status;
  const auto key = [](int i) { return absl::StrCat("large", i); };
  do {
    WriteBatch large;
    large.Put(Table::kText, key(acked), std::string(1 << 20, 'x'));
    status = store->Write(large, Durability::kSynced);
  } while (status.ok() && ++acked < 128);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_EQ(store->Flush().code(), absl::StatusCode::kResourceExhausted);
  store.reset();
  disk.Free();
  store = OpenRocksDbChunkStore(options, metrics).value();
  EXPECT_EQ(store->Get(Table::kText, "small").value(), "text");
  for (int i = 0; i < acked; ++i) EXPECT_TRUE(store->Get(Table::kText, key(i)).ok()) << i;
  EXPECT_EQ(store->Get(Table::kText, key(acked)).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace mneme
