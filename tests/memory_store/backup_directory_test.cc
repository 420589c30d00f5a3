// Backups: incremental, whole or not there, checked before anything is put in place.

#include "memory_store/backup_directory.h"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "memory_store/store_checker.h"
#include "tests/memory_store/derived.h"
#include "tests/memory_store/temp_store.h"

namespace mneme {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

absl::Status NoStep(const BackupProgress&) { return absl::OkStatus(); }

MemoryStoreOptions LargePages() {
  MemoryStoreOptions options;
  options.page_bytes = 4096;
  return options;
}

class BackupDirectoryTest : public ::testing::Test {
 protected:
  BackupDirectoryTest() { memory_ = temp_.store().CreateMemory("default", "m", "").value().uid; }

  std::string backups() const { return dir_.path() + "/backups"; }
  std::string restored() const { return dir_.path() + "/restored"; }

  void AddDocuments(int count) {
    for (int i = 0; i < count; ++i) {
      const std::string id = absl::StrCat("d", texts_.size());
      const DocumentId document = temp_.store().CreateDocument(memory_, id).value().uid;
      std::string text;
      for (int64_t at = 0; at < 3000; ++at) {
        text.push_back(static_cast<char>('a' + MadeUpByte(document, at, 0, 3, 0) % 26));
      }
      const TextAppend append{document, 0, text, i % 2 == 0};
      ASSERT_TRUE(temp_.store().AppendText({&append, 1}).ok());
      std::vector<SegmentDerived> segments;
      segments.push_back(MadeUpSegment(temp_.options(), document, 0, 0, 4, 0, 3000));
      ASSERT_TRUE(temp_.store().PutSegments(std::move(segments)).ok());
      texts_.push_back(text);
    }
  }
  absl::StatusOr<BackupInfo> Backup(const BackupStep& step = NoStep) {
    auto directory = BackupDirectory::Open(backups());
    if (!directory.ok()) return directory.status();
    return temp_.store().Backup(**directory, "1.2.3", step);
  }
  absl::StatusOr<BackupInfo> Restore(int64_t id, const BackupStep& step = NoStep) {
    const auto restored_backup = BackupDirectory::Restore(backups(), {.id = id}, restored(), step);
    if (!restored_backup.ok()) return restored_backup.status();
    return restored_backup->info;
  }
  // Flips a bit in the middle of a file.
  static void FlipIn(const std::string& path) {
    const auto at = static_cast<std::streamoff>(fs::file_size(path) / 2);
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(at);
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(at);
    file.put(byte);
  }
  // A file in files/ that ends so and has the most bytes.
  std::string LargestFile(const std::string& ending) {
    std::string largest;
    uintmax_t bytes = 0;
    for (const std::string& name : FilesIn(backups() + "/files")) {
      const std::string path = backups() + "/files/" + name;
      if (!absl::EndsWith(name, ending) || fs::file_size(path) < bytes) continue;
      bytes = fs::file_size(path);
      largest = path;
    }
    EXPECT_NE(largest, "");
    return largest;
  }
  // The files of the newest backup that hold a table, in files/.
  std::vector<std::string> FilesOfTable(Table table) {
    std::vector<std::string> paths;
    const StoreFiles files = temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).value();
    for (const StoreFile& file : files.files()) {
      if (file.table != table || file.kind != StoreFile::Kind::kTable) continue;
      paths.push_back(backups() + "/files/" +
                      BackupFile{file.name, file.bytes, *file.crc32c}.SharedName());
    }
    EXPECT_FALSE(paths.empty());
    return paths;
  }
  // That the restored directory holds the first `count` documents, whole.
  void ExpectRestored(size_t count, uint64_t fingerprint = 0) {
    MemoryStoreOptions options = temp_.options();
    if (fingerprint != 0) options.derivation_fingerprint = fingerprint;
    RocksDbOptions disk = temp_.rocksdb_options();
    disk.data_dir = restored();
    Metrics metrics;
    auto chunk_store = OpenRocksDbChunkStore(disk, metrics);
    ASSERT_TRUE(chunk_store.ok()) << chunk_store.status();
    auto store = MemoryStore::Open(options, **chunk_store, metrics, temp_.clock());
    ASSERT_TRUE(store.ok()) << store.status();
    const MemoryId memory = (*store)->GetMemory("default", "m").value().uid;
    EXPECT_EQ((*store)->ListDocuments(memory, DocumentId{}, 1000)->size(), count);
    for (size_t i = 0; i < count; ++i) {
      const DocumentInfo info = (*store)->GetDocument(memory, absl::StrCat("d", i)).value();
      EXPECT_EQ((*store)->ReadText(info.uid, 0, 3000).value(), texts_[i]);
      EXPECT_EQ(info.visible_bytes, fingerprint == 0 ? 3000 : 0);
      EXPECT_FALSE(info.damaged);
    }
    EXPECT_EQ(StoreChecker(**store, {}).Run()->found_count(), 0);
  }
  // That the restored directory holds all documents and some damage, all of which can be mended.
  void ExpectHealed() {
    RocksDbOptions disk = temp_.rocksdb_options();
    disk.data_dir = restored();
    Metrics metrics;
    auto chunk_store = OpenRocksDbChunkStore(disk, metrics);
    ASSERT_TRUE(chunk_store.ok()) << chunk_store.status();
    auto store = MemoryStore::Open(temp_.options(), **chunk_store, metrics, temp_.clock());
    ASSERT_TRUE(store.ok()) << store.status();
    StoreCheckOptions heal;
    heal.heal = true;
    heal.derive = [&](DocumentId document, int64_t, bool) {
      return (*store)->RestoreSegment(MadeUpSegment(temp_.options(), document, 0, 0, 4, 0, 3000));
    };
    EXPECT_GT(StoreChecker(**store, heal).Run()->found_count(), 0);
    EXPECT_EQ(StoreChecker(**store, {}).Run()->found_count(), 0);
    const MemoryId memory = (*store)->GetMemory("default", "m").value().uid;
    for (size_t i = 0; i < texts_.size(); ++i) {
      const DocumentInfo info = (*store)->GetDocument(memory, absl::StrCat("d", i)).value();
      EXPECT_EQ((*store)->ReadText(info.uid, 0, 3000).value(), texts_[i]);
    }
  }
  std::set<std::string> FilesIn(const std::string& folder) {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename());
    return names;
  }

  TempDir dir_;
  TempStore temp_{LargePages()};
  MemoryId memory_{};
  std::vector<std::string> texts_;
};

