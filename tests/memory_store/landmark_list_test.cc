#include "memory_store/landmark_list.h"

#include <cstring>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/memory_store/derived.h"

namespace mneme {
namespace {

constexpr int64_t kLandmarkBytes = 16;

struct Rows {
  int64_t version = 0;
  std::vector<int64_t> byte_begin;
};
using Model = std::map<std::pair<DocumentId, int64_t>, Rows>;

std::vector<uint8_t> Bytes(DocumentId document, int64_t segment, const Rows& rows) {
  std::vector<uint8_t> bytes;
  for (size_t row = 0; row < rows.byte_begin.size(); ++row) {
    const auto one = MadeUpLandmark(document, segment * 1000 + static_cast<int64_t>(row),
                                    rows.version, kLandmarkBytes);
    bytes.insert(bytes.end(), one.begin(), one.end());
  }
  return bytes;
}

void Put(LandmarkList& list, DocumentId document, int64_t segment, const Rows& rows) {
  const std::vector<uint8_t> bytes = Bytes(document, segment, rows);
  list.Put({document, segment, segment * 1000, 7, rows.byte_begin, bytes.data()});
}

void ExpectSame(const LandmarkSnapshot& snapshot, const Model& model) {
  size_t run = 0, in_run = 0;
  int64_t index = 0;
  for (const auto& [key, rows] : model) {
    ASSERT_LT(run, snapshot.runs.size());
    const LandmarkRun& r = snapshot.runs[run];
    const LandmarkBlock::Segment& segment = r.block->segments[r.segment_begin + in_run];
    ASSERT_EQ(segment.document, key.first);
    ASSERT_EQ(segment.segment_index, key.second);
    ASSERT_EQ(segment.row_count, static_cast<int64_t>(rows.byte_begin.size()));
    const std::vector<uint8_t> expected = Bytes(key.first, key.second, rows);
    const int64_t row_in_run = segment.first_row - r.block->segments[r.segment_begin].first_row;
    ASSERT_EQ(r.first_index + row_in_run, index);
    const auto* stored =
        static_cast<const uint8_t*>(snapshot.slabs[run].rows) + row_in_run * kLandmarkBytes;
    ASSERT_EQ(std::memcmp(stored, expected.data(), expected.size()), 0);
    index += segment.row_count;
    if (r.segment_begin + ++in_run == r.segment_end) {
      ++run;
      in_run = 0;
    }
  }
  EXPECT_EQ(run, snapshot.runs.size());
  EXPECT_EQ(snapshot.chunk_count, index);
}

TEST(LandmarkListTest, SnapshotOfAnUnchangedListIsTheSame) {
  LandmarkList list(kLandmarkBytes);
  Put(list, DocumentId{1}, 0, {1, {0, 1}});
  const auto first = list.Snapshot();
  EXPECT_EQ(list.Snapshot(), first);
  Put(list, DocumentId{2}, 0, {1, {0}});
  EXPECT_NE(list.Snapshot(), first);
  EXPECT_EQ(first->chunk_count, 2);
}

TEST(LandmarkListTest, AppendSharesTheFullBlocksWithEarlierSnapshots) {
  LandmarkList list(kLandmarkBytes);
  const Rows full{1, std::vector<int64_t>(64)};
  for (int64_t segment = 0; segment < 100; ++segment) Put(list, DocumentId{1}, segment, full);
  const auto before = list.Snapshot();
  Put(list, DocumentId{1}, 100, full);
  const auto after = list.Snapshot();
  size_t shared = 0;
  for (size_t i = 0; i < before->runs.size(); ++i)
    shared += before->runs[i].block == after->runs[i].block;
  EXPECT_GE(shared + 1, before->runs.size());
  EXPECT_LE(after->runs.size(), 101u * 64 / LandmarkList::kBlockRows + 1);
}

TEST(LandmarkListTest, RowsBeginOnACacheLine) {
  LandmarkList list(kLandmarkBytes);
  Put(list, DocumentId{1}, 0, {1, {0, 1, 2}});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(list.Snapshot()->slabs[0].rows) % 64, 0u);
}

// Random changes against a std::map, in several lists whose documents interleave; every snapshot
// taken on the way still shows what it showed then.
TEST(LandmarkListTest, AgreesWithAMapOverRandomChanges) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  constexpr int kLists = 3;
  std::vector<LandmarkList> lists(kLists, LandmarkList(kLandmarkBytes));
  std::vector<Model> models(kLists);
  std::vector<std::pair<std::shared_ptr<const LandmarkSnapshot>, Model>> taken;
  for (int step = 0; step < 4000; ++step) {
    const size_t which = random() % kLists;
    LandmarkList& list = lists[which];
    Model& model = models[which];
    // A document belongs to one list.
    const DocumentId document{(random() % 40) * kLists + which + 1};
    const int64_t segment = random() % 5;
    if (random() % 10 == 0) {
      list.Erase(document, segment);
      model.erase(model.lower_bound({document, segment}),
                  model.lower_bound({DocumentId{static_cast<uint64_t>(document) + 1}, 0}));
    } else {
      Rows rows{step, {}};
      rows.byte_begin.resize(random() % (random() % 8 == 0 ? 700 : 70));
      for (size_t i = 0; i < rows.byte_begin.size(); ++i)
        rows.byte_begin[i] = static_cast<int64_t>(i) * 3 + step;
      if (rows.byte_begin.empty()) continue;
      Put(list, document, segment, rows);
      model[{document, segment}] = rows;
      const auto begins = list.ByteBegin(document, segment);
      ASSERT_EQ(std::vector<int64_t>(begins.begin(), begins.end()), rows.byte_begin);
    }
    if (random() % 50 == 0) taken.emplace_back(list.Snapshot(), model);
    if (random() % 100 == 0) {
      std::vector<std::shared_ptr<const LandmarkSnapshot>> snapshots;
      Model all;
      for (int i = 0; i < kLists; ++i) {
        snapshots.push_back(lists[i].Snapshot());
        all.insert(models[i].begin(), models[i].end());
      }
      ASSERT_NO_FATAL_FAILURE(ExpectSame(MergeSnapshots(snapshots, kLandmarkBytes), all));
    }
  }
  for (int i = 0; i < kLists; ++i) taken.emplace_back(lists[i].Snapshot(), models[i]);
  for (const auto& [snapshot, model] : taken) ASSERT_NO_FATAL_FAILURE(ExpectSame(*snapshot, model));
  for (int i = 0; i < kLists; ++i) {
    int64_t rows = 0;
    for (const auto& [key, value] : models[i])
      rows += static_cast<int64_t>(value.byte_begin.size());
    EXPECT_EQ(lists[i].bytes(), rows * kLandmarkBytes);
  }
  EXPECT_TRUE(lists[0].ByteBegin(DocumentId{9999}, 0).empty());
}

}  // namespace
}  // namespace mneme
