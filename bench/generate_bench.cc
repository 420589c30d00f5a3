// Prompts and generation: tokens a second through all layers with sparse attention over a memory.
//
// A prompt of one segment, read over a memory of a few thousand chunks; then one reader, and
// several together, that advance token by token: lower half, scan of the landmarks, upper half,
// logits, argmax. The selections are done here as the engine does them.
//
// Usage: generate_bench [bundle folder] [bf16|f32] [threads, or "cuda"]

#include "bench/measure.h"
#include "bench/model_setup.h"
#include "kernels/chunk_weights.h"

namespace mneme::bench {
namespace {

constexpr int kRepetitions = 7;
constexpr int64_t kChunks = 4096;
constexpr int64_t kTokensPerRepetition = 128;

// A memory of random chunks, stored as the model stores them, in the backend's memory.
struct Memory {
  Buffer pages, landmarks;
};

Buffer CopyOf(Backend& backend, const std::vector<uint8_t>& bytes, int64_t count) {
  Buffer buffer = OrDie(backend.Allocate(count));
  OrDie(backend.CopyIn(buffer.data(), bytes.data(), count));
  return buffer;
}

Memory RandomMemory(const Model& model, Backend& backend) {
  const PageLayout layout = model.page_layout();
  const int64_t per_segment = model.config().chunks_per_segment();
  std::vector<uint8_t> pages, landmarks;
  std::vector<std::vector<TokenId>> tokens;
  for (int64_t i = 0; i * per_segment < kChunks; ++i) {
    tokens.push_back(
        RandomTokens(model.config(), model.config().segment_size, static_cast<uint32_t>(i)));
  }
  const std::vector<absl::Span<const TokenId>> segments(tokens.begin(), tokens.end());
  std::vector<SegmentChunks> chunks;
  OrDie(model.ForwardLower(segments, &chunks));
  for (const SegmentChunks& c : chunks) {
    pages.insert(pages.end(), c.pages.begin(), c.pages.end());
    landmarks.insert(landmarks.end(), c.landmarks.begin(), c.landmarks.end());
  }
  return {.pages = CopyOf(backend, pages, kChunks * layout.page_bytes()),
          .landmarks = CopyOf(backend, landmarks, kChunks * layout.landmark_bytes())};
}

// Readers that advance together over one memory. Buffers are kept from step to step.
class Readers {
 public:
  Readers(Backend& backend, const Model& model, const Memory& memory, int count)
      : backend_(backend), model_(model), memory_(memory) {
    for (int i = 0; i < count; ++i) states_.push_back(model.NewReaderState());
  }

  // One step of every reader: ids[i] are the next tokens of reader i; their last tokens' argmax
  // replaces them.
  void Step(std::vector<std::vector<TokenId>>* ids) {
    const ModelConfig& c = model_.config();
    const int64_t k = c.chunks_per_read;
    steps_.clear();
    int64_t rows = 0;
    for (size_t i = 0; i < states_.size(); ++i) {
      steps_.push_back({.state = states_[i].get(), .ids = (*ids)[i]});
      rows += static_cast<int64_t>((*ids)[i].size());
    }
    OrDie(model_.ReadLower(steps_, &lower_));
    indices_.resize(rows * k);
    scores_.resize(rows * k);
    const LandmarkSlab slab = {.rows = memory_.landmarks.data(), .row_count = kChunks};
    OrDie(backend_.LandmarkTopK({.queries = lower_.queries.as<float>(),
                                 .n_queries = rows,
                                 .dim = c.landmark_dim,
                                 .dtype = model_.page_layout().dtype,
                                 .slabs = absl::MakeConstSpan(&slab, 1),
                                 .slabs_resident = true,
                                 .k = k,
                                 .indices = indices_.data(),
                                 .scores = scores_.data()}));
    pages_.resize(rows * k);
    weights_.resize(rows * k);
    selections_.resize(rows);
    std::vector<std::pair<int64_t, float>> row(k);
    std::vector<float> row_scores(rows * k);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < k; ++i) row[i] = {indices_[r * k + i], scores_[r * k + i]};
      std::sort(row.begin(), row.end(), std::greater<>());
      for (int64_t i = 0; i < k; ++i) {
        pages_[r * k + i] =
            memory_.pages.as<uint8_t>(row[i].first * model_.page_layout().page_bytes());
        row_scores[r * k + i] = row[i].second;
      }
      const auto scores = absl::MakeConstSpan(row_scores).subspan(r * k, k);
      ChunkWeights(scores, c.newest_margin, absl::MakeSpan(weights_).subspan(r * k, k));
      selections_[r] = {.pages = absl::MakeConstSpan(pages_).subspan(r * k, k),
                        .weights = absl::MakeConstSpan(weights_).subspan(r * k, k),
                        .scores = scores,
                        .pages_resident = true};
    }
    OrDie(model_.ReadUpper(steps_, lower_, selections_, LogitRows::kBestOfStep, &upper_));
    for (size_t i = 0; i < states_.size(); ++i) (*ids)[i] = {upper_.best[i]};
  }

