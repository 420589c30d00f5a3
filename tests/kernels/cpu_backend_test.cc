#include "kernels/cpu/cpu_backend.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace mneme {
namespace {

int64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  int64_t size_pages = 0, resident_pages = 0;
  file >> size_pages >> resident_pages;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

TEST(CpuBackendTest, BuffersAreAligned) {
  CpuBackend backend({.threads = 1});
  for (const int64_t bytes : {0, 1, 4096, (256 << 10) - 1, 256 << 10, 5 << 20}) {
    const Buffer buffer = backend.Allocate(bytes).value();
    EXPECT_EQ(buffer.bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u) << bytes;
    std::memset(buffer.data(), 1, static_cast<size_t>(bytes));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(backend.Allocate(-1).status()));
  EXPECT_TRUE(absl::IsResourceExhausted(backend.Allocate(int64_t{1} << 60).status()));
}

// As questions do: each on some thread, with a state of its own, and leaving something small.
TEST(CpuBackendTest, LargeBuffersLeaveNothingBehind) {
  constexpr int kThreads = 16, kRounds = 12;
  constexpr int64_t kBytes = 2488320, kLeftMax = 8 << 20;
  CpuBackend backend({.threads = 1});
  std::vector<std::unique_ptr<char[]>> left;
  const auto ask = [&](int rounds) {
    std::vector<std::unique_ptr<char[]>> here[kThreads];
    std::vector<std::thread> threads;
    for (auto& kept : here) {
      threads.emplace_back([&] {
        for (int round = 0; round < rounds; ++round) {
          const Buffer state = backend.Allocate(kBytes).value();
          std::memset(state.data(), 1, kBytes);
          kept.push_back(std::make_unique<char[]>(900));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (auto& kept : here) std::move(kept.begin(), kept.end(), std::back_inserter(left));
  };
  ask(1);
  const int64_t before = ResidentBytes();
  ask(kRounds);
  EXPECT_LT(ResidentBytes() - before, kLeftMax);
}

}  // namespace
}  // namespace mneme
