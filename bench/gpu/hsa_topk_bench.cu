// Landmark scan, hierarchical sparse attention and chunk attention on a GPU: checked against double
// precision on the host on many shapes, then timed.
//
//   nvcc -std=c++20 -O3 -gencode arch=compute_90a,code=sm_90a -I . bench/gpu/hsa_topk_bench.cu
//
//   hsa_topk_bench [--check-only 1] [--time-only 1] [--repetitions N] [--seed N] [--json PATH]
//                  [--commit ID] [--tflops N] [--only scan|hsa|chunk] [--slice-rows N]
//
// Needs the CUDA toolkit alone. Exit code 1 when a check fails.

#include <cuda_bf16.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "bench/gpu/gpu_measure.h"
#include "kernels/cuda/chunk_attention_kernels.cuh"
#include "kernels/cuda/hsa_attention_kernels.cuh"
#include "kernels/cuda/landmark_topk_kernels.cuh"

namespace mneme::bench {
namespace {

struct Flags {
  bool check = true, time = true;
  int repetitions = 31;
  uint32_t seed = 20261122;
  int64_t slice_rows = hsa::kSliceRows;
  double tflops = 788;  // dense bf16, as an 8192^3 product reaches on random data on an H200
  std::string json, commit = "unknown", only;
  bool wants(const char* part) const { return only.empty() || only == part; }
};

int failures = 0;

void Expect(bool ok, const std::string& what) {
  if (ok) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

double Value(const std::vector<uint16_t>& halves, const std::vector<float>& floats, DType dtype,
             size_t i) {
  return dtype == DType::kBf16 ? Bf16ToFloat(halves[i]) : floats[i];
}

// ---- landmark scan -----------------------------------------------------------------------------

struct Device {
  landmark_scan::Machine scan;
  hsa::Machine hsa;
  std::string name;
};

// Slabs in device memory with what a scan needs beside them, run on one variant.
class Scan {
 public:
  Scan(const Device& device, landmark_scan::Variant variant, const landmark_scan::Shape& shape,
       const std::vector<landmark_scan::HostSlab>& slabs, const float* queries)
      : shape_(shape),
        queries_(queries),
        possible_(landmark_scan::PlanVariant(variant, shape, device.scan, &plan_)),
        table_(possible_ ? landmark_scan::CutSlabs(slabs, plan_.tile_rows, &tile_count_)
                         : std::vector<landmark_scan::Slab>()),
        workspace_(possible_ ? plan_.workspace_bytes() : 0),
        indices(shape.n_queries * shape.k),
        scores(shape.n_queries * shape.k) {}

  bool possible() const { return possible_; }
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

constexpr landmark_scan::Variant kScanVariants[] = {
    landmark_scan::Variant::kSimple,  landmark_scan::Variant::kMma8,
    landmark_scan::Variant::kMma32,   landmark_scan::Variant::kWgmma8,
    landmark_scan::Variant::kWgmma16, landmark_scan::Variant::kWgmma32,
    landmark_scan::Variant::kWgmma64, landmark_scan::Variant::kWgmma128};
const char* ScanName(landmark_scan::Variant variant) {
  constexpr const char* kNames[] = {"simple",  "mma8",    "mma32",   "wgmma8",
                                    "wgmma16", "wgmma32", "wgmma64", "wgmma128"};
  return kNames[static_cast<int>(variant)];
}

enum class Content { kRandom, kEqual, kFewValues, kRising, kFalling, kNans };
constexpr Content kContents[] = {Content::kRandom, Content::kEqual,   Content::kFewValues,
                                 Content::kRising, Content::kFalling, Content::kNans};

struct ScanCase {
  std::vector<int64_t> slab_rows;
  int64_t dim, n_queries;
  int k;
  DType dtype = DType::kBf16;
};

void CheckScan(const Device& device, const ScanCase& c, Content content, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::unique_ptr<DeviceArray<unsigned char>>> memory;
  std::vector<landmark_scan::HostSlab> slabs;
  std::vector<double> values;  // all rows, one after the other
  int64_t rows = 0;
  for (int64_t count : c.slab_rows) {
    std::vector<unsigned char> bytes(static_cast<size_t>(count * c.dim * DTypeBytes(c.dtype)));
    for (int64_t i = 0; i < count * c.dim; ++i) {
      const int64_t row = rows + i / c.dim, d = i % c.dim;
      float v = normal(random);
      if (content == Content::kEqual) v = 1.0f;
      if (content == Content::kFewValues) v = d == 0 ? static_cast<float>(random() % 4) - 2 : 0.0f;
      if (content == Content::kRising) v = d == 0 ? static_cast<float>(row % 4096) : 0.0f;
      if (content == Content::kFalling) v = d == 0 ? -static_cast<float>(row % 4096) : 0.0f;
      if (content == Content::kNans && d == 0 && random() % 3 == 0) v = std::nanf("");
      if (c.dtype == DType::kBf16) {
        const Bf16 half = FloatToBf16(v);
        std::memcpy(bytes.data() + i * 2, &half, 2);
        v = Bf16ToFloat(half);
      } else {
        std::memcpy(bytes.data() + i * 4, &v, 4);
      }
      values.push_back(v);
    }
    memory.push_back(std::make_unique<DeviceArray<unsigned char>>(bytes));
    slabs.push_back({memory.back()->get(), count});
    rows += count;
  }
  std::vector<float> queries(static_cast<size_t>(c.n_queries * c.dim));
  for (float& v : queries) v = normal(random);
  const bool counted =
      content == Content::kFewValues || content == Content::kRising || content == Content::kFalling;
  for (int64_t q = 0; counted && q < c.n_queries; ++q) queries[static_cast<size_t>(q * c.dim)] = 1;
  const bool exact = counted || content == Content::kEqual;  // equal rows have equal scores

  struct Candidate {
    double score;
    int64_t index;
  };
  std::vector<std::vector<double>> scores(static_cast<size_t>(c.n_queries));
  std::vector<std::vector<Candidate>> sorted(scores.size());
  for (int64_t q = 0; q < c.n_queries; ++q) {
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0;
      for (int64_t d = 0; d < c.dim; ++d) {
        sum += values[static_cast<size_t>(r * c.dim + d)] *
               double{queries[static_cast<size_t>(q * c.dim + d)]};
      }
      scores[static_cast<size_t>(q)].push_back(sum);
      if (!std::isnan(sum)) sorted[static_cast<size_t>(q)].push_back({sum, r});
    }
    std::sort(sorted[static_cast<size_t>(q)].begin(), sorted[static_cast<size_t>(q)].end(),
              [](const Candidate& a, const Candidate& b) {
                return a.score != b.score ? a.score > b.score : a.index > b.index;
              });
  }
  const DeviceArray<float> device_queries(queries);
  const landmark_scan::Shape shape = {
      .dtype = c.dtype, .dim = c.dim, .n_queries = c.n_queries, .k = c.k, .aligned = true};
  // As the kernels' tests: float32 sums of products and the query's bf16 split.
  const double tolerance = 1e-4 * std::sqrt(static_cast<double>(c.dim));
  for (const landmark_scan::Variant variant : kScanVariants) {
    const Scan scan(device, variant, shape, slabs, device_queries.get());
    if (!scan.possible()) continue;
    scan.Poison();
    scan.Run(nullptr);
    MNEME_CUDA(cudaDeviceSynchronize());
    const std::vector<int64_t> indices = scan.indices.Get();
    const std::vector<float> found = scan.scores.Get();
    int64_t wrong = 0;
    for (int64_t q = 0; q < c.n_queries; ++q) {
      const std::vector<Candidate>& best = sorted[static_cast<size_t>(q)];
      std::set<int64_t> seen;
      for (int64_t i = 0; i < c.k; ++i) {
        const int64_t index = indices[static_cast<size_t>(q * c.k + i)];
        const double score = found[static_cast<size_t>(q * c.k + i)];
        if (i >= static_cast<int64_t>(best.size())) {
          wrong += index != -1 || score != -std::numeric_limits<double>::infinity();
          continue;
        }
        if (index < 0 || index >= rows || !seen.insert(index).second) {
          ++wrong;
          continue;
        }
        const Candidate& wanted = best[static_cast<size_t>(i)];
        const double own = scores[static_cast<size_t>(q)][static_cast<size_t>(index)];
        wrong += !(std::fabs(score - own) <= tolerance);
        wrong += !(std::fabs(score - wanted.score) <= tolerance);
        wrong += exact && index != wanted.index;
      }
    }
    Expect(wrong == 0, std::string("scan ") + ScanName(variant) + ", rows " + std::to_string(rows) +
                           ", dim " + std::to_string(c.dim) + ", queries " +
                           std::to_string(c.n_queries) + ", k " + std::to_string(c.k) +
                           ", content " + std::to_string(static_cast<int>(content)) + ", seed " +
                           std::to_string(seed) + ": " + std::to_string(wrong) + " wrong");
  }
}

void CheckScans(const Device& device, uint32_t seed) {
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
    for (const Content content : kContents) CheckScan(device, c, content, ++seed);
  }
}

// A query's result is the same whoever shares the call, to the last bit.
void CheckScanCompany(const Device& device, uint32_t seed) {
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
    const Scan scan(device, landmark_scan::PlanScan(shape, device.scan).variant, shape,
                    {{device_rows.get(), kRows}}, device_queries.get());
    scan.Poison();
    scan.Run(nullptr);
    MNEME_CUDA(cudaDeviceSynchronize());
    const std::vector<int64_t> now = scan.indices.Get();
    const std::vector<float> now_scores = scan.scores.Get();
    Expect(std::equal(indices.begin(), indices.end(), now.begin()) &&
               std::equal(scores.begin(), scores.end(), now_scores.begin()),
           "scan of " + std::to_string(n) + " queries: differs from a scan of fewer");
    indices = now;
    scores = now_scores;
  }
}

// ---- attention ---------------------------------------------------------------------------------

// ||got - wanted|| / ||wanted||; a NaN or a missing write gives NaN, which passes no comparison.
class RelativeError {
 public:
  void Add(double got, double wanted) {
    error_ += (got - wanted) * (got - wanted);
    norm_ += wanted * wanted;
  }
  double value() const { return error_ == 0 ? 0 : std::sqrt(error_ / std::max(norm_, 1e-30)); }

