// Norms on every backend against their double twins.

#include "tests/reference/norm_reference.h"

#include "tests/kernels/kernel_test_util.h"

namespace mneme {
namespace {

class NormTest : public KernelTest {};

TEST_P(NormTest, RmsNormMatchesItsTwin) {
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    for (const int64_t rows : {0, 1, 3, 130}) {
      for (const int64_t width : {1, 15, 16, 17, 96, 384, 1024}) {
        const int64_t in_stride = width + Gap(), out_stride = width + Gap();
        const std::vector<float> in = Normal(rows * in_stride, 3), weight = Normal(width);
        Output out(dtype, rows, width, out_stride);
        const RmsNormParams p = {.in = in.data(),
                                 .in_stride = in_stride,
                                 .weight = weight.data(),
                                 .eps = 1e-5f,
                                 .rows = rows,
                                 .width = width,
                                 .out = out.data(),
                                 .out_dtype = dtype,
                                 .out_stride = out_stride};
        ASSERT_TRUE(backend_->RmsNorm(p).ok());
        out.Expect(RmsNormReference(p), kF32Tolerance);
      }
    }
  }
}

TEST_P(NormTest, RmsNormOfZerosIsZero) {
  const std::vector<float> in(20, 0.0f), weight(20, 1.0f);
  Output out(DType::kF32, 1, 20, 20);
  const RmsNormParams p = {.in = in.data(),
                           .in_stride = 20,
                           .weight = weight.data(),
                           .eps = 1e-5f,
                           .rows = 1,
                           .width = 20,
                           .out = out.data(),
                           .out_stride = 20};
  ASSERT_TRUE(backend_->RmsNorm(p).ok());
  out.Expect(std::vector<double>(20, 0.0), 0);
}

TEST_P(NormTest, GateNormMatchesItsTwin) {
  for (const DType in_dtype : ActivationTypes()) {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      for (const int64_t rows : {0, 1, 33}) {
        for (const int64_t width : {1, 17, 192, 768, 2048, 5000}) {  // 5000: wider than is kept
          const int64_t y_stride = width + Gap(), z_stride = width + Gap(),
                        out_stride = width + Gap();
          const Input y(Normal(rows * y_stride)), z(Normal(rows * z_stride, 4));
          const std::vector<float> weight = Normal(width);
          Output out(dtype, rows, width, out_stride);
          const GateNormParams p = {.y = y.data(in_dtype),
                                    .y_stride = y_stride,
                                    .z = z.data(in_dtype),
                                    .z_stride = z_stride,
                                    .in_dtype = in_dtype,
                                    .weight = weight.data(),
                                    .eps = 1e-5f,
                                    .rows = rows,
                                    .width = width,
                                    .out = out.data(),
                                    .out_dtype = dtype,
                                    .out_stride = out_stride};
          ASSERT_TRUE(backend_->GateNorm(p).ok());
          out.Expect(GateNormReference(p), kF32Tolerance);  // inputs are exact
        }
      }
    }
  }
}

TEST_P(NormTest, GateOfAnExtremeValueSaturates) {
  const std::vector<float> y(4, 1.0f), z = {-1000, -50, 50, 1000}, weight(4, 1.0f);
  Output out(DType::kF32, 1, 4, 4);
  const GateNormParams p = {.y = y.data(),
                            .y_stride = 4,
                            .z = z.data(),
                            .z_stride = 4,
                            .weight = weight.data(),
                            .eps = 1e-5f,
                            .rows = 1,
                            .width = 4,
                            .out = out.data(),
                            .out_stride = 4};
  ASSERT_TRUE(backend_->GateNorm(p).ok());
  out.Expect(GateNormReference(p), kF32Tolerance);
}

TEST_P(NormTest, HeadNormMatchesItsTwinWithAndWithoutPositions) {
  for (const bool positions : {false, true}) {
    for (const int64_t head_dim : {2, 16, 30, 32, 64, 128}) {
      const int64_t rows = Uniform(0, 70), heads = Uniform(1, 6), period = Uniform(1, 65);
      const int64_t stride = heads * head_dim + Uniform(0, 5);
      std::vector<float> data = Normal(rows * stride);
      const std::vector<float> weight = Normal(head_dim);
      const std::vector<float> cosine = Normal(period * head_dim / 2),
                               sine = Normal(period * head_dim / 2);
      HeadNormParams p = {.data = data.data(),
                          .stride = stride,
                          .weight = weight.data(),
                          .eps = 1e-5f,
                          .rows = rows,
                          .heads = heads,
                          .head_dim = head_dim};
      if (positions) {
        p.cosine = cosine.data();
        p.sine = sine.data();
        p.period = period;
      }
      const std::vector<double> want = HeadNormReference(p);
      ASSERT_TRUE(backend_->HeadNorm(p).ok());
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < heads * head_dim; ++i) {
          ASSERT_NEAR(data[r * stride + i], want[r * heads * head_dim + i], 1e-4)
              << "head_dim " << head_dim << " row " << r;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, NormTest, testing::ValuesIn(BackendCases()), BackendCaseName);

}  // namespace
}  // namespace mneme
