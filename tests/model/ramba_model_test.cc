// The network on random bundles of odd shapes against its double twin, on every instruction
// set and device, and its promises about company, steps, forks and bad input.

#include "model/ramba_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/stick_breaking.h"
#include "tests/model/random_bundle.h"
#include "tests/reference/network_reference.h"

namespace mneme {
namespace {

using testing::HasSubstr;

struct TestModel {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<RambaModel> model;
};

// `device`: "cpu", with `options`, or "cuda".
TestModel MakeModel(absl::string_view device, const RandomShape& shape,
                    absl::string_view matrix_dtype, Precision precision,
                    CpuBackendOptions options = {.threads = 2}) {
  TestModel setup;
  setup.backend = CreateBackend(device, options).value();
  setup.model = RambaModel::Create(RandomBundle(shape, matrix_dtype, 1), *setup.backend,
                                   {.precision = precision})
                    .value();
  return setup;
}

std::vector<TokenId> RandomIds(const ModelConfig& config, int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<TokenId> id(0, config.vocab_size - 1);
  std::vector<TokenId> ids(count);
  for (TokenId& token : ids) token = id(random);
  return ids;
}

std::vector<SegmentChunks> Derive(const Model& model,
                                  const std::vector<std::vector<TokenId>>& segments) {
  const std::vector<absl::Span<const TokenId>> spans(segments.begin(), segments.end());
  std::vector<SegmentChunks> out;
  const absl::Status status = model.ForwardLower(spans, &out);
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

std::vector<float> HostRows(Backend& backend, const Buffer& rows, int64_t count) {
  std::vector<float> host(static_cast<size_t>(count));
  EXPECT_TRUE(backend.CopyOut(host.data(), rows.data(), count * 4).ok());
  return host;
}

double StoredElement(const uint8_t* data, DType dtype, int64_t i) {
  if (dtype == DType::kBf16) {
    Bf16 value;
    std::memcpy(&value, data + 2 * i, 2);
    return Bf16ToFloat(value);
  }
  float value;
  std::memcpy(&value, data + 4 * i, 4);
  return value;
}

// Largest difference over largest magnitude.
struct Error {
  double difference = 0, magnitude = 1e-30;
  void Add(double got, double want) {
    difference = std::isnan(got) ? HUGE_VAL : std::max(difference, std::fabs(got - want));
    magnitude = std::max(magnitude, std::fabs(want));
  }
  double relative() const { return difference / magnitude; }
};

// A reader over the chunks of one segment, its selections as the reference's.
class Reader {
 public:
  Reader(const Model& model, const SegmentChunks& chunks, const NetworkReference::Reading& reading)
      : model_(model), chunks_(chunks), reading_(reading), state_(model.NewReaderState()) {}

  // Advances by `ids`, row `first_row` of the reading on; returns logits, queries, and what a
  // second look alone makes of the scores.
  struct Step {
    LowerRows lower;
    UpperRows upper;
    std::vector<float> corrected;
  };
  Step Advance(absl::Span<const TokenId> ids, int64_t first_row,
               LogitRows which = LogitRows::kAll) {
    Step out;
    const ReaderStep step = {.state = state_.get(), .ids = ids};
    absl::Status status = model_.ReadLower(absl::MakeConstSpan(&step, 1), &out.lower);
    EXPECT_TRUE(status.ok()) << status;
    std::vector<std::vector<const uint8_t*>> pages(ids.size());
    std::vector<std::vector<float>> weights(ids.size()), scores(ids.size());
    std::vector<RowSelection> selections;
    const bool looks = model_.config().look_heads > 0;
    for (size_t r = 0; r < ids.size(); ++r) {
      for (int chunk : reading_.index[first_row + r]) {
        pages[r].push_back(chunks_.pages.data() + chunk * model_.page_layout().page_bytes());
      }
      for (double s : reading_.scores[first_row + r]) scores[r].push_back(static_cast<float>(s));
      for (double w : reading_.weights[first_row + r]) weights[r].push_back(static_cast<float>(w));
      // Who looks again gets no weights.
      if (looks) weights[r].clear();
      selections.push_back({.pages = pages[r], .weights = weights[r], .scores = scores[r]});
    }
    status =
        model_.ReadUpper(absl::MakeConstSpan(&step, 1), out.lower, selections, which, &out.upper);
    EXPECT_TRUE(status.ok()) << status;
    if (!looks) return out;
    status = model_.CorrectScores(out.lower.hidden.as<float>(), selections, &out.corrected);
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }

  std::unique_ptr<ReaderState>& state() { return state_; }

 private:
  const Model& model_;
  const SegmentChunks& chunks_;
  const NetworkReference::Reading& reading_;
  std::unique_ptr<ReaderState> state_;
};

struct Tolerance {
  double chunks, queries, weights, logits;
};

void CompareWithReference(const TestModel& setup, Tolerance tolerance) {
  const Model& model = *setup.model;
  const ModelConfig& c = model.config();
  const PageLayout layout = model.page_layout();
  const NetworkReference reference(model.bundle());
  for (const int64_t length :
       {1, c.chunk_size, c.chunk_size + 1, c.segment_size - 1, c.segment_size}) {
    const std::vector<TokenId> ids = RandomIds(c, length, 5);
    const NetworkReference::Chunks want = reference.Ingest(ids);
    const std::vector<SegmentChunks> got = Derive(model, {ids});
    ASSERT_EQ(got.size(), 1u);
    ASSERT_EQ(got[0].chunk_count, static_cast<int>(want.landmarks.size()));
    Error K, V, landmarks;
    const int64_t plane = int64_t{layout.chunk_tokens} * layout.kv_dim;
    for (int chunk = 0; chunk < got[0].chunk_count; ++chunk) {
      const uint8_t* page = got[0].pages.data() + chunk * layout.page_bytes();
      for (int64_t i = 0; i < plane; ++i) {
        K.Add(StoredElement(page, layout.dtype, i), want.K[chunk][i]);
        V.Add(StoredElement(page, layout.dtype, plane + i), want.V[chunk][i]);
      }
      const uint8_t* landmark = got[0].landmarks.data() + chunk * layout.landmark_bytes();
      for (int64_t i = 0; i < layout.landmark_dim; ++i) {
        landmarks.Add(StoredElement(landmark, layout.dtype, i), want.landmarks[chunk][i]);
      }
    }
    EXPECT_LE(K.relative(), tolerance.chunks) << "K, length " << length;
    EXPECT_LE(V.relative(), tolerance.chunks) << "V, length " << length;
    EXPECT_LE(landmarks.relative(), tolerance.chunks) << "landmarks, length " << length;

    const std::vector<TokenId> question = RandomIds(c, 21, 6);
    const NetworkReference::Reading reading = reference.Read(question, want);
    for (const int64_t step : {int64_t{1}, int64_t{8}, int64_t{21}}) {
      Reader reader(model, got[0], reading);
      Error scores, corrected, weights, logits;
      for (int64_t row = 0; row < 21; row += step) {
        const int64_t count = std::min<int64_t>(step, 21 - row);
        const Reader::Step out =
            reader.Advance(absl::MakeConstSpan(question).subspan(row, count), row);
        const std::vector<float> queries =
            HostRows(*setup.backend, out.lower.queries, count * c.landmark_dim);
        for (int64_t r = 0; r < count; ++r) {
          for (size_t i = 0; i < reading.index[row + r].size(); ++i) {
            double score = 0;
            for (int64_t d = 0; d < c.landmark_dim; ++d) {
              score += double{queries[r * c.landmark_dim + d]} *
                       want.landmarks[reading.index[row + r][i]][d];
            }
            scores.Add(score, reading.scores[row + r][i]);
          }
          for (int64_t i = 0; c.look_heads > 0 && i < c.chunks_per_read; ++i) {
            const Doubles& read = reading.weights[row + r];
            const float weight = out.upper.weights[r * c.chunks_per_read + i];
            const float score = out.corrected[r * c.chunks_per_read + i];
            if (i < static_cast<int64_t>(read.size())) {
              weights.Add(weight, read[i]);
              corrected.Add(score, reading.corrected[row + r][i]);
            } else {
              EXPECT_EQ(weight, 0.0f);
              EXPECT_EQ(score, -HUGE_VALF);
            }
          }
          for (int64_t v = 0; v < c.vocab_size; ++v) {
            logits.Add(out.upper.logits[r * c.vocab_size + v], reading.logits[row + r][v]);
          }
        }
      }
      EXPECT_LE(scores.relative(), tolerance.queries) << "steps of " << step;
      EXPECT_LE(corrected.relative(), tolerance.queries) << "steps of " << step;
      EXPECT_LE(weights.relative(), tolerance.weights) << "steps of " << step;
      EXPECT_LE(logits.relative(), tolerance.logits) << "steps of " << step;
    }
  }
}

// f32: the twin's values but for the order of sums.
constexpr Tolerance kF32 = {1e-4, 1e-4, 1e-4, 1e-4};
// bf16: 8 bits in operands and in what is stored; random weights amplify more than trained ones.
constexpr Tolerance kBf16 = {5e-2, 5e-2, 5e-2, 5e-2};

RandomShape OddShape() { return {}; }
RandomShape WideStateShape() {
  return {.d_model = 128,
          .ssm_head_dim = 32,
          .ssm_state_size = 128,
          .n_heads = 2,
          .chunk_size = 64,
          .landmark_dim = 128,
          .encoder_layers = 2,
          .encoder_ffn = 200,
          .hsa_every = 2,
          .segment_size = 192};
}
RandomShape WithLook(RandomShape shape, int heads) {
  shape.look_heads = heads;
  return shape;
}
RandomShape SmallestShape() {
  return {.d_model = 2,
          .n_lower_layers = 1,
          .n_upper_layers = 1,
          .ssm_head_dim = 1,
          .ssm_state_size = 1,
          .conv_kernel = 2,
          .n_heads = 1,
          .chunk_size = 1,
          .chunks_per_read = 1,
          .landmark_dim = 1,
          .encoder_layers = 1,
          .encoder_ffn = 1,
          .hsa_every = 1,
          .segment_size = 4};
}

// Chunks that see `halo` tokens behind them.
RandomShape WithHalo(RandomShape shape, int halo) {
  shape.encoder_halo = halo;
  return shape;
}
// Groups of 96 rows; on the CPU a segment is several tiles, the last of them smaller.
RandomShape ManyTilesShape() {
  return {.d_model = 128,
          .ssm_head_dim = 32,
          .n_heads = 2,
          .chunk_size = 64,
          .encoder_halo = 31,
          .segment_size = 320};
}
// More than one tile on every device.
RandomShape LongSegmentShape() {
  return {.d_model = 16,
          .n_lower_layers = 1,
          .n_upper_layers = 1,
          .ssm_head_dim = 16,
          .n_heads = 1,
          .chunk_size = 64,
          .landmark_dim = 16,
          .encoder_ffn = 16,
          .encoder_halo = 31,
          .segment_size = 1 << 16};
}

// On every device of this build; without a GPU the tests of "cuda" skip.
class RambaModelTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const absl::Status status = CreateBackend(GetParam(), {.threads = 1}).status();
    if (absl::IsFailedPrecondition(status)) GTEST_SKIP() << status;
    ASSERT_TRUE(status.ok()) << status;
  }
};

std::vector<std::string> Devices() {
#if defined(MNEME_HAVE_CUDA)
  return {"cpu", "cuda"};
#else
  return {"cpu"};
#endif
}

INSTANTIATE_TEST_SUITE_P(Devices, RambaModelTest, testing::ValuesIn(Devices()),
                         [](const auto& device) { return device.param; });

TEST_P(RambaModelTest, OddShapesMatchTheTwinOnEveryInstructionSet) {
  for (CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAmx}) {
    if (isa > DetectCpuIsa()) continue;
    if (GetParam() != "cpu" && isa != CpuIsa::kPortable) continue;
    SCOPED_TRACE(CpuIsaName(isa));
    CompareWithReference(
        MakeModel(GetParam(), OddShape(), "I8", Precision::kF32, {.threads = 2, .isa_max = isa}),
        kF32);
    CompareWithReference(
        MakeModel(GetParam(), OddShape(), "I8", Precision::kBf16, {.threads = 2, .isa_max = isa}),
        kBf16);
  }
}