 private:
  double error_ = 0, norm_ = 0;
};

struct HsaCase {
  int64_t rows, heads, head_dim, tokens, pages_max, stored;
  DType page_dtype = DType::kBf16, out_dtype = DType::kBf16;
  int64_t pad = 0;         // of the rows of q and out
  int64_t page_shift = 0;  // elements that the pages are off a multiple of 16 bytes
  int64_t share = 1;       // about so many neighbours have the same table
  float q_scale = 1;       // of every fifth row of q
};

void CheckHsa(const Device& device, const HsaCase& c, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const int64_t D = c.head_dim, S = c.tokens, width = c.heads * D, stride = width + c.pad;
  std::vector<float> q(static_cast<size_t>(c.rows * stride));
  for (float& v : q) v = normal(random);
  for (size_t i = 0; i < q.size(); ++i) {
    if (static_cast<int64_t>(i) / stride % 5 == 4) q[i] *= c.q_scale;
  }
  const int64_t page_elements = 2 * S * D;
  std::vector<float> floats(static_cast<size_t>(c.stored * page_elements + c.page_shift));
  std::vector<uint16_t> halves;
  for (float& v : floats) {
    v = normal(random);
    halves.push_back(FloatToBf16(v));
  }
  const DeviceArray<float> device_q(q), device_floats(floats);
  const DeviceArray<uint16_t> device_halves(halves);
  const int page_bytes = DTypeBytes(c.page_dtype);
  const unsigned char* pool = c.page_dtype == DType::kBf16
                                  ? reinterpret_cast<const unsigned char*>(device_halves.get())
                                  : reinterpret_cast<const unsigned char*>(device_floats.get());
  std::vector<const void*> pages(static_cast<size_t>(c.rows * c.pages_max), nullptr);
  std::vector<int64_t> first(pages.size(), 0);
  std::vector<float> weights(pages.size(), std::nanf(""));
  std::vector<int32_t> counts;
  for (int64_t r = 0; r < c.rows; ++r) {
    const bool repeat = r > 0 && static_cast<int64_t>(random() % c.share) != 0;
    counts.push_back(repeat ? counts.back() : static_cast<int32_t>(random() % (c.pages_max + 1)));
    for (int64_t i = 0; i < counts.back(); ++i) {
      const size_t at = static_cast<size_t>(r * c.pages_max + i);
      first[at] = repeat ? first[at - static_cast<size_t>(c.pages_max)]
                         : static_cast<int64_t>(random() % c.stored) * page_elements + c.page_shift;
      pages[at] = pool + first[at] * page_bytes;
      weights[at] = 1.0f / static_cast<float>(i + 2);
    }
  }
  const DeviceArray<const void*> device_pages(pages);
  const DeviceArray<float> device_weights(weights);
  const DeviceArray<int32_t> device_counts(counts);
  const DeviceArray<unsigned char> out(c.rows * stride * DTypeBytes(c.out_dtype));
  HsaAttendParams p;
  p.q = device_q.get();
  p.q_stride = stride;
  p.pages = device_pages.get();
  p.weights = device_weights.get();
  p.page_counts = device_counts.get();
  p.pages_max = c.pages_max;
  p.page_dtype = c.page_dtype;
  p.rows = c.rows;
  p.heads = c.heads;
  p.head_dim = D;
  p.chunk_tokens = S;
  p.out = out.get();
  p.out_dtype = c.out_dtype;
  p.out_stride = stride;

  std::vector<double> wanted(static_cast<size_t>(c.rows * width), 0.0);
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t i = 0; i < counts[static_cast<size_t>(r)]; ++i) {
      const size_t at = static_cast<size_t>(r * c.pages_max + i);
      const auto element = [&](int64_t e) {
        return Value(halves, floats, c.page_dtype, static_cast<size_t>(first[at] + e));
      };
      for (int64_t h = 0; h < c.heads; ++h) {
        std::vector<double> scores(static_cast<size_t>(S), 0.0);
        double top = -HUGE_VAL, sum = 0;
        for (int64_t s = 0; s < S; ++s) {
          double& score = scores[static_cast<size_t>(s)];
          for (int64_t d = 0; d < D; ++d) {
            score += double{q[static_cast<size_t>(r * stride + h * D + d)]} * element(s * D + d);
          }
          score /= std::sqrt(static_cast<double>(D));
          top = std::max(top, score);
        }
        for (double& score : scores) sum += score = std::exp(score - top);
        for (int64_t s = 0; s < S; ++s) {
          for (int64_t d = 0; d < D; ++d) {
            wanted[static_cast<size_t>(r * width + h * D + d)] +=
                weights[at] * scores[static_cast<size_t>(s)] / sum * element(S * D + s * D + d);
          }
        }
      }
    }
  }
  hsa::Machine machine = device.hsa;
  machine.slice_rows = hsa::kInvertThreads;  // so that few rows are several slices
  for (const hsa::Variant variant :
       {hsa::Variant::kSimple, hsa::Variant::kDecode, hsa::Variant::kPrefill}) {
    if (!hsa::CanCompute(variant, p, device.hsa)) continue;
    out.Poison();
    const DeviceArray<unsigned char> workspace(hsa::WorkspaceBytes(variant, p, machine));
    workspace.Poison();
    MNEME_CUDA(hsa::LaunchHsa(variant, p, machine, workspace.get(), nullptr));
    MNEME_CUDA(cudaDeviceSynchronize());
    const std::vector<unsigned char> bytes = out.Get();
    RelativeError error;
    int64_t outside = 0;
    for (int64_t r = 0; r < c.rows; ++r) {
      for (int64_t i = 0; i < stride; ++i) {
        const unsigned char* at = bytes.data() + (r * stride + i) * DTypeBytes(c.out_dtype);
        uint32_t bits = 0;
        std::memcpy(&bits, at, static_cast<size_t>(DTypeBytes(c.out_dtype)));
        float value = Bf16ToFloat(static_cast<Bf16>(bits));
        if (c.out_dtype == DType::kF32) std::memcpy(&value, &bits, 4);
        if (i < width) {
          error.Add(value, wanted[static_cast<size_t>(r * width + i)]);
        } else {
          outside += bits != (c.out_dtype == DType::kF32 ? 0xffffffffu : 0xffffu);
        }
      }
    }
    const bool f32 = c.page_dtype == DType::kF32 && c.out_dtype == DType::kF32;
    // Rounding q moves large scores by more.
    const double tolerance = f32 ? 1e-5 : c.q_scale == 1 ? 1e-2 : 5e-2;
    Expect(error.value() < tolerance && outside == 0,
           "hsa variant " + std::to_string(static_cast<int>(variant)) + ", rows " +
               std::to_string(c.rows) + ", heads " + std::to_string(c.heads) + ", pages_max " +
               std::to_string(c.pages_max) + ", pad " + std::to_string(c.pad) + ", seed " +
               std::to_string(seed) + ": error " + std::to_string(error.value()) + ", " +
               std::to_string(outside) + " written outside");
  }
}

