// Forgetting with damaged files of RocksDB: what lies elsewhere goes, what lies there goes too, and
// nobody else loses what can be read.

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "memory_store/keys.h"
#include "memory_store/store_checker.h"
#include "tests/memory_store/derived.h"
#include "tests/memory_store/file_search.h"
#include "tests/memory_store/flip_byte.h"
#include "tests/memory_store/temp_store.h"

namespace mneme {
namespace {

class DamagedPurgeTest : public ::testing::Test {
 protected:
  explicit DamagedPurgeTest(const MemoryStoreOptions& options = {}) : temp_(options) {}

  static constexpr int kDocuments = 12;
  static constexpr int64_t kBytes = 12000;  // a block of a table holds one or two

  // Does not compress.
  std::string Text(DocumentId document) const {
    std::mt19937_64 random(static_cast<uint64_t>(document));
    std::string text;
    while (static_cast<int64_t>(text.size()) < kBytes) {
      text.push_back(static_cast<char>(' ' + random() % 95));
    }
    return text;
  }
  std::string Marker(DocumentId document) const { return Text(document).substr(100, 40); }

  void Fill() {
    CreateMemories();
    // Every third takes more text.
    for (int i = 0; i < kDocuments; ++i) AddDocument(memories_[i % 2], /*seal=*/i % 3 != 0);
  }
  void CreateMemories() {
    for (const char* name : {"m", "other"}) {
      memories_.push_back(temp_.store().CreateMemory("default", name, "").value().uid);
    }
  }
  void AddDocument(MemoryId memory, bool seal) {
    const std::string id = absl::StrCat("d", documents_.size());
    const DocumentId document = temp_.store().CreateDocument(memory, id).value().uid;
    memory_of_[document] = memory;
    documents_.push_back(document);
    const std::string text = Text(document);
    const TextAppend append{document, 0, text, seal};
    ASSERT_TRUE(temp_.store().AppendText({&append, 1}).ok());
    std::vector<SegmentDerived> segments;
    segments.push_back(MadeUpSegment(temp_.options(), document, 0, 0, 4, 0, kBytes));
    ASSERT_TRUE(temp_.store().PutSegments(segments).ok());
  }

  // A file of a table; tables' files are numbered in their order, the default one comes last.
  StoreFile TableFile(std::optional<Table> table) {
    const std::vector<StoreFile> files = TableFiles(table);
    if (!files.empty()) return files.front();
    ADD_FAILURE() << "no such table file";
    return {};
  }
  std::vector<StoreFile> TableFiles(std::optional<Table> table) {
    auto files = temp_.chunk_store().Files(ChunkStore::FilesFor::kCheck)->files();
    std::erase_if(files, [&](const StoreFile& file) {
      return file.kind != StoreFile::Kind::kTable || file.table != table;
    });
    return files;
  }
  std::vector<Deletion> Purge() {
    auto purged = temp_.store().Purge(cancel_);
    EXPECT_TRUE(purged.ok()) << purged.status();
    return purged.value_or(std::vector<Deletion>());
  }
  StoreCheckReport Check(bool heal) {
    StoreCheckOptions options;
    options.heal = options.give_up_text = heal;
    options.derive = [this](DocumentId document, int64_t, bool) {
      return temp_.store().RestoreSegment(
          MadeUpSegment(temp_.options(), document, 0, 0, 4, 0, kBytes));
    };
    return StoreChecker(temp_.store(), options).Run().value();
  }
  static int64_t FoundFiles(const StoreCheckReport& report) {
    return report.found[static_cast<size_t>(StoreFinding::Kind::kFile)];
  }
  // Reads all documents that are there: those that cannot be, in their order. No wrong text.
  std::vector<DocumentId> Unreadable() {
    std::vector<DocumentId> unreadable;
    for (const DocumentId document : documents_) {
      if (!temp_.store().GetDocument(document).ok()) continue;
      const auto text = temp_.store().ReadText(document, 0, kBytes);
      if (text.ok()) {
        EXPECT_EQ(*text, Text(document));
      } else {
        EXPECT_TRUE(absl::IsDataLoss(text.status()) || absl::IsOutOfRange(text.status()))
            << text.status();
        EXPECT_TRUE(temp_.store().GetDocument(document)->damaged);
        unreadable.push_back(document);
      }
    }
    return unreadable;
  }

