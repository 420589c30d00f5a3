// Tails: the ends of documents as they were at earlier moments, derived again for who reads the
// past, and kept in memory while somebody reads them and as long after as there is room. Nothing of
// them is ever on disk: their text is the document's.

#ifndef MNEME_MEMORY_STORE_TAIL_CACHE_H_
#define MNEME_MEMORY_STORE_TAIL_CACHE_H_

#include <cstdint>
#include <list>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "memory_store/catalog.h"
#include "memory_store/ids.h"
#include "memory_store/keys.h"
#include "memory_store/landmark_list.h"
#include "memory_store/memory_store.h"

namespace mneme {

// Immutable.
struct Tail {
  DocumentId handle{};
  DocumentKey document;
  int64_t cut_bytes = 0;
  // Segments of the document that go before it, and where they end.
  int64_t shared_segments = 0;
  int64_t shared_bytes = 0;
  std::vector<SegmentEntry> segments;                  // from shared_segments on
  std::vector<std::vector<int64_t>> chunk_byte_begin;  // of each
  std::shared_ptr<const LandmarkSnapshot> landmarks;   // shared with the views that show it
  int64_t bytes = 0;                                   // of the landmarks

  int64_t segment_count() const { return shared_segments + static_cast<int64_t>(segments.size()); }
  int64_t chunk_end() const {
    return segments.empty() ? 0 : segments.back().first_chunk + segments.back().chunk_count;
  }
  // The segment that has a chunk of the document, by its index there; -1: none of the tail.
  int64_t SegmentOf(int64_t chunk) const;
};

// A tail without a handle: `segments` follow the first `shared_segments` of the document.
// FAILED_PRECONDITION when they do not.
absl::StatusOr<std::shared_ptr<Tail>> MakeTail(const DocumentEntry& document,
                                               const DocumentCut& cut, int64_t shared_segments,
                                               absl::Span<const SegmentDerived> segments,
                                               int64_t landmark_bytes, LandmarkBlocks* blocks);

// Thread-compatible: guarded by its owner's lock.
class TailCache {
 public:
  // Null when it is not here. The first makes it the one used last.
  std::shared_ptr<const Tail> Find(DocumentId document, int64_t cut_bytes);
  std::shared_ptr<const Tail> Find(DocumentId handle) const;
  DocumentId NewHandle();

  // Lets tails go that nobody uses, the least recently used first, until `bytes` more fit into
  // `bytes_max`; false when those in use leave no room. `gone` gets the handles.
  bool MakeRoom(int64_t bytes, int64_t bytes_max, std::vector<DocumentId>* gone);
  void Add(std::shared_ptr<const Tail> tail);
  // Lets go of the tail of one cut, whoever uses it; its handle, if there was one.
  std::vector<DocumentId> EraseOne(DocumentId document, int64_t cut_bytes);
  // Lets go of the tails of a document that end after a byte, whoever uses them; their handles, and
  // those of its evicted tails.
  std::vector<DocumentId> Erase(DocumentId document, int64_t beyond_bytes);

  // Tails that made room for others, or way for one of the same cut, and whose pages somebody may
  // still have pinned: a deletion of their document has to wait for them too.
  absl::flat_hash_set<DocumentId> evicted() const;
  // Nobody has pages of these.
  void ForgetEvicted(const absl::flat_hash_set<DocumentId>& handles);

  int64_t bytes() const { return bytes_; }

 private:
  using Tails = std::list<std::shared_ptr<const Tail>>;  // shared with who reads them
  DocumentId Evict(Tails::iterator tail);
  void Remove(Tails::iterator tail);

  Tails tails_;  // used last first
  absl::flat_hash_map<DocumentId, Tails::iterator> by_handle_;
  absl::btree_map<std::pair<DocumentId, int64_t>, Tails::iterator> by_cut_;
  absl::btree_set<std::pair<DocumentId, DocumentId>> evicted_;  // document, handle
  uint64_t last_handle_ = static_cast<uint64_t>(kFirstTail);
  int64_t bytes_ = 0;
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_TAIL_CACHE_H_