void CheckHsas(const Device& device, uint32_t seed) {
  constexpr DType kF32 = DType::kF32, kBf16 = DType::kBf16;
  const std::vector<HsaCase> cases = {
      {0, 6, 64, 64, 8, 5},
      {1, 1, 64, 64, 1, 1},
      {5, 6, 64, 64, 8, 5, kBf16, kF32, 3},
      {40, 16, 64, 64, 8, 40},
      {200, 16, 64, 64, 8, 256, kBf16, kF32},
      {33, 17, 64, 64, 3, 7, kBf16, kBf16, 4},
      {37, 6, 64, 64, 16, 100, kBf16, kBf16, 8},
      {64, 16, 64, 64, 8, 8},
      {10, 3, 64, 64, 8, 50, kBf16, kBf16, 1, 1},
      {90, 16, 64, 64, 8, 20, kBf16, kBf16, 8, 0, 30},
      {70, 6, 64, 64, 5, 20, kBf16, kF32, 2, 1, 60},
      {80, 6, 64, 64, 8, 9, kBf16, kF32, 0, 0, 10, 100},
      {1100, 2, 64, 64, 2, 9, kBf16, kBf16, 0, 0, 7},
      {1030, 1, 64, 64, 20, 40, kBf16, kBf16, 0, 0, 200},
      {9, 6, 64, 64, 40, 60},
      {5, 3, 30, 33, 4, 5, kBf16, kF32, 3},
      {5, 3, 30, 33, 4, 5, kF32, kF32, 3},
      {3, 2, 2, 1, 4, 5, kF32, kBf16},
      {4, 4, 128, 16, 4, 5, kF32, kF32},
  };
  for (const HsaCase& c : cases) CheckHsa(device, c, ++seed);
}

