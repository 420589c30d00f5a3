#include "bench/cuda_ops/decode_ops.h"

#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace mneme::bench {
namespace {

constexpr int64_t kInGraph = 20;  // repetitions of an operation in a graph

// One row of each reader; a reader's state is `stride` floats behind the one before it.
std::vector<SequenceRows> RowOfEach(int64_t readers, const Buffer& states, int64_t stride) {
  std::vector<SequenceRows> sequences;
  for (int64_t i = 0; i < readers; ++i) {
    sequences.push_back({.row_begin = i, .row_count = 1, .state = states.as<float>() + i * stride});
  }
  return sequences;
}

void MeasureProduct(OpMeter& meter, const std::string& name, const PackedWeight& weight,
                    const Buffer& a, const Buffer& out, int64_t rows) {
  const double cells = static_cast<double>(rows * weight.rows());
  meter.Line(name + " " + std::to_string(weight.rows()) + "x" + std::to_string(weight.cols()),
             static_cast<double>(rows * weight.cols()) * 4 +
                 static_cast<double>(weight.rows() * weight.cols()) + cells * 4,
             2 * cells * static_cast<double>(weight.cols()), [&] {
               return meter.backend().Matmul({.a = a.data(),
                                              .a_dtype = DType::kF32,
                                              .a_stride = weight.cols(),
                                              .rows = rows,
                                              .weight = &weight,
                                              .out = out.as<float>(),
                                              .per_row = true});
             });
}

// The weights of a step, and what readers of one number need for its operations.
class GraphOps {
 public:
  GraphOps(OpMeter& meter, const NetworkShape& shape)
      : meter_(meter),
        c_(shape),
        in_proj_(meter.Weight(shape.in_proj(), shape.d_model)),
        out_proj_(meter.Weight(shape.d_model, shape.inner())),
        table_(meter.Weight(shape.vocab, shape.d_model)),
        small_(meter.Weight(shape.d_model, shape.d_model)) {}

  void Measure(int64_t readers) {
    std::printf("-- %lld readers, %lld in a graph: us for one\n", static_cast<long long>(readers),
                static_cast<long long>(kInGraph));
    readers_ = readers;
    a_ = meter_.Floats(readers * c_.inner());
    out_ = meter_.Floats(readers * table_->out_columns());
    gate_ = meter_.Floats(readers * c_.inner());
    vectors_ = meter_.Floats(8 * (c_.inner() + c_.conv_dim()));
    normed_ = meter_.Floats(readers * c_.inner());
    Product("in_proj", *in_proj_, {});
    Product("in_proj, normed", *in_proj_, {.normalize = true});
    Product("out_proj, gated, normed, added", *out_proj_,
            {.gated = true, .normalize = true, .accumulate = true});
    Product("o_proj, added", *small_, {.accumulate = true});
    Product("logits, normed", *table_, {.normalize = true});
    const Buffer best = OrDie(meter_.backend().Allocate(readers * 4));
    Line("ArgMax", static_cast<double>(readers * c_.vocab) * 4, 0, [&](int64_t) {
      return meter_.backend().ArgMax({.in = out_.as<float>(),
                                      .in_stride = table_->out_columns(),
                                      .rows = readers,
                                      .columns = c_.vocab,
                                      .out = best.as<int32_t>()});
    });
    Look();
    Steps();
  }

 private:
  // work(i): the i-th of the graph.
  void Line(const std::string& name, double bytes, double ops,
            const std::function<absl::Status(int64_t)>& work) {
    const int64_t key[] = {Backend::NewRepeatId()};
    const Spread all = meter_.Measure([&] {
      return meter_.backend().Repeat(key, [&] {
        for (int64_t i = 0; i < kInGraph; ++i) OrDie(work(i));
        return absl::OkStatus();
      });
    });
    const auto one = [](double seconds) { return seconds / kInGraph; };
    meter_.Print(name, {one(all.median), one(all.min), one(all.max)}, bytes, ops);
  }

