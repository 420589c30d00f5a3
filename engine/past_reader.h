// PastReader: views of memories as they were, and of forks, which hold a moment of another memory.
// Waits until text that was durable then is visible, and derives the tails: what lies between the
// last whole segment of a document before that moment and the moment itself, as though the text
// ended there. So a question about the past finds exactly what it would have found in a memory of
// that text alone.

#ifndef MNEME_ENGINE_PAST_READER_H_
#define MNEME_ENGINE_PAST_READER_H_

#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "engine/engine.h"
#include "engine/scheduler.h"
#include "engine/segmenter.h"
#include "engine/visibility.h"
#include "memory_store/memory_store.h"
#include "model/model.h"

namespace mneme {

// Thread-safe. What it borrows must outlive it.
class PastReader {
 public:
  struct Options {
    int batch_segments_max = 8;  // of one pass through the network, at least one tail
  };
  PastReader(const Options& options, const Model& model, const SegmentShape& shape,
             MemoryStore& store, Scheduler& scheduler, VisibilityBoard& visibility)
      : options_(options),
        model_(model),
        shape_(shape),
        store_(store),
        scheduler_(scheduler),
        visibility_(visibility) {}

  // Blocks for as long as text of then is not derived. Errors of `context`, of
  // MemoryStore::ViewPast and of the model; RESOURCE_EXHAUSTED when more tails are needed than
  // there is room for; UNAVAILABLE when the engine drains.
  absl::StatusOr<LandmarkView> View(absl::Span<const ReadSource> sources,
                                    const CallContext& context);

 private:
  // A tail as it is to be derived.
  struct TailText {
    DocumentCut cut;
    int64_t shared_segments = 0;
    std::vector<Segment> segments;
  };

  absl::Status AwaitVisible(absl::Span<const DocumentCut> lagging, const CallContext& context);
  // Cuts the text before `cut` into segments, from where it can differ from the document's own.
  absl::StatusOr<TailText> ReadTail(const DocumentCut& cut) const;
  // Only between these two tails are derived. Errors of `context`.
  absl::Status TakeTurn(const CallContext& context);
  void EndTurn();
  // Derives tails of documents that are still there and whole; their handles.
  absl::Status Derive(absl::Span<const DocumentCut> wanting, const CallContext& context,
                      std::vector<TailHandle>* tails);
  absl::Status DeriveBatch(absl::Span<const TailText> batch, std::vector<TailHandle>* tails);

  const Options options_;
  const Model& model_;
  const SegmentShape& shape_;
  MemoryStore& store_;
  Scheduler& scheduler_;
  VisibilityBoard& visibility_;
  absl::Mutex mutex_;
  absl::CondVar turn_ended_;
  // One derives at a time: who waits finds what it made.
  bool deriving_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace mneme

#endif  // MNEME_ENGINE_PAST_READER_H_