void CheckChunkAttention(int64_t groups, int64_t T, int64_t heads, int64_t D, int64_t pad,
                         DType out_dtype, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const int64_t width = heads * D, in_stride = 3 * width + pad, out_stride = width + pad;
  std::vector<float> qkv(static_cast<size_t>(groups * T * in_stride));
  for (float& v : qkv) v = normal(random);
  const DeviceArray<float> device_qkv(qkv);
  const DeviceArray<unsigned char> out(groups * T * out_stride * DTypeBytes(out_dtype));
  ChunkAttentionParams p;
  p.qkv = device_qkv.get();
  p.qkv_stride = in_stride;
  p.groups = groups;
  p.group_rows = T;
  p.heads = heads;
  p.head_dim = D;
  p.out = out.get();
  p.out_dtype = out_dtype;
  p.out_stride = out_stride;
  using chunk_attention::Variant;
  for (const Variant variant : {Variant::kSimple, Variant::kFast}) {
    if (!chunk_attention::CanCompute(variant, p)) continue;
    out.Poison();
    MNEME_CUDA(chunk_attention::LaunchChunkAttention(variant, p, nullptr));
    MNEME_CUDA(cudaDeviceSynchronize());
    const std::vector<unsigned char> bytes = out.Get();
    RelativeError error;
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t h = 0; h < heads; ++h) {
        const auto at = [&](int64_t row, int64_t part, int64_t d) {
          return double{
              qkv[static_cast<size_t>((g * T + row) * in_stride + part * width + h * D + d)]};
        };
        for (int64_t r = 0; r < T; ++r) {
          std::vector<double> scores(static_cast<size_t>(T), 0.0);
          double top = -HUGE_VAL, sum = 0;
          for (int64_t t = 0; t < T; ++t) {
            double& score = scores[static_cast<size_t>(t)];
            for (int64_t d = 0; d < D; ++d) score += at(r, 0, d) * at(t, 1, d);
            score /= std::sqrt(static_cast<double>(D));
            top = std::max(top, score);
          }
          for (double& score : scores) sum += score = std::exp(score - top);
          for (int64_t d = 0; d < D; ++d) {
            double mixed = 0;
            for (int64_t t = 0; t < T; ++t) {
              mixed += scores[static_cast<size_t>(t)] / sum * at(t, 2, d);
            }
            const unsigned char* from =
                bytes.data() + ((g * T + r) * out_stride + h * D + d) * DTypeBytes(out_dtype);
            float value = 0;
            if (out_dtype == DType::kF32) {
              std::memcpy(&value, from, 4);
            } else {
              Bf16 half;
              std::memcpy(&half, from, 2);
              value = Bf16ToFloat(half);
            }
            error.Add(value, mixed);
          }
        }
      }
    }
    Expect(error.value() < (out_dtype == DType::kF32 ? 1e-5 : 1e-2),
           "chunk attention variant " + std::to_string(static_cast<int>(variant)) + ", groups " +
               std::to_string(groups) + ", rows " + std::to_string(T) + ", heads " +
               std::to_string(heads) + ", width " + std::to_string(D) + ", pad " +
               std::to_string(pad) + ": error " + std::to_string(error.value()));
  }
}

