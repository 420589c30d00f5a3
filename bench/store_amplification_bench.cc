// What the store writes, reads and holds for a byte of its users', beside a naive layout: all
// records in one table with plain values (no blob files, no compression of text).
//
// Documents grow as a log does: text in pieces, the open segment put again after each, whole ones
// once. Then a third of the documents is deleted, then random pages and all text are read with a
// small block cache. Bytes written and read are those of the process's system calls (wchar, rchar
// of /proc/self/io): what the device gets, but for the page cache. User bytes are text, landmarks
// and pages, each counted once, as they stand in the end or stood when they were deleted.
//
// usage: store_amplification_bench [documents (default 24)] [segments of each (default 8)]

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/measure.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "memory_store/chunk_store.h"
#include "memory_store/memory_store.h"
#include "memory_store/rocksdb/rocksdb_chunk_store.h"
#include "mneme_version.h"

namespace mneme {
namespace {

namespace fs = std::filesystem;

// As the shipped bundle has them: 64 tokens a chunk, 64 chunks a segment, about four bytes a token.
constexpr int64_t kChunks = 64;
constexpr int64_t kLandmarkBytes = 512;
constexpr int64_t kPageBytes = 16384;
constexpr int64_t kSegmentTextBytes = 16384;
// An open segment is put so often before it is whole.
constexpr int kGrowths = 4;
constexpr int kPageReads = 2000;

// All tables in one: the catalog's, which has neither blob files nor compression.
class NaiveStore : public ChunkStore {
 public:
  explicit NaiveStore(ChunkStore& store) : store_(store) {}

  absl::Status Write(const WriteBatch& batch, Durability durability) override {
    WriteBatch one = batch;
    for (WriteBatch::Op& op : one.ops) {
      op.key = Key(op.table, op.key);
      if (op.kind == WriteBatch::Kind::kDeleteRange) op.value = Key(op.table, op.value);
      op.table = Table::kCatalog;
    }
    return store_.Write(one, durability);
  }
  absl::StatusOr<std::string> Get(Table table, absl::string_view key) override {
    return store_.Get(Table::kCatalog, Key(table, key));
  }
  std::vector<absl::StatusOr<std::string>> MultiGet(Table table,
                                                    absl::Span<const std::string> keys) override {
    std::vector<std::string> all;
    for (const std::string& key : keys) all.push_back(Key(table, key));
    return store_.MultiGet(Table::kCatalog, all);
  }
  absl::Status Scan(
      Table table, absl::string_view begin, absl::string_view end,
      const std::function<bool(absl::string_view, absl::string_view)>& visit) override {
    const std::string last = end.empty()
                                 ? std::string(1, static_cast<char>(static_cast<int>(table) + 1))
                                 : Key(table, end);
    return store_.Scan(Table::kCatalog, Key(table, begin), last,
                       [&](absl::string_view key, absl::string_view value) {
                         return visit(key.substr(1), value);
                       });
  }
  absl::Status Flush() override { return store_.Flush(); }
  absl::Status Purge(absl::Span<const KeyRange> ranges, std::atomic<bool>& cancel) override {
    // Everything lies in one table, under keys of its own.
    static_cast<void>(ranges);
    static_cast<void>(cancel);
    return absl::UnimplementedError("the naive layout does not purge");
  }
  absl::StatusOr<StoreFiles> Files(FilesFor purpose) override { return store_.Files(purpose); }
  int64_t used_bytes() override { return store_.used_bytes(); }
  int64_t free_bytes() override { return store_.free_bytes(); }

 private:
  static std::string Key(Table table, absl::string_view key) {
    return absl::StrCat(std::string(1, static_cast<char>(table)), key);
  }

