// ReadBatcher: one thread that takes the steps of all readers (questions, prompts, decode steps)
// and runs those that wait at one time together: one pass of the lower half, one scan of the
// landmarks for all readers of the same memories, one pass of the upper half. Streams of greedy
// readers go on by themselves: their next step needs nobody's thread but this one's.

#ifndef MNEME_ENGINE_READ_BATCHER_H_
#define MNEME_ENGINE_READ_BATCHER_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/types/span.h"
#include "common/background_thread.h"
#include "engine/engine_metrics.h"
#include "engine/kept_pages.h"
#include "engine/page_source.h"
#include "engine/read_step.h"
#include "engine/token_stream.h"
#include "kernels/backend.h"
#include "memory_store/memory_store.h"
#include "model/model.h"

namespace mneme {

// Thread-safe. What it borrows must outlive it.
class ReadBatcher {
 public:
  // Tokens of one step, at most: long prompts go in pieces, so that they do not hold up others.
  static constexpr int kStepTokensMax = 256;
  // Rows of one batch, at most (one step always fits).
  static constexpr int64_t kBatchRowsMax = 1024;

  ReadBatcher(const Model& model, Backend& backend, MemoryStore& store, PageSource& pages,
              EngineMetrics& metrics, Supervisor& supervisor);
  // Steps that wait are told UNAVAILABLE.
  ~ReadBatcher();

  // Runs a step and blocks until it is done. NOT_FOUND when a memory is gone; RESOURCE_EXHAUSTED
  // when its pages cannot be pinned; UNAVAILABLE when the engine stops; errors of the model. After
  // an error the state is of no use.
  absl::Status Run(ReadStep& step);

  // While any decode loop of Run runs, batches wait a moment for all of them, so that they stay
  // together.
  void BeginDecode();
  void EndDecode();

  // Advances a stream, in every batch, until its end or EndStream. UNAVAILABLE when the engine
  // stops.
  absl::Status BeginStream(const std::shared_ptr<TokenStream>& stream);
  // For its reader's thread: waits for the next token. Errors as Run has them.
  absl::StatusOr<TokenId> NextToken(TokenStream& stream);
  // The reader wants no more of it; a step that is under way comes to its end.
  void EndStream(const TokenStream& stream);