void CheckChunkAttentions(uint32_t seed) {
  CheckChunkAttention(0, 65, 6, 64, 0, DType::kBf16, ++seed);
  for (const int64_t rows : {1, 2, 16, 17, 32, 33, 65, 80, 81, 129, 144, 145}) {
    for (const int64_t pad : {0, 3, 8}) {
      CheckChunkAttention(3, rows, 2, 64, pad, DType::kBf16, ++seed);
    }
  }
  for (const int64_t width : {1, 30, 64}) {
    CheckChunkAttention(2, 65, 3, width, 2, DType::kF32, ++seed);
    CheckChunkAttention(2, 17, 3, width, 2, DType::kBf16, ++seed);
  }
}

// ---- timing ------------------------------------------------------------------------------------

__global__ void FillNormalKernel(__nv_bfloat16* halves, float* floats, int64_t count,
                                 uint64_t seed) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const float v = Normal(seed, static_cast<uint64_t>(i));
    if (halves != nullptr) halves[i] = __float2bfloat16_rn(v);
    if (floats != nullptr) floats[i] = v;
  }
}

void FillNormal(uint16_t* halves, float* floats, int64_t count, uint64_t seed) {
  MNEME_CUDA(Launch(FillNormalKernel, dim3(2048), dim3(256), 0, nullptr,
                    reinterpret_cast<__nv_bfloat16*>(halves), floats, count, seed));
  MNEME_CUDA(cudaDeviceSynchronize());
}

