// Many threads at once: writers of their own documents, readers of everything, and deletions. What
// is read must be right at every moment; what is left in the end must be complete.

#include <atomic>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/memory_store/harness.h"
#include "tests/memory_store/temp_store.h"

namespace mneme {
namespace {

constexpr int kSegments = 6;
constexpr int kChunks = 3;

// Segment `index` as it is when half of its text is there, or all.
SegmentDerived SegmentOf(const MemoryStoreOptions& options, DocumentId document, int index,
                         bool half) {
  return MadeUpSegment(options, document, index, int64_t{index} * kChunks, half ? 1 : kChunks,
                       index * 100, index * 100 + (half ? 50 : 100));
}

void WriteDocument(MemoryStore& store, const MemoryStoreOptions& options, MemoryId memory,
                   const std::string& id) {
  const auto made = store.CreateDocument(memory, id);
  ASSERT_TRUE(made.ok()) << made.status();
  const std::string half(50, 'x');
  for (int s = 0; s < kSegments; ++s) {
    for (const bool first_half : {true, false}) {
      const TextAppend append{made->uid, s * 100 + (first_half ? 0 : 50), half,
                              !first_half && s + 1 == kSegments};
      absl::Status status = store.AppendText({&append, 1});
      if (absl::IsNotFound(status)) return;  // deleted meanwhile
      ASSERT_TRUE(status.ok()) << status;
      std::vector<SegmentDerived> segments;
      segments.push_back(SegmentOf(options, made->uid, s, first_half));
      status = store.PutSegments(std::move(segments));
      ASSERT_TRUE(status.ok()) << status;
    }
  }
}

// A view and some of its pages.
void ReadOnce(MemoryStore& store, const MemoryStoreOptions& options,
              absl::Span<const MemoryId> memories, std::mt19937& random) {
  const LandmarkView view = store.View(memories).value();
  int64_t index = 0;
  ChunkAddress before;
  for (const LandmarkSlab& slab : view.slabs()) {
    for (int64_t row = 0; row < slab.row_count; ++row, ++index) {
      const auto [document, chunk] = view.Locate(index).address;
      ASSERT_TRUE(before.document < document ||
                  (before.document == document && before.chunk_index + 1 == chunk));
      before = {document, chunk};
      const auto* stored = static_cast<const uint8_t*>(slab.rows) + row * options.landmark_bytes;
      const int64_t segment = chunk / kChunks;
      const bool whole =
          std::memcmp(
              stored,
              MadeUpLandmark(document, chunk, segment * 100 + 100, options.landmark_bytes).data(),
              options.landmark_bytes) == 0;
      const bool half =
          std::memcmp(
              stored,
              MadeUpLandmark(document, chunk, segment * 100 + 50, options.landmark_bytes).data(),
              options.landmark_bytes) == 0;
      ASSERT_TRUE(whole || half);
    }
  }
  ASSERT_EQ(index, view.chunk_count());
  if (index == 0) return;
  std::vector<ChunkAddress> wanted;
  for (int i = 0; i < 4; ++i)
    wanted.push_back(view.Locate(static_cast<int64_t>(random() % index)).address);
  const auto pinned = store.Pin(wanted);
  if (absl::IsNotFound(pinned.status())) return;  // a document was deleted meanwhile
  ASSERT_TRUE(pinned.ok()) << pinned.status();
  for (size_t i = 0; i < wanted.size(); ++i) {
    const uint8_t* page = pinned->pages()[i];
    if (page == nullptr) {
      ASSERT_FALSE(store.GetDocument(wanted[i].document).ok())
          << "missing, and not because of a deletion";
      continue;
    }
    const auto [document, chunk] = wanted[i];
    const int64_t end = chunk / kChunks * 100 + 100;
    ASSERT_TRUE(std::memcmp(page, MadeUpPage(document, chunk, end, options.page_bytes).data(),
                            options.page_bytes) == 0 ||
                std::memcmp(page, MadeUpPage(document, chunk, end - 50, options.page_bytes).data(),
                            options.page_bytes) == 0);
  }
}

void RunThreads(MemoryStore& store, const MemoryStoreOptions& options, int documents_each) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::vector<MemoryId> memories;
  for (const char* id : {"a", "b"})
    memories.push_back(store.CreateMemory("default", id, "").value().uid);
  std::atomic<int> writers_left{3};
  std::vector<std::thread> threads;
  for (int w = 0; w < 3; ++w) {
    threads.emplace_back([&, w] {
      for (int d = 0; d < documents_each; ++d) {
        WriteDocument(store, options, memories[d % 2], absl::StrCat("w", w, "-", d));
        if (::testing::Test::HasFatalFailure()) break;
      }
      --writers_left;
    });
  }
  for (uint32_t r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      std::mt19937 random(seed + r);
      do {
        ReadOnce(store, options, memories, random);
        store.totals();
        store.AllDocuments();
      } while (writers_left > 0 && !::testing::Test::HasFatalFailure());
    });
  }
  threads.emplace_back([&] {
    std::mt19937 random(seed + 99);
    int deleted = 0;
    do {
      const std::vector<DocumentInfo> documents = store.AllDocuments();
      if (static_cast<int>(documents.size()) > deleted + 2) {
        EXPECT_TRUE(store.DeleteDocument(documents[random() % documents.size()].uid).ok());
        ++deleted;
      }
      std::this_thread::yield();
    } while (writers_left > 0);
  });
  for (std::thread& thread : threads) thread.join();
  for (const DocumentInfo& info : store.AllDocuments()) {
    EXPECT_EQ(info.visible_bytes, kSegments * 100);
    EXPECT_EQ(info.chunk_count, kSegments * kChunks);
    EXPECT_TRUE(info.sealed);
    EXPECT_EQ(store.ReadText(info.uid, 0, kSegments * 100).value(),
              std::string(kSegments * 100, 'x'));
  }
}

class MemoryStoreConcurrencyTest : public MemoryStoreHarness {};

TEST_F(MemoryStoreConcurrencyTest, ReadersSeeWhatIsRightWhileOthersWriteAndDelete) {
  options().host_page_bytes_max = 30 * options().page_bytes;
  Reopen();
  RunThreads(store(), options(), 40);
}

TEST(MemoryStoreOnRocksDbTest, ReadersSeeWhatIsRightWhileOthersWriteAndDelete) {
  MemoryStoreOptions options;
  options.host_page_bytes_max = 30 * 64;
  TempStore temp(options);
  RunThreads(temp.store(), temp.options(), 10);
  const int64_t documents = temp.store().totals().documents;
  temp.Reopen();
  EXPECT_EQ(temp.store().totals().documents, documents);
  EXPECT_EQ(temp.store().totals().visible_bytes, documents * kSegments * 100);
}

}  // namespace
}  // namespace mneme
