// Matrix products and embedding on every backend against their double twins.

#include "tests/kernels/kernel_test_util.h"
#include "tests/reference/matmul_reference.h"
#include "tests/reference/norm_reference.h"

namespace mneme {
namespace {

// A random stored matrix.
struct StoredMatrix {
  std::vector<int8_t> bytes;
  std::vector<Bf16> halves;
  std::vector<float> floats, scale;
  WeightSource source;
};

class MatmulTest : public KernelTest {
 protected:
  StoredMatrix Matrix(DType dtype, int64_t rows, int64_t cols) {
    StoredMatrix m;
    m.floats = Normal(rows * cols);
    for (float v : m.floats) m.halves.push_back(FloatToBf16(v));
    for (int64_t i = 0; i < rows * cols; ++i)
      m.bytes.push_back(static_cast<int8_t>(Uniform(-127, 127)));
    for (float v : Normal(rows)) m.scale.push_back(0.01f * std::fabs(v) + 1e-4f);
    m.source = {.dtype = dtype, .rows = rows, .cols = cols, .data = m.floats.data()};
    if (dtype == DType::kBf16) m.source.data = m.halves.data();
    if (dtype == DType::kI8) {
      m.source.data = m.bytes.data();
      m.source.scale = m.scale.data();
    }
    return m;
  }

  // Products of `rows` random rows with `m`, as `p` says otherwise; the operand is exact in its
  // dtype.
  void Check(const StoredMatrix& m, DType compute, int64_t rows, bool accumulate, bool per_row,
             double tolerance) {
    const WeightSource source = m.source;
    const auto weight = backend_->PackWeight({source}, {.compute_dtype = compute}).value();
    const int64_t cols = source.cols, stride = cols + Uniform(0, 1) * 5;
    const bool halves = compute == DType::kBf16 && !per_row;
    std::vector<float> a = Normal(rows * stride);
    std::vector<Bf16> a_halves;
    for (float& v : a) {
      a_halves.push_back(FloatToBf16(v));
      if (halves) v = Bf16ToFloat(a_halves.back());
    }
    std::vector<double> dense;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) dense.push_back(a[r * stride + c]);
    }
    std::vector<double> values = WeightReference(source);
    if (halves && source.dtype == DType::kF32) {
      for (double& v : values) v = Bf16ToFloat(FloatToBf16(static_cast<float>(v)));
    }
    std::vector<double> want = MatmulReference(dense, values, rows, source.rows, cols);
    std::vector<float> out = Normal(rows * weight->out_columns());
    double magnitude = 1e-30;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t n = 0; n < source.rows; ++n) {
        double& w = want[r * source.rows + n];
        if (accumulate) w += out[r * weight->out_columns() + n];
        magnitude = std::max(magnitude, std::fabs(w));
      }
    }
    ASSERT_TRUE(backend_
                    ->Matmul({.a = halves ? static_cast<const void*>(a_halves.data()) : a.data(),
                              .a_dtype = halves ? DType::kBf16 : DType::kF32,
                              .a_stride = stride,
                              .rows = rows,
                              .weight = weight.get(),
                              .out = out.data(),
                              .accumulate = accumulate,
                              .per_row = per_row})
                    .ok());
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t n = 0; n < source.rows; ++n) {
        ASSERT_NEAR(out[r * weight->out_columns() + n], want[r * source.rows + n],
                    tolerance * magnitude)
            << DTypeName(source.dtype) << " " << source.rows << " x " << cols << ", rows " << rows
            << ", row " << r << ", output " << n << (accumulate ? ", accumulated" : "")
            << (per_row ? ", per row" : "");
      }
    }
  }
};

constexpr DType kStored[] = {DType::kI8, DType::kBf16, DType::kF32};

TEST_P(MatmulTest, ManyRowsInF32MatchTheTwin) {
  for (const DType dtype : kStored) {
    for (const int64_t rows : {0, 1, 15, 16, 17, 65, 129, 300}) {
      const StoredMatrix m = Matrix(dtype, Uniform(1, 150), Uniform(1, 100));
      Check(m, DType::kF32, rows, rows % 2 == 0, /*per_row=*/false, kF32Tolerance);
    }
  }
}

