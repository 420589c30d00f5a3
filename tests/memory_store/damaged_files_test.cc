// RocksDB's own files damaged on disk: what else is stored must serve, and take new text.

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "memory_store/store_checker.h"
#include "tests/memory_store/derived.h"
#include "tests/memory_store/flip_byte.h"
#include "tests/memory_store/temp_store.h"

namespace mneme {
namespace {

std::vector<std::string> Files(const std::string& directory, const std::string& ending) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (absl::EndsWith(entry.path().string(), ending)) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

class DamagedFilesTest : public ::testing::Test {
 protected:
  static constexpr int kDocuments = 40;
  static constexpr int64_t kBytes = 3000;

  std::string Text(DocumentId document, int64_t bytes = kBytes) {
    std::string text;
    for (int64_t i = 0; i < bytes; ++i)
      text.push_back(static_cast<char>('a' + MadeUpByte(document, i, 0, 3, 0) % 26));
    return text;
  }

  void Fill() {
    memory_ = temp_.store().CreateMemory("default", "m", "").value().uid;
    for (int i = 0; i < kDocuments; ++i) {
      const DocumentId document =
          temp_.store().CreateDocument(memory_, absl::StrCat("d", i)).value().uid;
      documents_.push_back(document);
      const std::string text = Text(document);
      const TextAppend append{document, 0, text, false};
      ASSERT_TRUE(temp_.store().AppendText({&append, 1}).ok());
      std::vector<SegmentDerived> segments;
      segments.push_back(MadeUpSegment(temp_.options(), document, 0, 0, 4, 0, kBytes));
      ASSERT_TRUE(temp_.store().PutSegments(segments).ok());
    }
  }

  std::string rocksdb() const { return temp_.data_dir() + "/rocksdb"; }

  // Opens both stores, or says why not.
  absl::Status TryOpen() {
    auto chunk_store = OpenRocksDbChunkStore(temp_.rocksdb_options(), temp_.metrics());
    if (!chunk_store.ok()) return chunk_store.status();
    return MemoryStore::Open(temp_.options(), **chunk_store, temp_.metrics(), temp_.clock())
        .status();
  }

  // The one that CURRENT names.
  std::string ManifestPath() const {
    std::ifstream current(rocksdb() + "/CURRENT");
    std::string name;
    std::getline(current, name);
    return absl::StrCat(rocksdb(), "/", name);
  }
  // All files of RocksDB, by path.
  std::map<std::string, std::string> Contents() const {
    std::map<std::string, std::string> contents;
    for (const std::string& path : Files(rocksdb(), "")) {
      std::ifstream file(path, std::ios::binary);
      contents[path] = std::string(std::istreambuf_iterator<char>(file), {});
    }
    return contents;
  }
  // Does not open, says why, and changes nothing.
  void ExpectRefused(absl::string_view why) {
    const std::map<std::string, std::string> before = Contents();
    const absl::Status status = TryOpen();
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), why)) << status;
    EXPECT_TRUE(Contents() == before);
  }

  // Reads, and appends to, every document. Returns how many do not serve.
  int CountDamaged() {
    int damaged = 0;
    for (const DocumentId document : documents_) {
      const auto text = temp_.store().ReadText(document, 0, kBytes);
      if (text.ok()) {
        EXPECT_EQ(*text, Text(document));
        const std::string more = "more";
        const TextAppend append{document, temp_.store().GetDocument(document)->durable_bytes, more,
                                false};
        const absl::Status status = temp_.store().AppendText({&append, 1});
        EXPECT_TRUE(status.ok()) << status;
      } else {
        EXPECT_TRUE(absl::IsDataLoss(text.status()) || absl::IsOutOfRange(text.status()))
            << text.status();
        EXPECT_TRUE(temp_.store().GetDocument(document)->damaged);
        ++damaged;
      }
    }
    return damaged;
  }

  TempStore temp_;
  MemoryId memory_{};
  std::vector<DocumentId> documents_;
};

