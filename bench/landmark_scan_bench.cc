// Exact search over the landmarks of a large memory on the CPU, beside the time to read the same
// bytes once.
//
//   landmark_scan_bench [--chunks N] [--dim R] [--threads T] [--repetitions N]
//
// Peers in one run: a plain parallel read of the same memory (the floor), the scan for 1 question
// and for 16 at once.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "bench/measure.h"
#include "kernels/cpu/landmark_topk.h"

namespace mneme {
namespace {

struct Flags {
  int64_t chunks = 1'000'000;
  int64_t dim = 256;
  int threads = 2;
  int repetitions = 21;
};

bool ParseFlags(int argc, char** argv, Flags* flags) {
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    const int64_t value = i + 1 < argc ? std::atoll(argv[i + 1]) : 0;
    if (value <= 0) return false;
    if (name == "--chunks") {
      flags->chunks = value;
    } else if (name == "--dim") {
      flags->dim = value;
    } else if (name == "--threads") {
      flags->threads = static_cast<int>(value);
    } else if (name == "--repetitions") {
      flags->repetitions = static_cast<int>(value);
    } else {
      return false;
    }
  }
  return true;
}

// Reads every byte once, as wide as the compiler's vectors allow, in blocks over the pool's
// threads.
void ReadAll(ThreadPool& pool, const std::vector<Bf16>& memory, std::vector<uint64_t>* sums) {
  constexpr int64_t kBlockWords = 1 << 19;
  const int64_t words = static_cast<int64_t>(memory.size() / 4);
  const int64_t blocks = (words + kBlockWords - 1) / kBlockWords;
  sums->assign(static_cast<size_t>(blocks), 0);
  typedef uint64_t Vec8 __attribute__((vector_size(64)));
  pool.ParallelFor(blocks, [&](int64_t block) {
    const char* from = reinterpret_cast<const char*>(memory.data()) + block * kBlockWords * 8;
    const int64_t count = std::min(kBlockWords, words - block * kBlockWords) / 32;
    Vec8 sum[4] = {};
    for (int64_t i = 0; i < count; ++i) {
      for (int j = 0; j < 4; ++j) {
        __builtin_prefetch(from + i * 256 + j * 64 + 8192);  // as the scan does
        Vec8 x;
        std::memcpy(&x, from + i * 256 + j * 64, 64);
        sum[j] ^= x;
      }
    }
    sum[0] ^= sum[1] ^ sum[2] ^ sum[3];
    for (int lane = 0; lane < 8; ++lane) (*sums)[static_cast<size_t>(block)] ^= sum[0][lane];
  });
}

int Main(int argc, char** argv) {
  Flags flags;
  if (!ParseFlags(argc, argv, &flags)) {
    std::fprintf(
        stderr,
        "usage: landmark_scan_bench [--chunks N] [--dim R] [--threads T] [--repetitions N]\n");
    return 2;
  }
  const CpuIsa isa = DetectCpuIsa();
  ThreadPool pool(flags.threads);
  std::vector<Bf16> landmarks(static_cast<size_t>(flags.chunks * flags.dim));
  std::mt19937 random(1);
  for (Bf16& value : landmarks) {  // -1 .. 1, never zero
    value = FloatToBf16(static_cast<float>(static_cast<int32_t>(random())) / 2147483648.0f);
  }
  constexpr int64_t kQueries = 16, kBest = 8;
  std::normal_distribution<float> normal;
  std::vector<float> queries(static_cast<size_t>(kQueries * flags.dim));
  for (float& value : queries) value = normal(random);
  std::vector<int64_t> indices(static_cast<size_t>(kQueries * kBest));
  std::vector<float> scores(indices.size());
  const LandmarkSlab slab{landmarks.data(), flags.chunks};
  const auto scan = [&](int64_t n_queries) {
    LandmarkTopKParams params;
    params.queries = queries.data();
    params.n_queries = n_queries;
    params.dim = flags.dim;
    params.slabs = absl::MakeConstSpan(&slab, 1);
    params.k = kBest;
    params.indices = indices.data();
    params.scores = scores.data();
    LandmarkTopKCpu(pool, params, isa);
  };
  std::vector<uint64_t> sums;
  const std::vector<bench::Spread> spreads = bench::MeasureInTurn(
      flags.repetitions,
      {[&] { ReadAll(pool, landmarks, &sums); }, [&] { scan(1); }, [&] { scan(16); }});
  uint64_t sink = 0;
  for (uint64_t sum : sums) sink ^= sum;

  const double gigabytes = static_cast<double>(landmarks.size() * sizeof(Bf16)) / 1e9;
  std::printf("machine      %s, %s\n", bench::Machine().c_str(), CpuIsaName(isa));
  std::printf(
      "shape        %lld landmarks x %lld bf16 = %.3f GB, top %lld, %d threads, %d repetitions\n",
      static_cast<long long>(flags.chunks), static_cast<long long>(flags.dim), gigabytes,
      static_cast<long long>(kBest), flags.threads, flags.repetitions);
  std::printf("%-22s %10s %10s %10s %8s %10s\n", "work", "median ms", "min", "max", "GB/s",
              "x of read");
  const char* names[] = {"read the bytes", "scan, 1 question", "scan, 16 questions"};
  for (size_t i = 0; i < spreads.size(); ++i) {
    std::printf("%-22s %10.2f %10.2f %10.2f %8.1f %10.2f\n", names[i], spreads[i].median * 1e3,
                spreads[i].min * 1e3, spreads[i].max * 1e3, gigabytes / spreads[i].median,
                spreads[i].median / spreads[0].median);
  }
  std::printf("16 together cost %.2f ms a question (read check %llx, best chunk %lld)\n",
              spreads[2].median * 1e3 / 16, static_cast<unsigned long long>(sink),
              static_cast<long long>(indices[0]));
  return 0;
}

}  // namespace
}  // namespace mneme

int main(int argc, char** argv) { return mneme::Main(argc, argv); }
