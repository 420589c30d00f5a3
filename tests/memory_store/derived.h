// For tests: derived segments with made-up contents that depend on text and position alone, so that
// what a test reads back can be told from anything else.

#ifndef MNEME_TESTS_MEMORY_STORE_DERIVED_H_
#define MNEME_TESTS_MEMORY_STORE_DERIVED_H_

#include <cstdint>
#include <vector>

#include "memory_store/memory_store.h"

namespace mneme {

// Byte `position` of what stands for a chunk: `what` tells landmarks, pages and versions apart.
inline uint8_t MadeUpByte(DocumentId document, int64_t chunk, int64_t version, int what,
                          int64_t position) {
  uint64_t x = static_cast<uint64_t>(document) * 0x9e3779b97f4a7c15u +
               static_cast<uint64_t>(chunk) * 0xbf58476d1ce4e5b9u +
               static_cast<uint64_t>(version) * 0x94d049bb133111ebu +
               static_cast<uint64_t>(what) * 0xd6e8feb86659fd93u + static_cast<uint64_t>(position);
  x ^= x >> 31;
  x *= 0xff51afd7ed558ccdu;
  return static_cast<uint8_t>(x >> 56);
}

inline std::vector<uint8_t> MadeUpLandmark(DocumentId document, int64_t chunk, int64_t version,
                                           int64_t bytes) {
  std::vector<uint8_t> out(bytes);
  for (int64_t i = 0; i < bytes; ++i) out[i] = MadeUpByte(document, chunk, version, 1, i);
  return out;
}

inline std::vector<uint8_t> MadeUpPage(DocumentId document, int64_t chunk, int64_t version,
                                       int64_t bytes) {
  std::vector<uint8_t> out(bytes);
  for (int64_t i = 0; i < bytes; ++i) out[i] = MadeUpByte(document, chunk, version, 2, i);
  return out;
}

// A segment of `chunk_count` chunks over bytes [byte_begin, byte_end), the first of them chunk
// `first_chunk` of its document. Versions are told apart by byte_end.
inline SegmentDerived MadeUpSegment(const MemoryStoreOptions& options, DocumentId document,
                                    int64_t segment_index, int64_t first_chunk, int64_t chunk_count,
                                    int64_t byte_begin, int64_t byte_end, bool with_pages = true) {
  SegmentDerived segment;
  segment.document = document;
  segment.segment_index = segment_index;
  segment.derivation_fingerprint = options.derivation_fingerprint;
  segment.encode_from_byte = byte_begin;
  segment.skip_tokens = static_cast<int32_t>(segment_index % 3);
  segment.token_count = static_cast<int32_t>(chunk_count * 64);
  segment.byte_begin = byte_begin;
  segment.byte_end = byte_end;
  for (int64_t c = 0; c < chunk_count; ++c) {
    segment.chunk_byte_begin.push_back(byte_begin + (byte_end - byte_begin) * c / chunk_count);
    const auto landmark =
        MadeUpLandmark(document, first_chunk + c, byte_end, options.landmark_bytes);
    segment.landmarks.insert(segment.landmarks.end(), landmark.begin(), landmark.end());
    if (!with_pages) continue;
    const auto page = MadeUpPage(document, first_chunk + c, byte_end, options.page_bytes);
    segment.pages.insert(segment.pages.end(), page.begin(), page.end());
  }
  return segment;
}

}  // namespace mneme

#endif  // MNEME_TESTS_MEMORY_STORE_DERIVED_H_
