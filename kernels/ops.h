// Parameters of the network's operations, one struct an operation, the same for every backend.
//
// Letters as in docs/model.md: H SSM heads, P SSM head width, N SSM state size, S tokens of a
// chunk, D attention head width. Matrices are row-major; a `stride` is the distance of two rows in
// elements. All pointers except `sequences` are memory of the backend (Buffer, or memory that the
// backend says it can read). Plain data without inline functions: this header is also compiled for
// single instruction sets.
//
// Rows of several sequences lie one after the other in one matrix; no operation lets a row depend
// on a row of another sequence, nor on how many rows or sequences share the call.

#ifndef MNEME_KERNELS_OPS_H_
#define MNEME_KERNELS_OPS_H_

#include <stdint.h>

#include "kernels/dtype.h"

namespace mneme {

class PackedWeight;

// Consecutive rows that belong to one sequence, and its recurrent state (updated in place).
struct SequenceRows {
  int64_t row_begin = 0;
  int64_t row_count = 0;
  float* state = nullptr;
};

// What the RMSNorm of rows takes from the operation that wrote them, so that no operation reads
// them for the norm alone: their products with its weight, and sums of squares, which together are
// those of the row. 1 / rms is a factor of the results of the product that takes `scaled`
// (OperandNorm::squares). Only where activations between operations are bf16
// (Backend::activation_dtype).
enum { kSquareColumns = 96 };  // of a row, that a part of its squares is for
struct NextNorm {
  const float* weight = nullptr;  // [width], or null: nothing is wanted
  void* scaled = nullptr;         // [rows, width] bf16, no gaps
  float* squares = nullptr;       // [rows, width / kSquareColumns, rounded up]
  // Matmul: what is added to is not `out` but what `scaled` holds, rows times the weight of the
  // norm before; these are 1 / that weight. So rows of a residual stream are never but in bf16,
  // rounded once an addition (sums and squares are f32). A weight of zero would lose them.
  const float* unscale = nullptr;  // [width], or null
};

// out[r] = row ids[r] of the table.
struct EmbedParams {
  const int32_t* ids = nullptr;  // [rows], each in [0, table rows)
  int64_t rows = 0;
  const PackedWeight* table = nullptr;  // [vocab, width]
  float* out = nullptr;                 // [rows, width]; with `next` it may be null
  int64_t out_stride = 0;
  NextNorm next = {};  // of out
};

// out = in / sqrt(mean(in^2) + eps) * weight, row by row.
struct RmsNormParams {
  const float* in = nullptr;  // [rows, width]
  int64_t in_stride = 0;
  const float* weight = nullptr;  // [width]
  float eps = 0;
  int64_t rows = 0;
  int64_t width = 0;
  void* out = nullptr;  // [rows, width]
  DType out_dtype = DType::kF32;
  int64_t out_stride = 0;
};

// out = RmsNorm(y * silu(z)): the gate of a Mamba-2 layer.
struct GateNormParams {
  const void* y = nullptr;  // [rows, width]
  int64_t y_stride = 0;
  const void* z = nullptr;  // [rows, width]
  int64_t z_stride = 0;
  DType in_dtype = DType::kF32;   // of y and z
  const float* weight = nullptr;  // [width]
  float eps = 0;
  int64_t rows = 0;
  int64_t width = 0;
  void* out = nullptr;  // [rows, width]
  DType out_dtype = DType::kF32;
  int64_t out_stride = 0;
};

// RMSNorm of each head on its own, in place; with `cosine`, then rotary positions: row r has
// position r % period, halves rotated (not interleaved).
struct HeadNormParams {
  float* data = nullptr;  // [rows, heads * head_dim]
  int64_t stride = 0;
  const float* weight = nullptr;  // [head_dim]
  float eps = 0;
  int64_t rows = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
  const float* cosine = nullptr;  // [period, head_dim / 2], or null: no positions
  const float* sine = nullptr;
  int64_t period = 0;
};

// RMSNorm of the operand's rows on their way into a product: of a, or of a * silu(gate).
struct OperandNorm {
  const float* weight = nullptr;  // [weight cols], or null: no norm
  float eps = 0;
  const void* gate = nullptr;  // [rows, weight cols], or null
  int64_t gate_stride = 0;
  DType in_dtype = DType::kF32;  // of a and gate; kBf16: only with a gate, not `per_row`
  // [rows or row_capacity, weight cols], in the dtype that a product without norm takes: room for
  // the normed rows. Whether anything is left there is the backend's choice.
  void* normed = nullptr;
  // Instead of `weight`: a is NextNorm::scaled, and these are the squares.
  const float* squares = nullptr;  // [rows, square_parts], or null
  int64_t square_parts = 0;
  int64_t squares_stride = 0;
};

// out (+)= a * weight^T, or silu(gate) * up of such products.
struct MatmulParams {
  const void* a = nullptr;  // [rows, weight cols]
  // The weight's compute dtype; kF32 when `per_row` or normed.
  DType a_dtype = DType::kF32;
  int64_t a_stride = 0;
  int64_t rows = 0;
  // Rows that `a` (normed: norm.normed) and `out` have room for: a backend that works in blocks of
  // rows may read and overwrite those from `rows` on. 0: just `rows`.
  int64_t row_capacity = 0;
  OperandNorm norm = {};
  const PackedWeight* weight = nullptr;
  void* out = nullptr;  // [rows, weight->out_columns()], no gaps; columns beyond the weight's rows
                        // hold nothing of meaning. With next.unscale: null, or f32
  DType out_dtype = DType::kF32;  // kBf16: not with `accumulate` or `per_row`
  bool accumulate = false;        // add to out (a residual connection)
  NextNorm next = {};  // of out; with `accumulate`, out_columns() being the weight's rows
  // With bf16 results, the last tail_columns outputs as f32; what `out` has of them means nothing.
  float* tail = nullptr;  // [rows, tail_columns], or null
  int64_t tail_columns = 0;
  int64_t tail_stride = 0;
  // The weight was packed with PackOptions::swiglu: out [rows, out_columns / 2], bf16.
  bool swiglu = false;
  // Few rows, each one step of its own reader (decode): bound by reading the weight, so the stored
  // form of it is read (int8 rows with their scales) instead of a form laid out for many rows.
  bool per_row = false;
};

// out = silu(causal depthwise convolution + bias); weight[taps - 1] multiplies the present row.
// State of a sequence: its last taps - 1 input rows, oldest first, [taps - 1, channels], at
// sequence.state + state_offset.
struct ConvSiluParams {
  const void* in = nullptr;  // [rows, channels]
  int64_t in_stride = 0;
  const float* weight = nullptr;  // [taps, channels]
  const float* bias = nullptr;    // [channels]
  int64_t taps = 0;
  int64_t channels = 0;
  const SequenceRows* sequences = nullptr;  // host memory; together they hold each row once
  int64_t sequence_count = 0;
  int64_t state_offset = 0;  // floats
  int64_t rows = 0;
  void* out = nullptr;  // [rows, channels]
  int64_t out_stride = 0;
  DType io_dtype = DType::kF32;  // of in and out; the state is f32 whatever it is
};

// The gate of a Mamba-2 layer, applied to y by the operation that computes it, and what the norm
// behind the gate needs of the rows: all of GateNorm but the factor 1 / rms of each row, which the
// product that takes y applies.
struct SsdGate {
  const void* z = nullptr;  // [rows, H * P] bf16, or null: no gate
  int64_t z_stride = 0;
  const float* weight = nullptr;  // [H * P], of the norm
  // [rows, H * (P / 64 rounded up)]: sums of (y silu(z))^2 over 64 columns of a head.
  float* squares = nullptr;
};

// The state space recurrence (arXiv 2405.21060), one group of B and C shared by all heads:
//   dt = softplus(dt + dt_bias),  state = exp(-exp(a_log) dt) state + dt x (outer) B,
//   y = state C + d_skip x.
// State of a sequence: [H, N, P] at sequence.state + state_offset. `Ssd` computes it in blocks of
// tokens, at most 128 (a sequence cut at a multiple of that into two calls gives the same bits);
// `SsmStep` takes sequences of one row each.
struct SsdParams {
  const float* xbc = nullptr;  // [rows, H * P + 2 N]: x, B, C
  int64_t xbc_stride = 0;
  const float* dt = nullptr;  // [rows, H], before bias and softplus
  int64_t dt_stride = 0;
  const float* dt_bias = nullptr;           // [H]
  const float* a_log = nullptr;             // [H]
  const float* d_skip = nullptr;            // [H]
  int64_t heads = 0;                        // H
  int64_t head_dim = 0;                     // P
  int64_t state_size = 0;                   // N
  const SequenceRows* sequences = nullptr;  // host memory; together they hold each row once
  int64_t sequence_count = 0;
  // The same array in memory of the backend, or null: an operation that wants it there brings it.
  const SequenceRows* backend_sequences = nullptr;
  int64_t state_offset = 0;  // floats
  int64_t rows = 0;
  float* y = nullptr;  // [rows, H * P]
  int64_t y_stride = 0;
  // kBf16 allows products of bf16 operands with f32 sums inside a block; the state stays f32.
  DType compute_dtype = DType::kF32;
  // Of the elements that xbc and y point to, where it is not f32; dt stays f32.
  DType io_dtype = DType::kF32;
  // With z, y becomes y * silu(z) * weight. Ssd only, and only where io_dtype is kBf16.
  SsdGate gate = {};
};

// Input of the chunk encoder, a group of rows for each chunk: RmsNorm of the chunk's S rows and of
// the halo_tokens rows that follow them in its sequence, zeros where the sequence has ended, then
// the CLS row. With a halo, rows beyond those of the chunks are read as far as a sequence goes.
struct ChunkInputParams {
  const float* hidden = nullptr;  // [chunks * S, width]
  int64_t hidden_stride = 0;
  const float* weight = nullptr;  // [width]
  // Instead of `hidden` and `weight`: what NextNorm of that weight left. Only with `next`, of other
  // rows and squares.
  const void* scaled = nullptr;    // [chunks * S, width] bf16, no gaps, or null
  const float* squares = nullptr;  // [chunks * S, width / kSquareColumns, rounded up]
  float eps = 0;
  const float* cls = nullptr;  // [width]
  int64_t chunks = 0;
  int64_t chunk_tokens = 0;  // S
  int64_t halo_tokens = 0;
  // [chunks]: the row where the chunk's sequence ends, behind the chunk's own rows; not read
  // without a halo.
  const int32_t* sequence_ends = nullptr;
  int64_t width = 0;
  float* out = nullptr;  // [chunks * (S + halo_tokens + 1), width]; with `next` it may be null
  int64_t out_stride = 0;
  NextNorm next = {};  // of out
};

// Bidirectional attention inside each group of `group_rows` rows: softmax(q k^T / sqrt(D)) v; with
// `q_norm`, q and k as HeadNorm leaves them, row r of a group at position r.
struct ChunkAttentionParams {
  const void* qkv = nullptr;  // [groups * group_rows, 3 * heads * head_dim]: q, k, v
  DType in_dtype = DType::kF32;
  int64_t qkv_stride = 0;
  int64_t groups = 0;
  int64_t group_rows = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
  const float* q_norm = nullptr;  // [head_dim], or null: q and k as they are
  const float* k_norm = nullptr;
  float eps = 0;
  const float* cosine = nullptr;  // [group_rows, head_dim / 2]
  const float* sine = nullptr;
  void* out = nullptr;  // [groups * group_rows, heads * head_dim]
  DType out_dtype = DType::kF32;
  int64_t out_stride = 0;
};

// out = silu(gate) * up.
struct SwiGluParams {
  const float* gate_up = nullptr;  // [rows, 2 * width]: gate, up
  int64_t gate_up_stride = 0;
  int64_t rows = 0;
  int64_t width = 0;
  void* out = nullptr;  // [rows, width]
  DType out_dtype = DType::kF32;
  int64_t out_stride = 0;
};

// Pages of whole chunks: K = RmsNorm(k), V = v, of the first S of each chunk's group_rows rows.
struct WritePagesParams {
  const float* k = nullptr;              // [chunks * group_rows, D]
  const float* v = nullptr;              // [chunks * group_rows, D]
  int64_t stride = 0;                    // of k and of v
  const float* k_norm_weight = nullptr;  // [D]
  float eps = 0;
  int64_t chunks = 0;
  int64_t chunk_tokens = 0;  // S
  int64_t group_rows = 0;    // at least S
  int64_t head_dim = 0;      // D
  void* pages = nullptr;     // [chunks, 2, S, D]: K, then V
  DType page_dtype = DType::kF32;
};

// Hierarchical sparse attention (arXiv 2504.16795): each row attends inside each of its pages on
// its own and mixes the results by the pages' weights; all heads share the one head of K and V.
struct HsaAttendParams {
  const float* q = nullptr;  // [rows, heads * head_dim], normed
  int64_t q_stride = 0;
  const void* const* pages = nullptr;    // [rows, pages_max]: page [2, S, D]
  const float* weights = nullptr;        // [rows, pages_max]
  const int32_t* page_counts = nullptr;  // [rows], 0 .. pages_max; a row without pages gets zeros
  int64_t pages_max = 0;
  // The caller vouches that every page the table names is memory of the backend; else a backend
  // with memory of its own looks, and copies pages of the host.
  bool pages_resident = false;
  DType page_dtype = DType::kF32;
  int64_t rows = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;      // D
  int64_t chunk_tokens = 0;  // S
  void* out = nullptr;       // [rows, heads * head_dim]
  DType out_dtype = DType::kF32;
  int64_t out_stride = 0;
};

// A second look at the pages of a row (docs/model.md): the score of each plus what its tokens say,
//   corrected = score + sum_h head_weight[h] (log sum_s exp(q_h . K[s] / sqrt(D)) - log S),
// and the weights (chunk_weights.h) of these. A page whose score is minus infinity is not looked at
// and weighs nothing.
struct ChunkLookParams {
  const float* q = nullptr;  // [rows, heads * head_dim], normed
  int64_t q_stride = 0;
  // As HsaAttendParams has them; V is not read. Null where the score is minus infinity.
  const void* const* pages = nullptr;
  const int32_t* page_counts = nullptr;  // [rows], 0 .. pages_max
  int64_t pages_max = 0;
  bool pages_resident = false;
  DType page_dtype = DType::kF32;
  const float* scores = nullptr;       // [rows, pages_max], most recent chunk first
  const float* head_weight = nullptr;  // [heads]
  int64_t rows = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;      // D
  int64_t chunk_tokens = 0;  // S
  // How weights are made of corrected scores: 0 by stick-breaking, above by a softmax in which
  // newer chunks have this margin.
  int newest_margin = 0;
  float* corrected = nullptr;  // [rows, pages_max]; behind a row's pages minus infinity
  float* weights = nullptr;    // [rows, pages_max]; behind a row's pages 0
};

// out[r] = the column of the largest value of row r, the first of equals; a NaN is never the
// largest, and a row of NaNs gives 0.
struct ArgMaxParams {
  const float* in = nullptr;  // [rows, columns]
  int64_t in_stride = 0;
  int64_t rows = 0;
  int64_t columns = 0;     // 1 .. 2^31 - 1
  int32_t* out = nullptr;  // [rows]
};

}  // namespace mneme

#endif  // MNEME_KERNELS_OPS_H_
