// What forks and snapshots cost: to make one, and to see through it, in a small memory and in one
// that is ten times as large. Beside them, in the same run, what seeing the memory itself takes.
//
// usage: fork_bench [documents of the small memory (default 2000)]
//
// A document is one whole segment of 8 chunks with landmarks of 512 bytes, without pages. "first
// view": of a fork that nobody has asked yet. "next view": asked again. "after a write": asked
// after a document was written into the fork. Medians of 21; the stores lie in the temporary
// folder, whose disk decides what a synced record costs.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
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

constexpr int64_t kChunks = 8;
constexpr int64_t kLandmarkBytes = 512;
constexpr int kRepetitions = 21;
constexpr int kGrowth = 10;

void MustBeOk(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::abort();
}

struct Result {
  bench::Spread fork, snapshot, memory_view, first_view, next_view, view_after_write;  // seconds
};

class Bench {
 public:
  Bench() {
    MNEME_CHECK(mkdtemp(folder_.data()) != nullptr);
    RocksDbOptions disk;
    disk.data_dir = folder_ + "/data";
    auto rocksdb = OpenRocksDbChunkStore(disk, metrics_);
    MustBeOk(rocksdb.status());
    rocksdb_ = *std::move(rocksdb);
    MemoryStoreOptions options;
    options.page_bytes = 1024;
    options.landmark_bytes = kLandmarkBytes;
    options.derivation_fingerprint = 1;
    options.host_page_bytes_max = options.page_bytes * kChunks;
    auto store = MemoryStore::Open(options, *rocksdb_, metrics_, RealClock());
    MustBeOk(store.status());
    store_ = *std::move(store);
    memory_ = store_->CreateMemory("default", "m", "", {.retention = Retention::kText}).value().uid;
  }
  ~Bench() {
    store_.reset();
    rocksdb_.reset();
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }

  void GrowTo(int documents) {
    while (documents_ < documents) AddDocument(memory_);
  }
  Result Measure() {
    std::vector<double> fork, snapshot, memory_view, first_view, next_view, view_after_write;
    for (int i = 0; i < kRepetitions; ++i) {
      memory_view.push_back(bench::Seconds([&] {
        MustBeOk(store_->View({&memory_, 1}).status());
      }));
      const std::string id = absl::StrCat("copy", ++copies_);
      snapshot.push_back(bench::Seconds(
          [&] { MustBeOk(store_->CreateSnapshot({.memory = memory_}, id).status()); }));
      ReadSource source;
      fork.push_back(bench::Seconds([&] {
        auto info = store_->ForkMemory({.memory = memory_}, id, "");
        MustBeOk(info.status());
        source.memory = info->uid;
      }));
      first_view.push_back(SecondsOfView(source));
      next_view.push_back(SecondsOfView(source));
      AddDocument(source.memory);
      view_after_write.push_back(SecondsOfView(source));
    }
    const auto of = [](std::vector<double>& values) { return bench::SpreadOf(std::move(values)); };
    return {of(fork),       of(snapshot),  of(memory_view),
            of(first_view), of(next_view), of(view_after_write)};
  }

 private:
  void AddDocument(MemoryId memory) {
    const std::string text = "as long as a segment is, and no longer";
    const auto document = store_->CreateDocument(memory, absl::StrCat("d", ++documents_));
    MustBeOk(document.status());
    const TextAppend append{document->uid, 0, text, /*seal=*/true};
    MustBeOk(store_->AppendText({&append, 1}));
    SegmentDerived segment;
    segment.document = document->uid;
    segment.derivation_fingerprint = 1;
    segment.byte_end = static_cast<int64_t>(text.size());
    segment.token_count = kChunks * 64;
    for (int64_t c = 0; c < kChunks; ++c) segment.chunk_byte_begin.push_back(c);
    segment.landmarks.resize(kChunks * kLandmarkBytes);
    std::vector<SegmentDerived> put;
    put.push_back(std::move(segment));
    MustBeOk(store_->PutSegments(std::move(put)));
  }
  double SecondsOfView(const ReadSource& source) {
    return bench::Seconds([&] {
      const absl::StatusOr<PastView> view = store_->ViewPast({&source, 1});
      MustBeOk(view.status());
      MNEME_CHECK(view->lagging.empty() && view->wanting.empty());
    });
  }

  std::string folder_ = fs::temp_directory_path() / "mneme_fork_XXXXXX";
  Metrics metrics_;
  std::unique_ptr<ChunkStore> rocksdb_;
  std::unique_ptr<MemoryStore> store_;
  MemoryId memory_{};
  int documents_ = 0;
  int copies_ = 0;
};

int Main(int argc, char** argv) {
  const int documents = argc > 1 ? std::atoi(argv[1]) : 2000;
  if (argc > 2 || documents < 1) {
    std::fprintf(stderr, "usage: %s [documents of the small memory, at least 1]\n", argv[0]);
    return 2;
  }
  std::printf("commit %s, %s, median of %d (least to most), microseconds\n", kMnemeCommit,
              bench::Machine().c_str(), kRepetitions);
  Bench bench;
  bench.GrowTo(documents);
  const Result small = bench.Measure();
  bench.GrowTo(kGrowth * documents);
  const Result large = bench.Measure();
  std::printf("%-24s %24d documents %23d documents   ratio\n", "", documents, kGrowth * documents);
  const auto row = [](const char* name, const bench::Spread& a, const bench::Spread& b) {
    std::printf("%-24s %10.1f (%8.1f to %8.1f) %10.1f (%8.1f to %8.1f) %7.2f\n", name,
                1e6 * a.median, 1e6 * a.min, 1e6 * a.max, 1e6 * b.median, 1e6 * b.min, 1e6 * b.max,
                b.median / a.median);
  };
  row("fork, synced", small.fork, large.fork);
  row("snapshot, synced", small.snapshot, large.snapshot);
  row("view of the memory", small.memory_view, large.memory_view);
  row("fork: first view", small.first_view, large.first_view);
  row("fork: next view", small.next_view, large.next_view);
  row("fork: after a write", small.view_after_write, large.view_after_write);
  return 0;
}

}  // namespace
}  // namespace mneme

int main(int argc, char** argv) { return mneme::Main(argc, argv); }
