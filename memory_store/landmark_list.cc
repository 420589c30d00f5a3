#include "memory_store/landmark_list.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <tuple>
#include <utility>

#include "common/check.h"

namespace mneme {
namespace {

using SegmentOrder = std::pair<DocumentId, int64_t>;

template <typename S>
SegmentOrder OrderOf(const S& segment) {
  return {segment.document, segment.segment_index};
}

}  // namespace

void CacheLineBytes::Append(const uint8_t* data, int64_t size) {
  const auto line_count = static_cast<size_t>((size_ + size + sizeof(Line) - 1) / sizeof(Line));
  if (line_count > lines_.capacity()) MoveTo(std::max(line_count, 2 * lines_.capacity()));
  lines_.resize(line_count);
  std::memcpy(reinterpret_cast<uint8_t*>(lines_.data()) + size_, data, static_cast<size_t>(size));
  size_ += size;
}

void CacheLineBytes::Wipe() {
  if (lines_.empty()) return;  // there is no address then
  // Not memset: of memory that is about to be freed a compiler leaves that out.
  explicit_bzero(lines_.data(), lines_.size() * sizeof(Line));
}

void CacheLineBytes::MoveTo(size_t capacity) {
  std::vector<Line> moved;
  moved.reserve(capacity);
  moved.assign(lines_.begin(), lines_.end());
  Wipe();
  lines_.swap(moved);
}

void LandmarkBlocks::Add(const std::shared_ptr<LandmarkBlock>& block) {
  if (blocks_.size() >= prune_at_) {
    std::erase_if(blocks_, [](const auto& weak) { return weak.expired(); });
    prune_at_ = std::max<size_t>(64, 2 * blocks_.size());
  }
  blocks_.push_back(block);
}

absl::flat_hash_set<DocumentId> LandmarkBlocks::Held(
    const absl::flat_hash_set<DocumentId>& documents) const {
  absl::flat_hash_set<DocumentId> held;
  for (const auto& weak : blocks_) {
    const std::shared_ptr<const LandmarkBlock> block = weak.lock();
    if (block == nullptr) continue;
    for (const LandmarkBlock::Segment& segment : block->segments) {
      if (documents.contains(segment.document)) held.insert(segment.document);
    }
  }
  return held;
}

LandmarkList::Block LandmarkList::NewBlock(const LandmarkBlock* block) const {
  const Block made = block == nullptr ? std::make_shared<LandmarkBlock>()
                                      : std::make_shared<LandmarkBlock>(*block);
  made->in_snapshot = false;
  if (all_blocks_ != nullptr) all_blocks_->Add(made);
  return made;
}

void LandmarkSnapshot::Append(std::shared_ptr<const LandmarkBlock> block, size_t segment_begin,
                              size_t segment_end, int64_t landmark_bytes, DocumentId tail) {
  const int64_t row_begin = block->segments[segment_begin].first_row;
  const LandmarkBlock::Segment& last = block->segments[segment_end - 1];
  const int64_t row_end = last.first_row + last.row_count;
  slabs.push_back({block->rows.data() + row_begin * landmark_bytes, row_end - row_begin});
  runs.push_back({std::move(block), segment_begin, segment_end, chunk_count, tail});
  chunk_count += row_end - row_begin;
}

LandmarkSnapshot FilterSnapshot(const LandmarkSnapshot& snapshot,
                                absl::FunctionRef<bool(const LandmarkBlock::Segment&)> keep,
                                int64_t landmark_bytes) {
  LandmarkSnapshot filtered;
  for (const LandmarkRun& run : snapshot.runs) {
    const auto& segments = run.block->segments;
    for (size_t begin = run.segment_begin; begin < run.segment_end;) {
      size_t end = begin;
      while (end < run.segment_end && keep(segments[end])) ++end;
      if (end > begin) filtered.Append(run.block, begin, end, landmark_bytes, run.tail);
      begin = end + 1;  // the one at `end` stays out
    }
  }
  return filtered;
}

LandmarkSnapshot MergeSnapshots(absl::Span<const std::shared_ptr<const LandmarkSnapshot>> snapshots,
                                int64_t landmark_bytes) {
  struct Cursor {
    const LandmarkSnapshot* snapshot;
    size_t run = 0;
    size_t segment = 0;  // of the run's block

    bool done() const { return run == snapshot->runs.size(); }
    SegmentOrder order() const { return OrderOf(snapshot->runs[run].block->segments[segment]); }
  };
  std::vector<Cursor> cursors;
  for (const auto& snapshot : snapshots) {
    if (!snapshot->runs.empty()) {
      cursors.push_back({snapshot.get(), 0, snapshot->runs[0].segment_begin});
    }
  }
  LandmarkSnapshot merged;
  while (!cursors.empty()) {
    std::sort(cursors.begin(), cursors.end(),
              [](const Cursor& a, const Cursor& b) { return a.order() < b.order(); });
    Cursor& first = cursors[0];
    // Everything before the next segment of the others, but at most to the end of the run.
    const LandmarkRun& run = first.snapshot->runs[first.run];
    const auto& segments = run.block->segments;
    size_t end = run.segment_end;
    if (cursors.size() > 1) {
      const SegmentOrder limit = cursors[1].order();
      end = std::partition_point(segments.begin() + first.segment, segments.begin() + end,
                                 [limit](const auto& s) { return OrderOf(s) < limit; }) -
            segments.begin();
    }
    MNEME_CHECK(end > first.segment);
    merged.Append(run.block, first.segment, end, landmark_bytes, run.tail);
    first.segment = end;
    if (end == run.segment_end) {
      if (++first.run < first.snapshot->runs.size()) {
        first.segment = first.snapshot->runs[first.run].segment_begin;
      }
    }
    if (first.done()) cursors.erase(cursors.begin());
  }
  return merged;
}

size_t LandmarkList::BlockFor(DocumentId document, int64_t segment_index) const {
  const SegmentOrder order{document, segment_index};
  const auto after = std::partition_point(blocks_.begin(), blocks_.end(), [&](const Block& block) {
    return OrderOf(block->segments.front()) <= order;
  });
  return after == blocks_.begin() ? 0 : after - blocks_.begin() - 1;
}

void LandmarkList::Collect(const LandmarkBlock& block,
                           std::vector<LandmarkSegment>* segments) const {
  for (const LandmarkBlock::Segment& s : block.segments) {
    segments->push_back({s.document, s.segment_index, s.first_chunk, s.byte_end,
                         absl::MakeConstSpan(block.byte_begin).subspan(s.first_row, s.row_count),
                         block.rows.data() + s.first_row * landmark_bytes_});
  }
}

void LandmarkList::AppendRows(const LandmarkSegment& segment, LandmarkBlock* block) const {
  const int64_t row_count = static_cast<int64_t>(segment.byte_begin.size());
  block->segments.push_back({segment.document, segment.segment_index, segment.first_chunk,
                             segment.byte_end, block->row_count(), row_count});
  block->byte_begin.insert(block->byte_begin.end(), segment.byte_begin.begin(),
                           segment.byte_begin.end());
  block->rows.Append(segment.rows, row_count * landmark_bytes_);
}

void LandmarkList::Rebuild(size_t first, size_t last, absl::Span<const LandmarkSegment> segments) {
  int64_t row_count = 0;
  for (const LandmarkSegment& s : segments) row_count += static_cast<int64_t>(s.byte_begin.size());
  const int64_t block_count = (row_count + kBlockRows - 1) / kBlockRows;
  std::vector<Block> rebuilt;
  int64_t rows_done = 0;
  for (const LandmarkSegment& s : segments) {
    // Block b takes the segments that begin in its share of the rows.
    const int64_t share = rows_done * block_count / row_count;
    if (static_cast<int64_t>(rebuilt.size()) <= share) {
      rebuilt.push_back(NewBlock());
    }
    AppendRows(s, rebuilt.back().get());
    rows_done += static_cast<int64_t>(s.byte_begin.size());
  }
  for (size_t b = first; b < last; ++b) row_count_ -= blocks_[b]->row_count();
  row_count_ += row_count;
  blocks_.erase(blocks_.begin() + first, blocks_.begin() + last);
  blocks_.insert(blocks_.begin() + first, std::make_move_iterator(rebuilt.begin()),
                 std::make_move_iterator(rebuilt.end()));
}

void LandmarkList::Put(const LandmarkSegment& segment) {
  const int64_t row_count = static_cast<int64_t>(segment.byte_begin.size());
  if (row_count == 0) return;
  snapshot_ = nullptr;
  const SegmentOrder order = OrderOf(segment);
  if (blocks_.empty() || OrderOf(blocks_.back()->segments.back()) < order) {
    // At the end: as ingest goes. Only a block that a snapshot has seen is copied.
    if (blocks_.empty() || blocks_.back()->row_count() + row_count > kBlockRows) {
      if (!blocks_.empty() && !blocks_.back()->in_snapshot) {
        blocks_.back()->rows.ShrinkToFit();
        blocks_.back()->byte_begin.shrink_to_fit();
      }
      blocks_.push_back(NewBlock());
    } else if (blocks_.back()->in_snapshot) {
      blocks_.back() = NewBlock(blocks_.back().get());
    }
    AppendRows(segment, blocks_.back().get());
    row_count_ += row_count;
    return;
  }
  const size_t b = BlockFor(segment.document, segment.segment_index);
  const Block keep = blocks_[b];  // Rebuild reads from it
  std::vector<LandmarkSegment> segments;
  Collect(*keep, &segments);
  const auto at = std::lower_bound(
      segments.begin(), segments.end(), order,
      [](const LandmarkSegment& s, const SegmentOrder& o) { return OrderOf(s) < o; });
  if (at != segments.end() && OrderOf(*at) == order) {
    *at = segment;
  } else {
    segments.insert(at, segment);
  }
  Rebuild(b, b + 1, segments);
}

void LandmarkList::Erase(DocumentId document, int64_t segment_index) {
  if (blocks_.empty()) return;
  const size_t first = BlockFor(document, segment_index);
  size_t last = BlockFor(document, std::numeric_limits<int64_t>::max()) + 1;
  std::vector<Block> keep(blocks_.begin() + first, blocks_.begin() + last);
  std::vector<LandmarkSegment> all, segments;
  for (const Block& block : keep) Collect(*block, &all);
  for (const LandmarkSegment& s : all) {
    if (s.document != document || s.segment_index < segment_index) segments.push_back(s);
  }
  if (segments.size() == all.size()) return;
  snapshot_ = nullptr;
  // What is left joins a small neighbour, so that blocks stay few.
  int64_t row_count = 0;
  for (const LandmarkSegment& s : segments) row_count += static_cast<int64_t>(s.byte_begin.size());
  if (last < blocks_.size() && blocks_[last]->row_count() + row_count <= kBlockRows / 2) {
    keep.push_back(blocks_[last]);
    Collect(*blocks_[last], &segments);
    ++last;
  }
  Rebuild(first, last, segments);
}

absl::Span<const int64_t> LandmarkList::ByteBegin(DocumentId document,
                                                  int64_t segment_index) const {
  if (blocks_.empty()) return {};
  const LandmarkBlock& block = *blocks_[BlockFor(document, segment_index)];
  const SegmentOrder order{document, segment_index};
  const auto at = std::lower_bound(
      block.segments.begin(), block.segments.end(), order,
      [](const LandmarkBlock::Segment& s, const SegmentOrder& o) { return OrderOf(s) < o; });
  if (at == block.segments.end() || OrderOf(*at) != order) return {};
  return absl::MakeConstSpan(block.byte_begin).subspan(at->first_row, at->row_count);
}

std::shared_ptr<const LandmarkSnapshot> LandmarkList::Snapshot() {
  if (snapshot_ == nullptr) {
    auto snapshot = std::make_shared<LandmarkSnapshot>();
    snapshot->runs.reserve(blocks_.size());
    snapshot->slabs.reserve(blocks_.size());
    for (const Block& block : blocks_) {
      block->in_snapshot = true;
      snapshot->Append(block, 0, block->segments.size(), landmark_bytes_);
    }
    snapshot_ = std::move(snapshot);
  }
  return snapshot_;
}

}  // namespace mneme
