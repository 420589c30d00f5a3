// Each operation of the network on a GPU, at the shapes of ingest and decode: time, bytes that must
// move, operations that must be done, and the share of what the same device reaches, in the same
// run, on a plain copy and on a large product of bf16 matrices.
//
// Usage: cuda_ops_bench [small|370m] [rows] [own|ingest]
//        cuda_ops_bench ssd
//        cuda_ops_bench decode
// `ingest`: without decode. `own`: products of many rows by our own kernel, without cuBLASLt.
// `ssd`: the recurrence alone, at the shapes of Mamba-2 130M over 16384 tokens, for
// bench/peers/ssd_peer.py beside it. `decode`: one step of readers that advance by a token each,
// with all its operations but the landmark scan.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/measure.h"
#include "kernels/backend.h"

namespace mneme::bench {
namespace {

constexpr int kRepetitions = 21;
constexpr double kSecondsPerRepetition = 0.004;

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  if (!value.ok()) {
    std::fprintf(stderr, "%s\n", value.status().ToString().c_str());
    std::exit(1);
  }
  return *std::move(value);
}
void OrDie(const absl::Status& status) {
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    std::exit(1);
  }
}

// Sizes as in docs/model.md.
struct Shape {
  int64_t d_model, heads, head_dim, state, taps, attention_heads, ffn, chunk, landmark, vocab;
  int64_t lower_layers, encoder_layers;
  int64_t inner() const { return heads * head_dim; }
  int64_t conv_dim() const { return inner() + 2 * state; }
  int64_t in_proj() const { return 2 * inner() + 2 * state + heads; }
};
constexpr Shape kSmall = {.d_model = 384,
                          .heads = 12,
                          .head_dim = 64,
                          .state = 64,
                          .taps = 4,
                          .attention_heads = 6,
                          .ffn = 1024,
                          .chunk = 64,
                          .landmark = 256,
                          .vocab = 8192,
                          .lower_layers = 6,
                          .encoder_layers = 2};
constexpr Shape k370m = {.d_model = 1024,
                         .heads = 32,
                         .head_dim = 64,
                         .state = 128,
                         .taps = 4,
                         .attention_heads = 16,
                         .ffn = 2816,
                         .chunk = 64,
                         .landmark = 1024,
                         .vocab = 32000,
                         .lower_layers = 24,
                         .encoder_layers = 2};

constexpr Shape kMamba130m = {.d_model = 768, .heads = 24, .head_dim = 64, .state = 128, .taps = 4};

class Bench {
 public:
  Bench(Backend& backend, const Shape& shape, int64_t rows)
      : backend_(backend), shape_(shape), rows_(rows) {
    std::normal_distribution<float> normal;
    noise_.resize(1 << 20);
    for (float& v : noise_) v = normal(random_);
  }

  void Run() {
    PrintHead();
    Ingest();
    Decode();
  }

  void RunIngest() {
    PrintHead();
    Ingest();
  }

  void RunDecode() {
    PrintHead();
    for (const int64_t readers : {1, 16, 64, 256}) {
      std::printf("-- decode step, %lld readers: us a step\n", static_cast<long long>(readers));
      Steps(readers);
    }
    DecodeOperations();
  }

  void RunSsd() {
    PrintHead();
    const DType activation = backend_.activation_dtype(DType::kBf16);
    for (const int64_t sequences : {1, 4, 16}) Recurrence(sequences, activation);
    if (activation == DType::kF32) return;
    for (const int64_t sequences : {1, 4, 16}) Recurrence(sequences, DType::kF32);
  }

 private:
  using Work = std::function<absl::Status()>;

  Buffer Floats(int64_t count) {
    Buffer buffer = OrDie(backend_.Allocate(count * 4));
    for (int64_t at = 0; at < count; at += static_cast<int64_t>(noise_.size())) {
      const int64_t part = std::min<int64_t>(count - at, static_cast<int64_t>(noise_.size()));
      OrDie(backend_.CopyIn(buffer.as<float>(at * 4), noise_.data(), part * 4));
    }
    return buffer;
  }
  Buffer Halves(int64_t count) {
    std::vector<Bf16> halves;
    for (float v : noise_) halves.push_back(FloatToBf16(v));
    Buffer buffer = OrDie(backend_.Allocate(count * 2));
    for (int64_t at = 0; at < count; at += static_cast<int64_t>(halves.size())) {
      const int64_t part = std::min<int64_t>(count - at, static_cast<int64_t>(halves.size()));
      OrDie(backend_.CopyIn(buffer.as<Bf16>(at * 2), halves.data(), part * 2));
    }
    return buffer;
  }
  std::unique_ptr<PackedWeight> Weight(int64_t rows, int64_t cols, bool embed = false,
                                       bool swiglu = false) {
    std::vector<int8_t> values(rows * cols);
    for (int8_t& v : values) v = static_cast<int8_t>(random_() % 255 - 127);
    const std::vector<float> scale(rows, 0.01f);
    return OrDie(
        backend_.PackWeight({{.dtype = DType::kI8,
                              .rows = rows,
                              .cols = cols,
                              .data = values.data(),
                              .scale = scale.data()}},
                            {.compute_dtype = DType::kBf16, .embed = embed, .swiglu = swiglu}));
  }

  // Seconds of one call among many that are queued back to back.
  Spread Measure(const Work& work) {
    char sink[4];
    const auto run = [&](int64_t count) {
      return Seconds([&] {
        for (int64_t i = 0; i < count; ++i) OrDie(work());
        OrDie(backend_.CopyOut(sink, sync_.data(), 4));
      });
    };
    run(3);
    const double once = run(10) / 10;
    const int64_t count = std::max<int64_t>(3, static_cast<int64_t>(kSecondsPerRepetition / once));
    std::vector<double> seconds;
    for (int i = 0; i < kRepetitions; ++i)
      seconds.push_back(run(count) / static_cast<double>(count));
    return SpreadOf(std::move(seconds));
  }

  void PrintHead() {
    MeasureCeilings();
    std::printf("%-34s %10s %8s %8s %9s %9s %7s\n", "operation", "median us", "min", "max", "GB/s",
                "TFLOP/s", "floor");
  }

