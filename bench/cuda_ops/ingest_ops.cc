#include "bench/cuda_ops/ingest_ops.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

namespace mneme::bench {
namespace {

constexpr float kEps = 1e-5f;

// One operation of a pass.
struct Step {
  std::string name;
  double bytes, ops;  // as for OpMeter::Line
  OpMeter::Work work;
};

// Weights and operands of a pass, and its operations. R rows of tokens become E rows of the
// encoder, those of the halo and one more for each chunk. In bf16 the residual stream is nothing
// but the rows that are ready for the next norm (NextNorm); here its weight is all ones.
class IngestPass {
 public:
  IngestPass(OpMeter& meter, const NetworkShape& shape, int64_t rows);

  bool halves() const { return halves_; }
  Step Embed() const;
  // Of one layer of the lower half.
  std::vector<Step> LowerLayer() const;
  Step ChunkInput() const;
  // Of one layer of the chunk encoder.
  std::vector<Step> EncoderLayer() const;
  // From the encoder's rows to pages and landmarks.
  std::vector<Step> PagesAndLandmarks() const;

 private:
  NextNorm NextOf(const Buffer& scaled, const Buffer& squares, bool added) const {
    if (!halves_) return {};
    return {.weight = ones_.as<float>(),
            .scaled = scaled.data(),
            .squares = squares.as<float>(),
            .unscale = added ? ones_.as<float>() : nullptr};
  }
  OperandNorm ReadyOf(const Buffer& squares) const {
    return {.eps = kEps,
            .squares = halves_ ? squares.as<float>() : nullptr,
            .square_parts = parts_,
            .squares_stride = parts_};
  }
  Buffer Activations(int64_t count) const {
    return halves_ ? meter_.Halves(count) : meter_.Floats(count);
  }
  // What the products of normed rows read.
  const void* normed() const { return halves_ ? scaled_.data() : operand_.data(); }
  const void* encoder_normed() const { return halves_ ? encoder_scaled_.data() : operand_.data(); }
  void* hidden_out() const { return halves_ ? nullptr : hidden_.data(); }
  void* encoder_out() const { return halves_ ? nullptr : encoder_.data(); }

  Step Product(const std::string& name, const PackedWeight& weight, const MatmulParams& p) const;
  Step Norm(const Buffer& in, int64_t rows) const;
  Step Recurrence() const;
  Step GateNorm() const;
  Step HeadNorm(int64_t column) const;
  Step ChunkAttention() const;
  Step SwiGlu() const;

  OpMeter& meter_;
  Backend& backend_;
  const NetworkShape& c_;
  const int64_t R_, chunks_, E_;
  const DType activation_;
  const bool halves_;  // activations are bf16
  const int64_t head_dim_, parts_, gate_parts_;
  const double size_;  // bytes of an activation

