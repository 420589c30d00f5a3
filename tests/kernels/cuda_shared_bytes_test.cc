// What kernels of the CUDA backend ask of a GPU, which needs none to be known.

#include "kernels/cuda/landmark_shared_bytes.h"

#include <gtest/gtest.h>

#include <cstdint>

#include "kernels/landmark_topk.h"

namespace mneme::landmark_scan {
namespace {

// Shared memory of a block at most: of compute capability 8.6, 8.9 and 12.x; 8.0; 9.0.
constexpr int64_t kLimits[] = {101376, 166912, 232448};

TEST(CudaSharedBytesTest, BlocksOfThePlainLandmarkScanFitOnEveryGpu) {
  for (const int64_t limit : kLimits) {
    for (int k = 1; k <= kLandmarkTopKMax; ++k) {
      SCOPED_TRACE(testing::Message() << "k " << k << ", " << limit << " bytes a block");
      const SimpleBlock block = PlanSimpleBlock(k, limit);
      EXPECT_GE(block.capacity, k + kSlack);
      EXPECT_EQ(block.shared_bytes, block.warps * ListBytes(kSimpleQueries, block.capacity, k));
      EXPECT_LE(block.shared_bytes, limit);
      EXPECT_GE(block.warps, limit == kLimits[0] && k > 160 ? 5 : kSimpleWarpsMax);
      EXPECT_LE(block.warps, kSimpleWarpsMax);
    }
  }
}

}  // namespace
}  // namespace mneme::landmark_scan
