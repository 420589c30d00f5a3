// What operations leave of their rows for the next norm (NextNorm), and what takes it, on backends
// whose activations are bf16; norms of the others read their rows.

#include <utility>
#include <vector>

#include "tests/kernels/product_test.h"

namespace mneme {
namespace {

class NextNormTest : public ProductTest {
 protected:
  void SetUp() override {
    ProductTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    if (ActivationTypes().size() == 1) GTEST_SKIP() << "norms read their rows on this backend";
  }
};

// Rows that operations leave ready for their next norm: the values with its weight, rounded, and
// the sums of their squares.
struct ReadyRows {
  ReadyRows(int64_t row_count, int64_t row_width, std::vector<float> norm_weight)
      : rows(row_count),
        width(row_width),
        parts((row_width + kSquareColumns - 1) / kSquareColumns),
        weight(std::move(norm_weight)),
        scaled(rows * width + 1),
        squares(rows * parts + 1, -1.0f) {
    scaled.back() = FloatToBf16(7.0f);
  }
  NextNorm Next() {
    return {.weight = weight.data(), .scaled = scaled.data(), .squares = squares.data()};
  }
  // Against the rows [rows, stride] that the operation wrote.
  void Expect(const float* out, int64_t stride) const {
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0, want = 0;
      for (int64_t i = 0; i < parts; ++i) sum += squares[r * parts + i];
      for (int64_t c = 0; c < width; ++c) {
        const float v = out[r * stride + c];
        want += static_cast<double>(v) * v;
        const float product = v * weight[c];
        ASSERT_EQ(Bf16ToFloat(scaled[r * width + c]), Bf16ToFloat(FloatToBf16(product)))
            << "row " << r << " of " << rows << ", column " << c << " of " << width;
      }
      ASSERT_NEAR(sum, want, kF32Tolerance * want) << "row " << r << " of " << rows;
    }
    ASSERT_EQ(Bf16ToFloat(scaled.back()), 7.0f);
    ASSERT_EQ(squares.back(), -1.0f);
  }

