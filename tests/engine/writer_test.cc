// Writer: durability, resumption, bad input, backpressure.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/engine_harness.h"

namespace mneme {
namespace {

using ::testing::HasSubstr;

TEST(WriterTest, TextBecomesDurableThenVisible) {
  EngineHarness harness;
  harness.CreateMemory("m");
  const std::string text = RandomText(1, 500);
  TestWriter writer(harness.engine(), harness.Document("m", "d"));
  writer.Send(text);
  EXPECT_TRUE(writer.WaitDurable(static_cast<int64_t>(text.size())));
  EXPECT_TRUE(writer.WaitVisible(static_cast<int64_t>(text.size())));
  EXPECT_FALSE(writer.misbehaved());
  EXPECT_EQ(harness.DerivedDiffers("m", "d", text), "");
}

}  // namespace
}  // namespace mneme
