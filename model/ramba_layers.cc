// The layers of RambaModel: one Mamba-2 layer, the chunk encoder, the second look at pages, one HSA
// layer, each over the rows of a tile.

#include "common/status_macros.h"
#include "model/ramba_model.h"

namespace mneme {
namespace {

// The matrix from its column `column` on.
const void* FromColumn(const void* matrix, int64_t column, DType dtype) {
  return static_cast<const char*>(matrix) + column * DTypeBytes(dtype);
}

}  // namespace

NextNorm RambaModel::NextNormOf(const Workspace& ws, const Buffer& weight) const {
  if (!norms_ahead()) return {};
  return {.weight = weight.as<float>(), .scaled = ws.scaled, .squares = ws.squares};
}

OperandNorm RambaModel::SquaresOf(const float* squares, int64_t first_row, int64_t row_step) const {
  const int64_t parts = SquareParts(config());
  return {.eps = static_cast<float>(config().norm_eps),
          .squares = squares + first_row * parts,
          .square_parts = parts,
          .squares_stride = row_step * parts};
}

absl::Status RambaModel::UploadIds(Workspace& ws) const {
  return backend_.Upload(ws.ids, ws.host_ids.data(), static_cast<int64_t>(ws.host_ids.size()) * 4);
}

absl::Status RambaModel::EmbedIds(Workspace& ws, bool per_row) const {
  return backend_.Embed({.ids = ws.ids,
                         .rows = static_cast<int64_t>(ws.host_ids.size()),
                         .table = weights_.embedding.get(),
                         .out = ws.stream == Workspace::Stream::kHidden ? ws.hidden : nullptr,
                         .out_stride = shape_.hidden_stride,
                         .next = per_row ? NextNorm{} : NextNormOf(ws, weights_.lower[0].norm)});
}

absl::Status RambaModel::MambaLayer(Workspace& ws, const MambaWeights& weights, int64_t rows,
                                    int64_t layer, bool per_row) const {
  const ModelConfig& c = config();
  const DType activation_dtype = per_row ? DType::kF32 : activation_dtype_;
  // dt decides how fast states forget: it stays f32.
  const bool dt_apart = activation_dtype != DType::kF32;
  const int64_t state_offset = layer * LayerStateFloats();
  const int64_t product_stride = weights.in_proj->out_columns();
  // What wrote the rows of the lower half has left them ready for the norm.
  const bool ready = norms_ahead() && !per_row && layer < c.n_lower_layers;
  const OperandNorm norm = ready ? SquaresOf(ws.squares, 0, 1)
                                 : OperandNorm{.weight = weights.norm.as<float>(),
                                               .eps = static_cast<float>(c.norm_eps),
                                               .normed = ws.operand};
  RETURN_IF_ERROR(backend_.Matmul({.a = ready ? ws.scaled : ws.hidden,
                                   .a_dtype = ready ? DType::kBf16 : DType::kF32,
                                   .a_stride = ready ? c.d_model : shape_.hidden_stride,
                                   .rows = rows,
                                   .row_capacity = ws.row_capacity,
                                   .norm = norm,
                                   .weight = weights.in_proj.get(),
                                   .out = ws.product,
                                   .out_dtype = activation_dtype,
                                   .tail = dt_apart ? ws.dt : nullptr,
                                   .tail_columns = dt_apart ? c.ssm_heads() : 0,
                                   .tail_stride = c.ssm_heads(),
                                   .per_row = per_row}));
  const ConvSiluParams conv = {.in = FromColumn(ws.product, c.inner(), activation_dtype),
                               .in_stride = product_stride,
                               .weight = weights.conv_weight.as<float>(),
                               .bias = weights.conv_bias.as<float>(),
                               .taps = c.conv_kernel,
                               .channels = c.conv_dim(),
                               .sequences = ws.sequences.data(),
                               .sequence_count = static_cast<int64_t>(ws.sequences.size()),
                               .state_offset = state_offset,
                               .rows = rows,
                               .out = ws.conv,
                               .out_stride = c.conv_dim(),
                               .io_dtype = activation_dtype};
  const float* const product_dt = static_cast<const float*>(ws.product) + c.inner() + c.conv_dim();
  SsdParams ssd = {.xbc = static_cast<const float*>(ws.conv),
                   .xbc_stride = c.conv_dim(),
                   .dt = dt_apart ? ws.dt : product_dt,
                   .dt_stride = dt_apart ? c.ssm_heads() : product_stride,
                   .dt_bias = weights.dt_bias.as<float>(),
                   .a_log = weights.a_log.as<float>(),
                   .d_skip = weights.d_skip.as<float>(),
                   .heads = c.ssm_heads(),
                   .head_dim = c.ssm_head_dim,
                   .state_size = c.ssm_state_size,
                   .sequences = ws.sequences.data(),
                   .sequence_count = static_cast<int64_t>(ws.sequences.size()),
                   .backend_sequences = per_row ? ws.backend_sequences : nullptr,
                   .state_offset = state_offset + int64_t{c.conv_kernel - 1} * c.conv_dim(),
                   .rows = rows,
                   .y = static_cast<float*>(ws.y),
                   .y_stride = c.inner(),
                   .compute_dtype = compute_dtype_,
                   .io_dtype = activation_dtype};
  OperandNorm gate_norm = {.weight = weights.gate_norm.as<float>(),
                           .eps = static_cast<float>(c.norm_eps),
                           .gate = ws.product,
                           .gate_stride = product_stride,
                           .in_dtype = activation_dtype,
                           .normed = ws.operand};
  if (per_row) {
    RETURN_IF_ERROR(backend_.ConvSsmStep(conv, ssd));
  } else {
    RETURN_IF_ERROR(backend_.ConvSilu(conv));
    if (activation_dtype == DType::kBf16) {
      ssd.gate = {.z = ws.product,
                  .z_stride = product_stride,
                  .weight = weights.gate_norm.as<float>(),
                  .squares = ws.gate_squares};
      gate_norm = {.eps = static_cast<float>(c.norm_eps),
                   .squares = ws.gate_squares,
                   .square_parts = GateParts(c),
                   .squares_stride = GateParts(c)};
    }
    RETURN_IF_ERROR(backend_.Ssd(ssd));
  }
  NextNorm next;
  if (ready && layer + 1 < c.n_lower_layers) {
    next = NextNormOf(ws, weights_.lower[layer + 1].norm);
  }
  const bool scaled = ws.stream != Workspace::Stream::kHidden;
  if (scaled) {
    if (layer + 1 == c.n_lower_layers) next = NextNormOf(ws, weights_.encoder.in_norm);
    next.unscale = weights.norm_inverse.as<float>();
  }
  return backend_.Matmul({.a = ws.y,
                          .a_dtype = activation_dtype,
                          .a_stride = c.inner(),
                          .rows = rows,
                          .row_capacity = ws.row_capacity,
                          .norm = gate_norm,
                          .weight = weights.out_proj.get(),
                          .out = ws.stream == Workspace::Stream::kScaled ? nullptr : ws.hidden,
                          .accumulate = true,
                          .next = next,
                          .per_row = per_row});
}

absl::Status RambaModel::EncodeChunks(Workspace& ws, int64_t chunks) const {
  const ModelConfig& c = config();
  const ChunkEncoderWeights& encoder = weights_.encoder;
  const int64_t S = c.chunk_size, group_rows = c.encoder_rows(), rows = chunks * group_rows;
  const float eps = static_cast<float>(c.norm_eps);
  // Norms ahead: ws.encoder holds the residual stream in bf16, ready for its next norm. The rows
  // of ChunkInput come so too.
  const bool ahead = norms_ahead();
  const auto ready = [&](const Buffer& weight, const float* unscale = nullptr) {
    if (!ahead) return NextNorm{};
    return NextNorm{.weight = weight.as<float>(),
                    .scaled = ws.encoder,
                    .squares = ws.encoder_squares,
                    .unscale = unscale};
  };
  // Unless the rows are ready for it.
  const auto norm = [&](const Buffer& weight) -> absl::Status {
    if (ahead) return absl::OkStatus();
    return backend_.RmsNorm({.in = ws.encoder,
                             .in_stride = shape_.hidden_stride,
                             .weight = weight.as<float>(),
                             .eps = eps,
                             .rows = rows,
                             .width = c.d_model,
                             .out = ws.operand,
                             .out_dtype = compute_dtype_,
                             .out_stride = c.d_model});
  };
  const auto matmul = [&](const void* a, const PackedWeight& weight, void* out, DType out_dtype,
                          const NextNorm& next = {}) {
    return backend_.Matmul(
        {.a = a,
         .a_dtype = compute_dtype_,
         .a_stride = weight.cols(),
         .rows = rows,
         .row_capacity = ws.encoder_row_capacity,
         .norm = a == ws.encoder ? SquaresOf(ws.encoder_squares, 0, 1) : OperandNorm{},
         .weight = &weight,
         .out = out == ws.encoder && ahead ? nullptr : out,
         .out_dtype = out_dtype,
         .accumulate = out == ws.encoder,
         .next = next,
         .swiglu = weight.swiglu()});
  };
  const void* const normed = ahead ? ws.encoder : ws.operand;
  const auto norm_of_layer = [&](size_t i) -> const Buffer& {
    return i < encoder.layers.size() ? encoder.layers[i].attn_norm : encoder.norm;
  };
  // Where activations are bf16, ChunkAttention norms q and k.
  const bool norm_apart = activation_dtype_ == DType::kF32;
  RETURN_IF_ERROR(backend_.ChunkInput({.hidden = ws.hidden,
                                       .hidden_stride = shape_.hidden_stride,
                                       .weight = encoder.in_norm.as<float>(),
                                       .scaled = ahead ? ws.scaled : nullptr,
                                       .squares = ws.squares,
                                       .eps = eps,
                                       .cls = encoder.cls.as<float>(),
                                       .chunks = chunks,
                                       .chunk_tokens = S,
                                       .halo_tokens = c.encoder_halo,
                                       .sequence_ends = ws.sequence_ends,
                                       .width = c.d_model,
                                       .out = ahead ? nullptr : ws.encoder,
                                       .out_stride = shape_.hidden_stride,
                                       .next = ready(norm_of_layer(0))}));
  for (size_t i = 0; i < encoder.layers.size(); ++i) {
    const EncoderLayerWeights& layer = encoder.layers[i];
    const NextNorm after_layer = ready(norm_of_layer(i + 1), layer.mlp_norm_inverse.as<float>());
    RETURN_IF_ERROR(norm(layer.attn_norm));
    RETURN_IF_ERROR(matmul(normed, *layer.qkv, ws.product, activation_dtype_));
    const int64_t qkv_stride = layer.qkv->out_columns();
    for (const bool is_key : {false, true}) {
      if (!norm_apart) break;
      RETURN_IF_ERROR(
          backend_.HeadNorm({.data = static_cast<float*>(ws.product) + (is_key ? c.d_model : 0),
                             .stride = qkv_stride,
                             .weight = (is_key ? layer.k_norm : layer.q_norm).as<float>(),
                             .eps = kHeadNormEps,
                             .rows = rows,
                             .heads = c.n_heads,
                             .head_dim = c.head_dim(),
                             .cosine = encoder.cosine.as<float>(),
                             .sine = encoder.sine.as<float>(),
                             .period = group_rows}));
    }
    RETURN_IF_ERROR(
        backend_.ChunkAttention({.qkv = ws.product,
                                 .in_dtype = activation_dtype_,
                                 .qkv_stride = qkv_stride,
                                 .groups = chunks,
                                 .group_rows = group_rows,
                                 .heads = c.n_heads,
                                 .head_dim = c.head_dim(),
                                 .q_norm = norm_apart ? nullptr : layer.q_norm.as<float>(),
                                 .k_norm = norm_apart ? nullptr : layer.k_norm.as<float>(),
                                 .eps = kHeadNormEps,
                                 .cosine = encoder.cosine.as<float>(),
                                 .sine = encoder.sine.as<float>(),
                                 .out = ws.operand,
                                 .out_dtype = compute_dtype_,
                                 .out_stride = c.d_model}));
    RETURN_IF_ERROR(matmul(ws.operand, *layer.attn_out, ws.encoder, DType::kF32,
                           ready(layer.mlp_norm, layer.attn_norm_inverse.as<float>())));
    RETURN_IF_ERROR(norm(layer.mlp_norm));
    if (layer.gate_up->swiglu()) {
      RETURN_IF_ERROR(matmul(normed, *layer.gate_up, ws.product, DType::kBf16));
      RETURN_IF_ERROR(matmul(ws.product, *layer.down, ws.encoder, DType::kF32, after_layer));
      continue;
    }
    RETURN_IF_ERROR(matmul(normed, *layer.gate_up, ws.product, DType::kF32));
    RETURN_IF_ERROR(backend_.SwiGlu({.gate_up = static_cast<const float*>(ws.product),
                                     .gate_up_stride = layer.gate_up->out_columns(),
                                     .rows = rows,
                                     .width = c.encoder_ffn,
                                     .out = ws.operand,
                                     .out_dtype = compute_dtype_,
                                     .out_stride = c.encoder_ffn}));
    RETURN_IF_ERROR(matmul(ws.operand, *layer.down, ws.encoder, DType::kF32, after_layer));
  }
  RETURN_IF_ERROR(norm(encoder.norm));
  RETURN_IF_ERROR(matmul(normed, *encoder.kv_proj, ws.product, DType::kF32));
  float* const product = static_cast<float*>(ws.product);
  RETURN_IF_ERROR(backend_.WritePages({.k = product,
                                       .v = product + c.head_dim(),
                                       .stride = encoder.kv_proj->out_columns(),
                                       .k_norm_weight = encoder.k_norm.as<float>(),
                                       .eps = kHeadNormEps,
                                       .chunks = chunks,
                                       .chunk_tokens = S,
                                       .group_rows = group_rows,
                                       .head_dim = c.head_dim(),
                                       .pages = ws.pages,
                                       .page_dtype = storage_dtype_}));
  // The CLS row of each chunk alone.
  const int64_t cls = group_rows - 1;
  const char* first_cls =
      static_cast<const char*>(normed) + cls * c.d_model * DTypeBytes(compute_dtype_);
  RETURN_IF_ERROR(backend_.Matmul(
      {.a = first_cls,
       .a_dtype = compute_dtype_,
       .a_stride = group_rows * c.d_model,
       .rows = chunks,
       .norm = ahead ? SquaresOf(ws.encoder_squares, cls, group_rows) : OperandNorm{},
       .weight = encoder.landmark_proj.get(),
       .out = product}));
  return backend_.RmsNorm({.in = product,
                           .in_stride = encoder.landmark_proj->out_columns(),
                           .weight = encoder.landmark_norm.as<float>(),
                           .eps = kHeadNormEps,
                           .rows = chunks,
                           .width = c.landmark_dim,
                           .out = ws.landmarks,
                           .out_dtype = storage_dtype_,
                           .out_stride = c.landmark_dim});
}

absl::Status RambaModel::SecondLook(Workspace& ws, int64_t rows, bool per_row) const {
  const ModelConfig& c = config();
  const LookWeights& look = weights_.look;
  RETURN_IF_ERROR(backend_.Matmul({.a = ws.hidden,
                                   .a_stride = shape_.hidden_stride,
                                   .rows = rows,
                                   .row_capacity = ws.row_capacity,
                                   .norm = {.weight = look.norm.as<float>(),
                                            .eps = static_cast<float>(c.norm_eps),
                                            .normed = ws.operand},
                                   .weight = look.q_proj.get(),
                                   .out = ws.product,
                                   .per_row = per_row}));
  const int64_t q_stride = look.q_proj->out_columns();
  float* const q = static_cast<float*>(ws.product);
  RETURN_IF_ERROR(backend_.HeadNorm({.data = q,
                                     .stride = q_stride,
                                     .weight = look.q_norm.as<float>(),
                                     .eps = kHeadNormEps,
                                     .rows = rows,
                                     .heads = c.look_heads,
                                     .head_dim = c.head_dim()}));
  return backend_.ChunkLook({.q = q,
                             .q_stride = q_stride,
                             .pages = ws.page_pointers,
                             .page_counts = ws.page_counts,
                             .pages_max = c.chunks_per_read,
                             .pages_resident = ws.pages_resident,
                             .page_dtype = storage_dtype_,
                             .scores = ws.page_scores,
                             .head_weight = look.head_weight.as<float>(),
                             .rows = rows,
                             .heads = c.look_heads,
                             .head_dim = c.head_dim(),
                             .chunk_tokens = c.chunk_size,
                             .newest_margin = c.newest_margin,
                             .corrected = ws.look_scores,
                             .weights = ws.page_weights});
}

absl::Status RambaModel::HsaLayer(Workspace& ws, const HsaWeights& weights, int64_t rows,
                                  bool per_row) const {
  const ModelConfig& c = config();
  const DType operand_dtype = per_row ? DType::kF32 : compute_dtype_;
  RETURN_IF_ERROR(backend_.Matmul({.a = ws.hidden,
                                   .a_stride = shape_.hidden_stride,
                                   .rows = rows,
                                   .row_capacity = ws.row_capacity,
                                   .norm = {.weight = weights.norm.as<float>(),
                                            .eps = static_cast<float>(c.norm_eps),
                                            .normed = ws.operand},
                                   .weight = weights.q_proj.get(),
                                   .out = ws.product,
                                   .per_row = per_row}));
  const int64_t q_stride = weights.q_proj->out_columns();
  float* const q = static_cast<float*>(ws.product);
  RETURN_IF_ERROR(backend_.HeadNorm({.data = q,
                                     .stride = q_stride,
                                     .weight = weights.q_norm.as<float>(),
                                     .eps = kHeadNormEps,
                                     .rows = rows,
                                     .heads = c.n_heads,
                                     .head_dim = c.head_dim()}));
  RETURN_IF_ERROR(backend_.HsaAttend({.q = q,
                                      .q_stride = q_stride,
                                      .pages = ws.page_pointers,
                                      .weights = ws.page_weights,
                                      .page_counts = ws.page_counts,
                                      .pages_max = c.chunks_per_read,
                                      .pages_resident = ws.pages_resident,
                                      .page_dtype = storage_dtype_,
                                      .rows = rows,
                                      .heads = c.n_heads,
                                      .head_dim = c.head_dim(),
                                      .chunk_tokens = c.chunk_size,
                                      .out = ws.operand,
                                      .out_dtype = operand_dtype,
                                      .out_stride = c.d_model}));
  return backend_.Matmul({.a = ws.operand,
                          .a_dtype = operand_dtype,
                          .a_stride = c.d_model,
                          .rows = rows,
                          .row_capacity = ws.row_capacity,
                          .weight = weights.o_proj.get(),
                          .out = ws.hidden,
                          .accumulate = true,
                          .per_row = per_row});
}

absl::Status RambaModel::LowerLayers(Workspace& ws, int64_t rows, bool per_row) const {
  for (int i = 0; i < config().n_lower_layers; ++i) {
    RETURN_IF_ERROR(MambaLayer(ws, weights_.lower[i], rows, i, per_row));
  }
  return absl::OkStatus();
}

absl::Status RambaModel::UpperLayers(Workspace& ws, int64_t rows, bool per_row) const {
  const ModelConfig& c = config();
  for (int i = 0; i < c.n_upper_layers; ++i) {
    if (i % c.hsa_every == 0) {
      RETURN_IF_ERROR(HsaLayer(ws, weights_.hsa[i / c.hsa_every], rows, per_row));
    }
    RETURN_IF_ERROR(MambaLayer(ws, weights_.upper[i], rows, c.n_lower_layers + i, per_row));
  }
  return absl::OkStatus();
}

}  // namespace mneme
