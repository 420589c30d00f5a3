// Puts a stored segment in its place again, derived once more from its text: how damaged records of
// it are healed while readers go on.

#ifndef MNEME_ENGINE_SEGMENT_RESTORER_H_
#define MNEME_ENGINE_SEGMENT_RESTORER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/segmenter.h"
#include "memory_store/memory_store.h"
#include "model/model.h"

namespace mneme {

// The segment with landmarks and pages, as it was when it was derived first. Errors of
// MemoryStore::GetSegment, ReadSegmentTokens and the model.
absl::StatusOr<SegmentDerived> DeriveSegmentAgain(const Model& model, const SegmentShape& shape,
                                                  const MemoryStore& store, DocumentId document,
                                                  int64_t segment_index);

// The same, put in its place; without its pages unless `with_pages`. OK when the segment has gone
// or was replaced meanwhile: then it needs no healing.
absl::Status RestoreSegment(const Model& model, const SegmentShape& shape, MemoryStore& store,
                            DocumentId document, int64_t segment_index, bool with_pages);

}  // namespace mneme

#endif  // MNEME_ENGINE_SEGMENT_RESTORER_H_