TEST_P(RambaModelTest, WideStatesAndLongSegmentsMatchTheTwin) {
  CompareWithReference(MakeModel(GetParam(), WideStateShape(), "I8", Precision::kF32), kF32);
  CompareWithReference(MakeModel(GetParam(), WideStateShape(), "I8", Precision::kBf16), kBf16);
}

TEST_P(RambaModelTest, ChunksThatSeeWhatFollowsMatchTheTwinOnEveryInstructionSet) {
  for (CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAmx}) {
    if (isa > DetectCpuIsa()) continue;
    if (GetParam() != "cpu" && isa != CpuIsa::kPortable) continue;
    for (const int halo : {1, 15, 16, 31, 80}) {  // of chunks of 16 tokens, segments of 64
      SCOPED_TRACE(absl::StrCat(CpuIsaName(isa), ", ", halo, " tokens"));
      const RandomShape shape = WithHalo(OddShape(), halo);
      CompareWithReference(
          MakeModel(GetParam(), shape, "I8", Precision::kF32, {.threads = 2, .isa_max = isa}),
          kF32);
      CompareWithReference(
          MakeModel(GetParam(), shape, "I8", Precision::kBf16, {.threads = 2, .isa_max = isa}),
          kBf16);
    }
  }
}

TEST_P(RambaModelTest, ChunksThatSeeWhatFollowsInALaterTileMatchTheTwin) {
  for (const RandomShape& shape :
       {ManyTilesShape(), WithHalo(ManyTilesShape(), 1), WithHalo(ManyTilesShape(), 150)}) {
    SCOPED_TRACE(absl::StrCat(shape.encoder_halo, " tokens"));
    CompareWithReference(MakeModel(GetParam(), shape, "I8", Precision::kF32), kF32);
    CompareWithReference(MakeModel(GetParam(), shape, "I8", Precision::kBf16), kBf16);
  }
}