TEST_P(MatmulTest, ManyRowsInBf16MatchTheTwin) {
  for (const DType dtype : kStored) {
    for (const int64_t rows : {0, 1, 15, 16, 17, 65, 129, 300}) {
      const StoredMatrix m = Matrix(dtype, Uniform(1, 150), Uniform(1, 100));
      // Operands are exact in bf16 and sums are f32, so nothing is rounded but the sums.
      Check(m, DType::kBf16, rows, rows % 2 == 0, /*per_row=*/false, kF32Tolerance);
    }
  }
}

TEST_P(MatmulTest, FewRowsInF32MatchTheTwin) {
  for (const DType dtype : kStored) {
    for (const int64_t rows : {0, 1, 2, 4, 5, 9}) {
      const StoredMatrix m = Matrix(dtype, Uniform(1, 300), Uniform(1, 400));
      Check(m, DType::kF32, rows, rows % 2 == 0, /*per_row=*/true, kF32Tolerance);
    }
  }
}

TEST_P(MatmulTest, FewRowsInBf16MatchTheTwin) {
  for (const DType dtype : kStored) {
    for (const int64_t rows : {0, 1, 2, 4, 5, 9}) {
      const StoredMatrix m = Matrix(dtype, Uniform(1, 300), Uniform(1, 400));
      // Activations may be rounded to 16 bits of the row's largest: 2^-16 each, over a sum of
      // random signs.
      Check(m, DType::kBf16, rows, rows % 2 == 0, /*per_row=*/true, 1e-4);
    }
  }
}

TEST_P(MatmulTest, LargestShapesOfTheModelsMatchTheTwin) {
  for (const bool per_row : {false, true}) {
    Check(Matrix(DType::kI8, 1676, 384), DType::kBf16, 3, false, per_row, 1e-4);
    Check(Matrix(DType::kI8, 1024, 4096), DType::kF32, 2, true, per_row, kF32Tolerance);
    Check(Matrix(DType::kI8, 1024, 2048), DType::kBf16, 150, true, per_row, 1e-4);
  }
}

// Results in bf16, with the last outputs apart as f32.
TEST_P(MatmulTest, ResultsInBf16AndTheirTailMatchTheTwin) {
  if (ActivationTypes().size() == 1) GTEST_SKIP() << "results are f32 on this backend";
  for (const DType dtype : kStored) {
    for (const int64_t rows : {0, 1, 65, 300}) {
      for (const int64_t cols : {int64_t{384}, int64_t{776}, Uniform(1, 100)}) {
        const StoredMatrix m = Matrix(dtype, Uniform(20, 220), cols);
        const int64_t n = m.source.rows, tail_columns = Uniform(0, 20);
        const auto weight =
            backend_->PackWeight({m.source}, {.compute_dtype = DType::kBf16}).value();
        const std::vector<float> a = Normal(rows * cols);
        const Input operand(a);
        std::vector<double> dense, values = WeightReference(m.source);
        for (int64_t i = 0; i < rows * cols; ++i) {
          dense.push_back(ElementReference(operand.data(DType::kBf16), DType::kBf16, i));
        }
        if (dtype == DType::kF32) {
          for (double& v : values) v = Bf16ToFloat(FloatToBf16(static_cast<float>(v)));
        }
        const std::vector<double> want = MatmulReference(dense, values, rows, n, cols);
        double magnitude = 1e-30;
        for (double v : want) magnitude = std::max(magnitude, std::fabs(v));
        std::vector<Bf16> out(rows * weight->out_columns());
        std::vector<float> tail(rows * (tail_columns + 1), 7.0f);
        ASSERT_TRUE(backend_
                        ->Matmul({.a = operand.data(DType::kBf16),
                                  .a_dtype = DType::kBf16,
                                  .a_stride = cols,
                                  .rows = rows,
                                  .weight = weight.get(),
                                  .out = out.data(),
                                  .out_dtype = DType::kBf16,
                                  .tail = tail_columns > 0 ? tail.data() : nullptr,
                                  .tail_columns = tail_columns,
                                  .tail_stride = tail_columns + 1})
                        .ok());
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < n; ++c) {
            const double w = want[r * n + c];
            const int64_t at = c - (n - tail_columns);
            if (at >= 0) {
              ASSERT_NEAR(tail[r * (tail_columns + 1) + at], w, kF32Tolerance * magnitude);
            } else {
              ASSERT_NEAR(Bf16ToFloat(out[r * weight->out_columns() + c]), w,
                          std::fabs(w) / 256 + kF32Tolerance * magnitude)
                  << n << " x " << cols << ", row " << r << " of " << rows << ", output " << c;
            }
          }
          ASSERT_EQ(tail[r * (tail_columns + 1) + tail_columns], 7.0f);
        }
      }
    }
  }
}

