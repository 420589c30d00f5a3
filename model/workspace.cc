#include "model/workspace.h"

#include <algorithm>
#include <utility>

#include "common/status_macros.h"

namespace mneme {
namespace {

// Rows are rounded up to whole tiles, so that products need no copies at their end.
constexpr int64_t kRowUnit = 16;

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

int64_t WidestProduct(const ModelConfig& config, const NetworkWeights& weights) {
  int64_t widest = std::max<int64_t>(config.landmark_dim, config.d_model);
  const auto see = [&widest](const std::unique_ptr<PackedWeight>& weight) {
    widest = std::max(widest, weight->out_columns());
  };
  for (const MambaWeights& layer : weights.lower) see(layer.in_proj);
  for (const MambaWeights& layer : weights.upper) see(layer.in_proj);
  for (const EncoderLayerWeights& layer : weights.encoder.layers) {
    see(layer.qkv);
    see(layer.gate_up);
  }
  for (const HsaWeights& layer : weights.hsa) see(layer.q_proj);
  if (weights.look.q_proj != nullptr) see(weights.look.q_proj);
  see(weights.encoder.kv_proj);
  see(weights.encoder.landmark_proj);
  see(weights.retrieval_proj);
  return widest;
}

}  // namespace

int64_t SquareParts(const ModelConfig& config) {
  return (config.d_model + kSquareColumns - 1) / kSquareColumns;
}

int64_t GateParts(const ModelConfig& config) {
  return int64_t{config.ssm_heads()} * ((config.ssm_head_dim + 63) / 64);
}

PassShape PassShape::For(const ModelConfig& config, const NetworkWeights& weights,
                         int64_t pass_rows) {
  const int64_t S = config.chunk_size;
  PassShape shape;
  shape.sequences = std::max<int64_t>(1, pass_rows / config.segment_size);
  const int64_t tile =
      std::clamp<int64_t>(pass_rows / shape.sequences / S * S, S, RoundUp(config.segment_size, S));
  shape.rows = shape.sequences * tile;
  // Several segments of a pass are whole ones.
  const bool whole = tile == config.segment_size || config.encoder_halo == 0;
  shape.hidden_rows = whole ? shape.rows : RoundUp(config.segment_size, tile);
  shape.encoder_rows = shape.rows / S * config.encoder_rows();
  shape.hidden_stride = std::max<int64_t>(config.d_model, weights.embedding->cols());
  for (const MambaWeights& layer : weights.lower) {
    shape.hidden_stride = std::max(shape.hidden_stride, layer.out_proj->out_columns());
  }
  for (const MambaWeights& layer : weights.upper) {
    shape.hidden_stride = std::max(shape.hidden_stride, layer.out_proj->out_columns());
  }
  shape.state_floats =
      int64_t{config.n_lower_layers} * (int64_t{config.conv_kernel - 1} * config.conv_dim() +
                                        int64_t{config.inner()} * config.ssm_state_size);
  return shape;
}

absl::StatusOr<std::unique_ptr<Workspace>> Workspace::Create(const ModelConfig& config,
                                                             const NetworkWeights& weights,
                                                             const PassShape& shape,
                                                             DType storage_dtype,
                                                             Backend& backend) {
  auto ws = std::make_unique<Workspace>();
  ws->row_capacity = RoundUp(shape.rows, kRowUnit);
  ws->encoder_row_capacity = RoundUp(shape.encoder_rows, kRowUnit);
  const int64_t rows = ws->row_capacity, encoder_rows = ws->encoder_row_capacity;
  const int64_t chunks = shape.rows / config.chunk_size;
  // What products may touch behind the last tile's rows is there too.
  const int64_t hidden_rows = shape.hidden_rows - shape.rows + rows;
  const int64_t inner = config.inner();
  const int64_t widest_input = std::max<int64_t>(
      {config.d_model, inner, config.encoder_layers > 0 ? config.encoder_ffn : 0});
  const int64_t kept = config.chunks_per_read;

  // Offsets first, then one allocation, then pointers.
  int64_t bytes = 0;
  const auto reserve = [&bytes](int64_t elements, int64_t element_bytes) {
    const int64_t offset = bytes;
    bytes += RoundUp(elements * element_bytes, 64);
    return offset;
  };
  const int64_t ids = reserve(rows, 4);
  const int64_t hidden = reserve(hidden_rows * shape.hidden_stride, 4);
  const int64_t operand = reserve(encoder_rows * widest_input, 4);
  const int64_t product = reserve(encoder_rows * WidestProduct(config, weights), 4);
  const int64_t conv = reserve(rows * config.conv_dim(), 4);
  const int64_t y = reserve(rows * inner, 4);
  const int64_t dt = reserve(rows * config.ssm_heads(), 4);
  const int64_t encoder = reserve(encoder_rows * shape.hidden_stride, 4);
  const int64_t encoder_squares = reserve(encoder_rows * SquareParts(config), 4);
  const int64_t scaled = reserve(hidden_rows * config.d_model, 2);
  const int64_t gate_squares = reserve(rows * GateParts(config), 4);
  const int64_t squares = reserve(hidden_rows * SquareParts(config), 4);
  const int64_t sequence_ends = reserve(chunks, 4);
  const int64_t pages =
      reserve(chunks * 2 * config.chunk_size * config.head_dim(), DTypeBytes(storage_dtype));
  const int64_t landmarks = reserve(rows * config.landmark_dim, 4);
  const int64_t logits = reserve(rows * weights.embedding->out_columns(), 4);
  const int64_t state = reserve(shape.sequences * shape.state_floats, 4);
  const int64_t selection_bytes = kept * static_cast<int64_t>(sizeof(void*) + 4) + 4;
  const int64_t looked = config.look_heads > 0 ? rows * kept : 0;  // pages
  const int64_t look_scores = reserve(looked, 4);
  const int64_t results = reserve(looked + rows, 4);
  const int64_t selections = reserve(rows, selection_bytes);
  const int64_t sequences = reserve(rows, sizeof(SequenceRows));
  ASSIGN_OR_RETURN(ws->memory, backend.Allocate(bytes));
  ws->repeat_id = Backend::NewRepeatId();
  ws->ids = ws->memory.as<int32_t>(ids);
  ws->operand = ws->memory.as<void>(operand);
  ws->product = ws->memory.as<void>(product);
  ws->conv = ws->memory.as<void>(conv);
  ws->y = ws->memory.as<void>(y);
  ws->dt = ws->memory.as<float>(dt);
  ws->encoder = ws->memory.as<float>(encoder);
  ws->encoder_squares = ws->memory.as<float>(encoder_squares);
  ws->gate_squares = ws->memory.as<float>(gate_squares);
  ws->sequence_ends = ws->memory.as<int32_t>(sequence_ends);
  ws->pages = ws->memory.as<void>(pages);
  ws->landmarks = ws->memory.as<void>(landmarks);
  ws->logits = ws->memory.as<float>(logits);
  ws->state = ws->memory.as<float>(state);
  ws->look_scores = ws->memory.as<float>(look_scores);
  ws->results = ws->memory.as<float>(results);
  ws->selections = ws->memory.as<char>(selections);
  ws->page_pointers = ws->memory.as<const void*>(selections);
  ws->backend_sequences = ws->memory.as<SequenceRows>(sequences);
  ws->sequences.reserve(std::max(rows, shape.sequences));
  ws->host_ids.reserve(rows);
  ws->host_sequence_ends.reserve(chunks);
  ws->sequences_there.reserve(std::max(rows, shape.sequences));
  ws->host_results.resize(static_cast<size_t>(looked + rows));
  ws->host_selections.resize(static_cast<size_t>(rows * selection_bytes));
  ws->hidden_begin = {.hidden = hidden, .scaled = scaled, .squares = squares};
  ws->hidden_stride = {.hidden = shape.hidden_stride * 4,
                       .scaled = int64_t{config.d_model} * 2,
                       .squares = SquareParts(config) * 4};
  ws->MoveTo(0);
  return ws;
}

void Workspace::MoveTo(int64_t row) {
  hidden = memory.as<float>(hidden_begin.hidden + row * hidden_stride.hidden);
  scaled = memory.as<void>(hidden_begin.scaled + row * hidden_stride.scaled);
  squares = memory.as<float>(hidden_begin.squares + row * hidden_stride.squares);
}

absl::StatusOr<WorkspacePool::Lease> WorkspacePool::Take() {
  {
    absl::MutexLock lock(&mutex_);
    const auto mine = std::find_if(idle_.rbegin(), idle_.rend(), [](const Idle& idle) {
      return idle.user == std::thread::id() || idle.user == std::this_thread::get_id();
    });
    if (mine != idle_.rend()) {
      std::swap(*mine, idle_.back());
      Lease lease(*this, std::move(idle_.back().workspace));
      idle_.pop_back();
      return lease;
    }
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Workspace> workspace,
                   Workspace::Create(config_, weights_, shape_, storage_dtype_, backend_));
  return Lease(*this, std::move(workspace));
}

void WorkspacePool::Return(std::unique_ptr<Workspace> workspace, bool under_way) {
  workspace->MoveTo(0);
  absl::MutexLock lock(&mutex_);
  idle_.push_back(
      {std::move(workspace), under_way ? std::this_thread::get_id() : std::thread::id()});
}

}  // namespace mneme