// The twin is slow: what the CPU computes in f32 stands for it.
TEST_P(RambaModelTest, ASegmentOfSeveralTilesOfAnyDeviceIsThatOfTheCpu) {
  const TestModel cpu = MakeModel("cpu", LongSegmentShape(), "I8", Precision::kF32);
  const std::vector<TokenId> ids = RandomIds(cpu.model->config(), 1 << 16, 8);
  const SegmentChunks want = Derive(*cpu.model, {ids})[0];
  for (const Precision precision : {Precision::kF32, Precision::kBf16}) {
    const TestModel setup = MakeModel(GetParam(), LongSegmentShape(), "I8", precision);
    const SegmentChunks got = Derive(*setup.model, {ids})[0];
    ASSERT_EQ(got.chunk_count, want.chunk_count);
    const PageLayout layout = setup.model->page_layout();
    const double tolerance = precision == Precision::kF32 ? kF32.chunks : kBf16.chunks;
    for (int chunk = 0; chunk < want.chunk_count; ++chunk) {
      Error error;
      for (int64_t i = chunk * layout.landmark_dim; i < (chunk + 1) * layout.landmark_dim; ++i) {
        error.Add(StoredElement(got.landmarks.data(), layout.dtype, i),
                  StoredElement(want.landmarks.data(), DType::kF32, i));
      }
      ASSERT_LE(error.relative(), tolerance) << "chunk " << chunk;
    }
  }
}