  // rows_ tokens in `sequences` equal sequences; rows of x, B, C and y in `io_dtype`.
  void Recurrence(int64_t sequences, DType io_dtype) {
    const Shape& c = shape_;
    const int64_t values = rows_ * c.conv_dim();
    const Buffer xbc = io_dtype == DType::kBf16 ? Halves(values) : Floats(values),
                 dt = Floats(rows_ * c.heads), heads = Floats(3 * c.heads),
                 states = Floats(sequences * c.inner() * c.state), y = Floats(rows_ * c.inner());
    std::vector<SequenceRows> sequence_rows;
    for (int64_t i = 0; i < sequences; ++i) {
      sequence_rows.push_back({.row_begin = i * (rows_ / sequences),
                               .row_count = rows_ / sequences,
                               .state = states.as<float>() + i * c.inner() * c.state});
    }
    const SsdParams ssd = {.xbc = xbc.as<float>(),
                           .xbc_stride = c.conv_dim(),
                           .dt = dt.as<float>(),
                           .dt_stride = c.heads,
                           .dt_bias = heads.as<float>(),
                           .a_log = heads.as<float>() + c.heads,
                           .d_skip = heads.as<float>() + 2 * c.heads,
                           .heads = c.heads,
                           .head_dim = c.head_dim,
                           .state_size = c.state,
                           .sequences = sequence_rows.data(),
                           .sequence_count = sequences,
                           .rows = rows_,
                           .y = y.as<float>(),
                           .y_stride = c.inner(),
                           .compute_dtype = DType::kBf16,
                           .io_dtype = io_dtype};
    const auto rows = static_cast<double>(rows_), N = static_cast<double>(c.state);
    Line("Ssd, " + std::to_string(sequences) + " x " + std::to_string(rows_ / sequences) + ", " +
             std::string(DTypeName(io_dtype)) + " rows",
         rows * (static_cast<double>((c.conv_dim() + c.inner()) * DTypeBytes(io_dtype)) +
                 static_cast<double>(c.heads) * 4),
         rows * static_cast<double>(c.heads) *
             (64 * N + 64 * static_cast<double>(c.head_dim) +
              4 * N * static_cast<double>(c.head_dim)),
         [&] { return backend_.Ssd(ssd); });
  }

  void MeasureCeilings() {
    const int64_t bytes = int64_t{1} << 30;
    const Buffer from = Floats(bytes / 4), to = OrDie(backend_.Allocate(bytes));
    const double copy =
        Measure([&] { return backend_.Copy(to.data(), from.data(), bytes); }).median;
    bytes_per_second_ = 2.0 * static_cast<double>(bytes) / copy;
    const int64_t n = 8192;
    const Buffer a = Halves(n * n), out = OrDie(backend_.Allocate(n * n * 4));
    std::vector<Bf16> random(n * n);
    for (Bf16& v : random) v = FloatToBf16(noise_[random_() % noise_.size()]);
    const auto weight = OrDie(
        backend_.PackWeight({{.dtype = DType::kBf16, .rows = n, .cols = n, .data = random.data()}},
                            {.compute_dtype = DType::kBf16}));
    const double product = Measure([&] {
                             return backend_.Matmul({.a = a.data(),
                                                     .a_dtype = DType::kBf16,
                                                     .a_stride = n,
                                                     .rows = n,
                                                     .weight = weight.get(),
                                                     .out = out.as<float>()});
                           }).median;
    ops_per_second_ = 2.0 * static_cast<double>(n) * static_cast<double>(n * n) / product;
    std::printf("copy %.3f TB/s read and written; bf16 product of %lld cubed %.0f TFLOP/s\n\n",
                bytes_per_second_ / 1e12, static_cast<long long>(n), ops_per_second_ / 1e12);
  }

  // `bytes`: each input read once and each output written once. `ops`: multiplications and
  // additions.
  void Line(const std::string& name, double bytes, double ops, const Work& work) {
    const Spread s = Measure(work);
    const double floor = std::max(bytes / bytes_per_second_, ops / ops_per_second_);
    std::printf("%-34s %10.2f %8.2f %8.2f %9.0f %9.1f %6.1f%%\n", name.c_str(), s.median * 1e6,
                s.min * 1e6, s.max * 1e6, bytes / s.median / 1e9, ops / s.median / 1e12,
                100 * floor / s.median);
    std::fflush(stdout);
  }

  void Product(const std::string& name, const PackedWeight& weight, const Buffer& a,
               const Buffer& out, int64_t rows, bool accumulate, bool per_row) {
    const double cells = static_cast<double>(rows * weight.rows());
    const double bytes = static_cast<double>(rows * weight.cols()) * (per_row ? 4 : 2) +
                         static_cast<double>(weight.rows() * weight.cols()) * (per_row ? 1 : 2) +
                         cells * (accumulate ? 8 : 4);
    Line(name + " " + std::to_string(weight.rows()) + "x" + std::to_string(weight.cols()), bytes,
         2 * cells * static_cast<double>(weight.cols()), [&] {
           return backend_.Matmul({.a = a.data(),
                                   .a_dtype = per_row ? DType::kF32 : DType::kBf16,
                                   .a_stride = weight.cols(),
                                   .rows = rows,
                                   .weight = &weight,
                                   .out = out.as<float>(),
                                   .accumulate = accumulate,
                                   .per_row = per_row});
         });
  }

  // One operation of a pass.
  struct Step {
    std::string name;
    double bytes, ops;  // as for Line
    Work work;
  };

  Step ProductStep(const std::string& name, const PackedWeight& weight, const MatmulParams& p) {
    const double cells = static_cast<double>(p.rows * weight.rows());
    const double out_bytes = p.next.unscale != nullptr     ? 4
                             : p.next.weight != nullptr    ? 10
                             : p.accumulate                ? 8
                             : weight.swiglu()             ? 1
                             : p.out_dtype == DType::kBf16 ? 2
                                                           : 4;
    return {name + " " + std::to_string(weight.rows()) + "x" + std::to_string(weight.cols()),
            static_cast<double>((p.rows + weight.rows()) * weight.cols()) * 2 + cells * out_bytes,
            2 * cells * static_cast<double>(weight.cols()), [this, &weight, p] {
              MatmulParams run = p;
              run.a_dtype = DType::kBf16;
              run.a_stride = weight.cols();
              run.weight = &weight;
              run.swiglu = weight.swiglu();
              return backend_.Matmul(run);
            }};
  }

