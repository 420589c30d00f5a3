// The store over a file system that fails: what was acked is there after a restart, byte for byte;
// what was not acked is there whole or not at all; nothing ends the process.

#include <atomic>
#include <map>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_facts.h"
#include "gtest/gtest.h"
#include "memory_store/store_checker.h"
#include "tests/memory_store/derived.h"
#include "tests/memory_store/faulty_env.h"
#include "tests/memory_store/file_search.h"
#include "tests/memory_store/temp_store.h"

namespace mneme {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);

bool IsLog(const std::string& name) { return absl::EndsWith(name, ".log"); }
bool IsTable(const std::string& name) {
  return absl::EndsWith(name, ".sst") || absl::EndsWith(name, ".blob");
}

class FaultyDiskTest : public ::testing::Test {
 protected:
  FaultyDiskTest() : env_(rocksdb::NewCompositeEnv(system_)) {
    temp_.Close();
    temp_.rocksdb_options().env = env_.get();
    temp_.Open();
    memory_ = temp_.store().CreateMemory("default", "m", "").value().uid;
    for (int i = 0; i < 4; ++i) {
      documents_[i] = temp_.store().CreateDocument(memory_, absl::StrCat("d", i)).value().uid;
    }
  }
  ~FaultyDiskTest() override {
    system_->Heal();
    temp_.Close();
  }

  // Appends a piece to a document; what was acked is remembered.
  absl::Status Append(int document) {
    std::string& acked = acked_[document];
    const std::string piece(1000, static_cast<char>('a' + (acked.size() / 1000) % 26));
    const TextAppend append{documents_[document], static_cast<int64_t>(acked.size()), piece, false};
    const absl::Status status = temp_.store().AppendText({&append, 1});
    if (status.ok()) {
      acked += piece;
    } else {
      tried_[document] = piece;
    }
    return status;
  }
  void AppendMany(int rounds) {
    for (int i = 0; i < rounds; ++i) {
      for (int document = 0; document < 4; ++document) EXPECT_TRUE(Append(document).ok());
    }
  }
  // After a restart on a disk that works again.
  void ExpectAllAcked() {
    system_->Heal();
    temp_.Reopen();
    for (int document = 0; document < 4; ++document) {
      const DocumentInfo info = temp_.store().GetDocument(documents_[document]).value();
      const std::string& acked = acked_[document];
      EXPECT_FALSE(info.damaged);
      const std::string text =
          temp_.store().ReadText(documents_[document], 0, info.durable_bytes).value();
      EXPECT_TRUE(text == acked || text == acked + tried_[document])
          << text.size() << " bytes, acked " << acked.size();
      acked_[document] = text;
    }
    EXPECT_EQ(StoreChecker(temp_.store(), {}).Run()->found_count(), 0);
    AppendMany(1);
  }

  std::shared_ptr<FaultyFileSystem> system_ = std::make_shared<FaultyFileSystem>();
  std::unique_ptr<rocksdb::Env> env_;
  TempStore temp_;
  MemoryId memory_{};
  std::map<int, DocumentId> documents_;
  std::map<int, std::string> acked_;
  std::map<int, std::string> tried_;
};

TEST_F(FaultyDiskTest, SyncThatFailsIsNoAck) {
  AppendMany(3);
  system_->SetOnSync([](const std::string& name) {
    return IsLog(name) ? rocksdb::IOStatus::IOError("sync failed") : rocksdb::IOStatus::OK();
  });
  EXPECT_FALSE(Append(0).ok());
  EXPECT_FALSE(Append(1).ok());
  EXPECT_GE(system_->faults(), 1);
  // Reads go on.
  EXPECT_EQ(temp_.store().ReadText(documents_[2], 0, 3000).value(), acked_[2]);
  ExpectAllAcked();
}

TEST_F(FaultyDiskTest, TornWriteLosesNothingThatWasAcked) {
  for (const size_t torn_bytes : {0, 1, 7, 500}) {
    AppendMany(2);
    system_->SetOnAppend([torn_bytes](const std::string& name, size_t bytes) {
      if (!IsLog(name)) return FaultyFileSystem::Appended{bytes, rocksdb::IOStatus::OK()};
      return FaultyFileSystem::Appended{std::min(bytes, torn_bytes),
                                        rocksdb::IOStatus::IOError("torn")};
    });
    EXPECT_FALSE(Append(0).ok());
    ExpectAllAcked();
  }
}