TEST_P(RambaModelTest, TheSmallestShapeMatchesTheTwin) {
  CompareWithReference(MakeModel(GetParam(), SmallestShape(), "F32", Precision::kF32), kF32);
  CompareWithReference(MakeModel(GetParam(), WithHalo(SmallestShape(), 2), "F32", Precision::kF32),
                       kF32);
}

TEST_P(RambaModelTest, ASecondLookMatchesTheTwin) {
  for (const char* dtype : {"I8", "F32", "BF16"}) {
    SCOPED_TRACE(dtype);
    for (const int heads : {1, 5}) {
      const RandomShape shape = WithLook(OddShape(), heads);
      CompareWithReference(MakeModel(GetParam(), shape, dtype, Precision::kF32), kF32);
      CompareWithReference(MakeModel(GetParam(), shape, dtype, Precision::kBf16), kBf16);
    }
  }
  // More queries than d_model; heads as the shipped bundle has them.
  const RandomShape wide = WithLook(WideStateShape(), 6);
  CompareWithReference(MakeModel(GetParam(), wide, "I8", Precision::kF32), kF32);
  CompareWithReference(MakeModel(GetParam(), wide, "I8", Precision::kBf16), kBf16);
  const RandomShape smallest = WithLook(SmallestShape(), 256);
  CompareWithReference(MakeModel(GetParam(), smallest, "F32", Precision::kF32), kF32);
}

TEST_P(RambaModelTest, ASecondLookComesWithLogitsAndWithBestTokens) {
  for (const Precision precision : {Precision::kF32, Precision::kBf16}) {
    const TestModel setup = MakeModel(GetParam(), WithLook(OddShape(), 3), "I8", precision);
    const ModelConfig& c = setup.model->config();
    const NetworkReference reference(setup.model->bundle());
    const std::vector<TokenId> ids = RandomIds(c, c.segment_size, 5), question = RandomIds(c, 9, 6);
    const std::vector<SegmentChunks> chunks = Derive(*setup.model, {ids});
    const NetworkReference::Reading reading = reference.Read(question, reference.Ingest(ids));
    for (const int64_t step : {1, 4, 9}) {
      Reader by_logits(*setup.model, chunks[0], reading), by_best(*setup.model, chunks[0], reading);
      for (int64_t row = 0; row < 9; row += step) {
        const auto part = absl::MakeConstSpan(question).subspan(row, step);
        const UpperRows logits = by_logits.Advance(part, row, LogitRows::kLastOfStep).upper;
        const UpperRows best = by_best.Advance(part, row, LogitRows::kBestOfStep).upper;
        EXPECT_EQ(logits.weights, best.weights);
        ASSERT_EQ(best.weights.size(), part.size() * c.chunks_per_read);
        ASSERT_EQ(best.best.size(), 1u);
        EXPECT_EQ(best.best[0], std::max_element(logits.logits.begin(), logits.logits.end()) -
                                    logits.logits.begin());
      }
    }
  }
}

// Readers that decode together and beside a prompt of more than one tile, each over chunks of its
// own choice.
TEST_P(RambaModelTest, ASecondLookDoesNotSeeItsCompany) {
  for (const Precision precision : {Precision::kF32, Precision::kBf16}) {
    const TestModel setup = MakeModel(GetParam(), WithLook(OddShape(), 3), "I8", precision);
    const Model& model = *setup.model;
    const ModelConfig& c = model.config();
    const std::vector<SegmentChunks> chunks = Derive(model, {RandomIds(c, c.segment_size, 5)});
    const auto page = [&](int64_t i) {
      return chunks[0].pages.data() + i * model.page_layout().page_bytes();
    };
    const std::vector<const uint8_t*> pages = {page(2), page(0), page(3), page(1)};
    const std::vector<float> scores = {0.5f, -1.0f, 2.0f, -0.25f};
    const std::vector<std::vector<TokenId>> ids = {{3}, {4}, RandomIds(c, 150, 8), {5}, {6}};
    const auto read = [&](size_t begin, size_t end) {
      std::vector<std::unique_ptr<ReaderState>> states;
      std::vector<ReaderStep> steps;
      std::vector<RowSelection> selections;
      for (size_t i = begin; i < end; ++i) {
        states.push_back(model.NewReaderState());
        steps.push_back({.state = states.back().get(), .ids = ids[i]});
        for (size_t r = 0; r < ids[i].size(); ++r) {
          const size_t first = (i + r) % 2, count = (i + r) % (c.chunks_per_read + 1);
          selections.push_back({.pages = absl::MakeConstSpan(pages).subspan(first, count),
                                .scores = absl::MakeConstSpan(scores).subspan(first, count)});
        }
      }
      LowerRows lower;
      UpperRows upper;
      EXPECT_TRUE(model.ReadLower(steps, &lower).ok());
      const absl::Status status =
          model.ReadUpper(steps, lower, selections, LogitRows::kLastOfStep, &upper);
      EXPECT_TRUE(status.ok()) << status;
      return upper;
    };
    const UpperRows together = read(0, ids.size());
    auto weights = together.weights.begin();
    auto logits = together.logits.begin();
    for (size_t i = 0; i < ids.size(); ++i) {
      const UpperRows alone = read(i, i + 1);
      EXPECT_TRUE(std::equal(alone.weights.begin(), alone.weights.end(), weights)) << i;
      EXPECT_TRUE(std::equal(alone.logits.begin(), alone.logits.end(), logits)) << i;
      weights += static_cast<ptrdiff_t>(alone.weights.size());
      logits += c.vocab_size;
    }
    EXPECT_EQ(weights, together.weights.end());
  }
}