  // The lower half of the network, from token ids to pages and landmarks, in the order of
  // RambaModel::LowerPass: each operation of it on its own, then the whole.
  void Ingest() {
    const Shape& c = shape_;
    const int64_t R = rows_, chunks = R / c.chunk, E = chunks * (c.chunk + 1);
    const double rows = static_cast<double>(R), erows = static_cast<double>(E);
    const DType activation = backend_.activation_dtype(DType::kBf16);
    const bool halves = activation == DType::kBf16;
    const double size = DTypeBytes(activation);
    std::printf("-- ingest, %lld rows in sequences of 4096, activations in %s\n",
                static_cast<long long>(R), halves ? "bf16" : "f32");
    const int64_t head_dim = c.d_model / c.attention_heads;
    const int64_t parts = (c.d_model + kSquareColumns - 1) / kSquareColumns;
    const auto table = Weight(c.vocab, c.d_model, /*embed=*/true);
    const auto in_proj = Weight(c.in_proj(), c.d_model), out_proj = Weight(c.d_model, c.inner()),
               qkv = Weight(3 * c.d_model, c.d_model), attn_out = Weight(c.d_model, c.d_model),
               gate_up = Weight(2 * c.ffn, c.d_model, /*embed=*/false, /*swiglu=*/halves),
               down = Weight(c.d_model, c.ffn), kv = Weight(2 * head_dim, c.d_model),
               landmark = Weight(c.landmark, c.d_model);
    const int64_t wide = std::max({2 * c.ffn, in_proj->out_columns(), 3 * c.d_model});
    const auto activations = [&](int64_t count) { return halves ? Halves(count) : Floats(count); };
    const Buffer hidden = Floats(R * c.d_model), encoder = Floats(E * c.d_model),
                 product = Floats(E * wide), conv = activations(R * c.conv_dim()),
                 y = activations(R * c.inner()), dt = Floats(R * c.heads),
                 operand = Halves(E * std::max(c.inner(), c.ffn)), weight = Floats(wide * c.taps),
                 heads = Floats(3 * c.heads), turns = Floats((c.chunk + 1) * head_dim),
                 pages = Halves(R * 2 * head_dim), landmarks = Floats(chunks * c.landmark),
                 scaled = Halves(R * c.d_model), squares = Floats(R * parts),
                 encoder_scaled = Halves(E * c.d_model), encoder_squares = Floats(E * parts),
                 gate_squares = Floats(R * c.heads * ((c.head_dim + 63) / 64));
    // In bf16 the residual stream is nothing but the rows that are ready for the next norm; here
    // its weight is all ones.
    const float* w = weight.as<float>();
    const std::vector<float> all_ones(c.d_model, 1.0f);
    const Buffer ones = Floats(c.d_model);
    OrDie(backend_.CopyIn(ones.data(), all_ones.data(), c.d_model * 4));
    const auto next_of = [&](const Buffer& to, const Buffer& to_squares, bool added) {
      if (!halves) return NextNorm{};
      return NextNorm{.weight = ones.as<float>(),
                      .scaled = to.data(),
                      .squares = to_squares.as<float>(),
                      .unscale = added ? ones.as<float>() : nullptr};
    };
    const auto ready_of = [&](const Buffer& from_squares) {
      return OperandNorm{.eps = 1e-5f,
                         .squares = halves ? from_squares.as<float>() : nullptr,
                         .square_parts = parts,
                         .squares_stride = parts};
    };
    void* const hidden_out = halves ? nullptr : hidden.data();
    void* const encoder_out = halves ? nullptr : encoder.data();
    const void* const normed = halves ? scaled.data() : operand.data();
    const void* const encoder_normed = halves ? encoder_scaled.data() : operand.data();
    std::vector<int32_t> ids(R);
    for (int32_t& id : ids) id = static_cast<int32_t>(random_() % c.vocab);
    const Buffer device_ids = OrDie(backend_.Allocate(R * 4));
    OrDie(backend_.CopyIn(device_ids.data(), ids.data(), R * 4));
    const int64_t length = std::min<int64_t>(R, 4096), sequences = R / length;
    const int64_t state_floats = (c.taps - 1) * c.conv_dim() + c.inner() * c.state;
    const Buffer states = OrDie(backend_.Allocate(sequences * state_floats * 4));
    OrDie(backend_.Zero(states.data(), states.bytes()));
    std::vector<SequenceRows> sequence_rows;
    for (int64_t i = 0; i < sequences; ++i) {
      sequence_rows.push_back({.row_begin = i * length,
                               .row_count = length,
                               .state = states.as<float>() + i * state_floats});
    }
    const auto d = static_cast<double>(c.d_model), inner = static_cast<double>(c.inner());
    const auto N = static_cast<double>(c.state), conv_dim = static_cast<double>(c.conv_dim());
    const auto columns = [&](const Buffer& matrix, int64_t column) {
      return static_cast<const void*>(matrix.as<char>(column * DTypeBytes(activation)));
    };
    const auto norm = [&](const Buffer& in, int64_t norm_rows) {
      return Step{"RmsNorm", static_cast<double>(norm_rows) * d * 6, 0, [&, norm_rows] {
                    return backend_.RmsNorm({.in = in.as<float>(),
                                             .in_stride = c.d_model,
                                             .weight = w,
                                             .eps = 1e-5f,
                                             .rows = norm_rows,
                                             .width = c.d_model,
                                             .out = operand.data(),
                                             .out_dtype = DType::kBf16,
                                             .out_stride = c.d_model});
                  }};
    };

    const Step embed = {"Embed", rows * d * (halves ? 3 : 5), 0, [&] {
                          return backend_.Embed({.ids = device_ids.as<int32_t>(),
                                                 .rows = R,
                                                 .table = table.get(),
                                                 .out = static_cast<float*>(hidden_out),
                                                 .out_stride = c.d_model,
                                                 .next = next_of(scaled, squares, false)});
                        }};
    std::vector<Step> lower;
    if (!halves) lower.push_back(norm(hidden, R));
    const MatmulParams in_proj_params = {.a = normed,
                                         .a_dtype = DType::kBf16,
                                         .a_stride = c.d_model,
                                         .rows = R,
                                         .norm = ready_of(squares),
                                         .weight = in_proj.get(),
                                         .out = product.data(),
                                         .out_dtype = activation,
                                         .tail = halves ? dt.as<float>() : nullptr,
                                         .tail_columns = halves ? c.heads : 0,
                                         .tail_stride = c.heads};
    const ConvSiluParams conv_params = {.in = columns(product, c.inner()),
                                        .in_stride = in_proj->out_columns(),
                                        .weight = w,
                                        .bias = w,
                                        .taps = c.taps,
                                        .channels = c.conv_dim(),
                                        .sequences = sequence_rows.data(),
                                        .sequence_count = sequences,
                                        .rows = R,
                                        .out = conv.data(),
                                        .out_stride = c.conv_dim(),
                                        .io_dtype = activation};
    lower.push_back(ProductStep("Matmul in_proj", *in_proj, in_proj_params));
    lower.push_back({"ConvSilu", rows * conv_dim * 2 * size,
                     rows * conv_dim * 2 * static_cast<double>(c.taps),
                     [&] { return backend_.ConvSilu(conv_params); }});
    // In blocks of 64: C B, M x and the two products with the state. In bf16, with the gate.
    const int64_t gate_parts = c.heads * ((c.head_dim + 63) / 64);
    lower.push_back(
        {halves ? "Ssd with its gate" : "Ssd",
         rows * ((conv_dim + (halves ? 2 : 1) * inner) * size + static_cast<double>(c.heads) * 4),
         rows * static_cast<double>(c.heads) *
             (64 * N + 64 * static_cast<double>(c.head_dim) +
              4 * N * static_cast<double>(c.head_dim)),
         [&] {
           return backend_.Ssd(
               {.xbc = conv.as<float>(),
                .xbc_stride = c.conv_dim(),
                .dt = halves ? dt.as<float>() : product.as<float>() + c.inner() + c.conv_dim(),
                .dt_stride = halves ? c.heads : in_proj->out_columns(),
                .dt_bias = heads.as<float>(),
                .a_log = heads.as<float>() + c.heads,
                .d_skip = heads.as<float>() + 2 * c.heads,
                .heads = c.heads,
                .head_dim = c.head_dim,
                .state_size = c.state,
                .sequences = sequence_rows.data(),
                .sequence_count = sequences,
                .state_offset = (c.taps - 1) * c.conv_dim(),
                .rows = R,
                .y = y.as<float>(),
                .y_stride = c.inner(),
                .compute_dtype = DType::kBf16,
                .io_dtype = activation,
                .gate = halves ? SsdGate{.z = product.data(),
                                         .z_stride = in_proj->out_columns(),
                                         .weight = w,
                                         .squares = gate_squares.as<float>()}
                               : SsdGate{}});
         }});
    const Step gate_norm = {"GateNorm", rows * inner * (2 * size + 2), 0, [&] {
                              return backend_.GateNorm({.y = y.data(),
                                                        .y_stride = c.inner(),
                                                        .z = product.data(),
                                                        .z_stride = in_proj->out_columns(),
                                                        .in_dtype = activation,
                                                        .weight = w,
                                                        .eps = 1e-5f,
                                                        .rows = R,
                                                        .width = c.inner(),
                                                        .out = operand.data(),
                                                        .out_dtype = DType::kBf16,
                                                        .out_stride = c.inner()});
                            }};
    if (!halves) lower.push_back(gate_norm);
    const OperandNorm gated = {.eps = 1e-5f,
                               .squares = gate_squares.as<float>(),
                               .square_parts = gate_parts,
                               .squares_stride = gate_parts};
    lower.push_back(ProductStep("Matmul out_proj, added", *out_proj,
                                {.a = halves ? y.data() : operand.data(),
                                 .rows = R,
                                 .norm = halves ? gated : OperandNorm{},
                                 .out = hidden_out,
                                 .accumulate = true,
                                 .next = next_of(scaled, squares, true)}));

    const Step chunk_input = {
        "ChunkInput", (rows + erows) * d * (halves ? 2 : 4), 0, [&] {
          return backend_.ChunkInput({.hidden = hidden.as<float>(),
                                      .hidden_stride = c.d_model,
                                      .weight = w,
                                      .scaled = halves ? normed : nullptr,
                                      .squares = squares.as<float>(),
                                      .eps = 1e-5f,
                                      .cls = w,
                                      .chunks = chunks,
                                      .chunk_tokens = c.chunk,
                                      .width = c.d_model,
                                      .out = static_cast<float*>(encoder_out),
                                      .out_stride = c.d_model,
                                      .next = next_of(encoder_scaled, encoder_squares, false)});
        }};
    std::vector<Step> layer;
    if (!halves) layer.push_back(norm(encoder, E));
    layer.push_back(ProductStep("Matmul qkv", *qkv,
                                {.a = encoder_normed,
                                 .rows = E,
                                 .norm = ready_of(encoder_squares),
                                 .out = product.data(),
                                 .out_dtype = activation}));
    for (const int64_t column : {int64_t{0}, c.d_model}) {
      if (halves) break;
      layer.push_back({"HeadNorm with positions", erows * d * 8, 0, [&, column] {
                         return backend_.HeadNorm({.data = product.as<float>() + column,
                                                   .stride = qkv->out_columns(),
                                                   .weight = w,
                                                   .eps = 1e-5f,
                                                   .rows = E,
                                                   .heads = c.attention_heads,
                                                   .head_dim = head_dim,
                                                   .cosine = turns.as<float>(),
                                                   .sine = turns.as<float>(),
                                                   .period = c.chunk + 1});
                       }});
    }
    layer.push_back({halves ? "ChunkAttention with norms" : "ChunkAttention",
                     erows * d * (3 * size + 2), erows * 4 * d * static_cast<double>(c.chunk + 1),
                     [&] {
                       return backend_.ChunkAttention({.qkv = product.data(),
                                                       .in_dtype = activation,
                                                       .qkv_stride = qkv->out_columns(),
                                                       .groups = chunks,
                                                       .group_rows = c.chunk + 1,
                                                       .heads = c.attention_heads,
                                                       .head_dim = head_dim,
                                                       .q_norm = halves ? w : nullptr,
                                                       .k_norm = halves ? w : nullptr,
                                                       .eps = 1e-5f,
                                                       .cosine = turns.as<float>(),
                                                       .sine = turns.as<float>(),
                                                       .out = operand.data(),
                                                       .out_dtype = DType::kBf16,
                                                       .out_stride = c.d_model});
                     }});
    layer.push_back(ProductStep("Matmul attn_out, added", *attn_out,
                                {.a = operand.data(),
                                 .rows = E,
                                 .out = encoder_out,
                                 .accumulate = true,
                                 .next = next_of(encoder_scaled, encoder_squares, true)}));
    if (!halves) layer.push_back(norm(encoder, E));
    layer.push_back(ProductStep(halves ? "Matmul gate_up with SwiGlu" : "Matmul gate_up", *gate_up,
                                {.a = encoder_normed,
                                 .rows = E,
                                 .norm = ready_of(encoder_squares),
                                 .out = product.data(),
                                 .out_dtype = activation}));
    const auto ffn = static_cast<double>(c.ffn);
    if (!halves) {
      layer.push_back({"SwiGlu", erows * ffn * 10, 0, [&] {
                         return backend_.SwiGlu({.gate_up = product.as<float>(),
                                                 .gate_up_stride = gate_up->out_columns(),
                                                 .rows = E,
                                                 .width = c.ffn,
                                                 .out = operand.data(),
                                                 .out_dtype = DType::kBf16,
                                                 .out_stride = c.ffn});
                       }});
    }
    layer.push_back(ProductStep("Matmul down, added", *down,
                                {.a = halves ? product.data() : operand.data(),
                                 .rows = E,
                                 .out = encoder_out,
                                 .accumulate = true,
                                 .next = next_of(encoder_scaled, encoder_squares, true)}));
    std::vector<Step> last;
    if (!halves) last.push_back(norm(encoder, E));
    last.push_back(ProductStep("Matmul kv_proj", *kv,
                               {.a = encoder_normed,
                                .rows = E,
                                .norm = ready_of(encoder_squares),
                                .out = product.data()}));
    last.push_back({"WritePages", rows * static_cast<double>(head_dim) * 12, 0, [&] {
                      return backend_.WritePages({.k = product.as<float>(),
                                                  .v = product.as<float>() + head_dim,
                                                  .stride = 2 * head_dim,
                                                  .k_norm_weight = w,
                                                  .eps = 1e-5f,
                                                  .chunks = chunks,
                                                  .chunk_tokens = c.chunk,
                                                  .head_dim = head_dim,
                                                  .pages = pages.data(),
                                                  .page_dtype = DType::kBf16});
                    }});
    last.push_back(ProductStep("Matmul landmark", *landmark,
                               {.a = encoder_normed,
                                .rows = chunks,
                                .norm = ready_of(encoder_squares),
                                .out = product.data()}));
    last.push_back({"RmsNorm of landmarks", static_cast<double>(chunks * c.landmark) * 6, 0, [&] {
                      return backend_.RmsNorm({.in = product.as<float>(),
                                               .in_stride = landmark->out_columns(),
                                               .weight = w,
                                               .eps = 1e-5f,
                                               .rows = chunks,
                                               .width = c.landmark,
                                               .out = landmarks.data(),
                                               .out_dtype = DType::kBf16,
                                               .out_stride = c.landmark});
                    }});

    std::vector<Step> all = {embed};
    const auto add = [&](const std::vector<Step>& steps, int64_t times) {
      for (const Step& step : steps) Line(step.name, step.bytes, step.ops, step.work);
      for (int64_t i = 0; i < times; ++i) all.insert(all.end(), steps.begin(), steps.end());
    };
    Line(embed.name, embed.bytes, embed.ops, embed.work);
    add(lower, c.lower_layers);
    add({chunk_input}, 1);
    add(layer, c.encoder_layers);
    add(last, 1);
    double floor = 0;
    for (const Step& step : all) {
      floor += std::max(step.bytes / bytes_per_second_, step.ops / ops_per_second_);
    }
    const Spread whole = Measure([&] {
      for (const Step& step : all) {
        if (const absl::Status status = step.work(); !status.ok()) return status;
      }
      return absl::OkStatus();
    });
    std::printf(
        "%-34s %10.2f %8.2f %8.2f  %.3fM tokens/s, floor of the operations %.0f us, %.1f%%\n",
        "all of it, in order", whole.median * 1e6, whole.min * 1e6, whole.max * 1e6,
        rows / whole.median / 1e6, floor * 1e6, 100 * floor / whole.median);
    std::fflush(stdout);
  }

