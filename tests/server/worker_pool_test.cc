#include "server/worker_pool.h"

#include <atomic>
#include <memory>

#include "absl/synchronization/barrier.h"
#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"

namespace mneme {
namespace {

TEST(WorkerPoolTest, RunsWhatIsQueuedBeforeItEnds) {
  Metrics metrics;
  std::atomic<int> runs = 0;
  {
    WorkerPool pool("test", 2, 100, metrics);
    for (int i = 0; i < 50; ++i) ASSERT_TRUE(pool.Submit([&] { ++runs; }).ok());
  }
  EXPECT_EQ(runs, 50);
}

TEST(WorkerPoolTest, AFullQueueRefuses) {
  Metrics metrics;
  absl::Notification started, go_on;
  WorkerPool pool("test", 1, 2, metrics);
  ASSERT_TRUE(pool.Submit([&] {
                    started.Notify();
                    go_on.WaitForNotification();
                  })
                  .ok());
  started.WaitForNotification();
  EXPECT_TRUE(pool.Submit([] {}).ok());
  EXPECT_TRUE(pool.Submit([] {}).ok());
  const absl::Status status = pool.Submit([] { FAIL(); });
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("2 wait"), absl::string_view::npos) << status;
  EXPECT_NE(metrics.Expose().find("mneme_worker_rejected_total{pool=\"test\"} 1"),
            std::string::npos);
  go_on.Notify();
}

TEST(WorkerPoolTest, ThreadsWorkSideBySide) {
  Metrics metrics;
  auto* barrier = new absl::Barrier(3);
  WorkerPool pool("test", 3, 10, metrics);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(pool.Submit([barrier] {
                      if (barrier->Block()) delete barrier;
                    })
                    .ok());
  }
}

}  // namespace
}  // namespace mneme
