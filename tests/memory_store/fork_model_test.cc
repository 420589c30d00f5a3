// Random creations, appends, forks, snapshots, drops and restarts against a plain model in which a
// fork is a copy: every memory has its own documents with their texts and the times at which they
// grew. Compared are texts, lists, views of now and of the past chunk by chunk, receipts and what
// is stored in all.

#include <algorithm>
#include <atomic>
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

constexpr int64_t kSegmentBytes = 100;
constexpr int64_t kChunkBytes = 50;

// A document as one memory has it.
struct Copy {
  std::string id;
  std::string text;
  absl::Time begin;
  std::vector<std::pair<absl::Time, int64_t>> ends;  // text ended here from then on
  bool shared = false;

  int64_t EndAt(absl::Time time) const {
    int64_t end = 0;
    for (const auto& [from, bytes] : ends) {
      if (from <= time) end = bytes;
    }
    return end;
  }
};

struct ModelMemory {
  std::string id;
  MemoryId parent{};
  absl::Time begin;
  std::map<DocumentId, Copy> documents;
  std::map<std::string, absl::Time> snapshots;
};

class ForkModelTest : public MemoryStoreHarness, public ::testing::WithParamInterface<int> {
 protected:
  int64_t Random(int64_t below) {
    return static_cast<int64_t>(random_() % static_cast<uint64_t>(below));
  }
  template <typename Map>
  auto Any(Map& map) {
    return std::next(map.begin(), Random(static_cast<int64_t>(map.size())));
  }
  absl::Time Now() { return clock().Now(); }
  bool IdTaken(const std::string& id) {
    return std::any_of(memories_.begin(), memories_.end(),
                       [&id](const auto& m) { return m.second.id == id; });
  }
  // A moment since the memory, or what it is a fork of, began.
  absl::Time Moment(const ModelMemory& memory) {
    if (Random(3) == 0) return Now();
    const int64_t span = absl::ToInt64Microseconds(Now() - memory.begin);
    return memory.begin + absl::Microseconds(Random(span + 1));
  }

  // What stands for landmarks and pages says which text they were made of.
  std::vector<uint8_t> Mark(absl::string_view text, size_t bytes) {
    std::vector<uint8_t> mark(bytes, static_cast<uint8_t>(text.size()));
    for (size_t i = 0; i < text.size(); ++i) {
      mark[(i * 7) % bytes] = static_cast<uint8_t>(31 * mark[(i * 7) % bytes] + text[i]);
    }
    return mark;
  }
  SegmentDerived DeriveSegment(DocumentId document, int64_t index, int64_t end) {
    SegmentDerived segment;
    segment.document = document;
    segment.segment_index = index;
    segment.derivation_fingerprint = options().derivation_fingerprint;
    segment.encode_from_byte = index * kSegmentBytes;
    segment.byte_begin = index * kSegmentBytes;
    segment.byte_end = std::min(end, segment.byte_begin + kSegmentBytes);
    segment.token_count = static_cast<int32_t>(segment.byte_end - segment.byte_begin);
    const std::string text =
        store().ReadText(document, segment.byte_begin, segment.byte_end).value();
    for (size_t at = 0; at < text.size(); at += kChunkBytes) {
      segment.chunk_byte_begin.push_back(segment.byte_begin + static_cast<int64_t>(at));
      const absl::string_view chunk = absl::string_view(text).substr(at, kChunkBytes);
      for (auto [to, bytes] : {std::pair(&segment.landmarks, options().landmark_bytes),
                               std::pair(&segment.pages, options().page_bytes)}) {
        const auto mark = Mark(chunk, static_cast<size_t>(bytes));
        to->insert(to->end(), mark.begin(), mark.end());
      }
    }
    return segment;
  }
  // As the engine would: from the open segment on.
  void Derive(DocumentId document) {
    const DocumentInfo info = store().GetDocument(document).value();
    std::vector<SegmentDerived> segments;
    for (int64_t i = info.visible_bytes / kSegmentBytes; i * kSegmentBytes < info.durable_bytes;
         ++i) {
      segments.push_back(DeriveSegment(document, i, info.durable_bytes));
    }
    ASSERT_TRUE(store().PutSegments(segments).ok());
  }