TEST_F(DamagedFilesTest, FlippedByteInATableFileStopsWhatLiesThereAlone) {
  Fill();
  temp_.Reopen();  // the log becomes tables
  temp_.Close();
  const std::string backup = temp_.data_dir() + "_backup";
  std::filesystem::copy(rocksdb(), backup, std::filesystem::copy_options::recursive);
  const std::vector<std::string> files = Files(rocksdb(), ".sst");
  ASSERT_EQ(files.size(), 4u) << "one a table, in the tables' order";
  for (size_t file = 0; file < files.size(); ++file) {
    const int64_t size = static_cast<int64_t>(std::filesystem::file_size(files[file]));
    // A data block, the index, the properties, the footer.
    for (const int64_t at : {size / 10, size - 1000, size - 200, size - 10}) {
      SCOPED_TRACE(absl::StrCat(files[file], " of ", size, " bytes, byte ", at));
      FlipByte(files[file], at);
      if (file == 0) {
        // Without the catalog nobody knows what is there.
        EXPECT_TRUE(absl::IsDataLoss(TryOpen())) << TryOpen();
      } else {
        temp_.Open();
        const int damaged = CountDamaged();
        EXPECT_EQ(damaged > 0, file == 1) << damaged;
        EXPECT_LE(damaged, at == size / 10 ? 7 : kDocuments) << "documents of one block";
        temp_.Reopen();
        temp_.Close();
      }
      std::filesystem::remove_all(rocksdb());
      std::filesystem::copy(backup, rocksdb(), std::filesystem::copy_options::recursive);
    }
  }
  std::filesystem::remove_all(backup);
}

TEST_F(DamagedFilesTest, FlippedByteInTheLogStopsWhatLiesThereAlone) {
  Fill();
  temp_.Close();
  const std::vector<std::string> logs = Files(rocksdb(), ".log");
  ASSERT_FALSE(logs.empty());
  const int64_t size = static_cast<int64_t>(std::filesystem::file_size(logs.back()));
  ASSERT_GT(size, kDocuments * kBytes);
  FlipByte(logs.back(), size / 3);
  temp_.Open();
  int lost = 0;
  for (const DocumentId document : documents_) {
    const auto info = temp_.store().GetDocument(document);
    lost += !info.ok() || info->damaged || info->durable_bytes != kBytes;
  }
  EXPECT_GT(lost, 0);
  EXPECT_LE(lost, 12) << "those of one block of the log, 32 KiB";
  EXPECT_EQ(temp_.store().ReadText(documents_.back(), 0, kBytes).value(), Text(documents_.back()));
  EXPECT_GT(static_cast<uint64_t>(temp_.store().CreateDocument(memory_, "new")->uid),
            static_cast<uint64_t>(documents_.back()));
}

TEST_F(DamagedFilesTest, LogThatWasCutOffLosesNothingBeforeTheCut) {
  Fill();
  temp_.Close();
  const std::string log = Files(rocksdb(), ".log").back();
  std::filesystem::resize_file(log, std::filesystem::file_size(log) - 100);
  temp_.Open();
  // The last write was the last document's segment.
  for (const DocumentId document : documents_) {
    EXPECT_EQ(temp_.store().ReadText(document, 0, kBytes).value(), Text(document));
    EXPECT_EQ(temp_.store().GetDocument(document)->visible_bytes,
              document == documents_.back() ? 0 : kBytes);
  }
}

// RocksDB would make a new database, or go on with an old one, and delete the rest.
TEST_F(DamagedFilesTest, MissingFilesAreRefusedAndNothingIsDeleted) {
  Fill();
  temp_.Reopen();
  temp_.Close();
  std::filesystem::remove(rocksdb() + "/CLOSED");  // as after a crash
  std::vector<std::string> paths = Files(rocksdb(), ".sst");
  ASSERT_EQ(paths.size(), 4u);
  paths.push_back(rocksdb() + "/CURRENT");
  for (const std::string& path : paths) {
    SCOPED_TRACE(path);
    std::filesystem::rename(path, temp_.data_dir() + "_away");
    ExpectRefused(absl::StrCat(path.substr(path.rfind('/') + 1), " is missing"));
    std::filesystem::rename(temp_.data_dir() + "_away", path);
  }
  temp_.Open();
  EXPECT_EQ(CountDamaged(), 0);
}

