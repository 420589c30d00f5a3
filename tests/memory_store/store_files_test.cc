// The files below a RocksDB store: their checksums tell a flipped bit anywhere, damaged files of
// derived records are given up and made anew, and the close record tells of files that changed
// while nobody used them.

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "memory_store/rocksdb/close_record.h"
#include "memory_store/store_checker.h"
#include "tests/memory_store/derived.h"
#include "tests/memory_store/flip_byte.h"
#include "tests/memory_store/temp_store.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;
using Kind = StoreFinding::Kind;

constexpr int64_t kTextBytes = 3000;

MemoryStoreOptions LargePages() {
  MemoryStoreOptions options;
  options.page_bytes = 4096;  // into blob files
  return options;
}

class StoreFilesTest : public ::testing::Test {
 protected:
  void Fill(int documents = 20) {
    memory_ = temp_.store().CreateMemory("default", "m", "").value().uid;
    for (int i = 0; i < documents; ++i) {
      const DocumentId document =
          temp_.store().CreateDocument(memory_, absl::StrCat("d", i)).value().uid;
      documents_.push_back(document);
      const std::string text = Text(document);
      const TextAppend append{document, 0, text, false};
      ASSERT_TRUE(temp_.store().AppendText({&append, 1}).ok());
      std::vector<SegmentDerived> segments;
      segments.push_back(Segment(document));
      ASSERT_TRUE(temp_.store().PutSegments(std::move(segments)).ok());
    }
  }
  static std::string Text(DocumentId document) {
    std::string text;
    for (int64_t i = 0; i < kTextBytes; ++i)
      text.push_back(static_cast<char>('a' + MadeUpByte(document, i, 0, 3, 0) % 26));
    return text;
  }
  SegmentDerived Segment(DocumentId document) {
    return MadeUpSegment(temp_.options(), document, 0, 0, 4, 0, kTextBytes);
  }
  // Everything written so far, in files.
  StoreFiles FilesOnDisk() {
    return temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).value();
  }
  std::string PathOf(StoreFile::Kind kind, Table table) {
    const StoreFiles files = FilesOnDisk();
    for (const StoreFile& file : files.files()) {
      if (file.kind == kind && file.table == table) return file.path;
    }
    return "";
  }
  StoreCheckReport Check(bool heal, bool give_up_text = false) {
    StoreCheckOptions options;
    options.heal = heal;
    options.give_up_text = give_up_text;
    options.derive = [this](DocumentId document, int64_t, bool) {
      return temp_.store().RestoreSegment(Segment(document));
    };
    absl::StatusOr<StoreCheckReport> report = StoreChecker(temp_.store(), options).Run();
    EXPECT_TRUE(report.ok()) << report.status();
    return report.ok() ? *std::move(report) : StoreCheckReport();
  }
  void ExpectAllWhole() {
    for (const DocumentId document : documents_) {
      EXPECT_EQ(temp_.store().ReadText(document, 0, kTextBytes).value(), Text(document));
      EXPECT_EQ(temp_.store().GetDocument(document)->visible_bytes, kTextBytes);
    }
  }

  TempStore temp_{LargePages()};
  MemoryId memory_{};
  std::vector<DocumentId> documents_;
};

TEST_F(StoreFilesTest, EveryTableAndBlobFileHasAChecksumAndIsRead) {
  Fill();
  int64_t files = 0, bytes = 0, blobs = 0;
  {
    const StoreFiles on_disk = FilesOnDisk();
    for (const StoreFile& file : on_disk.files()) {
      if (file.kind == StoreFile::Kind::kOther) continue;
      EXPECT_TRUE(file.crc32c.has_value()) << file.name;
      blobs += file.kind == StoreFile::Kind::kBlobs;
      ++files;
      bytes += file.bytes;
    }
  }
  EXPECT_GE(blobs, 1);
  const StoreCheckReport report = Check(/*heal=*/false);
  EXPECT_EQ(report.found_count(), 0);
  EXPECT_EQ(report.files.count, files);
  EXPECT_EQ(report.files.bytes, bytes);
}

TEST_F(StoreFilesTest, FlippedByteAnywhereInAFileIsFound) {
  Fill();
  for (const auto& [kind, table] : {std::pair{StoreFile::Kind::kTable, Table::kText},
                                    {StoreFile::Kind::kTable, Table::kSegments},
                                    {StoreFile::Kind::kBlobs, Table::kPages}}) {
    const std::string path = PathOf(kind, table);
    ASSERT_NE(path, "");
    const auto size = static_cast<int64_t>(std::filesystem::file_size(path));
    for (const int64_t at : {int64_t{0}, size / 3, size - 1}) {
      FlipByte(path, at);
      const StoreCheckReport report = Check(/*heal=*/false);
      EXPECT_EQ(report.found[static_cast<size_t>(Kind::kFile)], 1) << path << " byte " << at;
      EXPECT_TRUE(absl::EndsWith(path, report.findings[0].file));
      FlipByte(path, at);
    }
  }
  // The documents that could not be read can be read again.
  const StoreCheckReport report = Check(/*heal=*/true);
  EXPECT_EQ(report.healed_count(), report.found[static_cast<size_t>(Kind::kText)]);
  EXPECT_EQ(Check(/*heal=*/false).found_count(), 0);
}

TEST_F(StoreFilesTest, DamagedFilesOfDerivedRecordsAreMadeAnew) {
  Fill();
  for (const Table table : {Table::kSegments, Table::kPages}) {
    for (const int64_t divisor : {2, 50}) {
      const std::string path = PathOf(StoreFile::Kind::kTable, table);
      ASSERT_NE(path, "");
      FlipByte(path, static_cast<int64_t>(std::filesystem::file_size(path)) / divisor);
      StoreCheckReport report = Check(/*heal=*/true);
      EXPECT_EQ(report.found_count(), report.healed_count()) << path;
      EXPECT_GE(report.found[static_cast<size_t>(Kind::kFile)], 1);
      report = Check(/*heal=*/true);
      EXPECT_EQ(report.found_count(), 0) << report.findings[0].what;
      temp_.Reopen();
      ExpectAllWhole();
      EXPECT_EQ(Check(/*heal=*/false).found_count(), 0);
    }
  }
}

