// Random operations against MemoryStore and a simple model of it in plain containers, with
// restarts, machine crashes and failing writes in between. After every few steps everything that
// can be asked is compared.

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/memory_store/harness.h"

namespace mneme {
namespace {

using Op = FaultyChunkStore::Op;

struct ModelSegment {
  int64_t byte_begin = 0, byte_end = 0, first_chunk = 0, chunk_count = 0;
  bool with_pages = true;
};

struct ModelDocument {
  MemoryId memory{};
  std::string id;
  std::string text;
  bool sealed = false;
  std::vector<ModelSegment> segments;

  int64_t visible_bytes() const { return segments.empty() ? 0 : segments.back().byte_end; }
  int64_t chunk_count() const {
    return segments.empty() ? 0 : segments.back().first_chunk + segments.back().chunk_count;
  }
};

class MemoryStoreModelTest : public MemoryStoreHarness, public ::testing::WithParamInterface<int> {
 protected:
  using Documents = std::map<DocumentId, ModelDocument>;

  int64_t Random(int64_t below) {
    return static_cast<int64_t>(random_() % static_cast<uint64_t>(below));
  }
  template <typename Map>
  auto Any(Map& map) {
    return std::next(map.begin(), Random(static_cast<int64_t>(map.size())));
  }

  // Some writes fail, with nothing changed.
  bool FailNext() {
    if (Random(12) != 0) return false;
    faults().Fail(Op::kWrite, absl::ResourceExhaustedError("disk full"));
    return true;
  }

  void CreateMemoryStep() {
    const std::string id = absl::StrCat("m", Random(6));
    const bool exists = std::any_of(memories_.begin(), memories_.end(),
                                    [&](const auto& m) { return m.second == id; });
    const auto made = store().CreateMemory("default", id, "");
    ASSERT_EQ(made.ok(), !exists);
    if (made.ok()) memories_[made->uid] = id;
  }

  void CreateDocumentStep() {
    if (memories_.empty()) return;
    const MemoryId memory = Any(memories_)->first;
    const std::string id = absl::StrCat("d", Random(30));
    const bool exists = std::any_of(documents_.begin(), documents_.end(), [&](const auto& d) {
      return d.second.memory == memory && d.second.id == id;
    });
    const auto made = store().CreateDocument(memory, id);
    ASSERT_EQ(made.ok(), !exists);
    if (made.ok()) documents_[made->uid] = {memory, id};
  }

