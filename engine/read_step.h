// ReadStep: what one reader asks of the batch thread (ReadBatcher), and what it gets.

#ifndef MNEME_ENGINE_READ_STEP_H_
#define MNEME_ENGINE_READ_STEP_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/told_chunks.h"
#include "memory_store/memory_store.h"
#include "model/model.h"

namespace mneme {

// The memories that one query reads. The view is taken when its first step runs, and is kept: one
// query sees one moment. Thread-compatible; used by one ReadStep at a time.
struct ReadScope {
  std::vector<MemoryId> memories;  // ascending, each once; empty: none
  // Not empty: some of them are forks, or wanted as they were, and the view is there from the
  // beginning (see PastReader).
  std::vector<ReadSource> past;
  std::optional<LandmarkView> view;
};

// A chunk that a row chose.
struct ChunkHit {
  int64_t index = 0;  // in the view
  ChunkText text;
  double score = 0;   // of its landmark
  bool told = false;  // as ReadStep::told has it: it is weighed with its score less told_penalty
  // As ChunkWeights makes it; 0 beyond the network's own selection. Of a network that looks again
  // (look_heads) the corrected one once it has looked (the upper half has run, or
  // ReadStep::rerank), before by landmark scores.
  double weight = 0;
  // With ReadStep::rerank: the score after the second look. None where there is no page to look at.
  std::optional<double> rerank_score;
  // Of a retrieval with keywords (RetrieveOptions), once their texts are read; none where the text
  // is not to be had.
  std::optional<double> keyword_score;
};

// One step of one reader.
struct ReadStep {
  enum class Rows { kNone, kLast, kAll };

  // In. Borrowed until the step is done.
  ReaderState* state = nullptr;
  absl::Span<const TokenId> ids;
  ReadScope* scope = nullptr;
  // What the reader's answer has told, with `upper` alone: `ids` are no more than it allows for a
  // step, and it counts what they read. Null: nothing is told.
  ToldChunks* told = nullptr;
  Rows select = Rows::kLast;  // rows whose chunks are chosen; kAll when `upper`
  int k = 0;                  // chunks wanted of the last row; of each at least chunks_per_read
  bool upper = false;         // also run the upper half
  // Also look a second time at all chunks of the last row, without the upper half. Not with
  // `upper`; the network must have look_heads.
  bool rerank = false;
  LogitRows logit_rows = LogitRows::kLastOfStep;

  // Out. Of each selected row: chunks, best score first; of all but the last row chunks_per_read.
  std::vector<std::vector<ChunkHit>> rows;
  std::vector<float> logits;  // [rows or 1, vocab_size], with `upper`; none with kBestOfStep
  TokenId best = 0;           // with kBestOfStep
  double lower_seconds = 0, scan_seconds = 0, upper_seconds = 0;
  double look_seconds = 0;  // with `rerank`; finding the pages counts too
};

// A step on its way through a batch: the batch thread's.
struct BatchedStep {
  ReadStep* step = nullptr;
  absl::Status status;
  int64_t first_row = 0;  // of the step in its pass
};

}  // namespace mneme

#endif  // MNEME_ENGINE_READ_STEP_H_