// Rows of more than one tile, each there once for every page that it looks at.
TEST_P(RambaModelTest, ScoresAreCorrectedChunkByChunk) {
  for (const Precision precision : {Precision::kF32, Precision::kBf16}) {
    const TestModel setup = MakeModel(GetParam(), WithLook(OddShape(), 3), "I8", precision);
    const Model& model = *setup.model;
    const ModelConfig& c = model.config();
    const std::vector<SegmentChunks> chunks = Derive(model, {RandomIds(c, c.segment_size, 5)});
    const auto state = model.NewReaderState();
    const std::vector<TokenId> ids = RandomIds(c, 150, 8);
    const ReaderStep step = {.state = state.get(), .ids = ids};
    LowerRows lower;
    ASSERT_TRUE(model.ReadLower(absl::MakeConstSpan(&step, 1), &lower).ok());
    const std::vector<float> hidden =
        HostRows(*setup.backend, lower.hidden, lower.row_count * c.d_model);

    const auto count = static_cast<size_t>(c.chunks_per_read);
    std::vector<const uint8_t*> pages;
    std::vector<float> scores;
    for (size_t i = 0; i < count; ++i) {
      const size_t chunk = i % static_cast<size_t>(chunks[0].chunk_count);
      pages.push_back(chunks[0].pages.data() +
                      static_cast<int64_t>(chunk) * model.page_layout().page_bytes());
      scores.push_back(0.5f - static_cast<float>(i));
    }
    const std::vector<RowSelection> together(ids.size(), {.pages = pages, .scores = scores});
    std::vector<float> corrected;
    ASSERT_TRUE(model.CorrectScores(lower.hidden.as<float>(), together, &corrected).ok());
    ASSERT_EQ(corrected.size(), ids.size() * count);

    std::vector<float> repeated;
    std::vector<RowSelection> one_by_one;
    for (size_t r = 0; r < ids.size(); ++r) {
      const auto row = hidden.begin() + static_cast<ptrdiff_t>(r) * c.d_model;
      for (size_t i = 0; i < count; ++i) {
        repeated.insert(repeated.end(), row, row + c.d_model);
        one_by_one.push_back({.pages = absl::MakeConstSpan(pages).subspan(i, 1),
                              .scores = absl::MakeConstSpan(scores).subspan(i, 1)});
      }
    }
    const auto bytes = static_cast<int64_t>(repeated.size() * sizeof(float));
    const Buffer rows = setup.backend->Allocate(bytes).value();
    ASSERT_TRUE(setup.backend->CopyIn(rows.as<float>(), repeated.data(), bytes).ok());
    std::vector<float> alone;
    ASSERT_TRUE(model.CorrectScores(rows.as<float>(), one_by_one, &alone).ok());
    for (size_t cell = 0; cell < corrected.size(); ++cell) {
      ASSERT_EQ(alone[cell * count], corrected[cell]) << cell;
    }

    // The upper half of the same rows breaks the stick by the same scores.
    UpperRows upper;
    ASSERT_TRUE(model
                    .ReadUpper(absl::MakeConstSpan(&step, 1), lower, together,
                               LogitRows::kLastOfStep, &upper)
                    .ok());
    std::vector<float> weights(count);
    for (size_t r = 0; r < ids.size(); ++r) {
      StickBreakingWeights(absl::MakeConstSpan(corrected).subspan(r * count, count),
                           absl::MakeSpan(weights));
      for (size_t i = 0; i < count; ++i) {
        ASSERT_NEAR(upper.weights[r * count + i], weights[i], 1e-6) << r;
      }
    }
  }
}

TEST_P(RambaModelTest, ScoresAreNotCorrectedWithoutASecondLook) {
  const TestModel setup = MakeModel(GetParam(), OddShape(), "I8", Precision::kF32);
  std::vector<float> scores;
  const absl::Status status = setup.model->CorrectScores(nullptr, {}, &scores);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("look_heads 0"));
}

