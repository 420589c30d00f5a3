#include "engine/background_thread.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

absl::Status WaitUnhealthy(const BackgroundThread& thread) {
  for (int i = 0; i < 60'000; ++i) {
    const absl::Status health = thread.Health(absl::InfiniteDuration());
    if (!health.ok()) return health;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return absl::OkStatus();
}

TEST(BackgroundThreadTest, EndThatWasAskedForIsNoFailure) {
  Metrics metrics;
  absl::Notification stop, ended;
  BackgroundThread thread("t", metrics, RealClock(), [&](BackgroundThread&) {
    stop.WaitForNotification();
    ended.Notify();
    return absl::OkStatus();
  });
  EXPECT_TRUE(thread.Health(absl::Minutes(1)).ok());
  stop.Notify();
  ended.WaitForNotification();
  EXPECT_TRUE(thread.Health(absl::Minutes(1)).ok());
}

TEST(BackgroundThreadTest, ErrorIsCountedAndMakesItUnhealthy) {
  Metrics metrics;
  BackgroundThread thread("t", metrics, RealClock(),
                          [](BackgroundThread&) { return absl::InternalError("lost the device"); });
  const absl::Status health = WaitUnhealthy(thread);
  EXPECT_EQ(health.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(health.message()), HasSubstr("lost the device"));
  EXPECT_THAT(metrics.Expose(), HasSubstr("mneme_thread_failures_total{thread=\"t\"} 1"));
  EXPECT_THAT(metrics.Expose(), HasSubstr("mneme_thread_alive{thread=\"t\"} 0"));
}

TEST(BackgroundThreadTest, ExceptionOfALibraryIsAFailureNotACrash) {
  Metrics metrics;
  BackgroundThread thread("t", metrics, RealClock(), [](BackgroundThread&) -> absl::Status {
    throw std::runtime_error("no memory");
  });
  EXPECT_THAT(std::string(WaitUnhealthy(thread).message()), HasSubstr("no memory"));
}

TEST(BackgroundThreadTest, SilenceMakesItUnhealthyAndABeatWellAgain) {
  Metrics metrics;
  SimulatedClock clock(absl::FromUnixSeconds(1000));
  absl::Notification stop;
  BackgroundThread thread("t", metrics, clock, [&](BackgroundThread&) {
    stop.WaitForNotification();
    return absl::OkStatus();
  });
  clock.Advance(absl::Minutes(3));
  EXPECT_EQ(thread.Health(absl::Minutes(2)).code(), absl::StatusCode::kUnavailable);
  thread.Beat();
  EXPECT_TRUE(thread.Health(absl::Minutes(2)).ok());
  stop.Notify();
}

}  // namespace
}  // namespace mneme
