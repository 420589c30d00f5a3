// DocumentSource: the stored text of one document, read in pieces and cut into groups of segments
// that are stored together. The same path serves live ingest, recovery and repair of what was
// derived.

#ifndef MNEME_ENGINE_DOCUMENT_SOURCE_H_
#define MNEME_ENGINE_DOCUMENT_SOURCE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/segmenter.h"
#include "memory_store/memory_store.h"
#include "model/model.h"

namespace mneme {

// Consecutive segments of one document that become visible in one step: nearly always one.
struct SegmentGroup {
  DocumentId document{};
  std::vector<Segment> segments;
  // Ends with a segment cut as though the text ended there.
  bool open = false;

  int64_t byte_end() const { return segments.back().byte_end; }
  int64_t token_count() const;
};

// Thread-compatible. Borrows everything.
class DocumentSource {
 public:
  // Goes on from the last stored segment of the document, whose tokens come again once there is
  // text beyond it. Errors of the store; NOT_FOUND when the document is gone.
  static absl::StatusOr<std::unique_ptr<DocumentSource>> Open(const Model& model,
                                                              const SegmentShape& shape,
                                                              const MemoryStore& store,
                                                              DocumentId document);

  // Text up to here has been read and encoded.
  int64_t read_bytes() const { return segmenter_->fed_bytes(); }
  // Text up to here is in stored segments or in groups handed out.
  int64_t taken_bytes() const { return taken_bytes_; }

  // The next group: whole segments, or, with `take_open` and when no whole one is left in the text
  // up to durable_bytes, the open rest. Nothing when there is neither. Groups never end before the
  // one handed out before did, so what is visible never shrinks. Errors of the store leave the
  // source as it was: ask again. DATA_LOSS when the text is damaged.
  absl::StatusOr<std::optional<SegmentGroup>> Next(int64_t durable_bytes, bool take_open);

 private:
  DocumentSource(const Model& model, const SegmentShape& shape, const MemoryStore& store,
                 DocumentId document)
      : model_(model), shape_(shape), store_(store), document_(document) {}

  // Begins again before the first segment when the tokens before it turn out to be unsettled.
  absl::Status BeginAt(int64_t segment_index);

  const Model& model_;
  const SegmentShape& shape_;
  const MemoryStore& store_;
  const DocumentId document_;
  std::unique_ptr<Segmenter> segmenter_;
  int64_t taken_bytes_ = 0;
  std::vector<Segment> held_;  // whole, but ending before taken_bytes_
};

// The tokens of a stored segment, as they were when it was derived. DATA_LOSS when the text is
// damaged or does not give as many; NOT_FOUND when the document is gone.
absl::StatusOr<std::vector<TokenId>> ReadSegmentTokens(const Model& model,
                                                       const SegmentShape& shape,
                                                       const MemoryStore& store,
                                                       const SegmentDerived& segment);

// The first tokens of a stored segment: at least those of its first `chunks` chunks, of which it
// has as many. Reads and encodes no more text than that needs where it can. Errors as
// ReadSegmentTokens.
absl::StatusOr<std::vector<TokenId>> ReadFirstTokens(const Model& model, const SegmentShape& shape,
                                                     const MemoryStore& store,
                                                     const SegmentDerived& segment, int64_t chunks);

}  // namespace mneme

#endif  // MNEME_ENGINE_DOCUMENT_SOURCE_H_