  struct ProductOptions {
    bool gated = false, normalize = false, accumulate = false;
  };
  void Product(const std::string& name, const PackedWeight& weight, const ProductOptions& options) {
    const auto cells = static_cast<double>(readers_ * weight.rows());
    const auto K = static_cast<double>(weight.cols());
    MatmulParams p = {.a = a_.data(),
                      .a_stride = weight.cols(),
                      .rows = readers_,
                      .weight = &weight,
                      .out = out_.as<float>(),
                      .accumulate = options.accumulate,
                      .per_row = true};
    if (options.normalize) {
      p.norm = {.weight = vectors_.as<float>(),
                .eps = 1e-5f,
                .gate = options.gated ? gate_.as<float>() : nullptr,
                .gate_stride = c_.inner(),
                .normed = normed_.data()};
    }
    Line(name,
         static_cast<double>(weight.rows()) * K + static_cast<double>(readers_) * 4 * K + cells * 4,
         2 * cells * K, [&](int64_t) { return meter_.backend().Matmul(p); });
  }

  // The second look, as many heads as HSA has, each repetition at pages of its own choice.
  void Look() {
    constexpr int64_t kPages = 8, kPoolPages = 4096;
    Backend& backend = meter_.backend();
    const int64_t cells = readers_ * kPages;
    const int64_t page_elements = 2 * c_.chunk * c_.attention_dim();
    const Buffer pool = meter_.Halves(kPoolPages * page_elements),
                 table = OrDie(backend.Allocate(kInGraph * cells * 8)),
                 counts = OrDie(backend.Allocate(readers_ * 4)), scores = meter_.Floats(cells),
                 corrected = meter_.Floats(cells), weights = meter_.Floats(cells);
    std::vector<const void*> host_table;
    for (int64_t i = 0; i < kInGraph * cells; ++i) {
      const auto page = static_cast<int64_t>(meter_.random()() % kPoolPages);
      host_table.push_back(pool.as<Bf16>(page * page_elements * 2));
    }
    const std::vector<int32_t> host_counts(static_cast<size_t>(readers_), kPages);
    OrDie(backend.CopyIn(table.data(), host_table.data(), kInGraph * cells * 8));
    OrDie(backend.CopyIn(counts.data(), host_counts.data(), readers_ * 4));
    const int64_t width = c_.attention_heads * c_.attention_dim();
    Line("ChunkLook", static_cast<double>(cells * page_elements),
         static_cast<double>(cells * page_elements * c_.attention_heads), [&](int64_t i) {
           return backend.ChunkLook({.q = a_.as<float>(),
                                     .q_stride = width,
                                     .pages = table.as<const void*>() + i * cells,
                                     .page_counts = counts.as<int32_t>(),
                                     .pages_max = kPages,
                                     .pages_resident = true,
                                     .page_dtype = DType::kBf16,
                                     .scores = scores.as<float>(),
                                     .head_weight = vectors_.as<float>(),
                                     .rows = readers_,
                                     .heads = c_.attention_heads,
                                     .head_dim = c_.attention_dim(),
                                     .chunk_tokens = c_.chunk,
                                     .corrected = corrected.as<float>(),
                                     .weights = weights.as<float>()});
         });
  }