  int64_t rows, width, parts;
  std::vector<float> weight;
  std::vector<Bf16> scaled;
  std::vector<float> squares;
};

TEST_P(NextNormTest, ResultsAreLeftReadyForTheNextNorm) {
  for (const int64_t rows : {0, 1, 17, 65, 128, 300}) {
    for (const int64_t n : {16, 112, 384, 400}) {
      for (const int64_t cols : {int64_t{384}, int64_t{768}, Uniform(1, 100)}) {
        const StoredMatrix m = Matrix(DType::kI8, n, cols);
        const auto weight =
            backend_->PackWeight({m.source}, {.compute_dtype = DType::kBf16}).value();
        const Input operand(Normal(rows * cols));
        std::vector<float> out = Normal(rows * n), alone = out;
        ReadyRows ready(rows, n, Normal(n, 0.2, 1));
        MatmulParams p = ManyRows(operand, rows, *weight, out.data());
        p.accumulate = true;
        p.next = ready.Next();
        ASSERT_TRUE(backend_->Matmul(p).ok());
        p.next = {};
        p.out = alone.data();
        ASSERT_TRUE(backend_->Matmul(p).ok());
        const double magnitude = LargestOf(alone);
        for (size_t i = 0; i < out.size(); ++i) {
          ASSERT_NEAR(out[i], alone[i], kF32Tolerance * magnitude);
        }
        ready.Expect(out.data(), n);
      }
    }
  }
}

// Added to rows that the norm before left, once an addition rounded; the sums in f32 beside them
// where they are wanted.
TEST_P(NextNormTest, SumsAreAddedToScaledRows) {
  for (const int64_t rows : {0, 1, 17, 65, 128, 300}) {
    for (const int64_t n : {16, 112, 384, 400}) {
      for (const int64_t cols : {int64_t{384}, int64_t{768}, int64_t{1024}, Uniform(1, 100)}) {
        const StoredMatrix m = Matrix(DType::kI8, n, cols);
        const auto weight =
            backend_->PackWeight({m.source}, {.compute_dtype = DType::kBf16}).value();
        const Input operand(Normal(rows * cols));
        std::vector<float> unscale = Normal(n, 0.2, 1), alone(rows * n), out(rows * n);
        ReadyRows ready(rows, n, Normal(n, 0.2, 1));
        const std::vector<float> before = Normal(rows * n);
        for (int64_t i = 0; i < rows * n; ++i) {
          ready.scaled[i] = FloatToBf16(before[i]);
          alone[i] = Bf16ToFloat(ready.scaled[i]) * unscale[i % n];
        }
        const bool both = Uniform(0, 1) == 1;
        const std::vector<Bf16> scaled_before = ready.scaled;
        MatmulParams p = ManyRows(operand, rows, *weight, out.data());
        p.accumulate = true;
        p.next = ready.Next();
        p.next.unscale = unscale.data();
        ASSERT_TRUE(backend_->Matmul(p).ok());
        ready.Expect(out.data(), n);
        const std::vector<Bf16> with_sums = ready.scaled;
        if (!both) {  // the same rows without their sums
          ready.scaled = scaled_before;
          p.out = nullptr;
          p.next.scaled = ready.scaled.data();
          ASSERT_TRUE(backend_->Matmul(p).ok());
          ready.Expect(out.data(), n);
        }
        p.next = {};
        p.out = alone.data();
        ASSERT_TRUE(backend_->Matmul(p).ok());
        const double magnitude = LargestOf(alone);
        for (size_t i = 0; i < out.size(); ++i) {
          ASSERT_NEAR(out[i], alone[i], kF32Tolerance * magnitude)
              << n << " x " << cols << ", row " << i / n << " of " << rows << ", output " << i % n;
        }
      }
    }
  }
}

TEST_P(NextNormTest, EmbedLeavesRowsReadyForTheNextNorm) {
  for (const DType dtype : kStored) {
    for (const int64_t cols : {384, 37}) {
      const StoredMatrix m = Matrix(dtype, 50, cols);
      const auto table =
          backend_->PackWeight({m.source}, {.compute_dtype = DType::kBf16, .embed = true}).value();
      const int64_t rows = 30, stride = cols + Gap();
      std::vector<int32_t> ids;
      for (int64_t r = 0; r < rows; ++r) ids.push_back(static_cast<int32_t>(Uniform(0, 49)));
      std::vector<float> out(rows * stride);
      ReadyRows ready(rows, cols, Normal(cols, 0.2, 1));
      ASSERT_TRUE(backend_
                      ->Embed({.ids = ids.data(),
                               .rows = rows,
                               .table = table.get(),
                               .out = out.data(),
                               .out_stride = stride,
                               .next = ready.Next()})
                      .ok());
      ready.Expect(out.data(), stride);
      ReadyRows alone(rows, cols, ready.weight);
      ASSERT_TRUE(
          backend_
              ->Embed({.ids = ids.data(), .rows = rows, .table = table.get(), .next = alone.Next()})
              .ok());
      alone.Expect(out.data(), stride);
    }
  }
}

TEST_P(NextNormTest, ChunkInputLeavesRowsReadyForTheNextNorm) {
  for (const int64_t width : {384, 37}) {
    for (const int64_t halo : {0, 3, 7}) {
      const int64_t chunks = 3, tokens = 5, stride = width + Gap(),
                    rows = chunks * (tokens + halo + 1);
      const std::vector<float> hidden = Normal(chunks * tokens * width), cls = Normal(width),
                               norm = Normal(width, 0.2, 1);
      const std::vector<int32_t> ends = {5, 15, 15};
      std::vector<float> out(rows * stride);
      ReadyRows ready(rows, width, Normal(width, 0.2, 1));
      ASSERT_TRUE(backend_
                      ->ChunkInput({.hidden = hidden.data(),
                                    .hidden_stride = width,
                                    .weight = norm.data(),
                                    .eps = 1e-5f,
                                    .cls = cls.data(),
                                    .chunks = chunks,
                                    .chunk_tokens = tokens,
                                    .halo_tokens = halo,
                                    .sequence_ends = ends.data(),
                                    .width = width,
                                    .out = out.data(),
                                    .out_stride = stride,
                                    .next = ready.Next()})
                      .ok());
      ready.Expect(out.data(), stride);
    }
  }
}

// ChunkInput of rows that came scaled: their norm is a factor of the row alone.
TEST_P(NextNormTest, ChunkInputTakesScaledRows) {
  for (const int64_t width : {384, 37, 100}) {
    for (const int64_t halo : {0, 3, 7}) {
      // The last chunk's sequence goes on behind it.
      const int64_t chunks = 3, tokens = 5, all = chunks * tokens + 2, stride = width + Gap(),
                    group = tokens + halo + 1, rows = chunks * group;
      const std::vector<float> cls = Normal(width);
      const std::vector<int32_t> ends = {5, 17, 17};
      ReadyRows from(all, width, {}), ready(rows, width, Normal(width, 0.2, 1));
      const std::vector<float> values = Normal(all * width);
      for (size_t i = 0; i < values.size(); ++i) from.scaled[i] = FloatToBf16(values[i]);
      for (float& v : from.squares) v = std::fabs(Normal(1)[0]) * 50 + 1;
      std::vector<float> out(rows * stride);
      ChunkInputParams p = {.scaled = from.scaled.data(),
                            .squares = from.squares.data(),
                            .eps = 1e-5f,
                            .cls = cls.data(),
                            .chunks = chunks,
                            .chunk_tokens = tokens,
                            .halo_tokens = halo,
                            .sequence_ends = ends.data(),
                            .width = width,
                            .out = out.data(),
                            .out_stride = stride,
                            .next = ready.Next()};
      ASSERT_TRUE(backend_->ChunkInput(p).ok());
      ready.Expect(out.data(), stride);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t t = r % group, source = r / group * tokens + t;
        const bool is_cls = t == group - 1;
        const bool is_zero = !is_cls && t >= tokens && source >= ends[r / group];
        double sum = 0;
        for (int64_t i = 0; !is_cls && !is_zero && i < from.parts; ++i) {
          sum += from.squares[source * from.parts + i];
        }
        const double factor = 1 / std::sqrt(sum / static_cast<double>(width) + 1e-5);
        for (int64_t c = 0; c < width; ++c) {
          const double want = is_cls    ? cls[c]
                              : is_zero ? 0
                                        : Bf16ToFloat(from.scaled[source * width + c]) * factor;
          ASSERT_NEAR(out[r * stride + c], want, kF32Tolerance * (1 + std::fabs(want)));
        }
      }
      ReadyRows alone(rows, width, ready.weight);
      p.out = nullptr;
      p.next = alone.Next();
      ASSERT_TRUE(backend_->ChunkInput(p).ok());
      alone.Expect(out.data(), stride);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, NextNormTest, testing::ValuesIn(BackendCases()),
                         BackendCaseName);

}  // namespace
}  // namespace mneme