  ChunkStore& store_;
};

struct Io {
  int64_t read = 0;
  int64_t written = 0;
};

Io ProcessIo() {
  std::ifstream file("/proc/self/io");
  std::string name;
  int64_t value = 0;
  Io io;
  while (file >> name >> value) {
    if (name == "rchar:") io.read = value;
    if (name == "wchar:") io.written = value;
  }
  return io;
}

std::string EnglishLike(std::mt19937_64& random, int64_t bytes) {
  static constexpr const char* kWords[] = {
      "the", "harbour", "of",  "master", "keeps", "brass",   "buttons", "in",
      "a",   "tin",     "and", "wind",   "came",  "from",    "west",    "nobody",
      "saw", "land",    "day", "sail",   "it",    "evening", "was",     "told"};
  std::string text;
  while (static_cast<int64_t>(text.size()) < bytes) {
    absl::StrAppend(&text, kWords[random() % 24], random() % 12 == 0 ? ". " : " ");
  }
  text.resize(static_cast<size_t>(bytes));
  return text;
}

std::vector<uint8_t> Noise(std::mt19937_64& random, int64_t bytes) {
  std::vector<uint8_t> out(static_cast<size_t>(bytes));
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<uint8_t>(random() >> (i % 8) * 8);
  return out;
}

void MustBeOk(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::abort();
}

struct Result {
  double write_amplification = 0;  // bytes written over user bytes
  double space_amplification = 0;  // bytes on disk over user bytes that are left
  double page_read_bytes = 0;      // read for one page, cold
  double text_read_amplification = 0;
  double seconds = 0;
};

Result Measure(bool naive, int documents, int segments) {
  std::string folder = fs::temp_directory_path() / "mneme_amplification_XXXXXX";
  MNEME_CHECK(mkdtemp(folder.data()) != nullptr);
  Metrics metrics;
  MemoryStoreOptions options;
  options.page_bytes = kPageBytes;
  options.landmark_bytes = kLandmarkBytes;
  options.derivation_fingerprint = 1;
  options.host_page_bytes_max = kPageBytes * kChunks;  // nearly every page comes from the disk
  RocksDbOptions disk;
  disk.data_dir = folder + "/data";
  disk.block_cache_bytes = 1 << 20;
  std::unique_ptr<ChunkStore> rocksdb, naive_store;
  std::unique_ptr<MemoryStore> store;
  const auto open = [&] {
    auto opened = OpenRocksDbChunkStore(disk, metrics);
    MustBeOk(opened.status());
    rocksdb = *std::move(opened);
    naive_store = std::make_unique<NaiveStore>(*rocksdb);
    auto memory_store =
        MemoryStore::Open(options, naive ? *naive_store : *rocksdb, metrics, RealClock());
    MustBeOk(memory_store.status());
    store = *std::move(memory_store);
  };
  const auto close = [&] {
    store.reset();
    naive_store.reset();
    rocksdb.reset();
  };

  Result result;
  std::mt19937_64 random(1);
  const absl::Time begin = absl::Now();
  const Io before = ProcessIo();
  open();
  const MemoryId memory = store->CreateMemory("default", "m", "").value().uid;
  std::vector<DocumentId> ids;
  for (int d = 0; d < documents; ++d) {
    ids.push_back(store->CreateDocument(memory, absl::StrCat("d", d)).value().uid);
  }
  for (int s = 0; s < segments; ++s) {
    for (const DocumentId document : ids) {
      for (int growth = 1; growth <= kGrowths; ++growth) {
        const int64_t piece = kSegmentTextBytes / kGrowths;
        const int64_t offset = s * kSegmentTextBytes + (growth - 1) * piece;
        const std::string text = EnglishLike(random, piece);
        const TextAppend append{document, offset, text, false};
        MustBeOk(store->AppendText({&append, 1}));
        SegmentDerived segment;
        segment.document = document;
        segment.segment_index = s;
        segment.derivation_fingerprint = 1;
        segment.byte_begin = s * kSegmentTextBytes;
        segment.byte_end = offset + piece;
        const int64_t chunks = kChunks * growth / kGrowths;
        segment.token_count = static_cast<int32_t>(chunks * 64);
        for (int64_t c = 0; c < chunks; ++c) {
          segment.chunk_byte_begin.push_back(segment.byte_begin + c * kSegmentTextBytes / kChunks);
        }
        segment.landmarks = Noise(random, chunks * kLandmarkBytes);
        segment.pages = Noise(random, chunks * kPageBytes);
        std::vector<SegmentDerived> put;
        put.push_back(std::move(segment));
        MustBeOk(store->PutSegments(std::move(put)));
      }
    }
  }
  const double segment_bytes =
      static_cast<double>(kSegmentTextBytes + kChunks * (kLandmarkBytes + kPageBytes));
  const double user_bytes = segment_bytes * documents * segments;
  for (int d = 0; d < documents; d += 3) MustBeOk(store->DeleteDocument(ids[d]).status());
  const int kept = documents - (documents + 2) / 3;
  // What is in the log alone goes to files; compactions of deleted ranges end with the close.
  MustBeOk(rocksdb->Files(ChunkStore::FilesFor::kBackup).status());
  absl::SleepFor(absl::Seconds(3));
  close();
  result.write_amplification =
      static_cast<double>(ProcessIo().written - before.written) / user_bytes;
  open();
  result.space_amplification =
      static_cast<double>(rocksdb->used_bytes()) / (segment_bytes * kept * segments);

  Io io = ProcessIo();
  for (int i = 0; i < kPageReads; ++i) {
    int d = 0;
    do {
      d = static_cast<int>(random() % static_cast<uint64_t>(documents));
    } while (d % 3 == 0);
    const ChunkAddress chunk{
        ids[d], static_cast<int64_t>(random() % static_cast<uint64_t>(segments * kChunks))};
    MustBeOk(store->Pin({&chunk, 1}).status());
  }
  result.page_read_bytes = static_cast<double>(ProcessIo().read - io.read) / kPageReads;
  io = ProcessIo();
  for (int d = 0; d < documents; ++d) {
    if (d % 3 != 0) MustBeOk(store->ReadText(ids[d], 0, segments * kSegmentTextBytes).status());
  }
  result.text_read_amplification = static_cast<double>(ProcessIo().read - io.read) /
                                   static_cast<double>(kept * segments * kSegmentTextBytes);
  close();
  result.seconds = absl::ToDoubleSeconds(absl::Now() - begin);
  std::error_code ignored;
  fs::remove_all(folder, ignored);
  return result;
}

int Main(int argc, char** argv) {
  const int documents = argc > 1 ? std::atoi(argv[1]) : 24;
  const int segments = argc > 2 ? std::atoi(argv[2]) : 8;
  if (documents < 3 || segments < 1) {
    std::fprintf(stderr, "usage: %s [documents, at least 3] [segments of each, at least 1]\n",
                 argv[0]);
    return 2;
  }
  std::printf(
      "{\"commit\": \"%s\", \"command\": \"store_amplification_bench %d %d\", "
      "\"machine\": \"%s\",\n",
      kMnemeCommit, documents, segments, bench::Machine().c_str());
  for (const bool naive : {false, true}) {
    const Result result = Measure(naive, documents, segments);
    std::printf(
        " \"%s\": {\"write_amplification\": %.2f, \"space_amplification\": %.2f, "
        "\"bytes_read_for_a_page\": %.0f, \"page_bytes\": %d, "
        "\"text_read_amplification\": %.2f, \"seconds\": %.1f}%s\n",
        naive ? "naive" : "mneme", result.write_amplification, result.space_amplification,
        result.page_read_bytes, static_cast<int>(kPageBytes), result.text_read_amplification,
        result.seconds, naive ? "}" : ",");
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace mneme

int main(int argc, char** argv) { return mneme::Main(argc, argv); }