TEST_F(BackupDirectoryTest, RestoredBackupIsTheStoreAsItWas) {
  AddDocuments(10);
  const BackupInfo made = Backup().value();
  AddDocuments(5);
  EXPECT_EQ(made.id, 1);
  EXPECT_EQ(made.version, "1.2.3");
  EXPECT_EQ(made.documents, 10);
  EXPECT_EQ(made.memories, 1);
  EXPECT_EQ(made.durable_bytes, 30000);
  EXPECT_EQ(made.create_time, temp_.clock().Now());
  const BackupInfo restored = Restore(1).value();
  EXPECT_EQ(restored.files, made.files);
  ExpectRestored(10);
}

TEST_F(BackupDirectoryTest, SecondBackupCopiesWhatIsNewAndEachIsRestoredAsItWas) {
  AddDocuments(10);
  ASSERT_TRUE(Backup().ok());
  AddDocuments(1);
  BackupProgress last;
  ASSERT_TRUE(Backup([&](const BackupProgress& progress) {
                last = progress;
                return absl::OkStatus();
              }).ok());
  EXPECT_GT(last.bytes_shared, last.bytes_copied);
  const std::vector<BackupInfo> list = BackupDirectory::List(backups()).value();
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0].documents, 10);
  EXPECT_EQ(list[1].documents, 11);
  ASSERT_TRUE(Restore(1).ok());
  ExpectRestored(10);
  fs::remove_all(restored());
  ASSERT_TRUE(Restore(0).ok()) << "the newest";
  ExpectRestored(11);
}

