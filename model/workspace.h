// Memory for the activations of one pass through the network.

#ifndef MNEME_MODEL_WORKSPACE_H_
#define MNEME_MODEL_WORKSPACE_H_

#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kernels/backend.h"
#include "model/config.h"
#include "model/network_weights.h"

namespace mneme {

// Parts of the squares of a row of the residual stream (NextNorm).
int64_t SquareParts(const ModelConfig& config);
// Of a row behind the gate of a Mamba-2 layer (SsdGate).
int64_t GateParts(const ModelConfig& config);

// How many rows one pass holds at a time, and the distances between rows of its matrices.
struct PassShape {
  int64_t rows = 0;  // tokens
  // Tokens whose residual stream is kept: `rows`, or, where chunks see those behind them, as many
  // as a segment may have.
  int64_t hidden_rows = 0;
  int64_t encoder_rows = 0;  // of all chunks of `rows`
  int64_t hidden_stride = 0;
  int64_t state_floats = 0;  // recurrent state of the lower half, for one sequence
  int64_t sequences = 0;     // segments of one pass

  static PassShape For(const ModelConfig& config, const NetworkWeights& weights, int64_t pass_rows);
};

// One allocation, cut into the matrices of a pass. Matrices that products write have room for whole
// blocks of rows. Thread-compatible: one pass uses it at a time.
struct Workspace {
  static absl::StatusOr<std::unique_ptr<Workspace>> Create(const ModelConfig& config,
                                                           const NetworkWeights& weights,
                                                           const PassShape& shape,
                                                           DType storage_dtype, Backend& backend);

  Buffer memory;
  int64_t repeat_id = 0;    // of Backend::NewRepeatId
  int32_t* ids = nullptr;   // [rows]
  float* hidden = nullptr;  // [rows, hidden_stride], and the rows around them (MoveTo)
  void* operand =
      nullptr;  // [rows or encoder_rows, widest input of a product], compute dtype or f32
  // Of the backend's activation dtype or f32; room for f32.
  void* product = nullptr;   // [rows or encoder_rows, widest product]
  void* conv = nullptr;      // [rows, conv_dim]
  void* y = nullptr;         // [rows, inner]
  float* dt = nullptr;       // [rows, H], where product is not f32
  float* encoder = nullptr;  // [encoder_rows, hidden_stride], or NextNorm of such rows
  float* encoder_squares = nullptr;
  // NextNorm of hidden, where activations are bf16, and the rows around them.
  void* scaled = nullptr;            // [rows, d_model]
  float* squares = nullptr;          // [rows, parts of d_model]
  float* gate_squares = nullptr;     // [rows, parts of a gated row]: SsdGate
  int32_t* sequence_ends = nullptr;  // [chunks], of ChunkInput
  void* pages = nullptr;             // [chunks, page bytes]
  void* landmarks = nullptr;         // [rows, R]: landmarks of chunks, or queries
  float* logits = nullptr;           // [rows, logits stride]
  float* state = nullptr;            // [sequences, state_floats]
  // What the rows under way read, in one piece of memory, `selections`.
  char* selections = nullptr;
  const void** page_pointers = nullptr;  // [rows, chunks_per_read]
  // [rows, chunks_per_read]; with look_heads the ones of `results`, made of page_scores.
  float* page_weights = nullptr;
  float* page_scores = nullptr;
  int32_t* page_counts = nullptr;             // [rows]
  SequenceRows* backend_sequences = nullptr;  // [rows]: `sequences` of a decode step
  int64_t row_capacity = 0;                   // of matrices that hold one row a token
  int64_t encoder_row_capacity = 0;

  // The tile under way begins at this row of the hidden_rows: so do hidden, scaled and squares.
  void MoveTo(int64_t row);
  struct HiddenRows {
    int64_t hidden = 0, scaled = 0, squares = 0;  // bytes
  };
  HiddenRows hidden_begin, hidden_stride;  // in `memory`

  // Host copies of what goes up, and the sequences of the present step.
  std::vector<SequenceRows> sequences;
  std::vector<int32_t> host_ids;
  std::vector<int32_t> host_sequence_ends;
  std::vector<SequenceRows> sequences_there;  // what backend_sequences holds; empty: anything
  std::vector<char> host_selections;
  std::vector<float> host_results;
  bool pages_resident = false;  // of the rows under way
  // What comes back to the host of the rows under way, so that it comes at one time: with
  // look_heads their page_weights, then ids of the best tokens.
  float* results = nullptr;
  float* look_scores = nullptr;  // [rows, chunks_per_read]: corrected; with look_heads
  // Where the residual stream of the lower half is, of the rows under way: in `hidden`, `scaled`
  // following it where norms are ahead; in `scaled` alone; or there, with a copy of what each layer
  // left in `hidden`.
  enum class Stream { kHidden, kScaled, kScaledAndCopied };
  Stream stream = Stream::kHidden;
};

// Lends workspaces, one to each pass that runs, and keeps them for the next. Thread-safe. There are
// about as many as passes ever ran at one time.
class WorkspacePool {
 public:
  WorkspacePool(const ModelConfig& config, const NetworkWeights& weights, PassShape shape,
                DType storage_dtype, Backend& backend)
      : config_(config),
        weights_(weights),
        shape_(shape),
        storage_dtype_(storage_dtype),
        backend_(backend) {}

  // Gives the workspace back when it goes.
  class Lease {
   public:
    Lease(WorkspacePool& pool, std::unique_ptr<Workspace> workspace)
        : pool_(&pool), workspace_(std::move(workspace)) {}
    Lease(Lease&&) = default;
    ~Lease() {
      if (workspace_ != nullptr) pool_->Return(std::move(workspace_), under_way_);
    }
    Workspace& operator*() const { return *workspace_; }
    // The pass ends while the backend still works on what this thread asked for: the workspace then
    // goes to this thread again and to no other.
    void LeaveWorkUnderWay() { under_way_ = true; }

   private:
    WorkspacePool* pool_;
    std::unique_ptr<Workspace> workspace_;
    bool under_way_ = false;
  };

  // RESOURCE_EXHAUSTED when the backend has no memory for another one.
  absl::StatusOr<Lease> Take();

 private:
  void Return(std::unique_ptr<Workspace> workspace, bool under_way);

  const ModelConfig& config_;
  const NetworkWeights& weights_;
  const PassShape shape_;
  const DType storage_dtype_;
  Backend& backend_;
  absl::Mutex mutex_;
  struct Idle {
    std::unique_ptr<Workspace> workspace;
    std::thread::id user;  // the only thread that may have it; none: any
  };
  std::vector<Idle> idle_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme

#endif  // MNEME_MODEL_WORKSPACE_H_
