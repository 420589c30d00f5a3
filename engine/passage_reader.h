// PassageReader: chunks that were chosen -> passages with document, byte range and text.

#ifndef MNEME_ENGINE_PASSAGE_READER_H_
#define MNEME_ENGINE_PASSAGE_READER_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/container/flat_hash_set.h"
#include "absl/container/node_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/engine.h"
#include "engine/read_batcher.h"
#include "engine/read_environment.h"
#include "memory_store/memory_store.h"

namespace mneme {

// For one call. Thread-compatible. Borrows the environment and the sources.
class PassageReader {
 public:
  // `sources`: what is read, ordered as ResolvedMemories has it.
  PassageReader(const ReadEnvironment& environment, absl::Span<const NamedSource> sources)
      : store_(environment.store),
        damaged_counter_(environment.metrics.passages_damaged),
        sources_(sources) {}

  // Text of the chunk, kept as long as this reader; null when no source has it any more or it is
  // damaged. Read takes it from here, and is who counts the damage: a chunk whose text was read to
  // judge it need not be one that is missed.
  const std::string* TextOf(const ChunkHit& hit);
  // Nothing when the document is gone or its text is damaged: the answer goes on without it.
  // `context_bytes` of text on both sides are added to the text, not to the range.
  std::optional<Passage> Read(const ChunkHit& hit, bool with_text, int context_bytes);
  // Chunks left out because their text is damaged, each once.
  int64_t damaged_count() const { return static_cast<int64_t>(damaged_.size()); }

 private:
  // Of a chunk of a document that was written into `home`: by the first source of that memory, else
  // the first of all, that has the chunk's text. A source that has the document, but had less of it
  // at its moment, does not name what came later. Nothing if none has it any more.
  std::optional<std::string> NameOf(const ChunkText& chunk, MemoryId home) const;
  // With so much on both sides; `durable_bytes` of its document. Errors of MemoryStore::ReadText.
  absl::StatusOr<std::string> ReadText(const ChunkText& chunk, int64_t durable_bytes,
                                       int context_bytes) const;

  const MemoryStore& store_;
  Counter& damaged_counter_;
  const absl::Span<const NamedSource> sources_;
  absl::flat_hash_set<ChunkAddress> damaged_;
  absl::node_hash_map<ChunkAddress, absl::StatusOr<std::string>> kept_;  // of TextOf
};

}  // namespace mneme

#endif  // MNEME_ENGINE_PASSAGE_READER_H_
