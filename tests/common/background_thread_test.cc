#include "common/background_thread.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <stdexcept>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

absl::Status WaitUnhealthy(const Supervisor& supervisor) {
  for (int i = 0; i < 60'000; ++i) {
    const absl::Status health = supervisor.Health();
    if (!health.ok()) return health;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return absl::OkStatus();
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

class BackgroundThreadTest : public ::testing::Test {
 protected:
  Metrics metrics_;
  SimulatedClock clock_{absl::FromUnixSeconds(1000)};
  Supervisor supervisor_{metrics_, clock_, absl::Minutes(2)};
};

TEST_F(BackgroundThreadTest, EndThatWasAskedForIsNoFailure) {
  absl::Notification stop;
  BackgroundThread thread("t", supervisor_, [&](BackgroundThread&) {
    stop.WaitForNotification();
    return absl::OkStatus();
  });
  EXPECT_TRUE(supervisor_.Health().ok());
  thread.MayEnd();
  stop.Notify();
  while (!testing::Matches(HasSubstr("mneme_thread_alive{thread=\"t\"} 0"))(metrics_.Expose())) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  clock_.Advance(absl::Hours(1));
  EXPECT_TRUE(supervisor_.Health().ok());
}

TEST_F(BackgroundThreadTest, ReturnThatNobodyAskedForIsAFailure) {
  BackgroundThread thread("t", supervisor_, [](BackgroundThread&) { return absl::OkStatus(); });
  EXPECT_THAT(Message(WaitUnhealthy(supervisor_)),
              HasSubstr("background thread t failed: INTERNAL: it ended without being asked to"));
}

TEST_F(BackgroundThreadTest, ErrorIsCountedAndMakesItUnhealthy) {
  BackgroundThread thread("t", supervisor_,
                          [](BackgroundThread&) { return absl::InternalError("lost the device"); });
  const absl::Status health = WaitUnhealthy(supervisor_);
  EXPECT_EQ(health.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(health), HasSubstr("lost the device"));
  EXPECT_THAT(metrics_.Expose(), HasSubstr("mneme_thread_failures_total{thread=\"t\"} 1"));
  EXPECT_THAT(metrics_.Expose(), HasSubstr("mneme_thread_alive{thread=\"t\"} 0"));
}

TEST_F(BackgroundThreadTest, ExceptionOfALibraryIsAFailureNotACrash) {
  BackgroundThread thread("t", supervisor_, [](BackgroundThread&) -> absl::Status {
    throw std::runtime_error("no memory");
  });
  EXPECT_THAT(Message(WaitUnhealthy(supervisor_)), HasSubstr("no memory"));
}

TEST_F(BackgroundThreadTest, SilenceMakesItUnhealthyAndABeatWellAgain) {
  absl::Notification stop;
  BackgroundThread thread("t", supervisor_, [&](BackgroundThread&) {
    stop.WaitForNotification();
    return absl::OkStatus();
  });
  clock_.Advance(absl::Minutes(2));
  EXPECT_TRUE(supervisor_.Health().ok());
  EXPECT_THAT(metrics_.Expose(), HasSubstr("mneme_thread_last_beat_seconds{thread=\"t\"} 120"));
  EXPECT_THAT(metrics_.Expose(), HasSubstr("mneme_thread_beat_limit_seconds{thread=\"t\"} 120"));
  clock_.Advance(absl::Seconds(1));
  const absl::Status health = supervisor_.Health();
  EXPECT_EQ(health.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(health), HasSubstr("background thread t has shown no sign of life for 2m1s"));
  EXPECT_THAT(metrics_.Expose(), HasSubstr("mneme_thread_alive{thread=\"t\"} 1"));
  thread.Beat();
  EXPECT_TRUE(supervisor_.Health().ok());
  thread.MayEnd();
  stop.Notify();
}

TEST_F(BackgroundThreadTest, EachThreadHasTheLimitThatItStates) {
  WatchedThread patient("patient", supervisor_, WatchedThread::kNoLimit);
  WatchedThread strict("strict", supervisor_, absl::Seconds(5));
  clock_.Advance(absl::Seconds(6));
  EXPECT_THAT(Message(supervisor_.Health()), HasSubstr("background thread strict"));
  strict.Beat();
  EXPECT_TRUE(supervisor_.Health().ok());
  EXPECT_THAT(metrics_.Expose(),
              HasSubstr("mneme_thread_beat_limit_seconds{thread=\"patient\"} +Inf"));
}

TEST_F(BackgroundThreadTest, AThreadThatIsGoneIsNoLongerWatched) {
  auto thread = std::make_unique<WatchedThread>("t", supervisor_, absl::Seconds(5));
  clock_.Advance(absl::Minutes(1));
  EXPECT_FALSE(supervisor_.Health().ok());
  thread.reset();
  EXPECT_TRUE(supervisor_.Health().ok());
  EXPECT_THAT(metrics_.Expose(), Not(HasSubstr("mneme_thread_alive")));
}

}  // namespace
}  // namespace mneme
