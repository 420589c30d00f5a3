// PassageReader: chunks that were chosen -> passages with document, byte range and text.

#ifndef MNEME_ENGINE_PASSAGE_READER_H_
#define MNEME_ENGINE_PASSAGE_READER_H_

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/engine.h"
#include "engine/read_batcher.h"
#include "memory_store/memory_store.h"

namespace mneme {

// For one call. Thread-compatible. Borrows the store and the names.
class PassageReader {
 public:
  // `memory_names`: full names of the memories that are read.
  PassageReader(const MemoryStore& store,
                const absl::flat_hash_map<MemoryId, std::string>& memory_names)
      : store_(store), memory_names_(memory_names) {
    for (const auto& [memory, name] : memory_names_) memories_.push_back(memory);
    std::sort(memories_.begin(), memories_.end());
  }

  // Nothing when the document is gone or its text is damaged: the answer goes on without it.
  // `context_bytes` of text on both sides are added to the text, not to the range.
  std::optional<Passage> Read(const ChunkHit& hit, bool with_text, int context_bytes);

 private:
  // As this memory has it; nothing if it does not.
  std::optional<std::string> NameOf(DocumentId document, MemoryId memory) const;

  const MemoryStore& store_;
  const absl::flat_hash_map<MemoryId, std::string>& memory_names_;
  std::vector<MemoryId> memories_;  // ascending
};

}  // namespace mneme

#endif  // MNEME_ENGINE_PASSAGE_READER_H_
