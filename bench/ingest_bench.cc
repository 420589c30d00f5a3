// Ingest: tokens a second of Model::ForwardLower on full segments, and its share of the rate that
// oneDNN itself reaches in the same run on the same matrix products (bf16 operands, f32 sums), all
// threads busy in both.
//
// Usage: ingest_bench [bundle folder] [bf16|f32] [threads]

#include <omp.h>

#include <oneapi/dnnl/dnnl.hpp>
#include <thread>

#include "bench/measure.h"
#include "bench/model_setup.h"

namespace mneme::bench {
namespace {

constexpr int kRepetitions = 7;

// One product of `rows` rows, ready to run; each thread has its own.
class OneDnnProduct {
 public:
  OneDnnProduct(int64_t rows, const ProductShape& shape, bool f32)
      : engine_(dnnl::engine::kind::cpu, 0) {
    const auto type = f32 ? dnnl::memory::data_type::f32 : dnnl::memory::data_type::bf16;
    const int64_t k = shape.inputs, n = shape.outputs;
    const dnnl::memory::desc a({rows, k}, type, dnnl::memory::format_tag::ab);
    const dnnl::memory::desc b({k, n}, type, dnnl::memory::format_tag::any);
    const dnnl::memory::desc c({rows, n}, dnnl::memory::data_type::f32,
                               dnnl::memory::format_tag::ab);
    const dnnl::matmul::primitive_desc description({a, b, c}, engine_);
    product_ = dnnl::matmul(description);
    a_ = dnnl::memory(description.src_desc(), engine_);
    b_ = dnnl::memory(description.weights_desc(), engine_);
    c_ = dnnl::memory(description.dst_desc(), engine_);
    std::memset(a_.get_data_handle(), 0, description.src_desc().get_size());
    std::memset(b_.get_data_handle(), 0, description.weights_desc().get_size());
    std::memset(c_.get_data_handle(), 0, description.dst_desc().get_size());
  }

  void Run() {
    dnnl::stream stream(engine_);
    product_.execute(stream, {{DNNL_ARG_SRC, a_}, {DNNL_ARG_WEIGHTS, b_}, {DNNL_ARG_DST, c_}});
    stream.wait();
  }

 private:
  dnnl::engine engine_;
  dnnl::matmul product_;
  dnnl::memory a_, b_, c_;
};

// Seconds a token that oneDNN needs for all products of ingest, `threads` threads each with its own
// rows, `rows` of them at a time.
class OneDnnIngest {
 public:
  OneDnnIngest(const ModelConfig& config, int64_t rows, int threads, bool f32)
      : rows_(rows),
        threads_(threads),
        calls_(std::max<int64_t>(1, 4096 / rows)),
        shapes_(IngestProducts(config)) {
    omp_set_num_threads(1);
    for (int t = 0; t < threads; ++t) {
      products_.emplace_back();
      for (const ProductShape& shape : shapes_) products_.back().emplace_back(rows, shape, f32);
    }
  }

  double SecondsPerToken() {
    double total = 0;
    for (size_t s = 0; s < shapes_.size(); ++s) {
      const double seconds = Seconds([&] {
        std::vector<std::thread> workers;
        for (int t = 1; t < threads_; ++t) workers.emplace_back([&, t] { RunCalls(t, s); });
        RunCalls(0, s);
        for (std::thread& worker : workers) worker.join();
      });
      total += seconds / static_cast<double>(threads_ * calls_ * rows_) * shapes_[s].per_token;
    }
    return total;
  }

 private:
  void RunCalls(int thread, size_t shape) {
    omp_set_num_threads(1);
    for (int64_t i = 0; i < calls_; ++i) products_[thread][shape].Run();
  }

  const int64_t rows_;
  const int threads_;
  const int64_t calls_;
  const std::vector<ProductShape> shapes_;
  std::vector<std::vector<OneDnnProduct>> products_;
};

int Main(int argc, char** argv) {
  const bool f32 = argc > 2 && std::string(argv[2]) == "f32";
  const int threads =
      argc > 3 ? std::atoi(argv[3]) : static_cast<int>(std::thread::hardware_concurrency());
  const ModelSetup setup = SetUpModel(argc, argv);
  const ModelConfig& c = setup.model->config();
  const int n_segments = 2 * threads;
  std::vector<std::vector<TokenId>> tokens;
  for (int i = 0; i < n_segments; ++i) tokens.push_back(RandomTokens(c, c.segment_size, i));
  const std::vector<absl::Span<const TokenId>> segments(tokens.begin(), tokens.end());
  std::vector<SegmentChunks> chunks;
  const double n_tokens = static_cast<double>(n_segments) * c.segment_size;

  // In turn, so that what else the machine does hits all alike.
  OneDnnIngest whole_segments(c, c.segment_size, threads, f32);
  OneDnnIngest blocks(c, 128, threads, f32);
  std::vector<double> model_rate, whole_rate, block_rate, share_whole, share_blocks;
  const double ops = ProductOps(IngestProducts(c));
  for (int i = -1; i < kRepetitions; ++i) {
    const double model_seconds =
        Seconds([&] { OrDie(setup.model->ForwardLower(segments, &chunks)); }) / n_tokens;
    const double whole_seconds = whole_segments.SecondsPerToken();
    const double block_seconds = blocks.SecondsPerToken();
    if (i < 0) continue;  // warm-up
    model_rate.push_back(1 / model_seconds);
    whole_rate.push_back(ops / whole_seconds * 1e-9);
    block_rate.push_back(ops / block_seconds * 1e-9);
    share_whole.push_back(whole_seconds / model_seconds * 100);
    share_blocks.push_back(block_seconds / model_seconds * 100);
  }
  const double other = c.n_lower_layers * RecurrenceOps(c) + EncoderAttentionOps(c);
  std::printf("machine       %s\nbackend       %s\n", Machine().c_str(),
              setup.backend->description().c_str());
  std::printf(
      "work          ForwardLower on %d segments of %d tokens, %s, %d repetitions in turn with "
      "oneDNN\n",
      n_segments, c.segment_size, f32 ? "f32" : "bf16", kRepetitions);
  std::printf(
      "operations    %.2f M a token in matrix products, %.2f M in recurrence and attention\n",
      ops * 1e-6, other * 1e-6);
  const auto line = [](const char* name, std::vector<double> values, const char* unit) {
    const Spread s = SpreadOf(std::move(values));
    std::printf("%-26s median %10.1f   min %10.1f   max %10.1f %s\n", name, s.median, s.min, s.max,
                unit);
  };
  line("ingest", model_rate, "tokens/s");
  line("oneDNN, whole segments", whole_rate, "GFLOP/s");
  line("oneDNN, blocks of 128 rows", block_rate, "GFLOP/s");
  line("share of whole segments", share_whole, "% (products of ingest alone over oneDNN's rate)");
  line("share of blocks", share_blocks, "%");
  return 0;
}

}  // namespace
}  // namespace mneme::bench

int main(int argc, char** argv) { return mneme::bench::Main(argc, argv); }