TEST_P(MatmulTest, GatedProductsMatchTheTwin) {
  if (ActivationTypes().size() == 1) GTEST_SKIP() << "gates are an operation of their own";
  for (const int64_t rows : {0, 1, 150}) {
    for (const int64_t width : {8, 96, 200}) {
      for (const int64_t cols : {40, 384, 800}) {
        const StoredMatrix m = Matrix(DType::kI8, 2 * width, cols);
        const auto weight =
            backend_->PackWeight({m.source}, {.compute_dtype = DType::kBf16, .swiglu = true})
                .value();
        const Input operand(Normal(rows * cols));
        std::vector<double> dense;
        for (int64_t i = 0; i < rows * cols; ++i) {
          dense.push_back(ElementReference(operand.data(DType::kBf16), DType::kBf16, i));
        }
        const std::vector<double> products =
            MatmulReference(dense, WeightReference(m.source), rows, 2 * width, cols);
        std::vector<double> want;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < width; ++c) {
            want.push_back(SiluReference(products[r * 2 * width + c]) *
                           products[r * 2 * width + width + c]);
          }
        }
        ASSERT_EQ(weight->out_columns(), 2 * width);
        Output out(DType::kBf16, rows, width, width);
        ASSERT_TRUE(backend_
                        ->Matmul({.a = operand.data(DType::kBf16),
                                  .a_dtype = DType::kBf16,
                                  .a_stride = cols,
                                  .rows = rows,
                                  .weight = weight.get(),
                                  .out = out.data(),
                                  .out_dtype = DType::kBf16,
                                  .swiglu = true})
                        .ok());
        out.Expect(want, kF32Tolerance);
      }
    }
  }
}

TEST_P(MatmulTest, RowsOfZerosGiveZeros) {
  const StoredMatrix m = Matrix(DType::kI8, 20, 33);
  const auto weight = backend_->PackWeight({m.source}, {.compute_dtype = DType::kBf16}).value();
  const std::vector<float> a(33, 0.0f);
  std::vector<float> out(weight->out_columns(), 7.0f);
  ASSERT_TRUE(backend_
                  ->Matmul({.a = a.data(),
                            .a_stride = 33,
                            .rows = 1,
                            .weight = weight.get(),
                            .out = out.data(),
                            .per_row = true})
                  .ok());
  for (int i = 0; i < 20; ++i) EXPECT_EQ(out[i], 0.0f);
}

// What a row gives must not depend on the rows beside it, bit for bit.
TEST_P(MatmulTest, ARowDoesNotDependOnItsCompany) {
  for (const DType compute : {DType::kF32, DType::kBf16}) {
    for (const bool per_row : {false, true}) {
      const StoredMatrix m = Matrix(DType::kI8, 200, 96);
      const auto weight = backend_->PackWeight({m.source}, {.compute_dtype = compute}).value();
      const bool halves = compute == DType::kBf16 && !per_row;
      const int64_t rows = 300, columns = weight->out_columns();
      const std::vector<float> a = Normal(rows * 96);
      std::vector<Bf16> a_halves;
      for (float v : a) a_halves.push_back(FloatToBf16(v));
      const auto multiply = [&](int64_t first, int64_t count) {
        std::vector<float> out(count * columns);
        EXPECT_TRUE(
            backend_
                ->Matmul({.a = halves ? static_cast<const void*>(a_halves.data() + first * 96)
                                      : static_cast<const void*>(a.data() + first * 96),
                          .a_dtype = halves ? DType::kBf16 : DType::kF32,
                          .a_stride = 96,
                          .rows = count,
                          .weight = weight.get(),
                          .out = out.data(),
                          .per_row = per_row})
                .ok());
        return out;
      };
      const std::vector<float> all = multiply(0, rows);
      for (const int64_t first : {0, 1, 17, 127, 128, 250, 299}) {
        for (const int64_t count : {1, 2, 3, 16, 49}) {
          if (first + count > rows) continue;
          const std::vector<float> some = multiply(first, count);
          for (int64_t r = 0; r < count; ++r) {
            for (int64_t n = 0; n < 200; ++n) {
              ASSERT_EQ(some[r * columns + n], all[(first + r) * columns + n])
                  << "row " << first + r << " among " << count << ", output " << n;
            }
          }
        }
      }
    }
  }
}

