// The second look at selected pages on every backend against its double twin.

#include <cmath>
#include <limits>

#include "tests/kernels/kernel_test_util.h"
#include "tests/reference/attention_reference.h"

namespace mneme {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kBf16};

// What a row's values are when nothing wrote them.
constexpr float kUntouched = -1280.0f;

// Stick-breaking and the other way.
constexpr int kNewestMargins[] = {0, 2};

// Rows over pages of a common store, with all that ChunkLookParams points to.
struct Look {
  std::vector<float> q, scores, head_weight, corrected, weights;
  std::vector<const void*> pages;
  std::vector<int32_t> counts;
  ChunkLookParams params;

  // `page` of the cells that a row reads, which may be null where the score is minus infinity.
  void Bind(int64_t rows, int64_t pages_max, int64_t q_stride) {
    corrected.assign(rows * pages_max, kUntouched);
    weights.assign(rows * pages_max, kUntouched);
    params.q = q.data();
    params.q_stride = q_stride;
    params.pages = pages.data();
    params.page_counts = counts.data();
    params.pages_max = pages_max;
    params.scores = scores.data();
    params.head_weight = head_weight.data();
    params.rows = rows;
    params.corrected = corrected.data();
    params.weights = weights.data();
  }
};

class ChunkLookTest : public KernelTest {
 protected:
  struct Shape {
    DType page_dtype;
    int64_t rows, pages_max, heads, head_dim, tokens;
  };

  // Random pages at odd places, which keep the alignment of an element alone where `misplaced`.
  void MakeStore(const Shape& shape, bool misplaced) {
    page_elements_ = 2 * shape.tokens * shape.head_dim;
    first_ = misplaced ? 1 : 0;
    store_ = std::make_unique<Input>(Normal(first_ + kStored * page_elements_));
  }
  const void* Page(DType dtype, int64_t i) const {
    return static_cast<const char*>(store_->data(dtype)) +
           (first_ + i * page_elements_) * DTypeBytes(dtype);
  }

  Look RandomLook(const Shape& shape) {
    Look look;
    const int64_t q_stride = shape.heads * shape.head_dim + Gap();
    look.q = Normal(shape.rows * q_stride, 1.5);
    look.scores = Normal(shape.rows * shape.pages_max, 2, -1);
    look.head_weight = Normal(shape.heads, 1 / std::sqrt(static_cast<double>(shape.heads)));
    look.pages.assign(shape.rows * shape.pages_max, nullptr);
    for (int64_t r = 0; r < shape.rows; ++r) {
      look.counts.push_back(static_cast<int32_t>(Uniform(0, shape.pages_max)));
      for (int64_t i = 0; i < look.counts.back(); ++i) {
        if (Uniform(0, 9) == 0) {
          look.scores[r * shape.pages_max + i] = -std::numeric_limits<float>::infinity();
        } else {
          look.pages[r * shape.pages_max + i] = Page(shape.page_dtype, Uniform(0, kStored - 1));
        }
      }
    }
    look.params.page_dtype = shape.page_dtype;
    look.params.heads = shape.heads;
    look.params.head_dim = shape.head_dim;
    look.params.chunk_tokens = shape.tokens;
    look.Bind(shape.rows, shape.pages_max, q_stride);
    return look;
  }

  void ExpectMatchesTheTwin(const Shape& shape) {
    SCOPED_TRACE(testing::Message()
                 << DTypeName(shape.page_dtype) << " pages, " << shape.rows << " rows of "
                 << shape.pages_max << " pages, " << shape.heads << " heads of " << shape.head_dim
                 << ", " << shape.tokens << " tokens");
    MakeStore(shape, /*misplaced=*/Uniform(0, 3) == 0);
    Look look = RandomLook(shape);
    for (const int newest_margin : kNewestMargins) {
      look.params.newest_margin = newest_margin;
      look.Bind(shape.rows, shape.pages_max, look.params.q_stride);
      ExpectMatchesTheTwin(look);
    }
  }
  void ExpectMatchesTheTwin(const Look& look) {
    SCOPED_TRACE(testing::Message() << "margin " << look.params.newest_margin);
    ASSERT_TRUE(backend_->ChunkLook(look.params).ok());
    const ChunkLookValues want = ChunkLookReference(look.params);
    // Sums of f32 in another order; all pages' values come exactly into either.
    for (size_t i = 0; i < want.corrected.size(); ++i) {
      if (want.corrected[i] == -HUGE_VAL) {
        ASSERT_EQ(look.corrected[i], -HUGE_VALF) << "cell " << i;
        ASSERT_EQ(look.weights[i], 0.0f) << "cell " << i;
        continue;
      }
      ASSERT_NEAR(look.corrected[i], want.corrected[i],
                  kF32Tolerance * (1 + std::fabs(want.corrected[i])))
          << "cell " << i;
      ASSERT_NEAR(look.weights[i], want.weights[i], kF32Tolerance) << "cell " << i;
    }
  }

