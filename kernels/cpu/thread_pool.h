// A fixed set of worker threads that share loops with the threads that ask for them.

#ifndef MNEME_KERNELS_CPU_THREAD_POOL_H_
#define MNEME_KERNELS_CPU_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"

namespace mneme {

// Thread-safe: any number of threads may run loops at the same time, and a task may run a loop of
// its own (the calling thread always takes part, so a loop ends even when every worker is busy
// elsewhere).
class ThreadPool {
 public:
  // `threads` counts the calling thread: threads - 1 workers are started. At least 1.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs fn(0) .. fn(n_tasks - 1), each once, in no particular order, and returns when all have
  // returned; everything they wrote is visible to the caller. Which thread runs which task is not
  // fixed: results must not depend on it.
  void ParallelFor(int64_t n_tasks, absl::FunctionRef<void(int64_t)> fn);

 private:
  // One ParallelFor in progress; lives on its caller's stack.
  struct Loop {
    absl::FunctionRef<void(int64_t)> fn;
    int64_t n_tasks;
    std::atomic<int64_t> next_task{0};
    std::atomic<int> helpers{0};  // workers inside this loop; they enter under the pool's mutex_
    Loop* next_loop = nullptr;
  };

  static void RunTasks(Loop& loop);
  void Work();
  // The first loop that still has a task to hand out, or null.
  Loop* FindLoop() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;
  absl::CondVar loop_added_;
  absl::CondVar helper_left_;
  Loop* loops_ ABSL_GUARDED_BY(mutex_) = nullptr;  // newest first
  int idle_workers_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  // Counts loops ever added: workers watch it for a moment before they sleep, so that short loops
  // that follow each other (a decode step) do not pay a wake-up each.
  std::atomic<uint64_t> loops_added_count_{0};
  std::vector<std::thread> workers_;
};

}  // namespace mneme

#endif  // MNEME_KERNELS_CPU_THREAD_POOL_H_
