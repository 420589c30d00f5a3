#include "server/worker_pool.h"

#include <atomic>
#include <memory>
#include <new>

#include "absl/synchronization/barrier.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace mneme {
namespace {

TEST(WorkerPoolTest, RunsWhatIsQueuedBeforeItEnds) {
  Metrics metrics;
  Supervisor supervisor(metrics, RealClock());
  std::atomic<int> runs = 0;
  {
    WorkerPool pool("test", 2, 100, supervisor);
    for (int i = 0; i < 50; ++i) ASSERT_TRUE(pool.Submit([&] { ++runs; }).ok());
  }
  EXPECT_EQ(runs, 50);
}

TEST(WorkerPoolTest, AFullQueueRefuses) {
  Metrics metrics;
  Supervisor supervisor(metrics, RealClock());
  absl::Notification started, go_on;
  WorkerPool pool("test", 1, 2, supervisor);
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
  Supervisor supervisor(metrics, RealClock());
  auto* barrier = new absl::Barrier(3);
  WorkerPool pool("test", 3, 10, supervisor);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(pool.Submit([barrier] {
                      if (barrier->Block()) delete barrier;
                    })
                    .ok());
  }
}

TEST(WorkerPoolTest, ATaskThatThrowsEndsItsThreadAndTheSupervisorKnows) {
  Metrics metrics;
  Supervisor supervisor(metrics, RealClock());
  WorkerPool pool("test", 1, 10, supervisor);
  ASSERT_TRUE(pool.Submit([] { throw std::bad_alloc(); }).ok());
  while (supervisor.Health().ok()) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_NE(supervisor.Health().message().find("background thread test_calls failed"),
            absl::string_view::npos);
}

}  // namespace
}  // namespace mneme