TEST_F(DamagedFilesTest, ManifestThatLostItsEndIsRefusedAndNothingIsDeleted) {
  Fill();
  temp_.Reopen();
  const std::string manifest = ManifestPath();
  const auto manifest_bytes = std::filesystem::file_size(manifest);
  ASSERT_TRUE(temp_.store().DeleteDocument(documents_.back()).ok());
  documents_.pop_back();
  std::atomic<bool> cancel{false};
  EXPECT_EQ(temp_.store().Purge(cancel)->size(), 1u);  // replaces files
  temp_.Close();
  std::filesystem::remove(rocksdb() + "/CLOSED");
  ASSERT_EQ(ManifestPath(), manifest);
  const std::string whole = Contents()[manifest];
  std::filesystem::resize_file(manifest, manifest_bytes);
  ExpectRefused(".sst is missing");
  std::ofstream(manifest, std::ios::binary) << whole;
  temp_.Open();
  EXPECT_EQ(CountDamaged(), 0);
}

// Pages of 5 KiB lie in blob files.
class DamagedBlobFileTest : public ::testing::Test {
 protected:
  static MemoryStoreOptions Options() {
    MemoryStoreOptions options;
    options.page_bytes = 5120;
    return options;
  }
  SegmentDerived Segment(DocumentId document) {
    return MadeUpSegment(temp_.options(), document, 0, 0, 4, 0, 100);
  }
  StoreCheckReport Check(bool heal) {
    StoreCheckOptions options;
    options.heal = heal;
    options.derive = [this](DocumentId document, int64_t, bool) {
      return temp_.store().RestoreSegment(Segment(document));
    };
    return StoreChecker(temp_.store(), options).Run().value();
  }

  TempStore temp_{Options()};
};

TEST_F(DamagedBlobFileTest, IsHealedWhereverTheByteLies) {
  const MemoryId memory = temp_.store().CreateMemory("default", "m", "").value().uid;
  std::vector<DocumentId> documents;
  for (int i = 0; i < 3; ++i) {
    const DocumentId document =
        temp_.store().CreateDocument(memory, absl::StrCat("d", i)).value().uid;
    documents.push_back(document);
    const std::string text(100, 'x');
    const TextAppend append{document, 0, text, false};
    ASSERT_TRUE(temp_.store().AppendText({&append, 1}).ok());
    const std::vector<SegmentDerived> segments = {Segment(document)};
    ASSERT_TRUE(temp_.store().PutSegments(segments).ok());
  }
  // Its header, a record's header, key and value, the last value, the footer.
  for (const int64_t at : {2, 31, 40, 70, 3000, -2000, -3}) {
    ASSERT_TRUE(temp_.chunk_store().Files(ChunkStore::FilesFor::kBackup).ok());
    temp_.Close();
    const std::vector<std::string> files = Files(temp_.data_dir() + "/rocksdb", ".blob");
    ASSERT_FALSE(files.empty());
    const auto size = static_cast<int64_t>(std::filesystem::file_size(files[0]));
    SCOPED_TRACE(absl::StrCat(files[0], " of ", size, " bytes, byte ", at));
    FlipByte(files[0], at >= 0 ? at : size + at);
    temp_.Open();
    EXPECT_GT(Check(/*heal=*/false).found_count(), 0);
    const StoreCheckReport healed = Check(/*heal=*/true);
    EXPECT_EQ(healed.healed_count(), healed.found_count());
    temp_.Reopen();
    EXPECT_EQ(Check(/*heal=*/false).found_count(), 0);
    for (const DocumentId document : documents) {
      EXPECT_TRUE(temp_.store().Pin({{document, 0}, {document, 3}})->missing().empty());
    }
  }
}

}  // namespace
}  // namespace mneme
