// The landmark scan against a sort of all scores in double precision, on every instruction set this
// machine has.

#include "kernels/cpu/landmark_topk.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace mneme {
namespace {

struct Case {
  std::vector<int64_t> slab_rows;
  int64_t dim = 0;
  int64_t n_queries = 0;
  int64_t k = 0;
  DType dtype = DType::kBf16;
};

// Landmarks in slabs of their own allocations, and queries, from a seed.
class Scene {
 public:
  Scene(const Case& c, uint32_t seed) : case_(c) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int64_t rows : c.slab_rows) {
      std::vector<float> values(static_cast<size_t>(rows * c.dim));
      for (float& v : values) v = normal(random);
      std::vector<Bf16> halves;
      for (float& v : values) {
        halves.push_back(FloatToBf16(v));
        if (c.dtype == DType::kBf16) v = Bf16ToFloat(halves.back());
      }
      floats_.push_back(std::move(values));
      halves_.push_back(std::move(halves));
    }
    queries_.resize(static_cast<size_t>(c.n_queries * c.dim));
    for (float& v : queries_) v = normal(random);
  }

  std::vector<float>& slab(size_t i) { return floats_[i]; }

  // Makes the stored bf16 of a slab follow changes made through slab().
  void Restore(size_t i) {
    for (size_t j = 0; j < floats_[i].size(); ++j) halves_[i][j] = FloatToBf16(floats_[i][j]);
  }

  void Run(CpuIsa isa, int threads) {
    std::vector<LandmarkSlab> slabs;
    for (size_t i = 0; i < floats_.size(); ++i) {
      const void* rows = case_.dtype == DType::kF32 ? static_cast<const void*>(floats_[i].data())
                                                    : static_cast<const void*>(halves_[i].data());
      slabs.push_back({rows, case_.slab_rows[i]});
    }
    indices.assign(static_cast<size_t>(case_.n_queries * case_.k), -7);
    scores.assign(indices.size(), 12345.0f);
    LandmarkTopKParams params;
    params.queries = queries_.data();
    params.n_queries = case_.n_queries;
    params.dim = case_.dim;
    params.dtype = case_.dtype;
    params.slabs = slabs;
    params.k = case_.k;
    params.indices = indices.data();
    params.scores = scores.data();
    ThreadPool pool(threads);
    LandmarkTopKCpu(pool, params, isa);
  }

  // All scores of a query in double precision, by index.
  std::vector<double> Scores(int64_t query) const {
    std::vector<double> all;
    for (size_t i = 0; i < floats_.size(); ++i) {
      for (int64_t r = 0; r < case_.slab_rows[i]; ++r) {
        double sum = 0;
        for (int64_t d = 0; d < case_.dim; ++d) {
          sum += double{floats_[i][static_cast<size_t>(r * case_.dim + d)]} *
                 double{queries_[static_cast<size_t>(query * case_.dim + d)]};
        }
        all.push_back(sum);
      }
    }
    return all;
  }

  std::vector<int64_t> indices;
  std::vector<float> scores;

 private:
  Case case_;
  std::vector<std::vector<float>> floats_;
  std::vector<std::vector<Bf16>> halves_;
  std::vector<float> queries_;
};

std::vector<CpuIsa> Levels() {
  std::vector<CpuIsa> levels;
  for (CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAmx}) {
    if (isa <= DetectCpuIsa()) levels.push_back(isa);
  }
  return levels;
}

// Float32 sums of `dim` products of standard normals err by about sqrt(dim) * 2^-24 * |sum| at
// worst; the bf16 split of the query leaves 2^-17 of each factor. 1e-4 * sqrt(dim) covers both with
// a margin of ten.
double Tolerance(int64_t dim) { return 1e-4 * std::sqrt(static_cast<double>(dim)); }

