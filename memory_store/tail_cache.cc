#include "memory_store/tail_cache.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace mneme {

int64_t Tail::SegmentOf(int64_t chunk) const {
  if (segments.empty() || chunk < segments.front().first_chunk || chunk >= chunk_end()) return -1;
  const auto after = std::partition_point(
      segments.begin(), segments.end(),
      [chunk](const SegmentEntry& segment) { return segment.first_chunk <= chunk; });
  return shared_segments + (after - segments.begin()) - 1;
}

absl::StatusOr<std::shared_ptr<Tail>> MakeTail(const DocumentEntry& document,
                                               const DocumentCut& cut, int64_t shared_segments,
                                               absl::Span<const SegmentDerived> segments,
                                               int64_t landmark_bytes, LandmarkBlocks* blocks) {
  const auto bad = [&cut](absl::string_view what) {
    return absl::FailedPreconditionError(absl::StrCat("tail of document ",
                                                      static_cast<uint64_t>(cut.document),
                                                      " before byte ", cut.cut_bytes, ": ", what));
  };
  if (shared_segments < 0 || shared_segments > static_cast<int64_t>(document.segments.size())) {
    return bad(absl::StrCat(shared_segments, " shared segments of ", document.segments.size()));
  }
  auto tail = std::make_shared<Tail>();
  tail->document = document.key;
  tail->cut_bytes = cut.cut_bytes;
  tail->shared_segments = shared_segments;
  int64_t first_chunk = 0;
  if (shared_segments > 0) {
    const SegmentEntry& last = document.segments[shared_segments - 1];
    tail->shared_bytes = last.byte_end;
    first_chunk = last.first_chunk + last.chunk_count;
  }
  LandmarkList landmarks(landmark_bytes, blocks);
  for (const SegmentDerived& segment : segments) {
    if (segment.document != cut.document || segment.segment_index != tail->segment_count() ||
        segment.byte_end > cut.cut_bytes) {
      return bad(absl::StrCat("segment ", segment.segment_index, " up to byte ", segment.byte_end,
                              " of document ", static_cast<uint64_t>(segment.document)));
    }
    SegmentEntry entry = EntryOf(segment);
    entry.first_chunk = first_chunk;
    landmarks.Put({cut.document, segment.segment_index, first_chunk, segment.byte_end,
                   segment.chunk_byte_begin, segment.landmarks.data()});
    first_chunk += entry.chunk_count;
    tail->segments.push_back(entry);
    tail->chunk_byte_begin.push_back(segment.chunk_byte_begin);
    tail->bytes += static_cast<int64_t>(segment.landmarks.size());
  }
  tail->landmarks = landmarks.Snapshot();
  return tail;
}

std::shared_ptr<const Tail> TailCache::Find(DocumentId document, int64_t cut_bytes) {
  const auto it = by_cut_.find({document, cut_bytes});
  if (it == by_cut_.end()) return nullptr;
  tails_.splice(tails_.begin(), tails_, it->second);
  return *it->second;
}

std::shared_ptr<const Tail> TailCache::Find(DocumentId handle) const {
  const auto it = by_handle_.find(handle);
  return it == by_handle_.end() ? nullptr : *it->second;
}

DocumentId TailCache::NewHandle() { return static_cast<DocumentId>(++last_handle_); }

bool TailCache::MakeRoom(int64_t bytes, int64_t bytes_max, std::vector<DocumentId>* gone) {
  for (auto it = tails_.end(); it != tails_.begin() && bytes_ + bytes > bytes_max;) {
    --it;
    // Nobody else has it, and nobody gets it but through this cache.
    if (it->use_count() > 1) continue;
    const auto unused = it++;
    gone->push_back(Evict(unused));
  }
  return bytes_ + bytes <= bytes_max;
}

void TailCache::Add(std::shared_ptr<const Tail> tail) {
  bytes_ += tail->bytes;
  tails_.push_front(std::move(tail));
  const Tail& added = *tails_.front();
  by_handle_[added.handle] = tails_.begin();
  by_cut_[{added.document.document, added.cut_bytes}] = tails_.begin();
}

std::vector<DocumentId> TailCache::EraseOne(DocumentId document, int64_t cut_bytes) {
  const auto it = by_cut_.find({document, cut_bytes});
  if (it == by_cut_.end()) return {};
  return {Evict(it->second)};
}

std::vector<DocumentId> TailCache::Erase(DocumentId document, int64_t beyond_bytes) {
  std::vector<DocumentId> gone;
  for (auto it = by_cut_.upper_bound({document, beyond_bytes});
       it != by_cut_.end() && it->first.first == document;
       it = by_cut_.upper_bound({document, beyond_bytes})) {
    gone.push_back((*it->second)->handle);
    Remove(it->second);
  }
  for (auto it = evicted_.lower_bound({document, DocumentId{}});
       it != evicted_.end() && it->first == document; ++it) {
    gone.push_back(it->second);
  }
  return gone;
}

absl::flat_hash_set<DocumentId> TailCache::evicted() const {
  absl::flat_hash_set<DocumentId> handles;
  for (const auto& [document, handle] : evicted_) handles.insert(handle);
  return handles;
}

void TailCache::ForgetEvicted(const absl::flat_hash_set<DocumentId>& handles) {
  absl::erase_if(evicted_, [&handles](const auto& tail) { return handles.contains(tail.second); });
}

DocumentId TailCache::Evict(Tails::iterator tail) {
  const DocumentId handle = (*tail)->handle;
  evicted_.insert({(*tail)->document.document, handle});
  Remove(tail);
  return handle;
}

void TailCache::Remove(Tails::iterator tail) {
  bytes_ -= (*tail)->bytes;
  by_handle_.erase((*tail)->handle);
  by_cut_.erase({(*tail)->document.document, (*tail)->cut_bytes});
  tails_.erase(tail);
}

}  // namespace mneme