  void CreateMemoryStep() {
    const std::string id = absl::StrCat("m", Random(8));
    const auto made = store().CreateMemory("default", id, "");
    ASSERT_EQ(made.ok(), !IdTaken(id)) << made.status();
    if (made.ok()) memories_[made->uid] = {.id = id, .begin = made->create_time};
  }
  void CreateDocumentStep() {
    clock().Advance(absl::Microseconds(1));  // no moment that was read is that of the document
    const auto it = Any(memories_);
    const std::string id = absl::StrCat("d", Random(12));
    const bool exists = std::any_of(it->second.documents.begin(), it->second.documents.end(),
                                    [&id](const auto& d) { return d.second.id == id; });
    const auto made = store().CreateDocument(it->first, id);
    ASSERT_EQ(made.ok(), !exists) << made.status();
    if (made.ok()) it->second.documents[made->uid] = {.id = id, .begin = made->create_time};
  }
  void AppendStep() {
    const auto it = Any(memories_);
    if (it->second.documents.empty()) return;
    const auto document = Any(it->second.documents);
    Copy& copy = document->second;
    if (copy.shared) return;
    std::string text(static_cast<size_t>(1 + Random(180)), '\0');
    for (char& c : text) c = static_cast<char>('a' + Random(26));
    clock().Advance(absl::Microseconds(1));  // as above
    ASSERT_TRUE(Append(document->first, static_cast<int64_t>(copy.text.size()), text).ok());
    copy.text += text;
    copy.ends.emplace_back(Now(), static_cast<int64_t>(copy.text.size()));
    if (Random(2) == 0) Derive(document->first);
  }

  ModelMemory CopyAt(const ModelMemory& source, absl::Time moment) {
    ModelMemory copy{.begin = source.begin};
    for (const auto& [uid, document] : source.documents) {
      if (document.begin > moment) continue;
      Copy& of = copy.documents[uid] = document;
      of.shared = true;
      of.text.resize(static_cast<size_t>(document.EndAt(moment)));
      std::erase_if(of.ends, [moment](const auto& end) { return end.first > moment; });
    }
    return copy;
  }
  void ForkStep() {
    const auto source = Any(memories_);
    const std::string id = absl::StrCat("m", Random(8));
    const bool is_now = Random(2) == 0;
    const absl::Time moment = is_now ? Now() : Moment(source->second);
    const auto made =
        store().ForkMemory({source->first, is_now ? absl::InfiniteFuture() : moment}, id, "");
    ASSERT_EQ(made.ok(), !IdTaken(id)) << made.status();
    if (!made.ok()) return;
    ASSERT_EQ(made->base->as_of, moment);
    ASSERT_EQ(made->base->memory_id, source->second.id);
    ModelMemory fork = CopyAt(source->second, moment);
    fork.id = id;
    fork.parent = source->first;
    memories_[made->uid] = std::move(fork);
    parents_[made->uid] = source->first;
  }
  void SnapshotStep() {
    const auto it = Any(memories_);
    const std::string id = absl::StrCat("s", Random(3));
    if (it->second.snapshots.contains(id)) {
      ASSERT_TRUE(store().DeleteSnapshot(it->first, id).ok());
      it->second.snapshots.erase(id);
      return;
    }
    const absl::Time moment = Moment(it->second);
    ASSERT_TRUE(store().CreateSnapshot({it->first, moment}, id).ok());
    it->second.snapshots[id] = moment;
  }