TEST_P(RambaModelTest, ASecondLookWantsAScoreOfEachPage) {
  const TestModel setup = MakeModel(GetParam(), WithLook(OddShape(), 2), "I8", Precision::kF32);
  const auto state = setup.model->NewReaderState();
  const std::vector<TokenId> ids = {1};
  const ReaderStep step = {.state = state.get(), .ids = ids};
  LowerRows lower;
  UpperRows upper;
  ASSERT_TRUE(setup.model->ReadLower(absl::MakeConstSpan(&step, 1), &lower).ok());
  const uint8_t* page = nullptr;
  const float weight = 0.5f;
  const RowSelection selection = {.pages = absl::MakeConstSpan(&page, 1),
                                  .weights = absl::MakeConstSpan(&weight, 1)};
  const absl::Status status =
      setup.model->ReadUpper(absl::MakeConstSpan(&step, 1), lower,
                             absl::MakeConstSpan(&selection, 1), LogitRows::kAll, &upper);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("1 pages and 0 scores"));
  std::vector<float> corrected;
  EXPECT_EQ(setup.model->CorrectScores(lower.hidden.as<float>(), absl::MakeConstSpan(&selection, 1),
                                       &corrected),
            status);
}

TEST_P(RambaModelTest, MatricesInF32AndBf16MatchTheTwin) {
  for (const char* dtype : {"F32", "BF16"}) {
    SCOPED_TRACE(dtype);
    CompareWithReference(MakeModel(GetParam(), OddShape(), dtype, Precision::kF32), kF32);
    CompareWithReference(MakeModel(GetParam(), OddShape(), dtype, Precision::kBf16), kBf16);
  }
}

TEST_P(RambaModelTest, SegmentsDoNotDependOnTheirCompanyNorOnThreads) {
  for (const RandomShape& shape : {WideStateShape(), WithHalo(OddShape(), 31), ManyTilesShape()}) {
    for (const Precision precision : {Precision::kF32, Precision::kBf16}) {
      const TestModel one = MakeModel(GetParam(), shape, "I8", precision, {.threads = 1});
      const TestModel three = MakeModel(GetParam(), shape, "I8", precision, {.threads = 3});
      const int S = shape.chunk_size, longest = shape.segment_size;
      std::vector<std::vector<TokenId>> segments;
      for (int64_t length : {1, S, S + 1, longest, longest * 2 / 3, 7, longest - 1}) {
        segments.push_back(RandomIds(one.model->config(), length, static_cast<uint32_t>(length)));
      }
      const std::vector<SegmentChunks> together = Derive(*three.model, segments);
      for (size_t i = 0; i < segments.size(); ++i) {
        const std::vector<SegmentChunks> alone = Derive(*one.model, {segments[i]});
        EXPECT_EQ(alone[0].pages, together[i].pages) << "segment " << i;
        EXPECT_EQ(alone[0].landmarks, together[i].landmarks) << "segment " << i;
      }
    }
  }
}

TEST_P(RambaModelTest, ReadersDoNotDependOnTheirCompany) {
  for (const Precision precision : {Precision::kF32, Precision::kBf16}) {
    const TestModel setup = MakeModel(GetParam(), OddShape(), "I8", precision);
    const Model& model = *setup.model;
    const ModelConfig& c = model.config();
    // Prompts of several lengths and single tokens, mixed; then all by one token.
    std::vector<std::vector<TokenId>> prompts;
    for (int64_t length : {1, 30, 1, 1, 200, 2})
      prompts.push_back(RandomIds(c, length, static_cast<uint32_t>(length)));
    std::vector<std::unique_ptr<ReaderState>> states;
    std::vector<ReaderStep> steps;
    for (const std::vector<TokenId>& prompt : prompts) {
      states.push_back(model.NewReaderState());
      steps.push_back({.state = states.back().get(), .ids = prompt});
    }
    const auto read = [&](absl::Span<const ReaderStep> batch) {
      LowerRows lower;
      EXPECT_TRUE(model.ReadLower(batch, &lower).ok());
      std::vector<RowSelection> none(lower.row_count);
      UpperRows upper;
      EXPECT_TRUE(model.ReadUpper(batch, lower, none, LogitRows::kLastOfStep, &upper).ok());
      return upper.logits;
    };
    const std::vector<float> together = read(steps);
    const std::vector<TokenId> next = {5};
    for (ReaderStep& step : steps) step.ids = next;
    const std::vector<float> after = read(steps);
    ASSERT_EQ(together.size(), prompts.size() * c.vocab_size);
    for (size_t i = 0; i < prompts.size(); ++i) {
      const auto state = model.NewReaderState();
      ReaderStep step = {.state = state.get(), .ids = prompts[i]};
      const auto row = [&](const std::vector<float>& logits) {
        return std::vector<float>(logits.begin() + i * c.vocab_size,
                                  logits.begin() + (i + 1) * c.vocab_size);
      };
      EXPECT_EQ(read(absl::MakeConstSpan(&step, 1)), row(together)) << "prompt " << i;
      step.ids = next;
      EXPECT_EQ(read(absl::MakeConstSpan(&step, 1)), row(after)) << "after prompt " << i;
    }
  }
}

