// Pages that were lost and are derived again, from no more of a segment than they depend on.

#include "engine/page_source.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/engine/engine_harness.h"

namespace mneme {
namespace {

// Of these chunks of "d", one question each; empty where a page is not to be had.
std::vector<std::vector<float>> Read(EngineHarness& harness, absl::Span<const int64_t> chunks) {
  Metrics metrics;
  EngineMetrics engine_metrics(metrics, harness.options());
  const SegmentShape shape = SegmentShape::Of(harness.model());
  PageSource source(harness.model(), shape, harness.store(), engine_metrics, /*threads=*/1);
  const DocumentId document = harness.engine().GetDocument(harness.Document("m", "d"))->uid;
  std::vector<std::vector<float>> pages;
  for (const int64_t chunk : chunks) {
    const ChunkAddress address{document, chunk};
    const float mass = 0.5f;
    const auto pinned = source.Pin({&address, 1}, {&mass, 1});
    EXPECT_TRUE(pinned.ok()) << pinned.status();
    pages.emplace_back();
    if (!pinned.ok() || pinned->pages[0] == nullptr) continue;
    const auto* const floats = reinterpret_cast<const float*>(pinned->pages[0]);
    const int64_t count = harness.model().page_layout().page_bytes() / 4;
    pages.back().assign(floats, floats + count);
  }
  return pages;
}

TEST(PageSourceTest, LostPagesDependOnWhatFollowsTheirChunksAsTheyDid) {
  for (const int halo : {0, 3, 8}) {  // of chunks of 8 tokens, segments of 64
    SCOPED_TRACE(absl::StrCat(halo, " tokens"));
    EngineHarness harness;
    harness.model().set_encoder_halo(halo);
    harness.CreateMemory("m");
    harness.Ingest("m", "d", RandomText(1, 400), /*seal=*/true);
    const std::vector<int64_t> chunks = {2, 0, 7, 9, 4};
    const std::vector<std::vector<float>> before = Read(harness, chunks);
    ASSERT_TRUE(
        harness.engine().UpdateMemory(harness.Memory("m"), {.retention = Retention::kText}).ok());
    harness.Stop();
    harness.LoseTable(Table::kPages);
    harness.Start();
    std::vector<size_t> tokens;
    harness.model().OnForward([&](FakeModel::Segments segments) {
      for (const absl::Span<const TokenId> ids : segments) tokens.push_back(ids.size());
      return absl::OkStatus();
    });
    EXPECT_EQ(Read(harness, chunks), before);
    harness.model().OnForward(nullptr);
    ASSERT_EQ(tokens.size(), chunks.size());
    for (size_t i = 0; i < chunks.size(); ++i) {
      const int64_t own = chunks[i] % 8 + 1, seen = std::min<int64_t>(own + (halo > 0), 8);
      EXPECT_EQ(tokens[i], static_cast<size_t>(seen * 8)) << "chunk " << chunks[i];
      EXPECT_EQ(before[i][8] >= 0, halo > 0 && own < 8) << "chunk " << chunks[i];
    }
  }
}

}  // namespace
}  // namespace mneme