 private:
  // A step of Run.
  struct Waiting {
    BatchedStep batched;
    // Waiting ones of its batch that are done too, for its thread to tell: telling many takes long.
    std::vector<Waiting*> tells;
    absl::Notification done;
  };
  // What is under way.
  struct Batch {
    std::vector<Waiting*> waiting;
    std::vector<std::shared_ptr<TokenStream>> streams;
    std::vector<BatchedStep*> steps;  // of both
  };
  // Steps whose rows go through the halves of the network together.
  struct Pass {
    std::vector<BatchedStep*> steps;
    LowerRows rows;  // keeps its memory from batch to batch
    int64_t row_count = 0;
  };
  // Chunks of a step's last row that are looked at together, at most chunks_per_read.
  struct RowLook {
    BatchedStep* batched = nullptr;
    absl::Span<ChunkHit> hits;
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
  bool HasWork() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Waits for steps, of which it makes batch_; false when the engine stops.
  bool AwaitBatch(BackgroundThread& thread);
  void TakeBatch() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RunBatch(absl::Span<BatchedStep* const> batch);
  // The batch's streams take up what their steps left.
  void FinishStreams();
  // Tells at most `count` readers that their streams have tokens, those first that wait longest.
  void TellReaders(size_t count);
  void StopAll() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RunLower(Pass& pass);
  // Takes the views that are missing, and scans once for all steps that look at the same one.
  void Select(absl::Span<Pass* const> passes);
  void Scan(const LandmarkView& view, absl::Span<const std::pair<const Pass*, BatchedStep*>> steps);
  // One row's hits, best first: these chunks of `view`, of which `told` (may be null) has been
  // told. `row` holds those of the token before.
  void ChooseChunks(const LandmarkView& view, absl::Span<const int64_t> indices,
                    absl::Span<const float> scores, const ToldChunks* told,
                    std::vector<ChunkHit>* row);
  // What a hit's landmark says to the network.
  float LandmarkScore(const ChunkHit& hit) const;
  // Weights of the network's own selection of a row: of a reranked one by its scores after the
  // second look, chunks without a page not chosen; else by landmark scores.
  void Weigh(absl::Span<ChunkHit> best_first, bool reranked);
  // These rows one after the other: where they lie if they do, else copied into `room`.
  absl::StatusOr<const float*> Gather(absl::Span<const RowRange> ranges, int64_t width,
                                      Buffer* room);
  // The steps that are to be reranked.
  void RunLooks(const Pass& pass);
  absl::Status Look(const Pass& pass, absl::Span<const RowLook> looks);
  void RunUpper(const Pass& pass);
  // What rows read, row by row, begun anew: the network's own selection of these chunks.
  void ClearReads();
  void AddRead(absl::Span<ChunkHit> best_first);
  // Fills selections_ for the rows that were added, with pages that stay until the next call.
  absl::Status FindReads();
  // The weights that a network's second look gave what selections_ name.
  void KeepLookedWeights();
  // What these steps read, for those who count it: FindReadsOf was called for them last, and the
  // weights are the final ones.
  void CountReads(absl::Span<BatchedStep* const> steps) const;
  // All rows of these steps: what they read, and its pages.
  absl::Status FindReadsOf(absl::Span<BatchedStep* const> steps);
  // Upper half of some of a pass's steps, for which FindReadsOf was called last.
  absl::Status Upper(const Pass& pass, absl::Span<BatchedStep* const> steps);

  const Model& model_;
  Backend& backend_;
  MemoryStore& store_;
  EngineMetrics& metrics_;
  // The batch thread's.
  Batch batch_;
  std::deque<std::shared_ptr<TokenStream>> to_tell_;
  // Passes by what they want of the upper half.
  Pass lower_only_, best_tokens_, last_logits_, all_logits_;
  Buffer queries_;       // of a scan whose queries lie apart
  LowerRows regrouped_;  // of some steps of a pass
  Buffer looked_rows_;   // of a rerank
  KeptPages pages_;
  // Scratch that keeps its memory from batch to batch.
  std::vector<std::pair<const Pass*, BatchedStep*>> scanned_;
  std::vector<RowRange> ranges_;
  std::vector<int64_t> indices_;  // of a scan
  std::vector<float> scores_;
  std::vector<ChunkHit> row_before_;
  std::vector<ChunkHit*> selection_;
  std::vector<float> chosen_scores_, weights_;
  std::vector<ReaderStep> reader_steps_;
  std::vector<RowLook> looks_;
  std::vector<float> corrected_;      // of looks
  std::vector<ChunkAddress> chunks_;  // that are read, row by row
  std::vector<ChunkHit*> chunk_hits_;
  std::vector<float> chunk_weights_, chunk_scores_;
  std::vector<const uint8_t*> chunk_pages_;
  std::vector<size_t> row_chunks_;
  std::vector<RowSelection> selections_;
  UpperRows upper_;
  mutable absl::Mutex mutex_;
  absl::CondVar changed_;
  std::deque<Waiting*> queue_ ABSL_GUARDED_BY(mutex_);
  // Those that go on; shared with their readers.
  std::vector<std::shared_ptr<TokenStream>> streams_ ABSL_GUARDED_BY(mutex_);
  // Changed under mutex_; read without it by who waits for work without sleeping.
  std::atomic<int> queued_{0};    // queue_.size()
  std::atomic<int> decoding_{0};  // decode loops of Run under way
  std::atomic<int> awaiting_{0};  // threads in Await
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  BackgroundThread thread_;  // last: it uses all of the above
};

}  // namespace mneme

#endif  // MNEME_ENGINE_READ_BATCHER_H_
