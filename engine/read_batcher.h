// ReadBatcher: one thread that takes the steps of all readers (questions, prompts, decode steps)
// and runs those that wait at one time together: one pass of the lower half, one scan of the
// landmarks for all readers of the same memories, one pass of the upper half.

#ifndef MNEME_ENGINE_READ_BATCHER_H_
#define MNEME_ENGINE_READ_BATCHER_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/types/span.h"
#include "common/background_thread.h"
#include "engine/engine_metrics.h"
#include "engine/page_source.h"
#include "engine/segmenter.h"
#include "kernels/backend.h"
#include "memory_store/memory_store.h"
#include "model/model.h"

namespace mneme {

// The memories that one query reads. The view is taken when its first step runs, and is kept: one
// query sees one moment. Thread-compatible; used by one ReadStep at a time.
struct ReadScope {
  std::vector<MemoryId> memories;  // ascending, each once; empty: none
  std::optional<LandmarkView> view;
};

// A chunk that a row chose.
struct ChunkHit {
  int64_t index = 0;  // in the view
  ChunkText text;
  double score = 0;
  double weight = 0;  // stick-breaking; 0 beyond the network's own selection
};

// One step of one reader.
struct ReadStep {
  enum class Rows { kNone, kLast, kAll };

  // In. Borrowed until Run returns.
  ReaderState* state = nullptr;
  absl::Span<const TokenId> ids;
  ReadScope* scope = nullptr;
  Rows select = Rows::kLast;  // rows whose chunks are chosen; kAll when `upper`
  int k = 0;                  // chunks per row wanted; at least chunks_per_read are looked at
  bool upper = false;         // also run the upper half
  LogitRows logit_rows = LogitRows::kLastOfStep;

  // Out. Of each selected row: chunks, best score first.
  std::vector<std::vector<ChunkHit>> rows;
  std::vector<float> logits;  // [rows or 1, vocab_size], with `upper`; none with kBestOfStep
  TokenId best = 0;           // with kBestOfStep
  double lower_seconds = 0, scan_seconds = 0, upper_seconds = 0;
};

// Thread-safe. What it borrows must outlive it.
class ReadBatcher {
 public:
  // Tokens of one step, at most: long prompts go in pieces, so that they do not hold up others.
  static constexpr int kStepTokensMax = 256;

  ReadBatcher(const Model& model, Backend& backend, MemoryStore& store, PageSource& pages,
              EngineMetrics& metrics, Supervisor& supervisor);
  // Steps that wait are told UNAVAILABLE.
  ~ReadBatcher();

  // Runs a step and blocks until it is done. NOT_FOUND when a memory is gone; RESOURCE_EXHAUSTED
  // when its pages cannot be pinned; UNAVAILABLE when the engine stops; errors of the model. After
  // an error the state is of no use.
  absl::Status Run(ReadStep& step);

  // While any decode loop runs, batches wait a moment for all of them, so that they stay together.
  void BeginDecode();
  void EndDecode();

 private:
  struct Waiting {
    ReadStep* step = nullptr;
    absl::Status status;
    int64_t first_row = 0;  // of the step in its pass
    // Waiting ones of its batch that are done too, for its thread to tell: telling many takes long.
    std::vector<Waiting*> tells;
    absl::Notification done;
  };
  // Steps whose rows go through the halves of the network together.
  struct Pass {
    std::vector<Waiting*> steps;
    LowerRows rows;  // keeps its memory from batch to batch
    int64_t row_count = 0;
  };
  // Rows of a matrix of the backend.
  struct RowRange {
    const float* first = nullptr;
    int64_t count = 0;
  };

  // Until the step is done, or nobody is left to do it.
  absl::Status Await(Waiting& waiting);
  static void TellAll(absl::Span<Waiting* const> batch);
  absl::Status Loop(BackgroundThread& thread);
  std::vector<Waiting*> TakeBatch() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RunBatch(absl::Span<Waiting* const> batch);
  void RunLower(Pass& pass);
  // Takes the views that are missing, and scans once for all steps that look at the same one.
  void Select(absl::Span<Pass* const> passes);
  void Scan(const LandmarkView& view, absl::Span<const std::pair<const Pass*, Waiting*>> steps);
  // These rows one after the other: where they lie if they do, else copied into `room`.
  absl::StatusOr<const float*> Gather(absl::Span<const RowRange> ranges, int64_t width,
                                      Buffer* room);
  void RunUpper(const Pass& pass);
  // Upper half of some of a pass's steps.
  absl::Status Upper(const Pass& pass, absl::Span<Waiting* const> steps);

  const Model& model_;
  Backend& backend_;
  MemoryStore& store_;
  PageSource& pages_;
  EngineMetrics& metrics_;
  // The batch thread's: passes by what they want of the upper half.
  Pass lower_only_, best_tokens_, last_logits_, all_logits_;
  Buffer queries_;       // of a scan whose queries lie apart
  LowerRows regrouped_;  // of some steps of a pass
  mutable absl::Mutex mutex_;
  absl::CondVar changed_;
  std::deque<Waiting*> queue_ ABSL_GUARDED_BY(mutex_);
  // Changed under mutex_; read without it by who waits for work without sleeping.
  std::atomic<int> queued_{0};    // queue_.size()
  std::atomic<int> decoding_{0};  // decode loops under way
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  BackgroundThread thread_;  // last: it uses all of the above
};

}  // namespace mneme

#endif  // MNEME_ENGINE_READ_BATCHER_H_
