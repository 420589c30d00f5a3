#include "bench/cuda_ops/decode_steps.h"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

namespace mneme::bench {
namespace {

constexpr int64_t kLayers = 12, kHsaLayers = 3, kPages = 8, kPoolPages = 4096;

// What a step fuses; else the operations are separate.
struct Fused {
  bool norms = false;        // with the products of their rows
  bool convolution = false;  // with the recurrence
};

// Weights, operands and order of a step's operations, as RambaModel has them.
class DecodeStep {
 public:
  DecodeStep(OpMeter& meter, const NetworkShape& shape, int64_t readers);

  // The fewest bytes that a step must move.
  double bytes() const {
    return static_cast<double>(readers_ * kLayers * layer_floats_) * 8 +
           static_cast<double>(kLayers * (c_.in_proj() * c_.d_model + c_.d_model * c_.inner()) +
                               c_.vocab * c_.d_model);
  }
  // Queues a step, by `repeat` as two repeated halves; `wait`s for its tokens.
  absl::Status Run(const Fused& fused, bool repeat, bool wait);

 private:
  absl::Status Multiply(const PackedWeight& weight, const Buffer& a, int64_t stride,
                        const Buffer& out, bool normed, const float* gate, bool accumulate);
  absl::Status Norm(const Buffer& a, int64_t stride, const float* gate, int64_t width);
  void Mamba(int64_t layer);
  void Attention();
  absl::Status Lower();
  absl::Status Upper();