// A product of rows that are normed (and gated) on the way, against the same product of the twin's
// norm.
TEST_P(MatmulTest, NormedOperandsMatchTheTwin) {
  for (const DType dtype : kStored) {
    for (const DType compute : {DType::kF32, DType::kBf16}) {
      for (const bool per_row : {false, true}) {
        for (const int64_t rows : {0, 1, 3, 9, 40}) {
          const int64_t cols = rows == 1 ? 1100 : Uniform(1, 400), n = Uniform(1, 150);
          const StoredMatrix m = Matrix(dtype, n, cols);
          const auto weight = backend_->PackWeight({m.source}, {.compute_dtype = compute}).value();
          const bool gated = Uniform(0, 1) == 1, accumulate = Uniform(0, 1) == 1;
          const int64_t stride = cols + Gap(), gate_stride = cols + Gap();
          const std::vector<float> a = Normal(rows * stride, 3), gate = Normal(rows * gate_stride),
                                   norm = Normal(cols, 0.2, 1);
          std::vector<double> operand;
          for (int64_t r = 0; r < rows; ++r) {
            std::vector<double> row(a.begin() + r * stride, a.begin() + r * stride + cols);
            for (int64_t c = 0; gated && c < cols; ++c) {
              row[c] *= SiluReference(gate[r * gate_stride + c]);
            }
            row = NormRowReference(row, norm.data(), 1e-5f);
            operand.insert(operand.end(), row.begin(), row.end());
          }
          std::vector<double> want =
              MatmulReference(operand, WeightReference(m.source), rows, n, cols);
          const int64_t columns = weight->out_columns();
          std::vector<float> out = Normal(rows * columns);
          double magnitude = 1e-30;
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t i = 0; i < n; ++i) {
              if (accumulate) want[r * n + i] += out[r * columns + i];
              magnitude = std::max(magnitude, std::fabs(want[r * n + i]));
            }
          }
          std::vector<float> normed(rows * cols);
          ASSERT_TRUE(backend_
                          ->Matmul({.a = a.data(),
                                    .a_stride = stride,
                                    .rows = rows,
                                    .norm = {.weight = norm.data(),
                                             .eps = 1e-5f,
                                             .gate = gated ? gate.data() : nullptr,
                                             .gate_stride = gate_stride,
                                             .normed = normed.data()},
                                    .weight = weight.get(),
                                    .out = out.data(),
                                    .accumulate = accumulate,
                                    .per_row = per_row})
                          .ok());
          const std::vector<double> weights = WeightReference(m.source);
          for (int64_t r = 0; r < rows; ++r) {
            double highest = 0;
            for (int64_t c = 0; c < cols; ++c) {
              highest = std::max(highest, std::fabs(operand[r * cols + c]));
            }
            for (int64_t i = 0; i < n; ++i) {
              // In bf16, errors of their own, each even over a step: of many rows the operands, and
              // weights of f32, by 2^-7 of a factor; of few rows the operands by 2^-15 of the row's
              // largest. Six standard deviations of their sum. Else f32, which the approximate SiLU
              // takes to a few ulps.
              double squares = 0, terms = 0;
              for (int64_t c = 0; c < cols; ++c) {
                const double w = weights[i * cols + c], x = operand[r * cols + c];
                squares += w * w;
                terms += w * w * x * x;
              }
              const double step = 1.0 / 128, few_step = highest / 32767;
              double variance =
                  (per_row ? squares * few_step * few_step : terms * step * step) / 12;
              if (dtype == DType::kF32) variance += terms * step * step / 12;
              const double rounding = compute == DType::kBf16 ? 6 * std::sqrt(variance) : 0;
              ASSERT_NEAR(out[r * columns + i], want[r * n + i],
                          kF32Tolerance * magnitude + rounding)
                  << DTypeName(dtype) << " in " << DTypeName(compute) << ", " << n << " x " << cols
                  << ", row " << r << " of " << rows << ", output " << i << (gated ? ", gated" : "")
                  << (per_row ? ", per row" : "");
            }
          }
        }
      }
    }
  }
}

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

