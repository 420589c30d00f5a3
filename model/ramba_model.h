// The network on a backend.

#ifndef MNEME_MODEL_RAMBA_MODEL_H_
#define MNEME_MODEL_RAMBA_MODEL_H_

#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/model.h"
#include "model/network_weights.h"
#include "model/workspace.h"

namespace mneme {

// How it runs. A call is cut into passes that do not depend on each other: each segment (or a few,
// where the backend wants many rows at a time), each prompt, and the readers that advance by one
// token together. A pass walks through its rows in tiles, each tile through all layers, so that
// activations stay in the processor's caches; the recurrent state connects the tiles. Memory does
// not grow with the length of a segment or prompt. Where chunks see tokens behind them
// (encoder_halo), the lower hidden states of a whole segment come before its first chunk is
// encoded, and are all that is kept of it.
//
// Thread-safe as Model says.
class RambaModel : public Model {
 public:
  static absl::StatusOr<std::unique_ptr<RambaModel>> Create(std::unique_ptr<Bundle> bundle,
                                                            Backend& backend,
                                                            const ModelOptions& options);

  const Bundle& bundle() const override { return *bundle_; }
  PageLayout page_layout() const override;
  uint64_t derivation_fingerprint() const override;
  int64_t reader_bytes() const override;
  int64_t pass_bytes() const override { return pass_bytes_; }
  using Model::ForwardLower;
  absl::Status ForwardLower(absl::Span<const absl::Span<const TokenId>> segments,
                            absl::Span<const PageRange> pages,
                            std::vector<SegmentChunks>* out) const override;
  std::unique_ptr<ReaderState> NewReaderState() const override;
  absl::Status ReadLower(absl::Span<const ReaderStep> steps, LowerRows* out) const override;
  absl::Status ReadUpper(absl::Span<const ReaderStep> steps, const LowerRows& lower,
                         absl::Span<const RowSelection> selections, LogitRows which,
                         UpperRows* out) const override;
  absl::Status CorrectScores(const float* hidden, absl::Span<const RowSelection> selections,
                             std::vector<float>* scores) const override;

  // What one lower layer left of a segment, for tests against golden values.
  struct LayerTrace {
    std::vector<float> hidden;      // [padded tokens, d_model]
    std::vector<float> conv_state;  // [conv_kernel - 1, conv_dim]
    std::vector<float> ssm_state;   // [H, N, P]
  };
  // ForwardLower of one segment that also tells what each layer left.
  absl::Status TraceSegment(absl::Span<const TokenId> segment, SegmentChunks* chunks,
                            std::vector<LayerTrace>* layers) const;

 private:
  class State;
  // The reference's RMSNorms over heads and landmarks do not follow the config's epsilon.
  static constexpr float kHeadNormEps = 1e-5f;
  // A run of steps that one pass takes: [begin, end), and the row of the whole call where it
  // starts.
  struct StepRange;

  RambaModel(std::unique_ptr<Bundle> bundle, Backend& backend, const ModelOptions& options);

  int64_t LayerStateFloats() const;
  absl::Status CheckIds(absl::Span<const TokenId> ids) const;
  absl::Status CheckSteps(absl::Span<const ReaderStep> steps, int64_t* rows) const;
  absl::Status CheckSelections(absl::Span<const RowSelection> selections) const;