  void AppendStep() {
    std::vector<TextAppend> appends;
    std::vector<std::string> texts(1 + Random(4));
    Documents after = documents_;
    std::set<DocumentId> used;
    for (std::string& text : texts) {
      if (documents_.empty()) return;
      const auto it = Any(after);
      ModelDocument& document = it->second;
      if (document.sealed || !used.insert(it->first).second) continue;
      text.resize(Random(8) == 0 ? Random(200'000) : Random(300));
      for (char& c : text) c = static_cast<char>('a' + Random(26));
      const bool seal = Random(20) == 0;
      appends.push_back({it->first, static_cast<int64_t>(document.text.size()), text, seal});
      document.text += text;
      document.sealed = seal;
    }
    const bool fails = !appends.empty() &&
                       std::any_of(appends.begin(), appends.end(),
                                   [](const TextAppend& a) { return a.seal || !a.text.empty(); }) &&
                       FailNext();
    ASSERT_EQ(store().AppendText(appends).ok(), !fails);
    if (!fails) documents_ = std::move(after);
  }

  void PutSegmentsStep() {
    std::vector<SegmentDerived> segments;
    Documents after = documents_;
    std::set<DocumentId> used;
    for (int64_t count = 1 + Random(3); count > 0 && !documents_.empty(); --count) {
      const auto it = Any(after);
      ModelDocument& document = it->second;
      if (!used.insert(it->first).second) continue;
      const int64_t size = static_cast<int64_t>(document.segments.size());
      // Mostly the open segment again or the next one; now and then from far back.
      const int64_t first = size == 0 ? 0 : Random(6) == 0 ? Random(size + 1) : size - Random(2);
      document.segments.resize(first);
      for (int64_t more = 1 + Random(3); more > 0; --more) {
        ModelSegment segment;
        segment.byte_begin = document.visible_bytes();
        const int64_t left = static_cast<int64_t>(document.text.size()) - segment.byte_begin;
        if (left == 0 && more > 1) continue;
        segment.byte_end = segment.byte_begin + (left == 0 ? 0 : Random(left + 1));
        segment.first_chunk = document.chunk_count();
        segment.chunk_count = Random(5) == 0 ? Random(64) : Random(4);
        segment.with_pages = Random(10) != 0;
        segments.push_back(MadeUpSegment(options(), it->first,
                                         static_cast<int64_t>(document.segments.size()),
                                         segment.first_chunk, segment.chunk_count,
                                         segment.byte_begin, segment.byte_end, segment.with_pages));
        document.segments.push_back(segment);
      }
    }
    const bool fails = !segments.empty() && FailNext();
    ASSERT_EQ(store().PutSegments(segments).ok(), !fails);
    if (!fails) documents_ = std::move(after);
  }

  void PutPagesStep() {
    if (documents_.empty()) return;
    const auto it = Any(documents_);
    if (it->second.segments.empty()) return;
    const int64_t index = Random(static_cast<int64_t>(it->second.segments.size()));
    ModelSegment& segment = it->second.segments[index];
    const SegmentDerived derived =
        MadeUpSegment(options(), it->first, index, segment.first_chunk, segment.chunk_count,
                      segment.byte_begin, segment.byte_end);
    ASSERT_TRUE(store().PutPages(it->first, index, derived.pages, segment.byte_end).ok());
    segment.with_pages = true;
  }

  void DeleteStep() {
    if (documents_.empty()) return;
    const DocumentId document = Any(documents_)->first;
    const bool fails = FailNext();
    ASSERT_EQ(store().DeleteDocument(document).ok(), !fails);
    if (!fails) documents_.erase(document);
  }

  void DeleteMemoryStep() {
    if (memories_.empty() || Random(5) != 0) return;
    const MemoryId memory = Any(memories_)->first;
    ASSERT_TRUE(store().DeleteMemory(memory).ok());
    memories_.erase(memory);
    std::erase_if(documents_, [memory](const auto& d) { return d.second.memory == memory; });
  }

  // A machine crash may lose derived records alone, and the newest of them only: take the model
  // back to what is left.
  void CrashStep() {
    disk().Crash(Random(disk().unsynced() + 1));
    Reopen();
    for (auto& [uid, document] : documents_) {
      const DocumentInfo info = store().GetDocument(uid).value();
      ASSERT_EQ(info.durable_bytes, static_cast<int64_t>(document.text.size()));
      ASSERT_EQ(info.sealed, document.sealed);
      ASSERT_LE(info.visible_bytes, info.durable_bytes);
      // What versions of segments are left is the store's to say; they must fit each other and be
      // whole.
      document.segments.clear();
      for (int64_t index = 0;; ++index) {
        const auto segment = store().GetSegment(uid, index);
        if (!segment.ok()) break;
        ASSERT_EQ(segment->byte_begin, document.visible_bytes());
        document.segments.push_back({segment->byte_begin, segment->byte_end, document.chunk_count(),
                                     static_cast<int64_t>(segment->chunk_byte_begin.size()),
                                     false});
      }
      for (int64_t chunk = 0; chunk < document.chunk_count(); ++chunk) {
        const PinnedPages page = Pin({{uid, chunk}});
        for (ModelSegment& segment : document.segments) {
          if (chunk == segment.first_chunk) segment.with_pages = page.missing().empty();
        }
      }
      ASSERT_EQ(info.visible_bytes, document.visible_bytes());
    }
  }

  void Compare() {
    std::set<std::pair<MemoryId, std::string>> expected(memories_.begin(), memories_.end()), found;
    for (const MemoryInfo& info : store().ListMemories("default", "", 1000))
      found.emplace(info.uid, info.id);
    ASSERT_EQ(found, expected);
    ASSERT_EQ(store().AllDocuments().size(), documents_.size());
    MemoryStore::Totals sum;
    for (const auto& [uid, document] : documents_) {
      const DocumentInfo info = store().GetDocument(document.memory, document.id).value();
      ASSERT_EQ(info.uid, uid);
      ASSERT_EQ(info.durable_bytes, static_cast<int64_t>(document.text.size()));
      ASSERT_EQ(info.visible_bytes, document.visible_bytes());
      ASSERT_EQ(info.chunk_count, document.chunk_count());
      ASSERT_EQ(info.token_count, 64 * document.chunk_count());
      ASSERT_EQ(info.sealed, document.sealed);
      ASSERT_FALSE(info.damaged);
      const int64_t begin = Random(info.durable_bytes + 1),
                    end = begin + Random(info.durable_bytes - begin + 1);
      ASSERT_EQ(store().ReadText(uid, begin, end).value(),
                document.text.substr(begin, end - begin));
      sum.durable_bytes += info.durable_bytes;
      sum.visible_bytes += info.visible_bytes;
      sum.chunks += info.chunk_count;
    }
    const MemoryStore::Totals totals = store().totals();
    ASSERT_EQ(totals.documents, static_cast<int64_t>(documents_.size()));
    ASSERT_EQ(totals.memories, static_cast<int64_t>(memories_.size()));
    ASSERT_EQ(totals.durable_bytes, sum.durable_bytes);
    ASSERT_EQ(totals.visible_bytes, sum.visible_bytes);
    ASSERT_EQ(totals.chunks, sum.chunks);
    CompareView();
  }

  void CompareView() {
    std::vector<MemoryId> memories;
    for (const auto& [uid, id] : memories_) {
      if (Random(2) == 0) memories.push_back(uid);
    }
    std::shuffle(memories.begin(), memories.end(), random_);
    const LandmarkView view = store().View(memories).value();
    int64_t index = 0;
    for (const auto& [uid, document] : documents_) {
      if (std::find(memories.begin(), memories.end(), document.memory) == memories.end()) continue;
      for (const ModelSegment& segment : document.segments) {
        for (int64_t c = 0; c < segment.chunk_count; ++c, ++index) {
          ASSERT_LT(index, view.chunk_count());
          const int64_t chunk = segment.first_chunk + c;
          const ChunkText text = view.Locate(index);
          ASSERT_EQ(text.address, (ChunkAddress{uid, chunk}));
          const int64_t bytes = segment.byte_end - segment.byte_begin;
          ASSERT_EQ(text.byte_begin, segment.byte_begin + bytes * c / segment.chunk_count);
          ASSERT_EQ(text.byte_end, segment.byte_begin + bytes * (c + 1) / segment.chunk_count);
          if (Random(4) != 0) continue;
          ASSERT_EQ(LandmarkAt(view, index),
                    MadeUpLandmark(uid, chunk, segment.byte_end, options().landmark_bytes));
          const PinnedPages page = Pin({{uid, chunk}});
          ASSERT_EQ(page.missing().empty(), segment.with_pages);
          if (segment.with_pages) ExpectPage(page.pages()[0], uid, chunk, segment.byte_end);
        }
      }
    }
    ASSERT_EQ(view.chunk_count(), index);
    ASSERT_LE(store().tiers()[0].used_bytes, store().tiers()[0].limit_bytes);
  }

  std::mt19937_64 random_;
  std::map<MemoryId, std::string> memories_;
  Documents documents_;
};

TEST_P(MemoryStoreModelTest, AgreesWithTheModelOverRandomOperations) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  random_.seed(seed);
  options().host_page_bytes_max = options().page_bytes * (8 + Random(200));
  Reopen();
  NewMemory("reserves-identities");
  ASSERT_TRUE(store().DeleteMemory(store().GetMemory("default", "reserves-identities")->uid).ok());
  for (int step = 0; step < 600 && !HasFatalFailure(); ++step) {
    const int64_t what = Random(100);
    if (what < 4)
      CreateMemoryStep();
    else if (what < 20)
      CreateDocumentStep();
    else if (what < 50)
      AppendStep();
    else if (what < 80)
      PutSegmentsStep();
    else if (what < 84)
      PutPagesStep();
    else if (what < 88)
      DeleteStep();
    else if (what < 90)
      DeleteMemoryStep();
    else if (what < 93)
      Reopen();
    else if (what < 94)
      CrashStep();
    else
      Compare();
  }
  Reopen();
  if (!HasFatalFailure()) Compare();
}

INSTANTIATE_TEST_SUITE_P(Rounds, MemoryStoreModelTest, ::testing::Range(0, 10));

}  // namespace
}  // namespace mneme
