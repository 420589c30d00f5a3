// Chunk attention's part of hsa_topk_bench: its variants against double precision, then the times
// of the chunk encoder's shape.

#ifndef MNEME_BENCH_GPU_CHUNK_ATTENTION_PART_CUH_
#define MNEME_BENCH_GPU_CHUNK_ATTENTION_PART_CUH_

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "bench/gpu/gpu_measure.h"
#include "bench/gpu/kernel_checks.cuh"
#include "kernels/cuda/chunk_attention_kernels.cuh"
#include "tests/reference/attention_reference.h"

namespace mneme::bench {

inline void CheckChunkAttention(Checks& checks, int64_t groups, int64_t T, int64_t heads, int64_t D,
                                int64_t pad, DType out_dtype, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const int64_t width = heads * D, in_stride = 3 * width + pad, out_stride = width + pad;
  std::vector<float> qkv(static_cast<size_t>(groups * T * in_stride));
  for (float& v : qkv) v = normal(random);
  const DeviceArray<float> device_qkv(qkv);
  const DeviceArray<unsigned char> out(groups * T * out_stride * DTypeBytes(out_dtype));
  ChunkAttentionParams p = {.qkv = qkv.data(),
                            .qkv_stride = in_stride,
                            .groups = groups,
                            .group_rows = T,
                            .heads = heads,
                            .head_dim = D,
                            .out_dtype = out_dtype,
                            .out_stride = out_stride};
  const std::vector<double> wanted = ChunkAttentionReference(p);
  p.qkv = device_qkv.get();
  p.out = out.get();
  using chunk_attention::Variant;
  for (const Variant variant : {Variant::kSimple, Variant::kFast}) {
    if (!chunk_attention::CanCompute(variant, p)) continue;
    out.Poison();
    MNEME_CUDA(chunk_attention::LaunchChunkAttention(variant, p, nullptr));
    MNEME_CUDA(cudaDeviceSynchronize());
    const RowsCompared compared = CompareRows(out.Get(), out_dtype, width, out_stride, wanted);
    checks.Expect(
        compared.error.value() < (out_dtype == DType::kF32 ? 1e-5 : 1e-2) && compared.outside == 0,
        "chunk attention variant " + std::to_string(static_cast<int>(variant)) + ", groups " +
            std::to_string(groups) + ", rows " + std::to_string(T) + ", heads " +
            std::to_string(heads) + ", width " + std::to_string(D) + ", pad " +
            std::to_string(pad) + ": error " + std::to_string(compared.error.value()) + ", " +
            std::to_string(compared.outside) + " written outside");
  }
}

inline void CheckChunkAttentions(Checks& checks, uint32_t seed) {
  CheckChunkAttention(checks, 0, 65, 6, 64, 0, DType::kBf16, ++seed);
  for (const int64_t rows : {1, 2, 16, 17, 32, 33, 65, 80, 81, 96, 97, 129, 144, 145}) {
    for (const int64_t pad : {0, 3, 8}) {
      CheckChunkAttention(checks, 3, rows, 2, 64, pad, DType::kBf16, ++seed);
    }
  }
  for (const int64_t width : {1, 30, 64}) {
    CheckChunkAttention(checks, 2, 65, 3, width, 2, DType::kF32, ++seed);
    CheckChunkAttention(checks, 2, 17, 3, width, 2, DType::kBf16, ++seed);
  }
}

inline void TimeChunkAttention(Timer& timer, Report& report, int64_t groups, int64_t T,
                               int64_t heads, uint32_t seed) {
  constexpr int64_t D = 64;
  const int64_t width = heads * D;
  const DeviceArray<float> qkv(groups * T * 3 * width);
  const DeviceArray<uint16_t> out(groups * T * width);
  FillNormal(nullptr, qkv.get(), qkv.count(), seed);
  const ChunkAttentionParams p = {.qkv = qkv.get(),
                                  .qkv_stride = 3 * width,
                                  .groups = groups,
                                  .group_rows = T,
                                  .heads = heads,
                                  .head_dim = D,
                                  .out = out.get(),
                                  .out_dtype = DType::kBf16,
                                  .out_stride = width};
  const Timing timing = timer.Measure([&] {
    MNEME_CUDA(
        chunk_attention::LaunchChunkAttention(chunk_attention::Variant::kFast, p, timer.stream()));
  });
  report.Add("chunk attention " + std::to_string(groups) + " x " + std::to_string(T) + " rows, " +
                 std::to_string(heads) + " heads",
             timing, static_cast<double>(qkv.bytes() + out.bytes()),
             4.0 * static_cast<double>(groups * width) * T * T);
}

}  // namespace mneme::bench

#endif  // MNEME_BENCH_GPU_CHUNK_ATTENTION_PART_CUH_
