// Landmark scan, hierarchical sparse attention and chunk attention on a GPU: checked against double
// precision on the host on many shapes, then timed.
//
//   nvcc -std=c++20 -O3 -gencode arch=compute_90a,code=sm_90a -I . bench/gpu/hsa_topk_bench.cu
//
//   hsa_topk_bench [--check-only 1] [--time-only 1] [--repetitions N] [--seed N] [--json PATH]
//                  [--commit ID] [--tflops N] [--only scan|hsa|chunk] [--slice-rows N]
//
// Needs the CUDA toolkit alone. Exit code 1 when a check fails.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "bench/gpu/chunk_attention_part.cuh"
#include "bench/gpu/gpu_measure.h"
#include "bench/gpu/hsa_part.cuh"
#include "bench/gpu/kernel_checks.cuh"
#include "bench/gpu/landmark_scan_part.cuh"

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
  const int64_t shared_bytes_max = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  const landmark_scan::Machine scan_machine = {.multiprocessors = properties.multiProcessorCount,
                                               .major = properties.major,
                                               .shared_bytes_max = shared_bytes_max};
  const hsa::Machine hsa_machine = {.multiprocessors = properties.multiProcessorCount,
                                    .major = properties.major,
                                    .shared_bytes_max = shared_bytes_max,
                                    .slice_rows = flags.slice_rows};
  Checks checks;
  std::printf("device %s, %d multiprocessors, %zu bytes of shared memory a block, seed %u\n",
              properties.name, properties.multiProcessorCount, properties.sharedMemPerBlockOptin,
              flags.seed);
  if (flags.check) {
    if (flags.wants("scan")) {
      CheckScans(scan_machine, checks, flags.seed);
      CheckScanCompany(scan_machine, checks, flags.seed);
    }
    std::printf("scan checked, %d failures so far\n", checks.failures());
    if (flags.wants("hsa")) CheckHsas(hsa_machine, checks, flags.seed + 1000);
    std::printf("hsa checked, %d failures so far\n", checks.failures());
    if (flags.wants("chunk")) CheckChunkAttentions(checks, flags.seed + 2000);
    std::printf("chunk attention checked, %d failures so far\n", checks.failures());
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
    if (flags.wants("scan")) TimeScans(scan_machine, checks, timer, report, flags.seed);
    if (flags.wants("hsa")) TimeHsas(hsa_machine, checks, timer, report, flags.seed);
    if (flags.wants("chunk")) {
      TimeChunkAttention(timer, report, 2048, 65, 6, flags.seed);
      TimeChunkAttention(timer, report, 2048, 65, 16, flags.seed);
      TimeChunkAttention(timer, report, 2048, 96, 6, flags.seed);
    }
    if (!flags.json.empty()) {
      std::string command;
      for (int i = 0; i < argc; ++i) command += (i > 0 ? " " : "") + std::string(argv[i]);
      if (!report.Write(flags.json, properties.name, flags.commit, command)) {
        std::fprintf(stderr, "cannot write %s\n", flags.json.c_str());
        return 1;
      }
    }
  }
  std::printf("%d checks failed\n", checks.failures());
  return checks.failures() == 0 ? 0 : 1;
}

}  // namespace
}  // namespace mneme::bench

int main(int argc, char** argv) { return mneme::bench::Main(argc, argv); }