  // The memory and all made of it, by whatever way.
  std::set<MemoryId> Forks(MemoryId memory) {
    std::set<MemoryId> forks = {memory};
    for (const auto& [fork, parent] : parents_) {  // a parent comes before its forks
      if (forks.contains(parent)) forks.insert(fork);
    }
    return forks;
  }
  // The most that anybody has of each document.
  std::map<DocumentId, int64_t> Stored() {
    std::map<DocumentId, int64_t> stored;
    for (const auto& [uid, memory] : memories_) {
      for (const auto& [document, copy] : memory.documents) {
        int64_t& bytes = stored.try_emplace(document, 0).first->second;
        bytes = std::max(bytes, static_cast<int64_t>(copy.text.size()));
      }
    }
    return stored;
  }
  void ExpectReceipt(const Deletion& deletion, const std::set<DocumentId>& dropped,
                     const std::map<DocumentId, int64_t>& before) {
    const std::map<DocumentId, int64_t> after = Stored();
    int64_t documents = 0, text_bytes = 0, held = 0, held_bytes = 0;
    std::set<std::string> held_by;
    for (const DocumentId uid : dropped) {
      const auto left = after.find(uid);
      documents += left == after.end();
      held += left != after.end();
      held_bytes += left == after.end() ? 0 : left->second;
      text_bytes += before.at(uid) - (left == after.end() ? 0 : left->second);
      for (const auto& [memory, of] : memories_) {
        if (of.documents.contains(uid)) held_by.insert(of.id);
      }
    }
    ASSERT_EQ(deletion.receipt.documents, documents);
    ASSERT_EQ(deletion.receipt.text_bytes, text_bytes);
    ASSERT_EQ(deletion.receipt.held_documents, held);
    ASSERT_EQ(deletion.receipt.held_text_bytes, held_bytes);
    ASSERT_EQ(
        std::set<std::string>(deletion.receipt.held_by.begin(), deletion.receipt.held_by.end()),
        held_by);
  }
  void DropStep() {
    const auto it = Any(memories_);
    if (it->second.documents.empty()) return;
    const DocumentId document = Any(it->second.documents)->first;
    const bool everywhere = Random(4) == 0;
    const auto before = Stored();
    const auto deletion = store().DeleteDocument(it->first, document, everywhere);
    ASSERT_TRUE(deletion.ok()) << deletion.status();
    for (const MemoryId fork : everywhere ? Forks(it->first) : std::set<MemoryId>{it->first}) {
      if (memories_.contains(fork)) memories_[fork].documents.erase(document);
    }
    ExpectReceipt(*deletion, {document}, before);
  }
  void DeleteMemoryStep() {
    const auto it = Any(memories_);
    const MemoryId memory = it->first;
    const bool everywhere = Random(4) == 0;
    const auto before = Stored();
    std::set<DocumentId> dropped;
    for (const auto& [uid, copy] : it->second.documents) dropped.insert(uid);
    const auto deletion = store().DeleteMemory(memory, everywhere);
    ASSERT_TRUE(deletion.ok()) << deletion.status();
    memories_.erase(memory);
    if (everywhere) {
      for (const MemoryId fork : Forks(memory)) {
        if (!memories_.contains(fork)) continue;
        for (const DocumentId uid : dropped) memories_[fork].documents.erase(uid);
      }
    }
    ExpectReceipt(*deletion, dropped, before);
  }
  void PurgeStep() {
    std::atomic<bool> cancel{false};
    const std::vector<Deletion> purged = store().Purge(cancel).value();
    for (const Deletion& done : purged) {
      ASSERT_EQ(done.receipt.purge_time == absl::InfiniteFuture(), done.receipt.held_documents > 0);
    }
  }

