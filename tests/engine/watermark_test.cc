#include "engine/watermark.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace mneme {
namespace {

using State = Watermark::State;

ResourceUse Used(int64_t used) {
  return {.resource = "host", .used_bytes = used, .limit_bytes = 1000};
}
ResourceUse Free(int64_t free) { return {.resource = "disk", .free_bytes = free}; }

TEST(WatermarkTest, StatesFollowTheUse) {
  Watermark mark({.low = 0.8, .high = 0.9});
  EXPECT_FALSE(mark.Observe(Used(800)));
  EXPECT_EQ(mark.state(), State::kNormal);
  EXPECT_TRUE(mark.Observe(Used(850)));
  EXPECT_EQ(mark.state(), State::kSlow);
  EXPECT_NEAR(mark.pressure(), 0.5, 1e-9);
  EXPECT_TRUE(mark.Observe(Used(901)));
  EXPECT_EQ(mark.state(), State::kRefuse);
  EXPECT_TRUE(mark.Observe(Used(100)));
  EXPECT_EQ(mark.state(), State::kNormal);
}

TEST(WatermarkTest, ARefusalTellsWhatEndsIt) {
  Watermark used({.low = 0.75, .high = 0.95});
  used.Observe(Used(940));
  EXPECT_EQ(used.used_allowed_bytes(), -1);
  used.Observe(Used(951));
  EXPECT_EQ(used.used_allowed_bytes(), 930);
  EXPECT_EQ(used.free_needed_bytes(), -1);

  Watermark free({.free_low_bytes = 1000, .free_high_bytes = 200});
  free.Observe(Free(201));
  EXPECT_EQ(free.free_needed_bytes(), -1);
  free.Observe(Free(200));
  EXPECT_EQ(free.free_needed_bytes(), 280);
  EXPECT_EQ(free.used_allowed_bytes(), -1);
  free.Observe(Free(free.free_needed_bytes()));
  EXPECT_EQ(free.state(), State::kRefuse);
  free.Observe(Free(281));
  EXPECT_EQ(free.state(), State::kSlow);
}

TEST(WatermarkTest, TheWayBackHasAMargin) {
  Watermark mark({.low = 0.8, .high = 0.9});
  mark.Observe(Used(901));
  // A tenth of the way between the marks below the mark, and no sooner.
  EXPECT_FALSE(mark.Observe(Used(895)));
  EXPECT_EQ(mark.state(), State::kRefuse);
  EXPECT_TRUE(mark.Observe(Used(888)));
  EXPECT_EQ(mark.state(), State::kSlow);
  EXPECT_FALSE(mark.Observe(Used(795)));
  EXPECT_TRUE(mark.Observe(Used(789)));
  EXPECT_EQ(mark.state(), State::kNormal);
}

TEST(WatermarkTest, AUseThatHoversAtAMarkDoesNotFlap) {
  Watermark mark({.low = 0.8, .high = 0.9});
  int changes = 0;
  for (int i = 0; i < 100; ++i) changes += mark.Observe(Used(i % 2 == 0 ? 901 : 896)) ? 1 : 0;
  for (int i = 0; i < 100; ++i) changes += mark.Observe(Used(i % 2 == 0 ? 801 : 796)) ? 1 : 0;
  EXPECT_EQ(changes, 2);  // to refuse, and to slow
}

TEST(WatermarkTest, FreeBytesCountWhoeverUsesTheRest) {
  Watermark mark({.low = 0.8, .high = 0.9, .free_low_bytes = 1000, .free_high_bytes = 200});
  mark.Observe(Free(1000));
  EXPECT_EQ(mark.state(), State::kNormal);
  mark.Observe(Free(600));
  EXPECT_EQ(mark.state(), State::kSlow);
  EXPECT_NEAR(mark.pressure(), 0.5, 1e-9);
  mark.Observe(Free(200));
  EXPECT_EQ(mark.state(), State::kRefuse);
  mark.Observe(Free(2000));
  EXPECT_EQ(mark.state(), State::kNormal);
}

TEST(WatermarkTest, TheWorseOfTwoMeasuresDecides) {
  Watermark mark({.low = 0.8, .high = 0.9, .free_low_bytes = 1000, .free_high_bytes = 200});
  mark.Observe({.resource = "disk", .used_bytes = 10, .limit_bytes = 1000, .free_bytes = 100});
  EXPECT_EQ(mark.state(), State::kRefuse);
  mark.Observe({.resource = "disk", .used_bytes = 990, .limit_bytes = 1000, .free_bytes = 9999});
  EXPECT_EQ(mark.state(), State::kRefuse);
}

TEST(WatermarkTest, WithoutALimitNothingRunsOut) {
  Watermark mark({.low = 0.8, .high = 0.9});
  EXPECT_FALSE(mark.Observe({.resource = "host", .used_bytes = int64_t{1} << 60}));
  EXPECT_FALSE(mark.Observe(Free(0)));
  EXPECT_EQ(mark.state(), State::kNormal);
}

}  // namespace
}  // namespace mneme
