// The landmark scan's part of hsa_topk_bench: every variant against sums in double precision on
// rows of many shapes and contents, then the times of a million landmarks.

#ifndef MNEME_BENCH_GPU_LANDMARK_SCAN_PART_CUH_
#define MNEME_BENCH_GPU_LANDMARK_SCAN_PART_CUH_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "bench/gpu/gpu_measure.h"
#include "bench/gpu/kernel_checks.cuh"
#include "kernels/cuda/landmark_topk_kernels.cuh"

namespace mneme::bench {

// Slabs in device memory with what a scan needs beside them, run on one variant.
class Scan {
 public:
  Scan(const landmark_scan::Machine& machine, landmark_scan::Variant variant,
       const landmark_scan::Shape& shape, const std::vector<landmark_scan::HostSlab>& slabs,
       const float* queries)
      : shape_(shape),
        queries_(queries),
        possible_(landmark_scan::PlanVariant(variant, shape, machine, &plan_)),
        table_(possible_ ? landmark_scan::CutSlabs(slabs, plan_.tile_rows, &tile_count_)
                         : std::vector<landmark_scan::Slab>()),
        workspace_(possible_ ? plan_.workspace_bytes() : 0),
        indices(shape.n_queries * shape.k),
        scores(shape.n_queries * shape.k) {}

  bool possible() const { return possible_; }
  int64_t shared_bytes() const { return plan_.shared_bytes; }
  bool one_pass() const { return plan_.pass_queries >= shape_.n_queries; }
  void Run(cudaStream_t stream) const {
    for (int64_t q = 0; q < shape_.n_queries; q += plan_.pass_queries) {
      const landmark_scan::Args args = {.queries = queries_ + q * shape_.dim,
                                        .n_queries = static_cast<int>(std::min<int64_t>(
                                            plan_.pass_queries, shape_.n_queries - q)),
                                        .dim = static_cast<int>(shape_.dim),
                                        .dtype = shape_.dtype,
                                        .slabs = table_.get(),
                                        .slab_count = static_cast<int>(table_.count()),
                                        .tile_count = tile_count_,
                                        .k = shape_.k,
                                        .workspace = workspace_.get()};
      MNEME_CUDA(landmark_scan::LaunchScan(plan_, args, indices.get() + q * shape_.k,
                                           scores.get() + q * shape_.k, stream));
    }
  }
  void Poison() const {
    workspace_.Poison();
    indices.Poison();
    scores.Poison();
  }

 private:
  landmark_scan::Shape shape_;
  const float* queries_;
  landmark_scan::Plan plan_;
  int64_t tile_count_ = 0;
  bool possible_;
  DeviceArray<landmark_scan::Slab> table_;
  DeviceArray<unsigned char> workspace_;