TEST_P(RambaModelTest, TheBestTokenIsThatOfTheLargestLogit) {
  const TestModel setup = MakeModel(GetParam(), OddShape(), "I8", Precision::kBf16);
  const Model& model = *setup.model;
  const std::vector<TokenId> prompts[] = {RandomIds(model.config(), 20, 3), {7}, {9}, {9}};
  const auto read = [&](LogitRows which) {
    std::vector<std::unique_ptr<ReaderState>> states;
    std::vector<ReaderStep> steps;
    for (const std::vector<TokenId>& prompt : prompts) {
      states.push_back(model.NewReaderState());
      steps.push_back({.state = states.back().get(), .ids = prompt});
    }
    LowerRows lower;
    UpperRows upper;
    EXPECT_TRUE(model.ReadLower(steps, &lower).ok());
    EXPECT_TRUE(
        model.ReadUpper(steps, lower, std::vector<RowSelection>(lower.row_count), which, &upper)
            .ok());
    return upper;
  };
  const std::vector<float> logits = read(LogitRows::kLastOfStep).logits;
  const UpperRows upper = read(LogitRows::kBestOfStep);
  EXPECT_TRUE(upper.logits.empty());
  ASSERT_EQ(upper.best.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    const auto row = logits.begin() + static_cast<ptrdiff_t>(i) * model.config().vocab_size;
    EXPECT_EQ(upper.best[i], std::max_element(row, row + model.config().vocab_size) - row);
  }
}

TEST_P(RambaModelTest, AForkGoesItsOwnWay) {
  const TestModel setup = MakeModel(GetParam(), OddShape(), "I8", Precision::kBf16);
  const Model& model = *setup.model;
  const std::vector<TokenId> prompt = RandomIds(model.config(), 20, 3), next = {7};
  const auto state = model.NewReaderState();
  LowerRows before, first, second;
  ReaderStep step = {.state = state.get(), .ids = prompt};
  ASSERT_TRUE(model.ReadLower(absl::MakeConstSpan(&step, 1), &before).ok());
  const auto fork = state->Clone();
  ASSERT_NE(fork, nullptr);
  step.ids = next;
  ASSERT_TRUE(model.ReadLower(absl::MakeConstSpan(&step, 1), &first).ok());
  step.state = fork.get();
  ASSERT_TRUE(model.ReadLower(absl::MakeConstSpan(&step, 1), &second).ok());
  EXPECT_EQ(HostRows(*setup.backend, first.hidden, model.config().d_model),
            HostRows(*setup.backend, second.hidden, model.config().d_model));
}