TEST_P(MatmulTest, ResultsAreLeftReadyForTheNextNorm) {
  if (ActivationTypes().size() == 1) GTEST_SKIP() << "norms read their rows on this backend";
  for (const int64_t rows : {0, 1, 17, 65, 128, 300}) {
    for (const int64_t n : {16, 112, 384, 400}) {
      for (const int64_t cols : {int64_t{384}, int64_t{768}, Uniform(1, 100)}) {
        const StoredMatrix m = Matrix(DType::kI8, n, cols);
        const auto weight =
            backend_->PackWeight({m.source}, {.compute_dtype = DType::kBf16}).value();
        const Input operand(Normal(rows * cols));
        std::vector<float> out = Normal(rows * n), alone = out;
        ReadyRows ready(rows, n, Normal(n, 0.2, 1));
        MatmulParams p = {.a = operand.data(DType::kBf16),
                          .a_dtype = DType::kBf16,
                          .a_stride = cols,
                          .rows = rows,
                          .weight = weight.get(),
                          .out = out.data(),
                          .accumulate = true,
                          .next = ready.Next()};
        ASSERT_TRUE(backend_->Matmul(p).ok());
        p.next = {};
        p.out = alone.data();
        ASSERT_TRUE(backend_->Matmul(p).ok());
        double magnitude = 1e-30;
        for (float v : alone) magnitude = std::max(magnitude, std::fabs(double{v}));
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
TEST_P(MatmulTest, SumsAreAddedToScaledRows) {
  if (ActivationTypes().size() == 1) GTEST_SKIP() << "norms read their rows on this backend";
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
        MatmulParams p = {.a = operand.data(DType::kBf16),
                          .a_dtype = DType::kBf16,
                          .a_stride = cols,
                          .rows = rows,
                          .weight = weight.get(),
                          .out = out.data(),
                          .accumulate = true,
                          .next = ready.Next()};
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
        double magnitude = 1e-30;
        for (float v : alone) magnitude = std::max(magnitude, std::fabs(double{v}));
        for (size_t i = 0; i < out.size(); ++i) {
          ASSERT_NEAR(out[i], alone[i], kF32Tolerance * magnitude)
              << n << " x " << cols << ", row " << i / n << " of " << rows << ", output " << i % n;
        }
      }
    }
  }
}

TEST_P(MatmulTest, EmbedLeavesRowsReadyForTheNextNorm) {
  if (ActivationTypes().size() == 1) GTEST_SKIP() << "norms read their rows on this backend";
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

TEST_P(MatmulTest, ChunkInputLeavesRowsReadyForTheNextNorm) {
  if (ActivationTypes().size() == 1) GTEST_SKIP() << "norms read their rows on this backend";
  for (const int64_t width : {384, 37}) {
    const int64_t chunks = 3, tokens = 5, stride = width + Gap(), rows = chunks * (tokens + 1);
    const std::vector<float> hidden = Normal(chunks * tokens * width), cls = Normal(width),
                             norm = Normal(width, 0.2, 1);
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
                                  .width = width,
                                  .out = out.data(),
                                  .out_stride = stride,
                                  .next = ready.Next()})
                    .ok());
    ready.Expect(out.data(), stride);
  }
}