TEST_F(BackupDirectoryTest, BackupIsMadeWhileTheStoreIsWritten) {
  AddDocuments(5);
  bool added = false;
  ASSERT_TRUE(Backup([&](const BackupProgress&) {
                if (!std::exchange(added, true)) AddDocuments(20);
                return absl::OkStatus();
              }).ok());
  ASSERT_TRUE(Restore(1).ok());
  ExpectRestored(5);
}

TEST_F(BackupDirectoryTest, RestoredUnderAnotherFingerprintTextIsWholeAndAllIsToBeDerived) {
  AddDocuments(3);
  ASSERT_TRUE(Backup().ok());
  ASSERT_TRUE(Restore(1).ok());
  ExpectRestored(3, /*fingerprint=*/0xfeed);
}

TEST_F(BackupDirectoryTest, DeletedBackupTakesItsFilesAndLeavesThoseOfOthers) {
  AddDocuments(5);
  ASSERT_TRUE(Backup().ok());
  const auto of_first = FilesIn(backups() + "/files");
  AddDocuments(5);
  ASSERT_TRUE(Backup().ok());
  {
    auto directory = BackupDirectory::Open(backups()).value();
    EXPECT_TRUE(absl::IsNotFound(directory->Delete(7)));
    EXPECT_TRUE(absl::IsNotFound(directory->Delete(0)));
    ASSERT_TRUE(directory->Delete(1).ok());
  }
  ASSERT_EQ(BackupDirectory::List(backups())->size(), 1u);
  EXPECT_TRUE(absl::IsNotFound(Restore(1).status()));
  ASSERT_TRUE(Restore(2).ok());
  ExpectRestored(10);
  {
    auto directory = BackupDirectory::Open(backups()).value();
    ASSERT_TRUE(directory->Delete(2).ok());
  }
  EXPECT_TRUE(FilesIn(backups() + "/files").empty());
  // Ids are not given again while a later backup is there; an empty directory begins anew.
  EXPECT_EQ(Backup()->id, 1);
}

TEST_F(BackupDirectoryTest, CancelledOrFailedBackupIsNotListedAndItsFilesGo) {
  AddDocuments(5);
  ASSERT_TRUE(Backup().ok());
  const auto before = FilesIn(backups() + "/files");
  AddDocuments(5);
  for (const absl::Status& status :
       {absl::CancelledError("enough"), absl::ResourceExhaustedError("disk full")}) {
    int steps = 0;
    EXPECT_EQ(Backup([&](const BackupProgress&) {
                return ++steps > 8 ? status : absl::OkStatus();
              }).status(),
              status);
    EXPECT_EQ(BackupDirectory::List(backups())->size(), 1u);
  }
  ASSERT_TRUE(Backup().ok());
  {
    auto directory = BackupDirectory::Open(backups()).value();
    ASSERT_TRUE(directory->Delete(2).ok());
  }
  EXPECT_EQ(FilesIn(backups() + "/files"), before);
  ASSERT_TRUE(Restore(1).ok());
  ExpectRestored(5);
}

TEST_F(BackupDirectoryTest, FullDiskEndsTheBackupAndTheNextOneWorks) {
  AddDocuments(5);
  // /dev/full answers every write with ENOSPC: a folder of files that cannot take any.
  ASSERT_TRUE(BackupDirectory::Open(backups()).ok());
  const StoreFiles files = temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).value();
  for (const StoreFile& file : files.files()) {
    fs::create_symlink("/dev/full", backups() + "/files/" + file.name + ".new");
  }
  auto directory = BackupDirectory::Open(backups()).value();
  // The links would be removed as left over from a backup that did not end; a list that cannot be
  // read keeps them.
  std::ofstream(backups() + "/backups/1") << "damaged";
  const absl::Status status = directory->Create(files, {}, NoStep).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  ASSERT_TRUE(directory->Delete(1).ok());
  EXPECT_TRUE(FilesIn(backups() + "/files").empty());
  EXPECT_EQ(directory->Create(files, {}, NoStep)->id, 1);
}

