// The one shape check of every operation: what passes here, a backend may take for granted.

#include <atomic>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/backend.h"

namespace mneme {
namespace {

absl::Status Bad(absl::string_view operation, absl::string_view what, int64_t value) {
  return absl::InvalidArgumentError(absl::StrCat(operation, ": ", what, ", got ", value));
}

// Collects the first violated condition of one operation.
class ShapeCheck {
 public:
  explicit ShapeCheck(absl::string_view operation) : operation_(operation) {}

  ShapeCheck& AtLeast(absl::string_view what, int64_t value, int64_t least) {
    if (value < least) Fail(absl::StrCat(what, " must be at least ", least), value);
    return *this;
  }
  ShapeCheck& MultipleOf(absl::string_view what, int64_t value, int64_t unit) {
    if (value % unit != 0) Fail(absl::StrCat(what, " must be a multiple of ", unit), value);
    return *this;
  }
  ShapeCheck& Equal(absl::string_view what, int64_t value, int64_t wanted) {
    if (value != wanted) Fail(absl::StrCat(what, " must be ", wanted), value);
    return *this;
  }
  // Needed only where there is something to read or write.
  ShapeCheck& Pointer(absl::string_view what, const void* pointer, int64_t elements) {
    if (elements > 0 && pointer == nullptr) Fail(absl::StrCat(what, " is null"), elements);
    return *this;
  }
  // f32 or bf16.
  ShapeCheck& FloatType(absl::string_view what, DType dtype) {
    if (dtype != DType::kF32 && dtype != DType::kBf16) {
      Fail(absl::StrCat(what, " must be f32 or bf16, not ", DTypeName(dtype)),
           static_cast<int>(dtype));
    }
    return *this;
  }
  // The sequences hold each of `rows` rows once, in order, each with a state.
  ShapeCheck& Sequences(const SequenceRows* sequences, int64_t count, int64_t rows,
                        int64_t state_offset) {
    AtLeast("sequence_count", count, 0).AtLeast("state_offset", state_offset, 0);
    Pointer("sequences", sequences, count);
    int64_t next = 0;
    for (int64_t i = 0; status_.ok() && i < count; ++i) {
      Equal("row_begin of a sequence", sequences[i].row_begin, next);
      AtLeast("row_count of a sequence", sequences[i].row_count, 0);
      Pointer("state of a sequence", sequences[i].state, 1);
      next += sequences[i].row_count;
    }
    return Equal("rows of all sequences", next, rows);
  }
  absl::Status status() const { return status_; }

 private:
  void Fail(absl::string_view what, int64_t value) {
    if (status_.ok()) status_ = Bad(operation_, what, value);
  }