// ChunkInput of rows that came scaled: their norm is a factor of the row alone.
TEST_P(MatmulTest, ChunkInputTakesScaledRows) {
  if (ActivationTypes().size() == 1) GTEST_SKIP() << "norms read their rows on this backend";
  for (const int64_t width : {384, 37, 100}) {
    const int64_t chunks = 3, tokens = 5, stride = width + Gap(), rows = chunks * (tokens + 1);
    const std::vector<float> cls = Normal(width);
    ReadyRows from(chunks * tokens, width, {}), ready(rows, width, Normal(width, 0.2, 1));
    const std::vector<float> values = Normal(chunks * tokens * width);
    for (size_t i = 0; i < values.size(); ++i) from.scaled[i] = FloatToBf16(values[i]);
    for (float& v : from.squares) v = std::fabs(Normal(1)[0]) * 50 + 1;
    std::vector<float> out(rows * stride);
    ChunkInputParams p = {.scaled = from.scaled.data(),
                          .squares = from.squares.data(),
                          .eps = 1e-5f,
                          .cls = cls.data(),
                          .chunks = chunks,
                          .chunk_tokens = tokens,
                          .width = width,
                          .out = out.data(),
                          .out_stride = stride,
                          .next = ready.Next()};
    ASSERT_TRUE(backend_->ChunkInput(p).ok());
    ready.Expect(out.data(), stride);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t t = r % (tokens + 1), source = r / (tokens + 1) * tokens + t;
      double sum = 0;
      for (int64_t i = 0; t < tokens && i < from.parts; ++i) {
        sum += from.squares[source * from.parts + i];
      }
      const double factor = 1 / std::sqrt(sum / static_cast<double>(width) + 1e-5);
      for (int64_t c = 0; c < width; ++c) {
        const double want =
            t == tokens ? cls[c] : Bf16ToFloat(from.scaled[source * width + c]) * factor;
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

// Every form of results, of operands that came with squares: those of the product alone, times a
// factor of the row.
TEST_P(MatmulTest, SquaresOfRowsScaleTheResults) {
  if (ActivationTypes().size() == 1) GTEST_SKIP() << "norms read their rows on this backend";
  enum class Form { kF32, kAdd, kBf16, kSwiGlu };
  for (const Form form : {Form::kF32, Form::kAdd, Form::kBf16, Form::kSwiGlu}) {
    for (const int64_t rows : {0, 1, 65, 150}) {
      for (const int64_t cols : {int64_t{384}, int64_t{776}, Uniform(1, 100)}) {
        const int64_t n = 208, parts = Uniform(1, 12), stride = parts + Gap();
        const StoredMatrix m = Matrix(DType::kI8, n, cols);
        const bool swiglu = form == Form::kSwiGlu, halves = swiglu || form == Form::kBf16;
        const auto weight =
            backend_->PackWeight({m.source}, {.compute_dtype = DType::kBf16, .swiglu = swiglu})
                .value();
        const Input operand(Normal(rows * cols));
        std::vector<float> squares;
        for (float v : Normal(rows * stride)) squares.push_back(std::fabs(v) * 50 + 1);
        std::vector<double> dense;
        for (int64_t i = 0; i < rows * cols; ++i) {
          dense.push_back(ElementReference(operand.data(DType::kBf16), DType::kBf16, i));
        }
        std::vector<double> products =
            MatmulReference(dense, WeightReference(m.source), rows, n, cols);
        for (int64_t r = 0; r < rows; ++r) {
          double sum = 0;
          for (int64_t i = 0; i < parts; ++i) sum += squares[r * stride + i];
          const double factor = 1 / std::sqrt(sum / static_cast<double>(cols) + 1e-5);
          for (int64_t c = 0; c < n; ++c) products[r * n + c] *= factor;
        }
        std::vector<double> want = products;
        const int64_t columns = swiglu ? n / 2 : n;
        Output out(halves ? DType::kBf16 : DType::kF32, rows, columns, columns);
        if (form == Form::kAdd) {
          const std::vector<float> before = Normal(rows * n);
          std::copy(before.begin(), before.end(), static_cast<float*>(out.data()));
          for (int64_t i = 0; i < rows * n; ++i) want[i] += before[i];
        }
        if (swiglu) {
          want.clear();
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t c = 0; c < columns; ++c) {
              want.push_back(SiluReference(products[r * n + c]) * products[r * n + columns + c]);
            }
          }
        }
        ASSERT_TRUE(backend_
                        ->Matmul({.a = operand.data(DType::kBf16),
                                  .a_dtype = DType::kBf16,
                                  .a_stride = cols,
                                  .rows = rows,
                                  .norm = {.eps = 1e-5f,
                                           .squares = squares.data(),
                                           .square_parts = parts,
                                           .squares_stride = stride},
                                  .weight = weight.get(),
                                  .out = out.data(),
                                  .out_dtype = halves ? DType::kBf16 : DType::kF32,
                                  .accumulate = form == Form::kAdd,
                                  .swiglu = swiglu})
                        .ok());
        out.Expect(want, kF32Tolerance);
      }
    }
  }
}

// The largest and the smallest: rows far from 1, of one value that dwarfs the others, of zeros.
TEST_P(MatmulTest, FewRowsOfAnyMagnitudeMatchTheTwin) {
  const int64_t rows = 6, cols = 384, n = 40;
  const StoredMatrix m = Matrix(DType::kI8, n, cols);
  const auto weight = backend_->PackWeight({m.source}, {.compute_dtype = DType::kF32}).value();
  std::vector<float> a = Normal(rows * cols);
  const float factors[] = {1e-20f, 1e20f, 1, 0, 3e-8f, 1};
  for (int64_t i = 0; i < rows * cols; ++i) a[i] *= factors[i / cols];
  a[5 * cols + 77] = -4096;
  const std::vector<double> want =
      MatmulReference({a.begin(), a.end()}, WeightReference(m.source), rows, n, cols);
  std::vector<float> out(rows * weight->out_columns());
  ASSERT_TRUE(backend_
                  ->Matmul({.a = a.data(),
                            .a_stride = cols,
                            .rows = rows,
                            .weight = weight.get(),
                            .out = out.data(),
                            .per_row = true})
                  .ok());
  for (int64_t r = 0; r < rows; ++r) {
    double magnitude = 0;
    for (int64_t i = 0; i < n; ++i) magnitude = std::max(magnitude, std::fabs(want[r * n + i]));
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_NEAR(out[r * weight->out_columns() + i], want[r * n + i], kF32Tolerance * magnitude)
          << "row " << r << ", output " << i;
    }
  }
}

