// The second look at chunks on random bundles: beside the double twin, in any company, alone.

#include <algorithm>
#include <cmath>
#include <utility>

#include "model/ramba_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/chunk_weights.h"
#include "tests/model/random_bundle.h"
#include "tests/model/random_model.h"
#include "tests/reference/network_reference.h"

namespace mneme {
namespace {

using testing::HasSubstr;

using SecondLookTest = RandomModelTest;

INSTANTIATE_TEST_SUITE_P(Devices, SecondLookTest, testing::ValuesIn(Devices()),
                         [](const auto& device) { return device.param; });

TEST_P(SecondLookTest, MatchesTheTwin) {
  for (const char* dtype : {"I8", "F32", "BF16"}) {
    SCOPED_TRACE(dtype);
    for (const int heads : {1, 5}) {
      const RandomShape shape = WithLook(OddShape(), heads);
      CompareWithReference(MakeModel(GetParam(), shape, dtype, Precision::kF32), kF32);
      CompareWithReference(MakeModel(GetParam(), shape, dtype, Precision::kBf16), kBf16);
      const RandomShape margin = WithMargin(shape, 2);
      CompareWithReference(MakeModel(GetParam(), margin, dtype, Precision::kF32), kF32);
      CompareWithReference(MakeModel(GetParam(), margin, dtype, Precision::kBf16), kBf16);
    }
  }
  // More queries than d_model; heads as the shipped bundle has them.
  const RandomShape wide = WithLook(WideStateShape(), 6);
  CompareWithReference(MakeModel(GetParam(), wide, "I8", Precision::kF32), kF32);
  CompareWithReference(MakeModel(GetParam(), wide, "I8", Precision::kBf16), kBf16);
  const RandomShape smallest = WithLook(SmallestShape(), 256);
  CompareWithReference(MakeModel(GetParam(), smallest, "F32", Precision::kF32), kF32);
  CompareWithReference(MakeModel(GetParam(), WithMargin(smallest, 64), "F32", Precision::kF32),
                       kF32);
}

TEST_P(SecondLookTest, ComesWithLogitsAndWithBestTokens) {
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
TEST_P(SecondLookTest, DoesNotSeeItsCompany) {
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
TEST_P(SecondLookTest, ScoresAreCorrectedChunkByChunk) {
  for (const auto& [precision, margin] :
       {std::pair(Precision::kF32, 0), std::pair(Precision::kF32, 2),
        std::pair(Precision::kBf16, 0), std::pair(Precision::kBf16, 2)}) {
    const TestModel setup =
        MakeModel(GetParam(), WithMargin(WithLook(OddShape(), 3), margin), "I8", precision);
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

    // The upper half of the same rows makes its weights of the same scores.
    UpperRows upper;
    ASSERT_TRUE(model
                    .ReadUpper(absl::MakeConstSpan(&step, 1), lower, together,
                               LogitRows::kLastOfStep, &upper)
                    .ok());
    std::vector<float> weights(count);
    for (size_t r = 0; r < ids.size(); ++r) {
      ChunkWeights(absl::MakeConstSpan(corrected).subspan(r * count, count), c.newest_margin,
                   absl::MakeSpan(weights));
      for (size_t i = 0; i < count; ++i) {
        ASSERT_NEAR(upper.weights[r * count + i], weights[i], 1e-6) << r;
      }
    }
  }
}

TEST_P(SecondLookTest, ScoresAreNotCorrectedWithoutASecondLook) {
  const TestModel setup = MakeModel(GetParam(), OddShape(), "I8", Precision::kF32);
  std::vector<float> scores;
  const absl::Status status = setup.model->CorrectScores(nullptr, {}, &scores);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("look_heads 0"));
}

TEST_P(SecondLookTest, WantsAScoreOfEachPage) {
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

}  // namespace
}  // namespace mneme
