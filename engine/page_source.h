// PageSource: the pages that readers attend to, pinned; those that are in no tier or damaged are
// derived again from the text of their segment, and the query goes on.

#ifndef MNEME_ENGINE_PAGE_SOURCE_H_
#define MNEME_ENGINE_PAGE_SOURCE_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/engine_metrics.h"
#include "engine/segmenter.h"
#include "kernels/cpu/thread_pool.h"
#include "memory_store/memory_store.h"
#include "model/model.h"

namespace mneme {

// Pages of the chunks asked for. Move-only.
struct ReaderPages {
  PinnedPages pinned;
  // One per chunk asked for; null where the document was deleted or its text is damaged: the reader
  // goes on without.
  std::vector<const uint8_t*> pages;
};

// Thread-safe. What it borrows must outlive it.
class PageSource {
 public:
  // `threads`: of those that read and encode text, each segment in one of them.
  PageSource(const Model& model, const SegmentShape& shape, MemoryStore& store,
             EngineMetrics& metrics, int threads)
      : model_(model), shape_(shape), store_(store), metrics_(metrics), pool_(threads) {}

  // `mass`: the weight that readers give to each. RESOURCE_EXHAUSTED when so many pages cannot be
  // pinned at one time. Errors of the model.
  absl::StatusOr<ReaderPages> Pin(absl::Span<const ChunkAddress> chunks,
                                  absl::Span<const float> mass);

  const PageChanges& changes() const { return store_.page_changes(); }

 private:
  // One segment of which pages are missing.
  struct Rederivation;

  // Derives these pages again: of each segment its beginning, up to the last chunk that they depend
  // on, or all of it where pages are kept on disk. Pages of damaged or deleted documents stay
  // missing.
  absl::Status Rederive(absl::Span<const ChunkAddress> missing);
  // The tokens to derive them from.
  absl::Status ReadTokens(Rederivation* work) const;
  // The same; where they are not to be had it says so in the log and leaves none.
  void TryReadTokens(Rederivation* work) const;
  // Those that have tokens: through the network together, and into the store.
  absl::Status Derive(absl::Span<Rederivation> batch);

  const Model& model_;
  const SegmentShape& shape_;
  MemoryStore& store_;
  EngineMetrics& metrics_;
  ThreadPool pool_;
};

}  // namespace mneme

#endif  // MNEME_ENGINE_PAGE_SOURCE_H_
