// The largest value of a row on every backend, against its twin.

#include <cmath>
#include <limits>

#include "tests/kernels/kernel_test_util.h"

namespace mneme {
namespace {

class ArgMaxTest : public KernelTest {
 protected:
  // As ops.h says it.
  static int32_t Twin(const float* row, int64_t columns) {
    int64_t best = -1;
    for (int64_t i = 0; i < columns; ++i) {
      if (!std::isnan(row[i]) && (best < 0 || row[i] > row[best])) best = i;
    }
    return static_cast<int32_t>(std::max<int64_t>(best, 0));
  }

  void Check(const std::vector<float>& in, int64_t rows, int64_t columns, int64_t stride) {
    std::vector<int32_t> out(rows, -7);
    ASSERT_TRUE(backend_
                    ->ArgMax({.in = in.data(),
                              .in_stride = stride,
                              .rows = rows,
                              .columns = columns,
                              .out = out.data()})
                    .ok());
    for (int64_t r = 0; r < rows; ++r) {
      ASSERT_EQ(out[r], Twin(in.data() + r * stride, columns))
          << "row " << r << " of " << rows << ", " << columns << " columns";
    }
  }
};

TEST_P(ArgMaxTest, MatchesTheTwin) {
  for (const int64_t rows : {0, 1, 5, 70}) {
    for (const int64_t columns : {1, 2, 33, 1000, 8192, 50277}) {
      const int64_t stride = columns + Gap();
      std::vector<float> in = Normal(rows * stride);
      Check(in, rows, columns, stride);
      // Few values: many ties.
      for (float& v : in) v = std::round(v);
      Check(in, rows, columns, stride);
    }
  }
}

TEST_P(ArgMaxTest, NansNeverWinAndZerosAreEqual) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Check({kNan, -kInfinity, kNan, -kInfinity}, 1, 4, 4);
  Check({-kNan, -1, kNan, kInfinity}, 1, 4, 4);
  Check({kNan, -kNan, kNan, kNan}, 1, 4, 4);
  Check({-1, -0.0f, 0.0f, -2}, 1, 4, 4);
  Check({-1, 0.0f, -0.0f, -2}, 1, 4, 4);
  Check({-3, -2, -1e-40f, -1e-38f}, 1, 4, 4);
}

INSTANTIATE_TEST_SUITE_P(Backends, ArgMaxTest, testing::ValuesIn(BackendCases()), BackendCaseName);

}  // namespace
}  // namespace mneme
