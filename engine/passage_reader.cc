#include "engine/passage_reader.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/utf8.h"

namespace mneme {

std::optional<std::string> PassageReader::NameOf(const ChunkText& chunk, MemoryId home) const {
  for (const bool at_home : {true, false}) {
    for (const NamedSource& named : sources_) {
      if ((named.source.memory == home) != at_home) continue;
      const absl::StatusOr<DocumentInfo> info = store_.GetDocument(named.source, chunk.document);
      if (!info.ok() || info->durable_bytes < chunk.byte_end) continue;
      return absl::StrCat(named.name.ToString(), "/documents/", info->id);
    }
  }
  return std::nullopt;
}

absl::StatusOr<std::string> PassageReader::ReadText(const ChunkText& chunk, int64_t durable_bytes,
                                                    int context_bytes) const {
  // Of a document, only whole characters are durable; the range's own ends lie between two, those
  // of the context need not.
  const int64_t text_end = std::min(durable_bytes, chunk.document_end);
  ASSIGN_OR_RETURN(
      const std::string text,
      store_.ReadText(chunk.document, std::max<int64_t>(chunk.byte_begin - context_bytes, 0),
                      std::min<int64_t>(chunk.byte_end + context_bytes, text_end)));
  return std::string(WholeUtf8(text));
}

const std::string* PassageReader::TextOf(const ChunkHit& hit) {
  const auto [it, is_new] = kept_.try_emplace(hit.text.address);
  absl::StatusOr<std::string>& text = it->second;
  if (is_new) {
    const absl::StatusOr<DocumentInfo> info = store_.GetDocument(hit.text.document);
    if (!info.ok()) {
      text = info.status();
    } else if (!NameOf(hit.text, info->memory).has_value()) {
      text = absl::NotFoundError("no source has this text any more");
    } else {
      text = ReadText(hit.text, info->durable_bytes, /*context_bytes=*/0);
    }
  }
  return text.ok() ? &*text : nullptr;
}

std::optional<Passage> PassageReader::Read(const ChunkHit& hit, bool with_text, int context_bytes) {
  const ChunkText& chunk = hit.text;
  if (damaged_.contains(chunk.address)) return std::nullopt;
  const absl::StatusOr<DocumentInfo> info = store_.GetDocument(chunk.document);
  if (!info.ok()) return std::nullopt;
  std::optional<std::string> name = NameOf(chunk, info->memory);
  if (!name.has_value()) return std::nullopt;
  Passage passage{.document = *std::move(name),
                  .chunk_index = chunk.address.chunk_index,
                  .byte_begin = chunk.byte_begin,
                  .byte_end = chunk.byte_end,
                  .score = hit.score,
                  .weight = hit.weight,
                  .rerank_score = hit.rerank_score,
                  .keyword_score = hit.keyword_score};
  if (with_text) {
    const auto kept = kept_.find(chunk.address);
    // What cannot be read cannot be read with more around it.
    const bool is_kept = kept != kept_.end() && (context_bytes == 0 || !kept->second.ok());
    absl::StatusOr<std::string> text =
        is_kept ? kept->second : ReadText(chunk, info->durable_bytes, context_bytes);
    if (absl::IsDataLoss(text.status()) && damaged_.insert(chunk.address).second) {
      damaged_counter_.Increment();
    }
    if (!text.ok()) return std::nullopt;
    passage.text = *std::move(text);
  }
  return passage;
}

}  // namespace mneme