  // What a step costs as separate operations, with norms in their products, with the convolution in
  // the recurrence too, and repeated: with a wait for the chosen tokens at each step, as a server
  // has it, and queued back to back.
  void Steps(int64_t readers) {
    const Shape& c = shape_;
    constexpr int64_t kLayers = 12, kHsaLayers = 3, kPages = 8, kPoolPages = 4096;
    const int64_t R = readers, inner = c.inner(), attention_dim = c.d_model / c.attention_heads;
    const auto in_proj = Weight(c.in_proj(), c.d_model), out_proj = Weight(c.d_model, inner),
               q_proj = Weight(c.d_model, c.d_model), o_proj = Weight(c.d_model, c.d_model),
               retrieval = Weight(c.landmark, c.d_model),
               table = Weight(c.vocab, c.d_model, /*embed=*/true);
    // A weight of its own for each layer, as the caches see them.
    std::vector<std::unique_ptr<PackedWeight>> in_projs, out_projs;
    for (int64_t i = 0; i < kLayers; ++i) {
      in_projs.push_back(Weight(c.in_proj(), c.d_model));
      out_projs.push_back(Weight(c.d_model, inner));
    }
    const int64_t product_stride = in_proj->out_columns();
    const int64_t conv_floats = (c.taps - 1) * c.conv_dim();
    const int64_t layer_floats = conv_floats + inner * c.state;
    const Buffer vectors = Floats(8 * (c.d_model + inner + c.conv_dim())),
                 hidden = Floats(R * c.d_model), operand = Floats(R * inner),
                 product = Floats(R * product_stride), conv = Floats(R * c.conv_dim()),
                 y = Floats(R * inner), logits = Floats(R * table->out_columns()),
                 states = Floats(R * kLayers * layer_floats), queries = Floats(R * c.landmark),
                 ids = OrDie(backend_.Allocate(R * 4)),
                 pages = Halves(kPoolPages * 2 * c.chunk * attention_dim),
                 page_table = OrDie(backend_.Allocate(R * kPages * 8)),
                 weights = Floats(R * kPages), counts = OrDie(backend_.Allocate(R * 4)),
                 sequences_there = OrDie(backend_.Allocate(R * sizeof(SequenceRows)));
    const float* w = vectors.as<float>();
    std::vector<int32_t> host_ids(R, 17), host_counts(R, kPages);
    std::vector<const void*> host_pages;
    for (int64_t i = 0; i < R * kPages; ++i) {
      host_pages.push_back(pages.as<Bf16>(static_cast<int64_t>(random_() % kPoolPages) * 2 *
                                          c.chunk * attention_dim * 2));
    }
    std::vector<SequenceRows> sequences;
    for (int64_t i = 0; i < R; ++i) {
      sequences.push_back({.row_begin = i,
                           .row_count = 1,
                           .state = states.as<float>() + i * kLayers * layer_floats});
    }
    OrDie(backend_.CopyIn(ids.data(), host_ids.data(), R * 4));
    OrDie(backend_.CopyIn(counts.data(), host_counts.data(), R * 4));
    OrDie(backend_.CopyIn(page_table.data(), host_pages.data(), R * kPages * 8));

    bool norms = true, convolution = true;
    const auto multiply = [&](const PackedWeight& weight, const Buffer& a, int64_t stride,
                              const Buffer& out, bool normed, const float* gate,
                              bool accumulate) -> absl::Status {
      MatmulParams p = {.a = a.data(),
                        .a_stride = stride,
                        .rows = R,
                        .weight = &weight,
                        .out = out.as<float>(),
                        .accumulate = accumulate,
                        .per_row = true};
      if (normed && norms) {
        p.norm = {.weight = w,
                  .eps = 1e-5f,
                  .gate = gate,
                  .gate_stride = product_stride,
                  .normed = operand.data()};
      } else if (normed) {
        const absl::Status status = gate == nullptr
                                        ? backend_.RmsNorm({.in = a.as<float>(),
                                                            .in_stride = stride,
                                                            .weight = w,
                                                            .eps = 1e-5f,
                                                            .rows = R,
                                                            .width = weight.cols(),
                                                            .out = operand.data(),
                                                            .out_stride = weight.cols()})
                                        : backend_.GateNorm({.y = a.as<float>(),
                                                             .y_stride = stride,
                                                             .z = gate,
                                                             .z_stride = product_stride,
                                                             .weight = w,
                                                             .eps = 1e-5f,
                                                             .rows = R,
                                                             .width = weight.cols(),
                                                             .out = operand.data(),
                                                             .out_stride = weight.cols()});
        if (!status.ok()) return status;
        p.a = operand.data();
        p.a_stride = weight.cols();
      }
      return backend_.Matmul(p);
    };
    const auto mamba = [&](int64_t layer) {
      OrDie(multiply(*in_projs[layer], hidden, c.d_model, product, true, nullptr, false));
      const ConvSiluParams convolve = {.in = product.as<float>() + inner,
                                       .in_stride = product_stride,
                                       .weight = w,
                                       .bias = w,
                                       .taps = c.taps,
                                       .channels = c.conv_dim(),
                                       .sequences = sequences.data(),
                                       .sequence_count = R,
                                       .state_offset = layer * layer_floats,
                                       .rows = R,
                                       .out = conv.as<float>(),
                                       .out_stride = c.conv_dim()};
      SsdParams ssd = {.xbc = conv.as<float>(),
                       .xbc_stride = c.conv_dim(),
                       .dt = product.as<float>() + inner + c.conv_dim(),
                       .dt_stride = product_stride,
                       .dt_bias = w,
                       .a_log = w,
                       .d_skip = w,
                       .heads = c.heads,
                       .head_dim = c.head_dim,
                       .state_size = c.state,
                       .sequences = sequences.data(),
                       .sequence_count = R,
                       .state_offset = layer * layer_floats + conv_floats,
                       .rows = R,
                       .y = y.as<float>(),
                       .y_stride = inner};
      if (convolution) {
        ssd.backend_sequences = sequences_there.as<SequenceRows>();
        OrDie(backend_.ConvSsmStep(convolve, ssd));
      } else {
        OrDie(backend_.ConvSilu(convolve));
        OrDie(backend_.SsmStep(ssd));
      }
      OrDie(multiply(*out_projs[layer], y, inner, hidden, true, product.as<float>(), true));
    };
    const auto lower = [&] {
      OrDie(backend_.Embed({.ids = ids.as<int32_t>(),
                            .rows = R,
                            .table = table.get(),
                            .out = hidden.as<float>(),
                            .out_stride = c.d_model}));
      for (int64_t i = 0; i < kLayers / 2; ++i) mamba(i);
      OrDie(multiply(*retrieval, hidden, c.d_model, product, true, nullptr, false));
      return backend_.RmsNorm({.in = product.as<float>(),
                               .in_stride = retrieval->out_columns(),
                               .weight = w,
                               .eps = 1e-5f,
                               .rows = R,
                               .width = c.landmark,
                               .out = queries.data(),
                               .out_stride = c.landmark});
    };
    const auto upper = [&] {
      for (int64_t i = kLayers / 2; i < kLayers; ++i) {
        if (i % (kLayers / 2 / kHsaLayers) == 0) {
          OrDie(multiply(*q_proj, hidden, c.d_model, product, true, nullptr, false));
          OrDie(backend_.HeadNorm({.data = product.as<float>(),
                                   .stride = q_proj->out_columns(),
                                   .weight = w,
                                   .eps = 1e-5f,
                                   .rows = R,
                                   .heads = c.attention_heads,
                                   .head_dim = attention_dim}));
          OrDie(backend_.HsaAttend({.q = product.as<float>(),
                                    .q_stride = q_proj->out_columns(),
                                    .pages = page_table.as<const void*>(),
                                    .weights = weights.as<float>(),
                                    .page_counts = counts.as<int32_t>(),
                                    .pages_max = kPages,
                                    .pages_resident = true,
                                    .page_dtype = DType::kBf16,
                                    .rows = R,
                                    .heads = c.attention_heads,
                                    .head_dim = attention_dim,
                                    .chunk_tokens = c.chunk,
                                    .out = operand.data(),
                                    .out_stride = c.d_model}));
          OrDie(multiply(*o_proj, operand, c.d_model, hidden, false, nullptr, true));
        }
        mamba(i);
      }
      OrDie(multiply(*table, hidden, c.d_model, logits, true, nullptr, false));
      return backend_.ArgMax({.in = logits.as<float>(),
                              .in_stride = table->out_columns(),
                              .rows = R,
                              .columns = c.vocab,
                              .out = ids.as<int32_t>()});
    };
    const int64_t lower_key[] = {Backend::NewRepeatId()}, upper_key[] = {Backend::NewRepeatId()};
    const auto step = [&](bool repeat, bool wait) -> absl::Status {
      OrDie(backend_.CopyIn(sequences_there.data(), sequences.data(),
                            R * static_cast<int64_t>(sizeof(SequenceRows))));
      if (repeat) {
        OrDie(backend_.Repeat(lower_key, lower));
        OrDie(backend_.Repeat(upper_key, upper));
      } else {
        OrDie(lower());
        OrDie(upper());
      }
      return wait ? backend_.CopyOut(host_ids.data(), ids.data(), R * 4) : absl::OkStatus();
    };
    const auto floats = static_cast<double>(R * kLayers * layer_floats);
    const double bytes =
        floats * 8 + static_cast<double>(kLayers * (c.in_proj() * c.d_model + c.d_model * inner) +
                                         c.vocab * c.d_model);
    for (const bool wait : {true, false}) {
      const std::string how = wait ? ", waiting" : ", queued";
      norms = convolution = false;
      Line("separate" + how, bytes, 0, [&] { return step(false, wait); });
      norms = true;
      Line("norms in products" + how, bytes, 0, [&] { return step(false, wait); });
      convolution = true;
      Line("and ConvSsmStep" + how, bytes, 0, [&] { return step(false, wait); });
      Line("and repeated" + how, bytes, 0, [&] { return step(true, wait); });
    }
  }

