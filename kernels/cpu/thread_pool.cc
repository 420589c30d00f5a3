#include "kernels/cpu/thread_pool.h"

#include <algorithm>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace mneme {
namespace {

// Roughly 10 to 20 microseconds of looking before a thread goes to sleep.
constexpr int kSpins = 400;

void SpinPause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Rounds results too small for a normal float to zero while it lives: decays of the recurrence fade
// into such numbers, and processors take a hundred times longer for them.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }  // FTZ, DAZ
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  const unsigned before_;
#endif
};

}  // namespace

ThreadPool::ThreadPool(int threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { Work(); });
}

ThreadPool::~ThreadPool() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    loops_added_count_.fetch_add(1, std::memory_order_release);
    loop_added_.SignalAll();
  }
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::RunTasks(Loop& loop) {
  for (;;) {
    const int64_t task = loop.next_task.fetch_add(1, std::memory_order_relaxed);
    if (task >= loop.n_tasks) return;
    loop.fn(task);
  }
}

void ThreadPool::ParallelFor(int64_t n_tasks, absl::FunctionRef<void(int64_t)> fn) {
  [[maybe_unused]] const FlushDenormals flush;
  if (n_tasks <= 1 || workers_.empty()) {
    for (int64_t task = 0; task < n_tasks; ++task) fn(task);
    return;
  }
  Loop loop{.fn = fn, .n_tasks = n_tasks};
  {
    absl::MutexLock lock(&mutex_);
    loop.next_loop = loops_;
    loops_ = &loop;
    loops_added_count_.fetch_add(1, std::memory_order_release);
    const int64_t wanted = std::min<int64_t>(n_tasks - 1, idle_workers_);
    for (int64_t i = 0; i < wanted; ++i) loop_added_.Signal();
  }
  RunTasks(loop);
  // What helpers still run is about as long as what was just finished here: mostly not worth a
  // sleep.
  for (int i = 0; i < kSpins && loop.helpers.load(std::memory_order_acquire) > 0; ++i) SpinPause();
  absl::MutexLock lock(&mutex_);
  Loop** link = &loops_;
  while (*link != &loop) link = &(*link)->next_loop;
  *link = loop.next_loop;
  // A worker takes tasks only between entering and leaving the loop, so with no helper left all
  // tasks have returned.
  while (loop.helpers.load(std::memory_order_acquire) > 0) helper_left_.Wait(&mutex_);
}

ThreadPool::Loop* ThreadPool::FindLoop() {
  for (Loop* loop = loops_; loop != nullptr; loop = loop->next_loop) {
    if (loop->next_task.load(std::memory_order_relaxed) < loop->n_tasks) return loop;
  }
  return nullptr;
}

void ThreadPool::Work() {
  [[maybe_unused]] const FlushDenormals flush;
  mutex_.Lock();
  while (!stopping_) {
    if (Loop* loop = FindLoop(); loop != nullptr) {
      loop->helpers.fetch_add(1);
      mutex_.Unlock();
      RunTasks(*loop);
      const bool last = loop->helpers.fetch_sub(1) == 1;  // from here on the loop may be gone
      mutex_.Lock();
      if (last) helper_left_.SignalAll();
      continue;
    }
    const uint64_t seen = loops_added_count_.load(std::memory_order_acquire);
    mutex_.Unlock();
    for (int i = 0; i < kSpins && loops_added_count_.load(std::memory_order_acquire) == seen; ++i) {
      SpinPause();
    }
    mutex_.Lock();
    if (loops_added_count_.load(std::memory_order_relaxed) == seen) {
      ++idle_workers_;
      loop_added_.Wait(&mutex_);
      --idle_workers_;
    }
  }
  mutex_.Unlock();
}

}  // namespace mneme