void TimeScans(const Device& device, Timer& timer, Report& report, uint32_t seed) {
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
    const landmark_scan::Plan chosen = landmark_scan::PlanScan(shape, device.scan);
    std::vector<int64_t> first_indices;
    for (const Variant variant : kScanVariants) {
      if (variant == Variant::kSimple && n > 1) continue;
      const Scan scan(device, variant, shape, slabs, queries.get());
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
      Expect(differ * 50 <= static_cast<int64_t>(indices.size()),
             std::string("large scan ") + ScanName(variant) + ", " + std::to_string(n) +
                 " queries: " + std::to_string(differ) + " indices differ");
    }
    const Scan scan(device, chosen.variant, shape, blocks, queries.get());
    const Timing timing = timer.Measure([&] { scan.Run(timer.stream()); });
    report.Add("scan 1M x 256 bf16 top-8, " + std::to_string(n) + " queries, blocks of 512 rows",
               timing, 2.0 * kRows * kDim, 2.0 * kRows * kDim * static_cast<double>(n));
  }
}

// How the rows of one batch item choose among its chunks.
enum class Pattern { kRandom, kCausal, kShared64 };

void TimeHsa(const Device& device, Timer& timer, Report& report, const std::string& name,
             int64_t batch, int64_t tokens, int64_t heads, Pattern pattern, DType out_dtype,
             uint32_t seed) {
  constexpr int64_t D = hsa::kWidth, S = hsa::kPageTokens, kPages = 8;
  const int64_t rows = batch * tokens, width = heads * D,
                chunks = std::max<int64_t>(tokens / S, kPages);
  const int64_t page_elements = 2 * S * D;
  const DeviceArray<uint16_t> pool(batch * chunks * page_elements);
  const DeviceArray<float> q(rows * width);
  FillNormal(pool.get(), nullptr, pool.count(), seed);
  FillNormal(nullptr, q.get(), q.count(), seed + 100);
  std::mt19937 random(seed);
  std::vector<const void*> pages(static_cast<size_t>(rows * kPages));
  std::vector<float> weights(pages.size());
  std::vector<int32_t> counts(static_cast<size_t>(rows), kPages);
  std::set<const void*> used;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t item = r / tokens, t = r % tokens;
    const bool repeat = pattern == Pattern::kShared64 && t % 64 != 0;
    const int64_t among =
        pattern == Pattern::kCausal ? std::clamp<int64_t>(t / S, kPages, chunks) : chunks;
    std::set<int64_t> chosen;
    while (!repeat && static_cast<int64_t>(chosen.size()) < kPages) {
      chosen.insert(static_cast<int64_t>(random() % static_cast<uint64_t>(among)));
    }
    auto next = chosen.rbegin();
    for (int64_t i = 0; i < kPages; ++i) {
      const size_t at = static_cast<size_t>(r * kPages + i);
      pages[at] =
          repeat ? pages[at - kPages] : pool.get() + (item * chunks + *next++) * page_elements;
      weights[at] = 0.125f;
      used.insert(pages[at]);
    }
  }
  const DeviceArray<const void*> device_pages(pages);
  const DeviceArray<float> device_weights(weights);
  const DeviceArray<int32_t> device_counts(counts);
  const DeviceArray<unsigned char> out(rows * width * DTypeBytes(out_dtype));
  HsaAttendParams p;
  p.q = q.get();
  p.q_stride = width;
  p.pages = device_pages.get();
  p.weights = device_weights.get();
  p.page_counts = device_counts.get();
  p.pages_max = kPages;
  p.page_dtype = DType::kBf16;
  p.rows = rows;
  p.heads = heads;
  p.head_dim = D;
  p.chunk_tokens = S;
  p.out = out.get();
  p.out_dtype = out_dtype;
  p.out_stride = width;
  const double bytes = static_cast<double>(q.bytes() + out.bytes()) +
                       static_cast<double>(used.size()) * page_elements * 2 +
                       static_cast<double>(rows) * kPages * 12;
  const double operations = static_cast<double>(rows) * kPages * static_cast<double>(width) * S * 4;
  std::vector<unsigned char> first;
  for (const hsa::Variant variant : {hsa::Variant::kPrefill, hsa::Variant::kDecode}) {
    if (!hsa::CanCompute(variant, p, device.hsa)) continue;
    const DeviceArray<unsigned char> workspace(hsa::WorkspaceBytes(variant, p, device.hsa));
    const Timing timing = timer.Measure([&] {
      MNEME_CUDA(hsa::LaunchHsa(variant, p, device.hsa, workspace.get(), timer.stream()));
    });
    report.Add("hsa " + name + (variant == hsa::Variant::kPrefill ? ", prefill" : ", decode") +
                   (variant == hsa::Choose(p, device.hsa) ? " (chosen)" : ""),
               timing, bytes, operations);
    // The two kernels check each other on the large shape.
    const std::vector<unsigned char> result = out.Get();
    if (first.empty()) {
      first = result;
    } else {
      RelativeError error;
      int64_t differ = 0;
      for (size_t i = 0; i < result.size(); i += static_cast<size_t>(DTypeBytes(out_dtype))) {
        uint32_t a = 0, b = 0;
        std::memcpy(&a, result.data() + i, static_cast<size_t>(DTypeBytes(out_dtype)));
        std::memcpy(&b, first.data() + i, static_cast<size_t>(DTypeBytes(out_dtype)));
        differ += a != b;
        if (out_dtype == DType::kBf16) a <<= 16, b <<= 16;
        float x, y;
        std::memcpy(&x, &a, 4);
        std::memcpy(&y, &b, 4);
        error.Add(x, y);
      }
      Expect(differ == 0, "large hsa " + name + ": prefill and decode differ in " +
                              std::to_string(differ) + " numbers");
      Expect(error.value() < 1e-2, "large hsa " + name + ": prefill and decode differ by " +
                                       std::to_string(error.value()));
    }
  }
}