  // Operations of a decode step on their own, repeated many times in one graph: what the device
  // takes, without the cost of queueing.
  void DecodeOperations() {
    const Shape& c = shape_;
    const auto in_proj = Weight(c.in_proj(), c.d_model), out_proj = Weight(c.d_model, c.inner()),
               table = Weight(c.vocab, c.d_model), small = Weight(c.d_model, c.d_model);
    for (const int64_t readers : {1, 16, 32, 64, 256}) {
      std::printf("-- %lld readers, 20 in a graph: us for one\n", static_cast<long long>(readers));
      const int64_t conv_floats = (c.taps - 1) * c.conv_dim();
      const int64_t state_floats = conv_floats + c.inner() * c.state;
      const Buffer a = Floats(readers * c.inner()), out = Floats(readers * table->out_columns()),
                   gate = Floats(readers * c.inner()),
                   vectors = Floats(8 * (c.inner() + c.conv_dim())),
                   states = Floats(readers * state_floats * 20), y = Floats(readers * c.inner()),
                   normed = Floats(readers * c.inner()), conv = Floats(readers * c.conv_dim()),
                   there = OrDie(backend_.Allocate(readers * sizeof(SequenceRows))),
                   best = OrDie(backend_.Allocate(readers * 4));
      const float* w = vectors.as<float>();
      std::vector<SequenceRows> sequences;
      for (int64_t i = 0; i < readers; ++i) {
        sequences.push_back(
            {.row_begin = i, .row_count = 1, .state = states.as<float>() + i * state_floats * 20});
      }
      OrDie(backend_.CopyIn(there.data(), sequences.data(),
                            readers * static_cast<int64_t>(sizeof(SequenceRows))));
      const auto line = [&](const std::string& name, double bytes, double ops,
                            const std::function<absl::Status(int64_t)>& work) {
        const int64_t key[] = {Backend::NewRepeatId()};
        const auto twenty = [&] {
          return backend_.Repeat(key, [&] {
            for (int64_t i = 0; i < 20; ++i) OrDie(work(i));
            return absl::OkStatus();
          });
        };
        const Spread s = Measure(twenty);
        const double floor = std::max(bytes / bytes_per_second_, ops / ops_per_second_);
        std::printf("%-34s %10.2f %8.2f %8.2f %9.0f %9.1f %6.1f%%\n", name.c_str(),
                    s.median / 20 * 1e6, s.min / 20 * 1e6, s.max / 20 * 1e6,
                    20 * bytes / s.median / 1e9, 20 * ops / s.median / 1e12,
                    20 * 100 * floor / s.median);
        std::fflush(stdout);
      };
      const auto product = [&](const std::string& name, const PackedWeight& weight, bool gated,
                               bool normalize, bool accumulate) {
        const auto cells = static_cast<double>(readers * weight.rows());
        const auto K = static_cast<double>(weight.cols());
        line(name,
             static_cast<double>(weight.rows()) * K + static_cast<double>(readers) * 4 * K +
                 cells * 4,
             2 * cells * K, [&](int64_t) {
               MatmulParams p = {.a = a.data(),
                                 .a_stride = weight.cols(),
                                 .rows = readers,
                                 .weight = &weight,
                                 .out = out.as<float>(),
                                 .accumulate = accumulate,
                                 .per_row = true};
               if (normalize) {
                 p.norm = {.weight = w,
                           .eps = 1e-5f,
                           .gate = gated ? gate.as<float>() : nullptr,
                           .gate_stride = c.inner(),
                           .normed = normed.data()};
               }
               return backend_.Matmul(p);
             });
      };
      product("in_proj", *in_proj, false, false, false);
      product("in_proj, normed", *in_proj, false, true, false);
      product("out_proj, gated, normed, added", *out_proj, true, true, true);
      product("o_proj, added", *small, false, false, true);
      product("logits, normed", *table, false, true, false);
      line("ArgMax", static_cast<double>(readers * c.vocab) * 4, 0, [&](int64_t) {
        return backend_.ArgMax({.in = out.as<float>(),
                                .in_stride = table->out_columns(),
                                .rows = readers,
                                .columns = c.vocab,
                                .out = best.as<int32_t>()});
      });
      for (const bool convolution : {false, true}) {
        line(convolution ? "ConvSsmStep" : "SsmStep",
             static_cast<double>(readers *
                                 (convolution ? state_floats : state_floats - conv_floats)) *
                 8,
             static_cast<double>(readers * state_floats) * 5, [&](int64_t i) {
               const SsdParams ssd = {.xbc = conv.as<float>(),
                                      .xbc_stride = c.conv_dim(),
                                      .dt = a.as<float>(),
                                      .dt_stride = c.heads,
                                      .dt_bias = w,
                                      .a_log = w,
                                      .d_skip = w,
                                      .heads = c.heads,
                                      .head_dim = c.head_dim,
                                      .state_size = c.state,
                                      .sequences = sequences.data(),
                                      .sequence_count = readers,
                                      .backend_sequences = there.as<SequenceRows>(),
                                      .state_offset = i * state_floats + conv_floats,
                                      .rows = readers,
                                      .y = y.as<float>(),
                                      .y_stride = c.inner()};
               if (!convolution) return backend_.SsmStep(ssd);
               return backend_.ConvSsmStep({.in = out.as<float>(),
                                            .in_stride = c.conv_dim(),
                                            .weight = w,
                                            .bias = w,
                                            .taps = c.taps,
                                            .channels = c.conv_dim(),
                                            .sequences = sequences.data(),
                                            .sequence_count = readers,
                                            .state_offset = i * state_floats,
                                            .rows = readers,
                                            .out = conv.as<float>(),
                                            .out_stride = c.conv_dim()},
                                           ssd);
             });
      }
    }
  }