  Backend& backend_;
  const NetworkShape& c_;
  const int64_t readers_;
  const std::unique_ptr<PackedWeight> q_proj_, o_proj_, retrieval_, table_;
  std::vector<std::unique_ptr<PackedWeight>> in_projs_, out_projs_;  // of each layer
  const int64_t layer_floats_ = c_.conv_floats() + c_.state_floats();
  int64_t product_stride_ = 0;
  Buffer vectors_, hidden_, operand_, product_, conv_, y_, logits_, states_, queries_, ids_, pages_,
      page_table_, weights_, counts_, sequences_there_;
  std::vector<SequenceRows> sequences_;
  std::vector<int32_t> host_ids_;
  const int64_t lower_key_[1] = {Backend::NewRepeatId()}, upper_key_[1] = {Backend::NewRepeatId()};
  Fused fused_;
};

DecodeStep::DecodeStep(OpMeter& meter, const NetworkShape& shape, int64_t readers)
    : backend_(meter.backend()),
      c_(shape),
      readers_(readers),
      q_proj_(meter.Weight(c_.d_model, c_.d_model)),
      o_proj_(meter.Weight(c_.d_model, c_.d_model)),
      retrieval_(meter.Weight(c_.landmark, c_.d_model)),
      table_(meter.Weight(c_.vocab, c_.d_model, /*embed=*/true)) {
  // A weight of its own for each layer, as the caches see them.
  for (int64_t i = 0; i < kLayers; ++i) {
    in_projs_.push_back(meter.Weight(c_.in_proj(), c_.d_model));
    out_projs_.push_back(meter.Weight(c_.d_model, c_.inner()));
  }
  const int64_t R = readers, inner = c_.inner(), page_elements = 2 * c_.chunk * c_.attention_dim();
  product_stride_ = in_projs_.front()->out_columns();
  vectors_ = meter.Floats(8 * (c_.d_model + inner + c_.conv_dim()));
  hidden_ = meter.Floats(R * c_.d_model);
  operand_ = meter.Floats(R * inner);
  product_ = meter.Floats(R * product_stride_);
  conv_ = meter.Floats(R * c_.conv_dim());
  y_ = meter.Floats(R * inner);
  logits_ = meter.Floats(R * table_->out_columns());
  states_ = meter.Floats(R * kLayers * layer_floats_);
  queries_ = meter.Floats(R * c_.landmark);
  ids_ = OrDie(backend_.Allocate(R * 4));
  pages_ = meter.Halves(kPoolPages * page_elements);
  page_table_ = OrDie(backend_.Allocate(R * kPages * 8));
  weights_ = meter.Floats(R * kPages);
  counts_ = OrDie(backend_.Allocate(R * 4));
  sequences_there_ = OrDie(backend_.Allocate(R * sizeof(SequenceRows)));
  host_ids_.assign(R, 17);
  const std::vector<int32_t> host_counts(R, kPages);
  std::vector<const void*> host_pages;
  for (int64_t i = 0; i < R * kPages; ++i) {
    host_pages.push_back(
        pages_.as<Bf16>(static_cast<int64_t>(meter.random()() % kPoolPages) * page_elements * 2));
  }
  for (int64_t i = 0; i < R; ++i) {
    sequences_.push_back({.row_begin = i,
                          .row_count = 1,
                          .state = states_.as<float>() + i * kLayers * layer_floats_});
  }
  OrDie(backend_.CopyIn(ids_.data(), host_ids_.data(), R * 4));
  OrDie(backend_.CopyIn(counts_.data(), host_counts.data(), R * 4));
  OrDie(backend_.CopyIn(page_table_.data(), host_pages.data(), R * kPages * 8));
}

absl::Status DecodeStep::Norm(const Buffer& a, int64_t stride, const float* gate, int64_t width) {
  if (gate == nullptr) {
    return backend_.RmsNorm({.in = a.as<float>(),
                             .in_stride = stride,
                             .weight = vectors_.as<float>(),
                             .eps = 1e-5f,
                             .rows = readers_,
                             .width = width,
                             .out = operand_.data(),
                             .out_stride = width});
  }
  return backend_.GateNorm({.y = a.as<float>(),
                            .y_stride = stride,
                            .z = gate,
                            .z_stride = product_stride_,
                            .weight = vectors_.as<float>(),
                            .eps = 1e-5f,
                            .rows = readers_,
                            .width = width,
                            .out = operand_.data(),
                            .out_stride = width});
}

absl::Status DecodeStep::Multiply(const PackedWeight& weight, const Buffer& a, int64_t stride,
                                  const Buffer& out, bool normed, const float* gate,
                                  bool accumulate) {
  MatmulParams p = {.a = a.data(),
                    .a_stride = stride,
                    .rows = readers_,
                    .weight = &weight,
                    .out = out.as<float>(),
                    .accumulate = accumulate,
                    .per_row = true};
  if (normed && fused_.norms) {
    p.norm = {.weight = vectors_.as<float>(),
              .eps = 1e-5f,
              .gate = gate,
              .gate_stride = product_stride_,
              .normed = operand_.data()};
  } else if (normed) {
    const absl::Status status = Norm(a, stride, gate, weight.cols());
    if (!status.ok()) return status;
    p.a = operand_.data();
    p.a_stride = weight.cols();
  }
  return backend_.Matmul(p);
}

void DecodeStep::Mamba(int64_t layer) {
  OrDie(Multiply(*in_projs_[layer], hidden_, c_.d_model, product_, true, nullptr, false));
  const int64_t inner = c_.inner(), state_offset = layer * layer_floats_;
  const float* const w = vectors_.as<float>();
  const ConvSiluParams convolve = {.in = product_.as<float>() + inner,
                                   .in_stride = product_stride_,
                                   .weight = w,
                                   .bias = w,
                                   .taps = c_.taps,
                                   .channels = c_.conv_dim(),
                                   .sequences = sequences_.data(),
                                   .sequence_count = readers_,
                                   .state_offset = state_offset,
                                   .rows = readers_,
                                   .out = conv_.as<float>(),
                                   .out_stride = c_.conv_dim()};
  SsdParams ssd = {.xbc = conv_.as<float>(),
                   .xbc_stride = c_.conv_dim(),
                   .dt = product_.as<float>() + inner + c_.conv_dim(),
                   .dt_stride = product_stride_,
                   .dt_bias = w,
                   .a_log = w,
                   .d_skip = w,
                   .heads = c_.heads,
                   .head_dim = c_.head_dim,
                   .state_size = c_.state,
                   .sequences = sequences_.data(),
                   .sequence_count = readers_,
                   .state_offset = state_offset + c_.conv_floats(),
                   .rows = readers_,
                   .y = y_.as<float>(),
                   .y_stride = inner};
  if (fused_.convolution) {
    ssd.backend_sequences = sequences_there_.as<SequenceRows>();
    OrDie(backend_.ConvSsmStep(convolve, ssd));
  } else {
    OrDie(backend_.ConvSilu(convolve));
    OrDie(backend_.SsmStep(ssd));
  }
  OrDie(Multiply(*out_projs_[layer], y_, inner, hidden_, true, product_.as<float>(), true));
}

void DecodeStep::Attention() {
  OrDie(Multiply(*q_proj_, hidden_, c_.d_model, product_, true, nullptr, false));
  OrDie(backend_.HeadNorm({.data = product_.as<float>(),
                           .stride = q_proj_->out_columns(),
                           .weight = vectors_.as<float>(),
                           .eps = 1e-5f,
                           .rows = readers_,
                           .heads = c_.attention_heads,
                           .head_dim = c_.attention_dim()}));
  OrDie(backend_.HsaAttend({.q = product_.as<float>(),
                            .q_stride = q_proj_->out_columns(),
                            .pages = page_table_.as<const void*>(),
                            .weights = weights_.as<float>(),
                            .page_counts = counts_.as<int32_t>(),
                            .pages_max = kPages,
                            .pages_resident = true,
                            .page_dtype = DType::kBf16,
                            .rows = readers_,
                            .heads = c_.attention_heads,
                            .head_dim = c_.attention_dim(),
                            .chunk_tokens = c_.chunk,
                            .out = operand_.data(),
                            .out_stride = c_.d_model}));
  OrDie(Multiply(*o_proj_, operand_, c_.d_model, hidden_, false, nullptr, true));
}

absl::Status DecodeStep::Lower() {
  OrDie(backend_.Embed({.ids = ids_.as<int32_t>(),
                        .rows = readers_,
                        .table = table_.get(),
                        .out = hidden_.as<float>(),
                        .out_stride = c_.d_model}));
  for (int64_t i = 0; i < kLayers / 2; ++i) Mamba(i);
  OrDie(Multiply(*retrieval_, hidden_, c_.d_model, product_, true, nullptr, false));
  return backend_.RmsNorm({.in = product_.as<float>(),
                           .in_stride = retrieval_->out_columns(),
                           .weight = vectors_.as<float>(),
                           .eps = 1e-5f,
                           .rows = readers_,
                           .width = c_.landmark,
                           .out = queries_.data(),
                           .out_stride = c_.landmark});
}

absl::Status DecodeStep::Upper() {
  for (int64_t i = kLayers / 2; i < kLayers; ++i) {
    if (i % (kLayers / 2 / kHsaLayers) == 0) Attention();
    Mamba(i);
  }
  OrDie(Multiply(*table_, hidden_, c_.d_model, logits_, true, nullptr, false));
  return backend_.ArgMax({.in = logits_.as<float>(),
                          .in_stride = table_->out_columns(),
                          .rows = readers_,
                          .columns = c_.vocab,
                          .out = ids_.as<int32_t>()});
}

absl::Status DecodeStep::Run(const Fused& fused, bool repeat, bool wait) {
  fused_ = fused;
  OrDie(backend_.CopyIn(sequences_there_.data(), sequences_.data(),
                        readers_ * static_cast<int64_t>(sizeof(SequenceRows))));
  if (repeat) {
    OrDie(backend_.Repeat(lower_key_, [&] { return Lower(); }));
    OrDie(backend_.Repeat(upper_key_, [&] { return Upper(); }));
  } else {
    OrDie(Lower());
    OrDie(Upper());
  }
  if (!wait) return absl::OkStatus();
  return backend_.CopyOut(host_ids_.data(), ids_.data(), readers_ * 4);
}

}  // namespace

void MeasureDecodeSteps(OpMeter& meter, const NetworkShape& shape, int64_t readers) {
  std::printf("-- decode step, %lld readers: us a step\n", static_cast<long long>(readers));
  DecodeStep step(meter, shape, readers);
  for (const bool wait : {true, false}) {
    const std::string how = wait ? ", waiting" : ", queued";
    const auto line = [&](const std::string& name, const Fused& fused, bool repeat) {
      meter.Line(name + how, step.bytes(), 0, [&] { return step.Run(fused, repeat, wait); });
    };
    line("separate", {}, false);
    line("norms in products", {.norms = true}, false);
    line("and ConvSsmStep", {.norms = true, .convolution = true}, false);
    line("and repeated", {.norms = true, .convolution = true}, true);
  }
}

}  // namespace mneme::bench