TEST_F(FaultyDiskTest, FullDiskIsToldAndServiceGoesOnByItself) {
  AppendMany(2);
  system_->SetOnAppend([](const std::string& name, size_t bytes) {
    if (!IsLog(name)) return FaultyFileSystem::Appended{bytes, rocksdb::IOStatus::OK()};
    return FaultyFileSystem::Appended{0, rocksdb::IOStatus::NoSpace("no space")};
  });
  const absl::Status full = Append(0);
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  EXPECT_TRUE(IsStorageFull(full));
  EXPECT_EQ(temp_.store().ReadText(documents_[0], 0, 2000).value(), acked_[0]);
  system_->Heal();
  const absl::Time until = absl::Now() + kPatience;
  while (!Append(0).ok() && absl::Now() < until) absl::SleepFor(absl::Milliseconds(50));
  AppendMany(1);
  ExpectAllAcked();
}

TEST_F(FaultyDiskTest, FlushThatFailsLosesNothing) {
  AppendMany(5);
  system_->SetOnAppend([](const std::string& name, size_t bytes) {
    if (!IsTable(name)) return FaultyFileSystem::Appended{bytes, rocksdb::IOStatus::OK()};
    return FaultyFileSystem::Appended{bytes / 2, rocksdb::IOStatus::IOError("torn table")};
  });
  EXPECT_FALSE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
  EXPECT_GE(system_->faults(), 1);
  EXPECT_EQ(temp_.store().ReadText(documents_[3], 0, 5000).value(), acked_[3]);
  ExpectAllAcked();
}

TEST_F(FaultyDiskTest, SyncOfATableThatFailsLosesNothing) {
  AppendMany(5);
  system_->SetOnSync([](const std::string& name) {
    return IsTable(name) ? rocksdb::IOStatus::IOError("sync failed") : rocksdb::IOStatus::OK();
  });
  EXPECT_FALSE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
  EXPECT_GE(system_->faults(), 1);
  EXPECT_EQ(temp_.store().ReadText(documents_[1], 0, 5000).value(), acked_[1]);
  ExpectAllAcked();
}

TEST_F(FaultyDiskTest, ManifestThatCannotBeWrittenLosesNothing) {
  for (const bool torn : {false, true}) {
    AppendMany(5);
    system_->SetOnAppend([torn](const std::string& name, size_t bytes) {
      if (!absl::StrContains(name, "MANIFEST")) {
        return FaultyFileSystem::Appended{bytes, rocksdb::IOStatus::OK()};
      }
      return FaultyFileSystem::Appended{torn ? bytes / 2 : 0, rocksdb::IOStatus::IOError("torn")};
    });
    EXPECT_FALSE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
    EXPECT_GE(system_->faults(), 1);
    const auto size = static_cast<int64_t>(acked_[1].size());
    EXPECT_EQ(temp_.store().ReadText(documents_[1], 0, size).value(), acked_[1]);
    ExpectAllAcked();
  }
}

TEST_F(FaultyDiskTest, PurgeOnAFullDiskStaysPendingAndIsDoneWhenThereIsSpace) {
  AppendMany(3);
  EXPECT_TRUE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
  const MemoryId other = temp_.store().CreateMemory("default", "other", "").value().uid;
  const DocumentId gone = temp_.store().CreateDocument(other, "gone").value().uid;
  const std::string marker = "QzWxEcRvTbYnUmIkOlPqAzSx";
  const TextAppend append{gone, 0, marker, false};
  ASSERT_TRUE(temp_.store().AppendText({&append, 1}).ok());
  ASSERT_TRUE(temp_.store().DeleteMemory(other).ok());
  system_->SetOnAppend([](const std::string& name, size_t bytes) {
    if (!IsTable(name)) return FaultyFileSystem::Appended{bytes, rocksdb::IOStatus::OK()};
    return FaultyFileSystem::Appended{0, rocksdb::IOStatus::NoSpace("no space")};
  });
  std::atomic<bool> cancel{false};
  EXPECT_FALSE(temp_.store().Purge(cancel).ok());
  EXPECT_EQ(temp_.store().PendingDeletions().size(), 1u);
  EXPECT_EQ(temp_.store().ReadText(documents_[2], 0, 3000).value(), acked_[2]);
  system_->Heal();
  const absl::Time until = absl::Now() + kPatience;
  while (!temp_.store().PendingDeletions().empty()) {
    ASSERT_LT(absl::Now(), until);
    if (!temp_.store().Purge(cancel).ok()) absl::SleepFor(absl::Milliseconds(50));
  }
  EXPECT_TRUE(MarkersOnDisk(temp_.data_dir(), {marker}).empty());
  while (!Append(0).ok() && absl::Now() < until) absl::SleepFor(absl::Milliseconds(50));
  ExpectAllAcked();
}

TEST_F(FaultyDiskTest, SlowDiskIsSlowAndNothingElse) {
  system_->SetOnSync([](const std::string&) {
    absl::SleepFor(absl::Milliseconds(20));
    return rocksdb::IOStatus::OK();
  });
  AppendMany(3);
  EXPECT_TRUE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
  ExpectAllAcked();
}

}  // namespace
}  // namespace mneme