 public:
  DeviceArray<int64_t> indices;
  DeviceArray<float> scores;
};

inline constexpr landmark_scan::Variant kScanVariants[] = {
    landmark_scan::Variant::kSimple,  landmark_scan::Variant::kMma8,
    landmark_scan::Variant::kMma32,   landmark_scan::Variant::kWgmma8,
    landmark_scan::Variant::kWgmma16, landmark_scan::Variant::kWgmma32,
    landmark_scan::Variant::kWgmma64, landmark_scan::Variant::kWgmma128};
inline const char* ScanName(landmark_scan::Variant variant) {
  constexpr const char* kNames[] = {"simple",  "mma8",    "mma32",   "wgmma8",
                                    "wgmma16", "wgmma32", "wgmma64", "wgmma128"};
  return kNames[static_cast<int>(variant)];
}

enum class Content { kRandom, kEqual, kFewValues, kRising, kFalling, kNans };
inline constexpr Content kContents[] = {Content::kRandom, Content::kEqual,   Content::kFewValues,
                                        Content::kRising, Content::kFalling, Content::kNans};

struct ScanCase {
  std::vector<int64_t> slab_rows;
  int64_t dim, n_queries;
  int k;
  DType dtype = DType::kBf16;
};

// A case in device memory and on the host.
struct ScanInputs {
  std::vector<std::unique_ptr<DeviceArray<unsigned char>>> memory;
  std::vector<landmark_scan::HostSlab> slabs;
  std::vector<double> values;  // [rows, dim], all slabs one after the other
  std::vector<float> queries;  // [n_queries, dim]
  int64_t rows = 0;
  bool exact = false;  // equal rows have equal scores
};

inline float ScanValue(Content content, int64_t row, int64_t d, std::mt19937& random,
                       std::normal_distribution<float>& normal) {
  const float v = normal(random);
  if (content == Content::kEqual) return 1.0f;
  if (content == Content::kFewValues) return d == 0 ? static_cast<float>(random() % 4) - 2 : 0.0f;
  if (content == Content::kRising) return d == 0 ? static_cast<float>(row % 4096) : 0.0f;
  if (content == Content::kFalling) return d == 0 ? -static_cast<float>(row % 4096) : 0.0f;
  if (content == Content::kNans && d == 0 && random() % 3 == 0) return std::nanf("");
  return v;
}

inline ScanInputs MakeScanInputs(const ScanCase& c, Content content, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  ScanInputs in;
  for (int64_t count : c.slab_rows) {
    std::vector<unsigned char> bytes(static_cast<size_t>(count * c.dim * DTypeBytes(c.dtype)));
    for (int64_t i = 0; i < count * c.dim; ++i) {
      float v = ScanValue(content, in.rows + i / c.dim, i % c.dim, random, normal);
      if (c.dtype == DType::kBf16) {
        const Bf16 half = FloatToBf16(v);
        std::memcpy(bytes.data() + i * 2, &half, 2);
        v = Bf16ToFloat(half);
      } else {
        std::memcpy(bytes.data() + i * 4, &v, 4);
      }
      in.values.push_back(v);
    }
    in.memory.push_back(std::make_unique<DeviceArray<unsigned char>>(bytes));
    in.slabs.push_back({in.memory.back()->get(), count});
    in.rows += count;
  }
  in.queries.resize(static_cast<size_t>(c.n_queries * c.dim));
  for (float& v : in.queries) v = normal(random);
  const bool counted =
      content == Content::kFewValues || content == Content::kRising || content == Content::kFalling;
  for (int64_t q = 0; counted && q < c.n_queries; ++q) {
    in.queries[static_cast<size_t>(q * c.dim)] = 1;
  }
  in.exact = counted || content == Content::kEqual;
  return in;
}

struct ScanCandidate {
  double score;
  int64_t index;
};
// All scores of a query by row, and those that are numbers, best first.
struct ScanReference {
  std::vector<double> scores;
  std::vector<ScanCandidate> sorted;
};
inline ScanReference ReferenceOfScan(const ScanInputs& in, int64_t dim, int64_t query) {
  ScanReference reference;
  for (int64_t r = 0; r < in.rows; ++r) {
    double sum = 0;
    for (int64_t d = 0; d < dim; ++d) {
      sum += in.values[static_cast<size_t>(r * dim + d)] *
             double{in.queries[static_cast<size_t>(query * dim + d)]};
    }
    reference.scores.push_back(sum);
    if (!std::isnan(sum)) reference.sorted.push_back({sum, r});
  }
  std::sort(reference.sorted.begin(), reference.sorted.end(),
            [](const ScanCandidate& a, const ScanCandidate& b) {
              return a.score != b.score ? a.score > b.score : a.index > b.index;
            });
  return reference;
}

// How many of the k results of a query are not what the reference has.
inline int64_t CountWrong(const ScanReference& reference, const int64_t* indices,
                          const float* scores, int64_t k, double tolerance, bool exact) {
  int64_t wrong = 0;
  std::set<int64_t> seen;
  for (int64_t i = 0; i < k; ++i) {
    const int64_t index = indices[i];
    const double score = scores[i];
    if (i >= static_cast<int64_t>(reference.sorted.size())) {
      wrong += index != -1 || score != -std::numeric_limits<double>::infinity();
      continue;
    }
    if (index < 0 || index >= static_cast<int64_t>(reference.scores.size()) ||
        !seen.insert(index).second) {
      ++wrong;
      continue;
    }
    const ScanCandidate& wanted = reference.sorted[static_cast<size_t>(i)];
    wrong += !(std::fabs(score - reference.scores[static_cast<size_t>(index)]) <= tolerance);
    wrong += !(std::fabs(score - wanted.score) <= tolerance);
    wrong += exact && index != wanted.index;
  }
  return wrong;
}

inline void CheckScan(const landmark_scan::Machine& machine, Checks& checks, const ScanCase& c,
                      Content content, uint32_t seed) {
  const ScanInputs in = MakeScanInputs(c, content, seed);
  std::vector<ScanReference> references;
  for (int64_t q = 0; q < c.n_queries; ++q) references.push_back(ReferenceOfScan(in, c.dim, q));
  const DeviceArray<float> device_queries(in.queries);
  const landmark_scan::Shape shape = {
      .dtype = c.dtype, .dim = c.dim, .n_queries = c.n_queries, .k = c.k, .aligned = true};
  // As the kernels' tests: float32 sums of products and the query's bf16 split.
  const double tolerance = 1e-4 * std::sqrt(static_cast<double>(c.dim));
  for (const landmark_scan::Variant variant : kScanVariants) {
    const Scan scan(machine, variant, shape, in.slabs, device_queries.get());
    if (!scan.possible()) continue;
    scan.Poison();
    scan.Run(nullptr);
    MNEME_CUDA(cudaDeviceSynchronize());
    const std::vector<int64_t> indices = scan.indices.Get();
    const std::vector<float> scores = scan.scores.Get();
    int64_t wrong = scan.shared_bytes() > machine.shared_bytes_max;
    for (int64_t q = 0; q < c.n_queries; ++q) {
      wrong += CountWrong(references[static_cast<size_t>(q)], indices.data() + q * c.k,
                          scores.data() + q * c.k, c.k, tolerance, in.exact);
    }
    checks.Expect(wrong == 0, std::string("scan ") + ScanName(variant) + ", rows " +
                                  std::to_string(in.rows) + ", dim " + std::to_string(c.dim) +
                                  ", queries " + std::to_string(c.n_queries) + ", k " +
                                  std::to_string(c.k) + ", content " +
                                  std::to_string(static_cast<int>(content)) + ", seed " +
                                  std::to_string(seed) + ": " + std::to_string(wrong) + " wrong");
  }
}

inline void CheckScans(const landmark_scan::Machine& machine, Checks& checks, uint32_t seed) {
  const std::vector<ScanCase> cases = {
      {{}, 64, 3, 8},
      {{1}, 32, 1, 1},
      {{0, 5, 0, 33}, 64, 3, 8},
      {{300, 1, 17, 9000}, 256, 1, 8},
      {{20000}, 32, 17, 16},
      {{8192, 129}, 256, 65, 8},
      {{6000, 63, 64, 65}, 256, 130, 8},
      {{700, 33}, 1024, 33, 16},
      {{900}, 24, 5, 8},
      {{777, 9}, 40, 2, 256},
      {{20000}, 64, 40, 32},
      {{600, 3000}, 64, 3, 40},
      {{5000}, 192, 7, 256},
      {{777, 9}, 17, 2, 256, DType::kF32},
      {{4096, 64, 31}, 256, 9, 8, DType::kF32},
      {std::vector<int64_t>(300, 7), 64, 10, 8},
  };
  for (const ScanCase& c : cases) {
    for (const Content content : kContents) CheckScan(machine, checks, c, content, ++seed);
  }
  // GPUs with 99 KB a block have room for fewer warps of the plain scan.
  landmark_scan::Machine small = machine;
  small.shared_bytes_max = 101376;
  for (const int k : {160, 161, 256}) {
    CheckScan(small, checks, {{3000, 9}, 17, 9, k, DType::kF32}, Content::kRandom, ++seed);
    CheckScan(small, checks, {{3000, 9}, 64, 9, k}, Content::kFewValues, ++seed);
  }
}

// A query's result is the same whoever shares the call, to the last bit.
inline void CheckScanCompany(const landmark_scan::Machine& machine, Checks& checks, uint32_t seed) {
  constexpr int64_t kRows = 30011, kDim = 256, kQueries = 128;
  constexpr int kBest = 8;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> rows(kRows * kDim);
  for (uint16_t& v : rows) v = FloatToBf16(normal(random));
  std::vector<float> queries(kQueries * kDim);
  for (float& v : queries) v = normal(random);
  const DeviceArray<uint16_t> device_rows(rows);
  const DeviceArray<float> device_queries(queries);
  std::vector<int64_t> indices;
  std::vector<float> scores;
  for (const int64_t n : {1, 3, 9, 17, 33, 65, 128}) {
    const landmark_scan::Shape shape = {
        .dtype = DType::kBf16, .dim = kDim, .n_queries = n, .k = kBest, .aligned = true};
    const Scan scan(machine, landmark_scan::PlanScan(shape, machine).variant, shape,
                    {{device_rows.get(), kRows}}, device_queries.get());
    scan.Poison();
    scan.Run(nullptr);
    MNEME_CUDA(cudaDeviceSynchronize());
    const std::vector<int64_t> now = scan.indices.Get();
    const std::vector<float> now_scores = scan.scores.Get();
    checks.Expect(std::equal(indices.begin(), indices.end(), now.begin()) &&
                      std::equal(scores.begin(), scores.end(), now_scores.begin()),
                  "scan of " + std::to_string(n) + " queries: differs from a scan of fewer");
    indices = now;
    scores = now_scores;
  }
}

inline void TimeScans(const landmark_scan::Machine& machine, Checks& checks, Timer& timer,
                      Report& report, uint32_t seed) {
  constexpr int64_t kRows = 1'000'000, kDim = 256;
  constexpr int kBest = 8;
  const DeviceArray<uint16_t> landmarks(kRows * kDim);
  const DeviceArray<float> queries(256 * kDim);
  FillNormal(landmarks.get(), nullptr, landmarks.count(), seed);
  FillNormal(nullptr, queries.get(), queries.count(), seed + 100);
  using landmark_scan::HostSlab;
  using landmark_scan::Variant;
  const std::vector<HostSlab> slabs = {{landmarks.get(), kRows}};
  // As a server keeps them: blocks of 512 rows anywhere.
  std::vector<HostSlab> blocks;
  for (int64_t row = 0; row < kRows; row += 512) {
    blocks.push_back({landmarks.get() + row * kDim, std::min<int64_t>(512, kRows - row)});
  }
  std::mt19937 random(seed);
  std::shuffle(blocks.begin(), blocks.end(), random);
  for (const int64_t n : {1, 4, 8, 16, 32, 64, 128, 256}) {
    const landmark_scan::Shape shape = {
        .dtype = DType::kBf16, .dim = kDim, .n_queries = n, .k = kBest, .aligned = true};
    const landmark_scan::Plan chosen = landmark_scan::PlanScan(shape, machine);
    std::vector<int64_t> first_indices;
    for (const Variant variant : kScanVariants) {
      if (variant == Variant::kSimple && n > 1) continue;
      const Scan scan(machine, variant, shape, slabs, queries.get());
      if (!scan.possible() || (variant != chosen.variant && !scan.one_pass())) continue;
      const Timing timing = timer.Measure([&] { scan.Run(timer.stream()); });
      report.Add("scan 1M x 256 bf16 top-8, " + std::to_string(n) + " queries, " +
                     ScanName(variant) + (variant == chosen.variant ? " (chosen)" : ""),
                 timing, 2.0 * kRows * kDim, 2.0 * kRows * kDim * static_cast<double>(n));
      // Large scans are checked against each other: rounding may swap neighbours, rarely.
      const std::vector<int64_t> indices = scan.indices.Get();
      if (first_indices.empty()) first_indices = indices;
      int64_t differ = 0;
      for (size_t i = 0; i < indices.size(); ++i) differ += indices[i] != first_indices[i];
      checks.Expect(differ * 50 <= static_cast<int64_t>(indices.size()),
                    std::string("large scan ") + ScanName(variant) + ", " + std::to_string(n) +
                        " queries: " + std::to_string(differ) + " indices differ");
    }
    const Scan scan(machine, chosen.variant, shape, blocks, queries.get());
    const Timing timing = timer.Measure([&] { scan.Run(timer.stream()); });
    report.Add("scan 1M x 256 bf16 top-8, " + std::to_string(n) + " queries, blocks of 512 rows",
               timing, 2.0 * kRows * kDim, 2.0 * kRows * kDim * static_cast<double>(n));
  }
}

}  // namespace mneme::bench

#endif  // MNEME_BENCH_GPU_LANDMARK_SCAN_PART_CUH_
