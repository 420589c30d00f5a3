// The landmarks of one memory in host memory, in the order that decides: by document (oldest
// first), then segment.
//
// They lie in blocks of up to kBlockRows rows, like the leaves of a B+-tree: many small documents
// share one block, and a change copies one block at most. A block that a snapshot has seen never
// changes again; a change to it makes a new one. So a snapshot is a list of shared blocks, taken
// without copying a landmark.

#ifndef MNEME_MEMORY_STORE_LANDMARK_LIST_H_
#define MNEME_MEMORY_STORE_LANDMARK_LIST_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "kernels/buffer.h"
#include "kernels/landmark_topk.h"
#include "memory_store/ids.h"

namespace mneme {

// Bytes that begin on a cache line and only grow. Memory that it gives back holds none of them:
// what is forgotten must not lie about. Thread-compatible.
class CacheLineBytes {
 public:
  CacheLineBytes() = default;
  ~CacheLineBytes() { Wipe(); }
  CacheLineBytes(const CacheLineBytes&) = default;
  CacheLineBytes& operator=(const CacheLineBytes&) = delete;

  void Append(const uint8_t* data, int64_t size);
  void ShrinkToFit() {
    if (lines_.capacity() > lines_.size()) MoveTo(lines_.size());
  }
  const uint8_t* data() const { return reinterpret_cast<const uint8_t*>(lines_.data()); }

 private:
  struct alignas(64) Line {
    uint8_t bytes[64];
  };

  void Wipe();
  // Moves the lines to memory for `capacity` of them.
  void MoveTo(size_t capacity);

  std::vector<Line> lines_;  // moved as blocks of memory, as a vector of bytes would not be
  int64_t size_ = 0;
};

// A block's rows in a device's memory, or nothing yet (device_landmarks.h). Belongs to one block:
// a copy of the block begins with none.
struct DeviceRows {
  DeviceRows() = default;
  DeviceRows(const DeviceRows&) {}
  DeviceRows& operator=(const DeviceRows&) = delete;

  std::shared_ptr<const Buffer> rows;  // shared by nobody: it is released in its own way
};

// Rows of consecutive segments. Thread-compatible; immutable once a snapshot holds it, but for
// device_copy, which DeviceLandmarks guards.
struct LandmarkBlock {
  struct Segment {
    DocumentId document{};
    int64_t segment_index = 0;
    int64_t first_chunk = 0;  // of the document
    int64_t byte_end = 0;
    int64_t first_row = 0;  // of the block
    int64_t row_count = 0;  // one a chunk, more than 0
  };

  std::vector<Segment> segments;    // ascending (document, segment_index)
  std::vector<int64_t> byte_begin;  // [row_count], first byte of each chunk
  CacheLineBytes rows;              // [row_count, landmark_bytes]
  bool in_snapshot = false;
  mutable DeviceRows device_copy;

  int64_t row_count() const { return static_cast<int64_t>(byte_begin.size()); }
};

// Every block of a store, as long as somebody holds it: tells whether anybody still has the
// landmarks of a document that is gone. Thread-compatible: guarded by its owner's lock.
class LandmarkBlocks {
 public:
  void Add(const std::shared_ptr<LandmarkBlock>& block);
  // Those of `documents` that some block has.
  absl::flat_hash_set<DocumentId> Held(const absl::flat_hash_set<DocumentId>& documents) const;

 private:
  std::vector<std::weak_ptr<const LandmarkBlock>> blocks_;
  size_t prune_at_ = 64;  // blocks from which those that are gone are left out
};

// Part of a block: segments [segment_begin, segment_end).
struct LandmarkRun {
  std::shared_ptr<const LandmarkBlock> block;  // shared by the list and its snapshots
  size_t segment_begin = 0;
  size_t segment_end = 0;
  int64_t first_index = 0;  // index of its first row in the snapshot
};

// Immutable; thread-safe.
struct LandmarkSnapshot {
  std::vector<LandmarkRun> runs;
  std::vector<LandmarkSlab> slabs;  // one a run
  int64_t chunk_count = 0;

  // Appends a run of segments; first_index and the slab follow from it.
  void Append(std::shared_ptr<const LandmarkBlock> block, size_t segment_begin, size_t segment_end,
              int64_t landmark_bytes);
};

// The segments of a snapshot that `keep` says.
LandmarkSnapshot FilterSnapshot(const LandmarkSnapshot& snapshot,
                                absl::FunctionRef<bool(const LandmarkBlock::Segment&)> keep,
                                int64_t landmark_bytes);

// Interleaves snapshots by document. A document belongs to one of them.
LandmarkSnapshot MergeSnapshots(absl::Span<const std::shared_ptr<const LandmarkSnapshot>> snapshots,
                                int64_t landmark_bytes);

// One segment's landmarks, borrowed.
struct LandmarkSegment {
  DocumentId document{};
  int64_t segment_index = 0;
  int64_t first_chunk = 0;
  int64_t byte_end = 0;
  absl::Span<const int64_t> byte_begin;  // [chunk_count]
  const uint8_t* rows = nullptr;         // [chunk_count, landmark_bytes]
};

// Thread-compatible: guarded by its owner's lock.
class LandmarkList {
 public:
  static constexpr int64_t kBlockRows = 512;

  // `blocks` gets every block that the list makes; null: nobody asks. It must outlive the list.
  explicit LandmarkList(int64_t landmark_bytes, LandmarkBlocks* blocks = nullptr)
      : landmark_bytes_(landmark_bytes), all_blocks_(blocks) {}

  // Inserts a segment, or replaces the one of the same document and index.
  void Put(const LandmarkSegment& segment);
  // Removes the segments of a document from `segment_index` on.
  void Erase(DocumentId document, int64_t segment_index);
  // First byte of each chunk of a segment; empty when it has none. Valid until the list changes.
  absl::Span<const int64_t> ByteBegin(DocumentId document, int64_t segment_index) const;

  // What the list holds now.
  std::shared_ptr<const LandmarkSnapshot> Snapshot();
  int64_t bytes() const { return row_count_ * landmark_bytes_; }

 private:
  using Block = std::shared_ptr<LandmarkBlock>;

  // Index of the block that holds, or would hold, the key; 0 in an empty list.
  size_t BlockFor(DocumentId document, int64_t segment_index) const;
  // The block's segments, borrowed.
  void Collect(const LandmarkBlock& block, std::vector<LandmarkSegment>* segments) const;
  void AppendRows(const LandmarkSegment& segment, LandmarkBlock* block) const;
  // Replaces blocks [first, last) by new ones of these segments, about equally full.
  void Rebuild(size_t first, size_t last, absl::Span<const LandmarkSegment> segments);

  // A new block, a copy of `block` if there is one.
  Block NewBlock(const LandmarkBlock* block = nullptr) const;

  const int64_t landmark_bytes_;
  LandmarkBlocks* const all_blocks_;  // may be null
  std::vector<Block> blocks_;         // none empty
  int64_t row_count_ = 0;
  std::shared_ptr<const LandmarkSnapshot>
      snapshot_;  // of the list as it is, or null; shared with views
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_LANDMARK_LIST_H_