  absl::string_view operation_;
  absl::Status status_;
};

absl::Status CheckConvSilu(absl::string_view operation, const ConvSiluParams& p) {
  return ShapeCheck(operation)
      .AtLeast("taps", p.taps, 1)
      .AtLeast("channels", p.channels, 1)
      .AtLeast("rows", p.rows, 0)
      .FloatType("io_dtype", p.io_dtype)
      .AtLeast("in_stride", p.in_stride, p.channels)
      .AtLeast("out_stride", p.out_stride, p.channels)
      .Pointer("in", p.in, p.rows)
      .Pointer("weight", p.weight, 1)
      .Pointer("bias", p.bias, 1)
      .Pointer("out", p.out, p.rows)
      .Sequences(p.sequences, p.sequence_count, p.rows, p.state_offset)
      .status();
}

absl::Status CheckSsd(absl::string_view operation, const SsdParams& p) {
  return ShapeCheck(operation)
      .AtLeast("heads", p.heads, 1)
      .AtLeast("head_dim", p.head_dim, 1)
      .AtLeast("state_size", p.state_size, 1)
      .AtLeast("rows", p.rows, 0)
      .AtLeast("xbc_stride", p.xbc_stride, p.heads * p.head_dim + 2 * p.state_size)
      .AtLeast("dt_stride", p.dt_stride, p.heads)
      .AtLeast("y_stride", p.y_stride, p.heads * p.head_dim)
      .FloatType("io_dtype", p.io_dtype)
      .FloatType("compute_dtype", p.compute_dtype)
      .Pointer("xbc", p.xbc, p.rows)
      .Pointer("dt", p.dt, p.rows)
      .Pointer("dt_bias", p.dt_bias, 1)
      .Pointer("a_log", p.a_log, 1)
      .Pointer("d_skip", p.d_skip, 1)
      .Pointer("y", p.y, p.rows)
      .Sequences(p.sequences, p.sequence_count, p.rows, p.state_offset)
      .status();
}

// What NextNorm and its counterpart ask of a backend and of each other.
absl::Status CheckNext(ShapeCheck& check, const NextNorm& next, int64_t rows, DType activation) {
  if (next.weight == nullptr) return absl::OkStatus();
  if (activation != DType::kBf16) {
    return absl::UnimplementedError("what the next norm wants: activations are not bf16");
  }
  return check.Pointer("next.scaled", next.scaled, rows)
      .Pointer("next.squares", next.squares, rows)
      .status();
}
// Rows to write, unless what `next` wants of them is all that is wanted.
int64_t RowsOut(const NextNorm& next, int64_t rows) { return next.weight == nullptr ? rows : 0; }
absl::Status CheckSquares(ShapeCheck& check, const MatmulParams& p, DType activation) {
  if (p.norm.squares == nullptr) return absl::OkStatus();
  if (p.norm.weight != nullptr || p.per_row) {
    return absl::InvalidArgumentError(
        "Matmul: squares stand for a norm of many rows, whose weight has been applied");
  }
  if (activation != DType::kBf16) {
    return absl::UnimplementedError("Matmul: squares of rows, but activations are not bf16");
  }
  return check.AtLeast("norm.square_parts", p.norm.square_parts, 1)
      .AtLeast("norm.squares_stride", p.norm.squares_stride, p.norm.square_parts)
      .status();
}

absl::Status CheckGate(absl::string_view operation, const SsdParams& p) {
  if (p.gate.z == nullptr) return absl::OkStatus();
  if (p.io_dtype != DType::kBf16) {
    return absl::InvalidArgumentError(
        absl::StrCat(operation, ": a gate needs bf16 rows, not ", DTypeName(p.io_dtype)));
  }
  return ShapeCheck(operation)
      .AtLeast("z_stride", p.gate.z_stride, p.heads * p.head_dim)
      .Pointer("weight of the gate", p.gate.weight, 1)
      .Pointer("squares", p.gate.squares, p.rows)
      .status();
}
absl::Status CheckNoGate(absl::string_view operation, const SsdParams& p) {
  return ShapeCheck(operation).Equal("gates", p.gate.z == nullptr ? 0 : 1, 0).status();
}

// What goes together among the forms of a product's results.
absl::Status CheckOutputs(ShapeCheck& check, const MatmulParams& p) {
  if (p.out_dtype == DType::kBf16 && (p.accumulate || p.per_row)) {
    return absl::InvalidArgumentError("Matmul: results that are added, or per row, are f32");
  }
  if (p.next.weight != nullptr &&
      (!p.accumulate || p.per_row || p.weight->out_columns() != p.weight->rows())) {
    return absl::InvalidArgumentError(
        "Matmul: what the next norm wants goes with many rows of results that are added, without "
        "gaps");
  }
  if (p.next.weight == nullptr && p.next.unscale != nullptr) {
    return absl::InvalidArgumentError("Matmul: scaled rows are added to for a norm");
  }
  if (p.swiglu != p.weight->swiglu() || (p.swiglu && p.out_dtype != DType::kBf16)) {
    return absl::InvalidArgumentError(
        "Matmul: swiglu needs a weight packed for it, which is for nothing else, and bf16 results");
  }
  if (p.tail == nullptr) return absl::OkStatus();
  RETURN_IF_ERROR(check.AtLeast("tail_columns", p.tail_columns, 1)
                      .AtLeast("rows - tail_columns", p.weight->rows() - p.tail_columns, 0)
                      .AtLeast("tail_stride", p.tail_stride, p.tail_columns)
                      .status());
  if (p.out_dtype != DType::kBf16 || p.swiglu) {
    return absl::InvalidArgumentError("Matmul: a tail goes with bf16 results, not with swiglu");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<PackedWeight>> Backend::PackWeight(
    absl::Span<const WeightSource> parts, const PackOptions& options) {
  ShapeCheck check("PackWeight");
  check.AtLeast("parts", static_cast<int64_t>(parts.size()), 1)
      .FloatType("compute_dtype", options.compute_dtype);
  for (const WeightSource& part : parts) {
    check.AtLeast("rows", part.rows, 1)
        .AtLeast("cols", part.cols, 1)
        .Equal("cols", part.cols, parts[0].cols);
    check.Pointer("data", part.data, 1);
    if (part.dtype == DType::kI8) {
      check.Pointer("scale", part.scale, 1);
    } else {
      check.FloatType("dtype", part.dtype);
    }
    check.Equal("dtype of a part", static_cast<int>(part.dtype), static_cast<int>(parts[0].dtype));
  }
  if (options.swiglu) {
    check.Equal("parts of gates and ups", static_cast<int64_t>(parts.size()), 1)
        .MultipleOf("rows of gates and ups", parts.empty() ? 0 : parts[0].rows, 16);
  }
  RETURN_IF_ERROR(check.status());
  return DoPackWeight(parts, options);
}

absl::Status Backend::Embed(const EmbedParams& p) {
  RETURN_IF_ERROR(ShapeCheck("Embed")
                      .AtLeast("rows", p.rows, 0)
                      .Pointer("table", p.table, 1)
                      .Pointer("ids", p.ids, p.rows)
                      .Pointer("out", p.out, RowsOut(p.next, p.rows))
                      .status());
  ShapeCheck check("Embed");
  if (p.out != nullptr) check.AtLeast("out_stride", p.out_stride, p.table->cols());
  RETURN_IF_ERROR(check.status());
  RETURN_IF_ERROR(CheckNext(check, p.next, p.rows, activation_dtype(p.table->compute_dtype())));
  return DoEmbed(p);
}

absl::Status Backend::RmsNorm(const RmsNormParams& p) {
  RETURN_IF_ERROR(ShapeCheck("RmsNorm")
                      .AtLeast("rows", p.rows, 0)
                      .AtLeast("width", p.width, 1)
                      .AtLeast("in_stride", p.in_stride, p.width)
                      .AtLeast("out_stride", p.out_stride, p.width)
                      .FloatType("out_dtype", p.out_dtype)
                      .Pointer("in", p.in, p.rows)
                      .Pointer("weight", p.weight, 1)
                      .Pointer("out", p.out, p.rows)
                      .status());
  return DoRmsNorm(p);
}

absl::Status Backend::GateNorm(const GateNormParams& p) {
  RETURN_IF_ERROR(ShapeCheck("GateNorm")
                      .AtLeast("rows", p.rows, 0)
                      .AtLeast("width", p.width, 1)
                      .AtLeast("y_stride", p.y_stride, p.width)
                      .AtLeast("z_stride", p.z_stride, p.width)
                      .AtLeast("out_stride", p.out_stride, p.width)
                      .FloatType("in_dtype", p.in_dtype)
                      .FloatType("out_dtype", p.out_dtype)
                      .Pointer("y", p.y, p.rows)
                      .Pointer("z", p.z, p.rows)
                      .Pointer("weight", p.weight, 1)
                      .Pointer("out", p.out, p.rows)
                      .status());
  return DoGateNorm(p);
}

absl::Status Backend::HeadNorm(const HeadNormParams& p) {
  ShapeCheck check("HeadNorm");
  check.AtLeast("rows", p.rows, 0)
      .AtLeast("heads", p.heads, 1)
      .AtLeast("head_dim", p.head_dim, 1)
      .AtLeast("stride", p.stride, p.heads * p.head_dim)
      .Pointer("data", p.data, p.rows)
      .Pointer("weight", p.weight, 1);
  if (p.cosine != nullptr) {
    check.Pointer("sine", p.sine, 1)
        .AtLeast("period", p.period, 1)
        .MultipleOf("head_dim", p.head_dim, 2);
  }
  RETURN_IF_ERROR(check.status());
  return DoHeadNorm(p);
}

absl::Status Backend::Matmul(const MatmulParams& p) {
  ShapeCheck check("Matmul");
  check.Pointer("weight", p.weight, 1).AtLeast("rows", p.rows, 0);
  if (p.row_capacity != 0) check.AtLeast("row_capacity", p.row_capacity, p.rows);
  RETURN_IF_ERROR(check.status());
  const DType operand_dtype = p.per_row ? DType::kF32 : p.weight->compute_dtype();
  const bool normed = p.norm.weight != nullptr;
  const DType wanted = normed ? p.norm.in_dtype : operand_dtype;
  check.AtLeast("a_stride", p.a_stride, p.weight->cols())
      .Equal("a_dtype", static_cast<int>(p.a_dtype), static_cast<int>(wanted))
      .FloatType("out_dtype", p.out_dtype)
      .Pointer("a", p.a, p.rows)
      .Pointer("out", p.out, p.next.unscale == nullptr ? p.rows : 0);
  if (normed) check.Pointer("norm.normed", p.norm.normed, p.rows);
  if (normed && p.norm.gate != nullptr) {
    check.AtLeast("norm.gate_stride", p.norm.gate_stride, p.weight->cols());
  }
  RETURN_IF_ERROR(check.status());
  if (normed && p.norm.in_dtype != DType::kF32 && (p.per_row || p.norm.gate == nullptr)) {
    return absl::InvalidArgumentError("Matmul: rows to be normed are f32, unless gated and many");
  }
  RETURN_IF_ERROR(CheckOutputs(check, p));
  const DType activation = activation_dtype(p.weight->compute_dtype());
  RETURN_IF_ERROR(CheckSquares(check, p, activation));
  RETURN_IF_ERROR(CheckNext(check, p.next, p.rows, activation));
  if (!normed || FusesNorm(p)) return DoMatmul(p);
  RETURN_IF_ERROR(NormOperand(p, operand_dtype));
  MatmulParams product = p;
  product.a = p.norm.normed;
  product.a_dtype = operand_dtype;
  product.a_stride = p.weight->cols();
  product.norm = {};
  return DoMatmul(product);
}

absl::Status Backend::NormOperand(const MatmulParams& p, DType dtype) {
  const int64_t width = p.weight->cols();
  if (p.norm.gate == nullptr) {
    return DoRmsNorm({.in = static_cast<const float*>(p.a),
                      .in_stride = p.a_stride,
                      .weight = p.norm.weight,
                      .eps = p.norm.eps,
                      .rows = p.rows,
                      .width = width,
                      .out = p.norm.normed,
                      .out_dtype = dtype,
                      .out_stride = width});
  }
  return DoGateNorm({.y = p.a,
                     .y_stride = p.a_stride,
                     .z = p.norm.gate,
                     .z_stride = p.norm.gate_stride,
                     .in_dtype = p.norm.in_dtype,
                     .weight = p.norm.weight,
                     .eps = p.norm.eps,
                     .rows = p.rows,
                     .width = width,
                     .out = p.norm.normed,
                     .out_dtype = dtype,
                     .out_stride = width});
}

absl::Status Backend::ConvSilu(const ConvSiluParams& p) {
  RETURN_IF_ERROR(CheckConvSilu("ConvSilu", p));
  return DoConvSilu(p);
}

absl::Status Backend::Ssd(const SsdParams& p) {
  RETURN_IF_ERROR(CheckSsd("Ssd", p));
  RETURN_IF_ERROR(CheckGate("Ssd", p));
  return DoSsd(p);
}

absl::Status Backend::SsmStep(const SsdParams& p) {
  RETURN_IF_ERROR(CheckSsd("SsmStep", p));
  RETURN_IF_ERROR(CheckNoGate("SsmStep", p));
  RETURN_IF_ERROR(
      ShapeCheck("SsmStep").Equal("rows (one a sequence)", p.rows, p.sequence_count).status());
  return DoSsmStep(p);
}

absl::Status Backend::ConvSsmStep(const ConvSiluParams& conv, const SsdParams& ssm) {
  constexpr absl::string_view kName = "ConvSsmStep";
  RETURN_IF_ERROR(CheckConvSilu(kName, conv));
  RETURN_IF_ERROR(CheckSsd(kName, ssm));
  RETURN_IF_ERROR(CheckNoGate(kName, ssm));
  RETURN_IF_ERROR(
      ShapeCheck(kName)
          .Equal("rows (one a sequence)", ssm.rows, ssm.sequence_count)
          .Equal("rows of the convolution", conv.rows, ssm.rows)
          .Equal("channels", conv.channels, ssm.heads * ssm.head_dim + 2 * ssm.state_size)
          .Equal("out_stride", conv.out_stride, ssm.xbc_stride)
          .Equal("out and xbc, differing", conv.out != ssm.xbc ? 1 : 0, 0)
          .Equal("sequences of the two, differing", conv.sequences != ssm.sequences ? 1 : 0, 0)
          .status());
  return DoConvSsmStep(conv, ssm);
}

absl::Status Backend::DoConvSsmStep(const ConvSiluParams& conv, const SsdParams& ssm) {
  RETURN_IF_ERROR(DoConvSilu(conv));
  return DoSsmStep(ssm);
}

absl::Status Backend::ArgMax(const ArgMaxParams& p) {
  RETURN_IF_ERROR(ShapeCheck("ArgMax")
                      .AtLeast("rows", p.rows, 0)
                      .AtLeast("columns", p.columns, 1)
                      .AtLeast("INT32_MAX - columns", INT32_MAX - p.columns, 0)
                      .AtLeast("in_stride", p.in_stride, p.columns)
                      .Pointer("in", p.in, p.rows)
                      .Pointer("out", p.out, p.rows)
                      .status());
  return DoArgMax(p);
}

int64_t Backend::NewRepeatId() {
  static std::atomic<int64_t> next{0};
  return next.fetch_add(1, std::memory_order_relaxed);
}

absl::Status Backend::ChunkInput(const ChunkInputParams& p) {
  RETURN_IF_ERROR(ShapeCheck("ChunkInput")
                      .AtLeast("chunks", p.chunks, 0)
                      .AtLeast("chunk_tokens", p.chunk_tokens, 1)
                      .AtLeast("halo_tokens", p.halo_tokens, 0)
                      .AtLeast("width", p.width, 1)
                      .Pointer("cls", p.cls, 1)
                      .Pointer("out", p.out, RowsOut(p.next, p.chunks))
                      .status());
  ShapeCheck check("ChunkInput");
  if (p.out != nullptr) check.AtLeast("out_stride", p.out_stride, p.width);
  if (p.halo_tokens > 0) check.Pointer("sequence_ends", p.sequence_ends, p.chunks);
  if (p.scaled == nullptr) {
    check.AtLeast("hidden_stride", p.hidden_stride, p.width)
        .Pointer("hidden", p.hidden, p.chunks)
        .Pointer("weight", p.weight, 1);
  } else {
    check.Pointer("squares", p.squares, p.chunks).Pointer("next.weight", p.next.weight, 1);
  }
  RETURN_IF_ERROR(check.status());
  RETURN_IF_ERROR(CheckNext(check, p.next, p.chunks, activation_dtype(DType::kBf16)));
  return DoChunkInput(p);
}

absl::Status Backend::ChunkAttention(const ChunkAttentionParams& p) {
  ShapeCheck check("ChunkAttention");
  if (p.q_norm != nullptr) {
    check.Pointer("k_norm", p.k_norm, 1)
        .Pointer("cosine", p.cosine, 1)
        .Pointer("sine", p.sine, 1)
        .MultipleOf("head_dim", p.head_dim, 2);
  }
  RETURN_IF_ERROR(check.AtLeast("groups", p.groups, 0)
                      .AtLeast("group_rows", p.group_rows, 1)
                      .AtLeast("heads", p.heads, 1)
                      .AtLeast("head_dim", p.head_dim, 1)
                      .AtLeast("qkv_stride", p.qkv_stride, 3 * p.heads * p.head_dim)
                      .AtLeast("out_stride", p.out_stride, p.heads * p.head_dim)
                      .FloatType("in_dtype", p.in_dtype)
                      .FloatType("out_dtype", p.out_dtype)
                      .Pointer("qkv", p.qkv, p.groups)
                      .Pointer("out", p.out, p.groups)
                      .status());
  return DoChunkAttention(p);
}

absl::Status Backend::SwiGlu(const SwiGluParams& p) {
  RETURN_IF_ERROR(ShapeCheck("SwiGlu")
                      .AtLeast("rows", p.rows, 0)
                      .AtLeast("width", p.width, 1)
                      .AtLeast("gate_up_stride", p.gate_up_stride, 2 * p.width)
                      .AtLeast("out_stride", p.out_stride, p.width)
                      .FloatType("out_dtype", p.out_dtype)
                      .Pointer("gate_up", p.gate_up, p.rows)
                      .Pointer("out", p.out, p.rows)
                      .status());
  return DoSwiGlu(p);
}

absl::Status Backend::WritePages(const WritePagesParams& p) {
  RETURN_IF_ERROR(ShapeCheck("WritePages")
                      .AtLeast("chunks", p.chunks, 0)
                      .AtLeast("chunk_tokens", p.chunk_tokens, 1)
                      .AtLeast("group_rows", p.group_rows, p.chunk_tokens)
                      .AtLeast("head_dim", p.head_dim, 1)
                      .AtLeast("stride", p.stride, p.head_dim)
                      .FloatType("page_dtype", p.page_dtype)
                      .Pointer("k", p.k, p.chunks)
                      .Pointer("v", p.v, p.chunks)
                      .Pointer("k_norm_weight", p.k_norm_weight, 1)
                      .Pointer("pages", p.pages, p.chunks)
                      .status());
  return DoWritePages(p);
}

absl::Status Backend::HsaAttend(const HsaAttendParams& p) {
  RETURN_IF_ERROR(ShapeCheck("HsaAttend")
                      .AtLeast("rows", p.rows, 0)
                      .AtLeast("pages_max", p.pages_max, 0)
                      .AtLeast("heads", p.heads, 1)
                      .AtLeast("head_dim", p.head_dim, 1)
                      .AtLeast("chunk_tokens", p.chunk_tokens, 1)
                      .AtLeast("q_stride", p.q_stride, p.heads * p.head_dim)
                      .AtLeast("out_stride", p.out_stride, p.heads * p.head_dim)
                      .FloatType("page_dtype", p.page_dtype)
                      .FloatType("out_dtype", p.out_dtype)
                      .Pointer("q", p.q, p.rows)
                      .Pointer("pages", p.pages, p.rows * p.pages_max)
                      .Pointer("weights", p.weights, p.rows * p.pages_max)
                      .Pointer("page_counts", p.page_counts, p.rows)
                      .Pointer("out", p.out, p.rows)
                      .status());
  return DoHsaAttend(p);
}

absl::Status Backend::ChunkLook(const ChunkLookParams& p) {
  RETURN_IF_ERROR(ShapeCheck("ChunkLook")
                      .AtLeast("rows", p.rows, 0)
                      .AtLeast("pages_max", p.pages_max, 0)
                      .AtLeast("heads", p.heads, 1)
                      .AtLeast("head_dim", p.head_dim, 1)
                      .AtLeast("chunk_tokens", p.chunk_tokens, 1)
                      .AtLeast("q_stride", p.q_stride, p.heads * p.head_dim)
                      .AtLeast("newest_margin", p.newest_margin, 0)
                      .FloatType("page_dtype", p.page_dtype)
                      .Pointer("q", p.q, p.rows)
                      .Pointer("pages", p.pages, p.rows * p.pages_max)
                      .Pointer("page_counts", p.page_counts, p.rows)
                      .Pointer("scores", p.scores, p.rows * p.pages_max)
                      .Pointer("head_weight", p.head_weight, 1)
                      .Pointer("corrected", p.corrected, p.rows * p.pages_max)
                      .Pointer("weights", p.weights, p.rows * p.pages_max)
                      .status());
  return DoChunkLook(p);
}

absl::Status Backend::LandmarkTopK(const LandmarkTopKParams& p) {
  ShapeCheck check("LandmarkTopK");
  check.AtLeast("n_queries", p.n_queries, 0)
      .AtLeast("dim", p.dim, 1)
      .AtLeast("k", p.k, 1)
      .AtLeast("kLandmarkTopKMax - k", kLandmarkTopKMax - p.k, 0)
      .FloatType("dtype", p.dtype)
      .Pointer("queries", p.queries, p.n_queries)
      .Pointer("indices", p.indices, p.n_queries)
      .Pointer("scores", p.scores, p.n_queries);
  for (const LandmarkSlab& slab : p.slabs) {
    check.AtLeast("row_count of a slab", slab.row_count, 0)
        .Pointer("rows of a slab", slab.rows, slab.row_count);
  }
  RETURN_IF_ERROR(check.status());
  return DoLandmarkTopK(p);
}

}  // namespace mneme