  static constexpr int64_t kStored = 5;
  int64_t page_elements_ = 0, first_ = 0;
  std::unique_ptr<Input> store_;
};

TEST_P(ChunkLookTest, MatchesItsTwin) {
  for (const DType page_dtype : kTypes) {
    for (const int64_t head_dim : {1, 2, 8, 30, 64, 72}) {
      for (const int64_t tokens : {1, 7, 16, 33, 64, 65, 130}) {
        ExpectMatchesTheTwin(
            {page_dtype, Uniform(1, 9), Uniform(1, 9), Uniform(1, 9), head_dim, tokens});
      }
    }
  }
}

TEST_P(ChunkLookTest, ShippedShapesMatchTheTwin) {
  for (const DType page_dtype : kTypes) {
    for (const int64_t rows : {1, 3, 40}) {
      ExpectMatchesTheTwin({page_dtype, rows, 8, 9, 64, 64});
    }
  }
}

TEST_P(ChunkLookTest, OnePageAndNoneMatchTheTwin) {
  for (const DType page_dtype : kTypes) {
    ExpectMatchesTheTwin({page_dtype, 1, 1, 1, 64, 64});
    ExpectMatchesTheTwin({page_dtype, 1, 1, 1, 1, 1});
    ExpectMatchesTheTwin({page_dtype, 30, 1, 2, 16, 16});
    ExpectMatchesTheTwin({page_dtype, 0, 8, 6, 64, 64});
    ExpectMatchesTheTwin({page_dtype, 3, 0, 6, 64, 64});
  }
}

TEST_P(ChunkLookTest, ManyHeadsAndManyPagesMatchTheTwin) {
  for (const DType page_dtype : kTypes) {
    ExpectMatchesTheTwin({page_dtype, 2, 3, 256, 16, 20});
    ExpectMatchesTheTwin({page_dtype, 2, 2, 17, 128, 64});
    for (const int64_t pages_max : {31, 32, 33, 100}) {
      ExpectMatchesTheTwin({page_dtype, 7, pages_max, 3, 8, 5});
    }
  }
}

// Products in the hundreds: exponentials alone would leave the range of floats.
TEST_P(ChunkLookTest, LargeProductsStayFinite) {
  const Shape shape = {DType::kF32, 4, 3, 2, 64, 64};
  MakeStore(shape, /*misplaced=*/false);
  Look look = RandomLook(shape);
  for (float& v : look.q) v *= 100;
  for (float& v : look.head_weight) v *= 0.01f;
  for (const int newest_margin : kNewestMargins) {
    look.params.newest_margin = newest_margin;
    ASSERT_TRUE(backend_->ChunkLook(look.params).ok());
    const ChunkLookValues want = ChunkLookReference(look.params);
    for (size_t i = 0; i < want.corrected.size(); ++i) {
      if (want.corrected[i] == -HUGE_VAL) continue;
      EXPECT_NEAR(look.corrected[i], want.corrected[i], 1e-4) << "cell " << i;
      EXPECT_NEAR(look.weights[i], want.weights[i], 1e-4) << "cell " << i;
    }
  }
}

