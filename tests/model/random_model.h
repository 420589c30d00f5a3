// Random networks and their readers in tests of RambaModel: what they compute beside the double
// twin, shapes that are awkward, and the devices of this build.

#ifndef MNEME_TESTS_MODEL_RANDOM_MODEL_H_
#define MNEME_TESTS_MODEL_RANDOM_MODEL_H_

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "model/ramba_model.h"
#include "tests/model/random_bundle.h"
#include "tests/reference/network_reference.h"

namespace mneme {

struct TestModel {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<RambaModel> model;
};

// `device`: "cpu", with `options`, or "cuda".
inline TestModel MakeModel(absl::string_view device, const RandomShape& shape,
                           absl::string_view matrix_dtype, Precision precision,
                           CpuBackendOptions options = {.threads = 2}) {
  TestModel setup;
  setup.backend = CreateBackend(device, options).value();
  setup.model = RambaModel::Create(RandomBundle(shape, matrix_dtype, 1), *setup.backend,
                                   {.precision = precision})
                    .value();
  return setup;
}

inline std::vector<TokenId> RandomIds(const ModelConfig& config, int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<TokenId> id(0, config.vocab_size - 1);
  std::vector<TokenId> ids(count);
  for (TokenId& token : ids) token = id(random);
  return ids;
}

inline std::vector<SegmentChunks> Derive(const Model& model,
                                         const std::vector<std::vector<TokenId>>& segments) {
  const std::vector<absl::Span<const TokenId>> spans(segments.begin(), segments.end());
  std::vector<SegmentChunks> out;
  const absl::Status status = model.ForwardLower(spans, &out);
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

inline std::vector<float> HostRows(Backend& backend, const Buffer& rows, int64_t count) {
  std::vector<float> host(static_cast<size_t>(count));
  EXPECT_TRUE(backend.CopyOut(host.data(), rows.data(), count * 4).ok());
  return host;
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

inline void CompareWithReference(const TestModel& setup, Tolerance tolerance) {
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

inline RandomShape OddShape() { return {}; }
inline RandomShape WideStateShape() {
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
inline RandomShape WithLook(RandomShape shape, int heads) {
  shape.look_heads = heads;
  return shape;
}
inline RandomShape WithMargin(RandomShape shape, int newest_margin) {
  shape.newest_margin = newest_margin;
  return shape;
}
inline RandomShape SmallestShape() {
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
inline RandomShape WithHalo(RandomShape shape, int halo) {
  shape.encoder_halo = halo;
  return shape;
}
// Groups of 96 rows; on the CPU a segment is several tiles, the last of them smaller.
inline RandomShape ManyTilesShape() {
  return {.d_model = 128,
          .ssm_head_dim = 32,
          .n_heads = 2,
          .chunk_size = 64,
          .encoder_halo = 31,
          .segment_size = 320};
}
// More than one tile on every device.
inline RandomShape LongSegmentShape() {
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
class RandomModelTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const absl::Status status = CreateBackend(GetParam(), {.threads = 1}).status();
    if (absl::IsFailedPrecondition(status)) GTEST_SKIP() << status;
    ASSERT_TRUE(status.ok()) << status;
  }
};

inline std::vector<std::string> Devices() {
#if defined(MNEME_HAVE_CUDA)
  return {"cpu", "cuda"};
#else
  return {"cpu"};
#endif
}

}  // namespace mneme

#endif  // MNEME_TESTS_MODEL_RANDOM_MODEL_H_