  const std::unique_ptr<PackedWeight> table_, in_proj_, out_proj_, qkv_, attn_out_, gate_up_, down_,
      kv_, landmark_;
  const int64_t wide_;
  const Buffer hidden_, encoder_, product_, conv_, y_, dt_, operand_, weight_, heads_, turns_,
      pages_, landmarks_, scaled_, squares_, encoder_scaled_, encoder_squares_, gate_squares_,
      ones_, ids_, ends_;
  Buffer states_;
  std::vector<SequenceRows> sequences_;
};

IngestPass::IngestPass(OpMeter& meter, const NetworkShape& shape, int64_t rows)
    : meter_(meter),
      backend_(meter.backend()),
      c_(shape),
      R_(rows),
      chunks_(R_ / c_.chunk),
      E_(chunks_ * c_.encoder_rows()),
      activation_(backend_.activation_dtype(DType::kBf16)),
      halves_(activation_ == DType::kBf16),
      head_dim_(c_.attention_dim()),
      parts_((c_.d_model + kSquareColumns - 1) / kSquareColumns),
      gate_parts_(c_.heads * ((c_.head_dim + 63) / 64)),
      size_(DTypeBytes(activation_)),
      table_(meter.Weight(c_.vocab, c_.d_model, /*embed=*/true)),
      in_proj_(meter.Weight(c_.in_proj(), c_.d_model)),
      out_proj_(meter.Weight(c_.d_model, c_.inner())),
      qkv_(meter.Weight(3 * c_.d_model, c_.d_model)),
      attn_out_(meter.Weight(c_.d_model, c_.d_model)),
      gate_up_(meter.Weight(2 * c_.ffn, c_.d_model, /*embed=*/false, /*swiglu=*/halves_)),
      down_(meter.Weight(c_.d_model, c_.ffn)),
      kv_(meter.Weight(2 * head_dim_, c_.d_model)),
      landmark_(meter.Weight(c_.landmark, c_.d_model)),
      wide_(std::max({2 * c_.ffn, in_proj_->out_columns(), 3 * c_.d_model})),
      hidden_(meter.Floats(R_ * c_.d_model)),
      encoder_(meter.Floats(E_ * c_.d_model)),
      product_(meter.Floats(E_ * wide_)),
      conv_(Activations(R_ * c_.conv_dim())),
      y_(Activations(R_ * c_.inner())),
      dt_(meter.Floats(R_ * c_.heads)),
      operand_(meter.Halves(E_ * std::max(c_.inner(), c_.ffn))),
      weight_(meter.Floats(wide_ * c_.taps)),
      heads_(meter.Floats(3 * c_.heads)),
      turns_(meter.Floats(c_.encoder_rows() * head_dim_)),
      pages_(meter.Halves(R_ * 2 * head_dim_)),
      landmarks_(meter.Floats(chunks_ * c_.landmark)),
      scaled_(meter.Halves(R_ * c_.d_model)),
      squares_(meter.Floats(R_ * parts_)),
      encoder_scaled_(meter.Halves(E_ * c_.d_model)),
      encoder_squares_(meter.Floats(E_ * parts_)),
      gate_squares_(meter.Floats(R_ * gate_parts_)),
      ones_(meter.Floats(c_.d_model)),
      ids_(OrDie(backend_.Allocate(R_ * 4))),
      ends_(OrDie(backend_.Allocate(chunks_ * 4))) {
  const std::vector<float> all_ones(c_.d_model, 1.0f);
  OrDie(backend_.CopyIn(ones_.data(), all_ones.data(), c_.d_model * 4));
  std::vector<int32_t> ids(R_);
  for (int32_t& id : ids) id = static_cast<int32_t>(meter.random()() % c_.vocab);
  OrDie(backend_.CopyIn(ids_.data(), ids.data(), R_ * 4));
  const int64_t length = std::min<int64_t>(R_, 4096), sequences = R_ / length;
  std::vector<int32_t> ends(chunks_);
  for (int64_t i = 0; i < chunks_; ++i) {
    ends[i] = static_cast<int32_t>((i * c_.chunk / length + 1) * length);
  }
  OrDie(backend_.CopyIn(ends_.data(), ends.data(), chunks_ * 4));
  const int64_t floats = c_.conv_floats() + c_.state_floats();
  states_ = OrDie(backend_.Allocate(sequences * floats * 4));
  OrDie(backend_.Zero(states_.data(), states_.bytes()));
  for (int64_t i = 0; i < sequences; ++i) {
    sequences_.push_back(
        {.row_begin = i * length, .row_count = length, .state = states_.as<float>() + i * floats});
  }
}

// The rest of `p`: an operand of bf16 rows without gaps.
Step IngestPass::Product(const std::string& name, const PackedWeight& weight,
                         const MatmulParams& p) const {
  const double cells = static_cast<double>(p.rows * weight.rows());
  const double out_bytes = p.next.unscale != nullptr     ? 4
                           : p.next.weight != nullptr    ? 10
                           : p.accumulate                ? 8
                           : weight.swiglu()             ? 1
                           : p.out_dtype == DType::kBf16 ? 2
                                                         : 4;
  MatmulParams run = p;
  run.a_dtype = DType::kBf16;
  run.a_stride = weight.cols();
  run.weight = &weight;
  run.swiglu = weight.swiglu();
  return {name + " " + std::to_string(weight.rows()) + "x" + std::to_string(weight.cols()),
          static_cast<double>((p.rows + weight.rows()) * weight.cols()) * 2 + cells * out_bytes,
          2 * cells * static_cast<double>(weight.cols()),
          [this, run] { return backend_.Matmul(run); }};
}

Step IngestPass::Norm(const Buffer& in, int64_t rows) const {
  return {"RmsNorm", static_cast<double>(rows * c_.d_model) * 6, 0, [this, &in, rows] {
            return backend_.RmsNorm({.in = in.as<float>(),
                                     .in_stride = c_.d_model,
                                     .weight = weight_.as<float>(),
                                     .eps = kEps,
                                     .rows = rows,
                                     .width = c_.d_model,
                                     .out = operand_.data(),
                                     .out_dtype = DType::kBf16,
                                     .out_stride = c_.d_model});
          }};
}

Step IngestPass::Embed() const {
  return {"Embed", static_cast<double>(R_ * c_.d_model) * (halves_ ? 3 : 5), 0, [this] {
            return backend_.Embed({.ids = ids_.as<int32_t>(),
                                   .rows = R_,
                                   .table = table_.get(),
                                   .out = static_cast<float*>(hidden_out()),
                                   .out_stride = c_.d_model,
                                   .next = NextOf(scaled_, squares_, false)});
          }};
}

// In bf16, with the gate.
Step IngestPass::Recurrence() const {
  const double values = static_cast<double>(c_.conv_dim() + (halves_ ? 2 : 1) * c_.inner());
  const SsdParams ssd = {
      .xbc = conv_.as<float>(),
      .xbc_stride = c_.conv_dim(),
      .dt = halves_ ? dt_.as<float>() : product_.as<float>() + c_.inner() + c_.conv_dim(),
      .dt_stride = halves_ ? c_.heads : in_proj_->out_columns(),
      .dt_bias = heads_.as<float>(),
      .a_log = heads_.as<float>() + c_.heads,
      .d_skip = heads_.as<float>() + 2 * c_.heads,
      .heads = c_.heads,
      .head_dim = c_.head_dim,
      .state_size = c_.state,
      .sequences = sequences_.data(),
      .sequence_count = static_cast<int64_t>(sequences_.size()),
      .state_offset = c_.conv_floats(),
      .rows = R_,
      .y = y_.as<float>(),
      .y_stride = c_.inner(),
      .compute_dtype = DType::kBf16,
      .io_dtype = activation_,
      .gate = halves_ ? SsdGate{.z = product_.data(),
                                .z_stride = in_proj_->out_columns(),
                                .weight = weight_.as<float>(),
                                .squares = gate_squares_.as<float>()}
                      : SsdGate{}};
  return {halves_ ? "Ssd with its gate" : "Ssd",
          static_cast<double>(R_) * (values * size_ + static_cast<double>(c_.heads) * 4),
          static_cast<double>(R_) * c_.ssd_ops(), [this, ssd] { return backend_.Ssd(ssd); }};
}

Step IngestPass::GateNorm() const {
  return {"GateNorm", static_cast<double>(R_ * c_.inner()) * (2 * size_ + 2), 0, [this] {
            return backend_.GateNorm({.y = y_.data(),
                                      .y_stride = c_.inner(),
                                      .z = product_.data(),
                                      .z_stride = in_proj_->out_columns(),
                                      .in_dtype = activation_,
                                      .weight = weight_.as<float>(),
                                      .eps = kEps,
                                      .rows = R_,
                                      .width = c_.inner(),
                                      .out = operand_.data(),
                                      .out_dtype = DType::kBf16,
                                      .out_stride = c_.inner()});
          }};
}

std::vector<Step> IngestPass::LowerLayer() const {
  std::vector<Step> steps;
  if (!halves_) steps.push_back(Norm(hidden_, R_));
  steps.push_back(Product("Matmul in_proj", *in_proj_,
                          {.a = normed(),
                           .rows = R_,
                           .norm = ReadyOf(squares_),
                           .out = product_.data(),
                           .out_dtype = activation_,
                           .tail = halves_ ? dt_.as<float>() : nullptr,
                           .tail_columns = halves_ ? c_.heads : 0,
                           .tail_stride = c_.heads}));
  const double values = static_cast<double>(R_ * c_.conv_dim());
  const ConvSiluParams conv = {.in = product_.as<char>(c_.inner() * DTypeBytes(activation_)),
                               .in_stride = in_proj_->out_columns(),
                               .weight = weight_.as<float>(),
                               .bias = weight_.as<float>(),
                               .taps = c_.taps,
                               .channels = c_.conv_dim(),
                               .sequences = sequences_.data(),
                               .sequence_count = static_cast<int64_t>(sequences_.size()),
                               .rows = R_,
                               .out = conv_.data(),
                               .out_stride = c_.conv_dim(),
                               .io_dtype = activation_};
  steps.push_back({"ConvSilu", values * 2 * size_, values * 2 * static_cast<double>(c_.taps),
                   [this, conv] { return backend_.ConvSilu(conv); }});
  steps.push_back(Recurrence());
  if (!halves_) steps.push_back(GateNorm());
  const OperandNorm gated = {.eps = kEps,
                             .squares = gate_squares_.as<float>(),
                             .square_parts = gate_parts_,
                             .squares_stride = gate_parts_};
  steps.push_back(Product("Matmul out_proj, added", *out_proj_,
                          {.a = halves_ ? y_.data() : operand_.data(),
                           .rows = R_,
                           .norm = halves_ ? gated : OperandNorm{},
                           .out = hidden_out(),
                           .accumulate = true,
                           .next = NextOf(scaled_, squares_, true)}));
  return steps;
}

Step IngestPass::ChunkInput() const {
  return {"ChunkInput", static_cast<double>((R_ + E_) * c_.d_model) * (halves_ ? 2 : 4), 0, [this] {
            return backend_.ChunkInput({.hidden = hidden_.as<float>(),
                                        .hidden_stride = c_.d_model,
                                        .weight = weight_.as<float>(),
                                        .scaled = halves_ ? normed() : nullptr,
                                        .squares = squares_.as<float>(),
                                        .eps = kEps,
                                        .cls = weight_.as<float>(),
                                        .chunks = chunks_,
                                        .chunk_tokens = c_.chunk,
                                        .halo_tokens = c_.halo,
                                        .sequence_ends = ends_.as<int32_t>(),
                                        .width = c_.d_model,
                                        .out = static_cast<float*>(encoder_out()),
                                        .out_stride = c_.d_model,
                                        .next = NextOf(encoder_scaled_, encoder_squares_, false)});
          }};
}

// Of q or k, which begin at `column` of a row.
Step IngestPass::HeadNorm(int64_t column) const {
  return {"HeadNorm with positions", static_cast<double>(E_ * c_.d_model) * 8, 0, [this, column] {
            return backend_.HeadNorm({.data = product_.as<float>() + column,
                                      .stride = qkv_->out_columns(),
                                      .weight = weight_.as<float>(),
                                      .eps = kEps,
                                      .rows = E_,
                                      .heads = c_.attention_heads,
                                      .head_dim = head_dim_,
                                      .cosine = turns_.as<float>(),
                                      .sine = turns_.as<float>(),
                                      .period = c_.encoder_rows()});
          }};
}

Step IngestPass::ChunkAttention() const {
  const double values = static_cast<double>(E_ * c_.d_model);
  return {halves_ ? "ChunkAttention with norms" : "ChunkAttention", values * (3 * size_ + 2),
          values * 4 * static_cast<double>(c_.encoder_rows()), [this] {
            return backend_.ChunkAttention({.qkv = product_.data(),
                                            .in_dtype = activation_,
                                            .qkv_stride = qkv_->out_columns(),
                                            .groups = chunks_,
                                            .group_rows = c_.encoder_rows(),
                                            .heads = c_.attention_heads,
                                            .head_dim = head_dim_,
                                            .q_norm = halves_ ? weight_.as<float>() : nullptr,
                                            .k_norm = halves_ ? weight_.as<float>() : nullptr,
                                            .eps = kEps,
                                            .cosine = turns_.as<float>(),
                                            .sine = turns_.as<float>(),
                                            .out = operand_.data(),
                                            .out_dtype = DType::kBf16,
                                            .out_stride = c_.d_model});
          }};
}

Step IngestPass::SwiGlu() const {
  return {"SwiGlu", static_cast<double>(E_ * c_.ffn) * 10, 0, [this] {
            return backend_.SwiGlu({.gate_up = product_.as<float>(),
                                    .gate_up_stride = gate_up_->out_columns(),
                                    .rows = E_,
                                    .width = c_.ffn,
                                    .out = operand_.data(),
                                    .out_dtype = DType::kBf16,
                                    .out_stride = c_.ffn});
          }};
}

std::vector<Step> IngestPass::EncoderLayer() const {
  std::vector<Step> steps;
  const auto normed_product = [&](const std::string& name, const PackedWeight& weight) {
    if (!halves_) steps.push_back(Norm(encoder_, E_));
    steps.push_back(Product(name, weight,
                            {.a = encoder_normed(),
                             .rows = E_,
                             .norm = ReadyOf(encoder_squares_),
                             .out = product_.data(),
                             .out_dtype = activation_}));
  };
  const auto added_product = [&](const std::string& name, const PackedWeight& weight,
                                 const Buffer& a) {
    steps.push_back(Product(name, weight,
                            {.a = a.data(),
                             .rows = E_,
                             .out = encoder_out(),
                             .accumulate = true,
                             .next = NextOf(encoder_scaled_, encoder_squares_, true)}));
  };
  normed_product("Matmul qkv", *qkv_);
  if (!halves_) {
    steps.push_back(HeadNorm(0));
    steps.push_back(HeadNorm(c_.d_model));
  }
  steps.push_back(ChunkAttention());
  added_product("Matmul attn_out, added", *attn_out_, operand_);
  normed_product(halves_ ? "Matmul gate_up with SwiGlu" : "Matmul gate_up", *gate_up_);
  if (!halves_) steps.push_back(SwiGlu());
  added_product("Matmul down, added", *down_, halves_ ? product_ : operand_);
  return steps;
}

std::vector<Step> IngestPass::PagesAndLandmarks() const {
  std::vector<Step> steps;
  if (!halves_) steps.push_back(Norm(encoder_, E_));
  const MatmulParams product = {
      .a = encoder_normed(), .rows = E_, .norm = ReadyOf(encoder_squares_), .out = product_.data()};
  steps.push_back(Product("Matmul kv_proj", *kv_, product));
  steps.push_back({"WritePages", static_cast<double>(R_ * head_dim_) * 12, 0, [this] {
                     return backend_.WritePages({.k = product_.as<float>(),
                                                 .v = product_.as<float>() + head_dim_,
                                                 .stride = 2 * head_dim_,
                                                 .k_norm_weight = weight_.as<float>(),
                                                 .eps = kEps,
                                                 .chunks = chunks_,
                                                 .chunk_tokens = c_.chunk,
                                                 .group_rows = c_.encoder_rows(),
                                                 .head_dim = head_dim_,
                                                 .pages = pages_.data(),
                                                 .page_dtype = DType::kBf16});
                   }});
  MatmulParams of_chunks = product;
  of_chunks.rows = chunks_;
  steps.push_back(Product("Matmul landmark", *landmark_, of_chunks));
  steps.push_back(
      {"RmsNorm of landmarks", static_cast<double>(chunks_ * c_.landmark) * 6, 0, [this] {
         return backend_.RmsNorm({.in = product_.as<float>(),
                                  .in_stride = landmark_->out_columns(),
                                  .weight = weight_.as<float>(),
                                  .eps = kEps,
                                  .rows = chunks_,
                                  .width = c_.landmark,
                                  .out = landmarks_.data(),
                                  .out_dtype = DType::kBf16,
                                  .out_stride = c_.landmark});
       }});
  return steps;
}

}  // namespace

void MeasureIngest(OpMeter& meter, const NetworkShape& shape, int64_t rows) {
  const IngestPass pass(meter, shape, rows);
  std::printf("-- ingest, %lld rows in sequences of 4096, activations in %s\n",
              static_cast<long long>(rows), pass.halves() ? "bf16" : "f32");
  std::vector<Step> all;
  const auto add = [&](const std::vector<Step>& steps, int64_t times) {
    for (const Step& step : steps) meter.Line(step.name, step.bytes, step.ops, step.work);
    for (int64_t i = 0; i < times; ++i) all.insert(all.end(), steps.begin(), steps.end());
  };
  add({pass.Embed()}, 1);
  add(pass.LowerLayer(), shape.lower_layers);
  add({pass.ChunkInput()}, 1);
  add(pass.EncoderLayer(), shape.encoder_layers);
  add(pass.PagesAndLandmarks(), 1);
  double floor = 0;
  for (const Step& step : all) floor += meter.FloorSeconds(step.bytes, step.ops);
  const Spread whole = meter.Measure([&] {
    for (const Step& step : all) {
      if (const absl::Status status = step.work(); !status.ok()) return status;
    }
    return absl::OkStatus();
  });
  std::printf("%-34s %10.2f %8.2f %8.2f  %.3fM tokens/s, floor of the operations %.0f us, %.1f%%\n",
              "all of it, in order", whole.median * 1e6, whole.min * 1e6, whole.max * 1e6,
              static_cast<double>(rows) / whole.median / 1e6, floor * 1e6,
              100 * floor / whole.median);
  std::fflush(stdout);
}

}  // namespace mneme::bench