TEST_P(MatmulTest, PartsAreStackedInOrder) {
  const StoredMatrix a = Matrix(DType::kI8, 3, 40), b = Matrix(DType::kI8, 5, 40);
  const auto weight = backend_->PackWeight({a.source, b.source}, {}).value();
  EXPECT_EQ(weight->rows(), 8);
  const std::vector<float> x = Normal(40);
  std::vector<float> out(weight->out_columns());
  ASSERT_TRUE(
      backend_
          ->Matmul(
              {.a = x.data(), .a_stride = 40, .rows = 1, .weight = weight.get(), .out = out.data()})
          .ok());
  std::vector<double> values = WeightReference(a.source);
  for (double v : WeightReference(b.source)) values.push_back(v);
  const std::vector<double> want = MatmulReference({x.begin(), x.end()}, values, 1, 8, 40);
  for (int i = 0; i < 8; ++i) EXPECT_NEAR(out[i], want[i], 1e-3);
}

TEST_P(MatmulTest, EmbedGivesTheStoredRows) {
  for (const DType dtype : kStored) {
    const StoredMatrix m = Matrix(dtype, 50, 37);
    const auto table = backend_->PackWeight({m.source}, {.embed = true}).value();
    const std::vector<double> values = WeightReference(m.source);
    for (const int64_t rows : {0, 1, 100}) {
      std::vector<int32_t> ids;
      std::vector<double> want;
      for (int64_t r = 0; r < rows; ++r) {
        ids.push_back(static_cast<int32_t>(Uniform(0, 49)));
        want.insert(want.end(), values.begin() + ids.back() * 37,
                    values.begin() + (ids.back() + 1) * 37);
      }
      Output out(DType::kF32, rows, 37, 40);
      ASSERT_TRUE(backend_
                      ->Embed({.ids = ids.data(),
                               .rows = rows,
                               .table = table.get(),
                               .out = static_cast<float*>(out.data()),
                               .out_stride = 40})
                      .ok());
      out.Expect(want, 1e-7);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, MatmulTest, testing::ValuesIn(BackendCases()), BackendCaseName);

}  // namespace
}  // namespace mneme