  TempStore temp_;
  std::atomic<bool> cancel_{false};
  std::vector<MemoryId> memories_;
  std::vector<DocumentId> documents_;
  std::map<DocumentId, MemoryId> memory_of_;
};

TEST_F(DamagedPurgeTest, DamagedBlockOfTextSpoilsNoDeletion) {
  for (const int64_t where : {2000, 50000, 100000, -300, -10}) {
    SCOPED_TRACE(where);
    documents_.clear();
    memories_.clear();
    Fill();
    ASSERT_FALSE(HasFatalFailure());
    ASSERT_TRUE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
    temp_.Reopen();
    const StoreFile file = TableFile(Table::kText);
    temp_.Close();
    FlipByte(file.path, where > 0 ? where : file.bytes + where);
    temp_.Open();
    const std::vector<DocumentId> damaged = Unreadable();
    EXPECT_LE(damaged.size(), where > 0 ? 4u : size_t{kDocuments});

    // One that has nothing to do with it.
    const auto whole = std::find_if(documents_.begin(), documents_.end(), [&](DocumentId document) {
      return !temp_.store().GetDocument(document)->damaged;
    });
    if (whole != documents_.end()) {
      ASSERT_TRUE(temp_.store().DeleteDocument(*whole).ok());
      EXPECT_EQ(Purge().size(), 1u);
      EXPECT_TRUE(MarkersOnDisk(temp_.data_dir(), {Marker(*whole)}).empty());
      // Nobody else lost anything by it, nor came to look whole, also not after the next start.
      EXPECT_EQ(Unreadable(), damaged);
      temp_.Reopen();
      EXPECT_EQ(Unreadable(), damaged);
      EXPECT_EQ(FoundFiles(Check(/*heal=*/false)), 0);
    }
    // The damaged ones.
    for (const DocumentId document : damaged) {
      ASSERT_TRUE(temp_.store().DeleteDocument(document).ok());
    }
    Purge();
    EXPECT_TRUE(temp_.store().PendingDeletions().empty());
    for (const DocumentId document : damaged) {
      EXPECT_TRUE(MarkersOnDisk(temp_.data_dir(), {Marker(document)}).empty());
    }
    EXPECT_TRUE(Unreadable().empty());
    Check(/*heal=*/true);
    EXPECT_EQ(Check(/*heal=*/false).found_count(), 0);
    temp_.Reopen();
    EXPECT_EQ(Check(/*heal=*/false).found_count(), 0);
    for (const MemoryId memory : memories_) ASSERT_TRUE(temp_.store().DeleteMemory(memory).ok());
    EXPECT_EQ(Purge().size(), 2u);
  }
}

TEST_F(DamagedPurgeTest, TextWrittenSinceIsNotLostWithTheFile) {
  Fill();
  ASSERT_TRUE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
  const StoreFile file = TableFile(Table::kText);
  FlipByte(file.path, 2000);
  // Open documents grow, new ones come, among the keys of the damaged block or not.
  const std::string more = "and more";
  std::map<DocumentId, int64_t> bytes;
  for (const DocumentId document : documents_) {
    bytes[document] = kBytes;
    if (temp_.store().GetDocument(document)->sealed) continue;
    const TextAppend append{document, kBytes, more, false};
    ASSERT_TRUE(temp_.store().AppendText({&append, 1}).ok());
    bytes[document] += static_cast<int64_t>(more.size());
  }
  std::vector<DocumentId> fresh;
  for (const MemoryId memory : memories_) {
    fresh.push_back(temp_.store().CreateDocument(memory, "fresh").value().uid);
    const TextAppend append{fresh.back(), 0, more, false};
    ASSERT_TRUE(temp_.store().AppendText({&append, 1}).ok());
  }
  ASSERT_TRUE(temp_.store().DeleteDocument(documents_.back()).ok());
  EXPECT_EQ(Purge().size(), 1u);
  for (const bool reopened : {false, true}) {
    if (reopened) temp_.Reopen();
    int damaged = 0;
    for (const DocumentId document : documents_) {
      const auto info = temp_.store().GetDocument(document);
      if (!info.ok()) continue;
      EXPECT_EQ(info->durable_bytes, bytes[document]);
      damaged += !temp_.store().ReadText(document, 0, kBytes).ok();
      if (bytes[document] > kBytes) {
        EXPECT_EQ(temp_.store().ReadText(document, kBytes, bytes[document]).value(), more);
      }
    }
    EXPECT_GE(damaged, 1);
    EXPECT_LE(damaged, 2);
    for (const DocumentId document : fresh) {
      EXPECT_EQ(temp_.store().ReadText(document, 0, more.size()).value(), more);
      EXPECT_FALSE(temp_.store().GetDocument(document)->damaged);
    }
  }
}

TEST_F(DamagedPurgeTest, DamagedDerivedTablesAndTheDefaultOneAreMended) {
  Fill();
  for (const std::optional<Table> table :
       {std::optional(Table::kSegments), std::optional(Table::kPages), std::optional<Table>()}) {
    for (const int64_t where : {45, -300, -10}) {
      SCOPED_TRACE(absl::StrCat(table.has_value() ? static_cast<int>(*table) : -1, " ", where));
      // The purge writes tables of one file each.
      for (const DocumentId document : documents_) {
        if (!temp_.store().GetDocument(document).ok()) continue;
        // The engine derives anew what was left out at Open.
        const SegmentDerived segment = MadeUpSegment(temp_.options(), document, 0, 0, 4, 0, kBytes);
        const absl::Status derived = temp_.store().GetDocument(document)->visible_bytes > 0
                                         ? temp_.store().RestoreSegment(segment)
                                         : temp_.store().PutSegments({&segment, 1});
        ASSERT_TRUE(derived.ok()) << derived;
      }
      ASSERT_TRUE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
      const StoreFile file = TableFile(table);
      temp_.Close();
      FlipByte(file.path, where > 0 ? where : file.bytes + where);
      temp_.Open();
      const DocumentId victim = documents_.back();
      documents_.pop_back();
      ASSERT_TRUE(temp_.store().DeleteDocument(victim).ok());
      Purge();
      EXPECT_TRUE(temp_.store().PendingDeletions().empty());
      EXPECT_TRUE(MarkersOnDisk(temp_.data_dir(), {Marker(victim)}).empty());
      Check(/*heal=*/true);
      temp_.Reopen();
      EXPECT_EQ(FoundFiles(Check(/*heal=*/false)), 0);
      EXPECT_TRUE(Unreadable().empty());
    }
  }
}

// A purge reads whole files: in what it writes anew are the keys of the file between, so the damage
// beside it is in its way.
TEST_F(DamagedPurgeTest, DamageOutsideOfTheDeletedKeysSpoilsNoDeletion) {
  for (const Table table : {Table::kText, Table::kSegments, Table::kPages}) {
    for (const int64_t where : {45, -10}) {
      SCOPED_TRACE(absl::StrCat(static_cast<int>(table), " ", where));
      memories_.clear();
      documents_.clear();
      CreateMemories();
      for (int i = 0; i < 4; ++i) AddDocument(memories_[0], /*seal=*/false);
      ASSERT_TRUE(temp_.store().DeleteDocument(documents_[3]).ok());
      EXPECT_EQ(Purge().size(), 1u);
      const StoreFile file = TableFile(table);
      // The file between: in both memories.
      const TextAppend append{documents_[1], kBytes, "more", false};
      ASSERT_TRUE(temp_.store().AppendText({&append, 1}).ok());
      ASSERT_TRUE(
          temp_.store()
              .RestoreSegment(MadeUpSegment(temp_.options(), documents_[1], 0, 0, 4, 0, kBytes))
              .ok());
      AddDocument(memories_[1], /*seal=*/true);
      ASSERT_TRUE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
      ASSERT_EQ(TableFiles(table).size(), 2u);
      temp_.Close();
      FlipByte(file.path, where > 0 ? where : file.bytes + where);
      temp_.Open();
      const std::vector<DocumentId> damaged = Unreadable();
      ASSERT_TRUE(temp_.store().DeleteDocument(documents_.back()).ok());
      EXPECT_EQ(Purge().size(), 1u);
      EXPECT_TRUE(MarkersOnDisk(temp_.data_dir(), {Marker(documents_.back())}).empty());
      EXPECT_EQ(Unreadable(), damaged);
      for (const MemoryId memory : memories_) ASSERT_TRUE(temp_.store().DeleteMemory(memory).ok());
      EXPECT_EQ(Purge().size(), 2u);
    }
  }
}

TEST_F(DamagedPurgeTest, FileOfWhichNoRecordIsLeftIsMendedAtOnce) {
  for (const Table table : {Table::kSegments, Table::kPages}) {
    for (const int64_t where : {45, -10}) {
      SCOPED_TRACE(absl::StrCat(static_cast<int>(table), " ", where));
      memories_.clear();
      documents_.clear();
      CreateMemories();
      for (int i = 0; i < 2; ++i) AddDocument(memories_[0], /*seal=*/true);
      ASSERT_TRUE(temp_.store().DeleteDocument(documents_[0]).ok());
      EXPECT_EQ(Purge().size(), 1u);
      const StoreFile older = TableFile(table);
      // Nothing else is among its keys.
      AddDocument(memories_[1], /*seal=*/true);
      ASSERT_TRUE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
      std::vector<StoreFile> files = TableFiles(table);
      ASSERT_EQ(files.size(), 2u);
      const StoreFile file = files[0].name == older.name ? files[1] : files[0];
      temp_.Close();
      FlipByte(file.path, where > 0 ? where : file.bytes + where);
      temp_.Open();
      const StoreCheckReport mended = Check(/*heal=*/true);
      EXPECT_EQ(FoundFiles(mended), 1);
      EXPECT_EQ(mended.healed[static_cast<size_t>(StoreFinding::Kind::kFile)], 1);
      EXPECT_EQ(Check(/*heal=*/false).found_count(), 0);
      EXPECT_TRUE(Unreadable().empty());
      for (const MemoryId memory : memories_) ASSERT_TRUE(temp_.store().DeleteMemory(memory).ok());
      EXPECT_EQ(Purge().size(), 2u);
    }
  }
}

TEST_F(DamagedPurgeTest, DeletionsLostWithAFileOfDerivedRecordsAreMadeAgain) {
  for (const Table table : {Table::kSegments, Table::kPages}) {
    for (const int64_t where : {3, -10, -300}) {
      SCOPED_TRACE(absl::StrCat(static_cast<int>(table), " ", where));
      memories_.clear();
      documents_.clear();
      Fill();
      ASSERT_FALSE(HasFatalFailure());
      ASSERT_TRUE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
      const DocumentKey deleted{memories_[0], documents_.front()};
      ASSERT_TRUE(temp_.store().DeleteDocument(deleted.document).ok());
      ASSERT_TRUE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
      const StoreFile file = TableFile(table);  // the newest: of the deletion
      temp_.Close();
      FlipByte(file.path, where > 0 ? where : file.bytes + where);
      temp_.Open();
      EXPECT_EQ(Purge().size(), 1u);
      const auto [begin, end] = RecordKeyRange(deleted);
      int left = 0;
      ASSERT_TRUE(temp_.chunk_store()
                      .Scan(table, begin, end,
                            [&left](absl::string_view, absl::string_view) { return ++left > 0; })
                      .ok());
      EXPECT_EQ(left, 0);
      EXPECT_TRUE(Unreadable().empty());
      for (const MemoryId memory : memories_) ASSERT_TRUE(temp_.store().DeleteMemory(memory).ok());
      EXPECT_EQ(Purge().size(), 2u);
    }
  }
}

// Pages of 5 KiB lie in blob files.
class DamagedBlobPurgeTest : public DamagedPurgeTest {
 protected:
  DamagedBlobPurgeTest() : DamagedPurgeTest(Options()) {}
  static MemoryStoreOptions Options() {
    MemoryStoreOptions options;
    options.page_bytes = 5120;
    return options;
  }
  // Blob files that hold pages of the document.
  int BlobFilesWith(const DocumentKey& document) {
    const std::string key = RecordKeyRange(document).first;
    int files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(temp_.data_dir() + "/rocksdb")) {
      if (entry.path().extension() != ".blob") continue;
      std::ifstream file(entry.path(), std::ios::binary);
      const std::string bytes(std::istreambuf_iterator<char>(file), {});
      files += bytes.find(key) != std::string::npos;
    }
    return files;
  }
};

// RocksDB does not count as garbage what no table refers to since the damage.
TEST_F(DamagedBlobPurgeTest, PagesWhoseTableWasDamagedGo) {
  for (const int64_t where : {45, -10}) {
    SCOPED_TRACE(where);
    memories_.clear();
    documents_.clear();
    Fill();
    ASSERT_FALSE(HasFatalFailure());
    ASSERT_TRUE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
    const StoreFile file = TableFile(Table::kPages);
    temp_.Close();
    FlipByte(file.path, where > 0 ? where : file.bytes + where);
    temp_.Open();
    for (int i = 0; i < 4; ++i) {
      const DocumentKey deleted{memories_[i % 2], documents_[i]};
      ASSERT_EQ(BlobFilesWith(deleted) > 0, i == 0);  // all of them went unreferenced
      if (i == 2) Check(/*heal=*/true);
      ASSERT_TRUE(temp_.store().DeleteDocument(deleted.document).ok());
      EXPECT_EQ(Purge().size(), 1u);
      EXPECT_EQ(BlobFilesWith(deleted), 0);
    }
    for (const MemoryId memory : memories_) ASSERT_TRUE(temp_.store().DeleteMemory(memory).ok());
    EXPECT_EQ(Purge().size(), 2u);
  }
}

// RocksDB 7.8 frees the tombstones of the file before it twice.
TEST_F(DamagedPurgeTest, TableBehindTombstonesThatCannotBeOpenedCrashesNothing) {
  for (const Table table : {Table::kText, Table::kSegments, Table::kPages}) {
    for (const int64_t from_end : {10, 300}) {
      SCOPED_TRACE(absl::StrCat(static_cast<int>(table), " ", from_end));
      memories_.clear();
      documents_.clear();
      Fill();
      ASSERT_FALSE(HasFatalFailure());
      ASSERT_TRUE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
      const StoreFile file = TableFile(table);
      ASSERT_TRUE(temp_.store().DeleteDocument(documents_.front()).ok());
      ASSERT_TRUE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
      ASSERT_NE(TableFile(table).name, file.name);  // the newer one comes first
      temp_.Close();
      FlipByte(file.path, file.bytes - from_end);
      temp_.Open();
      const bool text_went = table == Table::kText;
      EXPECT_EQ(Unreadable().size(), text_went ? documents_.size() - 1 : 0);
      Check(/*heal=*/false);
      EXPECT_GE(Purge().size(), 1u);
      EXPECT_TRUE(MarkersOnDisk(temp_.data_dir(), {Marker(documents_.front())}).empty());
      Check(/*heal=*/true);
      temp_.Reopen();
      EXPECT_EQ(FoundFiles(Check(/*heal=*/false)), 0);
      EXPECT_EQ(Unreadable().size(), text_went ? documents_.size() - 1 : 0);
      for (const MemoryId memory : memories_) ASSERT_TRUE(temp_.store().DeleteMemory(memory).ok());
      EXPECT_EQ(Purge().size(), 2u);
    }
  }
}

// A fork holds the beginning of a document, and of the end that goes a block is damaged that lies
// before others that can be read.
TEST_F(DamagedPurgeTest, DamageInAnEndThatWasCutOffLeavesTheBeginningWhole) {
  temp_.rocksdb_options().block_cache_bytes = 0;  // the purge reads the file
  temp_.Reopen();
  CreateMemories();
  const DocumentId document = temp_.store().CreateDocument(memories_[0], "d").value().uid;
  std::vector<std::string> pieces;
  MemoryId fork{};
  for (int i = 0; i < 6; ++i) {
    if (i == 2) fork = temp_.store().ForkMemory({memories_[0]}, "f", "").value().uid;
    pieces.push_back(Text(DocumentId{100u + i}));
    const TextAppend append{document, i * kBytes, pieces[i], false};
    ASSERT_TRUE(temp_.store().AppendText({&append, 1}).ok());
  }
  ASSERT_TRUE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
  const std::string path = TableFile(Table::kText).path;
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const size_t at = bytes.find(pieces[3].substr(100, 40));
  ASSERT_NE(at, std::string::npos);
  ASSERT_TRUE(temp_.store().DeleteDocument(memories_[0], document).ok());
  FlipByte(path, static_cast<int64_t>(at));
  EXPECT_EQ(Purge().size(), 1u);
  for (int i = 2; i < 6; ++i) {
    EXPECT_TRUE(MarkersOnDisk(temp_.data_dir(), {pieces[i].substr(100, 40)}).empty()) << i;
  }
  for (const bool reopened : {false, true}) {
    if (reopened) temp_.Reopen();
    const DocumentInfo info = temp_.store().GetDocument(fork, "d").value();
    EXPECT_FALSE(info.damaged) << reopened;
    EXPECT_EQ(info.durable_bytes, 2 * kBytes);
    const DocumentInfo whole = temp_.store().GetDocument(document).value();
    EXPECT_FALSE(whole.damaged) << reopened;
    EXPECT_EQ(whole.durable_bytes, 2 * kBytes);
    const auto text = temp_.store().ReadText(document, 0, 2 * kBytes);
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(*text, pieces[0] + pieces[1]);
  }
}

// The memory stays for a fork that holds another document of it.
TEST_F(DamagedPurgeTest, DeletionLostWithItsFileIsNotLostForAMemoryWithForks) {
  for (const Table table : {Table::kText, Table::kSegments, Table::kPages}) {
    SCOPED_TRACE(static_cast<int>(table));
    memories_.clear();
    documents_.clear();
    CreateMemories();
    AddDocument(memories_[0], /*seal=*/true);
    const MemoryId fork = temp_.store().ForkMemory({memories_[0]}, "f", "").value().uid;
    AddDocument(memories_[0], /*seal=*/true);
    const DocumentKey deleted{memories_[0], documents_[1]};
    ASSERT_TRUE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
    const StoreFile file = TableFile(table);
    ASSERT_TRUE(temp_.store().DeleteMemory(memories_[0]).ok());
    ASSERT_TRUE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
    const StoreFile deletions = TableFile(table);  // the newer one comes first
    ASSERT_NE(deletions.name, file.name);
    temp_.Close();
    FlipByte(deletions.path, deletions.bytes - 10);
    temp_.Open();
    EXPECT_EQ(Purge().size(), 1u);
    EXPECT_TRUE(temp_.store().PendingDeletions().empty());
    EXPECT_TRUE(MarkersOnDisk(temp_.data_dir(), {Marker(deleted.document)}).empty());
    const auto [begin, end] = RecordKeyRange(deleted);
    int records = 0;
    EXPECT_TRUE(temp_.chunk_store()
                    .Scan(table, begin, end,
                          [&](absl::string_view, absl::string_view) {
                            ++records;
                            return true;
                          })
                    .ok());
    EXPECT_EQ(records, 0);
    EXPECT_EQ(temp_.store().ReadText(documents_[0], 0, kBytes).value(), Text(documents_[0]));
    ASSERT_TRUE(temp_.store().DeleteMemory(fork).ok());
    ASSERT_TRUE(temp_.store().DeleteMemory(memories_[1]).ok());
    EXPECT_EQ(Purge().size(), 2u);
  }
}

TEST_F(DamagedPurgeTest, CatalogThatCannotBeOpenedIsRefusedAndNotChanged) {
  Fill();
  ASSERT_TRUE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
  const StoreFile file = TableFile(Table::kCatalog);
  temp_.Close();
  FlipByte(file.path, file.bytes - 10);
  const absl::Status refused =
      OpenRocksDbChunkStore(temp_.rocksdb_options(), temp_.metrics()).status();
  EXPECT_TRUE(absl::IsDataLoss(refused)) << refused;
  EXPECT_TRUE(absl::StrContains(refused.message(), file.name.substr(1))) << refused;
  FlipByte(file.path, file.bytes - 10);
  temp_.Open();
  EXPECT_TRUE(Unreadable().empty());
}

TEST_F(DamagedPurgeTest, DamagedCatalogHoldsUpTheDeletionsThatLieThereAndSaysSo) {
  Fill();
  ASSERT_TRUE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
  const StoreFile file = TableFile(Table::kCatalog);
  FlipByte(file.path, 45);
  ASSERT_TRUE(temp_.store().DeleteDocument(documents_.back()).ok());
  EXPECT_TRUE(Purge().empty());
  const std::vector<Deletion> pending = temp_.store().PendingDeletions();
  ASSERT_EQ(pending.size(), 1u);
  EXPECT_TRUE(absl::StrContains(pending[0].waits_for, file.name.substr(1))) << pending[0].waits_for;
  // Nothing else stands still.
  EXPECT_TRUE(temp_.store().CreateDocument(memories_[0], "more").ok());
  FlipByte(file.path, 45);
  EXPECT_EQ(Purge().size(), 1u);
}

}  // namespace
}  // namespace mneme