void TimeHsas(const Device& device, Timer& timer, Report& report, uint32_t seed) {
  constexpr DType kBf16 = DType::kBf16;
  TimeHsa(device, timer, report, "8 x 16384, 16 heads, random chunks", 8, 16384, 16,
          Pattern::kRandom, kBf16, seed);
  TimeHsa(device, timer, report, "8 x 16384, 16 heads, random past chunks", 8, 16384, 16,
          Pattern::kCausal, kBf16, seed);
  TimeHsa(device, timer, report, "8 x 16384, 16 heads, 64 neighbours share", 8, 16384, 16,
          Pattern::kShared64, kBf16, seed);
  TimeHsa(device, timer, report, "1 x 16384, 6 heads, random chunks", 1, 16384, 6, Pattern::kRandom,
          kBf16, seed);
  for (const int64_t rows : {1, 32, 256, 1024, 2048, 4096}) {
    TimeHsa(device, timer, report, std::to_string(rows) + " rows, 6 heads, own chunks", rows, 1, 6,
            Pattern::kRandom, DType::kF32, seed);
  }
}

void TimeChunkAttention(Timer& timer, Report& report, int64_t groups, int64_t heads,
                        uint32_t seed) {
  constexpr int64_t T = 65, D = 64;
  const int64_t width = heads * D;
  const DeviceArray<float> qkv(groups * T * 3 * width);
  const DeviceArray<uint16_t> out(groups * T * width);
  FillNormal(nullptr, qkv.get(), qkv.count(), seed);
  ChunkAttentionParams p;
  p.qkv = qkv.get();
  p.qkv_stride = 3 * width;
  p.groups = groups;
  p.group_rows = T;
  p.heads = heads;
  p.head_dim = D;
  p.out = out.get();
  p.out_dtype = DType::kBf16;
  p.out_stride = width;
  const Timing timing = timer.Measure([&] {
    MNEME_CUDA(
        chunk_attention::LaunchChunkAttention(chunk_attention::Variant::kFast, p, timer.stream()));
  });
  report.Add("chunk attention " + std::to_string(groups) + " x 65 rows, " + std::to_string(heads) +
                 " heads",
             timing, static_cast<double>(qkv.bytes() + out.bytes()),
             4.0 * static_cast<double>(groups * width) * T * T);
}

