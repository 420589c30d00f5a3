// Shared by the tests of operations: every backend that can be tested here, random values,
// comparison.

#ifndef MNEME_TESTS_KERNELS_KERNEL_TEST_UTIL_H_
#define MNEME_TESTS_KERNELS_KERNEL_TEST_UTIL_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/backend.h"
#include "tests/kernels/staged_backend.h"

namespace mneme {

// A backend to test: the processor with an instruction set and a number of threads, or a GPU.
struct BackendCase {
  std::string name;
  CpuBackendOptions cpu;
  bool cuda = false;
  CudaBackendOptions cuda_options;
};

// Every instruction set that this processor has; where the build has the CUDA backend, a GPU too,
// whose tests skip when there is none.
inline std::vector<BackendCase> BackendCases() {
  std::vector<BackendCase> cases;
  for (CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAmx}) {
    if (isa > DetectCpuIsa()) continue;
    cases.push_back(
        {.name = CpuIsaName(isa), .cpu = {.threads = isa == CpuIsa::kAmx ? 3 : 2, .isa_max = isa}});
  }
#if defined(MNEME_HAVE_CUDA)
  cases.push_back({.name = "cuda", .cuda = true});
  cases.push_back(
      {.name = "cuda_own_products", .cuda = true, .cuda_options = {.cublas_lt = false}});
#endif
  return cases;
}

inline std::string BackendCaseName(const testing::TestParamInfo<BackendCase>& info) {
  return info.param.name;
}

// One backend, driven with host memory; random values that a failed test can repeat from the seed
// it prints.
class KernelTest : public testing::TestWithParam<BackendCase> {
 protected:
  KernelTest() : seed_(std::random_device{}()), random_(seed_) {}
  void SetUp() override {
    const BackendCase& c = GetParam();
    if (!c.cuda) {
      backend_ = CreateCpuBackend(c.cpu).value();
      return;
    }
    absl::StatusOr<std::unique_ptr<Backend>> cuda = CreateCudaBackend(c.cuda_options);
    if (absl::IsFailedPrecondition(cuda.status())) GTEST_SKIP() << cuda.status();
    ASSERT_TRUE(cuda.ok()) << cuda.status();
    backend_ = std::make_unique<StagedBackend>(*std::move(cuda));
  }
  void TearDown() override {
    if (HasFailure()) std::printf("seed %u\n", seed_);
  }

  std::vector<float> Normal(int64_t count, double deviation = 1, double mean = 0) {
    std::normal_distribution<float> normal(static_cast<float>(mean), static_cast<float>(deviation));
    std::vector<float> values(count);
    for (float& v : values) v = normal(random_);
    return values;
  }
  int64_t Uniform(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }

  // What lies between the end of a row and the next: none, one that keeps 16-byte alignment, ones
  // that do not.
  int64_t Gap() {
    constexpr int64_t kGaps[] = {0, 1, 3, 4};
    return kGaps[Uniform(0, 3)];
  }

  // What activations may be here.
  std::vector<DType> ActivationTypes() const {
    if (backend_->activation_dtype(DType::kBf16) == DType::kF32) return {DType::kF32};
    return {DType::kF32, DType::kBf16};
  }

  const unsigned seed_;
  std::mt19937 random_;
  std::unique_ptr<Backend> backend_;
};

// The largest magnitude, never zero: what tolerances are relative to.
template <typename Values>
double LargestOf(const Values& values) {
  double largest = 1e-30;
  for (const auto v : values) largest = std::max(largest, std::fabs(static_cast<double>(v)));
  return largest;
}

// The same values (rounded) in both types.
class Input {
 public:
  explicit Input(std::vector<float> values) : floats_(std::move(values)) {
    for (float v : floats_) halves_.push_back(FloatToBf16(v));
  }
  const void* data(DType dtype) const {
    return dtype == DType::kBf16 ? static_cast<const void*>(halves_.data()) : floats_.data();
  }

 private:
  std::vector<float> floats_;
  std::vector<Bf16> halves_;
};

// An output of f32 or bf16 rows with a stride, filled with a value that no operation writes.
class Output {
 public:
  Output(DType dtype, int64_t rows, int64_t width, int64_t stride)
      : dtype_(dtype), rows_(rows), width_(width), stride_(stride) {
    floats_.assign(rows * stride, kUntouched);
    halves_.assign(rows * stride, FloatToBf16(kUntouched));
  }
  void* data() {
    return dtype_ == DType::kBf16 ? static_cast<void*>(halves_.data()) : floats_.data();
  }
  float at(int64_t row, int64_t col) const {
    const int64_t i = row * stride_ + col;
    return dtype_ == DType::kBf16 ? Bf16ToFloat(halves_[i]) : floats_[i];
  }
  // All values differ from `want` by at most `tolerance` times its largest magnitude (for bf16,
  // plus the rounding of the result itself), and the gaps between rows are untouched.
  void Expect(const std::vector<double>& want, double tolerance) const {
    ASSERT_EQ(static_cast<int64_t>(want.size()), rows_ * width_);
    ExpectWithin(want, std::vector<double>(want.size(), LargestOf(want)), tolerance);
  }
  // The same with a magnitude for each value.
  void ExpectWithin(const std::vector<double>& want, const std::vector<double>& magnitudes,
                    double tolerance) const {
    ASSERT_EQ(static_cast<int64_t>(want.size()), rows_ * width_);
    ASSERT_EQ(magnitudes.size(), want.size());
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < width_; ++c) {
        const double w = want[r * width_ + c];
        const double rounding = dtype_ == DType::kBf16 ? std::fabs(w) / 256 : 0;
        ASSERT_LE(std::fabs(at(r, c) - w), tolerance * magnitudes[r * width_ + c] + rounding)
            << "row " << r << " column " << c << ": " << at(r, c) << ", should be " << w;
      }
      for (int64_t c = width_; c < stride_; ++c) {
        ASSERT_EQ(at(r, c), Bf16ToFloat(FloatToBf16(kUntouched))) << "gap after row " << r;
      }
    }
  }

 private:
  static constexpr float kUntouched = -1280.0f;  // exact in bf16
  DType dtype_;
  int64_t rows_, width_, stride_;
  std::vector<float> floats_;
  std::vector<Bf16> halves_;
};

// Sums of f32 in another order than the double twin's, and exponentials good to 1e-7.
inline constexpr double kF32Tolerance = 1e-5;

}  // namespace mneme

#endif  // MNEME_TESTS_KERNELS_KERNEL_TEST_UTIL_H_
