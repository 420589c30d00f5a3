#include "kernels/cpu/thread_pool.h"

#include <atomic>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace mneme {
namespace {

TEST(ThreadPoolTest, RunsEachTaskOnceForAnyNumberOfThreads) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (int64_t n : {0, 1, 2, 3, 1000}) {
      std::vector<int> runs(n, 0);
      pool.ParallelFor(n, [&](int64_t task) { ++runs[task]; });
      EXPECT_EQ(runs, std::vector<int>(n, 1)) << threads << " threads, " << n << " tasks";
    }
  }
}

TEST(ThreadPoolTest, TasksMayRunLoopsOfTheirOwn) {
  ThreadPool pool(3);
  std::atomic<int> leaves{0};
  pool.ParallelFor(7, [&](int64_t) {
    pool.ParallelFor(5, [&](int64_t) { pool.ParallelFor(3, [&](int64_t) { ++leaves; }); });
  });
  EXPECT_EQ(leaves.load(), 7 * 5 * 3);
}

TEST(ThreadPoolTest, ManyThreadsShareOnePool) {
  ThreadPool pool(2);
  std::vector<std::thread> callers;
  std::vector<int64_t> sums(6, 0);
  for (int caller = 0; caller < 6; ++caller) {
    callers.emplace_back([&, caller] {
      for (int round = 0; round < 50; ++round) {
        std::vector<int64_t> parts(17, 0);
        pool.ParallelFor(17, [&](int64_t task) { parts[task] = task + caller; });
        for (int64_t part : parts) sums[caller] += part;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (int64_t caller = 0; caller < 6; ++caller) EXPECT_EQ(sums[caller], 50 * (136 + 17 * caller));
}

TEST(ThreadPoolTest, AnotherThreadTakesPartWhenOneIsWaiting) {
  ThreadPool pool(2);
  std::atomic<int> arrived{0};
  // Each task waits for the other: this ends only when two threads run them.
  pool.ParallelFor(2, [&](int64_t) {
    ++arrived;
    while (arrived.load() < 2) std::this_thread::yield();
  });
  EXPECT_EQ(arrived.load(), 2);
}

}  // namespace
}  // namespace mneme