TEST_F(BackupDirectoryTest, KilledInTheMiddleNothingHalfDoneIsListed) {
  AddDocuments(5);
  ASSERT_TRUE(Backup().ok());
  AddDocuments(5);
  const StoreFiles files = temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).value();
  for (int kill_at = 1; kill_at < 12; ++kill_at) {
    const pid_t child = fork();
    if (child == 0) {
      // No other thread's lock is needed here: files alone.
      auto directory = BackupDirectory::Open(backups());
      int steps = 0;
      (void)(*directory)->Create(files, {}, [&](const BackupProgress&) {
        if (++steps == kill_at) kill(getpid(), SIGKILL);
        return absl::OkStatus();
      });
      kill(getpid(), SIGKILL);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    const std::vector<BackupInfo> listed = BackupDirectory::List(backups()).value();
    for (const BackupInfo& info : listed) {
      EXPECT_EQ(info.damage, "");
      fs::remove_all(restored());
      EXPECT_TRUE(Restore(info.id).ok());
    }
  }
  fs::remove_all(restored());
  ASSERT_TRUE(Restore(1).ok());
  ExpectRestored(5);
  const int64_t id = Backup()->id;
  fs::remove_all(restored());
  ASSERT_TRUE(Restore(id).ok());
  ExpectRestored(10);
}

TEST_F(BackupDirectoryTest, DamagedFileOfTheStoreIsNotBackedUp) {
  AddDocuments(5);
  std::string damaged;
  {
    const StoreFiles files = temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).value();
    for (const StoreFile& file : files.files()) {
      if (file.table == Table::kText) damaged = file.path;
    }
  }
  {
    std::fstream file(damaged, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(100);
    file.put('!');
  }
  const absl::Status status = Backup().status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(damaged));
  EXPECT_TRUE(BackupDirectory::List(backups())->empty());
}

