// Shared by the tests of products: random stored matrices, operands of many bf16 rows.

#ifndef MNEME_TESTS_KERNELS_PRODUCT_TEST_H_
#define MNEME_TESTS_KERNELS_PRODUCT_TEST_H_

#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/kernels/kernel_test_util.h"
#include "tests/reference/norm_reference.h"

namespace mneme {

inline constexpr DType kStored[] = {DType::kI8, DType::kBf16, DType::kF32};

// A random stored matrix.
struct StoredMatrix {
  std::vector<int8_t> bytes;
  std::vector<Bf16> halves;
  std::vector<float> floats, scale;
  WeightSource source;
};

class ProductTest : public KernelTest {
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

  // `operand` as the backend reads it in bf16.
  static std::vector<double> Dense(const Input& operand, int64_t count) {
    std::vector<double> dense;
    for (int64_t i = 0; i < count; ++i) {
      dense.push_back(ElementReference(operand.data(DType::kBf16), DType::kBf16, i));
    }
    return dense;
  }
  // A product of bf16 rows [rows, weight.cols()], into rows of f32 where nothing else is said.
  static MatmulParams ManyRows(const Input& operand, int64_t rows, const PackedWeight& weight,
                               void* out) {
    return {.a = operand.data(DType::kBf16),
            .a_dtype = DType::kBf16,
            .a_stride = weight.cols(),
            .rows = rows,
            .weight = &weight,
            .out = out};
  }
};

}  // namespace mneme

#endif  // MNEME_TESTS_KERNELS_PRODUCT_TEST_H_