  void CompareCatalog() {
    for (const auto& [uid, memory] : memories_) {
      ASSERT_EQ(store().GetMemory("default", memory.id)->uid, uid);
      const std::vector<DocumentInfo> listed =
          store().ListDocuments(uid, DocumentId{}, 1000).value();
      ASSERT_EQ(listed.size(), memory.documents.size());
      int64_t bytes = 0;
      auto expected = memory.documents.begin();
      for (const DocumentInfo& info : listed) {
        const Copy& copy = expected->second;
        ASSERT_EQ(info.uid, (expected++)->first);
        ASSERT_EQ(info.memory, uid);
        ASSERT_EQ(info.id, copy.id);
        ASSERT_EQ(info.shared, copy.shared);
        ASSERT_EQ(info.durable_bytes, static_cast<int64_t>(copy.text.size()));
        ASSERT_EQ(store().GetDocument(uid, copy.id)->uid, info.uid);
        ASSERT_EQ(store().ReadText(info.uid, 0, info.durable_bytes).value(), copy.text);
        bytes += info.durable_bytes;
      }
      ASSERT_EQ(store().totals(uid)->documents, static_cast<int64_t>(memory.documents.size()));
      ASSERT_EQ(store().totals(uid)->durable_bytes, bytes);
      for (const auto& [id, moment] : memory.snapshots) {
        ASSERT_EQ(store().GetSnapshot(uid, id)->as_of, moment);
      }
      ASSERT_EQ(store().ListSnapshots(uid, "", 100).size(), memory.snapshots.size());
    }
    const std::map<DocumentId, int64_t> stored = Stored();
    int64_t bytes = 0;
    for (const auto& [uid, of] : stored) bytes += of;
    ASSERT_EQ(store().totals().documents, static_cast<int64_t>(stored.size()));
    ASSERT_EQ(store().totals().memories, static_cast<int64_t>(memories_.size()));
    ASSERT_EQ(store().totals().durable_bytes, bytes);
    // Once for the tenant too, and whoever holds it.
    ASSERT_EQ(store().tenant_totals("default").durable_bytes, bytes);
    ASSERT_EQ(store().tenant_totals("default").documents, static_cast<int64_t>(stored.size()));
    ASSERT_EQ(store().tenant_totals("default").memories, static_cast<int64_t>(memories_.size()));
  }