  void Decode() {
    const Shape& c = shape_;
    const auto in_proj = Weight(c.in_proj(), c.d_model), logits = Weight(c.vocab, c.d_model);
    for (const int64_t readers : {1, 16, 256}) {
      std::printf("-- decode, %lld readers\n", static_cast<long long>(readers));
      const Buffer a = Floats(readers * c.d_model), out = Floats(readers * (c.vocab + 16)),
                   xbc = Floats(readers * c.conv_dim()), heads = Floats(3 * c.heads);
      Product("Matmul in_proj, per row", *in_proj, a, out, readers, false, true);
      Product("Matmul logits, per row", *logits, a, out, readers, false, true);
      const int64_t state_floats = c.inner() * c.state;
      const Buffer states = Floats(readers * state_floats), y = Floats(readers * c.inner());
      std::vector<SequenceRows> sequences;
      for (int64_t i = 0; i < readers; ++i) {
        sequences.push_back(
            {.row_begin = i, .row_count = 1, .state = states.as<float>() + i * state_floats});
      }
      Line("SsmStep", static_cast<double>(readers * state_floats) * 8,
           static_cast<double>(readers * state_floats) * 5, [&] {
             return backend_.SsmStep({.xbc = xbc.as<float>(),
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

  Backend& backend_;
  const Shape shape_;
  const int64_t rows_;
  std::mt19937 random_{7};
  std::vector<float> noise_;
  const Buffer sync_ = OrDie(backend_.Allocate(4));
  double bytes_per_second_ = 1, ops_per_second_ = 1;
};

int Main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "ssd") == 0) {
    const std::unique_ptr<Backend> backend = OrDie(CreateCudaBackend({}));
    std::printf("device %s\nshapes Mamba-2 130M\n", backend->description().c_str());
    Bench(*backend, kMamba130m, 16384).RunSsd();
    return 0;
  }
  if (argc > 1 && std::strcmp(argv[1], "decode") == 0) {
    const std::unique_ptr<Backend> backend = OrDie(CreateCudaBackend({}));
    std::printf("device %s\nshapes shipped bundle\n", backend->description().c_str());
    Bench(*backend, kSmall, 0).RunDecode();
    return 0;
  }
  const bool large = argc > 1 && std::strcmp(argv[1], "370m") == 0;
  const int64_t rows = argc > 2 ? std::atoll(argv[2]) : 131072;
  const bool own = argc > 3 && std::strcmp(argv[3], "own") == 0;
  const bool ingest = argc > 3 && std::strcmp(argv[3], "ingest") == 0;
  if (rows < 64 || (rows > 4096 && rows % 4096 != 0) || rows % 64 != 0) {
    std::fprintf(stderr, "rows must be a multiple of 64, above 4096 of 4096\n");
    return 2;
  }
  const std::unique_ptr<Backend> backend = OrDie(CreateCudaBackend({.cublas_lt = !own}));
  std::printf("device %s\nshapes %s, %d repetitions of at least %.0f ms\n",
              backend->description().c_str(), large ? "RAMba-370M" : "shipped bundle", kRepetitions,
              kSecondsPerRepetition * 1e3);
  Bench bench(*backend, large ? k370m : kSmall, rows);
  if (ingest) {
    bench.RunIngest();
  } else {
    bench.Run();
  }
  return 0;
}

}  // namespace
}  // namespace mneme::bench

int main(int argc, char** argv) { return mneme::bench::Main(argc, argv); }
