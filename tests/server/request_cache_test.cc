#include "server/request_cache.h"

#include <memory>
#include <string>

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

#include <thread>

namespace mneme {
namespace {

class RequestCacheTest : public ::testing::Test {
 protected:
  // Runs a request whose work counts itself and answers the count.
  absl::StatusOr<std::string> Run(const std::string& id, const std::string& request,
                                  const std::string& method = "Create") {
    return cache_.Run(method, id, request,
                      [this]() -> absl::StatusOr<std::string> { return std::to_string(++runs_); });
  }

  SimulatedClock clock_{absl::UnixEpoch()};
  Metrics metrics_;
  RequestCache cache_{3, clock_, metrics_};
  int runs_ = 0;
};

TEST_F(RequestCacheTest, ARetryGetsTheFirstResult) {
  EXPECT_EQ(*Run("id", "request"), "1");
  EXPECT_EQ(*Run("id", "request"), "1");
  EXPECT_EQ(runs_, 1);
}

TEST_F(RequestCacheTest, WithoutAnIdEveryRequestRuns) {
  EXPECT_EQ(*Run("", "request"), "1");
  EXPECT_EQ(*Run("", "request"), "2");
}

TEST_F(RequestCacheTest, MethodsDoNotShareIds) {
  EXPECT_EQ(*Run("id", "request", "Create"), "1");
  EXPECT_EQ(*Run("id", "request", "Delete"), "2");
}

TEST_F(RequestCacheTest, AnIdWithAnotherRequestIsRefused) {
  EXPECT_EQ(*Run("id", "request"), "1");
  EXPECT_EQ(Run("id", "another").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(RequestCacheTest, ATooLongIdIsRefused) {
  EXPECT_TRUE(Run(std::string(64, 'x'), "request").ok());
  EXPECT_EQ(Run(std::string(65, 'x'), "request").status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(RequestCacheTest, ResultsAreForgottenAfterTenMinutes) {
  EXPECT_EQ(*Run("id", "request"), "1");
  clock_.Advance(absl::Minutes(10) - absl::Seconds(1));
  EXPECT_EQ(*Run("id", "request"), "1");
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(*Run("id", "request"), "2");
}

TEST_F(RequestCacheTest, BeyondTheLimitTheOldestIsForgotten) {
  for (const char* id : {"a", "b", "c", "d"}) EXPECT_TRUE(Run(id, "request").ok());
  EXPECT_EQ(*Run("d", "request"), "4");
  EXPECT_EQ(*Run("b", "request"), "2");
  EXPECT_EQ(*Run("a", "request"), "5");
}

TEST_F(RequestCacheTest, AnErrorIsNotRemembered) {
  const auto failed = cache_.Run("Create", "id", "request", []() -> absl::StatusOr<std::string> {
    return absl::UnavailableError("not now");
  });
  EXPECT_EQ(failed.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(*Run("id", "request"), "1");
}

TEST_F(RequestCacheTest, ARetryWhileTheFirstRunsIsAborted) {
  absl::Notification running, go_on;
  std::thread first([&] {
    const auto result = cache_.Run("Create", "id", "request", [&]() -> absl::StatusOr<std::string> {
      running.Notify();
      go_on.WaitForNotification();
      return std::string("first");
    });
    EXPECT_EQ(*result, "first");
  });
  running.WaitForNotification();
  EXPECT_EQ(Run("id", "request").status().code(), absl::StatusCode::kAborted);
  go_on.Notify();
  first.join();
  EXPECT_EQ(*Run("id", "request"), "first");
}

}  // namespace
}  // namespace mneme