TEST_P(RambaModelTest, CallsFromManyThreadsGiveTheSame) {
  const TestModel setup = MakeModel(GetParam(), OddShape(), "I8", Precision::kBf16);
  const std::vector<TokenId> ids = RandomIds(setup.model->config(), 64, 9);
  const SegmentChunks want = Derive(*setup.model, {ids})[0];
  std::vector<SegmentChunks> got(4);
  std::vector<std::thread> threads;
  for (SegmentChunks& chunks : got) {
    threads.emplace_back([&] {
      for (int i = 0; i < 3; ++i) chunks = Derive(*setup.model, {ids, ids})[1];
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const SegmentChunks& chunks : got) {
    EXPECT_EQ(chunks.pages, want.pages);
    EXPECT_EQ(chunks.landmarks, want.landmarks);
  }
}

TEST_P(RambaModelTest, FirstChunksAreTheSameBitsHoweverManyFollowWhatTheySee) {
  for (const RandomShape& shape : {WideStateShape(), ManyTilesShape(), WithHalo(OddShape(), 31)}) {
    for (const Precision precision : {Precision::kF32, Precision::kBf16}) {
      const TestModel setup = MakeModel(GetParam(), shape, "I8", precision);
      const ModelConfig& config = setup.model->config();
      const PageLayout layout = setup.model->page_layout();
      const std::vector<TokenId> ids = RandomIds(config, config.segment_size, 11);
      const SegmentChunks whole = Derive(*setup.model, {ids})[0];
      for (int chunks = 1; chunks < whole.chunk_count; ++chunks) {
        const SegmentChunks first =
            Derive(*setup.model, {{ids.begin(), ids.begin() + chunks * config.chunk_size}})[0];
        ASSERT_EQ(first.chunk_count, chunks);
        const int same = std::max(chunks - config.halo_chunks(), 0);
        EXPECT_TRUE(std::equal(first.pages.begin(),
                               first.pages.begin() + same * layout.page_bytes(),
                               whole.pages.begin()))
            << chunks << " of " << whole.chunk_count;
        EXPECT_TRUE(std::equal(first.landmarks.begin(),
                               first.landmarks.begin() + same * layout.landmark_bytes(),
                               whole.landmarks.begin()));
        EXPECT_EQ(
            std::equal(first.landmarks.begin(), first.landmarks.end(), whole.landmarks.begin()),
            config.encoder_halo == 0);
      }
    }
  }
}

TEST_P(RambaModelTest, OnlyThePagesThatAreAskedForAreMade) {
  for (const RandomShape& shape : {OddShape(), ManyTilesShape()}) {
    const TestModel setup = MakeModel(GetParam(), shape, "I8", Precision::kBf16);
    const ModelConfig& config = setup.model->config();
    const std::vector<std::vector<TokenId>> segments = {
        RandomIds(config, config.segment_size, 1), RandomIds(config, config.segment_size - 1, 2),
        RandomIds(config, 1, 3), RandomIds(config, config.segment_size, 4)};
    const std::vector<absl::Span<const TokenId>> spans(segments.begin(), segments.end());
    const std::vector<SegmentChunks> all = Derive(*setup.model, segments);
    const int last = all[0].chunk_count;
    const std::vector<PageRange> ranges = {{1, 3}, {last - 1, last + 5}, {0, 1}, {0, 0}};
    std::vector<SegmentChunks> some;
    ASSERT_TRUE(setup.model->ForwardLower(spans, ranges, &some).ok());
    const int64_t page_bytes = setup.model->page_layout().page_bytes();
    for (size_t i = 0; i < segments.size(); ++i) {
      EXPECT_EQ(some[i].landmarks, all[i].landmarks);
      const int64_t end = std::min(ranges[i].end, all[i].chunk_count);
      EXPECT_EQ(some[i].pages,
                std::vector<uint8_t>(all[i].pages.begin() + ranges[i].begin * page_bytes,
                                     all[i].pages.begin() + end * page_bytes));
    }
    EXPECT_EQ(
        setup.model->ForwardLower(spans, absl::MakeConstSpan(ranges).subspan(1), &some).code(),
        absl::StatusCode::kInvalidArgument);
  }
}

TEST_P(RambaModelTest, BadIngestIsRefusedWithItsValue) {
  const TestModel setup = MakeModel(GetParam(), OddShape(), "I8", Precision::kF32);
  std::vector<SegmentChunks> out;
  const auto status_of = [&](std::vector<TokenId> ids) {
    const absl::Span<const TokenId> span(ids);
    return setup.model->ForwardLower(absl::MakeConstSpan(&span, 1), &out);
  };
  EXPECT_EQ(status_of({}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status_of(std::vector<TokenId>(65, 1)).message()),
              HasSubstr("65 tokens, allowed are 1 to 64"));
  EXPECT_THAT(std::string(status_of({1, 264}).message()), HasSubstr("token 1 has id 264"));
  EXPECT_THAT(std::string(status_of({-1}).message()), HasSubstr("token 0 has id -1"));
  EXPECT_TRUE(setup.model->ForwardLower({}, &out).ok());
  EXPECT_TRUE(out.empty());
}

TEST_P(RambaModelTest, BadReaderStepsAreRefused) {
  const TestModel setup = MakeModel(GetParam(), OddShape(), "I8", Precision::kF32);
  const Model& model = *setup.model;
  const auto state = model.NewReaderState();
  const std::vector<TokenId> good = {1, 2}, bad = {1, 9999};
  LowerRows lower;
  const auto read = [&](ReaderState* reader, absl::Span<const TokenId> ids) {
    const ReaderStep step = {.state = reader, .ids = ids};
    return model.ReadLower(absl::MakeConstSpan(&step, 1), &lower).code();
  };
  EXPECT_EQ(read(nullptr, good), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(read(state.get(), {}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(read(state.get(), bad), absl::StatusCode::kInvalidArgument);
  ASSERT_EQ(read(state.get(), good), absl::StatusCode::kOk);

  const ReaderStep step = {.state = state.get(), .ids = good};
  const auto read_upper = [&](const LowerRows& rows, const std::vector<RowSelection>& selections) {
    UpperRows upper;
    return model.ReadUpper(absl::MakeConstSpan(&step, 1), rows, selections, LogitRows::kAll, &upper)
        .code();
  };
  const uint8_t* page = nullptr;
  const float weights[] = {0.5f, 0.25f};
  EXPECT_EQ(read_upper(LowerRows(), {{}, {}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(read_upper(lower, {{}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(read_upper(lower, {{.pages = absl::MakeConstSpan(&page, 1), .weights = weights}, {}}),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(read_upper(lower, {{}, {}}), absl::StatusCode::kOk);
}

TEST_P(RambaModelTest, NoStepsAreNoWork) {
  const TestModel setup = MakeModel(GetParam(), OddShape(), "I8", Precision::kF32);
  LowerRows lower;
  UpperRows upper;
  EXPECT_TRUE(setup.model->ReadLower({}, &lower).ok());
  EXPECT_TRUE(setup.model->ReadUpper({}, lower, {}, LogitRows::kAll, &upper).ok());
  EXPECT_TRUE(upper.logits.empty());
}

TEST_P(RambaModelTest, WhatIsStoredTellsItsDerivation) {
  const TestModel f32 = MakeModel(GetParam(), OddShape(), "I8", Precision::kF32),
                  bf16 = MakeModel(GetParam(), OddShape(), "I8", Precision::kBf16);
  EXPECT_NE(f32.model->derivation_fingerprint(), bf16.model->derivation_fingerprint());
  EXPECT_NE(f32.model->derivation_fingerprint(), f32.model->bundle().fingerprint);
  EXPECT_EQ(f32.model->page_layout().page_bytes(), 2 * 16 * 32 * 4);
  EXPECT_EQ(bf16.model->page_layout().landmark_bytes(), 40 * 2);
}

}  // namespace
}  // namespace mneme