  // `pages` as in ForwardLower.
  absl::Status LowerPass(absl::Span<const absl::Span<const TokenId>> segments,
                         absl::Span<const PageRange> pages, absl::Span<SegmentChunks> out,
                         std::vector<LayerTrace>* trace) const;
  // A tile of a pass, the tokens from `begin` on of its segments, through the lower layers, and the
  // chunks of such a tile, of whose pages and landmarks those that are wanted go to `out`.
  absl::Status LowerTile(Workspace& ws, absl::Span<const absl::Span<const TokenId>> segments,
                         int64_t begin, std::vector<LayerTrace>* trace) const;
  absl::Status EncodeTile(Workspace& ws, absl::Span<const PageRange> pages, int64_t begin,
                          absl::Span<SegmentChunks> out) const;
  absl::Status EncodeChunks(Workspace& ws, int64_t chunks) const;
  // Whether operations on many rows of the residual stream leave them ready for the norm that reads
  // them next. The stream of ingest is then nothing but these rows, in bf16.
  bool norms_ahead() const {
    return activation_dtype_ == DType::kBf16 && config().d_model % 16 == 0 &&
           weights_.norms_inverted;
  }
  NextNorm NextNormOf(const Workspace& ws, const Buffer& weight) const;
  // The counterpart: of a product over rows first_row, first_row + row_step ..
  OperandNorm SquaresOf(const float* squares, int64_t first_row, int64_t row_step) const;
  absl::Status UploadIds(Workspace& ws) const;
  absl::Status EmbedIds(Workspace& ws, bool per_row) const;
  absl::Status MambaLayer(Workspace& ws, const MambaWeights& weights, int64_t rows, int64_t layer,
                          bool per_row) const;
  // Makes look_scores and page_weights of page_scores, by what the pages say to the rows' lower
  // hidden states.
  absl::Status SecondLook(Workspace& ws, int64_t rows, bool per_row) const;
  absl::Status HsaLayer(Workspace& ws, const HsaWeights& weights, int64_t rows, bool per_row) const;

  // A reader's halves over the rows that were uploaded: they read and write the backend's memory
  // alone, so that the ones of a decode step can be repeated.
  absl::Status LowerHalf(Workspace& ws, int64_t rows, bool per_row, float* hidden,
                         float* queries) const;
  // Leaves the logits of the last `logit_rows` rows in ws.logits, what else is wanted of the rows
  // in ws.results.
  absl::Status UpperHalf(Workspace& ws, int64_t rows, bool per_row, const float* hidden,
                         LogitRows which, int64_t logit_rows) const;
  absl::Status LowerLayers(Workspace& ws, int64_t rows, bool per_row) const;
  absl::Status UpperLayers(Workspace& ws, int64_t rows, bool per_row) const;

  // Fn gets a range of steps and whether it is a decode pass (each step one row).
  absl::Status ForStepRanges(absl::Span<const ReaderStep> steps,
                             absl::FunctionRef<absl::Status(const StepRange&)> fn) const;
  absl::Status ReadLowerRange(absl::Span<const ReaderStep> steps, const StepRange& range,
                              LowerRows* out) const;
  absl::Status ReadUpperRange(absl::Span<const ReaderStep> steps, const StepRange& range,
                              const LowerRows& lower, absl::Span<const RowSelection> selections,
                              LogitRows which, UpperRows* out) const;
  // `sequences` of a decode step, unless they are there from the step before.
  absl::Status UploadSequences(Workspace& ws) const;
  absl::Status UploadSelections(Workspace& ws, absl::Span<const RowSelection> selections) const;
  // Page weights of so many rows that come back.
  int64_t WeightsOut(int64_t rows) const {
    return config().look_heads > 0 ? rows * config().chunks_per_read : 0;
  }
  // ws.results to `weights`, and to `best` unless it is null.
  absl::Status ResultsOut(Workspace& ws, int64_t rows, int64_t logit_rows, float* weights,
                          TokenId* best) const;
  // Copies rows between matrices of the backend.
  absl::Status CopyRows(const float* from, int64_t from_stride, float* to, int64_t to_stride,
                        int64_t width, int64_t rows) const;
  absl::Status RowsOut(const float* rows_begin, int64_t stride, int64_t width, int64_t rows,
                       float* host) const;
  // Leaves the logits of these rows in ws.logits.
  absl::Status Logits(Workspace& ws, int64_t first_row, int64_t rows, bool per_row) const;
  absl::Status LogitsOut(Workspace& ws, int64_t rows, float* host) const;

  const std::unique_ptr<Bundle> bundle_;
  Backend& backend_;
  const DType compute_dtype_;
  const DType activation_dtype_;  // between operations on many rows; f32 in decode
  const DType storage_dtype_;
  NetworkWeights weights_;
  PassShape shape_;
  // Workspaces are scratch: lending one does not change the model.
  std::unique_ptr<WorkspacePool> workspaces_;
  int64_t pass_bytes_ = 0;
};

}  // namespace mneme

#endif  // MNEME_MODEL_RAMBA_MODEL_H_
