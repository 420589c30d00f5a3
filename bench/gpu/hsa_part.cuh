// Hierarchical sparse attention's part of hsa_topk_bench: every variant against double precision on
// rows of many shapes and tables, then the times of prefill and decode, which check each other bit
// by bit.

#ifndef MNEME_BENCH_GPU_HSA_PART_CUH_
#define MNEME_BENCH_GPU_HSA_PART_CUH_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "bench/gpu/gpu_measure.h"
#include "bench/gpu/kernel_checks.cuh"
#include "kernels/cuda/hsa_attention_kernels.cuh"
#include "tests/reference/attention_reference.h"

namespace mneme::bench {

struct HsaCase {
  int64_t rows, heads, head_dim, tokens, pages_max, stored;
  DType page_dtype = DType::kBf16, out_dtype = DType::kBf16;
  int64_t pad = 0;         // of the rows of q and out
  int64_t page_shift = 0;  // elements that the pages are off a multiple of 16 bytes
  int64_t share = 1;       // about so many neighbours have the same table
  float q_scale = 1;       // of every fifth row of q
};

inline void CheckHsa(const hsa::Machine& machine, Checks& checks, const HsaCase& c, uint32_t seed) {
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
  std::vector<int64_t> first(static_cast<size_t>(c.rows * c.pages_max), -1);  // element of a page
  std::vector<float> weights(first.size(), std::nanf(""));
  std::vector<int32_t> counts;
  for (int64_t r = 0; r < c.rows; ++r) {
    const bool repeat = r > 0 && static_cast<int64_t>(random() % c.share) != 0;
    counts.push_back(repeat ? counts.back() : static_cast<int32_t>(random() % (c.pages_max + 1)));
    for (int64_t i = 0; i < counts.back(); ++i) {
      const size_t at = static_cast<size_t>(r * c.pages_max + i);
      first[at] = repeat ? first[at - static_cast<size_t>(c.pages_max)]
                         : static_cast<int64_t>(random() % c.stored) * page_elements + c.page_shift;
      weights[at] = 1.0f / static_cast<float>(i + 2);
    }
  }
  const auto pages_in = [&](const uint16_t* pool_of_halves, const float* pool_of_floats) {
    std::vector<const void*> pages;
    for (const int64_t at : first) {
      pages.push_back(at < 0                         ? nullptr
                      : c.page_dtype == DType::kBf16 ? static_cast<const void*>(pool_of_halves + at)
                                                     : pool_of_floats + at);
    }
    return pages;
  };
  const std::vector<const void*> host_pages = pages_in(halves.data(), floats.data());
  HsaAttendParams p = {.q = q.data(),
                       .q_stride = stride,
                       .pages = host_pages.data(),
                       .weights = weights.data(),
                       .page_counts = counts.data(),
                       .pages_max = c.pages_max,
                       .page_dtype = c.page_dtype,
                       .rows = c.rows,
                       .heads = c.heads,
                       .head_dim = D,
                       .chunk_tokens = S,
                       .out_dtype = c.out_dtype,
                       .out_stride = stride};
  const std::vector<double> wanted = HsaAttendReference(p);

  const DeviceArray<float> device_q(q), device_floats(floats), device_weights(weights);
  const DeviceArray<uint16_t> device_halves(halves);
  const DeviceArray<const void*> device_pages(pages_in(device_halves.get(), device_floats.get()));
  const DeviceArray<int32_t> device_counts(counts);
  const DeviceArray<unsigned char> out(c.rows * stride * DTypeBytes(c.out_dtype));
  p.q = device_q.get();
  p.pages = device_pages.get();
  p.weights = device_weights.get();
  p.page_counts = device_counts.get();
  p.out = out.get();
  hsa::Machine in_slices = machine;
  in_slices.slice_rows = hsa::kInvertThreads;  // so that few rows are several slices
  for (const hsa::Variant variant :
       {hsa::Variant::kSimple, hsa::Variant::kDecode, hsa::Variant::kPrefill}) {
    if (!hsa::CanCompute(variant, p, machine)) continue;
    out.Poison();
    const DeviceArray<unsigned char> workspace(hsa::WorkspaceBytes(variant, p, in_slices));
    workspace.Poison();
    MNEME_CUDA(hsa::LaunchHsa(variant, p, in_slices, workspace.get(), nullptr));
    MNEME_CUDA(cudaDeviceSynchronize());
    const RowsCompared compared = CompareRows(out.Get(), c.out_dtype, width, stride, wanted);
    const bool f32 = c.page_dtype == DType::kF32 && c.out_dtype == DType::kF32;
    // Rounding q moves large scores by more.
    const double tolerance = f32 ? 1e-5 : c.q_scale == 1 ? 1e-2 : 5e-2;
    checks.Expect(compared.error.value() < tolerance && compared.outside == 0,
                  "hsa variant " + std::to_string(static_cast<int>(variant)) + ", rows " +
                      std::to_string(c.rows) + ", heads " + std::to_string(c.heads) +
                      ", pages_max " + std::to_string(c.pages_max) + ", pad " +
                      std::to_string(c.pad) + ", seed " + std::to_string(seed) + ": error " +
                      std::to_string(compared.error.value()) + ", " +
                      std::to_string(compared.outside) + " written outside");
  }
}

inline void CheckHsas(const hsa::Machine& machine, Checks& checks, uint32_t seed) {
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
  for (const HsaCase& c : cases) CheckHsa(machine, checks, c, ++seed);
}

// How the rows of one batch item choose among its chunks.
enum class Pattern { kRandom, kCausal, kShared64 };

inline void TimeHsa(const hsa::Machine& machine, Checks& checks, Timer& timer, Report& report,
                    const std::string& name, int64_t batch, int64_t tokens, int64_t heads,
                    Pattern pattern, DType out_dtype, uint32_t seed) {
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
  const HsaAttendParams p = {.q = q.get(),
                             .q_stride = width,
                             .pages = device_pages.get(),
                             .weights = device_weights.get(),
                             .page_counts = device_counts.get(),
                             .pages_max = kPages,
                             .page_dtype = DType::kBf16,
                             .rows = rows,
                             .heads = heads,
                             .head_dim = D,
                             .chunk_tokens = S,
                             .out = out.get(),
                             .out_dtype = out_dtype,
                             .out_stride = width};
  const double bytes = static_cast<double>(q.bytes() + out.bytes()) +
                       static_cast<double>(used.size()) * page_elements * 2 +
                       static_cast<double>(rows) * kPages * 12;
  const double operations = static_cast<double>(rows) * kPages * static_cast<double>(width) * S * 4;
  std::vector<unsigned char> first;
  for (const hsa::Variant variant : {hsa::Variant::kPrefill, hsa::Variant::kDecode}) {
    if (!hsa::CanCompute(variant, p, machine)) continue;
    const DeviceArray<unsigned char> workspace(hsa::WorkspaceBytes(variant, p, machine));
    const Timing timing = timer.Measure(
        [&] { MNEME_CUDA(hsa::LaunchHsa(variant, p, machine, workspace.get(), timer.stream())); });
    report.Add("hsa " + name + (variant == hsa::Variant::kPrefill ? ", prefill" : ", decode") +
                   (variant == hsa::Choose(p, machine) ? " (chosen)" : ""),
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
      checks.Expect(differ == 0, "large hsa " + name + ": prefill and decode differ in " +
                                     std::to_string(differ) + " numbers");
      checks.Expect(error.value() < 1e-2, "large hsa " + name + ": prefill and decode differ by " +
                                              std::to_string(error.value()));
    }
  }
}

inline void TimeHsas(const hsa::Machine& machine, Checks& checks, Timer& timer, Report& report,
                     uint32_t seed) {
  constexpr DType kBf16 = DType::kBf16;
  TimeHsa(machine, checks, timer, report, "8 x 16384, 16 heads, random chunks", 8, 16384, 16,
          Pattern::kRandom, kBf16, seed);
  TimeHsa(machine, checks, timer, report, "8 x 16384, 16 heads, random past chunks", 8, 16384, 16,
          Pattern::kCausal, kBf16, seed);
  TimeHsa(machine, checks, timer, report, "8 x 16384, 16 heads, 64 neighbours share", 8, 16384, 16,
          Pattern::kShared64, kBf16, seed);
  TimeHsa(machine, checks, timer, report, "1 x 16384, 6 heads, random chunks", 1, 16384, 6,
          Pattern::kRandom, kBf16, seed);
  for (const int64_t rows : {1, 32, 256, 1024, 2048, 4096}) {
    TimeHsa(machine, checks, timer, report, std::to_string(rows) + " rows, 6 heads, own chunks",
            rows, 1, 6, Pattern::kRandom, DType::kF32, seed);
  }
}

}  // namespace mneme::bench

#endif  // MNEME_BENCH_GPU_HSA_PART_CUH_
