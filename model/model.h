// The RAMba network, cut exactly where it touches memory, so that no I/O hides inside a forward
// pass:
//
//   ingest:  ForwardLower(segments)                      -> landmarks and pages of whole chunks
//   reader:  ReadLower(steps) -> queries -> [selection by the memory store, pages pinned] ->
//   ReadUpper -> logits, or CorrectScores -> scores after a second look
//
// Sources: arXiv 2405.21060 (Mamba-2, SSD), arXiv 2504.16795 (HSA, RAMba), docs/model.md.

#ifndef MNEME_MODEL_MODEL_H_
#define MNEME_MODEL_MODEL_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "model/bundle.h"
#include "model/config.h"

namespace mneme {

// Arithmetic of matrix products and of what is stored for each chunk.
enum class Precision {
  kF32,   // float32 throughout, the oracle; pages and landmarks stored as f32
  kBf16,  // bf16 operands, f32 accumulation; pages and landmarks stored as bf16
};

struct ModelOptions {
  Precision precision = Precision::kBf16;
};

// How one chunk's K and V lie in a page, and one landmark in a row. K [S, D] then V [S, D],
// row-major, no gaps.
struct PageLayout {
  DType dtype = DType::kBf16;
  int chunk_tokens = 0;  // S
  int kv_dim = 0;        // D (n_kv_heads = 1)
  int landmark_dim = 0;  // R

  int64_t page_bytes() const { return int64_t{2} * chunk_tokens * kv_dim * DTypeBytes(dtype); }
  int64_t landmark_bytes() const { return int64_t{landmark_dim} * DTypeBytes(dtype); }
};

// Chunks of a segment whose pages are wanted, those that it has of them.
struct PageRange {
  int begin = 0;
  int end = std::numeric_limits<int>::max();
};

// What ingest leaves of one segment, in host memory, layout as PageLayout.
struct SegmentChunks {
  int chunk_count = 0;
  std::vector<uint8_t> pages;      // [chunks of the range that was asked for, page_bytes]
  std::vector<uint8_t> landmarks;  // [chunk_count, landmark_bytes]
};

// Recurrent state of one reader: conv and SSM state of all layers, starting at zero. Owned by the
// caller. Thread-compatible; copyable through Clone (a fork of the reader).
class ReaderState {
 public:
  virtual ~ReaderState() = default;
  virtual std::unique_ptr<ReaderState> Clone() const = 0;
};

// One reader's next tokens in a batch of readers: 1 token (decode) or many (prompt).
struct ReaderStep {
  ReaderState* state = nullptr;
  absl::Span<const TokenId> ids;
};

// Lower half of a batch of readers; rows of all steps one after the other, f32, in the backend's
// memory, for operations of the thread that asked for them. Filled again and again, they keep what
// memory they have.
struct LowerRows {
  int64_t row_count = 0;
  Buffer hidden;   // [row_count, d_model], lower hidden states
  Buffer queries;  // [row_count, landmark_dim], scaled: the score of a chunk is the plain dot
                   // product with its landmark
};

// What one row (token) of a reader reads: its chunks, most recent first, at most chunks_per_read.
struct RowSelection {
  absl::Span<const uint8_t* const> pages;  // pinned pages, layout as PageLayout
  absl::Span<const float> weights;         // as ChunkWeights makes them; with look_heads not read
  // With look_heads, of each page: the landmark score of its chunk, less told_penalty where the
  // answer has told it. The weights are then those of the second look, as though chunks without a
  // page here had not been chosen.
  absl::Span<const float> scores;
  // The pages are memory of the backend; else a backend with memory of its own copies them there.
  bool pages_resident = false;
};

// What is wanted of the upper half: logits of every row, of each step's last row, or only the most
// likely token behind each step.
enum class LogitRows { kAll, kLastOfStep, kBestOfStep };

struct UpperRows {
  std::vector<float> logits;  // [rows or steps, vocab_size]; empty with kBestOfStep
  std::vector<TokenId> best;  // [steps], with kBestOfStep: of equal logits the smallest id
  // [rows, chunks_per_read]: weights that the second look gave each row's pages, behind them 0;
  // empty where look_heads is 0.
  std::vector<float> weights;
};

// Thread rule: const methods may be called from any number of threads; calls share the backend's
// worker threads.
class Model {
 public:
  virtual ~Model() = default;

  // Takes the bundle over. `backend` must outlive the model.
  static absl::StatusOr<std::unique_ptr<Model>> Create(std::unique_ptr<Bundle> bundle,
                                                       Backend& backend,
                                                       const ModelOptions& options);

  virtual const Bundle& bundle() const = 0;
  const ModelConfig& config() const { return bundle().config; }
  const Tokenizer& tokenizer() const { return *bundle().tokenizer; }
  virtual PageLayout page_layout() const = 0;
  // Identifies everything derived by this model: bundle fingerprint and storage dtype.
  virtual uint64_t derivation_fingerprint() const = 0;
  // Of the backend's memory: what one reader's state takes, and what one pass through the network
  // works in. There are as many passes at one time as threads that run them.
  virtual int64_t reader_bytes() const = 0;
  virtual int64_t pass_bytes() const = 0;

  // Runs a batch of segments (1 .. segment_size ids each, any documents) through the lower half and
  // the chunk encoder. A last chunk that is not whole is padded with the pad token. out[i] belongs
  // to segments[i]; results do not depend on who shares the batch. INVALID_ARGUMENT for an id
  // outside the vocabulary or a segment of 0 or too many ids. The lower half is causal: a chunk
  // depends on no more than the config's halo_chunks chunks behind it, nor on how many follow
  // those. `pages`: of each segment; empty: all of all.
  virtual absl::Status ForwardLower(absl::Span<const absl::Span<const TokenId>> segments,
                                    absl::Span<const PageRange> pages,
                                    std::vector<SegmentChunks>* out) const = 0;
  absl::Status ForwardLower(absl::Span<const absl::Span<const TokenId>> segments,
                            std::vector<SegmentChunks>* out) const {
    return ForwardLower(segments, {}, out);
  }

  virtual std::unique_ptr<ReaderState> NewReaderState() const = 0;

  // Advances each reader's lower half by its ids.
  virtual absl::Status ReadLower(absl::Span<const ReaderStep> steps, LowerRows* out) const = 0;

  // Advances each reader's upper half over the rows that ReadLower returned for the same steps;
  // selections[r] belongs to row r (empty: the row reads no memory). After an error it is not known
  // how far each state has come.
  virtual absl::Status ReadUpper(absl::Span<const ReaderStep> steps, const LowerRows& lower,
                                 absl::Span<const RowSelection> selections, LogitRows which,
                                 UpperRows* out) const = 0;

  // The second look alone, without the upper half: row r of `hidden` (of LowerRows; rows of any
  // readers, a row as often as it has more chunks than one selection may name) corrects the scores
  // of selections[r]. `scores` gets [rows, chunks_per_read], behind a row's pages minus infinity; a
  // chunk's does not depend on which others it is looked at with. FAILED_PRECONDITION where
  // look_heads is 0.
  virtual absl::Status CorrectScores(const float* hidden, absl::Span<const RowSelection> selections,
                                     std::vector<float>* scores) const = 0;
};

}  // namespace mneme

#endif  // MNEME_MODEL_MODEL_H_
