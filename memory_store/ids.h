// Identities inside the store. Both count up from 1 and are never used again, so the order of
// DocumentIds is the order in which documents began: that order alone decides which of two equal
// matches is newer.

#ifndef MNEME_MEMORY_STORE_IDS_H_
#define MNEME_MEMORY_STORE_IDS_H_

#include <cstdint>

namespace mneme {

enum class MemoryId : uint64_t {};
enum class DocumentId : uint64_t {};

// One chunk of one document: the 64 tokens beginning at token 64 * index.
struct ChunkAddress {
  DocumentId document{};
  int64_t chunk_index = 0;

  friend bool operator==(const ChunkAddress&, const ChunkAddress&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const ChunkAddress& a) {
    return H::combine(std::move(h), static_cast<uint64_t>(a.document), a.chunk_index);
  }
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_IDS_H_
