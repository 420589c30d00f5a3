// Identities inside the store. Both count up from 1 and are never used again, so the order of
// DocumentIds is the order in which documents began: that order alone decides which of two equal
// matches is newer.

#ifndef MNEME_MEMORY_STORE_IDS_H_
#define MNEME_MEMORY_STORE_IDS_H_

#include <compare>
#include <cstdint>
#include <string>

namespace mneme {

enum class MemoryId : uint64_t {};
enum class DocumentId : uint64_t {};

// In place of a document: the pages of a memory, of all its documents.
inline constexpr DocumentId kPagesOfMemory{~uint64_t{0}};

// What is being forgotten: a document, the pages of a memory (kPagesOfMemory), or (document 0,
// which is none) a whole memory.
struct PurgeId {
  MemoryId memory{};
  DocumentId document{};

  friend auto operator<=>(const PurgeId&, const PurgeId&) = default;
  // "m3", "m3-d17" or "m3-pages".
  std::string ToString() const;
};

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
