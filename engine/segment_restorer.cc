#include "engine/segment_restorer.h"

#include <utility>
#include <vector>

#include "common/status_macros.h"
#include "engine/document_source.h"

namespace mneme {

absl::StatusOr<SegmentDerived> DeriveSegmentAgain(const Model& model, const SegmentShape& shape,
                                                  const MemoryStore& store, DocumentId document,
                                                  int64_t segment_index) {
  ASSIGN_OR_RETURN(SegmentDerived segment, store.GetSegment(document, segment_index));
  ASSIGN_OR_RETURN(const std::vector<TokenId> ids, ReadSegmentTokens(model, shape, store, segment));
  const absl::Span<const TokenId> span = ids;
  std::vector<SegmentChunks> chunks;
  RETURN_IF_ERROR(model.ForwardLower(absl::MakeConstSpan(&span, 1), &chunks));
  segment.landmarks = std::move(chunks[0].landmarks);
  segment.pages = std::move(chunks[0].pages);
  return segment;
}

absl::Status RestoreSegment(const Model& model, const SegmentShape& shape, MemoryStore& store,
                            DocumentId document, int64_t segment_index, bool with_pages) {
  absl::StatusOr<SegmentDerived> segment =
      DeriveSegmentAgain(model, shape, store, document, segment_index);
  absl::Status status = segment.status();
  if (segment.ok()) {
    if (!with_pages) segment->pages.clear();
    status = store.RestoreSegment(*segment);
  }
  if (absl::IsNotFound(status) || absl::IsFailedPrecondition(status)) return absl::OkStatus();
  return status;
}

}  // namespace mneme
