#include "engine/passage_reader.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/utf8.h"

namespace mneme {

std::optional<Passage> PassageReader::Read(const ChunkHit& hit, bool with_text, int context_bytes) {
  const ChunkText& chunk = hit.text;
  const absl::StatusOr<DocumentInfo> info = store_.GetDocument(chunk.address.document);
  if (!info.ok()) return std::nullopt;
  const auto memory = memory_names_.find(info->memory);
  if (memory == memory_names_.end()) return std::nullopt;
  Passage passage{.document = absl::StrCat(memory->second, "/documents/", info->id),
                  .chunk_index = chunk.address.chunk_index,
                  .byte_begin = chunk.byte_begin,
                  .byte_end = chunk.byte_end,
                  .score = hit.score,
                  .weight = hit.weight};
  if (with_text) {
    // Of a document, only whole characters are durable; the range's own ends lie between two, those
    // of the context need not.
    const absl::StatusOr<std::string> text = store_.ReadText(
        chunk.address.document, std::max<int64_t>(chunk.byte_begin - context_bytes, 0),
        std::min<int64_t>(chunk.byte_end + context_bytes, info->durable_bytes));
    if (!text.ok()) return std::nullopt;
    passage.text = std::string(WholeUtf8(*text));
  }
  return passage;
}

}  // namespace mneme
