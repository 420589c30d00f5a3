#include "engine/page_source.h"

#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "engine/document_source.h"

namespace mneme {
namespace {

// A segment may be replaced, or its pages leave the host tier again, while we derive it.
constexpr int kRederiveMax = 3;

}  // namespace

absl::StatusOr<ReaderPages> PageSource::Pin(absl::Span<const ChunkAddress> chunks) {
  ReaderPages result;
  result.pages.assign(chunks.size(), nullptr);
  // Positions in `chunks` of what can be had.
  std::vector<size_t> wanted(chunks.size());
  for (size_t i = 0; i < wanted.size(); ++i) wanted[i] = i;
  int rederived = 0;
  while (!wanted.empty()) {
    std::vector<ChunkAddress> addresses;
    addresses.reserve(wanted.size());
    for (size_t i : wanted) addresses.push_back(chunks[i]);
    absl::StatusOr<PinnedPages> pinned = store_.Pin(addresses);
    if (absl::IsNotFound(pinned.status())) {
      const size_t before = wanted.size();
      std::erase_if(wanted, [&](size_t i) { return !store_.GetDocument(chunks[i].document).ok(); });
      if (wanted.size() == before) return pinned.status();
      continue;
    }
    if (!pinned.ok()) return pinned.status();
    if (!pinned->missing().empty() && rederived < kRederiveMax) {
      // The pins of this try are gone before the next: the pages must fit once, not twice.
      const std::vector<ChunkAddress> missing(pinned->missing().begin(), pinned->missing().end());
      pinned = absl::UnknownError("let go");
      RETURN_IF_ERROR(Rederive(missing));
      ++rederived;
      continue;
    }
    for (size_t at = 0; at < wanted.size(); ++at) result.pages[wanted[at]] = pinned->pages()[at];
    result.pinned = *std::move(pinned);
    break;
  }
  for (const uint8_t* page : result.pages) {
    if (page == nullptr) metrics_.pages_unavailable.Increment();
  }
  return result;
}

absl::Status PageSource::Rederive(absl::Span<const ChunkAddress> missing) {
  const int64_t segment_chunks = shape_.segment_tokens / shape_.chunk_tokens;
  std::set<std::pair<DocumentId, int64_t>> segments;
  for (const ChunkAddress& chunk : missing) {
    segments.emplace(chunk.document, chunk.chunk_index / segment_chunks);
  }
  for (const auto& [document, index] : segments) {
    const auto give_up = [&, id = document, number = index](const absl::Status& status) {
      if (absl::IsDataLoss(status)) metrics_.documents_damaged.Increment();
      LogWarning("engine", "pages of a segment could not be derived again",
                 {{"document", absl::StrCat(static_cast<uint64_t>(id))},
                  {"segment", absl::StrCat(number)},
                  {"status", status.ToString()}});
    };
    const absl::StatusOr<SegmentDerived> segment = store_.GetSegment(document, index);
    if (!segment.ok()) {
      give_up(segment.status());
      continue;
    }
    const absl::StatusOr<std::vector<TokenId>> ids =
        ReadSegmentTokens(model_, shape_, store_, *segment);
    if (!ids.ok()) {
      give_up(ids.status());
      continue;
    }
    const absl::Span<const TokenId> span = *ids;
    std::vector<SegmentChunks> chunks;
    RETURN_IF_ERROR(model_.ForwardLower(absl::MakeConstSpan(&span, 1), &chunks));
    const absl::Status put = store_.PutPages(document, index, chunks[0].pages, segment->byte_end);
    if (!put.ok()) {
      give_up(put);
      continue;
    }
    metrics_.pages_rederived.Increment(chunks[0].chunk_count);
  }
  return absl::OkStatus();
}

}  // namespace mneme
