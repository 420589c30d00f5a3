// For tests of MemoryStore: a store over a map that can fail (faults()) and crash (disk()), and
// short names for common steps.

#ifndef MNEME_TESTS_MEMORY_STORE_HARNESS_H_
#define MNEME_TESTS_MEMORY_STORE_HARNESS_H_

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "memory_store/memory_store.h"
#include "tests/memory_store/derived.h"
#include "tests/memory_store/faulty_chunk_store.h"
#include "tests/memory_store/map_chunk_store.h"

namespace mneme {

class MemoryStoreHarness : public ::testing::Test {
 protected:
  MemoryStoreHarness() {
    options_.page_bytes = 64;
    options_.landmark_bytes = 16;
    options_.derivation_fingerprint = 0x5eed;
    options_.host_page_bytes_max = 64 * 1024;
    Reopen();
  }

  MemoryStore& store() { return *store_; }
  MapChunkStore& disk() { return disk_; }
  FaultyChunkStore& faults() { return faults_; }
  Metrics& metrics() { return metrics_; }
  SimulatedClock& clock() { return clock_; }
  MemoryStoreOptions& options() { return options_; }  // for the next Reopen

  absl::Status TryOpen() {
    store_.reset();
    auto store = MemoryStore::Open(options_, faults_, metrics_, clock_);
    if (!store.ok()) return store.status();
    store_ = *std::move(store);
    return absl::OkStatus();
  }
  void Reopen() {
    const absl::Status status = TryOpen();
    ASSERT_TRUE(status.ok()) << status;
  }

  MemoryId NewMemory(const std::string& id) {
    return store().CreateMemory("default", id, "").value().uid;
  }
  DocumentId NewDocument(MemoryId memory, const std::string& id) {
    return store().CreateDocument(memory, id).value().uid;
  }
  absl::Status Append(DocumentId document, int64_t offset, absl::string_view text,
                      bool seal = false) {
    const TextAppend append{document, offset, text, seal};
    return store().AppendText({&append, 1});
  }
  // Segment `index` of a document whose segments have `chunks` chunks and 100 bytes each.
  SegmentDerived Segment(DocumentId document, int index, int chunks = 2, bool with_pages = true) {
    return MadeUpSegment(options_, document, index, int64_t{index} * chunks, chunks, index * 100,
                         index * 100 + 100, with_pages);
  }
  absl::Status PutSegment(SegmentDerived segment) {
    std::vector<SegmentDerived> segments;
    segments.push_back(std::move(segment));
    return store().PutSegments(std::move(segments));
  }
  // A document of `segments` such segments.
  DocumentId NewDerivedDocument(MemoryId memory, const std::string& id, int segments = 1,
                                int chunks = 2) {
    const DocumentId document = NewDocument(memory, id);
    EXPECT_TRUE(Append(document, 0, TextOf(document, segments * 100)).ok());
    std::vector<SegmentDerived> derived;
    for (int s = 0; s < segments; ++s) derived.push_back(Segment(document, s, chunks));
    EXPECT_TRUE(store().PutSegments(std::move(derived)).ok());
    return document;
  }
  static std::string TextOf(DocumentId document, int64_t bytes) {
    std::string text(static_cast<size_t>(bytes), '\0');
    for (int64_t i = 0; i < bytes; ++i)
      text[i] = static_cast<char>('a' + MadeUpByte(document, i, 0, 3, 0) % 26);
    return text;
  }
  LandmarkView View(MemoryId memory) { return store().View({&memory, 1}).value(); }
  // Copies the landmark at an index of a view.
  std::vector<uint8_t> LandmarkAt(const LandmarkView& view, int64_t index) {
    for (const LandmarkSlab& slab : view.slabs()) {
      if (index < slab.row_count) {
        const uint8_t* row =
            static_cast<const uint8_t*>(slab.rows) + index * options_.landmark_bytes;
        return {row, row + options_.landmark_bytes};
      }
      index -= slab.row_count;
    }
    return {};
  }
  PinnedPages Pin(std::vector<ChunkAddress> chunks) { return store().Pin(chunks).value(); }
  void ExpectPage(const uint8_t* page, DocumentId document, int64_t chunk, int64_t version) {
    ASSERT_NE(page, nullptr) << "chunk " << chunk;
    const auto expected = MadeUpPage(document, chunk, version, options_.page_bytes);
    EXPECT_EQ(std::memcmp(page, expected.data(), expected.size()), 0) << "chunk " << chunk;
  }
  // Value of a line of the metrics' text; -1 without it.
  double Metric(const std::string& line) {
    const std::string text = metrics_.Expose();
    const size_t at = text.find("\n" + line + " ");
    return at == std::string::npos ? -1 : std::stod(text.substr(at + line.size() + 2));
  }

 private:
  MemoryStoreOptions options_;
  MapChunkStore disk_;
  FaultyChunkStore faults_{disk_};
  Metrics metrics_;
  SimulatedClock clock_{absl::FromUnixSeconds(1'700'000'000)};
  std::unique_ptr<MemoryStore> store_;
};

}  // namespace mneme

#endif  // MNEME_TESTS_MEMORY_STORE_HARNESS_H_