  // The recurrence, each repetition with states of its own, without and with the convolution.
  void Steps() {
    const int64_t conv_floats = c_.conv_floats(), floats = conv_floats + c_.state_floats();
    const Buffer states = meter_.Floats(readers_ * floats * kInGraph),
                 y = meter_.Floats(readers_ * c_.inner()),
                 conv = meter_.Floats(readers_ * c_.conv_dim()),
                 there = OrDie(meter_.backend().Allocate(readers_ * sizeof(SequenceRows)));
    const std::vector<SequenceRows> sequences = RowOfEach(readers_, states, floats * kInGraph);
    OrDie(meter_.backend().CopyIn(there.data(), sequences.data(),
                                  readers_ * static_cast<int64_t>(sizeof(SequenceRows))));
    const float* const w = vectors_.as<float>();
    for (const bool convolution : {false, true}) {
      Line(convolution ? "ConvSsmStep" : "SsmStep",
           static_cast<double>(readers_ * (convolution ? floats : floats - conv_floats)) * 8,
           static_cast<double>(readers_ * floats) * 5, [&](int64_t i) {
             const SsdParams ssd = {.xbc = conv.as<float>(),
                                    .xbc_stride = c_.conv_dim(),
                                    .dt = a_.as<float>(),
                                    .dt_stride = c_.heads,
                                    .dt_bias = w,
                                    .a_log = w,
                                    .d_skip = w,
                                    .heads = c_.heads,
                                    .head_dim = c_.head_dim,
                                    .state_size = c_.state,
                                    .sequences = sequences.data(),
                                    .sequence_count = readers_,
                                    .backend_sequences = there.as<SequenceRows>(),
                                    .state_offset = i * floats + conv_floats,
                                    .rows = readers_,
                                    .y = y.as<float>(),
                                    .y_stride = c_.inner()};
             if (!convolution) return meter_.backend().SsmStep(ssd);
             return meter_.backend().ConvSsmStep({.in = out_.as<float>(),
                                                  .in_stride = c_.conv_dim(),
                                                  .weight = w,
                                                  .bias = w,
                                                  .taps = c_.taps,
                                                  .channels = c_.conv_dim(),
                                                  .sequences = sequences.data(),
                                                  .sequence_count = readers_,
                                                  .state_offset = i * floats,
                                                  .rows = readers_,
                                                  .out = conv.as<float>(),
                                                  .out_stride = c_.conv_dim()},
                                                 ssd);
           });
    }
  }

  OpMeter& meter_;
  const NetworkShape& c_;
  const std::unique_ptr<PackedWeight> in_proj_, out_proj_, table_, small_;
  int64_t readers_ = 0;
  Buffer a_, out_, gate_, vectors_, normed_;
};

}  // namespace

void MeasureDecodeOps(OpMeter& meter, const NetworkShape& c) {
  const auto in_proj = meter.Weight(c.in_proj(), c.d_model),
             logits = meter.Weight(c.vocab, c.d_model);
  for (const int64_t readers : {1, 16, 256}) {
    std::printf("-- decode, %lld readers\n", static_cast<long long>(readers));
    const Buffer a = meter.Floats(readers * c.d_model),
                 out = meter.Floats(readers * (c.vocab + 16)),
                 xbc = meter.Floats(readers * c.conv_dim()), heads = meter.Floats(3 * c.heads);
    MeasureProduct(meter, "Matmul in_proj, per row", *in_proj, a, out, readers);
    MeasureProduct(meter, "Matmul logits, per row", *logits, a, out, readers);
    const Buffer states = meter.Floats(readers * c.state_floats()),
                 y = meter.Floats(readers * c.inner());
    const std::vector<SequenceRows> sequences = RowOfEach(readers, states, c.state_floats());
    meter.Line("SsmStep", static_cast<double>(readers * c.state_floats()) * 8,
               static_cast<double>(readers * c.state_floats()) * 5, [&] {
                 return meter.backend().SsmStep({.xbc = xbc.as<float>(),
                                                 .xbc_stride = c.conv_dim(),
                                                 .dt = a.as<float>(),
                                                 .dt_stride = c.heads,
                                                 .dt_bias = heads.as<float>(),
                                                 .a_log = heads.as<float>() + c.heads,
                                                 .d_skip = heads.as<float>() + 2 * c.heads,
                                                 .heads = c.heads,
                                                 .head_dim = c.head_dim,
                                                 .state_size = c.state,
                                                 .sequences = sequences.data(),
                                                 .sequence_count = readers,
                                                 .rows = readers,
                                                 .y = y.as<float>(),
                                                 .y_stride = c.inner()});
               });
  }
}

void MeasureDecodeOpsInGraphs(OpMeter& meter, const NetworkShape& shape) {
  GraphOps ops(meter, shape);
  for (const int64_t readers : {1, 16, 32, 64, 256}) ops.Measure(readers);
}

}  // namespace mneme::bench
