// ToldChunks: what a reader's answer has told already, so that a list tells each chunk once.
//
// Values of an answer stand one a line. The chunk that a value was read from, that with the
// greatest sum of weights over the value's tokens, is told from the end of its line on until the
// answer ends, and scores lower by the network's told_penalty (docs/model.md). `<a>` begins an
// answer and its first value, each line's end the next value; `<q>` and `<doc>` end the answer.

#ifndef MNEME_ENGINE_TOLD_CHUNKS_H_
#define MNEME_ENGINE_TOLD_CHUNKS_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/types/span.h"
#include "model/bundle.h"

namespace mneme {

// One reader's. Chunks are named by their index in the one view that the reader has.
// Thread-compatible.
class ToldChunks {
 public:
  // Of a reader that begins; null where told_penalty is 0.
  static std::unique_ptr<ToldChunks> Of(const Bundle& bundle);

  // How many of `ids`, the reader's next tokens, may go in one step, at least 1 if there are any:
  // what is told changes only with the first token of a step.
  size_t StepTokens(absl::Span<const TokenId> ids) const;

  // The reader's next step, no more than StepTokens allows, before its chunks are weighed. What the
  // step before read has been counted.
  void BeginStep(absl::Span<const TokenId> ids);
  // For all rows of the step.
  bool Contains(int64_t chunk) const { return told_.contains(chunk); }
  // A row of the step, counted from its first, read the chunk with this weight. Once for each chunk
  // of each row.
  void Count(size_t row, int64_t chunk, double weight);

 private:
  explicit ToldChunks(const Bundle& bundle);
  // A token that, in an answer, changes what is told.
  bool IsMark(TokenId id) const;
  // Whether the token is part of an answer, given whether the token before it is.
  bool InAnswer(bool before, TokenId id) const;
  // What the value was read from is told, and the next value begins.
  void EndValue();
  void Forget();

  const TokenId question_id_, answer_id_, document_id_, line_end_id_;
  bool in_answer_ = false;                       // the reader's last token
  size_t first_counted_ = 0;                     // row of the step; those before it are of no value
  absl::flat_hash_map<int64_t, double> totals_;  // weights of the value so far, all above 0
  absl::flat_hash_set<int64_t> told_;
};

}  // namespace mneme

#endif  // MNEME_ENGINE_TOLD_CHUNKS_H_