TEST_F(BackupDirectoryTest, DamagedBackupIsFoundBeforeAnythingIsPutInPlace) {
  AddDocuments(5);
  ASSERT_TRUE(Backup().ok());
  const std::string folder = backups() + "/files/";
  for (const std::string& name : FilesIn(folder)) {
    const auto size = fs::file_size(folder + name);
    if (size == 0) continue;
    SCOPED_TRACE(name);
    fs::copy_file(folder + name, dir_.path() + "/kept", fs::copy_options::overwrite_existing);
    {
      std::fstream file(folder + name, std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(static_cast<std::streamoff>(size / 2));
      const char byte = static_cast<char>(file.get() ^ 1);
      file.seekp(static_cast<std::streamoff>(size / 2));
      file.put(byte);
    }
    EXPECT_TRUE(absl::IsDataLoss(Restore(1).status()));
    fs::resize_file(folder + name, size - 1);
    EXPECT_TRUE(absl::IsDataLoss(Restore(1).status()));
    fs::remove(folder + name);
    EXPECT_TRUE(absl::IsDataLoss(Restore(1).status()));
    fs::rename(dir_.path() + "/kept", folder + name);
    EXPECT_FALSE(fs::exists(restored() + "/FORMAT"));
    EXPECT_FALSE(fs::exists(restored() + "/rocksdb"));
  }
  ASSERT_TRUE(Restore(1).ok()) << "into what the failed ones left";
  ExpectRestored(5);
}

TEST_F(BackupDirectoryTest, ABackupFindsDamageInFilesOfEarlierOnesAndMendsThem) {
  AddDocuments(5);
  ASSERT_TRUE(Backup().ok());
  FlipIn(LargestFile(".blob"));
  fs::resize_file(FilesOfTable(Table::kText)[0], 10);
  EXPECT_TRUE(absl::IsDataLoss(Restore(1).status()));
  AddDocuments(1);
  EXPECT_EQ(Backup()->mended_files, 2);
  EXPECT_EQ(Backup()->mended_files, 0);
  ASSERT_TRUE(Restore(1).ok());
  ExpectRestored(5);
  fs::remove_all(restored());
  ASSERT_TRUE(Restore(2).ok());
  ExpectRestored(6);
}

TEST_F(BackupDirectoryTest, CheckSaysWhichBackupsAreWholeAndWhatIsDamaged) {
  EXPECT_FALSE(BackupDirectory::Check(backups(), 0, NoStep).ok());
  AddDocuments(5);
  ASSERT_TRUE(Backup().ok());
  const std::string of_first = LargestFile(".blob");
  AddDocuments(5);
  ASSERT_TRUE(Backup().ok());
  {
    auto directory = BackupDirectory::Open(backups()).value();
    ASSERT_TRUE(directory->Delete(1).ok());
  }
  AddDocuments(1);
  ASSERT_TRUE(Backup().ok());
  int64_t read = 0, total = 0;
  auto checked = BackupDirectory::Check(backups(), 0, [&](const BackupProgress& progress) {
                   read = progress.bytes_shared;
                   total = progress.bytes_total;
                   return absl::OkStatus();
                 }).value();
  ASSERT_EQ(checked.size(), 2u);
  EXPECT_TRUE(checked[0].is_whole());
  EXPECT_TRUE(checked[1].is_whole());
  EXPECT_GT(total, 0);
  EXPECT_EQ(read, total) << "each file once";
  EXPECT_TRUE(absl::IsNotFound(BackupDirectory::Check(backups(), 1, NoStep).status()));
  EXPECT_TRUE(absl::IsCancelled(BackupDirectory::Check(backups(), 0, [](const BackupProgress&) {
                                  return absl::CancelledError("enough");
                                }).status()));
  // What both have, and what the newer one alone has.
  FlipIn(of_first);
  ASSERT_TRUE(fs::remove(FilesOfTable(Table::kCatalog)[0]));
  checked = BackupDirectory::Check(backups(), 0, NoStep).value();
  ASSERT_FALSE(checked[0].damage.empty());
  EXPECT_TRUE(checked[0].damage[0].is_derived);
  EXPECT_THAT(checked[0].damage[0].what, HasSubstr(of_first));
  EXPECT_GE(checked[1].damage.size(), 2u);
  EXPECT_EQ(BackupDirectory::Check(backups(), 3, NoStep)->size(), 1u);
}

TEST_F(BackupDirectoryTest, ADamagedBackupSaysWhichAreWholeAndWhatCanBeDone) {
  AddDocuments(3);
  ASSERT_TRUE(Backup().ok());
  const auto of_first = FilesIn(backups() + "/files");
  AddDocuments(3);
  ASSERT_TRUE(Backup().ok());
  std::string of_second;
  for (const std::string& name : FilesIn(backups() + "/files")) {
    if (absl::EndsWith(name, ".blob") && !of_first.contains(name)) of_second = name;
  }
  ASSERT_NE(of_second, "");
  FlipIn(backups() + "/files/" + of_second);
  std::string message(Restore(2).status().message());
  EXPECT_THAT(message, HasSubstr(of_second));
  EXPECT_THAT(message, HasSubstr("Whole are: backup 1. --restore-damaged restores this one"));
  FlipIn(FilesOfTable(Table::kText)[0]);
  message = std::string(Restore(2).status().message());
  EXPECT_THAT(message, HasSubstr("(not derived)"));
  EXPECT_THAT(message, Not(HasSubstr("--restore-damaged")));
  EXPECT_TRUE(
      absl::IsDataLoss(BackupDirectory::Restore(backups(), {.id = 2, .allow_derived_damage = true},
                                                restored(), NoStep)
                           .status()));
}

TEST_F(BackupDirectoryTest, ABackupWithDamagedDerivedDataIsRestoredWithAllText) {
  AddDocuments(5);
  ASSERT_TRUE(Backup().ok());
  for (const std::string& file : {LargestFile(".blob"), FilesOfTable(Table::kSegments)[0]}) {
    const std::string kept = dir_.path() + "/kept";
    fs::copy_file(file, kept, fs::copy_options::overwrite_existing);
    for (const std::string how : {"flipped", "short", "gone"}) {
      // Tables are tried with a flip alone.
      if (how != "flipped" && !absl::EndsWith(file, ".blob")) continue;
      SCOPED_TRACE(how + " " + file);
      fs::remove_all(restored());
      fs::copy_file(kept, file, fs::copy_options::overwrite_existing);
      if (how == "flipped") FlipIn(file);
      if (how == "short") fs::resize_file(file, fs::file_size(file) / 2);
      if (how == "gone") fs::remove(file);
      EXPECT_TRUE(absl::IsDataLoss(Restore(1).status()));
      const auto made =
          BackupDirectory::Restore(backups(), {.allow_derived_damage = true}, restored(), NoStep);
      ASSERT_TRUE(made.ok()) << made.status();
      EXPECT_EQ(made->damage.size(), 1u);
      ExpectHealed();
    }
    fs::copy_file(kept, file, fs::copy_options::overwrite_existing);
  }
}

TEST_F(BackupDirectoryTest, ABackupNamesTheStoreItIsOf) {
  AddDocuments(1);
  const BackupInfo made = Backup().value();
  EXPECT_THAT(made.store, ::testing::EndsWith(":" + fs::absolute(temp_.data_dir()).string()));
  EXPECT_EQ(BackupDirectory::List(backups())->at(0).store, made.store);
  EXPECT_EQ(Restore(1)->store, made.store);
}

TEST_F(BackupDirectoryTest, DamagedListIsToldAndKeepsAllFiles) {
  AddDocuments(5);
  ASSERT_TRUE(Backup().ok());
  AddDocuments(1);
  ASSERT_TRUE(Backup().ok());
  {
    std::fstream file(backups() + "/backups/1", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(30);
    file.put('!');
  }
  const auto files = FilesIn(backups() + "/files");
  const std::vector<BackupInfo> list = BackupDirectory::List(backups()).value();
  ASSERT_EQ(list.size(), 2u);
  EXPECT_THAT(list[0].damage, HasSubstr("damaged"));
  EXPECT_EQ(list[1].damage, "");
  EXPECT_TRUE(absl::IsDataLoss(Restore(1).status()));
  AddDocuments(1);
  ASSERT_TRUE(Backup().ok());
  for (const std::string& name : files) EXPECT_TRUE(fs::exists(backups() + "/files/" + name));
  ASSERT_TRUE(Restore(2).ok());
  ExpectRestored(6);
}

TEST_F(BackupDirectoryTest, DirectoriesThatHoldSomethingElseAreRefusedAndLeftAlone) {
  fs::create_directory(backups());
  std::ofstream(backups() + "/precious") << "data";
  EXPECT_TRUE(absl::IsFailedPrecondition(BackupDirectory::Open(backups()).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(BackupDirectory::List(backups()).status()));
  EXPECT_EQ(FilesIn(backups()), std::set<std::string>{"precious"});
  EXPECT_TRUE(absl::IsNotFound(BackupDirectory::Open(dir_.path() + "/no/parent").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(BackupDirectory::Open("").status()));

  fs::remove_all(backups());
  ASSERT_TRUE(Backup().ok());
  fs::create_directory(restored());
  std::ofstream(restored() + "/precious") << "data";
  EXPECT_TRUE(absl::IsFailedPrecondition(Restore(1).status()));
  EXPECT_EQ(FilesIn(restored()), std::set<std::string>{"precious"});
  // A data directory in use, or any other.
  EXPECT_TRUE(absl::IsFailedPrecondition(
      BackupDirectory::Restore(backups(), {.id = 1}, temp_.data_dir(), NoStep).status()));
  std::ofstream(backups() + "/FORMAT") << "mneme backups 99\n";
  EXPECT_TRUE(absl::IsFailedPrecondition(BackupDirectory::Open(backups()).status()));
}

TEST_F(BackupDirectoryTest, OneAtATimeChangesIt) {
  auto directory = BackupDirectory::Open(backups()).value();
  EXPECT_TRUE(absl::IsFailedPrecondition(BackupDirectory::Open(backups()).status()));
  EXPECT_TRUE(BackupDirectory::List(backups()).ok());
  EXPECT_TRUE(absl::IsNotFound(Restore(0).status()));
}

}  // namespace
}  // namespace mneme