bool ParseFlags(int argc, char** argv, Flags* flags) {
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i], value = argv[i + 1];
    if (name == "--check-only") {
      flags->time = std::atoi(value.c_str()) == 0;
    } else if (name == "--time-only") {
      flags->check = std::atoi(value.c_str()) == 0;
    } else if (name == "--repetitions") {
      flags->repetitions = std::max(1, std::atoi(value.c_str()));
    } else if (name == "--seed") {
      flags->seed = static_cast<uint32_t>(std::atoll(value.c_str()));
    } else if (name == "--slice-rows") {
      flags->slice_rows = std::max<int64_t>(1, std::atoll(value.c_str()) / hsa::kInvertThreads) *
                          hsa::kInvertThreads;
    } else if (name == "--json") {
      flags->json = value;
    } else if (name == "--commit") {
      flags->commit = value;
    } else if (name == "--only") {
      flags->only = value;
    } else if (name == "--tflops") {
      flags->tflops = std::atof(value.c_str());
    } else {
      return false;
    }
  }
  return argc % 2 == 1;
}

int Main(int argc, char** argv) {
  Flags flags;
  if (!ParseFlags(argc, argv, &flags)) {
    std::fprintf(stderr,
                 "usage: hsa_topk_bench [--check-only 1] [--time-only 1] [--repetitions N] "
                 "[--seed N] [--json PATH] [--commit ID] [--tflops N] [--only scan|hsa|chunk] "
                 "[--slice-rows N]\n");
    return 2;
  }
  cudaDeviceProp properties;
  MNEME_CUDA(cudaGetDeviceProperties(&properties, 0));
  Device device;
  device.name = properties.name;
  device.scan = {.multiprocessors = properties.multiProcessorCount,
                 .major = properties.major,
                 .shared_bytes_max = static_cast<int64_t>(properties.sharedMemPerBlockOptin)};
  device.hsa = {.multiprocessors = properties.multiProcessorCount,
                .major = properties.major,
                .shared_bytes_max = static_cast<int64_t>(properties.sharedMemPerBlockOptin),
                .slice_rows = flags.slice_rows};
  std::printf("device %s, %d multiprocessors, %zu bytes of shared memory a block, seed %u\n",
              properties.name, properties.multiProcessorCount, properties.sharedMemPerBlockOptin,
              flags.seed);
  if (flags.check) {
    if (flags.wants("scan")) {
      CheckScans(device, flags.seed);
      CheckScanCompany(device, flags.seed);
    }
    std::printf("scan checked, %d failures so far\n", failures);
    if (flags.wants("hsa")) CheckHsas(device, flags.seed + 1000);
    std::printf("hsa checked, %d failures so far\n", failures);
    if (flags.wants("chunk")) CheckChunkAttentions(flags.seed + 2000);
    std::printf("chunk attention checked, %d failures so far\n", failures);
    std::fflush(stdout);
  }
  if (flags.time) {
    Timer timer(flags.repetitions);
    const Roofline roofline = {MeasureCopyBandwidth(timer), flags.tflops * 1e12};
    std::printf(
        "device copy %.3f TB/s (read and written), matrix rate taken as %.0f TFLOP/s, %d "
        "repetitions, L2 cold\n",
        roofline.bytes_per_s / 1e12, flags.tflops, flags.repetitions);
    Report report(roofline);
    if (flags.wants("scan")) TimeScans(device, timer, report, flags.seed);
    if (flags.wants("hsa")) TimeHsas(device, timer, report, flags.seed);
    if (flags.wants("chunk")) {
      TimeChunkAttention(timer, report, 2048, 6, flags.seed);
      TimeChunkAttention(timer, report, 2048, 16, flags.seed);
    }
    if (!flags.json.empty()) {
      std::string command;
      for (int i = 0; i < argc; ++i) command += (i > 0 ? " " : "") + std::string(argv[i]);
      if (!report.Write(flags.json, device.name, flags.commit, command)) {
        std::fprintf(stderr, "cannot write %s\n", flags.json.c_str());
        return 1;
      }
    }
  }
  std::printf("%d checks failed\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace mneme::bench

int main(int argc, char** argv) { return mneme::bench::Main(argc, argv); }