// Scores as they come, with heads that add nothing: weights alone.
TEST_P(ChunkLookTest, ExtremeScoresGiveTheirWeights) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  for (const int64_t pages_max : {4, 33, 100}) {
    const Shape shape = {DType::kF32, 20, pages_max, 1, 8, 4};
    MakeStore(shape, /*misplaced=*/false);
    Look look = RandomLook(shape);
    look.head_weight = {0.0f};
    for (int64_t r = 0; r < shape.rows; ++r) {
      // All equal, of two sizes, all but equal, and far above and below the others.
      for (int64_t i = 0; i < pages_max; ++i) {
        float& score = look.scores[r * pages_max + i];
        if (score == -HUGE_VALF) continue;
        const float sizes[] = {-1e4f, 0.0f, 1e4f, std::copysign(1e4f, score), 1e4f + score};
        score = sizes[r % 5];
      }
    }
    for (const int newest_margin : {0, 1, 2, 64}) {
      look.params.newest_margin = newest_margin;
      look.Bind(shape.rows, pages_max, look.params.q_stride);
      ExpectMatchesTheTwin(look);
    }
    for (int64_t i = 0; i < shape.rows * pages_max; ++i) {
      if (look.scores[i] != -HUGE_VALF) look.scores[i] = i % 2 == 0 ? kLargest : -kLargest;
    }
    for (const int newest_margin : {0, 64}) {
      look.params.newest_margin = newest_margin;
      ASSERT_TRUE(backend_->ChunkLook(look.params).ok());
      for (int64_t r = 0; r < shape.rows; ++r) {
        // The newest of the large ones has it all.
        bool taken = false;
        for (int64_t i = r * pages_max; i < (r + 1) * pages_max; ++i) {
          const bool takes = !taken && look.corrected[i] == kLargest;
          ASSERT_NEAR(look.weights[i], takes ? 1 : 0, 1e-6) << "cell " << i;
          taken = taken || takes;
        }
      }
    }
  }
}

TEST_P(ChunkLookTest, ARowDoesNotSeeItsCompany) {
  for (const DType page_dtype : kTypes) {
    const Shape shape = {page_dtype, 70, 8, 6, 64, 64};
    MakeStore(shape, /*misplaced=*/false);
    Look together = RandomLook(shape);
    together.params.newest_margin = page_dtype == DType::kF32 ? 2 : 0;
    ASSERT_TRUE(backend_->ChunkLook(together.params).ok());
    for (const int64_t row : {0, 1, 33, 69}) {
      Look alone = together;
      const int64_t stride = together.params.q_stride, first = row * shape.pages_max;
      alone.q.erase(alone.q.begin(), alone.q.begin() + row * stride);
      alone.scores.erase(alone.scores.begin(), alone.scores.begin() + first);
      alone.pages.erase(alone.pages.begin(), alone.pages.begin() + first);
      alone.counts.erase(alone.counts.begin(), alone.counts.begin() + row);
      alone.Bind(1, shape.pages_max, stride);
      ASSERT_TRUE(backend_->ChunkLook(alone.params).ok());
      for (int64_t i = 0; i < shape.pages_max; ++i) {
        EXPECT_EQ(alone.corrected[i], together.corrected[first + i]) << row << " page " << i;
        EXPECT_EQ(alone.weights[i], together.weights[first + i]) << row << " page " << i;
      }
    }
  }
}

TEST_P(ChunkLookTest, ImpossibleShapesAreRefused) {
  const Shape shape = {DType::kF32, 2, 3, 2, 8, 4};
  MakeStore(shape, /*misplaced=*/false);
  const Look look = RandomLook(shape);
  const auto refused = [&](auto change) {
    ChunkLookParams p = look.params;
    change(p);
    return backend_->ChunkLook(p).code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused([](ChunkLookParams& p) { p.heads = 0; }));
  EXPECT_TRUE(refused([](ChunkLookParams& p) { p.rows = -1; }));
  EXPECT_TRUE(refused([](ChunkLookParams& p) { p.q_stride = 15; }));
  EXPECT_TRUE(refused([](ChunkLookParams& p) { p.chunk_tokens = 0; }));
  EXPECT_TRUE(refused([](ChunkLookParams& p) { p.newest_margin = -1; }));
  EXPECT_TRUE(refused([](ChunkLookParams& p) { p.page_dtype = DType::kI8; }));
  EXPECT_TRUE(refused([](ChunkLookParams& p) { p.head_weight = nullptr; }));
  EXPECT_TRUE(refused([](ChunkLookParams& p) { p.corrected = nullptr; }));
}

INSTANTIATE_TEST_SUITE_P(Backends, ChunkLookTest, testing::ValuesIn(BackendCases()),
                         BackendCaseName);

}  // namespace
}  // namespace mneme