TEST_F(StoreFilesTest, DamagedBlobFileGoesOnceItsPagesAreMadeAnew) {
  Fill();
  const std::string path = PathOf(StoreFile::Kind::kBlobs, Table::kPages);
  FlipByte(path, static_cast<int64_t>(std::filesystem::file_size(path)) / 2);
  temp_.Reopen();
  StoreCheckReport report = Check(/*heal=*/true);
  EXPECT_EQ(report.found[static_cast<size_t>(Kind::kFile)], 1);
  EXPECT_EQ(report.found[static_cast<size_t>(Kind::kPage)], 1);
  EXPECT_EQ(report.healed[static_cast<size_t>(Kind::kPage)], 1);
  // The rest of the file's pages are good and stay where they are, until they are replaced.
  report = Check(/*heal=*/true);
  EXPECT_EQ(report.found[static_cast<size_t>(Kind::kPage)], 0);
  ExpectAllWhole();
}

TEST_F(StoreFilesTest, DamagedFileOfTextStaysUntilItsTextIsGivenUp) {
  Fill();
  const std::string path = PathOf(StoreFile::Kind::kTable, Table::kText);
  FlipByte(path, static_cast<int64_t>(std::filesystem::file_size(path)) / 2);
  temp_.Reopen();
  int damaged_before = 0;
  for (const bool give_up_text : {false, true}) {
    SCOPED_TRACE(give_up_text);
    const StoreCheckReport report = Check(/*heal=*/true, give_up_text);
    EXPECT_EQ(report.found[static_cast<size_t>(Kind::kFile)], 1);
    EXPECT_EQ(report.healed[static_cast<size_t>(Kind::kFile)], give_up_text ? 1 : 0);
    EXPECT_GE(report.found[static_cast<size_t>(Kind::kText)], 1);
    EXPECT_EQ(std::filesystem::exists(path), !give_up_text);
    int damaged = 0;
    for (const DocumentId document : documents_) {
      const auto text = temp_.store().ReadText(document, 0, kTextBytes);
      damaged += !text.ok();
      EXPECT_EQ(text.value_or(Text(document)), Text(document));
    }
    // A stand-in is found for each record that is lost, and a document has two.
    EXPECT_GE(report.found[static_cast<size_t>(Kind::kText)], damaged);
    EXPECT_LE(report.found[static_cast<size_t>(Kind::kText)], 2 * damaged);
    // Nobody loses more by it.
    if (give_up_text) {
      EXPECT_EQ(damaged, damaged_before);
    }
    damaged_before = damaged;
  }
  EXPECT_EQ(Check(/*heal=*/false).found[static_cast<size_t>(Kind::kFile)], 0);
}

TEST_F(StoreFilesTest, ManifestThatChangedWhileClosedIsRefused) {
  Fill();
  temp_.Reopen();
  temp_.Close();
  std::string manifest;
  for (const auto& entry : std::filesystem::directory_iterator(temp_.data_dir() + "/rocksdb")) {
    const std::string path = entry.path();
    if (absl::StrContains(path, "MANIFEST") && path > manifest) manifest = path;
  }
  const auto size = static_cast<int64_t>(std::filesystem::file_size(manifest));
  for (const int64_t at : {int64_t{4}, size / 2, size - 1}) {
    FlipByte(manifest, at);
    const auto store = OpenRocksDbChunkStore(temp_.rocksdb_options(), temp_.metrics());
    EXPECT_TRUE(absl::IsDataLoss(store.status())) << at << ": " << store.status();
    FlipByte(manifest, at);
  }
  temp_.Open();
  ExpectAllWhole();
}

TEST_F(StoreFilesTest, LogThatLostItsEndWhileClosedIsCounted) {
  Fill();
  temp_.Close();
  std::string log;
  for (const auto& entry : std::filesystem::directory_iterator(temp_.data_dir() + "/rocksdb")) {
    if (absl::EndsWith(entry.path().string(), ".log")) log = entry.path();
  }
  std::filesystem::resize_file(log, std::filesystem::file_size(log) - 10);
  temp_.Open();
  EXPECT_THAT(temp_.metrics().Expose(), HasSubstr("\nmneme_store_close_mismatches_total 1\n"));
  temp_.Reopen();
  EXPECT_THAT(temp_.metrics().Expose(), HasSubstr("\nmneme_store_close_mismatches_total 1\n"));
}

TEST_F(StoreFilesTest, DamagedCloseRecordIsCountedAndStopsNothing) {
  Fill();
  temp_.Close();
  FlipByte(temp_.data_dir() + "/rocksdb/CLOSED", 20);
  temp_.Open();
  EXPECT_THAT(temp_.metrics().Expose(), HasSubstr("\nmneme_store_close_mismatches_total 1\n"));
  ExpectAllWhole();
  EXPECT_FALSE(std::filesystem::exists(temp_.data_dir() + "/rocksdb/CLOSED"))
      << "after a crash: none";
}

TEST_F(StoreFilesTest, CloseRecordNeedsAFolderItCanWrite) {
  EXPECT_TRUE(absl::IsNotFound(WriteCloseRecord(temp_.data_dir() + "/nowhere")));
  EXPECT_TRUE(TakeCloseRecord(temp_.data_dir() + "/nowhere").value().empty());
}

}  // namespace
}  // namespace mneme
