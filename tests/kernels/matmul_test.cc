// Matrix products and embedding on every backend against their double twins.

#include "tests/kernels/product_test.h"
#include "tests/reference/matmul_reference.h"
#include "tests/reference/norm_reference.h"

namespace mneme {
namespace {

class MatmulTest : public ProductTest {
 protected:
  // Products of `rows` random rows with `m`; the operand is exact in its dtype.
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
    // The largest result, or one and a half times what a sum of such terms comes to with random
    // signs: of a few results all may be small by chance, and their errors are not.
    double magnitude = 1e-30;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t n = 0; n < source.rows; ++n) {
        double& w = want[r * source.rows + n];
        if (accumulate) w += out[r * weight->out_columns() + n];
        double squares = 0;
        for (int64_t c = 0; c < cols; ++c) {
          const double term = dense[r * cols + c] * values[n * cols + c];
          squares += term * term;
        }
        magnitude = std::max({magnitude, std::fabs(w), 1.5 * std::sqrt(squares)});
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
      // Activations may be rounded to 16 bits of the row's largest, some 3.3 times their spread:
      // the error of a sum of random signs spreads by 3e-5 of the sum.
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
        const Input operand(Normal(rows * cols));
        std::vector<double> values = WeightReference(m.source);
        if (dtype == DType::kF32) {
          for (double& v : values) v = Bf16ToFloat(FloatToBf16(static_cast<float>(v)));
        }
        const std::vector<double> want =
            MatmulReference(Dense(operand, rows * cols), values, rows, n, cols);
        const double magnitude = LargestOf(want);
        std::vector<Bf16> out(rows * weight->out_columns());
        std::vector<float> tail(rows * (tail_columns + 1), 7.0f);
        MatmulParams p = ManyRows(operand, rows, *weight, out.data());
        p.out_dtype = DType::kBf16;
        p.tail = tail_columns > 0 ? tail.data() : nullptr;
        p.tail_columns = tail_columns;
        p.tail_stride = tail_columns + 1;
        ASSERT_TRUE(backend_->Matmul(p).ok());
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
        const std::vector<double> products = MatmulReference(
            Dense(operand, rows * cols), WeightReference(m.source), rows, 2 * width, cols);
        std::vector<double> want;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < width; ++c) {
            want.push_back(SiluReference(products[r * 2 * width + c]) *
                           products[r * 2 * width + width + c]);
          }
        }
        ASSERT_EQ(weight->out_columns(), 2 * width);
        Output out(DType::kBf16, rows, width, width);
        MatmulParams p = ManyRows(operand, rows, *weight, out.data());
        p.out_dtype = DType::kBf16;
        p.swiglu = true;
        ASSERT_TRUE(backend_->Matmul(p).ok());
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
        std::vector<double> products =
            MatmulReference(Dense(operand, rows * cols), WeightReference(m.source), rows, n, cols);
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
        MatmulParams p = ManyRows(operand, rows, *weight, out.data());
        p.norm = {.eps = 1e-5f,
                  .squares = squares.data(),
                  .square_parts = parts,
                  .squares_stride = stride};
        p.out_dtype = halves ? DType::kBf16 : DType::kF32;
        p.accumulate = form == Form::kAdd;
        p.swiglu = swiglu;
        ASSERT_TRUE(backend_->Matmul(p).ok());
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
