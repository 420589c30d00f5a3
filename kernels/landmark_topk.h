// Landmark scan with fused top-k: one pass over the landmarks for a whole batch of queries, no
// score matrix in memory.

#ifndef MNEME_KERNELS_LANDMARK_TOPK_H_
#define MNEME_KERNELS_LANDMARK_TOPK_H_

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/dtype.h"

namespace mneme {

// Landmarks that lie one after the other: [row_count, dim], row-major, no gaps.
struct LandmarkSlab {
  const void* rows = nullptr;
  int64_t row_count = 0;
};

struct LandmarkTopKParams {
  const float* queries = nullptr;  // [n_queries, dim]
  int64_t n_queries = 0;
  int64_t dim = 0;
  DType dtype = DType::kBf16;  // of the landmarks: kF32 or kBf16
  absl::Span<const LandmarkSlab>
      slabs;      // a row's index counts through all slabs in order, oldest first
  // The caller vouches that all slabs are memory of the backend; else a backend with memory of its
  // own looks, and copies slabs of the host.
  bool slabs_resident = false;
  int64_t k = 0;  // 1 .. kLandmarkTopKMax
  // Out, [n_queries, k], best score first; of equal scores the larger (newer) index first. With
  // fewer than k landmarks the rest is index -1, score -infinity. A NaN score ranks below every
  // number.
  int64_t* indices = nullptr;
  float* scores = nullptr;
};

inline constexpr int64_t kLandmarkTopKMax = 256;

}  // namespace mneme

#endif  // MNEME_KERNELS_LANDMARK_TOPK_H_