 private:
  Backend& backend_;
  const Model& model_;
  const Memory& memory_;
  std::vector<std::unique_ptr<ReaderState>> states_;
  std::vector<ReaderStep> steps_;
  LowerRows lower_;
  std::vector<int64_t> indices_;
  std::vector<float> scores_, weights_;
  UpperRows upper_;
  std::vector<const uint8_t*> pages_;
  std::vector<RowSelection> selections_;
};

int Main(int argc, char** argv) {
  const ModelSetup setup = SetUpModel(argc, argv);
  const ModelConfig& c = setup.model->config();
  const Memory memory = RandomMemory(*setup.model, *setup.backend);
  std::printf("machine       %s\nbackend       %s\n", Machine().c_str(),
              setup.backend->description().c_str());
  std::printf("memory        %lld chunks, pages and landmarks in %s; %d repetitions\n",
              static_cast<long long>(kChunks), DTypeName(setup.model->page_layout().dtype),
              kRepetitions);

  const auto line = [](const std::string& what, std::vector<double> rates) {
    const Spread s = SpreadOf(std::move(rates));
    std::printf("%-44s median %9.1f   min %9.1f   max %9.1f tokens/s\n", what.c_str(), s.median,
                s.min, s.max);
  };
  std::vector<double> rates;
  for (int i = -1; i < kRepetitions; ++i) {
    Readers reader(*setup.backend, *setup.model, memory, 1);
    std::vector<std::vector<TokenId>> ids = {RandomTokens(c, c.segment_size, 77)};
    const double seconds = Seconds([&] { reader.Step(&ids); });
    if (i >= 0) rates.push_back(c.segment_size / seconds);
  }
  line("prompt of " + std::to_string(c.segment_size) + " tokens, all layers", rates);

  for (const int count : {1, 4, 16, 64, 256}) {
    Readers readers(*setup.backend, *setup.model, memory, count);
    std::vector<std::vector<TokenId>> ids;
    for (int i = 0; i < count; ++i) ids.push_back(RandomTokens(c, 20, 100 + i));
    readers.Step(&ids);
    rates.clear();
    const int64_t steps = std::max<int64_t>(8, kTokensPerRepetition / count);
    for (int i = -1; i < kRepetitions; ++i) {
      const double seconds = Seconds([&] {
        for (int64_t step = 0; step < steps; ++step) readers.Step(&ids);
      });
      if (i >= 0) rates.push_back(static_cast<double>(steps * count) / seconds);
    }
    line("generation, " + std::to_string(count) + (count == 1 ? " reader" : " readers together"),
         rates);
  }
  return 0;
}

}  // namespace
}  // namespace mneme::bench

int main(int argc, char** argv) { return mneme::bench::Main(argc, argv); }