  LandmarkView ViewOf(const std::vector<ReadSource>& sources) {
    std::vector<TailHandle> held;
    for (int round = 0;; ++round) {
      PastView past = store().ViewPast(sources).value();
      if (past.view.has_value()) return *past.view;
      EXPECT_LT(round, 10);
      held.insert(held.end(), past.tails.begin(), past.tails.end());
      for (const DocumentCut& cut : past.lagging) Derive(cut.document);
      for (const DocumentCut& cut : past.wanting) {
        std::vector<SegmentDerived> segments;
        const int64_t shared = cut.cut_bytes / kSegmentBytes;
        if (shared * kSegmentBytes < cut.cut_bytes) {
          segments.push_back(DeriveSegment(cut.document, shared, cut.cut_bytes));
          if (Random(2) == 0) segments.back().pages.clear();
        }
        held.push_back(store().PutTail(cut, shared, segments).value());
      }
    }
  }
  // The page of a chunk, derived again if need be as the engine does.
  void ExpectPageOf(const ChunkText& chunk, absl::string_view text) {
    PinnedPages pinned = Pin({chunk.address});
    if (!pinned.missing().empty()) {
      pinned = PinnedPages();
      const int64_t index = chunk.byte_begin / kSegmentBytes;
      const SegmentDerived segment = store().GetSegment(chunk.address.document, index).value();
      const std::vector<uint8_t> pages =
          DeriveSegment(chunk.address.document, index, segment.byte_end).pages;
      ASSERT_TRUE(store().PutPages(chunk.address.document, index, pages, segment.byte_end).ok());
      pinned = Pin({chunk.address});
      ASSERT_TRUE(pinned.missing().empty());
    }
    const auto mark = Mark(text, static_cast<size_t>(options().page_bytes));
    ASSERT_EQ(std::memcmp(pinned.pages()[0], mark.data(), mark.size()), 0);
  }
  void CompareView() {
    std::vector<ReadSource> sources;
    std::map<DocumentId, std::string> expected;  // the longest that one of the sources has
    for (int64_t count = 1 + Random(3); count > 0; --count) {
      const auto it = Any(memories_);
      const bool is_now = Random(2) == 0;
      absl::Time moment = is_now ? absl::InfiniteFuture() : Moment(it->second);
      if (!is_now && Random(2) == 0 && !it->second.snapshots.empty()) {
        moment = Any(it->second.snapshots)->second;
      }
      sources.push_back({it->first, moment});
      for (const auto& [uid, copy] : it->second.documents) {
        if (is_now && !copy.shared) Derive(uid);
        if (copy.begin > moment) continue;
        const std::string text = copy.text.substr(0, static_cast<size_t>(copy.EndAt(moment)));
        std::string& longest = expected[uid];
        if (text.size() > longest.size()) longest = text;
      }
    }
    const LandmarkView view = ViewOf(sources);
    std::shuffle(sources.begin(), sources.end(), random_);
    const LandmarkView same = ViewOf(sources);
    int64_t index = 0;
    for (const auto& [uid, text] : expected) {
      for (int64_t at = 0; at < static_cast<int64_t>(text.size()); at += kChunkBytes, ++index) {
        ASSERT_LT(index, view.chunk_count());
        const ChunkText chunk = view.Locate(index);
        const auto end = std::min<int64_t>(at + kChunkBytes, static_cast<int64_t>(text.size()));
        const absl::string_view of = absl::string_view(text).substr(at, end - at);
        ASSERT_EQ(chunk.document, uid);
        ASSERT_EQ(chunk.address.chunk_index, at / kChunkBytes);
        ASSERT_EQ(chunk.byte_begin, at);
        ASSERT_EQ(chunk.byte_end, end);
        ASSERT_GE(chunk.document_end, static_cast<int64_t>(text.size()));
        ASSERT_EQ(LandmarkAt(view, index), Mark(of, static_cast<size_t>(options().landmark_bytes)));
        ASSERT_EQ(same.Locate(index).address, chunk.address);
        if (Random(6) == 0) ExpectPageOf(chunk, of);
      }
    }
    ASSERT_EQ(view.chunk_count(), index);
    ASSERT_EQ(same.chunk_count(), index);
  }

  std::mt19937_64 random_;
  std::map<MemoryId, ModelMemory> memories_;
  std::map<MemoryId, MemoryId> parents_;  // also of those that are gone
};

TEST_P(ForkModelTest, AgreesWithAModelThatCopies) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  random_.seed(seed);
  options().fork_depth_max = 1000;
  Reopen();
  for (int step = 0; step < 500 && !HasFatalFailure(); ++step) {
    const int64_t what = memories_.empty() ? 0 : Random(100);
    clock().Advance(absl::Microseconds(Random(3)));
    if (what < 5)
      CreateMemoryStep();
    else if (what < 17)
      CreateDocumentStep();
    else if (what < 45)
      AppendStep();
    else if (what < 54)
      ForkStep();
    else if (what < 60)
      SnapshotStep();
    else if (what < 70)
      DropStep();
    else if (what < 73)
      DeleteMemoryStep();
    else if (what < 76)
      PurgeStep();
    else if (what < 79)
      Reopen();
    else if (what < 89)
      CompareCatalog();
    else
      CompareView();
  }
  Reopen();
  if (!HasFatalFailure()) CompareCatalog();
  if (!HasFatalFailure() && !memories_.empty()) CompareView();
  // The last one to go takes everything with it.
  while (!memories_.empty() && !HasFatalFailure()) DeleteMemoryStep();
  if (HasFatalFailure()) return;
  PurgeStep();
  for (const Table table : {Table::kText, Table::kSegments, Table::kPages}) {
    EXPECT_EQ(disk().key_count(table), 0);
  }
  EXPECT_LE(disk().key_count(Table::kCatalog), 1) << "the counter alone";
}

INSTANTIATE_TEST_SUITE_P(Rounds, ForkModelTest, ::testing::Range(0, 10));

}  // namespace
}  // namespace mneme