TEST(LandmarkTopKTest, FindsTheBestOfEveryQueryOnEveryInstructionSet) {
  const std::vector<Case> cases = {
      {{1}, 32, 1, 1, DType::kBf16},
      {{0, 5, 0}, 64, 3, 8, DType::kBf16},
      {{17, 1, 300}, 256, 1, 8, DType::kBf16},
      {{8192, 100}, 256, 16, 8, DType::kBf16},
      {{20000}, 32, 17, 4, DType::kBf16},
      {{700, 33}, 1024, 33, 16, DType::kBf16},
      {{900}, 24, 5, 8, DType::kBf16},
      {{777, 9}, 17, 2, 256, DType::kF32},
      {{4096, 64, 31}, 256, 9, 8, DType::kF32},
  };
  uint32_t seed = 20260101;
  for (const Case& c : cases) {
    SCOPED_TRACE("seed " + std::to_string(++seed));
    Scene scene(c, seed);
    for (CpuIsa isa : Levels()) {
      SCOPED_TRACE(CpuIsaName(isa));
      scene.Run(isa, 2);
      for (int64_t q = 0; q < c.n_queries; ++q) {
        const std::vector<double> all = scene.Scores(q);
        std::vector<double> sorted = all;
        std::sort(sorted.rbegin(), sorted.rend());
        for (int64_t i = 0; i < c.k; ++i) {
          const int64_t index = scene.indices[static_cast<size_t>(q * c.k + i)];
          const float score = scene.scores[static_cast<size_t>(q * c.k + i)];
          if (i >= static_cast<int64_t>(all.size())) {
            EXPECT_EQ(index, -1);
            EXPECT_EQ(score, -std::numeric_limits<float>::infinity());
            continue;
          }
          ASSERT_GE(index, 0);
          ASSERT_LT(index, static_cast<int64_t>(all.size()));
          EXPECT_NEAR(score, all[static_cast<size_t>(index)], Tolerance(c.dim));
          EXPECT_NEAR(score, sorted[static_cast<size_t>(i)], Tolerance(c.dim));
        }
      }
    }
  }
}

TEST(LandmarkTopKTest, DoesNotDependOnThreadsOrCompany) {
  const std::vector<Case> cases = {{{20000, 77}, 256, 20, 8, DType::kBf16},
                                   {{3000, 77}, 24, 20, 8, DType::kBf16},
                                   {{3000, 77}, 17, 20, 8, DType::kF32}};
  for (const Case& c : cases) {
    Scene together(c, 7);
    for (const int64_t fewer : {1, 4, 5, 17}) {
      SCOPED_TRACE(std::to_string(fewer) + " queries");
      Case some = c;
      some.n_queries = fewer;
      Scene scene(some, 7);  // the same landmarks and the same first queries
      for (CpuIsa isa : Levels()) {
        SCOPED_TRACE(CpuIsaName(isa));
        together.Run(isa, 1);
        scene.Run(isa, 3);
        for (size_t i = 0; i < scene.indices.size(); ++i) {
          ASSERT_EQ(scene.indices[i], together.indices[i]) << "place " << i;
          ASSERT_EQ(scene.scores[i], together.scores[i]) << "place " << i;
        }
      }
    }
  }
}

TEST(LandmarkTopKTest, OfEqualScoresTheNewerComesFirst) {
  const Case c{{100, 50}, 32, 2, 8, DType::kBf16};
  Scene scene(c, 3);
  for (size_t s = 0; s < 2; ++s) {
    for (size_t i = 0; i < scene.slab(s).size(); ++i) scene.slab(s)[i] = 1.0f;
    scene.Restore(s);
  }
  for (CpuIsa isa : Levels()) {
    scene.Run(isa, 2);
    for (int64_t q = 0; q < 2; ++q) {
      for (int64_t i = 0; i < c.k; ++i)
        EXPECT_EQ(scene.indices[static_cast<size_t>(q * c.k + i)], 149 - i);
    }
  }
}

TEST(LandmarkTopKTest, NeverChoosesANan) {
  const Case c{{40}, 32, 1, 40, DType::kBf16};
  Scene scene(c, 4);
  scene.slab(0)[5 * 32] = std::numeric_limits<float>::quiet_NaN();
  scene.Restore(0);
  for (CpuIsa isa : Levels()) {
    scene.Run(isa, 1);
    EXPECT_EQ(std::count(scene.indices.begin(), scene.indices.end(), 5), 0);
    EXPECT_EQ(scene.indices[39], -1);
  }
}

TEST(LandmarkTopKTest, NoLandmarksGiveNoChunks) {
  Scene scene({{}, 256, 3, 8, DType::kBf16}, 5);
  scene.Run(DetectCpuIsa(), 2);
  EXPECT_EQ(scene.indices, std::vector<int64_t>(24, -1));
}

}  // namespace
}  // namespace mneme
